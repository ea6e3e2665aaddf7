// restrl._core: the parameters and the errors of a search.
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "register.h"
#include "search/errors.h"
#include "search/params.h"
#include "text_objects.h"

namespace py = pybind11;

namespace restrl {
namespace {

using namespace search;

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
                         std::optional<bool> in_order, const std::optional<py::sequence>& step_ends) {
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
    if (PyUnicode_Check(step_ends->ptr())) throw py::type_error("step_ends is a sequence of str, not a str");
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
}

}  // namespace restrl
