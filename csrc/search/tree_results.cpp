// What a tree is asked besides searching: states, inherited completions, views, dumps.
#include <algorithm>

#include "search/errors.h"
#include "search/tree.h"

namespace restrl::search {

std::vector<void*> Tree::take_owners() {
  std::vector<void*> owners(owners_.data(), owners_.data() + owners_.size());
  owners_.resize(0);
  return owners;
}

void Tree::read(std::uint32_t expansion, Record& record) const {
  read_record(format_, expansion, log_.data() + std::size_t{cold_[expansion]} * kRecordUnit, record);
}

std::size_t Tree::bytes() const {
  const std::size_t per_expansion = (sizeof(Line) << rows_.shift) + sizeof(Link) + sizeof(std::uint32_t);
  return sizeof(Tree) + links_.size() * per_expansion + flight_.size() * sizeof(std::uint16_t) + log_.size() -
         text_references_;
}

namespace {

// The completion of the parent's record that number `place` of those reused at `child` comes from.
std::uint32_t source_of(const Record& parent, std::uint32_t child, std::uint32_t place) {
  std::uint32_t index = parent.children[child].first;
  for (;; ++index) {
    if (parent.child_of[index] == child && place-- == 0) return index;
  }
}

}  // namespace

// The sample itself or, where it is reused, the tail of the parent's that it comes from.
Text Tree::completion(std::uint32_t expansion, std::uint32_t index) const {
  Record record;
  read(expansion, record);
  std::uint32_t skip = 0;
  while (index < record.reused) {
    const NodeId node = rows_.links[expansion].up;
    expansion = expansion_of(node);
    read(expansion, record);
    const std::uint32_t child = record.child_in(lane(node));
    skip += record.children[child].length;
    index = source_of(record, child, index);
  }
  return record.texts[index - record.reused].rest(skip);
}

std::uint32_t Tree::inherited(NodeId leaf) const {
  if (!format_.reuse || leaf == kRoot) return 0;
  Record record;
  read(expansion_of(leaf), record);
  return record.children[record.child_in(lane(leaf))].count;
}

void Tree::inherit(NodeId leaf, std::vector<Text>& texts) const {
  if (!format_.reuse || leaf == kRoot) return;
  Record record;
  read(expansion_of(leaf), record);
  const std::uint32_t child = record.child_in(lane(leaf));
  for (std::uint32_t i = 0; i < format_.k; ++i) {
    if (record.child_of[i] != child) continue;
    texts.push_back(completion(expansion_of(leaf), i).rest(record.children[child].length));
  }
}

NodeId Tree::lane_of_child(std::uint32_t expansion, const Record& record, std::uint32_t child) const {
  const auto before = std::count_if(record.children.begin(), record.children.begin() + child,
                                    [](const Record::Child& other) { return other.visible; });
  return (expansion << rows_.lane_shift()) + static_cast<NodeId>(before);
}

NodeId Tree::child(NodeId node, std::uint32_t child) const {
  Record record;
  read(code(node), record);
  return record.children[child].visible ? lane_of_child(code(node), record, child) : kNone;
}

std::string Tree::state(NodeId node) const {
  // From the last step up: pieces of texts, each with the bytes of it that belong to the state.
  std::vector<std::pair<std::string_view, std::uint64_t>> pieces;
  Record record;
  while (node != kRoot) {
    std::uint32_t expansion = expansion_of(node);
    read(expansion, record);
    std::uint32_t child = record.child_in(lane(node));
    std::uint32_t index = record.children[child].first;
    std::uint64_t length = record.children[child].length;
    node = rows_.links[expansion].up;
    // A reused completion is the tail of one that holds the step above too.
    while (index < record.reused) {
      expansion = expansion_of(node);
      read(expansion, record);
      child = record.child_in(lane(node));
      length += record.children[child].length;
      index = source_of(record, child, index);
      node = rows_.links[expansion].up;
    }
    pieces.emplace_back(record.texts[index - record.reused].view(), length);
  }
  std::string state(root_state_);
  for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
    const auto& [text, length] = *piece;
    state += text.substr(0, length);
    // The implied newline; and the one that stands for a reused completion of which nothing is left.
    if (length > text.size()) state.append(length - text.size(), '\n');
  }
  return state;
}

