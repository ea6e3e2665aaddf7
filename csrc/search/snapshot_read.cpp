#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "search/bytes.h"
#include "search/errors.h"
#include "search/snapshot.h"
#include "search/snapshot_format.h"
#include "search/text.h"

namespace restrl::search {
namespace {

using Node = TreeRows::Node;

constexpr std::uint32_t kMany = 0x7fffffff;

// The bytes between head and checksum.
std::string_view open_envelope(std::string_view bytes) {
  if (bytes.size() < kHead + kChecksum || bytes.substr(0, kMagic.size()) != kMagic) {
    throw SnapshotError("not a snapshot of a search tree: it does not begin like one");
  }
  Reader head(bytes.substr(kMagic.size()));
  const std::uint64_t version = head.fixed("the version", 2);
  if (version != kVersion) {
    throw SnapshotError("the snapshot has version " + std::to_string(version) +
                        "; this restrl reads version " + std::to_string(kVersion));
  }
  const std::uint64_t reserved = head.fixed("the reserved field", 2);
  const std::uint64_t size = head.fixed("the size", 8);
  if (size != bytes.size()) {
    throw SnapshotError("the snapshot has " + std::to_string(bytes.size()) + " bytes instead of " +
                        std::to_string(size) + ": it is torn or has something behind it");
  }
  Reader tail(bytes.substr(bytes.size() - kChecksum));
  if (tail.fixed("the checksum", 8) != crc64(bytes.substr(0, bytes.size() - kChecksum))) {
    throw SnapshotError("the snapshot is damaged: its checksum does not fit its bytes");
  }
  if (reserved != 0) throw SnapshotError("snapshot, byte 10: the reserved field is not 0");
  return bytes.substr(0, bytes.size() - kChecksum);
}

SearchParams read_params(Reader& in, bool& splitter) {
  SearchParams params;
  params.mode = static_cast<Mode>(in.byte("mode", 2));
  params.ties = static_cast<Ties>(in.byte("ties", 1));
  params.virtual_loss = static_cast<LossRule>(in.byte("virtual_loss", 1));
  const unsigned flags = in.byte("the parameters' flags", 7);
  params.in_order = (flags & 1) != 0;
  params.reuse = (flags & 2) != 0;
  splitter = (flags & 4) != 0;
  params.simulations = in.count("simulations", kMany);
  params.max_samples = in.count("max_samples", kMany);
  params.k = in.count("k", kMany);
  params.num_decisions = in.count("num_decisions", kMany);
  params.leaves_in_flight = in.count("leaves_in_flight", kMany);
  params.c = std::bit_cast<double>(in.fixed("c", 8));
  params.eps = std::bit_cast<double>(in.fixed("eps", 8));
  const std::uint64_t ends = in.varint("the number of step_ends", in.left());
  params.step_ends.clear();
  for (std::uint64_t i = 0; i < ends; ++i) params.step_ends.emplace_back(in.text("a step's end"));
  try {
    params.validate();
  } catch (const ParamError& error) {
    in.fail(error.what());
  }
  return params;
}

class TreeReader {
 public:
  TreeReader(Reader& in, const Snapshot& snapshot) : in_(in), snapshot_(snapshot), params_(snapshot.params) {}

  // Rows, texts and children; values and statistics come later.
  void structure() {
    tree_.nodes.emplace_back();
    tree_.nodes[0].visible = true;
    if (in_.byte("whether the root is expanded", 1) == 0) return;
    expanded_.push_back(0);
    for (std::size_t next = 0; next < expanded_.size(); ++next) expansion(expanded_[next]);
  }

  void values() {
    for (TreeRows::Completion& completion : tree_.completions) {
      completion.value = completion.source == kNone ? score("the value of a completion")
                                                    : tree_.completions[completion.source].value;
    }
  }

  void statistics() {
    std::vector<Known> known = known_of(tree_, params_.k);
    for (std::size_t row = tree_.nodes.size(); row-- > 0;) {
      read(tree_.nodes[row], known[row], row == 0);
      add_below(known, tree_.nodes[row], known[row], scored());
    }
  }

