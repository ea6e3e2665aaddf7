#include "search/synthetic.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <ctime>
#include <memory>
#include <thread>
#include <vector>

#include "search/errors.h"
#include "search/random.h"
#include "search/tree.h"

namespace restrl::search {
namespace {

using Clock = std::chrono::steady_clock;

// Wall seconds, and CPU seconds of the whole process.
struct Seconds {
  double wall;
  double cpu;
};

class Watch {
 public:
  void restart() noexcept { *this = Watch(); }
  Seconds elapsed() const {
    return {std::chrono::duration<double>(Clock::now() - wall_).count(),
            static_cast<double>(std::clock() - cpu_) / CLOCKS_PER_SEC};
  }

 private:
  Clock::time_point wall_ = Clock::now();
  std::clock_t cpu_ = std::clock();
};

// One tree and its leaves in flight.
class Synthetic {
 public:
  Synthetic(const SyntheticTask& task, std::uint32_t number)
      : task_(task),
        number_(number),
        tree_(task.params, task.seed, number, "", task.scalar ? kScalarWalks : best_walks()) {
    window_.reserve(task.params.leaves_in_flight);
  }

  const Tree& tree() const { return tree_; }

  void grow() {
    while (applied_ < task_.params.simulations) {
      gather(std::min(task_.params.leaves_in_flight, task_.params.simulations - applied_));
      apply();
    }
  }

  void gather(std::uint32_t leaves) {
    const std::uint32_t k = task_.params.k;
    while (window_.size() < leaves) {
      std::uint32_t depth = 0;
      const auto number = applied_ + static_cast<std::uint32_t>(window_.size());
      const NodeId node = tree_.select(number, &depth);
      const bool terminal = tree_.terminal(node);
      if (!terminal && tree_.in_flight(node) > 0) {
        ++result.collisions;
        return;
      }
      const std::uint32_t visits = terminal ? 1 : k;
      window_.push_back({number, node, depth, terminal, VirtualLoss(tree_, node, visits, visits)});
      depths += depth;
    }
  }

  void apply() {
    for (Leaf& leaf : window_) {
      Visits visits;
      if (leaf.terminal) {
        const Visit visit = tree_.terminal_visit(leaf.node);
        visits = {visit, visit};
        ++result.terminal_visits;
      } else {
        visits = expand(leaf);
      }
      tree_.back_up(leaf.node, visits.own, visits.path, std::move(leaf.loss));
    }
    applied_ += static_cast<std::uint32_t>(window_.size());
    window_.clear();
  }

  // Three steps towards a cold tree's turn: what the next two need, what gather() needs, what apply() needs.
  void fetch() const {
    const char* const begin = reinterpret_cast<const char*>(this);
    for (std::size_t at = 0; at < sizeof *this; at += 64) __builtin_prefetch(begin + at, 1);
  }
  void fetch_top() const {
    tree_.fetch_top(task_.params.leaves_in_flight);
    if (window_.capacity() > 0) __builtin_prefetch(window_.data(), 1);
  }
  void fetch_leaves() const {
    for (const Leaf& leaf : window_) tree_.prefetch(leaf.node);
  }

  std::uint32_t applied() const { return applied_; }
  std::uint64_t depths = 0;
  SyntheticResult result;

 private:
  struct Leaf {
    std::uint32_t number;
    NodeId node;
    std::uint32_t depth;
    bool terminal;
    VirtualLoss loss;
  };

  // What a policy and an evaluator would say; kept by thread, as it is the same for all trees but for the
  // values.
  struct Answer {
    Split split;
    std::vector<double> values;
  };

  Visits expand(const Leaf& leaf) {
    thread_local Answer answer;
    const std::uint32_t k = task_.params.k;
    if (answer.values.size() != k) {
      answer.values.resize(k);
      answer.split = {};
      answer.split.texts.resize(k);
      answer.split.steps.assign(k, 1);
      for (std::uint32_t i = 0; i < k; ++i) {
        answer.split.child_of.push_back(i);
        answer.split.children.push_back({i, 1, 1, false});
      }
    }
    std::uint64_t bits = mix(task_.seed ^ mix(std::uint64_t{number_} << 32 | leaf.number));
    for (std::uint32_t i = 0; i < k; ++i) {
      answer.values[i] = static_cast<double>(bits & 1);
      bits = i % 63 == 62 ? mix(bits + i) : bits >> 1;
    }
    for (Split::Child& child : answer.split.children) child.terminal = leaf.depth >= task_.depth;
    return tree_.expand(leaf.node, leaf.number, answer.split, answer.values, answer.values);
  }

