// The part of a forest that stands under one lock: its trees, their windows, their open requests.
//
// Concurrency: every member function is called with `mutex` held, the constructor and those said otherwise
// excepted. A slot that is claimed lends its answer (split, values, copies) to the one call of
// Forest::fulfil() that claimed it, which reads and writes it without the lock; nobody else touches these
// until that call has come back under the lock. `waiting` and `in_flight` may be read without it.
//
//   Shard ── lanes ──► Lane ── window ──► [ Entry | Entry | ... ]   oldest first, at most F
//                       │                     │ slot (null: a terminal visit, or nothing to ask)
//                       ▼                     ▼
//                      Tree                  Slot   its place and generation make the RequestId
//
//   Slot:  free ──open()──► open ◄──claim(), unclaim()──► claimed
//           ▲                 │ answer()                     │ drop() marks it
//           └── close() ◄── answered, applied                └──unclaim()──► close()
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "search/forest_data.h"
#include "search/mailbox.h"
#include "search/params.h"
#include "search/patient_mutex.h"
#include "search/ring.h"
#include "search/text.h"
#include "search/tree.h"

namespace restrl::search {

struct Slot;

// One simulation under way.
struct Entry {
  VirtualLoss loss;
  std::uint32_t number;
  NodeId node;
  std::uint32_t samples;  // completions to draw
  Slot* slot;             // of its request; null if it asks for nothing
};

// A tree and its window; `window` dies before `tree`.
struct Lane {
  Lane(TreeId tree_id, std::string tree_key, const SearchParams& params, std::uint64_t seed,
       std::string_view state);
  Lane(TreeId tree_id, std::string tree_key, const SearchParams& params, std::uint64_t seed,
       const TreeDump& dump);

  TreeId id;
  std::string key;
  Tree tree;
  Ring<Entry> window{};
  std::uint32_t next_number = 0;
  std::uint32_t started = 0;  // simulations applied or in the window
  std::uint32_t samples = 0;  // drawn by them
  std::uint32_t claims = 0;   // claimed slots that look at texts of this tree
  bool idle = true;           // waits in Shard::idle_ for next()
  bool finished = false;
  bool collided = false;  // since the last change of the tree or its window:
                          // selecting again would too
  bool spent = false;     // a selected leaf needed more samples than were left
  TreeStats stats{};
  // With a splitter and reuse: first step of a text by the place of its first byte, for all that may be
  // inherited. A place stands for one text, since texts stay where they are while the tree lives.
  std::unordered_map<const char*, std::uint32_t> steps{};
};

// A request: what its answer is put together in, and reused for the next one.
struct Slot {
  enum class State : std::uint8_t { free, open, claimed, answered };
  std::uint32_t place = 0;  // low half of its requests' ids
  std::uint32_t generation = 0;
  State state = State::free;
  bool dropped = false;          // while it was claimed
  bool has_completions = false;  // `split` is whole, not only the inherited texts
  std::uint32_t samples = 0;     // completions to draw
  std::uint32_t number = 0;      // of its simulation
  NodeId leaf = kRoot;
  Lane* lane = nullptr;
  const void* claimer = nullptr;
  Split split;
  std::vector<double> completion_values;
  std::vector<double> child_values;
  std::string copies;              // of completions without an owner
  std::unique_ptr<Draft> draft{};  // where the answer waits for its turn; else what it left, or none

  RequestId id() const { return RequestId{generation} << 32 | place; }
  void forget_completions(std::uint32_t reused);
  void write(const RecordFormat& format, Draft& answer) const;
};

// A simulation under way that goes on: what Forest::insert() prepares without the lock.
struct Resumed {
  NodeId node = kRoot;
  std::uint32_t number = 0;
  std::uint32_t samples = 0;
  bool has_completions = false;
  bool has_values = false;
  std::vector<Text> texts;           // drawn ones; of those without an owner the bytes are in `copies`
  std::vector<std::uint32_t> steps;  // with a splitter
  std::string copies;
  std::vector<double> completion_values;
  std::vector<double> child_values;
};

class Shard {
 public:
  static constexpr std::uint32_t kShards = 16;

  // What the shards of a forest have in common.
  struct Shared {
    const SearchParams& params;
    const Splitter& splitter;
    const RecordFormat& format;
    Mailbox<void*>& graveyard;  // owners of texts that nobody reads any more
    Mailbox<TreeId>& finished;
  };

  explicit Shard(std::uint32_t index, const Shared& shared) : index_(index), shared_(shared) {}

  PatientMutex mutex;
  std::atomic<std::size_t> waiting = 0;    // requests and idle trees that next() would find here
  std::atomic<std::size_t> in_flight = 0;  // simulations under way

  void add(std::unique_ptr<Lane> lane);
  Lane& lane(TreeId id) const;  // throws RequestError
  Slot& slot(RequestId id);     // of an open or claimed request; throws RequestError
  void remove(TreeId id);       // throws RequestError while simulations are under way
  TreeImage image(TreeId id) const;
  void resume(std::unique_ptr<Lane> lane, std::vector<Resumed>& window);
  void cancel_all();
  void clear();  // after cancel_all(), with no slot claimed

  // Appends leaves to expand until `requests` has `max_requests`, and their states where asked for.
  void take(std::size_t max_requests, std::vector<Request>& requests, std::vector<std::string>* states);

  void put_back(RequestId id);  // a request that did not reach its caller

  // open -> claimed, for `claimer`; throws RequestError if some call has claimed it before.
  void claim(Slot& slot, RequestId id, const void* claimer);
  // claimed -> open (or free, if it was dropped meanwhile). Returns whether it was dropped.
  bool unclaim(Slot& slot);
  // The request has its scores and their draft: applies what can be applied and selects what follows. `draft`
  // is changed for another one, or none, that its caller may use again.
  void answer(Slot& slot, std::unique_ptr<Draft>& draft);
  // Takes an open request's simulation back; its tree waits for next().
  void drop(Slot& slot);

  void advance(Lane& lane);

 private:
  bool start_one(Lane& lane);
  bool apply_one(Lane& lane);
  Slot& open(Lane& lane, NodeId node, std::uint32_t number, std::uint32_t samples);
  void close(Slot& slot) noexcept;
  void give_up(Lane& lane, const Entry& entry) noexcept;
  void inherit(const Lane& lane, NodeId node, Split& split) const;
  void bury(Split& split) noexcept;
  void sweep();
  // Publishes the counts; once a call is through with a tree, so that `in_flight` is 0 only at rest.
  void count() {
    waiting.store(ready_.size() + idle_.size(), std::memory_order_relaxed);
    in_flight.store(flying_, std::memory_order_release);
  }

  const std::uint32_t index_;
  const Shared shared_;
  std::vector<std::unique_ptr<Lane>> lanes_;    // by TreeId / kShards; null once removed
  std::vector<std::unique_ptr<Lane>> removed_;  // but still looked at by a claimed slot
  std::deque<Slot> slots_;
  std::vector<Slot*> free_;
  Ring<RequestId> ready_;  // selected, not handed out yet; ids of cancelled
                           // requests are skipped
  Ring<TreeId> idle_;
  std::size_t flying_ = 0;  // simulations under way
  Split scratch_;
};

}  // namespace restrl::search
