// What one call of Forest::fulfil() or Forest::cancel() holds: the requests it names, each claimed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "search/forest.h"

namespace restrl::search {

// Concurrency: belongs to one thread. Claims slots and hands them over without a shard's mutex, and reads and
// writes their answers in between; takes one mutex at a time where it has to settle what was handed over, or
// to close what was dropped. What it has not handed in when it dies is given back as it was.
class Claim {
 public:
  Claim(Forest& forest, std::span<const RequestId> ids, const Answers* answers);
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  ~Claim();

  void fulfil();
  void cancel();

 private:
  void take();                              // throws RequestError
  void check();                             // throws AnswerError, LimitError
  void split(std::size_t end);              // completions into slots; throws what the splitter throws
  void score(std::size_t end, bool store);  // scores into slots; throws AnswerError
  void write(std::size_t end);              // drafts
  void hand_in(std::size_t end);
  void note_steps(std::size_t end);
  void close_dropped(Slot& slot, bool filled) noexcept;
  void split_one(Slot& slot, std::span<const Sampled> completions);
  std::uint32_t find_steps(Slot& slot, Text text);
  std::span<const double> values_of(const char* what, const Flat<double>& rows, std::size_t expected,
                                    std::size_t& begin) const;
  void check_scores();  // notes whether every one is in range
  bool sure_of_scores() const;

  Forest& forest_;
  const std::span<const RequestId> ids_;
  const Answers* const answers_;
  std::vector<Slot*> slots_;       // claimed so far
  std::vector<std::size_t> rows_;  // where the completions of each request begin, and their end
  std::size_t split_ = 0;          // how many slots have their completions from this call
  std::size_t scored_ = 0;         // how many have their scores, which end at these places
  std::size_t value_ = 0;
  std::size_t child_value_ = 0;
  bool in_range_ = false;  // all scores are; else score() says which is not
  std::size_t done_ = 0;   // how many were handed in
  Drafts drafts_;          // to write into
  struct Step {            // first step of a text that may be inherited, for the lane of
                           // `slot`
    const Slot* slot;
    const char* place;
    std::uint32_t length;
  };
  std::vector<Step> steps_;
  std::size_t step_ = 0;  // those before it are handed in
  std::string scratch_;
};

}  // namespace restrl::search
