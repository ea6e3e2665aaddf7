// The price of the forest: searches whose answers are there before they are asked for.
//
// The task: a request's completions are one of 1024 rows of k texts, chosen by (seed, tree, simulation); each
// text is a first line of its own and `text_bytes` bytes more; a value is 0 or 1, a fair coin, and so is a
// child's. Without `prepared` the rows are put together for every request by the thread that has it, as the
// dummy policy does.
//
// Concurrency: all `threads` threads drive one forest with next() and fulfil(), `batch` requests at a time.
// Seconds are wall time between the moment all of them start and the moment the last ends.
#pragma once

#include <cstddef>
#include <cstdint>

#include "search/params.h"

namespace restrl::search {

struct ForestTask {
  SearchParams params;
  std::uint32_t trees = 1;
  std::uint32_t threads = 1;
  std::size_t batch = 64;
  std::uint32_t rounds = 0;  // after growth, each one next() and one fulfil() of all that wait
  std::uint32_t text_bytes = 0;
  std::uint64_t seed = 0;
  bool prepared = true;
  bool copied = false;  // texts without owners
};

struct ForestResult {
  // Growth: to params.simulations in all trees less what the rounds take.
  double seconds = 0;
  double cpu_seconds = 0;
  std::uint64_t simulations = 0;
  std::uint64_t collisions = 0;
  std::uint64_t nodes = 0;
  // A round, the fastest one: next() and all of it. CPU seconds are the process's.
  double next_cpu_seconds = 0;
  double round_cpu_seconds = 0;
  std::uint64_t round_requests = 0;  // of that round
};

// Throws ParamError.
ForestResult run_forest(const ForestTask& task);

}  // namespace restrl::search
