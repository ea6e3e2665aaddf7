// One search tree: select, expand and back up, each usable alone.
//
// Concurrency: a Tree has no lock. Its forest calls it under the forest's mutex; nothing of it is shared
// otherwise. `in_flight` is raised when a leaf is reserved and lowered when the reservation (VirtualLoss)
// dies, on every path: answer, cancel, exception, destruction. With no reservation alive it is 0 at every
// node.
//
// Layout: indices, never pointers; one row per node in three arrays, by how often they are read.
//
//   node        0 (root)      1          2          3          4     ...
//   stats_    [ W V N fl ][ W V N fl ][ W V N fl ]  ...                      select, back up
//   links_    [ parent, first_child, children, flags ]  ...                  select, back up
//   cold_     [ source, line_length, first_completion, simulation ]  ...     states, results
//                 |                        |
//                 v                        v   (k rows of one expansion side by side)
//   samples_  [ text, value, node, child ][ ... ][ ... ]
//                 |
//                 v
//   text_     "root state|line\nrest of the completion\n|line\n..."
//
// The children of a node lie side by side in the order of their first completion. A node's line is the
// beginning of its source completion's text, so text is held once and a state is the lines on its path.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "search/params.h"
#include "search/text.h"

namespace restrl::search {

using NodeId = std::uint32_t;
inline constexpr NodeId kRoot = 0;
inline constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// What an answer says: one value per completion, and in value mode one per child.
struct Scores {
  std::vector<double> completions;
  std::vector<double> children;
};

// What a simulation adds to its node and all ancestors.
struct Visit {
  std::uint32_t N;
  double W;
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
  std::string line;  // the root's is its whole state
};

struct CompletionView {
  std::uint32_t node;   // row of the node it was sampled at
  std::uint32_t child;  // row of the child its first line leads to
  double value;
  std::string text;  // follows the node's state
};

// A tree as data: nodes in pre-order (children in the order they were created), completions node by node.
struct TreeView {
  std::vector<NodeView> nodes;
  std::vector<CompletionView> completions;
};

class Tree;

// A leaf in flight: `visits` of value 0 along its path, for as long as this object lives.
class VirtualLoss {
 public:
  VirtualLoss(Tree& tree, NodeId leaf, std::uint32_t visits);
  VirtualLoss(VirtualLoss&& other) noexcept
      : tree_(std::exchange(other.tree_, nullptr)), leaf_(other.leaf_), visits_(other.visits_) {}
  VirtualLoss& operator=(VirtualLoss&&) = delete;
  VirtualLoss(const VirtualLoss&) = delete;
  VirtualLoss& operator=(const VirtualLoss&) = delete;
  ~VirtualLoss() { release(); }
  void release() noexcept;

 private:
  Tree* tree_;
  NodeId leaf_;
  std::uint32_t visits_;
};

class Tree {
 public:
  // `seed` and `stream` key the draws that break ties.
  Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, std::string_view root_state);
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  // The leaf or terminal node that simulation number `simulation` comes to.
  NodeId select(std::uint32_t simulation) const;

  // Gives `leaf` its completions and children and returns what is to be backed up from it. Throws LimitError,
  // leaving the tree as it was. Scores must fit (Forest::fulfil checks them).
  Visit expand(NodeId leaf, std::uint32_t simulation, const Split& split, const Scores& scores);

  // Adds `visit` to `node` and all its ancestors and recomputes their V.
  void back_up(NodeId node, Visit visit);

  // What one visit of a terminal node adds: its value the first time (the score of the program it is), V
  // later.
  Visit terminal_visit(NodeId node) const;

  bool terminal(NodeId node) const { return links_[node].flags & kTerminal; }
  bool expanded(NodeId node) const { return links_[node].flags & kExpanded; }
  std::uint32_t visits(NodeId node) const { return stats_[node].N; }
  std::uint32_t in_flight(NodeId node) const { return stats_[node].in_flight; }
  std::size_t size() const { return stats_.size(); }
  std::string state(NodeId node) const;
  std::size_t text_bytes() const { return text_.size(); }
  TreeView view() const;

  // Nodes whose in-flight count is not 0: none in a tree at rest.
  std::size_t nodes_in_flight() const;

 private:
  friend class VirtualLoss;
  enum Flags : std::uint8_t { kTerminal = 1, kExpanded = 2, kVisible = 4 };

  struct Stats {
    double W = 0;
    double V = 0;  // W / N as of the last back-up; a scored child's first score until then
    std::uint32_t N = 0;
    std::uint32_t in_flight = 0;  // visits of value 0 by reservations below or at this node
  };
  struct Links {
    NodeId parent = kNone;
    NodeId first_child = kNone;
    std::uint16_t children = 0;
    std::uint8_t flags = 0;
  };
  struct Cold {
    std::uint32_t source = kNone;  // completion whose text begins with this node's line; kNone: the root
    std::uint32_t line_length = 0;
    std::uint32_t first_completion = kNone;
    std::uint32_t simulation = kNone;
  };
  struct Sample {
    std::uint64_t offset;  // into text_
    double value;
    std::uint32_t length;
    NodeId node;
    NodeId child;
  };
  static_assert(sizeof(Stats) == 24 && sizeof(Links) == 12 && sizeof(Cold) == 16 && sizeof(Sample) == 32);

  double uct(NodeId child, double log_parent_visits) const;
  std::string_view line(NodeId node) const;
  void prune(NodeId node);
  void reserve(std::size_t children, const Split& split);

  SearchParams params_;
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::vector<Stats> stats_;
  std::vector<Links> links_;
  std::vector<Cold> cold_;
  std::vector<Sample> samples_;
  std::string text_;
};

}  // namespace restrl::search
