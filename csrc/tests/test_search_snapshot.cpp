// Snapshots: bytes and back in mid-search, the search after that, and bytes
// that were tampered with.
#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "forest_tools.h"
#include "search/bytes.h"
#include "search/dummy.h"
#include "search/errors.h"
#include "search/forest.h"
#include "search/random.h"
#include "search/snapshot.h"

using namespace restrl::search;
using namespace restrl::testing;

namespace {

SearchParams of(Mode mode, std::uint32_t leaves, bool reuse = false) {
  SearchParams params = SearchParams::defaults(mode);
  params.simulations = 40;
  params.leaves_in_flight = leaves;
  params.virtual_loss = LossRule::loss;  // fills a window soonest
  params.reuse = reuse;
  return params;
}

bool same_stats(const TreeStats& a, const TreeStats& b) {
  return a.simulations == b.simulations && a.expansions == b.expansions &&
         a.terminal_visits == b.terminal_visits && a.completions == b.completions && a.samples == b.samples &&
         a.reused == b.reused && a.collisions == b.collisions && a.in_flight == b.in_flight &&
         a.nodes == b.nodes && a.text_bytes == b.text_bytes;
}

// Answers the requests of one tree, in an order and in parts that `shuffle`
// decides; two of them do the same on trees in the same state.
class Caller {
 public:
  Caller(Forest& forest, std::uint64_t shuffle, std::uint32_t ends = 6)
      : forest_(forest), shuffle_(shuffle), ends_(ends) {}

  // One step, number `step`: false if there is nothing left to do.
  bool step(std::uint64_t step) {
    for (const Request& request : forest_.next(1000)) open_.push_back(request);
    if (open_.empty()) return false;
    const auto by_number = [](const Request& a, const Request& b) { return a.simulation < b.simulation; };
    std::sort(open_.begin(), open_.end(), by_number);
    const std::uint64_t random = draw(shuffle_, step, 0, 0);
    const std::size_t pick = random % open_.size();
    Request& request = open_[pick];
    if (random >> 32 & 1 && cancels_ > 0) {
      --cancels_;
      forest_.cancel(std::vector{request.id});
      open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(pick));
      return true;
    }
    if (!request.completed) {
      fulfil(forest_, std::vector{request.id}, {Answer{dummy_texts(1, request, ends_), std::nullopt}});
      request.completed = true;
      if (random >> 40 & 1) return true;
    }
    const std::size_t children = forest_.params().mode == Mode::value ? forest_.children(request.id) : 0;
    Scores scores = dummy_scores(1, request, children);
    for (double& score : scores.completions) score = score / 3 - 0.1;  // no float32, no exact sums
    fulfil(forest_, std::vector{request.id}, {Answer{std::nullopt, std::move(scores)}});
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(pick));
    return true;
  }

  std::uint64_t run(std::uint64_t first, std::uint64_t steps) {
    std::uint64_t done = 0;
    while (done < steps && step(first + done)) ++done;
    return done;
  }
  int cancels_ = 0;

 private:
  Forest& forest_;
  std::uint64_t shuffle_;
  std::uint32_t ends_;
  std::vector<Request> open_;
};

constexpr std::uint64_t kAll = 1 << 20;

std::vector<SearchParams> searches() {
  std::vector<SearchParams> list;
  for (Mode mode : {Mode::collect, Mode::value, Mode::outcome}) {
    for (std::uint32_t leaves : {1u, 3u, 16u}) {
      for (bool reuse : {false, true}) list.push_back(of(mode, leaves, reuse));
    }
  }
  for (std::size_t i = 0, size = list.size(); i < size; ++i) {
    SearchParams params = list[i];
    params.virtual_loss = LossRule::unobserved;
    params.in_order = i % 2 == 0;
    params.max_samples = i % 3 == 0 ? 60 : 0;
    params.num_decisions = 2 + i % 4;
    params.step_ends = {"\n", "= "};
    list.push_back(params);
  }
  return list;
}

