// One forest under everything at once, for the sanitizers too: several threads that ask, answer in parts and
// out of order, answer wrongly, cancel, add and remove trees and look on; then everything must be at rest,
// every text given back once, and memory that runs out must leave nothing behind.
#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "forest_tools.h"
#include "search/dummy.h"
#include "search/errors.h"
#include "search/forest.h"
#include "search/random.h"

using namespace restrl::search;
using namespace restrl::testing;

namespace {

struct Shared {
  Forest& forest;
  const bool splits;
  std::array<std::atomic<RequestId>, 16> seen{};  // by any thread
  std::atomic<std::uint64_t> keys = 0;
};

class Worker {
 public:
  Worker(Shared& shared, std::uint64_t number) : shared_(shared), forest_(shared.forest), number_(number) {}

  void run(std::uint64_t steps) {
    for (std::uint64_t step = 0; step < steps; ++step) {
      bits_ = draw(17, number_, step, 0);
      try {
        act(choose(20));
      } catch (const RequestError&) {
        // somebody else was quicker: cancelled, removed, answered or is answering
      }
      give_back(forest_);
    }
  }

 private:
  std::uint64_t choose(std::uint64_t among) {
    bits_ = mix(bits_);
    return bits_ % among;
  }

  void act(std::uint64_t action) {
    if (action < 5) {
      for (const Request& request : forest_.next(1 + choose(12))) {
        open_.push_back(request);
        shared_.seen[choose(shared_.seen.size())] = request.id;
      }
    } else if (action < 14) {
      answer();
    } else if (action == 14) {
      if (!open_.empty()) forest_.cancel(std::vector{take().id});
    } else if (action == 15) {
      if (choose(2) == 0) forest_.add("key " + std::to_string(++shared_.keys), "root\n");
      for (const TreeId tree : forest_.take_finished()) finish(tree);
    } else if (action == 16) {
      const TreeId tree = static_cast<TreeId>(choose(8));
      CHECK(!forest_.view(tree).nodes.empty());
      CHECK(forest_.stats(tree).in_flight <= forest_.params().leaves_in_flight);
    } else if (action == 17) {
      look_on(shared_.seen[choose(shared_.seen.size())]);
    } else if (action == 18) {
      answer_wrongly();
    } else if (choose(25) == 0) {
      forest_.cancel_all();
    }
  }

  Request take() {
    const std::size_t pick = choose(open_.size());
    const Request request = open_[pick];
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(pick));
    return request;
  }

  // Completions, then scores; now and then both at once, or a cancel or somebody's look between them.
  void answer() {
    if (open_.empty()) return;
    const Request request = take();
    const std::vector ids{request.id};
    std::vector<std::string> texts = dummy_texts(number_, request, 8);
    std::vector<Sampled> completions(texts.begin(), texts.end());
    if (shared_.splits || choose(2) == 0) completions = held(forest_, texts);
    Answers answers;
    answers.completions = Flat<Sampled>{completions};
    const Scores scores = dummy_scores(number_, request, 0);
    answers.completion_values = Flat<double>{scores.completions};
    const bool by_value = forest_.params().mode == Mode::value;
    if (!by_value && choose(3) == 0) {
      forest_.fulfil(ids, answers);
      return;
    }
    answers.completion_values.reset();
    forest_.fulfil(ids, answers);
    look_on(request.id);
    if (choose(10) == 0) {
      forest_.cancel(ids);
      return;
    }
    const Scores all = dummy_scores(number_, request, by_value ? forest_.children(request.id) : 0);
    answers = {};
    answers.completion_values = Flat<double>{all.completions};
    answers.child_values = Flat<double>{all.children};
    forest_.fulfil(ids, answers);
  }

  void answer_wrongly() {
    if (open_.empty()) return;
    const std::vector ids{open_[0].id};
    const std::vector<Sampled> completions = held(forest_, std::vector<std::string>(open_[0].k + 1, "x\ny"));
    Answers answers;
    answers.completions = Flat<Sampled>{completions};
    CHECK_THROWS(Error, "request", forest_.fulfil(ids, answers));
    if (!shared_.splits || open_[0].k == 0) return;
    const std::vector<Sampled> broken = held(forest_, std::vector<std::string>(open_[0].k, "a\nthrow"));
    answers.completions = Flat<Sampled>{broken};
    try {
      forest_.fulfil(ids, answers);
      CHECK(false);
    } catch (const std::runtime_error&) {
    }
  }

  void look_on(RequestId id) {
    try {
      CHECK(forest_.expansion(id).texts.size() == forest_.params().k);
    } catch (const AnswerError&) {
      // no completions yet
    }
  }

  void finish(TreeId tree) {
    check_totals(forest_, tree);
    CHECK(forest_.nodes_in_flight(tree) == 0);
    if (choose(2) == 0) forest_.remove(tree);
  }

  Shared& shared_;
  Forest& forest_;
  const std::uint64_t number_;
  std::uint64_t bits_ = 0;
  std::vector<Request> open_;
};

void test_everything_at_once(std::uint64_t number) {
  const bool splits = number % 6 >= 4;
  const Splitter splitter = [](std::string_view text) {
    if (text.find("throw") != std::string_view::npos) throw std::runtime_error("no step");
    return two_lines(text);
  };
  Forest forest(scenario(number), number, splits ? splitter : Splitter());
  Shared shared{forest, splits};
  for (int i = 0; i < 6; ++i) forest.add("key " + std::to_string(++shared.keys), "root\n");
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&shared, i, number] { Worker(shared, 4 * number + i).run(1000); });
  }
  for (std::thread& thread : threads) thread.join();
  forest.cancel_all();
  give_back(forest);
  CHECK(forest.in_flight() == 0);
  std::uint64_t grown = 0;
  for (TreeId tree = 0; tree < 4000; ++tree) {
    try {
      const TreeStats stats = forest.stats(tree);
      CHECK(stats.in_flight == 0 && forest.nodes_in_flight(tree) == 0);
      if (stats.expansions > 0) check_totals(forest, tree);
      grown += stats.expansions;
    } catch (const RequestError&) {
      // removed, or never added
    }
  }
  CHECK(grown > 0);
  forest.clear();
  give_back(forest);
  CHECK(Held::alive == 0);
}

}  // namespace

int main() {
  for (std::uint64_t number = 0; number < 18; ++number) test_everything_at_once(number);
  return result();
}
