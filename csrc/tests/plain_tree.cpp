#include "plain_tree.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "search/errors.h"
#include "search/random.h"

namespace restrl::search::plain {

VirtualLoss::VirtualLoss(Tree& tree, NodeId leaf, std::uint32_t own, std::uint32_t path)
    : tree_(&tree), leaf_(leaf), own_(own), path_(path) {
  tree_->stats_[leaf_].in_flight += own_;
  for (NodeId node = tree_->links_[leaf_].parent; node != kNone; node = tree_->links_[node].parent) {
    tree_->stats_[node].in_flight += path_;
  }
}

void VirtualLoss::release() noexcept {
  if (tree_ == nullptr) return;
  tree_->stats_[leaf_].in_flight -= own_;
  for (NodeId node = tree_->links_[leaf_].parent; node != kNone; node = tree_->links_[node].parent) {
    tree_->stats_[node].in_flight -= path_;
  }
  tree_ = nullptr;
}

Tree::Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, std::string_view root_state)
    : params_(params),
      seed_(seed),
      stream_(stream),
      stats_(1),
      links_(1),
      cold_(1),
      copies_{std::string(root_state)},
      text_bytes_(root_state.size()) {
  if (root_state.size() >= kNone) throw LimitError("a root state must have less than 4 GiB");
  links_[kRoot].flags = kVisible;
  cold_[kRoot].line_length = static_cast<std::uint32_t>(root_state.size());
}

// V + c sqrt((1 + ln N_parent) / (eps + N)); see LossRule for what leaves in flight change.
double Tree::uct(NodeId child, double log_parent_visits) const {
  const Stats& stats = stats_[child];
  const double N = static_cast<double>(stats.N) + stats.in_flight;
  const bool as_loss = stats.in_flight != 0 && params_.virtual_loss == LossRule::loss;
  const double V = as_loss ? stats.W / N : stats.V;
  return V + params_.c * std::sqrt((1.0 + log_parent_visits) / (params_.eps + N));
}

NodeId Tree::select(std::uint32_t simulation) const {
  NodeId node = kRoot;
  for (std::uint32_t depth = 0; expanded(node); ++depth) {
    // An expanded node has at least k visits, so the logarithm is defined.
    const double log_visits = std::log(static_cast<double>(stats_[node].N) + stats_[node].in_flight);
    const NodeId first = links_[node].first_child;
    const NodeId end = first + links_[node].children;
    NodeId best = kNone;
    double best_uct = 0;
    std::uint32_t tied = 0;
    for (NodeId child = first; child < end; ++child) {
      if (!(links_[child].flags & kVisible)) continue;
      const double value = uct(child, log_visits);
      if (best == kNone || value > best_uct) {
        best = child;
        best_uct = value;
        tied = 1;
      } else if (value == best_uct) {
        ++tied;
      }
    }
    if (tied > 1 && params_.ties == Ties::seeded) {
      auto skip = static_cast<std::uint32_t>(draw(seed_, stream_, simulation, depth) % tied);
      for (NodeId child = best; skip > 0;) {
        ++child;
        if (!(links_[child].flags & kVisible) || uct(child, log_visits) != best_uct) continue;
        best = child;
        --skip;
      }
    }
    node = best;
  }
  return node;
}

std::uint32_t Tree::inherited(NodeId leaf) const {
  if (!params_.reuse || leaf == kRoot) return 0;
  const auto first = samples_.begin() + cold_[links_[leaf].parent].first_completion;
  return static_cast<std::uint32_t>(
      std::count_if(first, first + params_.k, [&](const Sample& sample) { return sample.child == leaf; }));
}

void Tree::inherit(NodeId leaf, std::vector<Text>& texts) const {
  if (!params_.reuse || leaf == kRoot) return;
  const std::uint32_t first = cold_[links_[leaf].parent].first_completion;
  for (std::uint32_t i = first; i < first + params_.k; ++i) {
    if (samples_[i].child == leaf) texts.push_back(samples_[i].text.rest(cold_[leaf].line_length));
  }
}

void Tree::reserve(std::size_t children, const Split& split) {
  if (size() + children >= kNone || samples_.size() + split.texts.size() >= kNone) {
    throw LimitError("a tree holds at most 2^32 - 2 nodes and as many completions");
  }
  // Grown here, so that the appends of expand() cannot fail half-way; by doubling, so that they stay
  // amortised.
  const auto grow = [](auto& array, std::size_t more) {
    if (array.capacity() < array.size() + more) {
      array.reserve(std::max(array.size() + more, 2 * array.capacity()));
    }
  };
  grow(stats_, children);
  grow(links_, children);
  grow(cold_, children);
  grow(samples_, split.texts.size());
  grow(owners_, split.texts.size());
}

