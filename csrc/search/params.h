// Every knob of the search, in one struct.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

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

// How the O visits in flight at a child count in UCT; its parent counts its own in ln(N + O) either way.
enum class LossRule : std::uint8_t {
  loss,        // as visits of value 0: W / (N + O) + c sqrt(... / (eps + N + O))
  unobserved,  // in the exploration term only: V + c sqrt(... / (eps + N + O)) (WU-UCT, Liu et al. 2020)
};

std::string_view name(Mode mode);
std::string_view name(Ties ties);
std::string_view name(LossRule rule);
Mode parse_mode(std::string_view text);           // throws ParamError
Ties parse_ties(std::string_view text);           // throws ParamError
LossRule parse_loss_rule(std::string_view text);  // throws ParamError

struct SearchParams {
  Mode mode = Mode::collect;
  Ties ties = Ties::seeded;

  // Simulations of one tree, visits of terminal nodes included; count, 1 .. 2^31 - 1.
  std::uint32_t simulations = 100;

  // Completions one tree draws from the policy, reused ones not counted: when a selected leaf needs more than
  // are left, the tree starts nothing more; count, 0 (no limit) .. 2^31 - 1.
  std::uint32_t max_samples = 0;

  // Completions of an expansion (paper: the number of samples per node); count, 1 .. 65535.
  std::uint32_t k = 5;

  // Children that stay visible after an expansion, those of highest V; count, 1 .. 65535.
  std::uint32_t num_decisions = 3;

  // Weight of the exploration term of UCT (paper: c); 0 .. 1e100.
  double c = 0.2;

  // Added to a child's visits below the root of the exploration term (paper: epsilon); 1e-100 .. 1e100.
  double eps = 0.1;

  // Simulations of one tree that may be under way at once (F in docs/search.md); count, 1 .. 65535, with
  // leaves_in_flight * k <= 65535.
  std::uint32_t leaves_in_flight = 1;

  // Virtual loss of the leaves in flight.
  LossRule virtual_loss = LossRule::unobserved;

  // Suffix reuse: what follows the first step of a completion is a completion of the child that step leads
  // to, and only the others of its k are drawn.
  bool reuse = false;

  // true: a tree applies answers in the order of its requests, so that a seed fixes the tree whatever the
  // timing; false: in the order they arrive.
  bool in_order = true;

  // A step (the paper's action) is the shortest beginning of a completion that ends in one of these; at least
  // one string, none of them empty. Default: a line.
  std::vector<std::string> step_ends = {"\n"};

  bool operator==(const SearchParams&) const = default;

  // The published settings: collect 100 simulations, 3 visible, c 0.2; decoding (value, outcome) 20, 5, 0.1.
  static SearchParams defaults(Mode mode);

  // Throws ParamError naming the first field out of range and its value.
  void validate() const;
};

}  // namespace restrl::search
