// restrl._core.bench_tree: the price of the tree alone (csrc/search/synthetic.h).
#include "register.h"
#include "search/synthetic.h"

namespace py = pybind11;

namespace restrl {
namespace {

using namespace search;

py::dict bench_tree(std::uint32_t simulations, std::uint32_t leaves_in_flight, std::uint32_t trees,
                    std::uint32_t threads, std::uint64_t seed, std::uint32_t rounds, const std::string& mode,
                    std::uint32_t k, std::uint32_t num_decisions, std::uint32_t depth, bool scalar) {
  SyntheticTask task;
  task.params.mode = parse_mode(mode);
  task.params.simulations = simulations;
  task.params.leaves_in_flight = leaves_in_flight;
  task.params.k = k;
  task.params.num_decisions = num_decisions;
  task.params.virtual_loss = LossRule::loss;  // fills the windows: what is timed is a full one
  task.trees = trees;
  task.threads = threads;
  task.rounds = rounds;
  task.depth = depth;
  task.seed = seed;
  task.scalar = scalar;
  const SyntheticResult result = [&] {
    py::gil_scoped_release release;
    return run_synthetic(task);
  }();
  py::dict row;
  row["walks"] = result.walks;
  row["seconds"] = result.seconds;
  row["cpu_seconds"] = result.cpu_seconds;
  row["gather_seconds"] = result.gather_seconds;
  row["gather_cpu_seconds"] = result.gather_cpu_seconds;
  row["round_seconds"] = result.round_seconds;
  row["round_cpu_seconds"] = result.round_cpu_seconds;
  row["simulations"] = result.simulations;
  row["terminal_visits"] = result.terminal_visits;
  row["collisions"] = result.collisions;
  row["nodes"] = result.nodes;
  row["bytes"] = result.bytes;
  row["round_simulations"] = result.round_simulations;
  row["mean_depth"] = result.mean_depth;
  return row;
}

}  // namespace

void register_bench(py::module_& m) {
  m.def("bench_tree", &bench_tree, py::arg("simulations"), py::kw_only(), py::arg("leaves_in_flight") = 1,
        py::arg("trees") = 1, py::arg("threads") = 1, py::arg("seed") = 0, py::arg("rounds") = 0,
        py::arg("mode") = "collect", py::arg("k") = 5, py::arg("num_decisions") = 3, py::arg("depth") = 60,
        py::arg("scalar") = false,
        "Synthetic searches in C++ without text: seconds and counts as a dict (csrc/search/synthetic.h has "
        "the task).\n"
        "`simulations` of each of `trees` trees; then `rounds` rounds of one window per tree, the fastest "
        "reported.");
}

}  // namespace restrl
