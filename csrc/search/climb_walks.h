// The walks of climb.h over lanes of type L; included by one file per instruction set, each of which defines
// L. Everything here has internal linkage: code compiled for AVX2 must not be linked into what runs without.
//
// What varies from tree to tree is a template argument, so that a level of a walk has no branches but the one
// that ends it: kFlight (leaves_in_flight > 1) and kPlain (one line per expansion and no lane can be fresh).
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "search/climb.h"

namespace restrl::search {
namespace {

constexpr bool kLowLaneFirst = std::endian::native == std::endian::little;
constexpr double kNoUct = -std::numeric_limits<double>::infinity();

// UCT values of a line, lane by lane: the rule itself, and the way for lines with a fresh lane.
inline void plain_uct(const Rows& rows, std::uint32_t line, double ratio, double* values) {
  const Line& row = rows.lines[line];
  for (std::uint32_t i = 0; i < 4; ++i) {
    const std::uint32_t O = rows.in_flight(4 * line + i);
    const bool fresh = (row.child[i] & kFresh) != 0;
    const double seen = row.N[i] == 0 ? 1.0 : static_cast<double>(row.N[i]);
    const double expected = static_cast<double>(row.N[i]) + O;
    double V = fresh ? row.W[i] : row.W[i] / seen;
    if (O > 0 && !rows.unobserved) V = (fresh ? repeated(row.W[i], row.N[i]) : row.W[i]) / expected;
    values[i] = V + rows.c * __builtin_sqrt(ratio / (rows.eps + expected));
  }
}

// The lowest lane of a mask.
inline std::uint32_t first_of(std::uint32_t mask) {
  return static_cast<std::uint32_t>(__builtin_ctz(mask | 8));
}

inline bool has_fresh(const Line& line) {
  return ((line.child[0] | line.child[1] | line.child[2] | line.child[3]) & kFresh) != 0;
}

template <typename L, bool kFlight>
[[gnu::always_inline]] inline typename L::Values line_uct(const Rows& rows, std::uint32_t line,
                                                          double ratio) {
  if (rows.scored && has_fresh(rows.lines[line])) {
    alignas(32) double values[4];
    plain_uct(rows, line, ratio, values);
    return L::load(values);
  }
  return L::template uct<kFlight>(rows, line, ratio);
}

// What `next` is, by the mask of the best lanes of a line: (code of lane `lane` & keep) | tie.
struct Outcome {
  std::uint32_t lane;
  std::uint32_t keep;
  std::uint32_t tie;
  std::uint32_t unused;
};
using Outcomes = std::array<Outcome, 16>;

constexpr Outcomes outcomes(bool first) {
  Outcomes table{};
  for (std::uint32_t best = 1; best < 16; ++best) {
    const auto lane = static_cast<std::uint32_t>(std::countr_zero(best));
    const bool tie = (best & (best - 1)) != 0 && !first;
    table[best] = {lane, tie ? 0 : 0xffffffff, tie ? kTie | best : 0, 0};
  }
  return table;
}
constexpr Outcomes kOutcomes[2] = {outcomes(false), outcomes(true)};  // by `ties = first`

// `next` of an expansion of one line with these UCT values. From a table, so that the compiler makes no
// branch of it: a tie is not to be foreseen, and would be seen late.
template <typename L>
[[gnu::always_inline]] inline std::uint32_t next_of_values(const Outcomes& table, const Line& line,
                                                           const typename L::Values& values) {
  const Outcome& outcome = table[L::equal(values, L::largest(values))];
  return (line.child[outcome.lane] & outcome.keep) | outcome.tie;
}

// `next` of an expansion of any number of lines.
template <typename L, bool kFlight>
std::uint32_t next_of_lines(const Rows& rows, std::uint32_t e, double ratio) {
  const std::uint32_t begin = e << rows.shift;
  const std::uint32_t count = 1U << rows.shift;
  double largest = kNoUct;
  std::uint32_t code = kTie;
  std::uint32_t tied = 0;
  bool tie = false;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto values = line_uct<L, kFlight>(rows, begin + i, ratio);
    const double value = L::largest(values);
    if (value < largest || value == kNoUct) continue;
    const std::uint32_t best = L::equal(values, value);
    tie = value == largest || (best & (best - 1)) != 0;
    if (value > largest) {
      code = rows.lines[begin + i].child[first_of(best)];
      tied = 0;
    }
    if (rows.shift <= kMaskShift) tied |= best << 4 * i;
    largest = value;
  }
  return tie && !rows.first ? kTie | tied : code;
}

template <typename L, bool kFlight>
[[gnu::always_inline]] inline std::uint32_t next_of(const Rows& rows, std::uint32_t e, double ratio) {
  if (rows.shift > 0) return next_of_lines<L, kFlight>(rows, e, ratio);
  return next_of_values<L>(kOutcomes[rows.first], rows.lines[e], line_uct<L, kFlight>(rows, e, ratio));
}

// 1 + ln N' of a parent with `visits` visits, those in flight counted.
[[gnu::always_inline]] inline double ratio_of(std::uint32_t visits) {
  return 1.0 + (visits < kTabulated ? kLogs[visits] : std::log(static_cast<double>(visits)));
}

template <typename L>
std::uint32_t next(const Rows& rows, std::uint32_t e) {
  const double ratio = ratio_of(rows.visits(rows.links[e].up));
  return rows.flight == nullptr ? next_of<L, false>(rows, e, ratio) : next_of<L, true>(rows, e, ratio);
}

// For expansions of so many lines that their `next` does not hold which lanes tie.
template <typename L, bool kFlight>
std::uint32_t pick_by(const Rows& rows, std::uint32_t e, std::uint64_t draw) {
  const double ratio = ratio_of(rows.visits(rows.links[e].up));
  const std::uint32_t begin = e << rows.shift;
  const std::uint32_t end = begin + (1U << rows.shift);
  double largest = kNoUct;
  std::uint32_t tied = 0;
  for (std::uint32_t line = begin; line < end; ++line) {
    const auto values = line_uct<L, kFlight>(rows, line, ratio);
    const double value = L::largest(values);
    if (value < largest) continue;
    if (value > largest) tied = 0;
    largest = value;
    tied += static_cast<std::uint32_t>(__builtin_popcount(L::equal(values, value)));
  }
  auto skip = static_cast<std::uint32_t>(draw % tied);
  for (std::uint32_t line = begin;; ++line) {
    std::uint32_t best = L::equal(line_uct<L, kFlight>(rows, line, ratio), largest);
    for (; best != 0; best &= best - 1) {
      if (skip-- == 0) return rows.lines[line].child[first_of(best)];
    }
  }
}

template <typename L>
std::uint32_t pick(const Rows& rows, std::uint32_t e, std::uint64_t draw) {
  return rows.flight == nullptr ? pick_by<L, false>(rows, e, draw) : pick_by<L, true>(rows, e, draw);
}

// Written as 8 bytes, as it is read: a narrower store would hold up the load that follows.
[[gnu::always_inline]] inline void add_in_flight(std::uint16_t* flight, NodeId node, std::int32_t change) {
  std::uint64_t lanes;
  std::memcpy(&lanes, flight + (node & ~3U), sizeof lanes);
  lanes += static_cast<std::uint64_t>(std::int64_t{change})
           << (kLowLaneFirst ? 16 * (node & 3) : 48 - 16 * (node & 3));
  std::memcpy(flight + (node & ~3U), &lanes, sizeof lanes);
}

// Arguments by value: the compiler then knows that no store to a row changes them.
template <typename L, bool kFlight, bool kPlain>
void climb_by(const Rows rows, NodeId node, const Change own, const Change path) {
  // Visits of a node once `change` is in, and with it the ratio of its children.
  const auto ratio_after = [&](NodeId changed, const Change& change) {
    std::uint32_t visits = rows.N(changed) + change.N;
    if (kFlight) visits += rows.flight[changed] + static_cast<std::uint32_t>(change.in_flight);
    return ratio_of(visits);
  };
  if (!kPlain) {
    const std::uint32_t below = rows.child(node);
    // Only a node that was expanded just now has children here, and it has no visits until they are backed
    // up.
    if (rows.scored && (below & kLeaf) == 0)
      rows.links[below].next = next_of<L, kFlight>(rows, below, ratio_after(node, own));
    if ((below & kFresh) != 0) {
      rows.child(node) = below & ~kFresh;
      rows.W(node) = repeated(rows.W(node), rows.N(node));
    }
  }
  const typename L::Addends more(path.N, path.W);
  const Outcomes& table = kOutcomes[rows.first];
  const typename L::Addends once(own.N, own.W);
  once.add(rows.lines[node >> 2], node & 3);
  if (kFlight) add_in_flight(rows.flight, node, own.in_flight);
  for (;;) {
    const std::uint32_t e = kPlain ? node >> 2 : node >> rows.lane_shift();
    if (e == 0) return;
    node = rows.links[e].up;
    const double ratio = ratio_after(node, path);
    rows.links[e].next =
        kPlain ? next_of_values<L>(table, rows.lines[e], L::template uct<kFlight>(rows, e, ratio))
               : next_of<L, kFlight>(rows, e, ratio);
    more.add(rows.lines[node >> 2], node & 3);
    if (kFlight) add_in_flight(rows.flight, node, path.in_flight);
  }
}

template <typename L, bool kFlight>
void climb_any(const Rows& rows, NodeId node, const Change& own, const Change& path) {
  if (rows.shift == 0 && !rows.scored) {
    climb_by<L, kFlight, true>(rows, node, own, path);
  } else {
    climb_by<L, kFlight, false>(rows, node, own, path);
  }
}

// Two loops: where the first ends, one branch is not foreseen, instead of one at every level.
template <typename L, bool kPlain>
void fly_by(const Rows rows, NodeId node, std::int32_t own, std::int32_t path, bool last) {
  constexpr std::uint32_t kRare = 64;
  const std::uint32_t busy = last ? std::numeric_limits<std::uint32_t>::max() : rows.N(0) / kRare;
  std::uint32_t e = 0;
  std::uint32_t visits = 0;  // of the node that is e
  const auto go_up = [&] {
    e = kPlain ? node >> 2 : node >> rows.lane_shift();
    if (e == 0) return false;
    node = rows.links[e].up;
    visits = rows.N(node) + rows.flight[node] + static_cast<std::uint32_t>(path);
    add_in_flight(rows.flight, node, path);
    return true;
  };
  add_in_flight(rows.flight, node, own);
  for (;;) {
    if (!go_up()) return;
    if (visits >= busy) break;
    rows.links[e].next = kStale;
  }
  const Outcomes& table = kOutcomes[rows.first];
  do {
    const double ratio = ratio_of(visits);
    rows.links[e].next = kPlain
                             ? next_of_values<L>(table, rows.lines[e], L::template uct<true>(rows, e, ratio))
                             : next_of<L, true>(rows, e, ratio);
  } while (go_up());
}

template <typename L>
void fly(const Rows& rows, NodeId node, std::int32_t own, std::int32_t path, bool last) {
  if (rows.shift == 0 && !rows.scored) {
    fly_by<L, true>(rows, node, own, path, last);
  } else {
    fly_by<L, false>(rows, node, own, path, last);
  }
}

template <typename L>
void climb(const Rows& rows, NodeId node, const Change& own, const Change& path) {
  if (rows.flight == nullptr) {
    climb_any<L, false>(rows, node, own, path);
  } else {
    climb_any<L, true>(rows, node, own, path);
  }
}

}  // namespace
}  // namespace restrl::search