TreeDump Tree::dump() const {
  TreeDump dump;
  dump.root_state = root_state_;
  dump.root_W = rows_.W(kRoot);
  dump.root_N = rows_.N(kRoot);
  const std::size_t expansions = links_.size() - 1;
  dump.expansions.reserve(expansions);
  dump.children.reserve(nodes_ - 1);
  dump.child_of.reserve(expansions * format_.k);
  dump.values.reserve(expansions * format_.k);
  Record record;
  Record above;
  for (std::uint32_t e = 1; e < links_.size(); ++e) {
    read(e, record);
    const NodeId node = rows_.links[e].up;
    const std::uint32_t parent = expansion_of(node);
    std::uint32_t child = 0;
    if (parent > 0) {
      read(parent, above);
      child = above.child_in(lane(node));
    }
    dump.expansions.push_back({parent == 0 ? kNone : parent - 1, child, record.simulation, record.reused,
                               static_cast<std::uint32_t>(record.children.size())});
    NodeId next_lane = e << rows_.lane_shift();
    for (const Record::Child& row : record.children) {
      if (row.visible) {
        dump.children.push_back(
            {W(next_lane), V(next_lane), rows_.N(next_lane), row.length, row.terminal, true});
        ++next_lane;
      } else {
        const std::uint32_t N = format_.scored ? row.count : 0;
        dump.children.push_back({repeated(row.score, N), row.score, N, row.length, row.terminal, false});
      }
    }
    dump.child_of.insert(dump.child_of.end(), record.child_of.begin(), record.child_of.end());
    dump.values.insert(dump.values.end(), record.values.begin(), record.values.end());
    dump.texts.insert(dump.texts.end(), record.texts.begin(), record.texts.end());
  }
  return dump;
}

TreeView Tree::view() const {
  const TreeDump flat = dump();
  const std::uint32_t k = format_.k;
  const auto count = static_cast<std::uint32_t>(flat.expansions.size());
  // Parents come before their children.
  std::vector<std::size_t> first_child(count);  // row of an expansion's first child
  std::vector<std::size_t> sample_of;           // the first completion that leads to a child
  std::vector<Text> texts;
  std::vector<std::uint32_t> sources;
  std::vector<std::uint32_t> expanded_by(flat.children.size(), kNone);
  std::size_t children = 0;
  std::size_t fresh = 0;
  for (std::uint32_t e = 0; e < count; ++e) {
    const TreeDump::Expansion& expansion = flat.expansions[e];
    first_child[e] = children;
    children += expansion.children;
    if (expansion.parent != kNone) expanded_by[first_child[expansion.parent] + expansion.child] = e;
    std::size_t above = std::size_t{expansion.parent} * k;
    for (std::uint32_t i = 0; i < k; ++i) {
      const std::size_t child = first_child[e] + flat.child_of[texts.size()];
      if (child == sample_of.size()) sample_of.push_back(texts.size());
      if (i >= expansion.reused) {
        sources.push_back(kNone);
        texts.push_back(flat.texts[fresh++]);
        continue;
      }
      while (flat.child_of[above] != expansion.child) ++above;
      sources.push_back(static_cast<std::uint32_t>(above));
      texts.push_back(
          texts[above].rest(flat.children[first_child[expansion.parent] + expansion.child].length));
      ++above;
    }
  }

  struct Entry {
    std::size_t child;  // kNoChild: the root
    std::uint32_t expansion;
    std::uint32_t parent;
    std::uint32_t depth;
    std::string line;
  };
  constexpr auto kNoChild = static_cast<std::size_t>(-1);
  TreeView view;
  std::vector<std::uint32_t> row(flat.children.size());
  std::vector<std::uint32_t> order;
  std::vector<std::uint32_t> node_of(count);
  std::vector<Entry> stack{{kNoChild, count > 0 ? 0 : kNone, kNone, 0, flat.root_state}};
  while (!stack.empty()) {
    const Entry entry = std::move(stack.back());
    stack.pop_back();
    const auto node = static_cast<std::uint32_t>(view.nodes.size());
    const bool expanded = entry.expansion != kNone;
    const std::uint32_t simulation = expanded ? flat.expansions[entry.expansion].simulation : kNone;
    if (entry.child == kNoChild) {
      view.nodes.push_back(
          {kNone, 0, simulation, flat.root_N, flat.root_W, V(kRoot), false, expanded, true, entry.line});
    } else {
      const TreeDump::Child& child = flat.children[entry.child];
      row[entry.child] = node;
      view.nodes.push_back({entry.parent, entry.depth, simulation, child.N, child.W, child.V, child.terminal,
                            expanded, child.visible, entry.line});
    }
    if (!expanded) continue;
    order.push_back(entry.expansion);
    node_of[entry.expansion] = node;
    const std::size_t first = first_child[entry.expansion];
    for (std::uint32_t child = flat.expansions[entry.expansion].children; child-- > 0;) {
      stack.push_back({first + child, expanded_by[first + child], node, entry.depth + 1,
                       texts[sample_of[first + child]].first(flat.children[first + child].length)});
    }
  }
  std::vector<std::uint32_t> sample_row(texts.size());
  for (std::uint32_t e : order) {
    for (std::size_t i = std::size_t{e} * k; i < (std::size_t{e} + 1) * k; ++i) {
      sample_row[i] = static_cast<std::uint32_t>(view.completions.size());
      view.completions.push_back({node_of[e], row[first_child[e] + flat.child_of[i]], flat.values[i],
                                  texts[i].str(), sources[i] == kNone ? kNone : sample_row[sources[i]]});
    }
  }
  return view;
}

}  // namespace restrl::search
