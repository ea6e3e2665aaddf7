// Many search trees behind one pull-based interface; the model enters only through requests and answers.
//
// Concurrency: every public function may be called from any thread at any time. Trees are dealt out to
// shards, each under a mutex of its own (shard.h); a call locks one shard at a time, so calls on trees of
// different shards run beside each other, and what needs no tree (claiming requests, taking completions
// apart, writing the record of an expansion, a splitter that calls Python, handing out requests without
// their states) runs under none. A fulfil() that finds another one at work on its shard leaves its answers
// there and returns: that one applies them before it returns itself, and fails for them too. No function
// calls back into the caller with a lock held. A tree's shape depends on its key, its root state, the seed,
// the parameters and the answers alone: with `in_order` its answers are applied in the order of its requests,
// and simulation j is selected as soon as the answers up to j - F are applied (F = leaves_in_flight) and it
// meets no leaf in flight, whoever calls next() or fulfil() first and however much they take. The one
// exception is a tree whose requests were cancelled: it goes on when next() comes to it again.
//
//   add ──► idle ──next()──► selecting ──► window of at most F simulations, oldest first
//                               ▲            [ terminal visit, or nothing to ask: answered at once ]
//                               │            [ request ──next()──► caller ──fulfil(completions)──► split
//                               │                                          ──fulfil(scores)──► answered ]
//                               └── apply (expand, back up, virtual loss released) ◄── oldest, once answered
//
//   fulfil:  claim ──► check, split, write drafts ──► hand over ──► nobody there? apply, under the mutex
//
// A selection that meets a leaf already in flight is a collision: it is counted and forgotten, and the tree
// selects again after the next answer; its places go to other trees. A visit of a terminal node takes its
// place in the window but needs no answer, and with reuse neither does a leaf that inherits all its
// completions (in value mode its children still want scores); every simulation counts, so that a tree of
// nothing but terminal nodes ends too. cancel_all() beats a fulfil() that runs beside it: the answer is
// dropped; answers that were handed over before are applied. A call that names a request which another
// fulfil() is answering gets a RequestError.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "search/draft_pool.h"
#include "search/forest_data.h"
#include "search/mailbox.h"
#include "search/params.h"
#include "search/shard.h"
#include "search/tree.h"

namespace restrl::search {

class Forest {
 public:
  // `splitter` takes the place of params.step_ends. Throws ParamError.
  Forest(const SearchParams& params, std::uint64_t seed, Splitter splitter = nullptr);
  Forest(const Forest&) = delete;
  Forest& operator=(const Forest&) = delete;

  const SearchParams& params() const { return params_; }
  std::uint64_t seed() const { return seed_; }

  // A tree whose root is `state`; `key` keys its random draws.
  TreeId add(std::string_view key, std::string_view state);

  // At most `max_requests` leaves to expand, shard by shard, oldest first in each. An empty answer means that
  // every unfinished tree waits for answers, those that other threads give at this moment included; with
  // in_flight() = 0 besides, all trees have ended. `states`, where given, gets the leaves' states in the same
  // order. The second form appends.
  std::vector<Request> next(std::size_t max_requests, std::vector<std::string>* states = nullptr);
  void next(std::size_t max_requests, std::vector<Request>& requests, std::vector<std::string>* states);

  // One answer per id. All are checked before any is taken: throws RequestError, AnswerError or what the
  // splitter throws with nothing changed; where a tree outgrows its indices or memory ends (LimitError,
  // bad_alloc) some may have been taken, and simulations that failed are given up. The owners of
  // completions belong to the forest from the call on, whatever comes of it: take_dropped() gives each of
  // them back, once nobody reads its text any more; how many there are is said to expect_owners() before, so
  // that none is lost where memory ends. Texts without an owner are copied (with a splitter every text needs
  // an owner).
  void expect_owners(std::size_t count) { graveyard_.expect(count); }
  void fulfil(std::span<const RequestId> ids, const Answers& answers);

  // Gives requests back that will never be answered: their simulations do not count. Throws RequestError with
  // nothing changed. cancel_all() takes back every unanswered request, handed out or not.
  void cancel(std::span<const RequestId> ids);
  void cancel_all();

  std::string state(RequestId id) const;     // of the request's leaf
  Expansion expansion(RequestId id) const;   // once its completions are there
  std::size_t children(RequestId id) const;  // of that expansion
  std::vector<TreeId> take_finished();       // trees that ended since the last call, each once
  std::size_t in_flight() const;             // simulations under way, over all trees
  TreeStats stats(TreeId tree) const;
  std::size_t nodes_in_flight(TreeId tree) const;  // nodes with virtual loss: 0 in a tree at rest
  TreeView view(TreeId tree) const;
  void remove(TreeId tree);  // throws RequestError while simulations are under way

  // A tree as plain data, and a new tree that goes on exactly where that one stood: its open requests are
  // handed out again. A forest with a splitter needs `keep`, as the completions of open requests need owners.
  // insert() throws Error for an image that no tree of this forest can have, SnapshotError for one of another
  // splitter, and what the splitter throws, with nothing changed.
  TreeImage image(TreeId tree) const;
  TreeId insert(const TreeImage& image, const Keep& keep = nullptr);
  bool has_splitter() const { return splitter_ != nullptr; }

  // Cancels everything and removes all trees. No other call may run beside it.
  void clear();

  bool has_dropped() const { return !graveyard_.empty(); }
  std::vector<void*> take_dropped() { return graveyard_.take(); }

 private:
  friend class Claim;
  void resume_completions(Lane& lane, const PendingImage& pending, const Keep& keep, Resumed& resumed);
  Shard& shard(std::uint64_t id) const { return *shards_[id % Shard::kShards]; }
  std::atomic<std::uint32_t>& cursor();
  void gather(std::size_t end, std::vector<Request>& requests, std::vector<std::string>* states);

  const SearchParams params_;
  const std::uint64_t seed_;
  const Splitter splitter_;
  const RecordFormat format_;
  DraftPool drafts_;
  Mailbox<void*> graveyard_;
  Mailbox<TreeId> finished_;
  std::atomic<std::uint32_t> trees_ = 0;
  std::array<std::unique_ptr<Shard>, Shard::kShards> shards_;
  // Where next() begins, a place for each of the first threads that call it: they keep apart, and a forest
  // with one caller hands its requests out in one order. The others share the last place.
  struct alignas(64) Cursor {
    std::atomic<std::thread::id> thread;
    std::atomic<std::uint32_t> shard;
  };
  std::array<Cursor, 8> cursors_;
};

}  // namespace restrl::search
