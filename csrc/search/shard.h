// The part of a forest that stands under one lock: its trees, their windows, their open requests.
//
// Concurrency: every member function is called with `mutex` held, the constructor and those said otherwise
// excepted; `idle`, `ready` and `in_flight` may be read without it. Under `desk_`, a second mutex that is
// held for some instructions only and with which nothing else is locked, answers wait for whoever holds
// `mutex` and requests wait for next(): a thread that comes while another works on the trees leaves its
// answers (hand_over), takes what is ready and goes on; the other one applies them before it goes (settle).
// So the trees stay in the caches of one core as long as there is work, and what lies between two of a
// thread's visits is done beside it.
//
// A slot's word says who may touch the rest of it. open -> claimed is a compare-and-swap that any thread may
// try: whoever wins reads and writes the answer (split, values, copies, draft) until its own next transition,
// to open or handed; from there on it is the mutex's, as a free slot is. Dropping a claimed slot marks it,
// and its claimer closes it under the mutex.
//
//   Shard ── lanes ──► Lane ── window ──► [ Entry | Entry | ... ]   oldest first, at most F
//                       │                     │ slot (null: a terminal visit, or nothing to ask)
//                       ▼                     ▼
//                      Tree                  Slot   its place and generation make the RequestId
//
//   Slot:  free ──open()──► open ◄──claim(), leave()──► claimed ──leave()──► handed ──answer()──► answered
//           ▲                                             │ drop() marks it                         │
//           └───────────── close() ◄──────────────────────┴─────────────────────────────────────────┘
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "search/draft_pool.h"
#include "search/forest_data.h"
#include "search/mailbox.h"
#include "search/params.h"
#include "search/patient_mutex.h"
#include "search/ring.h"
#include "search/slot_table.h"
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
  std::uint32_t claims = 0;   // claimed slots that were dropped and may still look at texts of this tree
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

// A request: what its answer is put together in, and reused for the next one. Its first cache line is all
// that the mutex's holder needs where nothing is reused.
struct alignas(64) Slot {
  enum State : std::uint64_t { kFree, kOpen, kClaimed, kHanded, kAnswered };
  static constexpr std::uint64_t kState = 7;
  static constexpr std::uint64_t kCompleted = 8;  // `split` is whole, not only the inherited texts
  static constexpr std::uint64_t kDropped = 16;   // while it was claimed

  std::atomic<std::uint64_t> word = kFree;  // generation << 32 | flags | state
  std::uint32_t place = 0;                  // low half of its requests' ids
  std::uint32_t samples = 0;                // completions to draw
  std::uint32_t number = 0;                 // of its simulation
  NodeId leaf = kRoot;
  Lane* lane = nullptr;
  std::unique_ptr<Draft> draft{};             // of an answer with scores
  Slot* next = nullptr;                       // handed in after it
  Split split;                                // anything before there are texts, with reuse inherited ones
  std::span<const double> completion_values;  // the claiming call's; later they are in `draft`
  std::vector<double> child_values;
  std::string copies;  // of completions without an owner

  State state() const { return static_cast<State>(word.load(std::memory_order_acquire) & kState); }
  bool completed() const { return (word.load(std::memory_order_acquire) & kCompleted) != 0; }
  bool dropped() const { return (word.load(std::memory_order_acquire) & kDropped) != 0; }
  RequestId id() const { return word.load(std::memory_order_relaxed) >> 32 << 32 | place; }
  // By its claimer: claimed -> `to`. False if it was dropped meanwhile, which its claimer then has to close.
  bool leave(State to, std::uint64_t flags) noexcept;
  void forget_completions(std::uint32_t reused);
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

class alignas(64) Shard {
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
  std::atomic<std::size_t> ready = 0;      // requests that next() would find here
  std::atomic<std::size_t> idle = 0;       // trees that next() would have to look at
  std::atomic<std::size_t> in_flight = 0;  // simulations under way

  void add(std::unique_ptr<Lane> lane);
  Lane& lane(TreeId id) const;     // throws RequestError
  Slot& slot(RequestId id) const;  // of an open or claimed request; throws RequestError; needs no mutex
  void remove(TreeId id);          // throws RequestError while simulations are under way
  TreeImage image(TreeId id) const;
  void resume(std::unique_ptr<Lane> lane, std::vector<Resumed>& window);
  void cancel_all();
  void clear();  // after cancel_all(), with no slot claimed

  // Appends leaves to expand until `requests` has `max_requests`, and their states where asked for.
  void take(std::size_t max_requests, std::vector<Request>& requests, std::vector<std::string>* states);

  // The same of requests that are ready; without `states` no mutex is needed.
  void take_ready(std::size_t max_requests, std::vector<Request>& requests, std::vector<std::string>* states);
  void put_back(const Request& request);  // one that did not reach its caller; without the mutex

  // open -> claimed, without the mutex; throws RequestError if some call has claimed it before, maybe this
  // one, which has claimed `mine`.
  Slot& claim(RequestId id, std::span<Slot* const> mine);
  // Leaves handed slots, `first` to `last` by their `next`, without the mutex. If it says so, nobody is there
  // to see to them: the caller has to settle().
  [[nodiscard]] bool hand_over(Slot* first, Slot* last);
  // Applies what was handed over and what follows from it, until nothing is left. Adds the drafts that are
  // free again to `spent`. Throws LimitError or bad_alloc once all is done, for the first simulation that was
  // given up.
  void settle(Drafts& spent);
  // Takes back the simulation of a slot that the caller has claimed; its tree waits for next().
  void drop(Slot& slot);
  // A slot that was dropped while its claimer had it; `filled`: its texts have owners to let go of.
  void close_dropped(Slot& slot, bool filled) noexcept;

  void advance(Lane& lane);

 private:
  bool has_room(const Lane& lane) const;
  bool start_one(Lane& lane);
  std::size_t find_answered(const Lane& lane) const;
  void apply(Lane& lane, std::size_t place);
  void answer(Slot& slot);
  Slot& open(Lane& lane, NodeId node, std::uint32_t number, std::uint32_t samples);
  void close(Slot& slot, bool filled) noexcept;
  bool drop_unless_handed(Slot& slot);
  void leave_window(Slot& slot) noexcept;
  void give_up(Lane& lane, const Entry& entry) noexcept;
  void prefetch_answers(const Lane& lane) const;
  void inherit(const Lane& lane, NodeId node, Split& split) const;
  void bury(Split& split) noexcept;
  void sweep();
  // Moves what was selected to where next() finds it. Throws bad_alloc with nothing changed.
  void publish();
  // Publishes requests and counts; once a call is through with a tree, so that `in_flight` is 0 only at rest.
  void count() noexcept;

  // A cache line apart: what all threads read, what the mutex's holder writes, what the desk's does.
  const std::uint32_t index_;
  const Shared shared_;
  SlotTable<Slot> slots_;

  alignas(64) std::vector<std::unique_ptr<Lane>> lanes_;  // by TreeId / kShards; null once removed
  std::vector<std::unique_ptr<Lane>> removed_;            // but still looked at by a claimed slot
  std::vector<Slot*> free_;
  Ring<Request> selected_;  // and not published yet
  Ring<TreeId> idle_;
  std::size_t flying_ = 0;  // simulations under way
  Drafts spent_;
  Split scratch_;

  alignas(64) PatientMutex desk_;  // of what follows
  Ring<Request> ready_;            // selected, not handed out yet; cancelled ones are skipped
  Slot* handed_ = nullptr;
  Slot* last_handed_ = nullptr;
  bool settling_ = false;  // somebody has said that he will settle()
};

}  // namespace restrl::search