  const SyntheticTask& task_;
  const std::uint32_t number_;
  std::uint32_t applied_ = 0;
  Tree tree_;
  std::vector<Leaf> window_;  // dies before its tree
};

// Runs work(thread) on every thread at once; the seconds until the last is done.
template <typename Work>
Seconds timed(std::uint32_t threads, const Work& work) {
  if (threads == 1) {
    const Watch watch;
    work(0U);
    return watch.elapsed();
  }
  Watch watch;
  std::barrier ready(threads, [&]() noexcept { watch.restart(); });  // before any of them goes on
  std::vector<std::thread> workers;
  for (std::uint32_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      ready.arrive_and_wait();
      work(t);
    });
  }
  for (std::thread& worker : workers) worker.join();
  return watch.elapsed();
}

}  // namespace

SyntheticResult run_synthetic(const SyntheticTask& task) {
  task.params.validate();
  if (task.trees == 0 || task.threads == 0) throw ParamError("a synthetic search needs a tree and a thread");
  std::vector<std::unique_ptr<Synthetic>> trees(task.trees);
  const auto each = [&](const auto& work) {
    return [&, work](std::uint32_t thread) {
      for (std::uint32_t i = thread; i < task.trees; i += task.threads) work(i);
    };
  };
  SyntheticResult result;
  const Seconds growth = timed(task.threads, each([&](std::uint32_t i) {
                                 trees[i] = std::make_unique<Synthetic>(task, i);
                                 trees[i]->grow();
                               }));
  result.seconds = growth.wall;
  result.cpu_seconds = growth.cpu;
  result.walks = (task.scalar ? kScalarWalks : best_walks()).name;
  std::uint64_t depths = 0;
  for (const auto& one : trees) {
    result.simulations += one->applied();
    result.terminal_visits += one->result.terminal_visits;
    result.collisions += one->result.collisions;
    result.nodes += one->tree().size();
    result.bytes += one->tree().bytes();
    depths += one->depths;
  }
  result.mean_depth = static_cast<double>(depths) / static_cast<double>(result.simulations);

  // The tree that is `ahead` turns of this thread away, if there is one.
  const auto later = [&](std::uint32_t i, std::uint32_t ahead, const auto& fetch) {
    const std::uint64_t at = i + std::uint64_t{ahead} * task.threads;
    if (at < task.trees) fetch(*trees[at]);
  };
  const auto gather = each([&](std::uint32_t i) {
    later(i, 3, [](const Synthetic& one) { one.fetch(); });
    later(i, 1, [](const Synthetic& one) { one.fetch_top(); });
    trees[i]->gather(task.params.leaves_in_flight);
  });
  const auto apply = each([&](std::uint32_t i) {
    later(i, 3, [](const Synthetic& one) { one.fetch(); });
    later(i, 2, [](const Synthetic& one) { one.fetch_top(); });
    later(i, 1, [](const Synthetic& one) { one.fetch_leaves(); });
    trees[i]->apply();
  });
  for (std::uint32_t round = 0; round < task.rounds; ++round) {
    const Seconds gathered = timed(task.threads, gather);
    const Seconds applied = timed(task.threads, apply);
    const auto keep_least = [&](double& least, double seconds) {
      if (round == 0 || seconds < least) least = seconds;
    };
    keep_least(result.gather_seconds, gathered.wall);
    keep_least(result.gather_cpu_seconds, gathered.cpu);
    keep_least(result.round_seconds, gathered.wall + applied.wall);
    keep_least(result.round_cpu_seconds, gathered.cpu + applied.cpu);
  }
  for (const auto& one : trees) result.round_simulations += one->applied();
  result.round_simulations -= result.simulations;
  return result;
}

}  // namespace restrl::search
