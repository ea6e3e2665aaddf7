// Every knob of the search, in one struct.
#pragma once

#include <cstdint>
#include <string_view>

namespace restrl::search {

// Where the values of an expansion come from (VM-MCTS, stage 2).
enum class Mode : std::uint8_t {
  collect,  // true rewards of the k completions (training the value model)
  value,    // value-model scores of the children; those of the completions pick the answer (decoding)
  outcome,  // an outcome reward model's scores of the k completions (ORM-MCTS)
};

// What happens when several children have exactly the largest UCT value.
enum class Ties : std::uint8_t {
  seeded,  // a draw from the counter (seed, tree, simulation, depth)
  first,   // the child created first
};

std::string_view name(Mode mode);
std::string_view name(Ties ties);
Mode parse_mode(std::string_view text);  // throws ParamError
Ties parse_ties(std::string_view text);  // throws ParamError

struct SearchParams {
  Mode mode = Mode::collect;
  Ties ties = Ties::seeded;

  // Simulations of one tree, visits of terminal nodes included; count, 1 .. 2^31 - 1.
  std::uint32_t simulations = 100;

  // Expansions of one tree: simulations that ask the policy; count, 0 (no limit) .. 2^31 - 1.
  std::uint32_t max_expansions = 0;

  // Completions sampled at an expansion (paper: the number of samples per node); count, 1 .. 65535.
  std::uint32_t k = 5;

  // Children that stay visible after an expansion, those of highest V; count, 1 .. 65535.
  std::uint32_t num_decisions = 3;

  // Weight of the exploration term of UCT (paper: c); finite, >= 0.
  double c = 0.2;

  // Added to a child's visits below the root of the exploration term (paper: epsilon); finite, > 0.
  double eps = 0.1;

  // Simulations of one tree that may be under way at once (F in algorithm.md); count, 1 .. 65535.
  std::uint32_t leaves_in_flight = 1;

  // true: a tree applies answers in the order of its requests, so that a seed fixes the tree whatever the
  // timing; false: in the order they arrive.
  bool in_order = true;

  bool operator==(const SearchParams&) const = default;

  // The published settings: collect 100 simulations, 3 visible, c 0.2; decoding (value, outcome) 20, 5, 0.1.
  static SearchParams defaults(Mode mode);

  // Throws ParamError naming the first field out of range and its value.
  void validate() const;
};

}  // namespace restrl::search
