// Line rules, parameters and one tree by hand: select, expand and back up, each alone.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "search/errors.h"
#include "search/params.h"
#include "search/random.h"
#include "search/text.h"
#include "search/tree.h"

using namespace restrl::search;

namespace {

SearchParams small(Mode mode) {
  SearchParams params = SearchParams::defaults(mode);
  params.k = 3;
  params.num_decisions = 2;
  params.ties = Ties::first;
  params.leaves_in_flight = 8;
  return params;
}

// Plain strings that live as long as the split that looks at them.
struct Sampled {
  std::vector<std::string> strings;
  Split split = split_completions(strings, SearchParams{}.step_ends);
};

void test_text() {
  CHECK(rstrip("a \t\r\n\x0b\x0c\x1c\x1f") == "a");
  CHECK(rstrip("a\xc2\xa0\xe2\x80\x83\xe3\x80\x80\xc2\x85") == "a");
  CHECK(rstrip("a\xe2\x80\x8b") == "a\xe2\x80\x8b");  // U+200B is no white space
  CHECK(rstrip(" \n").empty());
  CHECK(rstrip("\xa0") == "\xa0");  // a broken byte stays

  const Sampled sampled{{"x = 1\ny\n\n", "x = 1  ", "x = 1", "\n\n", "x = 1\nz"}};
  const Split& split = sampled.split;
  std::vector<std::string> texts;
  for (const Text& text : split.texts) texts.push_back(text.str());
  CHECK(texts == (std::vector<std::string>{"x = 1\ny\n", "x = 1\n", "x = 1\n", "\n", "x = 1\nz\n"}));
  CHECK(split.child_of == (std::vector<std::uint32_t>{0, 0, 0, 1, 0}));
  CHECK(split.children.size() == 2);
  CHECK(split.children[0].count == 4 && !split.children[0].terminal);  // its first sample went on
  CHECK(split.children[1].count == 1 && split.children[1].terminal);
  CHECK(split.line(split.children[0]) == "x = 1\n" && split.line(split.children[1]) == "\n");
}

void test_params() {
  SearchParams params;
  params.validate();
  CHECK(params == SearchParams::defaults(Mode::collect));
  CHECK(SearchParams::defaults(Mode::value).simulations == 20);
  params.k = 0;
  CHECK_THROWS(ParamError, "k = 0", params.validate());
  params = {};
  params.c = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS(ParamError, "c = nan", params.validate());
  params = {};
  params.c = 1e101;
  CHECK_THROWS(ParamError, "c = 1e+101", params.validate());
  params = {};
  params.eps = 0;
  CHECK_THROWS(ParamError, "eps = 0", params.validate());
  CHECK_THROWS(ParamError, "mode", parse_mode("train"));
  CHECK_THROWS(ParamError, "ties", parse_ties("random"));
}

void test_collect_by_hand() {
  Tree tree(small(Mode::collect), 0, 0, "root\n");
  CHECK(tree.select(0) == kRoot);
  const Sampled sampled{{"a\nb", "c", "d\ne"}};
  const Visits visits = tree.expand(kRoot, 0, sampled.split, std::vector{0.5, 1.0, 0.25}, {});
  CHECK(visits.own.N == 3 && visits.own.W == 1.75);
  tree.back_up(kRoot, visits.own, visits.path);
  TreeView view = tree.view();
  CHECK(view.nodes.size() == 4);
  CHECK(view.nodes[0].N == 3 && view.nodes[0].W == 1.75 && view.nodes[0].V == 1.75 / 3);
  CHECK(view.nodes[1].N == 0 && view.nodes[1].V == 0.0);
  CHECK(view.nodes[1].visible && view.nodes[2].visible && !view.nodes[3].visible);  // a tie keeps the order
  CHECK(view.nodes[2].terminal && view.completions[1].text == "c\n" && view.completions[1].child == 2);

  // Both visible children are unvisited: first come. A virtual loss on the first sends the next to the
  // second.
  const NodeId a = tree.child(kRoot, 0);
  const NodeId c = tree.child(kRoot, 1);
  CHECK(tree.child(kRoot, 2) == kNone);  // not visible
  CHECK(tree.select(1) == a);
  CHECK(tree.state(a) == "root\na\n");
  {
    VirtualLoss loss(tree, a, 3, 3);
    CHECK(tree.in_flight(a) == 3 && tree.in_flight(kRoot) == 3 && tree.nodes_in_flight() == 2);
    CHECK(tree.select(1) == c && tree.terminal(c));
  }
  CHECK(tree.nodes_in_flight() == 0);

  // The terminal node takes the reward of the completion it is, then its V.
  for (int times = 1; times <= 2; ++times) {
    const Visit once = tree.terminal_visit(c);
    CHECK(once.N == 1 && once.W == 1.0);
    tree.back_up(c, once, once);
  }
  view = tree.view();
  CHECK(view.nodes[2].N == 2 && view.nodes[2].W == 2.0 && view.nodes[0].N == 5 && view.nodes[0].W == 3.75);
}

// The root gives a\nb\nx, a, a\nc (all to child a) and d\ne; child a inherits the first three as "b\nx", ""
// and "c", draws one of its own; only that one's reward counts above it.
void test_reuse_by_hand(LossRule rule) {
  SearchParams params = small(Mode::collect);
  params.k = 4;
  params.reuse = true;
  params.virtual_loss = rule;
  Tree tree(params, 0, 0, "");
  const Sampled first{{"a\nb\nx", "a", "a\nc", "d\ne"}};
  Visits visits = tree.expand(kRoot, 0, first.split, std::vector{0.5, 0.25, 0.125, 1.0}, {});
  tree.back_up(kRoot, visits.own, visits.path);
  const NodeId a = tree.child(kRoot, 0);
  CHECK(tree.inherited(kRoot) == 0 && tree.inherited(a) == 3 && tree.inherited(tree.child(kRoot, 1)) == 1);
  const double before = tree.view().nodes[0].V;
  {
    const VirtualLoss loss(tree, a, 4, 1);
    CHECK(tree.in_flight(a) == 4 && tree.in_flight(kRoot) == 1);
  }
  Sampled second{{"b\ny"}};
  Split split;
  tree.inherit(a, split.texts);
  CHECK(split.texts.size() == 3 && split.texts[0].str() == "b\nx\n" && split.texts[1].str() == "\n");
  split.texts.push_back(second.split.texts[0]);
  split_texts(split, params.step_ends);
  CHECK(split.children.size() == 3 && split.children[0].count == 2 && split.children[1].terminal);
  visits = tree.expand(a, 1, split, std::vector{0.0625}, {});
  CHECK(visits.own.N == 4 && visits.own.W == 0.5 + 0.25 + 0.125 + 0.0625);
  CHECK(visits.path.N == 1 && visits.path.W == 0.0625);
  tree.back_up(a, visits.own, visits.path);
  const TreeView view = tree.view();
  CHECK(view.nodes[0].N == 5 && view.nodes[0].W == 1.875 + 0.0625 && view.nodes[0].V != before);
  CHECK(view.nodes[1].N == 4 && view.completions.size() == 8);
  CHECK(view.completions[4].source == 0 && view.completions[6].source == 2);
  CHECK(view.completions[7].source == kNone && view.completions[7].text == "b\ny\n");
  const NodeId ab = tree.child(a, 0);
  CHECK(tree.inherited(ab) == 2 && tree.state(ab) == "a\nb\n");  // a reused sample serves on
}

void test_value_by_hand() {
  Tree tree(small(Mode::value), 0, 0, "");
  const Sampled sampled{{"a\nb", "a\nc", "d\ne"}};
  const Visits visits =
      tree.expand(kRoot, 0, sampled.split, std::vector{0.0, 0.0, 1.0}, std::vector{0.1, 0.6});
  CHECK(visits.own.N == 3 && visits.own.W == (0.1 + 0.1) + 0.6);
  tree.back_up(kRoot, visits.own, visits.path);
  const TreeView view = tree.view();
  CHECK(view.nodes[1].N == 2 && view.nodes[1].W == 0.2 && view.nodes[1].V == 0.1);
  CHECK(view.nodes[2].N == 1 && view.nodes[2].V == 0.6);
  const double log_visits = std::log(3.0);
  const double a = 0.1 + 0.1 * std::sqrt((1 + log_visits) / (0.1 + 2));
  const double d = 0.6 + 0.1 * std::sqrt((1 + log_visits) / (0.1 + 1));
  CHECK(d > a && tree.select(1) == tree.child(kRoot, 1));
}

void test_seeded_ties_are_spread_and_repeat() {
  SearchParams params = small(Mode::collect);
  params.ties = Ties::seeded;
  params.num_decisions = 3;
  Tree tree(params, 7, text_stream("key"), "");
  const Sampled sampled{{"a\nx", "b\nx", "c\nx"}};
  const Visits visits = tree.expand(kRoot, 0, sampled.split, std::vector{0.0, 0.0, 0.0}, {});
  tree.back_up(kRoot, visits.own, visits.path);
  std::vector<int> hits(3);
  for (std::uint32_t simulation = 0; simulation < 300; ++simulation) {
    const NodeId node = tree.select(simulation);
    CHECK(node == tree.select(simulation));
    const std::uint64_t child = draw(7, text_stream("key"), simulation, 0) % 3;
    CHECK(node == tree.child(kRoot, static_cast<std::uint32_t>(child)));
    ++hits[child];
  }
  CHECK(hits[0] > 60 && hits[1] > 60 && hits[2] > 60);
}

}  // namespace

int main() {
  test_text();
  test_params();
  test_collect_by_hand();
  test_reuse_by_hand(LossRule::loss);
  test_reuse_by_hand(LossRule::unobserved);
  test_value_by_hand();
  test_seeded_ties_are_spread_and_repeat();
  return restrl::testing::result();
}
