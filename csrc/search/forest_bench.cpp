#include "search/forest_bench.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <ctime>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "search/dummy.h"
#include "search/forest.h"
#include "search/random.h"

namespace restrl::search {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double cpu_now() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class Bench {
 public:
  explicit Bench(const ForestTask& task) : task_(task), forest_(task.params, task.seed) {
    for (std::uint32_t i = 0; i < task.trees; ++i) forest_.add("tree " + std::to_string(i), "def f():\n");
    const std::string rest(task.text_bytes, '#');
    for (std::uint32_t row = 0; row < kRows; ++row) {
      for (std::uint32_t i = 0; i < task.params.k; ++i) {
        strings_.push_back("x = " + std::to_string(row) + " + " + std::to_string(i) + "\ny = x" + rest);
      }
    }
    void* nobody = task.copied ? nullptr : &forest_;  // owns what outlives the forest
    for (const std::string& text : strings_) texts_.emplace_back(text, nobody);
  }

  ForestResult run() {
    ForestResult result;
    const double cpu = cpu_now();
    result.seconds = grow();
    result.cpu_seconds = cpu_now() - cpu;
    for (TreeId tree = 0; tree < task_.trees; ++tree) {
      const TreeStats stats = forest_.stats(tree);
      result.simulations += stats.simulations;
      result.collisions += stats.collisions;
      result.nodes += stats.nodes;
    }
    rounds(result);
    return result;
  }

 private:
  static constexpr std::uint32_t kRows = 1024;

  struct Batch {
    std::vector<Request> requests;
    std::vector<RequestId> ids;
    std::vector<Sampled> texts;
    std::vector<double> values;
    std::vector<double> child_values;
    std::vector<std::string> made;
  };

  void answer(Batch& batch) {
    batch.ids.clear();
    batch.texts.clear();
    batch.values.clear();
    batch.made.clear();
    const std::uint32_t k = task_.params.k;
    if (!task_.prepared) batch.made.reserve(batch.requests.size() * k);
    for (const Request& request : batch.requests) {
      batch.ids.push_back(request.id);
      const std::uint64_t bits = draw(task_.seed, request.tree, request.simulation, 3);
      if (task_.prepared) {
        const auto row = texts_.begin() + static_cast<std::ptrdiff_t>(bits % kRows * k);
        batch.texts.insert(batch.texts.end(), row, row + request.k);
      } else {
        for (std::string& text : dummy_texts(task_.seed, request, 0)) batch.made.push_back(std::move(text));
      }
      for (std::uint32_t i = 0; i < request.k; ++i) {
        batch.values.push_back(static_cast<double>(bits >> (i + 10) % 64 & 1));
      }
    }
    for (const std::string& text : batch.made) batch.texts.emplace_back(text);
    Answers answers;
    answers.completions = Flat<Sampled>{batch.texts};
    if (task_.prepared && !task_.copied) forest_.expect_owners(batch.texts.size());
    if (task_.params.mode == Mode::value) {
      forest_.fulfil(batch.ids, answers);
      answers.completions.reset();
      std::size_t children = 0;
      for (const RequestId id : batch.ids) children += forest_.children(id);
      batch.child_values.assign(children, 0.5);
      answers.child_values = Flat<double>{batch.child_values};
    }
    answers.completion_values = Flat<double>{batch.values};
    forest_.fulfil(batch.ids, answers);
  }

  // As many requests as the rounds leave over.
  double grow() {
    const std::uint64_t all = std::uint64_t{task_.trees} * task_.params.simulations;
    const std::uint64_t kept = std::uint64_t{task_.rounds + 1} * task_.trees * task_.params.leaves_in_flight;
    const std::uint64_t goal =
        task_.rounds == 0 ? std::numeric_limits<std::uint64_t>::max() : all - std::min(all, kept);
    std::atomic<std::uint64_t> answered = 0;
    Clock::time_point start;
    std::barrier gate(task_.threads, [&]() noexcept { start = Clock::now(); });
    const auto work = [&] {
      Batch batch;
      gate.arrive_and_wait();
      while (answered.load(std::memory_order_relaxed) < goal) {
        batch.requests.clear();
        forest_.next(task_.batch, batch.requests, nullptr);
        if (batch.requests.empty()) {
          if (forest_.in_flight() == 0) break;
          std::this_thread::yield();  // another thread holds the requests that everything waits for
          continue;
        }
        answer(batch);
        answered.fetch_add(batch.requests.size(), std::memory_order_relaxed);
      }
    };
    std::vector<std::thread> workers;
    for (std::uint32_t i = 1; i < task_.threads; ++i) workers.emplace_back(work);
    work();
    for (std::thread& worker : workers) worker.join();
    return seconds_since(start);
  }

  void rounds(ForestResult& result) {
    Batch batch;
    for (std::uint32_t i = 0; i < task_.rounds; ++i) {
      batch.requests.clear();
      const double start = cpu_now();
      forest_.next(std::numeric_limits<std::size_t>::max(), batch.requests, nullptr);
      const double next = cpu_now() - start;
      answer(batch);
      const double round = cpu_now() - start;
      if (i > 0 && round > result.round_cpu_seconds) continue;
      result.next_cpu_seconds = next;
      result.round_cpu_seconds = round;
      result.round_requests = batch.requests.size();
    }
  }

  const ForestTask task_;
  Forest forest_;
  std::vector<std::string> strings_;
  std::vector<Sampled> texts_;
};

}  // namespace

ForestResult run_forest(const ForestTask& task) { return Bench(task).run(); }

}  // namespace restrl::search