// Saved after any number of answers and loaded elsewhere, a search ends in the
// same tree.
void test_goes_on_as_it_would_have() {
  for (const SearchParams& params : searches()) {
    for (std::uint64_t cut = 0; cut < 120; cut += 1 + cut / 3) {
      Forest forest(params, 3);
      const TreeId tree = forest.add("key/ü", "root\nstate = \n");
      Caller caller(forest, cut);
      const std::uint64_t done = caller.run(0, cut);
      const std::string bytes = save(forest, tree);
      Forest other(params, 3);
      const TreeId copy = load(other, bytes);
      CHECK(save(other, copy) == bytes);
      CHECK(same_tree(forest.view(tree), other.view(copy)));
      CHECK(same_stats(forest.stats(tree), other.stats(copy)));
      CHECK(forest.nodes_in_flight(tree) == other.nodes_in_flight(copy));
      caller.run(done, kAll);
      Caller(other, cut).run(done, kAll);
      CHECK(same_tree(forest.view(tree), other.view(copy)));
      CHECK(same_stats(forest.stats(tree), other.stats(copy)));
      CHECK(save(forest, tree) == save(other, copy));
      CHECK(other.take_finished() == std::vector{copy} && other.nodes_in_flight(copy) == 0);
      CHECK(other.stats(copy).simulations == params.simulations || params.max_samples != 0);
    }
  }
}

void test_goes_on_after_cancels() {
  for (std::uint64_t cut = 1; cut < 60; cut += 3) {
    const SearchParams params = of(Mode::collect, 8, cut % 2 == 0);
    Forest forest(params, 0);
    const TreeId tree = forest.add("a", "");
    Caller caller(forest, cut);
    caller.cancels_ = 5;
    const std::uint64_t done = caller.run(0, cut);
    caller.cancels_ = 0;
    const std::string bytes = save(forest, tree);
    Forest other(params, 0);
    const TreeId copy = load(other, bytes);
    CHECK(save(other, copy) == bytes);
    caller.run(done, kAll);
    Caller(other, cut).run(done, kAll);
    CHECK(same_tree(forest.view(tree), other.view(copy)));
    CHECK(same_stats(forest.stats(tree), other.stats(copy)));
  }
}

// What was handed out comes again, oldest first, under its number and with what
// it has.
void test_open_requests_come_again() {
  const SearchParams params = of(Mode::value, 4);
  Forest forest(params, 0);
  const TreeId tree = forest.add("a", "");
  answer_dummy(forest, 0, forest.next(1), 0);
  const std::vector<Request> open = forest.next(2);
  CHECK(open.size() == 2);
  fulfil(forest, std::vector{open[1].id}, {Answer{dummy_texts(0, open[1]), std::nullopt}});
  Forest other(params, 0);
  other.add("before", "");
  const TreeId copy = load(other, save(forest, tree));
  std::vector<Request> again;
  for (const Request& request : other.next(1000)) {
    if (request.tree == copy) again.push_back(request);
  }
  CHECK(again.size() == forest.stats(tree).in_flight && again.size() > 2);
  for (std::size_t i = 0; i < again.size(); ++i)
    CHECK(again[i].simulation == i + 1 && again[i].k == params.k);
  CHECK(!again[0].completed && again[1].completed && !again[2].completed);
  CHECK(other.expansion(again[1].id).texts == forest.expansion(open[1].id).texts);
}

void test_small_and_finished_trees() {
  Forest forest(of(Mode::collect, 2), 7);
  const TreeId untouched = forest.add("", "");
  const std::string bytes = save(forest, untouched);
  CHECK(save(forest, load(forest, bytes)) == bytes);
  run_dummy(forest, 0, 4);
  CHECK(forest.take_finished().size() == 2);
  const TreeId again = load(forest, save(forest, untouched));
  CHECK(forest.take_finished() == std::vector{again} && forest.next(10).empty());
  CHECK_THROWS(RequestError, "no tree 99", save(forest, 99));
}

void test_other_searches_are_refused() {
  const SearchParams params = of(Mode::collect, 2);
  Forest forest(params, 7);
  const std::string bytes = save(forest, forest.add("a", ""));
  const auto refused = [&](const char* phrase, const std::function<void(SearchParams&)>& change) {
    SearchParams other = params;
    change(other);
    Forest forest_of_other(other, 7);
    CHECK_THROWS(SnapshotError, phrase, load(forest_of_other, bytes));
  };
  refused("c = 0.2", [](SearchParams& p) { p.c = 0.3; });
  refused("eps = 0.1", [](SearchParams& p) { p.eps = 0.2; });
  refused("k = 5, the forest's is 4", [](SearchParams& p) { p.k = 4; });
  refused("mode = collect, the forest's is value", [](SearchParams& p) { p.mode = Mode::value; });
  refused("simulations = 40, the forest's is 41", [](SearchParams& p) { p.simulations = 41; });
  refused("max_samples = 0, the forest's is 9", [](SearchParams& p) { p.max_samples = 9; });
  refused("num_decisions = 3, the forest's is 4", [](SearchParams& p) { p.num_decisions = 4; });
  refused("ties = seeded, the forest's is first", [](SearchParams& p) { p.ties = Ties::first; });
  refused("leaves_in_flight = 2, the forest's is 3", [](SearchParams& p) { p.leaves_in_flight = 3; });
  refused("in_order = true, the forest's is false", [](SearchParams& p) { p.in_order = false; });
  refused("virtual_loss = loss, the forest's is unobserved",
          [](SearchParams& p) { p.virtual_loss = LossRule::unobserved; });
  refused("reuse = false, the forest's is true", [](SearchParams& p) { p.reuse = true; });
  refused("step_ends = (\"\\n\"), the forest's is (\"\\n\", \";\")",
          [](SearchParams& p) { p.step_ends.push_back(";"); });
  Forest other_seed(params, 8);
  CHECK_THROWS(SnapshotError, "seed = 7, the forest's is 8", load(other_seed, bytes));
}

