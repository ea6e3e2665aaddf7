#include <bit>
#include <cmath>
#include <stdexcept>

#include "search/bytes.h"
#include "search/errors.h"
#include "search/snapshot.h"
#include "search/snapshot_format.h"

namespace restrl::search {
namespace {

using Node = TreeRows::Node;

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(std::string("a tree that is saved contradicts itself: ") + what);
}

void write_utf8(Writer& out, std::string_view text, const char* what) {
  if (!is_utf8(text)) throw SnapshotError(std::string(what) + " is not UTF-8; a snapshot holds text");
  out.text(text);
}

void write_finite(Writer& out, double value, const char* what) {
  if (!std::isfinite(value)) throw SnapshotError(std::string(what) + " is not finite");
  out.number(value);
}

void write_params(Writer& out, const SearchParams& params, bool splitter) {
  out.byte(static_cast<unsigned>(params.mode));
  out.byte(static_cast<unsigned>(params.ties));
  out.byte(static_cast<unsigned>(params.virtual_loss));
  out.byte(unsigned{params.in_order} | unsigned{params.reuse} << 1 | unsigned{splitter} << 2);
  out.varint(params.simulations);
  out.varint(params.max_samples);
  out.varint(params.k);
  out.varint(params.num_decisions);
  out.varint(params.leaves_in_flight);
  out.fixed(std::bit_cast<std::uint64_t>(params.c), 8);
  out.fixed(std::bit_cast<std::uint64_t>(params.eps), 8);
  out.varint(params.step_ends.size());
  for (const std::string& end : params.step_ends) write_utf8(out, end, "a step's end");
}

class TreeWriter {
 public:
  TreeWriter(Writer& out, const Snapshot& snapshot)
      : out_(out),
        tree_(rows_of(snapshot.tree.tree, snapshot.params.k, first_child_)),
        params_(snapshot.params),
        splitter_(snapshot.splitter) {}

  void structure() {
    out_.byte(unsigned{tree_.nodes[0].expanded()});
    for (std::size_t e = 0; e < tree_.expansions.size(); ++e) expansion(e);
  }

  void values() {
    for (const TreeRows::Completion& completion : tree_.completions) {
      if (completion.source == kNone) write_finite(out_, completion.value, "the value of a completion");
    }
  }

  void statistics() {
    std::vector<Known> known = known_of(tree_, params_.k);
    for (std::size_t row = tree_.nodes.size(); row-- > 0;) {
      write(tree_.nodes[row], known[row], row == 0);
      add_below(known, tree_.nodes[row], known[row], scored());
    }
  }

  void pending(const PendingImage& leaf, std::uint32_t number_before) {
    const bool root = leaf.expansion == kNone;
    require(root || (leaf.expansion < first_child_.size() && first_child_[leaf.expansion] != kNone),
            "a leaf");
    const std::uint32_t row = root ? 0 : first_child_[leaf.expansion] + leaf.child;
    require(row < tree_.nodes.size() && !tree_.nodes[row].expanded(), "a leaf");
    const bool asks = params_.k > (params_.reuse ? inherited(tree_, row, params_.k).size() : 0);
    const Stage stage = tree_.nodes[row].terminal                 ? Stage::terminal
                        : leaf.has_values || (!asks && !scored()) ? Stage::answered
                        : leaf.has_completions || !asks           ? Stage::completed
                                                                  : Stage::asked;
    out_.varint(leaf.number - number_before);
    out_.varint(row);
    out_.byte(static_cast<unsigned>(stage));
    if (stage < Stage::completed) return;
    for (const std::string& text : leaf.completions) write_utf8(out_, text, "a completion");
    if (stage < Stage::answered) return;
    for (double value : leaf.completion_values) write_finite(out_, value, "the value of a completion");
    if (splitter_ && scored()) out_.varint(leaf.child_values.size());
    for (double value : leaf.child_values) write_finite(out_, value, "the score of a child");
  }

 private:
  bool scored() const { return params_.mode == Mode::value; }

  void expansion(std::size_t e) {
    const TreeRows::Expansion& expansion = tree_.expansions[e];
    const TreeRows::Completion* completions = &tree_.completions[e * params_.k];
    out_.varint(expansion.simulation);
    for (std::uint32_t i = expansion.reused; i < params_.k; ++i) {
      write_utf8(out_, completions[i].text.view(), "a completion");
    }
    for (std::uint32_t i = 0; splitter_ && i < params_.k; ++i) out_.varint(completions[i].step);
    const Node& node = tree_.nodes[expansion.node];
    std::vector<bool> expanded, visible;
    for (std::uint32_t row = node.first_child; row < node.first_child + node.children; ++row) {
      const Node& child = tree_.nodes[row];
      if (!child.terminal) expanded.push_back(child.expanded());
      visible.push_back(child.visible);
    }
    out_.bits(expanded);
    if (scored() && node.children > params_.num_decisions) out_.bits(visible);
  }

  void write(const Node& node, const Known& known, bool root) {
    std::uint64_t visits = 0;
    if (node.terminal) {
      visits = node.N - (scored() ? known.count : 0);
      out_.varint(visits);
    }
    require(visits_of(node, known, scored(), params_.k, visits) == node.N, "N");
    if (!node.expanded() && visits == 0) {
      if (!scored() || root) {
        require(node.W == 0 && node.V == 0, "a node without visits has values");
      } else {
        require(node.W == fresh_W(node.V, known.count), "W of a child without visits");
        write_finite(out_, node.V, "the score of a child");
      }
      return;
    }
    require(std::fabs(node.W) <= kLargestSum, "W is out of range");
    require(node.V == node.W / node.N, "V is not W / N");
    if (scored()) {
      out_.number(node.W);
    } else {
      const auto foretold = std::bit_cast<std::uint64_t>(foretold_W(node, known, node.N));
      out_.varint(zigzag(std::bit_cast<std::uint64_t>(node.W) - foretold));
    }
  }

  Writer& out_;
  std::vector<std::uint32_t> first_child_;  // by the dump's expansions
  const TreeRows tree_;
  const SearchParams& params_;
  const bool splitter_;
};

}  // namespace

std::string encode(const Snapshot& snapshot) {
  Writer out;
  out.bytes() = kMagic;
  out.fixed(kVersion, 2);
  out.fixed(0, 2);
  out.fixed(0, 8);
  write_params(out, snapshot.params, snapshot.splitter);
  out.fixed(snapshot.seed, 8);
  const TreeImage& image = snapshot.tree;
  write_utf8(out, image.key, "the key of a tree");
  write_utf8(out, image.tree.root_state, "the state of a root");
  out.varint(image.next_number);
  out.varint(image.stats.collisions);
  out.byte(unsigned{image.idle} | unsigned{image.collided} << 1 | unsigned{image.spent} << 2);
  TreeWriter tree(out, snapshot);
  tree.structure();
  tree.values();
  tree.statistics();
  out.varint(image.window.size());
  std::uint32_t number = 0;
  for (const PendingImage& leaf : image.window) {
    tree.pending(leaf, number);
    number = leaf.number;
  }
  std::string& bytes = out.bytes();
  const std::uint64_t size = bytes.size() + kChecksum;
  for (unsigned i = 0; i < 8; ++i) bytes[12 + i] = static_cast<char>(size >> (8 * i) & 0xff);
  out.fixed(crc64(bytes), 8);
  return std::move(out.bytes());
}

}  // namespace restrl::search
