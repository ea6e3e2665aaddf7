// The walks of climb.h over lanes of type L; included by one file per instruction set, each of which defines
// L. Everything here has internal linkage: code compiled for AVX2 must not be linked into what runs without.
#pragma once

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

// `next` of an expansion of more than one line.
template <typename L, bool kFlight>
std::uint32_t next_of_lines(const Rows& rows, std::uint32_t e, double ratio) {
  const std::uint32_t begin = e << rows.shift;
  const std::uint32_t end = begin + (1U << rows.shift);
  double largest = kNoUct;
  std::uint32_t code = kTie;
  bool tie = false;
  for (std::uint32_t line = begin; line < end; ++line) {
    const auto values = line_uct<L, kFlight>(rows, line, ratio);
    const double value = L::largest(values);
    if (value < largest || value == kNoUct) continue;
    const std::uint32_t best = L::equal(values, value);
    tie = value == largest || (best & (best - 1)) != 0;
    if (value > largest) code = rows.lines[line].child[first_of(best)];
    largest = value;
  }
  return tie && !rows.first ? kTie : code;
}

template <typename L, bool kFlight>
[[gnu::always_inline]] inline std::uint32_t next_of(const Rows& rows, std::uint32_t e, double ratio) {
  if (rows.shift > 0) return next_of_lines<L, kFlight>(rows, e, ratio);
  const auto values = line_uct<L, kFlight>(rows, e, ratio);
  const std::uint32_t best = L::equal(values, L::largest(values));
  if ((best & (best - 1)) != 0 && !rows.first) return kTie;
  return rows.lines[e].child[first_of(best)];
}

// 1 + ln N' of a parent with `visits` visits, those in flight counted.
inline double ratio_of(std::uint32_t visits) {
  return 1.0 + (visits < kTabulated ? kLogs[visits] : std::log(static_cast<double>(visits)));
}

template <typename L>
std::uint32_t next(const Rows& rows, std::uint32_t e) {
  const double ratio = ratio_of(rows.visits(rows.links[e].up));
  return rows.flight == nullptr ? next_of<L, false>(rows, e, ratio) : next_of<L, true>(rows, e, ratio);
}

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
inline void add_in_flight(std::uint16_t* flight, NodeId node, std::int32_t change) {
  std::uint64_t lanes;
  std::memcpy(&lanes, flight + (node & ~3U), sizeof lanes);
  lanes += static_cast<std::uint64_t>(std::int64_t{change})
           << (kLowLaneFirst ? 16 * (node & 3) : 48 - 16 * (node & 3));
  std::memcpy(flight + (node & ~3U), &lanes, sizeof lanes);
}

// Arguments by value: the compiler then knows that no store to a row changes them.
template <typename L, bool kFlight>
void climb_by(const Rows rows, NodeId node, const Change own, const Change path, bool visit) {
  const auto visits_after = [&](NodeId changed, const Change& change) {
    const std::uint32_t N = rows.N(changed) + change.N;
    return kFlight ? N + rows.flight[changed] + static_cast<std::uint32_t>(change.in_flight) : N;
  };
  const std::uint32_t below = rows.child(node);
  // Only a node that was expanded just now has children here, and it has no visits until they are backed up.
  if (visit && (below & kLeaf) == 0)
    rows.links[below].next = next_of<L, kFlight>(rows, below, ratio_of(visits_after(node, own)));
  if (visit && (below & kFresh) != 0) {
    rows.child(node) = below & ~kFresh;
    rows.W(node) = repeated(rows.W(node), rows.N(node));
  }
  for (const Change* change = &own;; change = &path) {
    if (kFlight) add_in_flight(rows.flight, node, change->in_flight);
    if (visit) L::add(rows.lines[node >> 2], node & 3, change->N, change->W);
    const std::uint32_t e = node >> rows.lane_shift();
    if (e == 0) return;
    node = rows.links[e].up;
    rows.links[e].next = next_of<L, kFlight>(rows, e, ratio_of(visits_after(node, path)));
  }
}

template <typename L>
void climb(const Rows& rows, NodeId node, const Change& own, const Change& path, bool visit) {
  if (rows.flight == nullptr) {
    climb_by<L, false>(rows, node, own, path, visit);
  } else {
    climb_by<L, true>(rows, node, own, path, visit);
  }
}

}  // namespace
}  // namespace restrl::search