  PendingImage pending(std::uint32_t number_before, bool first) {
    PendingImage leaf{};
    leaf.number = number_before + in_.count("the number of a simulation", kNone - number_before);
    if (leaf.number >= snapshot_.tree.next_number || (!first && leaf.number == number_before)) {
      in_.fail("simulation " + std::to_string(leaf.number) + " is out of order");
    }
    const auto row =
        in_.count("the node of a simulation", static_cast<std::uint32_t>(tree_.nodes.size() - 1));
    const Node& node = tree_.nodes[row];
    if (node.expanded() || !node.visible) in_.fail("a simulation is at a node that is no visible leaf");
    leaf.expansion = row == 0 ? kNone : tree_.nodes[node.parent].expansion;
    leaf.child = row == 0 ? 0 : row - tree_.nodes[node.parent].first_child;
    const auto stage = static_cast<Stage>(in_.byte("the stage of a simulation", 3));
    stages_.push_back(stage);
    if (node.terminal != (stage == Stage::terminal)) in_.fail("the stage does not fit the node");
    if (node.terminal) return leaf;
    leaves_.push_back(row);
    const std::vector<std::uint32_t> sources = this->sources(row);
    const auto fresh = params_.k - static_cast<std::uint32_t>(sources.size());
    window_samples_ += fresh;
    if (fresh == 0 && stage != Stage::answered && (!scored() || stage != Stage::completed)) {
      in_.fail("a simulation that draws no completions waits for some");
    }
    if (stage == Stage::asked) return leaf;
    Split split = texts(sources);
    for (std::uint32_t i = params_.k - fresh; i < params_.k; ++i)
      leaf.completions.emplace_back(split.texts[i].view());
    leaf.has_completions = true;
    if (stage == Stage::completed) return leaf;
    leaf.has_values = true;
    for (std::uint32_t i = 0; i < fresh; ++i) {
      leaf.completion_values.push_back(score("the value of a completion"));
    }
    if (!scored()) return leaf;
    // Only the callable knows where the steps of a completion end.
    if (!snapshot_.splitter) split_texts(split, params_.step_ends);
    const std::size_t children =
        snapshot_.splitter ? in_.count("the number of children", params_.k) : split.children.size();
    for (std::size_t i = 0; i < children; ++i) leaf.child_values.push_back(score("the score of a child"));
    return leaf;
  }

  void totals(TreeImage& image) const {
    TreeStats& stats = image.stats;
    std::uint64_t terminal = 0;
    for (const Node& node : tree_.nodes) terminal += node.terminal ? node.N : 0;
    for (const TreeRows::Completion& row : tree_.completions) {
      if (scored() && tree_.nodes[row.child].terminal) --terminal;
    }
    std::uint64_t samples = 0;
    for (const TreeRows::Expansion& expansion : tree_.expansions) samples += params_.k - expansion.reused;
    const std::uint64_t started = tree_.expansions.size() + terminal + image.window.size();
    check_window(image, started, samples + window_samples_);
    stats.expansions = static_cast<std::uint32_t>(tree_.expansions.size());
    stats.terminal_visits = static_cast<std::uint32_t>(terminal);
    stats.simulations = stats.expansions + stats.terminal_visits;
    stats.completions = stats.expansions * params_.k;
    stats.samples = static_cast<std::uint32_t>(samples);
    stats.reused = stats.completions - stats.samples;
  }

  // No simulation has its number twice, none is at a leaf that another one is
  // to expand.
  void check_numbers(const TreeImage& image) {
    std::vector<std::uint32_t> numbers;
    for (const TreeRows::Expansion& expansion : tree_.expansions) numbers.push_back(expansion.simulation);
    for (const PendingImage& leaf : image.window) numbers.push_back(leaf.number);
    const auto twice = [](std::vector<std::uint32_t>& list) {
      std::sort(list.begin(), list.end());
      return std::adjacent_find(list.begin(), list.end()) != list.end();
    };
    if (twice(numbers)) in_.fail("two simulations have one number");
    if (twice(leaves_)) in_.fail("two simulations expand one leaf");
  }

  TreeDump dump(std::string_view root_state) const { return dump_of(tree_, root_state, params_.k); }

 private:
  bool scored() const { return params_.mode == Mode::value; }

