// Requests in flight: order, partial answers, cancels, errors, threads.
#include <limits>
#include <memory>
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

void test_arrival_order_does_not_matter(Mode mode) {
  for (std::uint32_t leaves : {1u, 3u, 8u}) {
    TreeView expected;
    std::uint32_t collisions = 0;
    for (std::uint64_t shuffle = 0; shuffle < 6; ++shuffle) {
      Forest forest(make(mode, 60, leaves), 3);
      const TreeId tree = forest.add("a", "root\n");
      forest.add("b", "other\n");
      run_shuffled(forest, shuffle);
      CHECK(forest.take_finished().size() == 2 && forest.stats(tree).simulations == 60);
      check_at_rest(forest, tree);
      check_totals(forest, tree);
      if (shuffle == 0) {
        expected = forest.view(tree);
        collisions = forest.stats(tree).collisions;
      }
      CHECK(forest.stats(tree).collisions == collisions);
      CHECK(same_tree(forest.view(tree), expected));
    }
  }
}

void test_arrival_order_may_be_free() {
  SearchParams params = make(Mode::collect, 60, 8);
  params.in_order = false;
  Forest forest(params, 3);
  const TreeId tree = forest.add("a", "");
  run_shuffled(forest, 5);
  CHECK(forest.stats(tree).simulations == 60);
  check_at_rest(forest, tree);
  check_totals(forest, tree);
}

void test_window() {
  Forest forest(make(Mode::collect, 10, 4), 0);
  const TreeId tree = forest.add("a", "");
  const auto first = forest.next(100);
  CHECK(first.size() == 1);  // the root is in flight: everything else collides with it
  CHECK(forest.stats(tree).collisions == 1);
  CHECK(forest.next(100).empty());
  fulfil(forest, std::vector{first[0].id},
         {Answer{{{"a\nx", "b\nx", "c\nx", "d\nx", "e\nx"}}, Scores{{0, 0, 0, 0, 0}, {}}}});
  const auto second = forest.next(2);
  const auto third = forest.next(100);
  CHECK(second.size() == 2 && third.size() == 1);  // three visible children, then a collision
  CHECK(forest.stats(tree).in_flight == 3 && forest.stats(tree).collisions == 2);
  // A later answer waits for the earlier ones.
  const Answer terminal{{{"x", "x", "x", "x", "x"}}, Scores{{1, 1, 1, 1, 1}, {}}};
  fulfil(forest, std::vector{third[0].id}, {terminal});
  CHECK(forest.stats(tree).simulations == 1 && forest.next(100).empty());
  fulfil(forest, std::vector{second[0].id}, {terminal});
  CHECK(forest.stats(tree).simulations >= 2);
}

void test_terminal_only_tree_ends() {
  for (Mode mode : {Mode::collect, Mode::value, Mode::outcome}) {
    Forest forest(make(mode, 1000, 4), 0);
    const TreeId tree = forest.add("a", "");
    const auto requests = forest.next(10);
    const Scores scores{{1, 1, 0, 0, 0},
                        mode == Mode::value ? std::vector<double>{1, 0.5} : std::vector<double>{}};
    fulfil(forest, std::vector{requests[0].id}, {Answer{{{"x", "x", "y", "y", "y"}}, scores}});
    CHECK(forest.next(10).empty());
    const TreeStats stats = forest.stats(tree);
    CHECK(stats.simulations == 1000 && stats.expansions == 1 && stats.terminal_visits == 999);
    check_at_rest(forest, tree);
    check_totals(forest, tree);
  }
}

void test_max_samples() {
  SearchParams params = make(Mode::collect, 1000, 3);
  params.max_samples = 36;  // of 5 each: one is left over
  Forest forest(params, 0);
  const TreeId tree = forest.add("a", "");
  CHECK(run_dummy(forest, 1, 16) == 7);
  CHECK(forest.stats(tree).expansions == 7);
  check_at_rest(forest, tree);
}

