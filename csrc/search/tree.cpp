#include "search/tree.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "search/errors.h"
#include "search/random.h"

namespace restrl::search {

VirtualLoss::VirtualLoss(Tree& tree, NodeId leaf, std::uint32_t visits)
    : tree_(&tree), leaf_(leaf), visits_(visits) {
  for (NodeId node = leaf_; node != kNone; node = tree_->links_[node].parent) {
    tree_->stats_[node].in_flight += visits_;
  }
}

void VirtualLoss::release() noexcept {
  if (tree_ == nullptr) return;
  for (NodeId node = leaf_; node != kNone; node = tree_->links_[node].parent) {
    tree_->stats_[node].in_flight -= visits_;
  }
  tree_ = nullptr;
}

Tree::Tree(const SearchParams& params, std::uint64_t seed, std::uint64_t stream, std::string_view root_state)
    : params_(params), seed_(seed), stream_(stream), stats_(1), links_(1), cold_(1), text_(root_state) {
  if (root_state.size() >= kNone) throw LimitError("a root state must have less than 4 GiB");
  links_[kRoot].flags = kVisible;
  cold_[kRoot].line_length = static_cast<std::uint32_t>(root_state.size());
}

// V + c sqrt((1 + ln N_parent) / (eps + N)); a leaf in flight counts as visits of value 0.
double Tree::uct(NodeId child, double log_parent_visits) const {
  const Stats& stats = stats_[child];
  const double N = static_cast<double>(stats.N) + stats.in_flight;
  const double V = stats.in_flight == 0 ? stats.V : stats.W / N;
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
  grow(text_, std::accumulate(split.texts.begin(), split.texts.end(), std::size_t{0},
                              [](std::size_t sum, const std::string& text) { return sum + text.size(); }));
}

Visit Tree::expand(NodeId leaf, std::uint32_t simulation, const Split& split, const Scores& scores) {
  reserve(split.children.size(), split);
  const auto first_child = static_cast<NodeId>(size());
  const auto first_completion = static_cast<std::uint32_t>(samples_.size());
  Visit visit{0, 0.0};

  for (std::size_t i = 0; i < split.texts.size(); ++i) {
    samples_.push_back({text_.size(), scores.completions[i],
                        static_cast<std::uint32_t>(split.texts[i].size()), leaf,
                        first_child + split.child_of[i]});
    text_ += split.texts[i];
    if (params_.mode != Mode::value) {
      visit.N += 1;
      visit.W += scores.completions[i];
    }
  }
  for (std::size_t i = 0; i < split.children.size(); ++i) {
    const Split::Child& child = split.children[i];
    Stats stats;
    if (params_.mode == Mode::value) {
      stats.V = scores.children[i];
      stats.N = child.count;
      for (std::uint32_t sample = 0; sample < child.count; ++sample) stats.W += stats.V;
      visit.N += stats.N;
      visit.W += stats.W;
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
  return visit;
}

void Tree::prune(NodeId node) {
  std::vector<NodeId> order(links_[node].children);
  std::iota(order.begin(), order.end(), links_[node].first_child);
  std::stable_sort(order.begin(), order.end(), [&](NodeId a, NodeId b) { return stats_[a].V > stats_[b].V; });
  order.resize(std::min<std::size_t>(order.size(), params_.num_decisions));
  for (NodeId child : order) links_[child].flags |= kVisible;
}

void Tree::back_up(NodeId node, Visit visit) {
  for (; node != kNone; node = links_[node].parent) {
    Stats& stats = stats_[node];
    stats.N += visit.N;
    stats.W += visit.W;
    stats.V = stats.W / stats.N;
  }
}

Visit Tree::terminal_visit(NodeId node) const {
  const Stats& stats = stats_[node];
  return {1, stats.N == 0 ? samples_[cold_[node].source].value : stats.V};
}

std::string_view Tree::line(NodeId node) const {
  const Cold& cold = cold_[node];
  const std::uint64_t offset = cold.source == kNone ? 0 : samples_[cold.source].offset;
  return std::string_view(text_).substr(offset, cold.line_length);
}

std::string Tree::state(NodeId node) const {
  std::size_t length = 0;
  for (NodeId up = node; up != kNone; up = links_[up].parent) length += cold_[up].line_length;
  std::string state(length, '\0');
  for (NodeId up = node; up != kNone; up = links_[up].parent) {
    length -= cold_[up].line_length;
    line(up).copy(state.data() + length, cold_[up].line_length);
  }
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
                          terminal(node), expanded(node), (links_[node].flags & kVisible) != 0,
                          std::string(line(node))});
    for (std::uint32_t child = links_[node].children; child-- > 0;) {
      stack.push_back({links_[node].first_child + child, row[node], entry.depth + 1});
    }
  }
  for (NodeId node : order) {
    if (!expanded(node)) continue;
    for (std::uint32_t i = 0; i < params_.k; ++i) {
      const Sample& sample = samples_[cold_[node].first_completion + i];
      view.completions.push_back(
          {row[node], row[sample.child], sample.value, text_.substr(sample.offset, sample.length)});
    }
  }
  return view;
}

std::size_t Tree::nodes_in_flight() const {
  return static_cast<std::size_t>(
      std::count_if(stats_.begin(), stats_.end(), [](const Stats& stats) { return stats.in_flight != 0; }));
}

}  // namespace restrl::search