  double score(const char* what) {
    const double value = in_.number(what);
    if (std::fabs(value) > kLargestScore) in_.fail(std::string(what) + " is beyond 1e200");
    return value;
  }

  // Rows of the completions that `row` reuses.
  std::vector<std::uint32_t> sources(std::uint32_t row) const {
    return params_.reuse ? inherited(tree_, row, params_.k) : std::vector<std::uint32_t>();
  }

  // The window is one that a forest leaves behind: whatever can be applied or
  // selected is.
  void check_window(const TreeImage& image, std::uint64_t started, std::uint64_t samples) const {
    if (started > params_.simulations || started > image.next_number)
      in_.fail("too many simulations were started");
    if (params_.max_samples != 0 && samples > params_.max_samples)
      in_.fail("more than max_samples were drawn");
    if (image.spent && params_.max_samples == 0) in_.fail("a tree without max_samples has spent them");
    if (image.idle) return;  // next() brings it to where the rest holds
    const auto waits = [](Stage stage) { return stage == Stage::asked || stage == Stage::completed; };
    const auto end = params_.in_order && !stages_.empty() ? stages_.begin() + 1 : stages_.end();
    if (!std::all_of(stages_.begin(), end, waits)) in_.fail("an answered simulation was not applied");
    if (image.collided && stages_.empty()) in_.fail("nothing is under way to collide with");
    const bool budget_left = started < params_.simulations && !image.spent;
    if (!image.collided && budget_left && stages_.size() < params_.leaves_in_flight) {
      in_.fail("a simulation that could be started was not");
    }
  }

  // The texts of an expansion, not split yet.
  Split texts(const std::vector<std::uint32_t>& sources) {
    Split split;
    const std::uint32_t fresh = params_.k - static_cast<std::uint32_t>(sources.size());
    if (fresh > in_.left()) in_.fail("the completions of an expansion are missing");
    for (std::uint32_t source : sources) {
      const TreeRows::Completion& completion = tree_.completions[source];
      split.texts.push_back(completion.text.rest(completion.step));
    }
    for (std::uint32_t i = 0; i < fresh; ++i) {
      const std::string_view text = in_.text("a completion");
      if (rstrip(text).size() != text.size()) in_.fail("a completion ends in white space");
      split.texts.push_back(to_text(text));
    }
    return split;
  }

  Split split(const std::vector<std::uint32_t>& sources) {
    Split split = texts(sources);
    for (std::uint32_t i = 0; snapshot_.splitter && i < params_.k; ++i) {
      const Text& text = split.texts[i];
      const std::uint32_t step = in_.count("the length of a step", text.size + 1);
      const bool inside = step < text.size && (static_cast<unsigned char>(text.data[step]) & 0xc0) == 0x80;
      if (step == 0 || inside) in_.fail("a step ends where no character does");
      split.steps.push_back(step);
    }
    split_texts(split, params_.step_ends);
    if (tree_.completions.size() + params_.k >= kMany) in_.fail("the tree has too many completions");
    return split;
  }

  void expansion(std::uint32_t row) {
    const std::uint32_t simulation = in_.count("the number of a simulation");
    if (simulation >= snapshot_.tree.next_number)
      in_.fail("a simulation has a number that was not given out yet");
    const std::vector<std::uint32_t> sources = this->sources(row);
    const Split split = this->split(sources);
    const auto first_child = static_cast<std::uint32_t>(tree_.nodes.size());
    tree_.nodes[row].expansion = static_cast<std::uint32_t>(tree_.expansions.size());
    tree_.nodes[row].first_child = first_child;
    tree_.nodes[row].children = static_cast<std::uint32_t>(split.children.size());
    tree_.expansions.push_back({row, simulation, static_cast<std::uint32_t>(sources.size())});
    for (std::uint32_t i = 0; i < params_.k; ++i) {
      tree_.completions.push_back({split.texts[i], split.steps[i], first_child + split.child_of[i],
                                   i < sources.size() ? sources[i] : kNone, 0.0});
    }
    children(row, split, first_child);
  }