void test_what_no_snapshot_holds() {
  Forest forest(of(Mode::collect, 1), 0);
  CHECK_THROWS(SnapshotError, "the key of a tree is not UTF-8", save(forest, forest.add("\xff", "")));
  CHECK_THROWS(SnapshotError, "the state of a root is not UTF-8", save(forest, forest.add("", "\x80")));
}

// The checksum set right, so that a reader meets what is behind it.
std::string sealed(std::string bytes) {
  if (bytes.size() < 28) return bytes;
  const auto put = [&](std::size_t at, std::uint64_t value) {
    for (unsigned i = 0; i < 8; ++i) bytes[at + i] = static_cast<char>(value >> (8 * i) & 0xff);
  };
  put(12, bytes.size());
  put(bytes.size() - 8, crc64(std::string_view(bytes).substr(0, bytes.size() - 8)));
  return bytes;
}

// Bytes are refused, or they are what their own tree is saved as; never
// anything else. True if they are taken.
bool taken(const SearchParams& params, const std::string& bytes) {
  try {
    CHECK(encode(decode(bytes)) == bytes);
    Forest forest(params, 3);
    const TreeId tree = load(forest, bytes);
    CHECK(save(forest, tree) == bytes);
    forest.view(tree);
    for (const Request& request : forest.next(64)) forest.state(request.id);
    forest.cancel_all();
    CHECK(forest.nodes_in_flight(tree) == 0);
    return true;
  } catch (const SnapshotError&) {
    return false;
  }
}

std::string small_snapshot(const SearchParams& params, std::uint64_t steps) {
  Forest forest(params, 3);
  const TreeId tree = forest.add("key", "def f():\n");
  Caller(forest, 1).run(0, steps);
  return save(forest, tree);
}

void test_damaged_bytes() {
  for (const SearchParams& params :
       {of(Mode::collect, 4), of(Mode::value, 4, true), of(Mode::outcome, 1, true)}) {
    const std::string bytes = small_snapshot(params, 12);
    CHECK(taken(params, bytes));
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      CHECK(!taken(params, bytes.substr(0, size)));
      CHECK(!taken(params, sealed(bytes.substr(0, size))));
    }
    CHECK(!taken(params, bytes + '\0') && !taken(params, sealed(bytes + '\0')));
    std::size_t accepted = 0;
    for (std::size_t at = 0; at < bytes.size(); ++at) {
      for (unsigned flip : {0x01u, 0x80u, 0xffu, 0x10u}) {
        std::string damaged = bytes;
        damaged[at] = static_cast<char>(static_cast<unsigned char>(damaged[at]) ^ flip);
        CHECK(!taken(params, damaged));
        accepted += taken(params, sealed(damaged));
      }
    }
    CHECK(accepted > 0);  // other texts and values are as good
  }
}

void test_spliced_bytes() {
  const SearchParams params = of(Mode::collect, 4, true);
  std::vector<std::string> seeds;
  for (std::uint64_t steps : {0u, 3u, 9u, 40u}) seeds.push_back(small_snapshot(params, steps));
  for (std::uint64_t round = 0; round < 4000; ++round) {
    const auto random = [&](std::uint64_t what, std::uint64_t below) {
      return draw(11, round, what, 0) % below;
    };
    const std::string& a = seeds[random(0, seeds.size())];
    const std::string& b = seeds[random(1, seeds.size())];
    std::string spliced = a.substr(0, random(2, a.size())) + b.substr(random(3, b.size()));
    if (!spliced.empty()) spliced[random(4, spliced.size())] = static_cast<char>(random(5, 256));
    CHECK(!taken(params, spliced) || spliced == a || spliced == b);
    taken(params, sealed(spliced));
  }
}

