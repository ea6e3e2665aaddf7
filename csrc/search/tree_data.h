// What goes into a tree and comes out of it as plain data.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "search/text.h"

namespace restrl::search {

using NodeId = std::uint32_t;
inline constexpr NodeId kRoot = 0;
inline constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// Magnitude of a score at most, so that no sum of them overflows.
inline constexpr double kLargestScore = 1e200;

// What an answer says: one value per completion drawn (reused ones keep theirs), in value mode one per child.
struct Scores {
  std::vector<double> completions;
  std::vector<double> children;
};

// What a simulation adds to a node's N and W.
struct Visit {
  std::uint32_t N;
  double W;
};

// What it adds to its leaf and to every ancestor of that; they differ by the completions that are reused.
struct Visits {
  Visit own;
  Visit path;
};

struct NodeView {
  std::uint32_t parent;  // row of the parent in the same list, kNone for the root
  std::uint32_t depth;
  std::uint32_t simulation;  // the one that expanded it, kNone if unexpanded
  std::uint32_t N;
  double W;
  double V;
  bool terminal;
  bool expanded;
  bool visible;
  std::string line;  // its step; the root's is its whole state
};

struct CompletionView {
  std::uint32_t node;   // row of the node it was sampled at
  std::uint32_t child;  // row of the child its first line leads to
  double value;
  std::string text;      // follows the node's state
  std::uint32_t source;  // row of the completion it was reused from, kNone if it was drawn
};

// A tree for people: nodes in pre-order (children in the order they were created), completions node by node.
struct TreeView {
  std::vector<NodeView> nodes;
  std::vector<CompletionView> completions;
};

// A tree for machines: all of it but virtual loss, flat. A tree built from it (Tree's second constructor)
// goes on exactly as the one it was taken from (Tree::dump()). Tree::dump() gives the expansions in the order
// in which they were applied; a constructor takes any order in which parents come first. k rows of child_of
// and values belong to each expansion, `children` rows of children, k - reused rows of texts; texts point
// into the tree (dump) or wherever the caller has them.
struct TreeDump {
  struct Expansion {
    std::uint32_t parent;  // the expansion whose child is the expanded node; kNone: it is the root
    std::uint32_t child;   // which of that one's children; 0 for the root
    std::uint32_t simulation;
    std::uint32_t reused;    // how many of its completions come from its parent's
    std::uint32_t children;  // how many it has
  };
  struct Child {
    double W;
    double V;  // W / N, but for a scored child that was never backed up through: its first score
    std::uint32_t N;
    std::uint32_t length;  // bytes of its step
    bool terminal;
    bool visible;
  };
  std::string root_state;
  double root_W = 0;
  std::uint32_t root_N = 0;
  std::vector<Expansion> expansions;
  std::vector<Child> children;
  std::vector<std::uint32_t> child_of;
  std::vector<double> values;
  std::vector<Text> texts;
};

}  // namespace restrl::search
