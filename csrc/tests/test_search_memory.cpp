// Memory that runs out at any moment leaves nothing behind.
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "forest_tools.h"
#include "search/dummy.h"
#include "search/forest.h"

using namespace restrl::search;
using namespace restrl::testing;

namespace {

thread_local long allocations_left = -1;  // the last of them fails; -1: none does

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t size) {
  if (allocations_left > 0) --allocations_left;
  void* block = allocations_left == 0 ? nullptr : std::malloc(size);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
[[gnu::noinline]] void operator delete(void* block) noexcept { std::free(block); }
[[gnu::noinline]] void operator delete(void* block, std::size_t) noexcept { std::free(block); }

namespace {

// Every allocation of a search fails in turn: each failure reaches the caller, nothing stays in flight, every
// text is given back, and the trees still grow to their end.
void test_memory_runs_out(std::uint64_t number) {
  SearchParams params = scenario(number);
  params.simulations = 12;
  const Splitter splitter = number % 2 == 0 ? Splitter(two_lines) : Splitter();
  long failures = 0;
  for (long nth = 1, in_a_row = 0; in_a_row < 3; ++nth) {
    bool failed = false;
    {
      Forest forest(params, number, splitter);
      const TreeId tree = forest.add("key", "root\n");
      const bool by_value = params.mode == Mode::value;
      allocations_left = nth;
      std::vector<Request> requests;
      for (int tries = 0; tries < 400; ++tries) {
        const long before = allocations_left;
        try {
          forest.next(5, requests, nullptr);
          if (requests.empty() && forest.in_flight() == 0) break;
          while (!requests.empty()) {
            // One after the other or all together, so that others of the call follow the one that fails.
            const std::size_t together = number < 3 ? 1 : requests.size();
            const std::vector<Request> some(requests.end() - static_cast<std::ptrdiff_t>(together),
                                            requests.end());
            requests.resize(requests.size() - together);
            std::vector<RequestId> ids;
            std::vector<std::string> texts;
            for (const Request& request : some) {
              ids.push_back(request.id);
              for (std::string& text : dummy_texts(1, request, 8)) texts.push_back(std::move(text));
            }
            allocations_left = -1;
            const std::vector<Sampled> completions = held(forest, std::move(texts));
            allocations_left = before;
            forest.fulfil(ids, {Flat<Sampled>{completions}, {}, {}});
            Scores scores;
            for (const Request& request : some) {
              const Scores one = dummy_scores(1, request, by_value ? forest.children(request.id) : 0);
              scores.completions.insert(scores.completions.end(), one.completions.begin(),
                                        one.completions.end());
              scores.children.insert(scores.children.end(), one.children.begin(), one.children.end());
            }
            forest.fulfil(ids, {{}, Flat<double>{scores.completions}, Flat<double>{scores.children}});
          }
        } catch (const std::bad_alloc&) {
          failed = true;
          allocations_left = -1;
          forest.cancel_all();
          CHECK(forest.in_flight() == 0 && forest.nodes_in_flight(tree) == 0);
          requests.clear();
        }
      }
      allocations_left = -1;
      check_at_rest(forest, tree);
      check_totals(forest, tree);
      CHECK(forest.stats(tree).simulations == params.simulations || params.max_samples != 0);
      CHECK(forest.take_finished().size() == 1);
      forest.clear();
      give_back(forest);
    }
    CHECK(Held::alive == 0);
    failures += failed;
    in_a_row = failed ? 0 : in_a_row + 1;
  }
  CHECK(failures > 10);
}

}  // namespace

int main() {
  for (std::uint64_t number = 0; number < 6; ++number) test_memory_runs_out(number);
  return result();
}
