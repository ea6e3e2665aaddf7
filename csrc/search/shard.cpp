#include "search/shard.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "search/errors.h"
#include "search/random.h"

namespace restrl::search {

Lane::Lane(TreeId tree_id, std::string tree_key, const SearchParams& params, std::uint64_t seed,
           std::string_view state)
    : id(tree_id), key(std::move(tree_key)), tree(params, seed, text_stream(key), state) {}

void Slot::forget_completions(std::uint32_t reused) {
  split.texts.resize(reused);
  split.steps.resize(std::min<std::size_t>(split.steps.size(), reused));
  split.child_of.clear();
  split.children.clear();
  copies.clear();
}

void Slot::write(const RecordFormat& format, Draft& answer) const {
  write_draft(format, split, format.k - samples, completion_values, child_values, answer);
}

void Shard::add(std::unique_ptr<Lane> lane) {
  const std::size_t place = lane->id / kShards;
  if (lanes_.size() <= place) lanes_.resize(place + 1);
  idle_.reserve(lanes_.size());  // so that a lane can always be put there
  if (lane->idle) idle_.push(lane->id);
  lanes_[place] = std::move(lane);
  count();
}

Lane& Shard::lane(TreeId id) const {
  const std::size_t place = id / kShards;
  if (place >= lanes_.size() || lanes_[place] == nullptr) {
    throw RequestError("the forest has no tree " + std::to_string(id));
  }
  return *lanes_[place];
}

Slot& Shard::slot(RequestId id) {
  const std::size_t place = static_cast<std::uint32_t>(id) / kShards;
  if (place < slots_.size()) {
    Slot& slot = slots_[place];
    const bool open = slot.state == Slot::State::open || slot.state == Slot::State::claimed;
    if (open && !slot.dropped && slot.generation == id >> 32) return slot;
  }
  throw RequestError("request " + std::to_string(id) + " is not open: unknown, answered or cancelled");
}

void Shard::remove(TreeId id) {
  sweep();
  Lane& gone = lane(id);
  if (!gone.window.empty()) {
    throw RequestError("tree " + std::to_string(id) + " has " + std::to_string(gone.window.size()) +
                       " simulations under way; cancel them before it is removed");
  }
  std::unique_ptr<Lane>& place = lanes_[id / kShards];
  if (gone.claims > 0) {
    removed_.push_back(std::move(place));
  } else {
    shared_.graveyard.add(gone.tree.take_owners());
    place.reset();
  }
}

void Shard::take(std::size_t max_requests, std::vector<Request>& requests, std::vector<std::string>* states) {
  sweep();
  while (requests.size() < max_requests) {
    if (ready_.empty()) {
      if (idle_.empty()) break;
      const std::unique_ptr<Lane>& lane = lanes_[idle_.pop() / kShards];
      if (lane == nullptr) continue;
      lane->idle = false;
      advance(*lane);
      continue;
    }
    const RequestId id = ready_[0];
    const Slot& slot = slots_[static_cast<std::uint32_t>(id) / kShards];
    if (slot.generation == id >> 32 && !slot.dropped) {  // else it was cancelled meanwhile
      if (states != nullptr) states->push_back(slot.lane->tree.state(slot.leaf));
      requests.push_back({id, slot.lane->id, slot.number, slot.samples, shared_.params.k - slot.samples,
                          slot.has_completions});
    }
    ready_.pop();
  }
  count();
}

void Shard::put_back(RequestId id) {
  ready_.push(id);
  count();
}

void Shard::claim(Slot& slot, RequestId id, const void* claimer) {
  if (slot.state == Slot::State::claimed) {
    throw RequestError("request " + std::to_string(id) +
                       (slot.claimer == claimer ? " is named twice" : " is being answered by another call"));
  }
  slot.state = Slot::State::claimed;
  slot.claimer = claimer;
  ++slot.lane->claims;
}

bool Shard::unclaim(Slot& slot) {
  Lane& lane = *slot.lane;
  slot.state = Slot::State::open;
  slot.claimer = nullptr;
  --lane.claims;
  if (!slot.dropped) return false;
  close(slot);
  return true;
}

// Removed trees that no claimed slot looks at any more.
void Shard::sweep() {
  std::erase_if(removed_, [&](const std::unique_ptr<Lane>& lane) {
    if (lane->claims > 0) return false;
    shared_.graveyard.add(lane->tree.take_owners());
    return true;
  });
}

void Shard::answer(Slot& slot, std::unique_ptr<Draft>& draft) {
  slot.state = Slot::State::answered;
  ++slot.generation;
  std::swap(slot.draft, draft);
  advance(*slot.lane);
  if (slot.state != Slot::State::answered) std::swap(slot.draft, draft);
  count();
}

// Takes an unanswered simulation out of its window; the lane waits in idle_ until next() comes to it.
void Shard::drop(Slot& slot) {
  Lane& lane = *slot.lane;
  for (std::size_t i = 0; i < lane.window.size(); ++i) {
    if (lane.window[i].slot != &slot) continue;
    const Entry entry = lane.window.take(i);
    give_up(lane, entry);
    break;
  }
  if (slot.state == Slot::State::claimed) {
    slot.dropped = true;  // the call that answers it right now closes it
  } else {
    close(slot);
  }
  advance(lane);
  count();
}

void Shard::cancel_all() {
  std::vector<Slot*> open;
  for (const auto& lane : lanes_) {
    if (lane == nullptr) continue;
    open.clear();
    for (std::size_t i = 0; i < lane->window.size(); ++i) {
      Slot* slot = lane->window[i].slot;
      if (slot != nullptr && slot->state != Slot::State::answered) open.push_back(slot);
    }
    for (Slot* slot : open) drop(*slot);
    if (!lane->window.empty()) advance(*lane);  // answered, but memory ended when it was their turn
  }
  count();
}

void Shard::clear() {
  for (const auto& lane : lanes_) {
    if (lane != nullptr) shared_.graveyard.add(lane->tree.take_owners());
  }
  lanes_.clear();
  sweep();
  count();
}

Slot& Shard::open(Lane& lane, NodeId node, std::uint32_t number, std::uint32_t samples) {
  if (free_.empty()) {
    const std::size_t place = slots_.size() * kShards + index_;
    if (place >= kNone) throw LimitError("a forest has at most 2^28 requests open at once");
    // So that closing a slot cannot fail.
    free_.reserve(slots_.size() + 1);
    shared_.graveyard.expect(shared_.params.k);
    slots_.emplace_back().place = static_cast<std::uint32_t>(place);
    free_.push_back(&slots_.back());
  }
  Slot& slot = *free_.back();
  inherit(lane, node, slot.split);
  if (samples == 0) split_texts(slot.split, shared_.params.step_ends);
  free_.pop_back();
  slot.has_completions = samples == 0;
  slot.dropped = false;
  slot.state = Slot::State::open;
  slot.lane = &lane;
  slot.leaf = node;
  slot.number = number;
  slot.samples = samples;
  return slot;
}

void Shard::close(Slot& slot) noexcept {
  bury(slot.split);
  slot.forget_completions(0);
  slot.completion_values.clear();
  slot.child_values.clear();
  slot.state = Slot::State::free;
  slot.lane = nullptr;
  ++slot.generation;
  free_.push_back(&slot);
}

// The owners of texts that the tree did not take.
void Shard::bury(Split& split) noexcept {
  for (Text& text : split.texts) {
    if (text.owner != nullptr) shared_.graveyard.add_expected(std::exchange(text.owner, nullptr));
  }
}

// The texts that `node` has already, with their first steps.
void Shard::inherit(const Lane& lane, NodeId node, Split& split) const {
  split.texts.clear();
  split.steps.clear();
  lane.tree.inherit(node, split.texts);
  if (!shared_.splitter) return;
  for (const Text& text : split.texts) {
    split.steps.push_back(text.size == 0 ? 1 : lane.steps.at(text.data));
  }
}

// Undoes what `entry`'s start counted and has its lane wait for next().
void Shard::give_up(Lane& lane, const Entry& entry) noexcept {
  --flying_;
  --lane.started;
  lane.samples -= entry.samples;
  lane.spent = false;
  lane.collided = false;
  if (!lane.idle) idle_.push(lane.id);
  lane.idle = true;
}

// Selects one simulation into the window; false if there is no room, no budget, or a collision.
bool Shard::start_one(Lane& lane) {
  const SearchParams& params = shared_.params;
  if (lane.idle || lane.collided || lane.spent || lane.window.size() >= params.leaves_in_flight ||
      lane.started >= params.simulations) {
    return false;
  }
  const NodeId node = lane.tree.select(lane.next_number);
  const bool terminal = lane.tree.terminal(node);
  if (!terminal && lane.tree.in_flight(node) > 0) {
    ++lane.stats.collisions;
    lane.collided = true;
    return false;
  }
  const std::uint32_t samples = terminal ? 0 : params.k - lane.tree.inherited(node);
  if (params.max_samples != 0 && samples > params.max_samples - lane.samples) {
    lane.spent = true;
    return false;
  }
  lane.window.reserve(1);
  ready_.reserve(1);
  const bool asks = !terminal && (samples > 0 || params.mode == Mode::value);
  Slot* slot = asks ? &open(lane, node, lane.next_number, samples) : nullptr;
  const std::uint32_t own = terminal ? 1 : params.k;
  const std::uint32_t path = terminal ? 1 : params.mode == Mode::value ? params.k : samples;
  lane.window.push({VirtualLoss(lane.tree, node, own, path), lane.next_number, node, samples, slot});
  ++flying_;
  ++lane.next_number;
  ++lane.started;
  lane.samples += samples;
  if (slot != nullptr) ready_.push(slot->id());
  return true;
}

// Applies the oldest simulation if it is answered (the oldest answered one if the order is free).
bool Shard::apply_one(Lane& lane) {
  const auto answered = [&](std::size_t i) {
    const Slot* slot = lane.window[i].slot;
    return slot == nullptr || slot->state == Slot::State::answered;
  };
  const std::size_t end =
      shared_.params.in_order ? std::min<std::size_t>(1, lane.window.size()) : lane.window.size();
  std::size_t found = 0;
  while (found < end && !answered(found)) ++found;
  if (found == end) return false;
  // Out of the window first: should expand() throw, the simulation is given up and its virtual loss with it.
  Entry entry = lane.window.take(found);
  lane.collided = false;
  Visits visits;
  try {
    if (lane.tree.terminal(entry.node)) {
      const Visit visit = lane.tree.terminal_visit(entry.node);
      visits = {visit, visit};
      ++lane.stats.terminal_visits;
    } else {
      if (entry.slot != nullptr) {
        Slot& slot = *entry.slot;
        visits = lane.tree.expand_drafted(entry.node, entry.number, slot.split, slot.completion_values,
                                          *slot.draft);
        for (Text& text : slot.split.texts) text.owner = nullptr;  // the tree has them now
      } else {
        inherit(lane, entry.node, scratch_);
        split_texts(scratch_, shared_.params.step_ends);
        visits = lane.tree.expand(entry.node, entry.number, scratch_, {}, {});
      }
      ++lane.stats.expansions;
      lane.stats.completions += shared_.params.k;
      lane.stats.samples += entry.samples;
      lane.stats.reused += shared_.params.k - entry.samples;
    }
  } catch (...) {
    if (entry.slot != nullptr) close(*entry.slot);
    give_up(lane, entry);
    throw;
  }
  if (entry.slot != nullptr) close(*entry.slot);
  lane.tree.back_up(entry.node, visits.own, visits.path, std::move(entry.loss));
  --flying_;
  ++lane.stats.simulations;
  return true;
}

void Shard::advance(Lane& lane) {
  try {
    do {
      while (start_one(lane)) {
      }
    } while (apply_one(lane));
    if (!lane.window.empty() || lane.idle) return;
    if (lane.tree.in_flight(kRoot) != 0) {
      throw std::logic_error("a tree at rest has virtual loss left");  // a bug here, no caller's mistake
    }
    if (!lane.finished) shared_.finished.add(lane.id);
    lane.finished = true;
  } catch (...) {
    if (!lane.idle) idle_.push(lane.id);  // next() tries again
    lane.idle = true;
    count();
    throw;
  }
}

}  // namespace restrl::search
