// One search tree: select, expand and back up, each usable alone.
//
// Concurrency: a Tree has no lock. Its forest calls it under the lock of its shard; nothing of it is shared
// otherwise but the arena's pool, which has its own. In-flight counts are raised when a leaf is reserved and
// lowered when the reservation (VirtualLoss) dies, on every path: answer, cancel, exception, destruction.
// With no reservation alive they are 0 at every node.
//
// Layout: indices, never pointers. climb.h draws the hot rows (a line per four visible children), record.h
// the cold bytes; row e of each array belongs to expansion e, and expansion 0 stands above the root.
//
//   expansion  0        1        2      ...
//   lines_   [ 64 B ] [ 64 B ] [ 64 B ] ...   W, N, child of the visible children    select, back up
//
//   links_   [  8 B ] [  8 B ] [  8 B ] ...   next, up                               select, back up
//
//   flight_  [  8 B ] [  8 B ] [  8 B ] ...   O of the visible children              leaves_in_flight > 1
//
//   cold_    [  4 B ] [  4 B ] [  4 B ] ...   where its record begins
//                       |
//                       v
//   log_     [ values, child_of, steps, text references | ... ]               states, results
//                                              |
//                                              v
//              the caller's str object (owner), or a copy in texts_; with reuse: inside a text of the parent
//
// With k = 5 and up to four visible children an expansion of five nodes takes 64 + 8 + 4 + 60 = 136 bytes and
// its texts (8 more with leaves in flight): 27.2 per node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "search/arena.h"
#include "search/climb.h"
#include "search/params.h"
#include "search/record.h"
#include "search/text.h"
#include "search/tree_data.h"

namespace restrl::search {

class Tree;

// A leaf in flight: `own` visits at the leaf and `path` visits at every ancestor, for as long as this lives.
// `last`: some leaf is about to be backed up before the next selection, which finds out for itself what is
// best where that walk has not been: the same tree, with less to compute.
class VirtualLoss {
 public:
  VirtualLoss(Tree& tree, NodeId leaf, std::uint32_t own, std::uint32_t path, bool last = false);
  VirtualLoss(VirtualLoss&& other) noexcept
      : tree_(std::exchange(other.tree_, nullptr)),
        leaf_(other.leaf_),
        own_(other.own_),
        path_(other.path_) {}
  VirtualLoss& operator=(VirtualLoss&&) = delete;
  VirtualLoss(const VirtualLoss&) = delete;
  VirtualLoss& operator=(const VirtualLoss&) = delete;
  ~VirtualLoss() {
    if (tree_ != nullptr) release();
  }
  void release() noexcept;

 private:
  friend class Tree;
  Tree* tree_;
  NodeId leaf_;
  std::uint32_t own_;
  std::uint32_t path_;
};

class Tree {
 public:
  // `seed` and `stream` key the draws that break ties. `walks`: for tests; one processor may know several.
  Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, std::string_view root_state,
       const Walks& walks = best_walks());

