// The search tree as the rules read, one struct of arrays and a loop over all children at every selection:
// the oracle that the fast layout (search/tree.h) equals bit for bit. Same operations, same contract.
//
// Layout: indices, never pointers; one row per node in three arrays, by how often they are read.
//
//   node        0 (root)      1          2          3          4     ...
//   stats_    [ W V N fl ][ W V N fl ][ W V N fl ]  ...                      select, back up
//   links_    [ parent, first_child, children, flags ]  ...                  select, back up
//   cold_     [ source, line_length, first_completion, simulation ]  ...     states, results
//                 |                        |
//                 v                        v   (k rows of one expansion side by side)
//   samples_  [ text, value, node, child, source ][ ... ][ ... ]
//                 |
//                 v
//   the caller's str object (owner), or a copy in copies_; with reuse: inside the text of `source`
//
// The children of a node lie side by side in the order of their first completion. A node's line is the
// beginning of its source completion's text, so text is held once and a state is the lines on its path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "search/params.h"
#include "search/text.h"
#include "search/tree_data.h"

namespace restrl::search::plain {

class Tree;

// A leaf in flight: `own` visits at the leaf and `path` visits at every ancestor, for as long as this lives.
class VirtualLoss {
 public:
  VirtualLoss(Tree& tree, NodeId leaf, std::uint32_t own, std::uint32_t path);
  VirtualLoss(VirtualLoss&& other) noexcept
      : tree_(std::exchange(other.tree_, nullptr)),
        leaf_(other.leaf_),
        own_(other.own_),
        path_(other.path_) {}
  VirtualLoss& operator=(VirtualLoss&&) = delete;
  VirtualLoss(const VirtualLoss&) = delete;
  VirtualLoss& operator=(const VirtualLoss&) = delete;
  ~VirtualLoss() { release(); }
  void release() noexcept;

 private:
  Tree* tree_;
  NodeId leaf_;
  std::uint32_t own_;
  std::uint32_t path_;
};

class Tree {
 public:
  // `seed` and `stream` key the draws that break ties.
  Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, std::string_view root_state);
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  // The leaf or terminal node that simulation number `simulation` comes to.
  NodeId select(std::uint32_t simulation) const;

  // How many completions `leaf` inherits: those of its parent that lead to it (0 without reuse and at the
  // root). inherit() appends what follows their first steps to `texts`, in the parent's order; texts stay
  // where they are for the tree's life.
  std::uint32_t inherited(NodeId leaf) const;
  void inherit(NodeId leaf, std::vector<Text>& texts) const;

  // Gives `leaf` its completions and children and returns what is to be backed up from it. `split` holds the
  // inherited completions first, then those drawn; `completions` are the values of the drawn ones, `children`
  // in value mode those of the children. Of the drawn texts, those with an owner stay where they are and the
  // tree has their owners from here on (take_owners()); the others are copied. Throws LimitError or
  // bad_alloc, leaving the tree as it was. Answers must fit (Forest::fulfil checks them).
  Visits expand(NodeId leaf, std::uint32_t simulation, const Split& split,
                std::span<const double> completions, std::span<const double> children);

  // Adds `own` to `node` and `path` to all its ancestors and recomputes their V.
  void back_up(NodeId node, Visit own, Visit path);

  // What one visit of a terminal node adds: its value the first time (the score of the program it is), V
  // later.
  Visit terminal_visit(NodeId node) const;

  // The owners of the texts held by reference; whoever destroys the tree lets go of them afterwards.
  std::vector<void*> take_owners() { return std::exchange(owners_, {}); }

  bool terminal(NodeId node) const { return links_[node].flags & kTerminal; }
  bool expanded(NodeId node) const { return links_[node].flags & kExpanded; }
  std::uint32_t visits(NodeId node) const { return stats_[node].N; }
  std::uint32_t in_flight(NodeId node) const { return stats_[node].in_flight; }
  std::size_t size() const { return stats_.size(); }
  std::string state(NodeId node) const;
  std::size_t text_bytes() const { return text_bytes_; }  // of root and completions, reused ones not counted
  std::size_t bytes() const;                              // memory besides text
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
    Text text;  // no owner: that is in owners_
    double value;
    NodeId node;
    NodeId child;
    std::uint32_t source;  // sample it was reused from, or kNone
  };
  static_assert(sizeof(Stats) == 24 && sizeof(Links) == 12 && sizeof(Cold) == 16 && sizeof(Sample) == 48);

  double uct(NodeId child, double log_parent_visits) const;
  std::string line(NodeId node) const;
  void prune(NodeId node);
  void reserve(std::size_t children, const Split& split);

  SearchParams params_;
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::vector<Stats> stats_;
  std::vector<Links> links_;
  std::vector<Cold> cold_;
  std::vector<Sample> samples_;
  std::deque<std::string> copies_;  // the root's state, and texts without an owner
  std::vector<void*> owners_;
  std::size_t text_bytes_;
};

}  // namespace restrl::search::plain
