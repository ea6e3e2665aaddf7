// Trees that outgrow the pool, whose roots have more visits than the table of logarithms: equal to the plain
// tree, also when several grow at once; and what a dump that is no tree's is told.
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "plain_tree.h"
#include "search/errors.h"
#include "search/random.h"
#include "search/tree.h"

using namespace restrl::search;

namespace {

constexpr std::uint32_t kSimulations = 40000;  // lines: 2.5 MB, grown by moving pages

SearchParams params_of(Mode mode) {
  SearchParams params;
  params.mode = mode;
  params.leaves_in_flight = 2;
  return params;
}

// One simulation with `k` distinct children and values of thirds; late ones have terminal children, early
// ones would lose all visits to them.
template <typename TreeType, typename Loss>
NodeId simulate(TreeType& tree, const SearchParams& params, std::uint32_t simulation) {
  const NodeId node = tree.select(simulation);
  if (tree.terminal(node)) {
    Loss(tree, node, 1, 1).release();
    const Visit visit = tree.terminal_visit(node);
    tree.back_up(node, visit, visit);
    return node;
  }
  Split split;
  std::vector<double> values;
  for (std::uint32_t i = 0; i < params.k; ++i) {
    const std::uint64_t bits = mix(simulation * 64ULL + i);
    split.texts.emplace_back();
    split.steps.push_back(1);
    split.child_of.push_back(i);
    split.children.push_back({i, 1, 1, simulation > kSimulations - 5000 && bits % 64 == 0});
    values.push_back(static_cast<double>(bits >> 8 & 3) / 3);
  }
  Loss loss(tree, node, params.k, params.k);
  const std::vector<double> children = params.mode == Mode::value ? values : std::vector<double>();
  const Visits visits = tree.expand(node, simulation, split, values, children);
  loss.release();
  tree.back_up(node, visits.own, visits.path);
  return node;
}

bool same(double a, double b) { return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b); }

void test_big_tree(Mode mode) {
  const SearchParams params = params_of(mode);
  plain::Tree plain(params, 1, 2, "");
  for (std::uint32_t i = 0; i < kSimulations; ++i)
    simulate<plain::Tree, plain::VirtualLoss>(plain, params, i);
  std::vector<std::unique_ptr<Tree>> trees;
  for (int i = 0; i < 2; ++i) trees.push_back(std::make_unique<Tree>(params, 1, 2, ""));
  std::vector<std::thread> threads;
  for (const auto& tree : trees) {
    threads.emplace_back([&params, &tree] {
      for (std::uint32_t i = 0; i < kSimulations; ++i) simulate<Tree, VirtualLoss>(*tree, params, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  trees.push_back(std::make_unique<Tree>(params, 1, 2, trees.front()->dump()));

  const TreeView expected = plain.view();
  CHECK(expected.nodes.front().N > kTabulated);
  for (const auto& tree : trees) {
    const TreeView view = tree->view();
    CHECK(view.nodes.size() == expected.nodes.size() && tree->nodes_in_flight() == 0);
    CHECK(tree->size() > 4 * kSimulations);
    CHECK(tree->bytes() <=
          (mode == Mode::value ? 32 : 28) * tree->size());  // hidden children keep their scores
    for (std::size_t row = 0; row < view.nodes.size(); ++row) {
      const NodeView& a = view.nodes[row];
      const NodeView& b = expected.nodes[row];
      if (a.parent == b.parent && a.simulation == b.simulation && a.N == b.N && same(a.W, b.W) &&
          same(a.V, b.V) && a.terminal == b.terminal && a.visible == b.visible) {
        continue;
      }
      CHECK(!"the rows are equal");
      break;
    }
  }
}

void test_bad_dumps() {
  const SearchParams params = params_of(Mode::value);
  Tree tree(params, 1, 2, "root");
  for (std::uint32_t i = 0; i < 20; ++i) simulate<Tree, VirtualLoss>(tree, params, i);
  const auto refused = [&](const char* what, auto damage) {
    TreeDump dump = tree.dump();
    damage(dump);
    CHECK_THROWS(Error, what, Tree(params, 1, 2, dump));
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  refused("must come first", [](TreeDump& dump) { dump.expansions[3].parent = 3; });
  refused("must come first", [](TreeDump& dump) { dump.expansions[3].parent = kNone; });
  refused("not visible", [](TreeDump& dump) { dump.expansions[3].child = 99; });
  refused("expanded already", [](TreeDump& dump) {
    dump.expansions[2].parent = dump.expansions[1].parent;
    dump.expansions[2].child = dump.expansions[1].child;
  });
  refused("reused", [](TreeDump& dump) { dump.expansions[3].reused = 1; });
  refused("between 1 and k", [](TreeDump& dump) { dump.expansions[3].children = 6; });
  refused("children are missing", [](TreeDump& dump) { dump.children.pop_back(); });
  refused("texts are missing", [](TreeDump& dump) { dump.texts.pop_back(); });
  refused("of no expansion", [](TreeDump& dump) { dump.texts.emplace_back(); });
  refused("fewer than k", [](TreeDump& dump) { dump.values.pop_back(); });
  refused("order of completions", [](TreeDump& dump) { dump.child_of[1] = 3; });
  refused("visible children", [](TreeDump& dump) { dump.children[0].visible ^= true; });
  refused("out of range", [](TreeDump& dump) { dump.children[0].W = kInfinity; });
  refused("not finite", [](TreeDump& dump) { dump.values[0] = kInfinity; });
  refused("root", [](TreeDump& dump) { dump.root_N = 0; });
  refused("a child", [](TreeDump& dump) {
    for (TreeDump::Child& child : dump.children) child.N = 0;
  });
}

}  // namespace

int main() {
  test_big_tree(Mode::collect);
  test_big_tree(Mode::value);
  test_bad_dumps();
  return restrl::testing::result();
}