  // The tree that `dump` was taken from, to the bit. Owners of its texts are the tree's from here on. Throws
  // Error with the expansion's number if it is none that a tree with these parameters can have, LimitError,
  // bad_alloc.
  Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, const TreeDump& dump,
       const Walks& walks = best_walks());
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  // The leaf or terminal node that simulation number `simulation` comes to, and its depth (root: 0).
  NodeId select(std::uint32_t simulation, std::uint32_t* depth = nullptr) const;

  // How many completions `leaf` inherits: those of its parent that lead to it (0 without reuse and at the
  // root). inherit() appends what follows their first steps to `texts`, in the parent's order; texts stay
  // where they are for the tree's life.
  std::uint32_t inherited(NodeId leaf) const;
  void inherit(NodeId leaf, std::vector<Text>& texts) const;

  // Gives `leaf` its completions and children and returns what is to be backed up from it, which must be done
  // before anything else. `split` holds the inherited completions first, then those drawn; `completions` are
  // the values of the drawn ones, `children` in value mode those of the children. Of the drawn texts, those
  // with an owner stay where they are and the tree has their owners from here on (take_owners()); the others
  // are copied. Throws LimitError or bad_alloc, leaving the tree as it was. Answers must fit (Forest::fulfil
  // checks them).
  Visits expand(NodeId leaf, std::uint32_t simulation, const Split& split,
                std::span<const double> completions, std::span<const double> children);

  // The same with what is left to do in the tree itself: `draft` is write_draft() of the same answer. Of
  // `split` only texts without an owner are read.
  Visits expand_drafted(NodeId leaf, std::uint32_t simulation, const Split& split, const Draft& draft);

  // Adds `own` to `node` and `path` to all its ancestors; with `loss`, which must be that node's, its virtual
  // loss is released in the same walk.
  void back_up(NodeId node, Visit own, Visit path);
  void back_up(NodeId node, Visit own, Visit path, VirtualLoss&& loss);

  // What one visit of a terminal node adds: its value the first time (the score of the program it is), V
  // later. Throws LimitError.
  Visit terminal_visit(NodeId node) const;

  // The owners of the texts held by reference; whoever destroys the tree lets go of them afterwards.
  std::vector<void*> take_owners();

  bool terminal(NodeId node) const { return (code(node) & (kLeaf | kTerminal)) == (kLeaf | kTerminal); }
  bool expanded(NodeId node) const { return (code(node) & kLeaf) == 0; }
  std::uint32_t visits(NodeId node) const { return rows_.N(node); }
  std::uint32_t in_flight(NodeId node) const;
  // Child number `child` of an expanded node; kNone if it is not visible.
  NodeId child(NodeId node, std::uint32_t child) const;
  NodeId parent(NodeId node) const { return rows_.links[expansion_of(node)].up; }
  std::size_t size() const { return nodes_; }
  std::string state(NodeId node) const;
  std::size_t text_bytes() const { return text_bytes_; }  // of root and completions, reused ones not counted
  std::size_t bytes() const;                              // memory besides text, without room to grow
  TreeView view() const;
  TreeDump dump() const;

  // Nodes whose in-flight count is not 0: none in a tree at rest.
  std::size_t nodes_in_flight() const;

  // Brings what so many walks need near the root into the caches, for a tree that is cold and comes next. For
  // many walks it is read, since processors drop prefetches once some twenty lines are on their way (seen on
  // a Zen 3); for few it is only asked for.
  void fetch_top(std::size_t walks) const;
  // Asks for what expand() and back_up() need at one leaf.
  void prefetch(NodeId leaf) const;

 private:
  friend class VirtualLoss;

  // Records begin at multiples of this in log_, so that 32 bits address 16 GiB of them.
  static constexpr std::size_t kRecordUnit = 4;

  // Most visits of the root; the walks add up to 65535 in flight and must stay below 2^31.
  static constexpr std::uint32_t kMostVisits = 0x7fff0000;

  // A reservation's visits; with leaves_in_flight = 1 it is noted here instead of at every node.
  struct Reservation {
    NodeId leaf = kNone;
    std::uint32_t own = 0;
    std::uint32_t path = 0;
  };

  std::uint32_t code(NodeId node) const { return rows_.child(node); }
  std::uint32_t expansion_of(NodeId node) const { return node >> rows_.lane_shift(); }
  std::uint32_t lane(NodeId node) const { return node & ((1U << rows_.lane_shift()) - 1); }
  double W(NodeId node) const;
  double V(NodeId node) const;
  void check_room(std::uint32_t visits) const;
  void fly(const Reservation& reservation, std::int32_t sign, bool last);
  // Room for one expansion more and so many completions; what follows cannot fail.
  void reserve(std::size_t completions) {
    if (links_.size() >= room_ || log_.size() + longest_ > log_room_ ||
        owners_.size() + completions > owners_.capacity())
      make_room(completions);
  }
  void make_room(std::size_t completions);
  void open_expansion(NodeId node, const Line* lines);
  Draft& draft();
  std::uint32_t equal_children(std::uint32_t e, std::uint32_t visible) const;
  std::uint32_t pick(std::uint32_t e, std::uint32_t tie, std::uint64_t draw) const;
  void append_record(std::uint32_t simulation, const Split& split, std::span<const double> inherited,
                     const Draft& draft);
  std::span<const double> inherited_values(NodeId leaf);
  void read(std::uint32_t expansion, Record& record) const;
  Text completion(std::uint32_t expansion, std::uint32_t index) const;
  NodeId lane_of_child(std::uint32_t expansion, const Record& record, std::uint32_t child) const;
  void read_dump(const TreeDump& dump, std::size_t x, std::size_t child, std::size_t text, Split& split,
                 Draft& draft) const;
  void load_lane(NodeId node, const TreeDump::Child& child, std::uint32_t count, std::size_t x);

  const bool alone_;           // leaves_in_flight = 1
  const std::uint64_t draws_;  // key of all draws
  const Walks* const walks_;
  const RecordFormat format_;
  const std::size_t longest_;  // bytes of a record and its alignment, at most
  Rows rows_;
  Array<Line> lines_;
  Array<Link> links_;
  Array<std::uint16_t> flight_;
  Array<std::uint32_t> cold_;  // in units of kRecordUnit
  Array<char> log_;
  Array<void*> owners_;
  std::size_t room_ = 0;      // expansions that lines_, links_, flight_ and cold_ have memory for
  std::size_t log_room_ = 0;  // bytes that log_ has memory for
  TextStore texts_;
  Reservation reservation_;
  Record scratch_;  // of expand(), whose vectors keep their memory, like the next one's
  std::unique_ptr<Draft> draft_;
  std::string_view root_state_;
  std::size_t nodes_ = 1;
  std::uint64_t text_bytes_;
  std::uint64_t text_references_ = 0;  // bytes of log_ that belong to texts
};

}  // namespace restrl::search
