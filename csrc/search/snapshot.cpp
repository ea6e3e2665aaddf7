#include "search/snapshot.h"

#include <sstream>
#include <vector>

#include "search/errors.h"
#include "search/snapshot_format.h"

namespace restrl::search {
namespace {

template <typename T>
bool differ(std::string& phrase, const char* field, const T& snapshot, const T& forest) {
  if (snapshot == forest) return false;
  std::ostringstream text;
  text.precision(17);
  text << std::boolalpha << field << " = " << snapshot << ", the forest's is " << forest;
  phrase = text.str();
  return true;
}

std::string quoted(const std::vector<std::string>& ends) {
  std::string text;
  for (const std::string& end : ends) {
    text += text.empty() ? "(\"" : ", \"";
    for (char byte : end) text += byte == '\n' ? "\\n" : std::string(1, byte);
    text += '"';
  }
  return text + ")";
}

}  // namespace

std::string difference(const SearchParams& snapshot, const SearchParams& forest) {
  std::string phrase;
  const SearchParams &a = snapshot, &b = forest;
  if (differ(phrase, "mode", name(a.mode), name(b.mode)) ||
      differ(phrase, "simulations", a.simulations, b.simulations) ||
      differ(phrase, "max_samples", a.max_samples, b.max_samples) || differ(phrase, "k", a.k, b.k) ||
      differ(phrase, "num_decisions", a.num_decisions, b.num_decisions) || differ(phrase, "c", a.c, b.c) ||
      differ(phrase, "eps", a.eps, b.eps) || differ(phrase, "ties", name(a.ties), name(b.ties)) ||
      differ(phrase, "leaves_in_flight", a.leaves_in_flight, b.leaves_in_flight) ||
      differ(phrase, "in_order", a.in_order, b.in_order) ||
      differ(phrase, "virtual_loss", name(a.virtual_loss), name(b.virtual_loss)) ||
      differ(phrase, "reuse", a.reuse, b.reuse) ||
      differ(phrase, "step_ends", quoted(a.step_ends), quoted(b.step_ends))) {
    return phrase;
  }
  return a == b ? phrase : "other parameters";
}

TreeRows rows_of(const TreeDump& dump, std::uint32_t k, std::vector<std::uint32_t>& first_row) {
  const std::size_t expansions = dump.expansions.size();
  std::vector<std::size_t> first_child(expansions), first_text(expansions);
  for (std::size_t e = 1; e < expansions; ++e) {
    first_child[e] = first_child[e - 1] + dump.expansions[e - 1].children;
    first_text[e] = first_text[e - 1] + k - dump.expansions[e - 1].reused;
  }
  // The expansion of each child, and of each row.
  std::vector<std::uint32_t> of_child(dump.children.size(), kNone), of_row{kNone};
  for (std::uint32_t e = 0; e < expansions; ++e) {
    const TreeDump::Expansion& expansion = dump.expansions[e];
    if (expansion.parent == kNone) {
      of_row[0] = e;
    } else {
      of_child[first_child[expansion.parent] + expansion.child] = e;
    }
  }
  first_row.assign(expansions, kNone);
  TreeRows rows;
  TreeRows::Node& root = rows.nodes.emplace_back();
  root.visible = true;
  root.N = dump.root_N;
  root.W = dump.root_W;
  root.V = root.N == 0 ? 0.0 : root.W / root.N;
  for (std::uint32_t row = 0; row < rows.nodes.size(); ++row) {
    const std::uint32_t e = of_row[row];
    if (e == kNone) continue;
    const TreeDump::Expansion& expansion = dump.expansions[e];
    const auto first = static_cast<std::uint32_t>(rows.nodes.size());
    first_row[e] = first;
    rows.nodes[row].first_child = first;
    rows.nodes[row].children = expansion.children;
    rows.nodes[row].expansion = static_cast<std::uint32_t>(rows.expansions.size());
    rows.expansions.push_back({row, expansion.simulation, expansion.reused});
    for (std::size_t c = first_child[e]; c < first_child[e] + expansion.children; ++c) {
      const TreeDump::Child& child = dump.children[c];
      rows.nodes.push_back({row, kNone, 0, kNone, child.N, child.terminal, child.visible, child.W, child.V});
      of_row.push_back(of_child[c]);
    }
    std::vector<std::uint32_t> sources = inherited(rows, row, k);
    for (std::uint32_t i = 0; i < k; ++i) {
      const std::uint32_t child = dump.child_of[e * std::size_t{k} + i];
      const bool reused = i < expansion.reused;
      const TreeRows::Completion* source = reused ? &rows.completions[sources[i]] : nullptr;
      const Text text =
          reused ? source->text.rest(source->step) : dump.texts[first_text[e] + i - expansion.reused];
      rows.completions.push_back({text, dump.children[first_child[e] + child].length, first + child,
                                  reused ? sources[i] : kNone, dump.values[e * std::size_t{k} + i]});
    }
  }
  return rows;
}

std::vector<std::uint32_t> inherited(const TreeRows& rows, std::uint32_t row, std::uint32_t k) {
  std::vector<std::uint32_t> sources;
  if (row == 0) return sources;
  const std::uint32_t first = rows.nodes[rows.nodes[row].parent].expansion * k;
  for (std::uint32_t i = first; i < first + k; ++i) {
    if (rows.completions[i].child == row) sources.push_back(i);
  }
  return sources;
}

TreeDump dump_of(const TreeRows& rows, std::string_view root_state, std::uint32_t k) {
  TreeDump dump;
  dump.root_state = root_state;
  dump.root_W = rows.nodes[0].W;
  dump.root_N = rows.nodes[0].N;
  for (const TreeRows::Expansion& expansion : rows.expansions) {
    const TreeRows::Node& node = rows.nodes[expansion.node];
    const TreeRows::Node* parent = node.parent == kNone ? nullptr : &rows.nodes[node.parent];
    dump.expansions.push_back({parent == nullptr ? kNone : parent->expansion,
                               parent == nullptr ? 0 : expansion.node - parent->first_child,
                               expansion.simulation, expansion.reused, node.children});
  }
  for (std::size_t row = 1; row < rows.nodes.size(); ++row) {
    const TreeRows::Node& node = rows.nodes[row];
    dump.children.push_back({node.W, node.V, node.N, 0, node.terminal, node.visible});
  }
  for (std::size_t i = 0; i < rows.completions.size(); ++i) {
    const TreeRows::Completion& completion = rows.completions[i];
    const TreeRows::Expansion& expansion = rows.expansions[i / k];
    dump.child_of.push_back(completion.child - rows.nodes[expansion.node].first_child);
    dump.values.push_back(completion.value);
    dump.children[completion.child - 1].length = completion.step;
    if (completion.source == kNone) dump.texts.push_back(completion.text);
  }
  return dump;
}

std::string save(const Forest& forest, TreeId tree) {
  return encode({forest.params(), forest.has_splitter(), forest.seed(), forest.image(tree)});
}

TreeId load(Forest& forest, std::string_view bytes, const Keep& keep) {
  const Snapshot snapshot = decode(bytes);
  std::string phrase = difference(snapshot.params, forest.params());
  if (phrase.empty()) differ(phrase, "seed", snapshot.seed, forest.seed());
  if (phrase.empty()) differ(phrase, "splitter", snapshot.splitter, forest.has_splitter());
  if (!phrase.empty()) throw SnapshotError("the snapshot is of a search with " + phrase);
  try {
    return forest.insert(snapshot.tree, keep);
  } catch (const SnapshotError&) {
    throw;
  } catch (const Error& error) {
    throw SnapshotError(std::string("the tree of the snapshot cannot be rebuilt: ") + error.what());
  }
}

}  // namespace restrl::search
