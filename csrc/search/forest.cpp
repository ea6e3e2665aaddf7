#include "search/forest.h"

#include <algorithm>
#include <string>
#include <utility>

#include "search/errors.h"

namespace restrl::search {
namespace {

[[noreturn]] void no_completions(RequestId id) {
  throw AnswerError("request " + std::to_string(id) + " has no completions yet");
}

}  // namespace

Forest::Forest(const SearchParams& params, std::uint64_t seed, Splitter splitter)
    : params_(params), seed_(seed), splitter_(std::move(splitter)), format_(params) {
  params_.validate();
  const Shard::Shared shared{params_, splitter_, format_, graveyard_, finished_};
  for (std::uint32_t i = 0; i < Shard::kShards; ++i) shards_[i] = std::make_unique<Shard>(i, shared);
  // As far apart as they can be: 0, 8, 4, 12, 2, ...
  for (std::uint32_t i = 0; i < cursors_.size(); ++i) {
    cursors_[i].shard = (i & 1) << 3 | (i & 2) << 1 | (i & 4) >> 1;
  }
}

TreeId Forest::add(std::string_view key, std::string_view state) {
  auto lane = std::make_unique<Lane>(0, std::string(key), params_, seed_, state);
  std::uint32_t id = trees_.load(std::memory_order_relaxed);
  do {
    if (id == kNone) throw LimitError("a forest holds at most 2^32 - 2 trees over its life");
  } while (!trees_.compare_exchange_weak(id, id + 1, std::memory_order_relaxed));
  lane->id = id;
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  place.add(std::move(lane));
  return id;
}

std::atomic<std::uint32_t>& Forest::cursor() {
  const std::thread::id self = std::this_thread::get_id();
  for (Cursor& place : cursors_) {
    std::thread::id thread = place.thread.load(std::memory_order_relaxed);
    if (thread == self) return place.shard;
    if (thread == std::thread::id() && place.thread.compare_exchange_strong(thread, self)) return place.shard;
  }
  return cursors_.back().shard;
}

std::vector<Request> Forest::next(std::size_t max_requests, std::vector<std::string>* states) {
  std::vector<Request> requests;
  next(max_requests, requests, states);
  return requests;
}

void Forest::next(std::size_t max_requests, std::vector<Request>& requests,
                  std::vector<std::string>* states) {
  const std::size_t before = requests.size();
  try {
    gather(before + std::min(max_requests, requests.max_size() - before), requests, states);
  } catch (...) {
    for (; requests.size() > before; requests.pop_back()) {
      shard(requests.back().id).put_back(requests.back());
    }
    throw;
  }
}

void Forest::gather(std::size_t end, std::vector<Request>& requests, std::vector<std::string>* states) {
  std::atomic<std::uint32_t>& start = cursor();
  const std::uint32_t first = start.load(std::memory_order_relaxed);
  std::uint32_t busy = 0;  // shards that another thread works on: last, so that nobody waits without need
  for (const bool patient : {false, true}) {
    for (std::uint32_t i = 0; i < Shard::kShards && requests.size() < end; ++i) {
      Shard& place = shard(first + i);
      if (patient && (busy >> i & 1) == 0) continue;
      const bool ready = place.ready.load(std::memory_order_relaxed) > 0;
      if (ready && states == nullptr) place.take_ready(end, requests, nullptr);
      const bool waiting = (ready && states != nullptr) || place.idle.load(std::memory_order_relaxed) > 0;
      if (waiting && requests.size() < end) {
        std::unique_lock lock(place.mutex, std::defer_lock);
        if (patient) {
          lock.lock();
        } else if (!lock.try_lock()) {
          busy |= 1u << i;
          continue;
        }
        place.take(end, requests, states);
      }
      if (requests.size() == end) start.store((first + i) % Shard::kShards, std::memory_order_relaxed);
    }
    if (busy == 0) break;
  }
}

void Forest::cancel_all() {
  for (const auto& place : shards_) {
    const std::scoped_lock lock(place->mutex);
    place->cancel_all();
  }
}

std::string Forest::state(RequestId id) const {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  const Slot& slot = place.slot(id);
  return slot.lane->tree.state(slot.leaf);
}

std::size_t Forest::children(RequestId id) const {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  const Slot& slot = place.slot(id);
  if (!slot.completed()) no_completions(id);
  return slot.split.children.size();
}

Expansion Forest::expansion(RequestId id) const {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  const Slot& slot = place.slot(id);
  if (!slot.completed()) no_completions(id);
  const Split& split = slot.split;
  Expansion expansion{slot.lane->tree.state(slot.leaf), params_.k - slot.samples, {}, split.child_of, {}};
  for (const Text& text : split.texts) expansion.texts.push_back(text.str());
  for (const Split::Child& child : split.children) {
    expansion.children.push_back({split.line(child), child.terminal});
  }
  return expansion;
}

std::vector<TreeId> Forest::take_finished() { return finished_.take(); }

std::size_t Forest::in_flight() const {
  std::size_t sum = 0;
  for (const auto& place : shards_) sum += place->in_flight.load(std::memory_order_acquire);
  return sum;
}

TreeStats Forest::stats(TreeId id) const {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  const Lane& lane = place.lane(id);
  TreeStats stats = lane.stats;
  stats.in_flight = static_cast<std::uint32_t>(lane.window.size());
  stats.nodes = lane.tree.size();
  stats.text_bytes = lane.tree.text_bytes();
  stats.bytes = lane.tree.bytes();
  return stats;
}

std::size_t Forest::nodes_in_flight(TreeId id) const {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  return place.lane(id).tree.nodes_in_flight();
}

TreeView Forest::view(TreeId id) const {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  return place.lane(id).tree.view();
}

void Forest::remove(TreeId id) {
  Shard& place = shard(id);
  const std::scoped_lock lock(place.mutex);
  place.remove(id);
}

}  // namespace restrl::search
