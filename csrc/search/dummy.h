// A policy and an evaluator without a model: deterministic, cheap, for tests, sanitizers and benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "search/forest.h"

namespace restrl::search {

// k short programs of one to four lines out of a small alphabet, so that first lines repeat and some programs
// end at once: one in `ends` is a single line (0: none). They depend on the arguments alone.
std::vector<std::string> dummy_completions(std::uint64_t seed, std::uint64_t stream, std::uint32_t k,
                                           std::uint32_t ends = 16);

// A score in [0, 1], a multiple of 1/16, so that ties happen. Depends on (seed, stream) alone.
double dummy_score(std::uint64_t seed, std::uint64_t stream);

// The completions of a request and the scores of those and of `children` children, by (seed, tree,
// simulation).
std::vector<std::string> dummy_texts(std::uint64_t seed, const Request& request, std::uint32_t ends = 16);
Scores dummy_scores(std::uint64_t seed, const Request& request, std::size_t children);

// Answers the requests, completions first, then scores.
void answer_dummy(Forest& forest, std::uint64_t seed, std::span<const Request> requests,
                  std::uint32_t ends = 16);

// Drives every tree of `forest` to its end, at most `batch` requests at a time; returns the requests
// answered. Several threads may drive one forest together; each returns when no tree has anything under way
// or to start.
std::uint64_t run_dummy(Forest& forest, std::uint64_t seed, std::size_t batch, std::uint32_t ends = 16);

}  // namespace restrl::search
