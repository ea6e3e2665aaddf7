#include "search/tree.h"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>

#include "search/errors.h"
#include "search/random.h"

namespace restrl::search {
namespace {

// Lane number `index` of a mask, without a branch where there are at most four lanes: a draw is not to be
// foreseen.
std::uint32_t lane_in(std::uint32_t mask, std::uint32_t index) {
  if (mask >= 16) {
    for (; index > 0; --index) mask &= mask - 1;
    return static_cast<std::uint32_t>(std::countr_zero(mask));
  }
  static constexpr auto kLaneIn = [] {
    std::array<std::array<std::uint8_t, 4>, 16> lanes{};
    for (std::uint32_t lanes_of = 0; lanes_of < 16; ++lanes_of) {
      std::uint32_t count = 0;
      for (std::uint8_t lane = 0; lane < 4; ++lane) {
        if ((lanes_of >> lane & 1) != 0) lanes[lanes_of][count++] = lane;
      }
    }
    return lanes;
  }();
  return kLaneIn[mask][index];
}

}  // namespace

VirtualLoss::VirtualLoss(Tree& tree, NodeId leaf, std::uint32_t own, std::uint32_t path, bool last)
    : tree_(&tree), leaf_(leaf), own_(own), path_(path) {
  tree_->fly({leaf_, own_, path_}, 1, last);
}

// Only a second reservation makes fly() throw.
// NOLINTNEXTLINE(bugprone-exception-escape)
void VirtualLoss::release() noexcept {
  if (tree_ == nullptr) return;
  tree_->fly({leaf_, own_, path_}, -1, false);
  tree_ = nullptr;
}

Tree::Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, std::string_view root_state,
           const Walks& walks)
    : alone_(params.leaves_in_flight == 1),
      draws_(draw_key(seed, stream)),
      walks_(&walks),
      format_(params),
      longest_(longest_record(format_) + kRecordUnit),
      rows_{nullptr,
            nullptr,
            nullptr,
            params.c,
            params.eps,
            format_.shift,
            params.ties == Ties::first,
            params.virtual_loss == LossRule::unobserved,
            params.mode == Mode::value},
      text_bytes_(root_state.size()) {
  if (root_state.size() >= kNone) throw LimitError("a root state must have less than 4 GiB");
  texts_.reserve(root_state.size());
  char* const copy = texts_.take(root_state.size());
  std::copy(root_state.begin(), root_state.end(), copy);
  root_state_ = {copy, root_state.size()};
  reserve(0);
  cold_.push_back(0);
  std::vector<Line> lines(std::size_t{1} << format_.shift, kEmptyLine);
  lines[0].W[0] = 0;
  open_expansion(kNone, lines.data());
}

void Tree::make_room(std::size_t completions) {
  const std::size_t size = links_.size() + 1;
  const std::uint32_t most = std::min(kMostExpansions, 0xffffffffU >> rows_.lane_shift());
  if (size > most)
    throw LimitError("a tree holds at most " + std::to_string(most - 1) + " expanded nodes here");
  constexpr std::size_t kMostLog = std::size_t{kNone} * kRecordUnit - 1;
  if (log_.size() + longest_ > kMostLog) throw LimitError("the records of a tree take at most 16 GiB");
  // The walks' pointers follow at once: should the next array find no memory, they are right all the same.
  lines_.reserve(size << rows_.shift);
  rows_.lines = lines_.data();
  links_.reserve(size);
  rows_.links = links_.data();
  if (!alone_) flight_.reserve(size << rows_.lane_shift());
  rows_.flight = flight_.data();
  cold_.reserve(size);
  log_.reserve(log_.size() + longest_);
  owners_.reserve(owners_.size() + completions);
  room_ =
      std::min({std::size_t{most}, lines_.capacity() >> rows_.shift, links_.capacity(), cold_.capacity()});
  if (!alone_) room_ = std::min(room_, flight_.capacity() >> rows_.lane_shift());
  log_room_ = std::min(log_.capacity(), kMostLog);
}

// A new expansion of these lines above `node` (kNone: expansion 0).
void Tree::open_expansion(NodeId node, const Line* lines) {
  const auto e = static_cast<std::uint32_t>(links_.size());
  links_.push_back({kTie, node});
  for (std::uint32_t i = 0; i < 1U << rows_.shift; ++i) lines_.push_back(lines[i]);
  if (!alone_) {
    const std::size_t begin = flight_.size();
    flight_.resize(lines_.size() * 4);
    std::fill(flight_.data() + begin, flight_.data() + flight_.size(), std::uint16_t{0});
  }
  if (node != kNone) rows_.child(node) = e;
}

