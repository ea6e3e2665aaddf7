// restrl._core: the forest of search trees. Text crosses as str both ways, in every thread-safe call the GIL
// is released while the forest works.
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "register.h"
#include "search/dummy.h"
#include "search/errors.h"
#include "search/forest.h"
#include "search/params.h"
#include "search/random.h"

namespace py = pybind11;

namespace restrl {
namespace {

using namespace search;

// str <-> UTF-8. Lone surrogates, which a damaged token can leave in a completion, pass through unchanged.
std::string to_utf8(py::handle text) {
  if (!PyUnicode_Check(text.ptr())) {
    throw py::type_error("expected str, not " + std::string(py::str(py::type::of(text))));
  }
  const auto bytes =
      py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogatepass"));
  if (!bytes) throw py::error_already_set();
  return bytes;
}

py::str to_str(std::string_view utf8) {
  PyObject* text = PyUnicode_DecodeUTF8(utf8.data(), static_cast<Py_ssize_t>(utf8.size()), "surrogatepass");
  if (text == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

struct PendingRequest {
  Request request;
  std::string state;
};

template <typename T>
void check_lengths(const std::vector<RequestId>& ids, const std::optional<T>& lists, const char* what) {
  if (lists && lists->size() != ids.size()) {
    throw AnswerError(std::to_string(ids.size()) + " requests got " + std::to_string(lists->size()) +
                      " lists of " + what);
  }
}

void fulfil(Forest& forest, const std::vector<RequestId>& ids,
            const std::optional<std::vector<py::list>>& texts,
            std::optional<std::vector<std::vector<double>>> completion_values,
            std::optional<std::vector<std::vector<double>>> child_values) {
  check_lengths(ids, texts, "completions");
  check_lengths(ids, completion_values, "completion_values");
  check_lengths(ids, child_values, "child_values");
  if (child_values && !completion_values) throw AnswerError("child_values came without completion_values");
  std::vector<Answer> answers(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (texts) {
      auto& completions = answers[i].completions.emplace();
      for (py::handle text : (*texts)[i]) completions.push_back(to_utf8(text));
    }
    if (completion_values) {
      answers[i].scores = Scores{std::move((*completion_values)[i]),
                                 child_values ? std::move((*child_values)[i]) : std::vector<double>()};
    }
  }
  py::gil_scoped_release release;
  forest.fulfil(ids, std::move(answers));
}

py::dict expansion(const Forest& forest, RequestId id) {
  const Expansion expansion = [&] {
    py::gil_scoped_release release;
    return forest.expansion(id);
  }();
  py::list programs, children, terminal;
  for (const std::string& text : expansion.texts) programs.append(to_str(expansion.state + text));
  for (const Expansion::Child& child : expansion.children) {
    children.append(to_str(expansion.state + child.line));
    terminal.append(py::bool_(child.terminal));
  }
  py::dict result;
  result["state"] = to_str(expansion.state);
  result["programs"] = programs;
  result["reused"] = expansion.reused;
  result["children"] = children;
  result["terminal"] = terminal;
  result["child_of"] = py::cast(expansion.child_of);
  return result;
}

py::int_ index_or_none(std::uint32_t index) {
  return py::int_(index == kNone ? std::int64_t{-1} : std::int64_t{index});
}

// {"nodes": [(parent, depth, simulation, N, W, V, terminal, expanded, visible, line)], "completions":
// [(node, child, value, text, source)]}
py::dict view(const Forest& forest, TreeId tree) {
  const TreeView view = [&] {
    py::gil_scoped_release release;
    return forest.view(tree);
  }();
  py::list nodes, completions;
  for (const NodeView& node : view.nodes) {
    nodes.append(py::make_tuple(index_or_none(node.parent), node.depth, index_or_none(node.simulation),
                                node.N, node.W, node.V, node.terminal, node.expanded, node.visible,
                                to_str(node.line)));
  }
  for (const CompletionView& sample : view.completions) {
    completions.append(py::make_tuple(sample.node, sample.child, sample.value, to_str(sample.text),
                                      index_or_none(sample.source)));
  }
  py::dict result;
  result["nodes"] = nodes;
  result["completions"] = completions;
  return result;
}

py::dict stats(const Forest& forest, TreeId tree) {
  const TreeStats stats = forest.stats(tree);
  py::dict result;
  result["simulations"] = stats.simulations;
  result["expansions"] = stats.expansions;
  result["terminal_visits"] = stats.terminal_visits;
  result["completions"] = stats.completions;
  result["samples"] = stats.samples;
  result["reused"] = stats.reused;
  result["collisions"] = stats.collisions;
  result["in_flight"] = stats.in_flight;
  result["nodes"] = stats.nodes;
  result["text_bytes"] = stats.text_bytes;
  result["bytes"] = stats.bytes;
  return result;
}

py::tuple step_ends(const SearchParams& params) {
  py::tuple ends(params.step_ends.size());
  for (std::size_t i = 0; i < params.step_ends.size(); ++i) ends[i] = to_str(params.step_ends[i]);
  return ends;
}

py::dict to_dict(const SearchParams& params) {
  py::dict fields;
  fields["mode"] = std::string(name(params.mode));
  fields["simulations"] = params.simulations;
  fields["max_samples"] = params.max_samples;
  fields["k"] = params.k;
  fields["num_decisions"] = params.num_decisions;
  fields["c"] = params.c;
  fields["eps"] = params.eps;
  fields["ties"] = std::string(name(params.ties));
  fields["leaves_in_flight"] = params.leaves_in_flight;
  fields["virtual_loss"] = std::string(name(params.virtual_loss));
  fields["reuse"] = params.reuse;
  fields["in_order"] = params.in_order;
  fields["step_ends"] = step_ends(params);
  return fields;
}

std::uint32_t to_count(const char* field, const std::optional<std::int64_t>& value, std::uint32_t otherwise) {
  if (!value) return otherwise;
  if (*value < 0 || *value > 0x7fffffff) {
    throw ParamError("search parameter " + std::string(field) + " = " + std::to_string(*value) +
                     " must be between 0 and 2147483647");
  }
  return static_cast<std::uint32_t>(*value);
}

using Count = std::optional<std::int64_t>;

SearchParams make_params(const std::string& mode, Count simulations, Count max_samples, Count k,
                         Count num_decisions, std::optional<double> c, std::optional<double> eps,
                         const std::optional<std::string>& ties, Count leaves_in_flight,
                         const std::optional<std::string>& virtual_loss, std::optional<bool> reuse,
                         std::optional<bool> in_order, const std::optional<py::tuple>& step_ends) {
  SearchParams params = SearchParams::defaults(parse_mode(mode));
  params.simulations = to_count("simulations", simulations, params.simulations);
  params.max_samples = to_count("max_samples", max_samples, params.max_samples);
  params.k = to_count("k", k, params.k);
  params.num_decisions = to_count("num_decisions", num_decisions, params.num_decisions);
  params.c = c.value_or(params.c);
  params.eps = eps.value_or(params.eps);
  if (ties) params.ties = parse_ties(*ties);
  params.leaves_in_flight = to_count("leaves_in_flight", leaves_in_flight, params.leaves_in_flight);
  if (virtual_loss) params.virtual_loss = parse_loss_rule(*virtual_loss);
  params.reuse = reuse.value_or(params.reuse);
  params.in_order = in_order.value_or(params.in_order);
  if (step_ends) {
    params.step_ends.clear();
    for (py::handle end : *step_ends) params.step_ends.push_back(to_utf8(end));
  }
  params.validate();
  return params;
}

void register_errors(py::module_& m) {
  // The base comes from Python, so that a command prints a user's mistake as one sentence.
  const py::object base = py::module_::import("restrl.errors").attr("RestrlError");
  const py::object error = py::register_exception<Error>(m, "SearchError", base);
  py::register_exception<ParamError>(m, "ParamError", error);
  py::register_exception<RequestError>(m, "RequestError", error);
  py::register_exception<AnswerError>(m, "AnswerError", error);
  py::register_exception<LimitError>(m, "LimitError", error);
}

void register_params(py::module_& m) {
  py::class_<SearchParams>(m, "SearchParams",
                           "Every knob of a search; what is left out has the mode's published value.")
      .def(py::init(&make_params), py::arg("mode") = "collect", py::kw_only(),
           py::arg("simulations") = py::none(), py::arg("max_samples") = py::none(),
           py::arg("k") = py::none(), py::arg("num_decisions") = py::none(), py::arg("c") = py::none(),
           py::arg("eps") = py::none(), py::arg("ties") = py::none(),
           py::arg("leaves_in_flight") = py::none(), py::arg("virtual_loss") = py::none(),
           py::arg("reuse") = py::none(), py::arg("in_order") = py::none(), py::arg("step_ends") = py::none())
      .def_property_readonly("mode", [](const SearchParams& p) { return std::string(name(p.mode)); })
      .def_readonly("simulations", &SearchParams::simulations)
      .def_readonly("max_samples", &SearchParams::max_samples)
      .def_readonly("k", &SearchParams::k)
      .def_readonly("num_decisions", &SearchParams::num_decisions)
      .def_readonly("c", &SearchParams::c)
      .def_readonly("eps", &SearchParams::eps)
      .def_property_readonly("ties", [](const SearchParams& p) { return std::string(name(p.ties)); })
      .def_readonly("leaves_in_flight", &SearchParams::leaves_in_flight)
      .def_property_readonly("virtual_loss",
                             [](const SearchParams& p) { return std::string(name(p.virtual_loss)); })
      .def_readonly("reuse", &SearchParams::reuse)
      .def_readonly("in_order", &SearchParams::in_order)
      .def_property_readonly("step_ends", &step_ends)
      .def("to_dict", &to_dict, "The fields by name: SearchParams(**params.to_dict()) == params.")
      .def(
          "__eq__", [](const SearchParams& a, const SearchParams& b) { return a == b; }, py::is_operator())
      .def("__repr__", [](py::object self) {
        const py::dict fields = self.attr("to_dict")();
        return py::str("SearchParams({})").format(py::str(", ").attr("join")([&] {
          py::list parts;
          for (auto [key, value] : fields) parts.append(py::str("{}={!r}").format(key, value));
          return parts;
        }()));
      });
}

}  // namespace

void register_search(py::module_& m) {
  register_errors(m);
  register_params(m);

  py::class_<PendingRequest>(m, "Request", "A leaf to expand.")
      .def_property_readonly("id", [](const PendingRequest& r) { return r.request.id; })
      .def_property_readonly("tree", [](const PendingRequest& r) { return r.request.tree; })
      .def_property_readonly("simulation", [](const PendingRequest& r) { return r.request.simulation; })
      .def_property_readonly("k", [](const PendingRequest& r) { return r.request.k; })
      .def_property_readonly("reused", [](const PendingRequest& r) { return r.request.reused; })
      .def_property_readonly("state", [](const PendingRequest& r) { return to_str(r.state); });

  py::class_<Forest>(m, "Forest", "Many search trees; see csrc/search/forest.h for the contract.")
      .def(py::init<const SearchParams&, std::uint64_t>(), py::arg("params"), py::arg("seed") = 0)
      .def_property_readonly("params", &Forest::params)
      .def_property_readonly("seed", &Forest::seed)
      .def(
          "add",
          [](Forest& forest, const py::str& key, const py::str& state) {
            return forest.add(to_utf8(key), to_utf8(state));
          },
          py::arg("key"), py::arg("state"))
      .def(
          "next",
          [](Forest& forest, std::size_t max_requests) {
            std::vector<std::string> states;
            const std::vector<Request> requests = forest.next(max_requests, &states);
            std::vector<PendingRequest> pending;
            for (std::size_t i = 0; i < requests.size(); ++i)
              pending.push_back({requests[i], std::move(states[i])});
            return pending;
          },
          py::arg("max_requests"), py::call_guard<py::gil_scoped_release>())
      .def("fulfil", &fulfil, py::arg("ids"), py::arg("completions") = py::none(),
           py::arg("completion_values") = py::none(), py::arg("child_values") = py::none())
      .def(
          "cancel", [](Forest& forest, const std::vector<RequestId>& ids) { forest.cancel(ids); },
          py::arg("ids"), py::call_guard<py::gil_scoped_release>())
      .def("cancel_all", &Forest::cancel_all, py::call_guard<py::gil_scoped_release>())
      .def("expansion", &expansion, py::arg("id"))
      .def("take_finished", &Forest::take_finished, py::call_guard<py::gil_scoped_release>())
      .def("in_flight", &Forest::in_flight, py::call_guard<py::gil_scoped_release>())
      .def("nodes_in_flight", &Forest::nodes_in_flight, py::arg("tree"))
      .def("stats", &stats, py::arg("tree"))
      .def("view", &view, py::arg("tree"))
      .def("remove", &Forest::remove, py::arg("tree"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "dummy_completions",
      [](const py::str& text, std::uint32_t k, std::uint64_t seed) {
        return dummy_completions(seed, text_stream(to_utf8(text)), k);
      },
      py::arg("text"), py::arg("k"), py::arg("seed") = 0,
      "k deterministic completions for a text (a state or a seed key).");
  m.def(
      "dummy_score",
      [](const py::str& text, std::uint64_t seed) { return dummy_score(seed, text_stream(to_utf8(text))); },
      py::arg("text"), py::arg("seed") = 0, "A deterministic score in [0, 1] of a text.");
  m.def("run_dummy", &run_dummy, py::arg("forest"), py::arg("seed") = 0, py::arg("batch") = 64,
        py::arg("ends") = 16, py::call_guard<py::gil_scoped_release>(),
        "Drives every tree to its end with the dummy policy and evaluator; returns the requests answered.");
}

}  // namespace restrl
