// The price of the tree alone: synthetic searches without text, for benchmarks and profiles.
//
// The task: each expansion has k distinct children with texts of no length; a completion's value is 0 or 1, a
// fair coin keyed by (seed, tree, simulation), and so is a child's score; the children of a node at depth
// `depth` are terminal. With num_decisions = 3 of k = 5 children visible, c = 0.2 and eps = 0.1, mean depths
// of the leaves are 14 at 1e4 simulations and 24 at 1e6.
//
// A tree with F leaves in flight goes in rounds: gather F leaves with their virtual loss (fewer after a
// collision), then apply all F answers in order. F = 1: select, expand, back up.
//
// Concurrency: worker t of `threads` threads grows the trees t, t + threads, ...; trees share nothing.
// Seconds are wall time between the moment all workers start and the moment the last ends.
#pragma once

#include <cstdint>

#include "search/params.h"

namespace restrl::search {

struct SyntheticTask {
  // Its simulations are those of each tree, leaves_in_flight is F; texts, reuse and step ends play no part.
  SearchParams params;
  std::uint32_t trees = 1;
  std::uint32_t threads = 1;
  std::uint32_t rounds = 0;  // after growth, each over all trees, which are cold by then
  std::uint32_t depth = 60;
  std::uint64_t seed = 0;
  bool scalar = false;  // the walks without AVX2
};

// Seconds are wall seconds; CPU seconds are the whole process's, for machines that are not quiet.
struct SyntheticResult {
  const char* walks = "";  // "avx2" or "scalar"
  // Growth: all trees from nothing to their simulations.
  double seconds = 0;
  double cpu_seconds = 0;
  std::uint64_t simulations = 0;
  std::uint64_t terminal_visits = 0;
  std::uint64_t collisions = 0;
  std::uint64_t nodes = 0;
  std::uint64_t bytes = 0;  // Tree::bytes of all trees
  double mean_depth = 0;    // of the leaves selected
  // A round over all trees, the fastest of `rounds`: gather (select, virtual loss) and all of it (expand,
  // back up).
  double gather_seconds = 0;
  double gather_cpu_seconds = 0;
  double round_seconds = 0;
  double round_cpu_seconds = 0;
  std::uint64_t round_simulations = 0;  // of all rounds
};

// Throws ParamError.
SyntheticResult run_synthetic(const SyntheticTask& task);

}  // namespace restrl::search