void Tree::fetch_top(std::size_t walks) const {
  constexpr std::size_t kMany = 8;  // walks
  // Expansions; the first ones are those nearest to the root. Selection waits for every link, so of those all
  // are fetched that a tree of a thousand simulations has.
  constexpr std::size_t kTop = 48;
  constexpr std::size_t kTopPerWalk = 12;
  constexpr std::size_t kTopLinks = 1024;
  const std::size_t top = std::max(kTop, kTopPerWalk * walks);
  const auto fetch = [many = walks >= kMany](const auto& rows, std::size_t count) {
    const char* const begin = reinterpret_cast<const char*>(rows.data());
    const std::size_t bytes = std::min(count, rows.size()) * sizeof(rows[0]);
    for (std::size_t at = 0; at < bytes; at += sizeof(Line)) {
      if (many) {
        static_cast<void>(*static_cast<const volatile char*>(begin + at));
      } else {
        __builtin_prefetch(begin + at, 1);
      }
    }
  };
  fetch(links_, kTopLinks);
  fetch(lines_, top << rows_.shift);
  fetch(flight_, top << rows_.lane_shift());
}

void Tree::prefetch(NodeId leaf) const {
  constexpr std::size_t kRecord = 192;  // bytes, of most records
  __builtin_prefetch(&rows_.lines[leaf >> 2], 1);
  __builtin_prefetch(&rows_.links[expansion_of(leaf)], 1);
  const auto fetch_end = [](const auto& rows) { __builtin_prefetch(rows.data() + rows.size(), 1); };
  fetch_end(lines_);
  fetch_end(links_);
  fetch_end(cold_);
  fetch_end(owners_);
  const std::size_t record_end = std::min(log_.size() + kRecord, log_.capacity());
  for (std::size_t at = log_.size(); at < record_end; at += sizeof(Line)) {
    __builtin_prefetch(log_.data() + at, 1);
  }
  if (alone_) return;
  __builtin_prefetch(&rows_.flight[leaf], 1);
  fetch_end(flight_);
}

// The code of one of the best children of `e`, of which `tie` says the lanes.
inline std::uint32_t Tree::pick(std::uint32_t e, std::uint32_t tie, std::uint64_t draw) const {
  const std::uint32_t mask = tie & ~kTie;
  if (rows_.shift > kMaskShift) return walks_->pick(rows_, e, draw);
  const auto skip = static_cast<std::uint32_t>(draw % static_cast<std::uint32_t>(std::popcount(mask)));
  return rows_.child((e << rows_.lane_shift()) + lane_in(mask, skip));
}

NodeId Tree::select(std::uint32_t simulation, std::uint32_t* leaf_depth) const {
  std::uint32_t e = 0;
  std::uint32_t next = rows_.child(kRoot);
  std::uint32_t depth = 0;
  for (; (next & kLeaf) == 0; ++depth) {
    e = next;
    __builtin_prefetch(&rows_.lines[std::size_t{e} << rows_.shift], 1);  // for the walk up
    if (!alone_) __builtin_prefetch(&rows_.flight[std::size_t{e} << rows_.lane_shift()], 1);
    next = rows_.links[e].next;
    if ((next & (kLeaf | kTie)) != kTie) continue;
    if (next == kStale) rows_.links[e].next = next = walks_->next(rows_, e);
    if ((next & (kLeaf | kTie)) == kTie) next = pick(e, next, draw(draws_, simulation, depth));
  }
  if (leaf_depth != nullptr) *leaf_depth = depth;
  return (e << rows_.lane_shift()) + lane_of(next);
}

void Tree::fly(const Reservation& reservation, std::int32_t sign, bool last) {
  if (alone_) {
    // Nothing is selected while it lives, so no UCT value needs it.
    if (sign > 0 && reservation_.leaf != kNone)
      throw std::logic_error("a tree for one leaf in flight has one");
    reservation_ = sign > 0 ? reservation : Reservation{};
    return;
  }
  walks_->fly(rows_, reservation.leaf, sign * static_cast<std::int32_t>(reservation.own),
              sign * static_cast<std::int32_t>(reservation.path), last);
}

void Tree::back_up(NodeId node, Visit own, Visit path) {
  walks_->climb(rows_, node, {own.N, own.W, 0}, {path.N, path.W, 0});
}

void Tree::back_up(NodeId node, Visit own, Visit path, VirtualLoss&& loss) {
  loss.tree_ = nullptr;
  if (alone_) {
    reservation_ = {};
    return back_up(node, own, path);
  }
  walks_->climb(rows_, node, {own.N, own.W, -static_cast<std::int32_t>(loss.own_)},
                {path.N, path.W, -static_cast<std::int32_t>(loss.path_)});
}

std::uint32_t Tree::in_flight(NodeId node) const {
  if (!alone_) return flight_[node];
  if (reservation_.leaf == kNone) return 0;
  if (reservation_.leaf == node) return reservation_.own;
  for (NodeId up = reservation_.leaf; up != kNone; up = rows_.links[expansion_of(up)].up) {
    if (up == node) return reservation_.path;
  }
  return 0;
}

