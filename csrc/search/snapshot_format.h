// What both directions of a snapshot share: the envelope, a tree as rows, what
// a node's statistics follow from.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "search/tree_data.h"

namespace restrl::search {

inline constexpr std::string_view kMagic = "\x89RSTREE\n";
inline constexpr std::uint64_t kVersion = 1;
inline constexpr std::size_t kHead = 20;  // magic, version (u16), reserved (u16), size of the whole (u64)
inline constexpr std::size_t kChecksum = 8;
inline constexpr double kLargestSum = 1e220;  // of scores up to kLargestScore, 2^32 of them

// A tree as rows, breadth first: row 0 is the root, and the children of a row
// lie side by side, in the order of their first completion, after those of all
// rows above it.
struct TreeRows {
  struct Node {
    std::uint32_t parent = kNone;
    std::uint32_t first_child = kNone;  // row
    std::uint32_t children = 0;
    std::uint32_t expansion = kNone;  // row in `expansions`
    std::uint32_t N = 0;
    bool terminal = false;
    bool visible = false;
    double W = 0;
    double V = 0;
    bool expanded() const { return expansion != kNone; }
  };
  struct Expansion {
    std::uint32_t node;
    std::uint32_t simulation;
    std::uint32_t reused;
  };
  struct Completion {
    Text text;           // without owner
    std::uint32_t step;  // bytes of its first step
    std::uint32_t child;
    std::uint32_t source;  // row of the completion it was reused from, kNone if
                           // it was drawn
    double value;
  };
  std::vector<Node> nodes;
  std::vector<Expansion> expansions;    // in the order of their nodes
  std::vector<Completion> completions;  // [k] of each expansion, the reused ones first
};

// The rows of a tree's dump, which must outlive them, and back. `first_child`
// gets the row of the first child of each of the dump's expansions.
TreeRows rows_of(const TreeDump& dump, std::uint32_t k, std::vector<std::uint32_t>& first_child);
TreeDump dump_of(const TreeRows& rows, std::string_view root_state, std::uint32_t k);

// Rows of the completions that lead to `row`: with reuse they are completions
// of it too.
std::vector<std::uint32_t> inherited(const TreeRows& rows, std::uint32_t row, std::uint32_t k);

// How far a simulation under way has come; `terminal` visits ask for nothing.
enum class Stage : std::uint8_t { terminal, asked, completed, answered };

// What is known of a node besides its own N, W and V. `below` grows as the
// children are done, last row first.
struct Known {
  std::uint32_t count = 0;  // completions that lead here
  double value = 0;         // of the first of them
  std::uint32_t reused = 0;
  double reused_W = 0;  // sums of its completions' values, reused and all
  double own_W = 0;
  std::uint64_t below_N = 0;  // what the children brought to this node
  double below_W = 0;
};

inline std::vector<Known> known_of(const TreeRows& tree, std::uint32_t k) {
  std::vector<Known> known(tree.nodes.size());
  for (std::size_t e = 0; e < tree.expansions.size(); ++e) {
    Known& node = known[tree.expansions[e].node];
    node.reused = tree.expansions[e].reused;
    for (std::uint32_t i = 0; i < k; ++i) {
      const TreeRows::Completion& completion = tree.completions[e * k + i];
      node.own_W += completion.value;
      if (i < node.reused) node.reused_W += completion.value;
      Known& child = known[completion.child];
      if (child.count++ == 0) child.value = completion.value;
    }
  }
  return known;
}

// N of a node: from the visits of terminal nodes alone.
inline std::uint64_t visits_of(const TreeRows::Node& node, const Known& known, bool scored, std::uint32_t k,
                               std::uint64_t terminal_visits) {
  if (scored) return known.count + known.below_N + terminal_visits;
  return (node.expanded() ? k : 0) + known.below_N + terminal_visits;
}

// W of a node that was backed up through, up to the order of its additions
// (collect and outcome mode).
inline double foretold_W(const TreeRows::Node& node, const Known& known, std::uint64_t N) {
  const double W = node.expanded() ? known.own_W + known.below_W : static_cast<double>(N) * known.value;
  return std::isfinite(W) ? W : 0.0;
}

// W of a scored child before its first back-up.
inline double fresh_W(double score, std::uint32_t count) {
  double W = 0;
  for (std::uint32_t time = 0; time < count; ++time) W += score;
  return W;
}

inline void add_below(std::vector<Known>& known, const TreeRows::Node& node, const Known& own, bool scored) {
  if (node.parent == kNone) return;
  Known& parent = known[node.parent];
  parent.below_N += scored ? node.N : node.N - own.reused;
  parent.below_W += node.W - (scored ? 0.0 : own.reused_W);
}

}  // namespace restrl::search
