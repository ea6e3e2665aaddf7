// A tree from its dump. Dumps come from files: everything a walk relies on is checked.
#include <algorithm>
#include <bit>
#include <cmath>

#include "search/errors.h"
#include "search/tree.h"

namespace restrl::search {
namespace {

bool same_bits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

constexpr double kLargestSum = kLargestScore * 0x1p32;  // of more visits than a tree can have

class Checker {
 public:
  explicit Checker(std::size_t expansion) : expansion_(expansion) {}
  void operator()(bool right, const char* what) const {
    if (!right) throw Error("expansion " + std::to_string(expansion_) + " of the tree: " + what);
  }

 private:
  std::size_t expansion_;
};

}  // namespace

// Fills `split` and `draft` with expansion x of `dump`, its rows beginning at `child`, `text` and x * k.
void Tree::read_dump(const TreeDump& dump, std::size_t x, std::size_t child, std::size_t text, Split& split,
                     Draft& draft) const {
  const Checker check(x);
  const TreeDump::Expansion& expansion = dump.expansions[x];
  const std::uint32_t k = format_.k;
  check(expansion.children >= 1 && expansion.children <= k, "it must have between 1 and k children");
  check(dump.children.size() - child >= expansion.children, "children are missing");
  check(expansion.reused <= k && dump.texts.size() - text >= k - expansion.reused, "texts are missing");
  const auto child_of = dump.child_of.begin() + static_cast<std::ptrdiff_t>(x * k);
  split.child_of.assign(child_of, child_of + k);
  const auto texts = dump.texts.begin() + static_cast<std::ptrdiff_t>(text);
  split.texts.assign(expansion.reused, Text{});
  split.texts.insert(split.texts.end(), texts, texts + (k - expansion.reused));
  split.children.clear();
  std::uint8_t* const visible = draft.visible();
  std::uint32_t visible_count = 0;
  std::vector<double> scores;
  for (std::uint32_t i = 0; i < k; ++i) {
    check(std::abs(dump.values[x * k + i]) <= kLargestScore, "a value is not finite or beyond 1e200");
    const std::uint32_t to = split.child_of[i];
    check(to <= split.children.size() && to < expansion.children,
          "children must be in the order of completions");
    if (to == split.children.size()) {
      const TreeDump::Child& row = dump.children[child + to];
      split.children.push_back({i, row.length, 0, row.terminal});
      visible[to] = row.visible ? 1 : 0;
      visible_count += visible[to];
      scores.push_back(row.V);
    }
    ++split.children[to].count;
  }
  check(split.children.size() == expansion.children, "a child has no completion");
  check(visible_count == std::min(expansion.children, format_.num_decisions),
        "the number of visible children is wrong");
  write_tail(format_, split, expansion.reused, scores, draft);
  const auto values = dump.values.begin() + static_cast<std::ptrdiff_t>(x * k);
  std::copy(values + expansion.reused, values + k, draft.values().begin());
}

// Puts a child's numbers into its lane.
void Tree::load_lane(NodeId node, const TreeDump::Child& child, std::uint32_t count, std::size_t x) {
  const Checker check(x);
  std::uint32_t code = kLeaf | (child.terminal ? kTerminal : 0) | lane(node);
  double W = child.W;
  check(child.N <= kMostVisits, "a child has too many visits");
  if (child.N == 0) {
    check(!format_.scored && same_bits(child.W, 0) && same_bits(child.V, 0),
          "a child without visits has a value");
  } else if (!same_bits(child.W / child.N, child.V)) {
    check(format_.scored && child.N == count && same_bits(child.W, repeated(child.V, count)),
          "a child's V is neither W / N nor its first score");
    W = child.V;
    code |= kFresh;
  }
  rows_.N(node) = child.N;
  rows_.W(node) = W;
  rows_.child(node) = code;
}

Tree::Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, const TreeDump& dump,
           const Walks& walks)
    : Tree(params, seed, stream, dump.root_state, walks) {
  const std::uint32_t k = format_.k;
  if (dump.expansions.size() > dump.values.size() / k || dump.expansions.size() > dump.child_of.size() / k) {
    throw Error("the tree has fewer than k completions for an expansion");
  }
  if (dump.root_N > kMostVisits || !(std::abs(dump.root_W) <= kLargestSum))
    throw Error("the root's statistics are out of range");
  if (dump.expansions.empty() != (dump.root_N == 0))
    throw Error("the root's visits do not fit its expansions");
  rows_.N(kRoot) = dump.root_N;
  rows_.W(kRoot) = dump.root_W;
  const std::vector<Line> empty(std::size_t{1} << format_.shift, kEmptyLine);
  Record parent;
  Split split;
  std::size_t child = 0;
  std::size_t text = 0;
  for (std::size_t x = 0; x < dump.expansions.size(); ++x) {
    const Checker check(x);
    const TreeDump::Expansion& expansion = dump.expansions[x];
    check((expansion.parent == kNone) == (x == 0) && (x == 0 || expansion.parent < x),
          "its parent must come first");
    NodeId node = kRoot;
    if (x > 0) {
      read(expansion.parent + 1, parent);
      check(expansion.child < parent.children.size() && parent.children[expansion.child].visible,
            "it is of a child that is not visible");
      node = lane_of_child(expansion.parent + 1, parent, expansion.child);
      check(code(node) == (kLeaf | lane(node)),
            "it is of a node that is terminal, unvisited or expanded already");
      check(rows_.N(node) > 0, "it is of a node without visits");
    }
    check(expansion.reused == (x > 0 && format_.reuse ? parent.children[expansion.child].count : 0),
          "the number of reused completions is wrong");
    read_dump(dump, x, child, text, split, draft());
    reserve(draft().owner_count);
    texts_.reserve(draft().copied);
    append_record(expansion.simulation, split, std::span(dump.values).subspan(x * k, expansion.reused),
                  draft());
    const auto e = static_cast<std::uint32_t>(links_.size());
    open_expansion(node, empty.data());
    NodeId next_lane = e << rows_.lane_shift();
    for (std::uint32_t i = 0; i < expansion.children; ++i) {
      const TreeDump::Child& row = dump.children[child + i];
      check(std::abs(row.W) <= kLargestSum && std::abs(row.V) <= kLargestScore,
            "a child's values are out of range");
      if (row.visible) {
        load_lane(next_lane++, row, split.children[i].count, x);
        continue;
      }
      const std::uint32_t N = format_.scored ? split.children[i].count : 0;
      check(row.N == N && same_bits(row.W, repeated(row.V, N)) && (format_.scored || same_bits(row.V, 0)),
            "the statistics of a child that is not visible changed");
    }
    child += expansion.children;
    text += k - expansion.reused;
  }
  if (child != dump.children.size() || text != dump.texts.size()) {
    throw Error("the tree has children or texts of no expansion");
  }
  for (std::uint32_t e = 1; e < links_.size(); ++e) rows_.links[e].next = walks_->next(rows_, e);
}

}  // namespace restrl::search