Visits Tree::expand(NodeId leaf, std::uint32_t simulation, const Split& split,
                    std::span<const double> completions, std::span<const double> children) {
  reserve(split.children.size(), split);
  const auto first_child = static_cast<NodeId>(size());
  const auto first_completion = static_cast<std::uint32_t>(samples_.size());
  const std::uint32_t reused = inherited(leaf);
  const std::size_t copied = copies_.size();
  try {
    for (std::size_t i = reused; i < split.texts.size(); ++i) {
      if (split.texts[i].owner == nullptr) copies_.emplace_back(split.texts[i].view());
    }
  } catch (...) {
    copies_.resize(copied);
    throw;
  }

  Visit own{0, 0.0};
  Visit path{0, 0.0};
  const auto sample = [&](Text text, double value, std::uint32_t child, std::uint32_t source) {
    text.owner = nullptr;
    samples_.push_back({text, value, leaf, first_child + child, source});
    if (params_.mode == Mode::value) return;
    own = {own.N + 1, own.W + value};
    if (source == kNone) path = {path.N + 1, path.W + value};
  };
  if (reused > 0) {
    const std::uint32_t above = cold_[links_[leaf].parent].first_completion;
    for (std::uint32_t i = above, place = 0; place < reused; ++i) {
      if (samples_[i].child != leaf) continue;
      sample(samples_[i].text.rest(cold_[leaf].line_length), samples_[i].value, split.child_of[place], i);
      ++place;
    }
  }
  auto copy = copies_.begin() + static_cast<std::ptrdiff_t>(copied);
  for (std::size_t i = reused; i < split.texts.size(); ++i) {
    Text text = split.texts[i];
    text_bytes_ += text.size + 1;
    if (text.owner == nullptr) {
      text.data = (copy++)->data();
    } else {
      owners_.push_back(text.owner);
    }
    sample(text, completions[i - reused], split.child_of[i], kNone);
  }
  for (std::size_t i = 0; i < split.children.size(); ++i) {
    const Split::Child& child = split.children[i];
    Stats stats;
    if (params_.mode == Mode::value) {
      stats.V = children[i];
      stats.N = child.count;
      for (std::uint32_t time = 0; time < child.count; ++time) stats.W += stats.V;
      own = {own.N + stats.N, own.W + stats.W};
    }
    stats_.push_back(stats);
    links_.push_back({leaf, kNone, 0, static_cast<std::uint8_t>(child.terminal ? kTerminal : 0)});
    cold_.push_back({first_completion + child.completion, child.line_length, kNone, kNone});
  }
  links_[leaf].first_child = first_child;
  links_[leaf].children = static_cast<std::uint16_t>(split.children.size());
  links_[leaf].flags |= kExpanded;
  cold_[leaf].first_completion = first_completion;
  cold_[leaf].simulation = simulation;
  prune(leaf);
  return {own, params_.mode == Mode::value ? own : path};
}

void Tree::prune(NodeId node) {
  std::vector<NodeId> order(links_[node].children);
  std::iota(order.begin(), order.end(), links_[node].first_child);
  std::stable_sort(order.begin(), order.end(), [&](NodeId a, NodeId b) { return stats_[a].V > stats_[b].V; });
  order.resize(std::min<std::size_t>(order.size(), params_.num_decisions));
  for (NodeId child : order) links_[child].flags |= kVisible;
}

void Tree::back_up(NodeId node, Visit own, Visit path) {
  const auto add = [](Stats& stats, Visit visit) {
    stats.N += visit.N;
    stats.W += visit.W;
    stats.V = stats.W / stats.N;
  };
  add(stats_[node], own);
  while ((node = links_[node].parent) != kNone) add(stats_[node], path);
}

Visit Tree::terminal_visit(NodeId node) const {
  const Stats& stats = stats_[node];
  return {1, stats.N == 0 ? samples_[cold_[node].source].value : stats.V};
}

std::string Tree::line(NodeId node) const {
  const Cold& cold = cold_[node];
  return cold.source == kNone ? copies_.front() : samples_[cold.source].text.first(cold.line_length);
}

std::string Tree::state(NodeId node) const {
  std::vector<NodeId> path;
  for (NodeId up = node; up != kNone; up = links_[up].parent) path.push_back(up);
  std::string state;
  for (auto up = path.rbegin(); up != path.rend(); ++up) state += line(*up);
  return state;
}

TreeView Tree::view() const {
  struct Entry {
    NodeId node;
    std::uint32_t parent;
    std::uint32_t depth;
  };
  TreeView view;
  std::vector<std::uint32_t> row(size());
  std::vector<NodeId> order;
  std::vector<Entry> stack{{kRoot, kNone, 0}};
  while (!stack.empty()) {
    const Entry entry = stack.back();
    stack.pop_back();
    const NodeId node = entry.node;
    const Stats& stats = stats_[node];
    row[node] = static_cast<std::uint32_t>(view.nodes.size());
    order.push_back(node);
    view.nodes.push_back({entry.parent, entry.depth, cold_[node].simulation, stats.N, stats.W, stats.V,
                          terminal(node), expanded(node), (links_[node].flags & kVisible) != 0, line(node)});
    for (std::uint32_t child = links_[node].children; child-- > 0;) {
      stack.push_back({links_[node].first_child + child, row[node], entry.depth + 1});
    }
  }
  std::vector<std::uint32_t> sample_row(samples_.size());
  for (NodeId node : order) {
    if (!expanded(node)) continue;
    for (std::uint32_t i = cold_[node].first_completion; i < cold_[node].first_completion + params_.k; ++i) {
      const Sample& sample = samples_[i];
      sample_row[i] = static_cast<std::uint32_t>(view.completions.size());
      // A parent's completions stand before its children's.
      view.completions.push_back({row[node], row[sample.child], sample.value, sample.text.str(),
                                  sample.source == kNone ? kNone : sample_row[sample.source]});
    }
  }
  return view;
}

std::size_t Tree::bytes() const {
  return sizeof(Tree) + stats_.size() * (sizeof(Stats) + sizeof(Links) + sizeof(Cold)) +
         samples_.size() * sizeof(Sample) + owners_.size() * sizeof(void*);
}

std::size_t Tree::nodes_in_flight() const {
  return static_cast<std::size_t>(
      std::count_if(stats_.begin(), stats_.end(), [](const Stats& stats) { return stats.in_flight != 0; }));
}

}  // namespace restrl::search::plain
