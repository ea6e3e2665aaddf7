// The hot rows of a search tree and the walks over them, up from a leaf; the way down is Tree::select.
//
//   Line, 64 bytes: four visible children of one expanded node, one per lane
//
//            lane 0       lane 1       lane 2       lane 3
//     W     [ f64 sum   |            |            | -inf      ]   -inf: an empty lane, it never wins
//     N     [ u32 visits|            |            |           ]
//     child [ u32       |            |            |           ]   expansion that the child is, or a leaf
//
//   An expansion (an expanded node) has 2^shift lines side by side: one for up to four visible children, two
//   for up to eight, and so on, the same for the whole tree. Expansion e has the lines e << shift and on;
//   lane i of line l is node 4 l + i. Expansion 0 is a stand-in whose one child, node 0, is the root. A child
//   that is not visible has no lane: it is never selected, so its N and V stay what they were at its
//   expansion.
//
//     lines   e0 [root| | | ]   e1 [ a | b | c | ]   e2 [ d | e | | ]   e3 ...
//                   |             ^  |   |             ^
//                   +- child = 1 -+  |   +- child = 2 -+
//                                    +- child = leaf, terminal or not
//     links   e  { next, up }       next: what selection does at e: go to expansion n, take leaf n, or draw
//                                   up:   the node that e is
//     flight  one u16 per lane, only where leaves_in_flight > 1: O, visits under way
//
//   The best child is found when numbers change, not when they are needed: a child's UCT value depends on its
//   own (W, N, O) and its parent's N + O alone, so after a change of a node it is its parent's `next` that is
//   recomputed, and the nodes above it are recomputed when the walk comes to them. Selection reads 4 bytes
//   per level. Where several children have exactly the largest value, `next` says so and selection draws.
//   Reserving a leaf leaves some `next` stale (Walks::fly), to be recomputed if a selection comes there
//   first.
//
// Exactness: every walk computes V' + c sqrt((1 + ln N'_parent) / (eps + N')) with the same operations in the
// same order as plain_tree.cpp (tests), in scalars and with AVX2: division and square root are correctly
// rounded in both, nothing is contracted.
#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include "search/tree_data.h"

namespace restrl::search {

struct alignas(64) Line {
  double W[4];             // sum of values; where kFresh is set, the child's first score instead
  std::uint32_t N[4];      // visits
  std::uint32_t child[4];  // a code: an expansion, or kLeaf | flags | lane
};
static_assert(sizeof(Line) == 64);

struct Link {
  std::uint32_t next;  // a code: the best child's, kTie or kStale
  NodeId up;
};
static_assert(sizeof(Link) == 8);

// Codes of Line::child and Link::next. A number without a flag is an expansion.
inline constexpr std::uint32_t kLeaf = 0x80000000;      // not expanded; the low bits are the lane
inline constexpr std::uint32_t kTerminal = 0x40000000;  // with kLeaf: never to be expanded
// With kLeaf: a scored child with duplicates, not backed up through yet, whose W / N is not its score.
inline constexpr std::uint32_t kFresh = 0x20000000;
// In `next`, without kLeaf: several children are best. The low bits are a mask of their lanes where 4 <<
// shift bits fit (kMaskShift); Walks::pick finds them again in wider expansions.
inline constexpr std::uint32_t kTie = 0x40000000;
inline constexpr std::uint32_t kMaskShift = 2;
// In `next`: to be recomputed when a selection comes to it.
inline constexpr std::uint32_t kStale = 0x60000000;
inline constexpr std::uint32_t kMostExpansions = 0x20000000;
inline constexpr std::uint32_t lane_of(std::uint32_t leaf) { return leaf & 0x1fffffff; }

inline constexpr double kEmptyLane = -std::numeric_limits<double>::infinity();
inline constexpr Line kEmptyLine{
    {kEmptyLane, kEmptyLane, kEmptyLane, kEmptyLane}, {0, 0, 0, 0}, {kLeaf, kLeaf, kLeaf, kLeaf}};

// What the walks read; the tree fills it in before each walk, as its arrays may move.
struct Rows {
  Line* lines;
  Link* links;
  std::uint16_t* flight;  // null where leaves_in_flight is 1
  double c;
  double eps;
  std::uint32_t shift;  // 2^shift lines per expansion
  bool first;           // ties = first
  bool unobserved;      // virtual_loss = unobserved
  bool scored;          // value mode: lanes can be fresh

  [[gnu::always_inline]] std::uint32_t lane_shift() const { return shift + 2; }
  [[gnu::always_inline]] std::uint32_t& N(NodeId node) const { return lines[node >> 2].N[node & 3]; }
  [[gnu::always_inline]] double& W(NodeId node) const { return lines[node >> 2].W[node & 3]; }
  [[gnu::always_inline]] std::uint32_t& child(NodeId node) const { return lines[node >> 2].child[node & 3]; }
  [[gnu::always_inline]] std::uint32_t in_flight(NodeId node) const {
    return flight == nullptr ? 0 : flight[node];
  }
  [[gnu::always_inline]] std::uint32_t visits(NodeId node) const { return N(node) + in_flight(node); }
};

// What a walk up adds to one node.
struct Change {
  std::uint32_t N = 0;
  double W = 0;
  std::int32_t in_flight = 0;
};

// ln N for small N, by std::log.
inline constexpr std::uint32_t kTabulated = 65536;
extern const std::array<double, kTabulated> kLogs;

// One implementation per instruction set; all compute the same bits.
struct Walks {
  const char* name;
  // Adds `own` to `node` and `path` to all its ancestors, and recomputes `next` of every parent on the way
  // and of `node` itself.
  void (*climb)(const Rows& rows, NodeId node, const Change& own, const Change& path);
  // Adds `own` to the visits in flight of `node` and `path` to those of all its ancestors. `next` is
  // recomputed where selection soon comes by again, and left stale elsewhere, where most often a climb()
  // comes first: at nodes of less than a 64th of the root's visits, and with `last` everywhere.
  void (*fly)(const Rows& rows, NodeId node, std::int32_t own, std::int32_t path, bool last);
  // The `next` of expansion `e`, its node's numbers as they are.
  std::uint32_t (*next)(const Rows& rows, std::uint32_t e);
  // The code of one of the best children of `e`: number `draw` modulo how many there are. For expansions
  // whose `next` has no mask.
  std::uint32_t (*pick)(const Rows& rows, std::uint32_t e, std::uint64_t draw);
};

extern const Walks kScalarWalks;
#if defined(RESTRL_AVX2)
extern const Walks kAvx2Walks;
#endif

// The fastest that this processor has; the scalar ones where the environment variable RESTRL_SCALAR is set to
// anything but 0.
const Walks& best_walks();

// W of a child whose first score counts `count` times.
double repeated(double score, std::uint32_t count);

}  // namespace restrl::search
