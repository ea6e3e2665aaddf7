// restrl._core.bench_forest: the price of the forest (csrc/search/forest_bench.h).
#include "register.h"
#include "search/forest_bench.h"

namespace py = pybind11;

namespace restrl {
namespace {

using namespace search;

py::dict bench_forest(std::uint32_t simulations, std::uint32_t leaves_in_flight, std::uint32_t trees,
                      std::uint32_t threads, std::size_t batch, std::uint32_t rounds,
                      std::uint32_t text_bytes, const std::string& mode, bool reuse, bool prepared,
                      bool copied, std::uint64_t seed) {
  ForestTask task;
  task.params.mode = parse_mode(mode);
  task.params.simulations = simulations;
  task.params.leaves_in_flight = leaves_in_flight;
  task.params.virtual_loss = LossRule::loss;  // fills the windows: what is timed is a full one
  task.params.reuse = reuse;
  task.trees = trees;
  task.threads = threads;
  task.batch = batch;
  task.rounds = rounds;
  task.text_bytes = text_bytes;
  task.seed = seed;
  task.prepared = prepared;
  task.copied = copied;
  const ForestResult result = [&] {
    py::gil_scoped_release release;
    return run_forest(task);
  }();
  py::dict row;
  row["seconds"] = result.seconds;
  row["cpu_seconds"] = result.cpu_seconds;
  row["simulations"] = result.simulations;
  row["collisions"] = result.collisions;
  row["nodes"] = result.nodes;
  row["next_cpu_seconds"] = result.next_cpu_seconds;
  row["round_cpu_seconds"] = result.round_cpu_seconds;
  row["round_requests"] = result.round_requests;
  return row;
}

}  // namespace

void register_bench_forest(py::module_& m) {
  m.def("bench_forest", &bench_forest, py::arg("simulations"), py::kw_only(), py::arg("leaves_in_flight") = 1,
        py::arg("trees") = 1, py::arg("threads") = 1, py::arg("batch") = 64, py::arg("rounds") = 0,
        py::arg("text_bytes") = 0, py::arg("mode") = "collect", py::arg("reuse") = false,
        py::arg("prepared") = true, py::arg("copied") = false, py::arg("seed") = 0,
        "One forest driven in C++ with answers that are there beforehand: seconds and counts as a dict\n"
        "(csrc/search/forest_bench.h has the task). After growth `rounds` rounds of one next() and one\n"
        "fulfil() of all that wait, the fastest reported.");
}

}  // namespace restrl
