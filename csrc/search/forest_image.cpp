// A tree of a forest as plain data, whatever is under way in it, and back.
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "search/errors.h"
#include "search/forest.h"
#include "search/random.h"

namespace restrl::search {
namespace {

// The node of each expansion of `dump`, which is of `tree`.
std::vector<NodeId> expanded_nodes(const Tree& tree, const TreeDump& dump) {
  std::vector<NodeId> nodes;
  nodes.reserve(dump.expansions.size());
  for (const TreeDump::Expansion& expansion : dump.expansions) {
    const bool root = expansion.parent == kNone;
    nodes.push_back(root ? kRoot : tree.child(nodes[expansion.parent], expansion.child));
  }
  return nodes;
}

// Where a splitter ends the first step of `text`.
std::uint32_t first_step(const Splitter& splitter, const Text& text) {
  const std::string whole = text.str();
  return static_cast<std::uint32_t>(std::min(splitter(whole), whole.size()));
}

// Notes the first steps of all that may be inherited from `text`.
void note_steps(Lane& lane, const Splitter& splitter, Text text, std::uint32_t step) {
  for (;;) {
    lane.steps.insert_or_assign(text.data, step);
    text = text.rest(step);
    if (text.size == 0) return;
    step = first_step(splitter, text);
  }
}

// A tree's completions, reused ones too, end their steps where the splitter says; with reuse the lane needs
// all of them. `nodes` are those of the expansions.
void check_steps(Lane& lane, const TreeDump& dump, const std::vector<NodeId>& nodes,
                 const SearchParams& params, const Splitter& splitter) {
  std::vector<Text> inherited;
  std::size_t text = 0;
  std::size_t child = 0;
  for (std::size_t e = 0; e < dump.expansions.size(); ++e) {
    const auto check = [&](std::uint32_t i, std::uint32_t step) {
      if (step == dump.children[child + dump.child_of[e * params.k + i]].length) return;
      throw SnapshotError("the splitter ends a step of expansion " + std::to_string(e) +
                          " elsewhere: it is another one, or does not depend on the text alone");
    };
    inherited.clear();
    lane.tree.inherit(nodes[e], inherited);
    for (std::uint32_t i = 0; i < inherited.size(); ++i) {
      // All steps above are where the splitter ends them, so the place is one that was noted.
      check(i, inherited[i].size == 0 ? 1 : lane.steps.at(inherited[i].data));
    }
    for (std::uint32_t i = dump.expansions[e].reused; i < params.k; ++i, ++text) {
      const std::uint32_t step = first_step(splitter, dump.texts[text]);
      check(i, step);
      if (params.reuse) note_steps(lane, splitter, dump.texts[text], step);
    }
    child += dump.expansions[e].children;
  }
}

}  // namespace

Lane::Lane(TreeId tree_id, std::string tree_key, const SearchParams& params, std::uint64_t seed,
           const TreeDump& dump)
    : id(tree_id), key(std::move(tree_key)), tree(params, seed, text_stream(key), dump) {}

TreeImage Forest::image(TreeId id) const {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  return place.image(id);
}

TreeImage Shard::image(TreeId id) const {
  const Lane& lane = this->lane(id);
  TreeImage image;
  image.key = lane.key;
  image.tree = lane.tree.dump();
  image.next_number = lane.next_number;
  image.idle = lane.idle;
  image.collided = lane.collided;
  image.spent = lane.spent;
  image.stats = lane.stats;
  if (lane.window.empty()) return image;

  const std::vector<NodeId> nodes = expanded_nodes(lane.tree, image.tree);
  std::unordered_map<NodeId, std::uint32_t> expansion_of;
  for (std::uint32_t e = 0; e < nodes.size(); ++e) expansion_of.emplace(nodes[e], e);
  for (std::size_t i = 0; i < lane.window.size(); ++i) {
    const Entry& entry = lane.window[i];
    PendingImage& pending = image.window.emplace_back();
    pending = {entry.number, kNone, 0, false, false, {}, {}, {}};
    if (entry.node != kRoot) {
      const NodeId parent = lane.tree.parent(entry.node);
      pending.expansion = expansion_of.at(parent);
      while (lane.tree.child(parent, pending.child) != entry.node) ++pending.child;
    }
    // What a claimed slot has not handed in yet is left out: its call has not
    // happened.
    const Slot* slot = entry.slot;
    if (slot == nullptr || !slot->completed()) continue;
    pending.has_completions = true;
    for (std::size_t text = shared_.params.k - slot->samples; text < slot->split.texts.size(); ++text) {
      pending.completions.emplace_back(slot->split.texts[text].view());
    }
    if (slot->state() < Slot::kHanded) continue;
    pending.has_values = true;
    const Draft& draft = *slot->draft;
    pending.completion_values.assign(draft.values().begin(), draft.values().end());
    if (shared_.params.mode == Mode::value) pending.child_values = slot->child_values;
  }
  return image;
}

TreeId Forest::insert(const TreeImage& image, const Keep& keep) {
  auto lane = std::make_unique<Lane>(0, image.key, params_, seed_, image.tree);
  lane->next_number = image.next_number;
  lane->idle = image.idle;
  lane->collided = image.collided;
  lane->spent = image.spent;
  lane->stats = image.stats;
  lane->started = image.stats.simulations;
  lane->samples = image.stats.samples;
  const TreeDump dump = lane->tree.dump();  // its texts lie where they stay
  const std::vector<NodeId> nodes = expanded_nodes(lane->tree, dump);
  if (splitter_) check_steps(*lane, dump, nodes, params_, splitter_);

  std::vector<Resumed> window;
  window.reserve(image.window.size());
  try {
    for (const PendingImage& pending : image.window) {
      const bool root = pending.expansion == kNone;
      const NodeId node = root ? kRoot : lane->tree.child(nodes[pending.expansion], pending.child);
      Resumed& resumed = window.emplace_back();
      resumed.node = node;
      resumed.number = pending.number;
      if (lane->tree.terminal(node)) continue;
      resumed.samples = params_.k - lane->tree.inherited(node);
      if (!pending.has_completions || resumed.samples == 0) {
        resumed.has_completions = resumed.samples == 0;
      } else {
        resume_completions(*lane, pending, keep, resumed);
      }
      resumed.has_values = pending.has_values;
      resumed.completion_values = pending.completion_values;
      resumed.child_values = pending.child_values;
    }
    std::uint32_t id = trees_.load(std::memory_order_relaxed);
    do {
      if (id == kNone) throw LimitError("a forest holds at most 2^32 - 2 trees over its life");
    } while (!trees_.compare_exchange_weak(id, id + 1, std::memory_order_relaxed));
    lane->id = id;
    Shard& place = shard(id);
    const std::scoped_lock lock(place.mutex);
    place.resume(std::move(lane), window);
    return id;
  } catch (...) {
    for (Resumed& resumed : window) {
      for (Text& text : resumed.texts) {
        if (text.owner != nullptr) graveyard_.add(text.owner);
      }
    }
    throw;
  }
}

void Forest::resume_completions(Lane& lane, const PendingImage& pending, const Keep& keep, Resumed& resumed) {
  resumed.has_completions = true;
  std::size_t size = 0;
  for (const std::string& text : pending.completions) size += text.size();
  resumed.copies.reserve(size);
  for (const std::string& utf8 : pending.completions) {
    if (splitter_) {  // places of texts stand for their steps, so the texts may
                      // not move
      const Sampled kept = keep(utf8);
      const Text text = resumed.texts.emplace_back(to_text(kept.utf8, kept.owner));
      const std::uint32_t step = first_step(splitter_, text);
      resumed.steps.push_back(step);
      if (params_.reuse) note_steps(lane, splitter_, text, step);
    } else {
      Text text = to_text(utf8);
      resumed.copies += text.view();
      text.data = resumed.copies.data() + resumed.copies.size() - text.size;
      resumed.texts.push_back(text);
    }
  }
}

// Puts a tree and its window into this shard.
void Shard::resume(std::unique_ptr<Lane> owned, std::vector<Resumed>& window) {
  Lane& lane = *owned;
  const SearchParams& params = shared_.params;
  const bool scored = params.mode == Mode::value;
  lane.window.reserve(window.size());
  publish();  // so that add() does not, and the room is there when it is needed
  selected_.reserve(window.size());
  std::vector<Slot*> opened;
  opened.reserve(window.size());
  try {
    for (Resumed& resumed : window) {
      const bool terminal = lane.tree.terminal(resumed.node);
      const bool asks = !terminal && (resumed.samples > 0 || scored);
      Slot* slot = asks ? &open(lane, resumed.node, resumed.number, resumed.samples) : nullptr;
      if (asks) opened.push_back(slot);
      if (asks && resumed.samples == params.k) {  // else open() has put inherited ones there
        slot->split.texts.clear();
        slot->split.steps.clear();
      }
      if (asks && resumed.has_completions && resumed.samples > 0) {
        // The texts without owner move with their copies.
        slot->copies = std::move(resumed.copies);
        Split& split = slot->split;
        split.texts.reserve(split.texts.size() + resumed.texts.size());
        split.steps.insert(split.steps.end(), resumed.steps.begin(), resumed.steps.end());
        std::size_t at = 0;
        for (Text& text : resumed.texts) {
          if (text.owner == nullptr) text.data = slot->copies.data() + at;
          at += text.size;
          split.texts.push_back(text);
          text.owner = nullptr;
        }
        split_texts(split, params.step_ends);
        slot->word.fetch_or(Slot::kCompleted, std::memory_order_release);
      }
      const std::uint32_t own = terminal ? 1 : params.k;
      const std::uint32_t path = terminal ? 1 : scored ? params.k : resumed.samples;
      lane.window.push({VirtualLoss(lane.tree, resumed.node, own, path), resumed.number, resumed.node,
                        resumed.samples, slot});
      ++lane.started;
      lane.samples += resumed.samples;
      if (!asks || !resumed.has_values) continue;
      if (resumed.child_values.size() != (scored ? slot->split.children.size() : 0)) {
        throw SnapshotError("simulation " + std::to_string(resumed.number) + " has values of " +
                            std::to_string(resumed.child_values.size()) + " children, but " +
                            std::to_string(slot->split.children.size()) + " of them");
      }
      slot->child_values = std::move(resumed.child_values);
      slot->draft = Draft::make(shared_.format);
      write_draft(shared_.format, slot->split, params.k - resumed.samples, resumed.completion_values,
                  slot->child_values, *slot->draft);
    }
    add(std::move(owned));
  } catch (...) {
    lane.window.clear();
    for (Slot* slot : opened) close(*slot, true);
    throw;
  }
  for (std::size_t i = 0; i < window.size(); ++i) {
    Slot* slot = lane.window[i].slot;
    if (slot == nullptr) continue;
    if (window[i].has_values) {
      const std::uint64_t word = slot->word.load(std::memory_order_relaxed);
      slot->word.store((word & ~Slot::kState) | Slot::kAnswered, std::memory_order_release);
    } else {
      selected_.push(
          {slot->id(), lane.id, slot->number, slot->samples, params.k - slot->samples, slot->completed()});
    }
  }
  flying_ += window.size();
  if (!lane.idle && lane.window.empty()) {
    shared_.finished.add(lane.id);
    lane.finished = true;
  }
  count();
}

}  // namespace restrl::search
