// restrl._core: the forest of search trees. Text crosses as str both ways, without a copy where it goes in;
// the GIL is released in every call that may work for more than some microseconds.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "answer_arguments.h"
#include "forest_object.h"
#include "register.h"
#include "search/dummy.h"
#include "search/forest.h"
#include "search/random.h"
#include "text_objects.h"

namespace py = pybind11;

namespace restrl {
namespace {

using namespace search;

constexpr std::size_t kQuick = 8;  // so few requests are dealt with faster than the GIL changes hands

// function() without the GIL, unless it is quick.
template <typename Function>
auto work(bool quick, Function function) {
  std::optional<py::gil_scoped_release> release;
  if (!quick) release.emplace();
  return function();
}

// Lets go of what a call has dropped, whether it came to its end or not.
struct Burial {
  ForestObject& object;
  ~Burial() { object.bury(); }
};

struct PendingRequest {
  Request request;
  std::string state;
};

std::vector<PendingRequest> next(ForestObject& object, std::size_t max_requests) {
  return work(max_requests <= kQuick, [&] {
    std::vector<std::string> states;
    const std::vector<Request> requests = object.forest.next(max_requests, &states);
    std::vector<PendingRequest> pending;
    pending.reserve(requests.size());
    for (std::size_t i = 0; i < requests.size(); ++i) pending.push_back({requests[i], std::move(states[i])});
    return pending;
  });
}

py::tuple take(ForestObject& object, std::size_t max_requests) {
  std::vector<Request> requests;
  work(max_requests <= kQuick, [&] { object.forest.next(max_requests, requests, nullptr); });
  py::array_t<RequestId> ids(requests.size());
  py::array_t<TreeId> trees(requests.size());
  py::array_t<std::uint32_t> simulations(requests.size()), k(requests.size());
  RequestId* const id = ids.mutable_data();
  TreeId* const tree = trees.mutable_data();
  std::uint32_t* const simulation = simulations.mutable_data();
  std::uint32_t* const samples = k.mutable_data();
  for (std::size_t i = 0; i < requests.size(); ++i) {
    id[i] = requests[i].id;
    tree[i] = requests[i].tree;
    simulation[i] = requests[i].simulation;
    samples[i] = requests[i].k;
  }
  return py::make_tuple(std::move(ids), std::move(trees), std::move(simulations), std::move(k));
}

void fulfil(ForestObject& object, const py::object& ids, const py::object& completions,
            const py::object& completion_values, const py::object& child_values) {
  const Ids requests(ids);
  const std::size_t count = requests.get().size();
  std::optional<Texts> texts;
  std::optional<Values> values, values_of_children;
  Answers answers;
  if (!completions.is_none()) answers.completions = texts.emplace(completions, count).get();
  if (!completion_values.is_none()) {
    answers.completion_values = values.emplace(completion_values, count, "completion_values").get();
  }
  if (!child_values.is_none()) {
    answers.child_values = values_of_children.emplace(child_values, count, "child_values").get();
  }
  const Burial burial{object};
  const std::size_t items = texts ? answers.completions->items.size() : 0;
  if (texts) {
    object.forest.expect_owners(items);
    texts->hand_over();
  }
  work(count <= kQuick && items <= 8 * kQuick, [&] { object.forest.fulfil(requests.get(), answers); });
}

void cancel(ForestObject& object, const py::object& ids) {
  const Ids requests(ids);
  const Burial burial{object};
  work(requests.get().size() <= kQuick, [&] { object.forest.cancel(requests.get()); });
}

py::list states(const ForestObject& object, const py::object& ids) {
  const Ids requests(ids);
  py::list result;
  for (const RequestId id : requests.get()) result.append(to_str(object.forest.state(id)));
  return result;
}

py::array_t<std::uint32_t> children(const ForestObject& object, const py::object& ids) {
  const Ids requests(ids);
  py::array_t<std::uint32_t> counts(requests.get().size());
  for (std::size_t i = 0; i < requests.get().size(); ++i) {
    counts.mutable_data()[i] = static_cast<std::uint32_t>(object.forest.children(requests.get()[i]));
  }
  return counts;
}

py::dict expansion(const ForestObject& object, RequestId id) {
  const Expansion expansion = object.forest.expansion(id);
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
py::dict view(const ForestObject& object, TreeId tree) {
  const TreeView view = work(false, [&] { return object.forest.view(tree); });
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

py::dict stats(const ForestObject& object, TreeId tree) {
  const TreeStats stats = object.forest.stats(tree);
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

// A splitter may refer to its forest: lets the garbage collector see the circle.
void collect_cycles(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (py::detail::is_holder_constructed(self)) {
      Py_VISIT(py::cast<ForestObject&>(py::handle(self)).splitter.ptr());
    }
    return 0;
  };
  type.tp_clear = [](PyObject* self) {
    if (py::detail::is_holder_constructed(self)) {
      py::cast<ForestObject&>(py::handle(self)).splitter = py::none();
    }
    return 0;
  };
}

}  // namespace

void register_forest(py::module_& m) {
  py::class_<PendingRequest>(m, "Request", "A leaf to expand.")
      .def_property_readonly("id", [](const PendingRequest& r) { return r.request.id; })
      .def_property_readonly("tree", [](const PendingRequest& r) { return r.request.tree; })
      .def_property_readonly("simulation", [](const PendingRequest& r) { return r.request.simulation; })
      .def_property_readonly("k", [](const PendingRequest& r) { return r.request.k; })
      .def_property_readonly("reused", [](const PendingRequest& r) { return r.request.reused; })
      .def_property_readonly("completed", [](const PendingRequest& r) { return r.request.completed; })
      .def_property_readonly("state", [](const PendingRequest& r) { return to_str(r.state); });

  py::class_<ForestObject>(m, "Forest", py::custom_type_setup(&collect_cycles),
                           "Many search trees; see csrc/search/forest.h for the contract.")
      .def(py::init<const SearchParams&, std::uint64_t, py::object>(), py::arg("params"), py::arg("seed") = 0,
           py::arg("splitter") = py::none())
      .def_property_readonly("params", [](const ForestObject& object) { return object.forest.params(); })
      .def_property_readonly("seed", [](const ForestObject& object) { return object.forest.seed(); })
      .def(
          "add",
          [](ForestObject& object, const py::str& key, const py::str& state) {
            return object.forest.add(to_utf8(key), to_utf8(state));
          },
          py::arg("key"), py::arg("state"))
      .def("next", &next, py::arg("max_requests"))
      .def("take", &take, py::arg("max_requests"))
      .def("fulfil", &fulfil, py::arg("ids"), py::arg("completions") = py::none(),
           py::arg("completion_values") = py::none(), py::arg("child_values") = py::none())
      .def("cancel", &cancel, py::arg("ids"))
      .def("cancel_all",
           [](ForestObject& object) {
             const Burial burial{object};
             work(false, [&] { object.forest.cancel_all(); });
           })
      .def("states", &states, py::arg("ids"))
      .def("children", &children, py::arg("ids"))
      .def("expansion", &expansion, py::arg("id"))
      .def("take_finished", [](ForestObject& object) { return object.forest.take_finished(); })
      .def("in_flight", [](const ForestObject& object) { return object.forest.in_flight(); })
      .def(
          "nodes_in_flight",
          [](const ForestObject& object, TreeId tree) {
            return work(false, [&] { return object.forest.nodes_in_flight(tree); });
          },
          py::arg("tree"))
      .def("stats", &stats, py::arg("tree"))
      .def("view", &view, py::arg("tree"))
      .def(
          "remove",
          [](ForestObject& object, TreeId tree) {
            const Burial burial{object};
            work(false, [&] { object.forest.remove(tree); });
          },
          py::arg("tree"));

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
  m.def(
      "run_dummy",
      [](ForestObject& object, std::uint64_t seed, std::size_t batch, std::uint32_t ends) {
        const Burial burial{object};
        return work(false, [&] { return run_dummy(object.forest, seed, batch, ends); });
      },
      py::arg("forest"), py::arg("seed") = 0, py::arg("batch") = 64, py::arg("ends") = 16,
      "Drives every tree to its end with the dummy policy and evaluator; returns the requests answered.");
}

}  // namespace restrl
