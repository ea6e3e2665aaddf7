// Many search trees behind one pull-based interface; the model enters only through requests and answers.
//
// Concurrency: every public function may be called from any thread at any time; one mutex guards everything
// below it, and no function calls back into the caller. A tree's shape depends on its key, its root state,
// the seed, the parameters and the answers alone: with `in_order` its answers are applied in the order of its
// requests, and simulation j is selected at the moment when exactly the answers up to j - F are applied
// (F = leaves_in_flight), whoever calls next() or fulfil() first and however much they take. The one
// exception is a tree whose requests were cancelled: it goes on when next() comes to it again.
//
//   add ──► idle ──next()──► selecting ──► window of at most F simulations, oldest first
//                               ▲            [ terminal: answered at once ]
//                               │            [ request ──next()──► caller ──fulfil(completions)──► split
//                               │                                          ──fulfil(scores)──► answered ]
//                               └── apply (expand, back up, virtual loss released) ◄── oldest, once answered
//
// A selection that meets a leaf already in flight is a collision: it is counted and forgotten, and the tree
// selects again after the next answer. A visit of a terminal node takes its place in the window but needs no
// answer; every simulation counts, so that a tree of nothing but terminal nodes ends too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "search/params.h"
#include "search/text.h"
#include "search/tree.h"

namespace restrl::search {

using TreeId = std::uint32_t;
using RequestId = std::uint64_t;  // generation << 32 | slot: an old id is never mistaken for a new one

// A leaf to expand: sample k completions of state(id).
struct Request {
  RequestId id;
  TreeId tree;
  std::uint32_t simulation;  // number of the simulation in its tree, from 0; never used twice
  std::uint32_t k;       // completions to draw; 0 if all are reused (value mode: its children want scores)
  std::uint32_t reused;  // completions the leaf has already; k + reused = params.k
};

// Completions, scores or both; what is left out comes with a later call (or came with an earlier one).
struct Answer {
  std::optional<std::vector<std::string>> completions;  // request.k of them, cut at the stop strings
  std::optional<Scores> scores;
};

// What has to be scored: a completion's program is `state` + its text, a child's is `state` + its line.
struct Expansion {
  struct Child {
    std::string line;
    bool terminal;
  };
  std::string state;
  std::uint32_t reused;
  std::vector<std::string> texts;  // [params.k], the reused ones first
  std::vector<std::uint32_t> child_of;
  std::vector<Child> children;
};

struct TreeStats {
  std::uint32_t simulations = 0;      // applied, terminal visits included
  std::uint32_t expansions = 0;       // applied
  std::uint32_t terminal_visits = 0;  // applied
  std::uint32_t completions = 0;      // of the applied expansions: samples + reused
  std::uint32_t samples = 0;          // of them drawn from the policy
  std::uint32_t reused = 0;           // of them what followed a step of a completion further up
  std::uint32_t collisions = 0;
  std::uint32_t in_flight = 0;  // simulations under way
  std::uint64_t nodes = 0;
  std::uint64_t text_bytes = 0;
  std::uint64_t bytes = 0;  // memory besides text
};

class Forest {
 public:
  Forest(const SearchParams& params, std::uint64_t seed);  // throws ParamError

  const SearchParams& params() const { return params_; }
  std::uint64_t seed() const { return seed_; }

  // A tree whose root is `state`; `key` keys its random draws.
  TreeId add(std::string_view key, std::string_view state);

  // At most `max_requests` leaves to expand, oldest first, over all trees. An empty answer means that every
  // unfinished tree waits for answers. `states`, where given, gets the leaves' states in the same order.
  std::vector<Request> next(std::size_t max_requests, std::vector<std::string>* states = nullptr);

  // One answer per id. All are checked before any is taken: throws RequestError or AnswerError with nothing
  // changed.
  void fulfil(std::span<const RequestId> ids, std::vector<Answer> answers);

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

 private:
  struct Simulation {
    std::uint32_t number;
    NodeId node;
    bool terminal;
    std::uint32_t samples;       // to draw
    std::uint32_t slot = kNone;  // of its request; kNone if it asks for nothing
    VirtualLoss loss;
    std::vector<std::string> texts{};
    std::optional<Split> split{};
    std::optional<Scores> scores{};
    bool answered() const { return terminal || scores.has_value(); }
  };
  struct Lane {  // a tree and its window; `window` dies before `tree`
    TreeId id;
    Tree tree;
    std::deque<std::unique_ptr<Simulation>> window{};
    std::uint32_t next_number = 0;
    std::uint32_t started = 0;  // simulations applied or in the window
    std::uint32_t samples = 0;  // drawn by them
    bool spent = false;         // a selected leaf needed more samples than were left
    bool idle = true;           // waits in idle_ for next()
    bool finished = false;
    bool collided = false;  // since the last change of the tree or its window: selecting again would too
    TreeStats stats{};
  };
  struct Slot {
    std::uint32_t generation = 0;
    Lane* lane = nullptr;
    Simulation* simulation = nullptr;
  };

  Lane& lane(TreeId id) const;
  const Slot& slot(RequestId id) const;
  void check(const Slot& slot, RequestId id, const Answer& answer, std::optional<Split>& split) const;
  Split split_of(const Lane& lane, const Simulation& simulation, const std::vector<std::string>& texts) const;
  bool budget_left(const Lane& lane) const;
  bool start_one(Lane& lane);
  bool apply_one(Lane& lane);
  void advance(Lane& lane);
  void open_request(Lane& lane, Simulation& simulation);
  void close_request(Simulation& simulation);
  void drop(Lane& lane, Simulation* simulation);

  const SearchParams params_;
  const std::uint64_t seed_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // by TreeId; null once removed
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  std::deque<RequestId> ready_;  // selected, not handed out yet; ids of cancelled requests are skipped
  std::deque<TreeId> idle_;
  std::vector<TreeId> finished_;
};

}  // namespace restrl::search