void test_checksum_and_text() {
  CHECK(crc64("123456789") == 0x995dc9bbdf1939faULL && crc64("") == 0);
  for (const char* good : {"", "a", "ü", "€", "😀", "\xed\xa0\x80", "\xf4\x8f\xbf\xbf"}) CHECK(is_utf8(good));
  for (const char* bad : {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf4\x90\x80\x80",
                          "\xff", "a\xe2\x82", "\xf5\x80\x80\x80"}) {
    CHECK(!is_utf8(bad));
  }
}

// What fits its checksum and its counts, but no tree: named, not taken.
void test_impossible_windows() {
  const SearchParams params = of(Mode::collect, 4);
  Forest forest(params, 0);
  const TreeId id = forest.add("a", "");
  answer_dummy(forest, 0, forest.next(1), 0);
  const std::string bytes = save(forest, id);
  const auto refused = [&](const char* phrase, const std::function<void(TreeImage&)>& change) {
    Snapshot snapshot = decode(bytes);
    CHECK(snapshot.tree.window.size() == 3 && snapshot.tree.collided);
    change(snapshot.tree);
    const std::string changed = encode(snapshot);
    CHECK_THROWS(SnapshotError, phrase, decode(changed));
  };
  refused("two simulations expand one leaf",
          [](TreeImage& tree) { tree.window[2].child = tree.window[0].child; });
  refused("two simulations have one number", [](TreeImage& tree) { tree.window[0].number = 0; });
  refused("is out of order", [](TreeImage& tree) { tree.window[1].number = tree.window[0].number; });
  refused("is out of order", [](TreeImage& tree) { tree.next_number = 3; });
  refused("a number that was not given out yet", [](TreeImage& tree) {
    tree.next_number = 0;
    tree.window.clear();
  });
  refused("an answered simulation was not applied", [](TreeImage& tree) {
    PendingImage& first = tree.window[0];
    first.has_completions = first.has_values = true;
    first.completions.assign(5, "x");
    first.completion_values.assign(5, 0.5);
  });
  refused("nothing is under way to collide with", [](TreeImage& tree) { tree.window.clear(); });
  refused("a simulation that could be started was not", [](TreeImage& tree) { tree.collided = false; });
  refused("no visible leaf", [](TreeImage& tree) { tree.window[0].child = 3; });
}

// However many completions there are, they share children as few do.
void test_many_completions() {
  const std::vector<std::string> ends{"\n", ";"};
  for (std::uint64_t round = 0; round < 50; ++round) {
    std::vector<std::string> completions(100);
    for (std::uint64_t i = 0; i < 100; ++i) {
      for (std::uint64_t j = 0, bits = draw(round, i, 0, 0); j < 4; ++j, bits >>= 2) {
        completions[i] += "a\nb;"[bits & 3];
      }
    }
    const Split many = split_completions(completions, ends);
    const Split few = split_completions(std::span(completions).first(64), ends);
    CHECK(std::equal(few.child_of.begin(), few.child_of.end(), many.child_of.begin()));
    for (std::size_t i = 0; i < few.children.size(); ++i) {
      CHECK(few.children[i].completion == many.children[i].completion);
      CHECK(few.children[i].line_length == many.children[i].line_length);
      CHECK(few.children[i].terminal == many.children[i].terminal);
    }
  }
}

// A snapshot is little more than its texts.
void test_size() {
  for (Mode mode : {Mode::collect, Mode::value}) {
    SearchParams params = of(mode, 4);
    params.simulations = 300;
    Forest forest(params, 3);
    const TreeId tree = forest.add("key", "def f():\n");
    Caller(forest, 1).run(0, kAll);
    std::size_t raw = forest.stats(tree).text_bytes;
    for (const NodeView& node : forest.view(tree).nodes) raw += node.expanded || node.N > 0 ? 12 : 0;
    raw += 8 * forest.view(tree).completions.size();
    CHECK(save(forest, tree).size() <= raw * 6 / 5);
  }
}

}  // namespace

int main() {
  test_checksum_and_text();
  test_small_and_finished_trees();
  test_goes_on_as_it_would_have();
  test_goes_on_after_cancels();
  test_open_requests_come_again();
  test_other_searches_are_refused();
  test_what_no_snapshot_holds();
  test_damaged_bytes();
  test_spliced_bytes();
  test_impossible_windows();
  test_many_completions();
  test_size();
  return restrl::testing::result();
}
