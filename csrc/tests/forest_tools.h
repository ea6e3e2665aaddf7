// What the tests of the forest share: answers as plain values, and what holds of every tree.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"
#include "search/dummy.h"
#include "search/forest.h"
#include "search/random.h"

namespace restrl::testing {

using namespace restrl::search;

inline SearchParams make(Mode mode, std::uint32_t simulations, std::uint32_t leaves) {
  SearchParams params = SearchParams::defaults(mode);
  params.simulations = simulations;
  params.leaves_in_flight = leaves;
  params.virtual_loss = LossRule::loss;  // fills a window soonest
  return params;
}

inline bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

inline bool same_tree(const TreeView& a, const TreeView& b) {
  if (a.nodes.size() != b.nodes.size() || a.completions.size() != b.completions.size()) return false;
  for (std::size_t i = 0; i < a.nodes.size(); ++i) {
    const NodeView &x = a.nodes[i], &y = b.nodes[i];
    if (x.parent != y.parent || x.simulation != y.simulation || x.N != y.N || !same_bits(x.W, y.W) ||
        !same_bits(x.V, y.V) || x.terminal != y.terminal || x.expanded != y.expanded ||
        x.visible != y.visible || x.line != y.line) {
      return false;
    }
  }
  for (std::size_t i = 0; i < a.completions.size(); ++i) {
    if (a.completions[i].text != b.completions[i].text || a.completions[i].source != b.completions[i].source)
      return false;
  }
  return true;
}

struct Answer {
  std::optional<std::vector<std::string>> completions;
  std::optional<Scores> scores;
};

// The answers as one batch; either all or none have completions, and scores.
inline void fulfil(Forest& forest, const std::vector<RequestId>& ids, const std::vector<Answer>& answers) {
  std::vector<Sampled> texts;
  std::vector<double> values, child_values;
  std::vector<std::uint32_t> texts_each, values_each, child_values_each;
  for (const Answer& answer : answers) {
    if (answer.completions) {
      for (const std::string& text : *answer.completions) texts.emplace_back(text);
      texts_each.push_back(static_cast<std::uint32_t>(answer.completions->size()));
    }
    if (!answer.scores) continue;
    const Scores& scores = *answer.scores;
    values.insert(values.end(), scores.completions.begin(), scores.completions.end());
    values_each.push_back(static_cast<std::uint32_t>(scores.completions.size()));
    child_values.insert(child_values.end(), scores.children.begin(), scores.children.end());
    child_values_each.push_back(static_cast<std::uint32_t>(scores.children.size()));
  }
  Answers batch;
  if (!texts_each.empty()) batch.completions = {texts, texts_each};
  if (!values_each.empty()) batch.completion_values = {values, values_each};
  if (!values_each.empty()) batch.child_values = {child_values, child_values_each};
  forest.fulfil(ids, batch);
}

// Answers everything, in shuffled pieces: `shuffle` decides the size of a call, its order, and whether an
// answer comes whole or in two parts.
inline void run_shuffled(Forest& forest, std::uint64_t shuffle) {
  std::vector<Request> open;
  std::vector<RequestId> begun;  // completions are there, scores are not
  for (std::uint64_t step = 0;; ++step) {
    const std::uint64_t random = draw(shuffle, step, 0, 0);
    for (const Request& request : forest.next(1 + random % 7)) open.push_back(request);
    if (open.empty()) return;
    const std::size_t pick = (random >> 8) % open.size();
    const Request request = open[pick];
    const std::vector ids{request.id};
    if (std::find(begun.begin(), begun.end(), request.id) == begun.end()) {
      fulfil(forest, ids, {Answer{dummy_texts(1, request), {}}});
      CHECK(forest.expansion(request.id).texts.size() == forest.params().k);
      begun.push_back(request.id);
      if ((random >> 40) % 2 == 0) continue;
    }
    const bool by_children = forest.params().mode == Mode::value;
    fulfil(forest, ids,
           {Answer{{}, dummy_scores(1, request, by_children ? forest.children(request.id) : 0)}});
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(pick));
  }
}

inline void check_at_rest(const Forest& forest, TreeId tree) {
  CHECK(forest.in_flight() == 0);
  CHECK(forest.nodes_in_flight(tree) == 0);
}

// Visits are conserved: a node's N is what its own expansion and what went through its children brought.
inline void check_totals(const Forest& forest, TreeId tree) {
  const TreeStats stats = forest.stats(tree);
  const TreeView view = forest.view(tree);
  const std::uint32_t k = forest.params().k;
  const bool by_value = forest.params().mode == Mode::value;
  CHECK(stats.simulations == stats.expansions + stats.terminal_visits);
  CHECK(stats.completions == stats.expansions * k && stats.completions == view.completions.size());
  CHECK(stats.completions == stats.samples + stats.reused);
  CHECK(stats.reused == 0 || forest.params().reuse);
  CHECK(view.nodes[0].N == (by_value ? stats.completions : stats.samples) + stats.terminal_visits);
  std::vector<std::uint32_t> reused(view.nodes.size());
  for (const CompletionView& sample : view.completions) {
    if (sample.source == kNone) continue;
    ++reused[sample.node];
    CHECK(view.completions[sample.source].child == sample.node);
    CHECK(view.completions[sample.source].value == sample.value);
  }
  std::vector<std::uint64_t> below(view.nodes.size());
  for (std::size_t i = view.nodes.size(); i-- > 1;) {
    below[view.nodes[i].parent] += view.nodes[i].N - (by_value ? 0 : reused[i]);
  }
  for (std::size_t i = 0; i < view.nodes.size(); ++i) {
    if (!view.nodes[i].expanded) continue;
    if (by_value) {
      const bool root = i == 0;
      CHECK(root ? view.nodes[i].N == below[i] : view.nodes[i].N > below[i]);
    } else {
      CHECK(view.nodes[i].N == below[i] + k);
    }
  }
}

// What a Python str is in the bindings: somebody else's text, held until it is given back.
struct Held {
  std::string text;
  static inline std::atomic<long> alive = 0;
  explicit Held(std::string given) : text(std::move(given)) { ++alive; }
  Held(const Held&) = delete;
  ~Held() { --alive; }
};

inline void give_back(Forest& forest) {
  for (void* owner : forest.take_dropped()) delete static_cast<Held*>(owner);
}

inline std::vector<Sampled> held(Forest& forest, std::vector<std::string> texts) {
  forest.expect_owners(texts.size());
  std::vector<Sampled> completions;
  for (std::string& text : texts) {
    auto* owner = new Held(std::move(text));
    completions.emplace_back(owner->text, owner);
  }
  return completions;
}

// A splitter: a step is two lines.
inline std::size_t two_lines(std::string_view text) {
  const std::size_t line = text.find('\n') + 1;
  const std::size_t second = text.find('\n', line);
  return second == std::string_view::npos ? text.size() : second + 1;
}

// Parameters of every kind.
inline SearchParams scenario(std::uint64_t number) {
  SearchParams params =
      SearchParams::defaults(std::array{Mode::collect, Mode::value, Mode::outcome}[number % 3]);
  params.simulations = 40;
  params.leaves_in_flight = std::array{4u, 1u, 16u}[number / 3 % 3];
  params.reuse = number % 2 == 0;
  params.virtual_loss = number / 2 % 2 == 0 ? LossRule::loss : LossRule::unobserved;
  params.in_order = number % 5 != 4;
  params.max_samples = number % 7 == 6 ? 90 : 0;
  if (number % 4 == 3) params.step_ends = {"\n", "= "};
  return params;
}

}  // namespace restrl::testing
