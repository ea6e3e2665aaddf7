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
  return params;
}

void test_text() {
  CHECK(rstrip("a \t\r\n\x0b\x0c\x1c\x1f") == "a");
  CHECK(rstrip("a\xc2\xa0\xe2\x80\x83\xe3\x80\x80\xc2\x85") == "a");
  CHECK(rstrip("a\xe2\x80\x8b") == "a\xe2\x80\x8b");  // U+200B is no white space
  CHECK(rstrip(" \n").empty());
  CHECK(rstrip("\xa0") == "\xa0");  // a broken byte stays

  const Split split = split_completions({"x = 1\ny\n\n", "x = 1  ", "x = 1", "\n\n", "x = 1\nz"});
  CHECK(split.texts == (std::vector<std::string>{"x = 1\ny\n", "x = 1\n", "x = 1\n", "\n", "x = 1\nz\n"}));
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
  params.eps = 0;
  CHECK_THROWS(ParamError, "eps = 0", params.validate());
  CHECK_THROWS(ParamError, "mode", parse_mode("train"));
  CHECK_THROWS(ParamError, "ties", parse_ties("random"));
}

void test_collect_by_hand() {
  Tree tree(small(Mode::collect), 0, 0, "root\n");
  CHECK(tree.select(0) == kRoot);
  const Split split = split_completions({"a\nb", "c", "d\ne"});
  const Visit visit = tree.expand(kRoot, 0, split, {{0.5, 1.0, 0.25}, {}});
  CHECK(visit.N == 3 && visit.W == 1.75);
  tree.back_up(kRoot, visit);
  TreeView view = tree.view();
  CHECK(view.nodes.size() == 4);
  CHECK(view.nodes[0].N == 3 && view.nodes[0].W == 1.75 && view.nodes[0].V == 1.75 / 3);
  CHECK(view.nodes[1].N == 0 && view.nodes[1].V == 0.0);
  CHECK(view.nodes[1].visible && view.nodes[2].visible && !view.nodes[3].visible);  // a tie keeps the order
  CHECK(view.nodes[2].terminal && view.completions[1].text == "c\n" && view.completions[1].child == 2);

  // Both visible children are unvisited: first come. A virtual loss on the first sends the next to the
  // second.
  CHECK(tree.select(1) == 1);
  CHECK(tree.state(1) == "root\na\n");
  {
    VirtualLoss loss(tree, 1, 3);
    CHECK(tree.in_flight(1) == 3 && tree.in_flight(kRoot) == 3 && tree.nodes_in_flight() == 2);
    CHECK(tree.select(1) == 2 && tree.terminal(2));
  }
  CHECK(tree.nodes_in_flight() == 0);

  // The terminal node takes the reward of the completion it is, then its V.
  for (int visits = 1; visits <= 2; ++visits) {
    const Visit once = tree.terminal_visit(2);
    CHECK(once.N == 1 && once.W == 1.0);
    tree.back_up(2, once);
  }
  view = tree.view();
  CHECK(view.nodes[2].N == 2 && view.nodes[2].W == 2.0 && view.nodes[0].N == 5 && view.nodes[0].W == 3.75);
}

void test_value_by_hand() {
  Tree tree(small(Mode::value), 0, 0, "");
  const Split split = split_completions({"a\nb", "a\nc", "d\ne"});
  const Visit visit = tree.expand(kRoot, 0, split, {{0.0, 0.0, 1.0}, {0.1, 0.6}});
  CHECK(visit.N == 3 && visit.W == (0.1 + 0.1) + 0.6);
  tree.back_up(kRoot, visit);
  const TreeView view = tree.view();
  CHECK(view.nodes[1].N == 2 && view.nodes[1].W == 0.2 && view.nodes[1].V == 0.1);
  CHECK(view.nodes[2].N == 1 && view.nodes[2].V == 0.6);
  const double log_visits = std::log(3.0);
  const double a = 0.1 + 0.1 * std::sqrt((1 + log_visits) / (0.1 + 2));
  const double d = 0.6 + 0.1 * std::sqrt((1 + log_visits) / (0.1 + 1));
  CHECK(d > a && tree.select(1) == 2);
}

void test_seeded_ties_are_spread_and_repeat() {
  SearchParams params = small(Mode::collect);
  params.ties = Ties::seeded;
  params.num_decisions = 3;
  Tree tree(params, 7, text_stream("key"), "");
  tree.back_up(kRoot, tree.expand(kRoot, 0, split_completions({"a\nx", "b\nx", "c\nx"}), {{0, 0, 0}, {}}));
  std::vector<int> hits(4);
  for (std::uint32_t simulation = 0; simulation < 300; ++simulation) {
    const NodeId node = tree.select(simulation);
    CHECK(node == tree.select(simulation));
    CHECK(node == 1 + draw(7, text_stream("key"), simulation, 0) % 3);
    ++hits[node];
  }
  CHECK(hits[1] > 60 && hits[2] > 60 && hits[3] > 60);
}

}  // namespace

int main() {
  test_text();
  test_params();
  test_collect_by_hand();
  test_value_by_hand();
  test_seeded_ties_are_spread_and_repeat();
  return restrl::testing::result();
}