  void children(std::uint32_t row, const Split& split, std::uint32_t first_child) {
    const std::size_t size = split.children.size();
    const auto inner = std::count_if(split.children.begin(), split.children.end(),
                                     [](const Split::Child& child) { return !child.terminal; });
    const std::vector<bool> expanded = in_.bits("the expanded children", static_cast<std::size_t>(inner));
    std::vector<bool> visible(size, true);
    if (size > params_.num_decisions && !scored()) {  // fresh children are all equal, so the first stay
      std::fill(visible.begin() + params_.num_decisions, visible.end(), false);
    } else if (size > params_.num_decisions) {
      visible = in_.bits("the visible children", size);
      if (std::count(visible.begin(), visible.end(), true) != params_.num_decisions) {
        in_.fail("not num_decisions children are visible");
      }
    }
    std::size_t next = 0;
    for (std::size_t i = 0; i < size; ++i) {
      Node node;
      node.parent = row;
      node.terminal = split.children[i].terminal;
      node.visible = visible[i];
      tree_.nodes.push_back(node);
      if (node.terminal || !expanded[next++]) continue;
      if (!node.visible) in_.fail("a child that is not visible is expanded");
      expanded_.push_back(first_child + static_cast<std::uint32_t>(i));
    }
  }

  void read(Node& node, const Known& known, bool root) {
    std::uint64_t visits = 0;
    if (node.terminal) visits = in_.varint("the visits of a terminal node", kMany);
    if (visits > 0 && !node.visible) in_.fail("a child that is not visible has visits");
    const std::uint64_t N = visits_of(node, known, scored(), params_.k, visits);
    if (N > 0xffffffff) in_.fail("a node has more than 2^32 - 1 visits");
    node.N = static_cast<std::uint32_t>(N);
    if (!node.expanded() && visits == 0) {
      if (!scored() || root) return;
      node.V = score("the score of a child");
      node.W = fresh_W(node.V, known.count);
    } else if (scored()) {
      node.W = in_.number("the sum of values of a node");
    } else {
      const std::uint64_t code = in_.varint("the sum of values of a node", ~std::uint64_t{0});
      const auto foretold = std::bit_cast<std::uint64_t>(foretold_W(node, known, N));
      node.W = std::bit_cast<double>(foretold + unzigzag(code));
    }
    if (!(std::fabs(node.W) <= kLargestSum)) in_.fail("the sum of values of a node is out of range");
    if (node.expanded() || visits > 0) node.V = node.W / node.N;
  }

  Reader& in_;
  const Snapshot& snapshot_;
  const SearchParams& params_;
  TreeRows tree_;
  std::vector<std::uint32_t> expanded_;  // rows to be expanded, breadth first
  std::vector<Stage> stages_;            // of the simulations under way
  std::vector<std::uint32_t> leaves_;    // rows they are to expand
  std::uint64_t window_samples_ = 0;
};

}  // namespace

Snapshot decode(std::string_view bytes) {
  Reader in(open_envelope(bytes));
  in.raw("the head", kHead);
  Snapshot snapshot;
  snapshot.params = read_params(in, snapshot.splitter);
  snapshot.seed = in.fixed("the seed", 8);
  TreeImage& image = snapshot.tree;
  image.key = in.text("the key of a tree");
  const std::string_view root_state = in.text("the state of a root");
  image.next_number = in.count("the next simulation's number");
  image.stats.collisions = in.count("the collisions");
  const unsigned flags = in.byte("the tree's flags", 7);
  image.idle = (flags & 1) != 0;
  image.collided = (flags & 2) != 0;
  image.spent = (flags & 4) != 0;
  TreeReader tree(in, snapshot);
  tree.structure();
  tree.values();
  tree.statistics();
  const std::uint64_t under_way =
      in.varint("the number of simulations under way", snapshot.params.leaves_in_flight);
  for (std::uint64_t i = 0; i < under_way; ++i) {
    image.window.push_back(tree.pending(i == 0 ? 0 : image.window.back().number, i == 0));
  }
  tree.check_numbers(image);
  tree.totals(image);
  image.tree = tree.dump(root_state);
  if (in.left() != 0) in.fail(std::to_string(in.left()) + " bytes are left over");
  return snapshot;
}

}  // namespace restrl::search