void test_cancel() {
  // Cancelled requests leave nothing behind, and the tree goes on to its end.
  Forest forest(make(Mode::value, 40, 4), 0);
  const TreeId tree = forest.add("a", "");
  forest.cancel(std::vector{forest.next(1)[0].id});
  check_at_rest(forest, tree);
  const Request root = forest.next(1)[0];
  CHECK(root.simulation == 1);  // numbers are not used twice
  answer_dummy(forest, 0, std::vector{root});
  const TreeView before = forest.view(tree);
  const auto handed = forest.next(1);
  CHECK(handed.size() == 1 && forest.stats(tree).in_flight > 1);  // some are not even handed out
  fulfil(forest, std::vector{handed[0].id}, {Answer{{{"a", "b", "c", "d", "e"}}, {}}});
  forest.cancel_all();
  check_at_rest(forest, tree);
  CHECK(same_tree(before, forest.view(tree)));
  CHECK_THROWS(RequestError, "not open", forest.cancel(std::vector{handed[0].id}));
  run_dummy(forest, 0, 3);
  CHECK(forest.stats(tree).simulations == 40 && forest.take_finished().size() == 1);
  check_totals(forest, tree);
  check_at_rest(forest, tree);

  Forest mixed(make(Mode::collect, 50, 6), 0);
  const TreeId other = mixed.add("b", "");
  std::uint64_t step = 0;
  for (auto requests = mixed.next(3); !requests.empty(); requests = mixed.next(3)) {
    for (const Request& request : requests) {
      if (draw(9, ++step, 0, 0) % 3 == 0) {
        mixed.cancel(std::vector{request.id});
      } else {
        answer_dummy(mixed, 0, std::vector{request});
      }
    }
  }
  CHECK(mixed.stats(other).simulations == 50 && mixed.take_finished().size() == 1);
  check_at_rest(mixed, other);
  check_totals(mixed, other);
}

void test_errors_change_nothing() {
  Forest forest(make(Mode::value, 10, 2), 0);
  const TreeId tree = forest.add("a", "");
  const RequestId id = forest.next(1)[0].id;
  const std::vector ids{id};
  const std::vector<std::string> texts{"a\nb", "a\nb", "c", "c", "d"};
  CHECK_THROWS(RequestError, "not open", fulfil(forest, std::vector{id + 1}, {Answer{texts, {}}}));
  CHECK_THROWS(RequestError, "twice",
               fulfil(forest, std::vector{id, id}, {Answer{texts, {}}, Answer{texts, {}}}));
  CHECK_THROWS(AnswerError, "2 lists of completions",
               fulfil(forest, ids, {Answer{texts, {}}, Answer{texts, {}}}));
  CHECK_THROWS(AnswerError, "needs 5 completions, not 1", fulfil(forest, ids, {Answer{{{"a"}}, {}}}));
  CHECK_THROWS(AnswerError, "before its completions", fulfil(forest, ids, {Answer{{}, Scores{}}}));
  CHECK_THROWS(AnswerError, "neither completions nor scores", fulfil(forest, ids, {Answer{}}));
  CHECK_THROWS(AnswerError, "no completions yet", forest.expansion(id));
  fulfil(forest, ids, {Answer{texts, {}}});
  CHECK_THROWS(AnswerError, "neither completions nor scores", fulfil(forest, ids, {Answer{}}));
  CHECK_THROWS(AnswerError, "already", fulfil(forest, ids, {Answer{texts, {}}}));
  CHECK_THROWS(AnswerError, "needs 5 completion values, not 2",
               fulfil(forest, ids, {Answer{{}, Scores{{1, 1}, {}}}}));
  CHECK_THROWS(AnswerError, "needs 3 child values, not 0",
               fulfil(forest, ids, {Answer{{}, Scores{{1, 1, 1, 1, 1}, {}}}}));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS(AnswerError, "not finite",
               fulfil(forest, ids, {Answer{{}, Scores{{1, 1, 1, 1, nan}, {1, 1, 1}}}}));
  CHECK_THROWS(AnswerError, "beyond 1e200: 1e+201",
               fulfil(forest, ids, {Answer{{}, Scores{{1, 1, 1, 1, 1e201}, {1, 1, 1}}}}));
  CHECK(forest.stats(tree).simulations == 0 && forest.in_flight() == 1);
  CHECK_THROWS(RequestError, "1 simulations under way", forest.remove(tree));
  fulfil(forest, ids, {Answer{{}, Scores{{1, 1, 1, 1, 1}, {1, 1, 1}}}});
  CHECK(forest.stats(tree).expansions == 1 && forest.view(tree).nodes[0].V == 1);
  CHECK_THROWS(RequestError, "not open", forest.state(id));
  CHECK_THROWS(RequestError, "no tree 7", forest.view(7));
  forest.cancel_all();
  forest.remove(tree);
  CHECK_THROWS(RequestError, "no tree 0", forest.stats(tree));
  CHECK(forest.next(5).empty());
}

