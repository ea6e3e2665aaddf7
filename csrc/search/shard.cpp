#include "search/shard.h"

#include <algorithm>
#include <exception>
#include <new>
#include <stdexcept>
#include <utility>

#include "search/errors.h"
#include "search/random.h"

namespace restrl::search {
namespace {

constexpr std::size_t kTogether = 16;  // requests that are published together
constexpr std::size_t kAhead = 4;  // answers, the one at hand counted, whose place in their tree is fetched
constexpr std::size_t kWarm = 64;  // slots of a shard whose trees fit into a cache

// Whether a slot with this word is open or claimed for request `id`.
bool is_open(std::uint64_t word, RequestId id) {
  const std::uint64_t state = word & Slot::kState;
  return word >> 32 == id >> 32 && (state == Slot::kOpen || state == Slot::kClaimed) &&
         (word & Slot::kDropped) == 0;
}

// How many answers for one tree begin with this one.
std::size_t answers_in_a_row(const Slot& first) {
  std::size_t count = 0;
  for (const Slot* slot = &first; slot != nullptr && slot->lane == first.lane; slot = slot->next) ++count;
  return count;
}

}  // namespace

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

bool Slot::leave(State to, std::uint64_t flags) noexcept {
  std::uint64_t seen = word.load(std::memory_order_relaxed);
  do {
    if ((seen & kDropped) != 0) return false;
  } while (!word.compare_exchange_weak(seen, (seen & ~kState) | to | flags, std::memory_order_acq_rel,
                                       std::memory_order_relaxed));
  return true;
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

Slot& Shard::slot(RequestId id) const {
  if (Slot* const slot = slots_.find(static_cast<std::uint32_t>(id) / kShards)) {
    if (is_open(slot->word.load(std::memory_order_acquire), id)) return *slot;
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
  publish();
  while (requests.size() < max_requests) {
    take_ready(max_requests, requests, states);
    if (requests.size() == max_requests || idle_.empty()) break;
    const std::unique_ptr<Lane>& lane = lanes_[idle_.pop() / kShards];
    if (lane == nullptr) continue;
    lane->idle = false;
    advance(*lane);
    publish();
  }
  count();
}

void Shard::take_ready(std::size_t max_requests, std::vector<Request>& requests,
                       std::vector<std::string>* states) {
  const std::scoped_lock lock(desk_);
  for (; !ready_.empty() && requests.size() < max_requests; ready_.pop()) {
    const Request& request = ready_[0];
    const Slot& slot = *slots_.find(static_cast<std::uint32_t>(request.id) / kShards);
    if (!is_open(slot.word.load(std::memory_order_acquire), request.id)) continue;  // cancelled meanwhile
    if (states != nullptr) states->push_back(slot.lane->tree.state(slot.leaf));
    requests.push_back(request);
  }
  ready.store(ready_.size(), std::memory_order_relaxed);
}

void Shard::put_back(const Request& request) {
  const std::scoped_lock lock(desk_);
  ready_.push(request);
  ready.store(ready_.size(), std::memory_order_relaxed);
}

void Shard::publish() {
  if (selected_.empty()) return;
  const std::scoped_lock lock(desk_);
  if (ready_.empty()) {
    // With the room it had, which put_back() may need.
    if (selected_.capacity() < ready_.capacity()) selected_.reserve(ready_.capacity() - selected_.size());
    ready_.swap(selected_);
  }
  ready_.reserve(selected_.size());
  while (!selected_.empty()) ready_.push(selected_.pop());
  ready.store(ready_.size(), std::memory_order_relaxed);
}

void Shard::count() noexcept {
  try {
    publish();
  } catch (const std::bad_alloc&) {
    // take() tries again
  }
  idle.store(idle_.size() + selected_.size(), std::memory_order_relaxed);
  in_flight.store(flying_, std::memory_order_release);
}

Slot& Shard::claim(RequestId id, std::span<Slot* const> mine) {
  if (Slot* const slot = slots_.find(static_cast<std::uint32_t>(id) / kShards)) {
    std::uint64_t seen = slot->word.load(std::memory_order_relaxed);
    while (is_open(seen, id) && (seen & Slot::kState) == Slot::kOpen) {
      const std::uint64_t claimed = (seen & ~Slot::kState) | Slot::kClaimed;
      if (slot->word.compare_exchange_weak(seen, claimed, std::memory_order_acquire,
                                           std::memory_order_relaxed))
        return *slot;
    }
  }
  const Slot& slot = this->slot(id);  // which says so if it is not open
  const bool twice = std::find(mine.begin(), mine.end(), &slot) != mine.end();
  throw RequestError("request " + std::to_string(id) +
                     (twice ? " is named twice" : " is being answered by another call"));
}

bool Shard::hand_over(Slot* first, Slot* last) {
  const std::scoped_lock lock(desk_);
  (handed_ == nullptr ? handed_ : last_handed_->next) = first;
  last_handed_ = last;
  return !std::exchange(settling_, true);
}

void Shard::settle(Drafts& spent) {
  std::exception_ptr error;
  for (;;) {
    Slot* slot = nullptr;
    {
      const std::scoped_lock lock(desk_);
      slot = std::exchange(handed_, nullptr);
      if (slot == nullptr) {
        settling_ = false;
        break;
      }
    }
    Slot* fetched = slot;
    std::size_t ahead = 0;  // answers from `slot` to `fetched`
    while (slot != nullptr) {
      for (; fetched != nullptr && ahead < kAhead; ++ahead, fetched = fetched->next) {
        fetched->lane->tree.prefetch(fetched->leaf);
      }
      --ahead;
      Slot* const next = slot->next;
      if (next != nullptr && next->lane != slot->lane && slots_.size() > kWarm) {
        next->lane->tree.fetch_top(answers_in_a_row(*next));
      }
      try {
        answer(*slot);
      } catch (...) {
        if (error == nullptr) error = std::current_exception();
      }
      slot = next;
    }
    spent.take(spent_);
    count();
    mutex.give_way();
  }
  if (error != nullptr) std::rethrow_exception(error);
}

void Shard::close_dropped(Slot& slot, bool filled) noexcept {
  --slot.lane->claims;
  close(slot, filled);
}

// Removed trees that no claimed slot looks at any more.
void Shard::sweep() {
  std::erase_if(removed_, [&](const std::unique_ptr<Lane>& lane) {
    if (lane->claims > 0) return false;
    shared_.graveyard.add(lane->tree.take_owners());
    return true;
  });
}

// The request has its scores: applies what can be applied and selects what follows.
void Shard::answer(Slot& slot) {
  const std::uint64_t word = slot.word.load(std::memory_order_relaxed);
  slot.word.store((word & ~Slot::kState) | Slot::kAnswered, std::memory_order_relaxed);
  advance(*slot.lane);
}

void Shard::drop(Slot& slot) {
  Lane& lane = *slot.lane;
  leave_window(slot);
  close(slot, slot.completed());
  advance(lane);
  count();
}

// The same of a slot that anybody may have claimed, in which case he closes it; false if its answer is there.
bool Shard::drop_unless_handed(Slot& slot) {
  std::uint64_t seen = slot.word.load(std::memory_order_acquire);
  for (;;) {
    const std::uint64_t state = seen & Slot::kState;
    if (state != Slot::kOpen && state != Slot::kClaimed) return false;
    const bool open = state == Slot::kOpen;
    const std::uint64_t mine = open ? (seen & ~Slot::kState) | Slot::kClaimed : seen | Slot::kDropped;
    if (!slot.word.compare_exchange_weak(seen, mine, std::memory_order_acq_rel)) continue;
    if (open) {
      drop(slot);
    } else {
      Lane& lane = *slot.lane;
      ++lane.claims;
      leave_window(slot);
      advance(lane);
    }
    return true;
  }
}

// Takes an unanswered simulation out of its window; the lane waits in idle_ until next() comes to it.
void Shard::leave_window(Slot& slot) noexcept {
  Lane& lane = *slot.lane;
  for (std::size_t i = 0; i < lane.window.size(); ++i) {
    if (lane.window[i].slot != &slot) continue;
    const Entry entry = lane.window.take(i);
    give_up(lane, entry);
    break;
  }
}

void Shard::cancel_all() {
  std::vector<Slot*> open;
  for (const auto& lane : lanes_) {
    if (lane == nullptr) continue;
    open.clear();
    for (std::size_t i = 0; i < lane->window.size(); ++i) {
      Slot* slot = lane->window[i].slot;
      if (slot != nullptr) open.push_back(slot);
    }
    for (Slot* slot : open) drop_unless_handed(*slot);
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
    if (free_.capacity() <= slots_.size()) free_.reserve(2 * slots_.size() + 1);
    shared_.graveyard.expect(shared_.params.k);
    Slot& added = slots_.add();
    added.place = static_cast<std::uint32_t>(place);
    free_.push_back(&added);
  }
  Slot& slot = *free_.back();
  if (samples < shared_.params.k) inherit(lane, node, slot.split);
  if (samples == 0) split_texts(slot.split, shared_.params.step_ends);
  free_.pop_back();
  slot.lane = &lane;
  slot.leaf = node;
  slot.number = number;
  slot.samples = samples;
  const std::uint64_t generation = slot.word.load(std::memory_order_relaxed) >> 32 << 32;
  slot.word.store(generation | Slot::kOpen | (samples == 0 ? Slot::kCompleted : 0),
                  std::memory_order_release);
  return slot;
}

void Shard::close(Slot& slot, bool filled) noexcept {
  if (filled) bury(slot.split);
  if (slot.draft != nullptr) spent_.push(std::move(slot.draft));
  slot.lane = nullptr;
  const std::uint64_t generation = slot.word.load(std::memory_order_relaxed) >> 32;
  slot.word.store((generation + 1) << 32 | Slot::kFree, std::memory_order_release);
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

// Whether a simulation could be selected into the window, but for collisions that are still to come.
bool Shard::has_room(const Lane& lane) const {
  return !lane.idle && !lane.collided && !lane.spent &&
         lane.window.size() < shared_.params.leaves_in_flight && lane.started < shared_.params.simulations;
}

// Selects one simulation into the window; false if there was a collision or no budget.
bool Shard::start_one(Lane& lane) {
  const SearchParams& params = shared_.params;
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
  selected_.reserve(1);
  const bool asks = !terminal && (samples > 0 || params.mode == Mode::value);
  Slot* slot = asks ? &open(lane, node, lane.next_number, samples) : nullptr;
  const std::uint32_t own = terminal ? 1 : params.k;
  const std::uint32_t path = terminal ? 1 : params.mode == Mode::value ? params.k : samples;
  const bool last =
      lane.window.size() + 1 == params.leaves_in_flight || lane.started + 1 == params.simulations;
  lane.window.push({VirtualLoss(lane.tree, node, own, path, last), lane.next_number, node, samples, slot});
  ++flying_;
  ++lane.next_number;
  ++lane.started;
  lane.samples += samples;
  if (slot == nullptr) return true;
  selected_.push({slot->id(), lane.id, slot->number, samples, params.k - samples, slot->completed()});
  if (selected_.size() >= kTogether) count();
  return true;
}

// The place in the window of the oldest simulation if it is answered (of the oldest answered one if the order
// is free); the window's size if there is none.
std::size_t Shard::find_answered(const Lane& lane) const {
  const std::size_t size = lane.window.size();
  const std::size_t end = shared_.params.in_order ? std::min<std::size_t>(1, size) : size;
  for (std::size_t i = 0; i < end; ++i) {
    const Slot* const slot = lane.window[i].slot;
    if (slot == nullptr || slot->state() == Slot::kAnswered) return i;
  }
  return size;
}

// Applies the simulation at that place.
void Shard::apply(Lane& lane, std::size_t place) {
  // Out of the window first: should expand() throw, the simulation is given up and its virtual loss with it.
  Entry entry = lane.window.take(place);
  prefetch_answers(lane);
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
        visits = lane.tree.expand_drafted(entry.node, entry.number, slot.split, *slot.draft);
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
    if (entry.slot != nullptr) close(*entry.slot, true);
    give_up(lane, entry);
    throw;
  }
  if (entry.slot != nullptr) close(*entry.slot, false);  // the tree has the owners of its texts now
  lane.tree.back_up(entry.node, visits.own, visits.path, std::move(entry.loss));
  --flying_;
  ++lane.stats.simulations;
}

// Asks for the answers that come next, which another core may have written.
void Shard::prefetch_answers(const Lane& lane) const {
  constexpr std::size_t kSlots = 4;
  constexpr std::size_t kDrafts = 1;
  if (lane.window.size() > kSlots) __builtin_prefetch(lane.window[kSlots].slot, 1);
  if (lane.window.size() <= kDrafts) return;
  const Slot* const slot = lane.window[kDrafts].slot;
  if (slot != nullptr && slot->state() >= Slot::kHanded) slot->draft->prefetch();
}

void Shard::advance(Lane& lane) {
  try {
    for (;;) {
      while (has_room(lane) && start_one(lane)) {
      }
      const std::size_t place = find_answered(lane);
      if (place == lane.window.size()) break;
      apply(lane, place);
    }
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
