// What one call of Forest::fulfil() or Forest::cancel() holds: the requests it names, each claimed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "search/forest.h"

namespace restrl::search {

// Concurrency: belongs to one thread. Locks one shard at a time; between take() and hand_in() it holds no
// lock, and reads and writes the answers of the slots it has claimed. What it has not handed in when it dies
// is given back as it was.
class Claim {
 public:
  Claim(Forest& forest, std::span<const RequestId> ids, const Answers* answers);
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  ~Claim();

  void take();     // under the locks; throws RequestError
  void split();    // under none: completions into their slots; throws AnswerError
                   // and what the splitter throws
  void check();    // under none: scores into their slots; throws AnswerError
  void hand_in();  // under the locks
  void drop();     // under the locks

 private:
  template <typename Function>
  void locked(std::size_t& i, std::size_t end, Function function);
  void split_one(Slot& slot, std::span<const Sampled> completions);
  std::uint32_t find_steps(Slot& slot, Text text);
  void take_values(const char* what, std::size_t i, const Flat<double>& rows, std::size_t expected,
                   std::size_t& begin, std::vector<double>& values) const;

  Forest& forest_;
  const std::span<const RequestId> ids_;
  const Answers* const answers_;
  std::vector<Slot*> slots_;       // claimed so far
  std::vector<std::size_t> rows_;  // where the completions of each request begin, and their end
  std::size_t split_ = 0;          // how many slots have their completions from this call
  std::size_t done_ = 0;           // how many were handed in
  struct Step {                    // first step of a text that may be inherited, for the lane of
                                   // `slot`
    const Slot* slot;
    const char* place;
    std::uint32_t length;
  };
  std::vector<Step> steps_;
  std::string scratch_;
};

}  // namespace restrl::search