// Four threads on one forest grow what one thread grows.
void test_threads(Mode mode) {
  constexpr int kTrees = 12;
  const auto grow = [&](int threads) {
    Forest forest(make(mode, 80, 4), 11);
    for (int i = 0; i < kTrees; ++i) forest.add("tree " + std::to_string(i), "root\n");
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back([&forest, i] { run_dummy(forest, 5, 1 + 3 * i); });
    workers.emplace_back([&] {  // somebody looks on
      for (int i = 0; i < 50; ++i) CHECK(!forest.view(i % kTrees).nodes.empty());
    });
    for (std::thread& worker : workers) worker.join();
    CHECK(forest.take_finished().size() == kTrees);
    std::vector<TreeView> views;
    for (TreeId tree = 0; tree < kTrees; ++tree) {
      check_at_rest(forest, tree);
      check_totals(forest, tree);
      views.push_back(forest.view(tree));
    }
    return views;
  };
  const auto serial = grow(1);
  const auto parallel = grow(4);
  for (int i = 0; i < kTrees; ++i) CHECK(same_tree(serial[i], parallel[i]));
}

// Threads that share one tree, whoever applies whose answers, grow what one thread grows; somebody who looks
// on gets his turn.
void test_threads_on_one_tree(Mode mode, LossRule rule) {
  const auto grow = [&](int threads) {
    SearchParams params = make(mode, 600, 24);
    params.virtual_loss = rule;
    Forest forest(params, 11);
    const TreeId tree = forest.add("a", "root\n");
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i)
      workers.emplace_back([&forest, i] { run_dummy(forest, 5, 1 + 2 * i, 40); });
    workers.emplace_back([&] {
      for (int i = 0; i < 30; ++i) {
        const TreeStats stats = forest.stats(tree);
        CHECK(stats.simulations == stats.expansions + stats.terminal_visits);
        CHECK(stats.in_flight <= params.leaves_in_flight && !forest.view(tree).nodes.empty());
      }
    });
    for (std::thread& worker : workers) worker.join();
    CHECK(forest.take_finished().size() == 1 && forest.stats(tree).simulations == 600);
    check_at_rest(forest, tree);
    check_totals(forest, tree);
    return forest.view(tree);
  };
  const TreeView serial = grow(1);
  for (int threads : {2, 4}) CHECK(same_tree(serial, grow(threads)));
}

// An answer that is handed over while another thread is about to leave is applied all the same: the last
// answers of many short searches by threads that keep in step. Lost ones would leave it waiting for ever.
void test_no_answer_is_lost() {
  for (std::uint64_t round = 0; round < 150; ++round) {
    Forest forest(make(Mode::collect, 12, 6), round);
    const TreeId tree = forest.add("a", "root\n");
    std::vector<std::thread> workers;
    for (int i = 0; i < 3; ++i) workers.emplace_back([&] { run_dummy(forest, round, 2, 0); });
    for (std::thread& worker : workers) worker.join();
    CHECK(forest.stats(tree).simulations == 12);
    check_at_rest(forest, tree);
  }
}

// So many trees that each is cold when its turn comes, answered all at once or by three threads, grow as they
// do one answer at a time.
void test_a_crowd(Mode mode) {
  constexpr TreeId kTrees = 120;
  const auto grow = [&](std::size_t batch, int threads) {
    auto forest = std::make_unique<Forest>(make(mode, 60, 16), 4);
    for (TreeId tree = 0; tree < kTrees; ++tree) forest->add("tree " + std::to_string(tree), "root\n");
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back([&] { run_dummy(*forest, 6, batch, 0); });
    for (std::thread& worker : workers) worker.join();
    return forest;
  };
  const auto one_by_one = grow(1, 1);
  for (int threads : {1, 3}) {
    const auto at_once = grow(threads == 1 ? std::numeric_limits<std::size_t>::max() : 640, threads);
    for (TreeId tree = 0; tree < kTrees; ++tree) {
      CHECK(at_once->stats(tree).simulations == 60);
      check_at_rest(*at_once, tree);
      CHECK(same_tree(at_once->view(tree), one_by_one->view(tree)));
    }
  }
}

}  // namespace

int main() {
  for (Mode mode : {Mode::collect, Mode::value, Mode::outcome}) {
    test_arrival_order_does_not_matter(mode);
    test_threads(mode);
    test_a_crowd(mode);
    for (LossRule rule : {LossRule::loss, LossRule::unobserved}) test_threads_on_one_tree(mode, rule);
  }
  test_no_answer_is_lost();
  test_arrival_order_may_be_free();
  test_window();
  test_terminal_only_tree_ends();
  test_max_samples();
  test_cancel();
  test_errors_change_nothing();
  return result();
}