std::size_t Tree::nodes_in_flight() const {
  if (!alone_) {
    return flight_.size() -
           static_cast<std::size_t>(std::count(flight_.data(), flight_.data() + flight_.size(), 0));
  }
  std::size_t nodes = 0;
  for (NodeId up = reservation_.leaf; up != kNone; up = rows_.links[expansion_of(up)].up) {
    if ((up == reservation_.leaf ? reservation_.own : reservation_.path) > 0) ++nodes;
  }
  return nodes;
}

void Tree::check_room(std::uint32_t visits) const {
  if (rows_.N(kRoot) > kMostVisits - visits) throw LimitError("a tree holds at most 2^31 - 2^16 visits");
}

double Tree::W(NodeId node) const {
  return (code(node) & kFresh) != 0 ? repeated(rows_.W(node), rows_.N(node)) : rows_.W(node);
}

double Tree::V(NodeId node) const {
  const double W = rows_.W(node);
  const std::uint32_t N = rows_.N(node);
  return N == 0 || (code(node) & kFresh) != 0 ? W : W / N;
}

Visit Tree::terminal_visit(NodeId node) const {
  check_room(1);
  if (rows_.N(node) > 0) return {1, V(node)};
  Record record;
  read(expansion_of(node), record);
  return {1, record.values[record.children[record.child_in(lane(node))].first]};
}

Visits Tree::expand(NodeId leaf, std::uint32_t simulation, const Split& split,
                    std::span<const double> completions, std::span<const double> children) {
  const auto reused = static_cast<std::uint32_t>(format_.k - completions.size());
  write_draft(format_, split, reused, completions, children, draft());
  return expand_drafted(leaf, simulation, split, draft());
}

Draft& Tree::draft() {
  if (draft_ == nullptr) draft_ = Draft::make(format_);
  return *draft_;
}

Visits Tree::expand_drafted(NodeId leaf, std::uint32_t simulation, const Split& split, const Draft& draft) {
  check_room(format_.k);
  const std::span<const double> inherited = inherited_values(leaf);
  reserve(draft.owner_count);
  texts_.reserve(draft.copied);
  append_record(simulation, split, inherited, draft);
  if ((code(leaf) & kFresh) != 0) rows_.W(leaf) = repeated(rows_.W(leaf), rows_.N(leaf));
  open_expansion(leaf, draft.lines());
  if (!format_.scored) rows_.links[code(leaf)].next = equal_children(code(leaf), draft.visible_count);

  Visits visits{draft.fresh, draft.fresh};
  if (format_.scored || inherited.empty()) return visits;
  visits.own = {0, 0.0};  // all values in their order
  for (const double value : inherited) visits.own = {visits.own.N + 1, visits.own.W + value};
  for (const double value : draft.values()) visits.own = {visits.own.N + 1, visits.own.W + value};
  return visits;
}

// The `next` of an expansion with so many visible children, none of which has a value: their UCT values are
// the same.
std::uint32_t Tree::equal_children(std::uint32_t e, std::uint32_t visible) const {
  if (visible == 1 || rows_.first) return rows_.child(e << rows_.lane_shift());
  return rows_.shift > kMaskShift ? kTie : kTie | ((1U << visible) - 1);
}

// Of the completions that `leaf` inherits.
std::span<const double> Tree::inherited_values(NodeId leaf) {
  if (!format_.reuse || leaf == kRoot) return {};
  read(expansion_of(leaf), scratch_);
  const std::uint32_t child = scratch_.child_in(lane(leaf));
  std::uint32_t place = 0;
  for (std::uint32_t i = 0; i < format_.k; ++i) {
    if (scratch_.child_of[i] == child) scratch_.values[place++] = scratch_.values[i];
  }
  return {scratch_.values.data(), place};
}

// Into what is reserved: the record of the next expansion, its texts and owners.
void Tree::append_record(std::uint32_t simulation, const Split& split, std::span<const double> inherited,
                         const Draft& draft) {
  char* copy = draft.copied > 0 ? texts_.take(draft.copied) : nullptr;
  const char* const copies = copy;
  for (std::size_t i = inherited.size(); draft.copied > 0 && i < split.texts.size(); ++i) {
    const Text& text = split.texts[i];
    if (text.owner == nullptr) copy = std::copy(text.data, text.data + text.size, copy);
  }
  for (std::uint16_t i = 0; i < draft.owner_count; ++i) owners_.push_back(draft.owners()[i]);
  text_bytes_ += draft.text_bytes;
  text_references_ += draft.references;
  const auto expansion = static_cast<std::uint32_t>(links_.size());
  const std::size_t begin = (log_.size() + kRecordUnit - 1) / kRecordUnit * kRecordUnit;
  cold_.push_back(static_cast<std::uint32_t>(begin / kRecordUnit));
  const char* const end = write_record(expansion, simulation, inherited, draft, copies, log_.data() + begin);
  log_.resize(static_cast<std::size_t>(end - log_.data()));
  nodes_ += draft.child_count;
}

}  // namespace restrl::search
