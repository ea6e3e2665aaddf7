#include "search/claim.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "search/errors.h"

namespace restrl::search {
namespace {

constexpr std::size_t kTogether = 64;  // requests whose slots fit into a cache

std::string named(RequestId id) { return "request " + std::to_string(id); }

template <typename T>
void check_lengths(const std::optional<Flat<T>>& rows, std::size_t requests, const char* what) {
  if (rows && !rows->lengths.empty() && rows->lengths.size() != requests) {
    throw AnswerError(std::to_string(requests) + " requests got " + std::to_string(rows->lengths.size()) +
                      " lists of " + what);
  }
}

bool sound(double value) { return std::abs(value) <= kLargestScore; }

bool all_sound(std::span<const double> values) {
  bool all = true;
  for (const double value : values) all &= sound(value);
  return all;
}

void check_total(const char* what, std::size_t requests, std::size_t needed, std::size_t given) {
  if (given != needed) {
    throw AnswerError(std::to_string(requests) + " requests need " + std::to_string(needed) + " " + what +
                      " in all, not " + std::to_string(given));
  }
}

}  // namespace

Claim::Claim(Forest& forest, std::span<const RequestId> ids, const Answers* answers)
    : forest_(forest), ids_(ids), answers_(answers) {}

Claim::~Claim() {
  for (std::size_t i = done_; i < slots_.size(); ++i) {
    Slot& slot = *slots_[i];
    // One of no samples had its completions before, and keeps them.
    if (i < split_ && slot.samples > 0) slot.forget_completions(forest_.params_.k - slot.samples);
    if (slot.draft != nullptr) drafts_.push(std::move(slot.draft));
    if (!slot.leave(Slot::kOpen, 0)) close_dropped(slot, slot.completed());
  }
  forest_.drafts_.give(drafts_);
  if (answers_ == nullptr || !answers_->completions) return;
  const std::span<const Sampled> items = answers_->completions->items;
  const std::size_t handed_in = done_ == 0 ? 0 : rows_[done_];
  std::size_t owners = 0;
  for (std::size_t item = 0; item < items.size(); ++item) {
    if (items[item].owner == nullptr) continue;
    ++owners;
    if (item >= handed_in) forest_.graveyard_.add_expected(items[item].owner);
  }
  if (owners > 0) forest_.graveyard_.settle(owners);
}

void Claim::take() {
  slots_.reserve(ids_.size());
  for (const RequestId id : ids_) slots_.push_back(&forest_.shard(id).claim(id, slots_));
}

void Claim::close_dropped(Slot& slot, bool filled) noexcept {
  Shard& shard = forest_.shard(slot.place);
  const std::scoped_lock lock(shard.mutex);
  shard.close_dropped(slot, filled);
}

// Whether the answers have the right shape: all that can be said before the completions are taken apart.
void Claim::check() {
  const auto& [completions, values, child_values] = *answers_;
  check_lengths(completions, ids_.size(), "completions");
  check_lengths(values, ids_.size(), "completion_values");
  check_lengths(child_values, ids_.size(), "child_values");
  if (child_values && !values) throw AnswerError("child_values came without completion_values");
  if (!completions && !values && !ids_.empty()) {
    throw AnswerError(named(ids_[0]) + " got neither completions nor scores");
  }
  rows_.reserve(ids_.size() + 1);
  rows_.push_back(0);
  for (std::size_t i = 0; i < ids_.size(); ++i) {
    const Slot& slot = *slots_[i];
    if (completions) {
      const std::size_t given = completions->lengths.empty() ? slot.samples : completions->lengths[i];
      // A request of no samples has its completions from the start; none given again is no mistake.
      if (slot.completed() && slot.samples > 0) {
        throw AnswerError(named(ids_[i]) + " has its completions already");
      }
      if (given != slot.samples) {
        throw AnswerError(named(ids_[i]) + " needs " + std::to_string(slot.samples) + " completions, not " +
                          std::to_string(given));
      }
      rows_.push_back(rows_.back() + given);
    } else if (values && !slot.completed()) {
      throw AnswerError(named(ids_[i]) + " got scores before its completions");
    }
  }
  if (!completions) return;
  check_total("completions", ids_.size(), rows_.back(), completions->items.size());
  for (const Sampled& sampled : completions->items) {
    if (sampled.owner == nullptr && forest_.splitter_) {
      throw AnswerError("a forest with a splitter needs completions with owners");
    }
    check_size(sampled.utf8.size());
  }
}

void Claim::split(std::size_t end) {
  if (!answers_->completions) return;
  const std::span<const Sampled> items = answers_->completions->items;
  for (std::size_t i = split_; i < end; ++i) {
    split_ = i + 1;
    if (slots_[i]->samples > 0) split_one(*slots_[i], items.subspan(rows_[i], rows_[i + 1] - rows_[i]));
  }
}

void Claim::split_one(Slot& slot, std::span<const Sampled> completions) {
  Split& split = slot.split;
  std::size_t copied = 0;
  for (const Sampled& sampled : completions) copied += sampled.owner == nullptr ? sampled.utf8.size() : 0;
  slot.copies.clear();
  if (copied > 0) slot.copies.reserve(copied);
  if (slot.samples == forest_.params_.k) {  // what is there is of an earlier request
    split.texts.clear();
    split.steps.clear();
  }
  split.texts.reserve(split.texts.size() + completions.size());
  for (const Sampled& sampled : completions) {
    Text text = to_text(sampled.utf8, sampled.owner);
    if (text.owner == nullptr) {
      slot.copies += text.view();
      text.data = slot.copies.data() + slot.copies.size() - text.size;
    }
    split.texts.push_back(text);
    if (forest_.splitter_) split.steps.push_back(find_steps(slot, text));
  }
  split_texts(split, forest_.params_.step_ends);
}

// The first step of `text`; with reuse those of all that may follow it are noted for its lane.
std::uint32_t Claim::find_steps(Slot& slot, Text text) {
  std::uint32_t first = 0;
  do {
    scratch_ = text.str();
    const std::size_t length = forest_.splitter_(scratch_);
    if (length == 0) throw AnswerError("a splitter's step must be at least 1 long");
    const auto step = static_cast<std::uint32_t>(std::min(length, scratch_.size()));
    if (first == 0) first = step;
    if (!forest_.params_.reuse) break;
    steps_.push_back({&slot, text.data, step});
    text = text.rest(step);
  } while (text.size > 0);
  return first;
}

void Claim::check_scores() {
  in_range_ = (!answers_->completion_values || all_sound(answers_->completion_values->items)) &&
              (!answers_->child_values || all_sound(answers_->child_values->items));
}

// Whether a look at the scores as a whole says that each request gets what it needs.
bool Claim::sure_of_scores() const {
  if (!answers_->completion_values || answers_->child_values || !in_range_) return false;
  if (!answers_->completion_values->lengths.empty()) return false;
  std::size_t needed = 0;
  for (const Slot* slot : slots_) needed += slot->samples;
  return needed == answers_->completion_values->items.size();
}

// The scores of requests up to `end`; into their slots if `store`, else they are only checked.
void Claim::score(std::size_t end, bool store) {
  if (!answers_->completion_values) return;
  const Flat<double> none{};
  const Flat<double>& values = *answers_->completion_values;
  const Flat<double>& child_values = answers_->child_values ? *answers_->child_values : none;
  const bool by_children = forest_.params_.mode == Mode::value;
  for (; scored_ < end; ++scored_) {
    Slot& slot = *slots_[scored_];
    const auto row = values_of("completion", values, slot.samples, value_);
    if (store) slot.completion_values = row;
    if (!by_children && !answers_->child_values) continue;
    const auto child_row =
        values_of("child", child_values, by_children ? slot.split.children.size() : 0, child_value_);
    if (store && by_children) slot.child_values.assign(child_row.begin(), child_row.end());
  }
  if (end < ids_.size()) return;
  check_total("completion values", ids_.size(), value_, values.items.size());
  check_total("child values", ids_.size(), child_value_, child_values.items.size());
}

// The row of `rows` that belongs to request scored_ and begins at `begin`, which moves on.
std::span<const double> Claim::values_of(const char* what, const Flat<double>& rows, std::size_t expected,
                                         std::size_t& begin) const {
  const RequestId id = ids_[scored_];
  const std::size_t left = rows.items.size() - begin;
  const std::size_t given = rows.lengths.empty() ? std::min(expected, left) : rows.lengths[scored_];
  if (given != expected || given > left) {
    throw AnswerError(named(id) + " needs " + std::to_string(expected) + " " + what + " values, not " +
                      std::to_string(given));
  }
  const std::span<const double> row = rows.items.subspan(begin, given);
  for (const double value : in_range_ ? std::span<const double>() : row) {
    if (!sound(value)) {
      char digits[32];
      std::snprintf(digits, sizeof digits, "%g", value);
      throw AnswerError(named(id) + " got a " + what +
                        " value that is not finite or beyond 1e200: " + digits);
    }
  }
  begin += given;
  return row;
}

// The drafts of requests done_ .. end - 1, if their scores are there.
void Claim::write(std::size_t end) {
  if (!answers_->completion_values) return;
  const RecordFormat& format = forest_.format_;
  for (std::size_t i = done_; i < end; ++i) {
    Slot& slot = *slots_[i];
    slot.draft = drafts_.pop();
    if (slot.draft == nullptr) slot.draft = Draft::make(format);
    write_draft(format, slot.split, format.k - slot.samples, slot.completion_values, slot.child_values,
                *slot.draft);
  }
}

void Claim::hand_in(std::size_t end) {
  note_steps(end);
  const bool scored = answers_->completion_values.has_value();
  while (done_ < end) {
    Shard& shard = forest_.shard(ids_[done_]);
    Slot* first = nullptr;
    Slot* last = nullptr;
    for (; done_ < end && &forest_.shard(ids_[done_]) == &shard; ++done_) {
      Slot& slot = *slots_[done_];
      slot.next = nullptr;
      if (!slot.leave(scored ? Slot::kHanded : Slot::kOpen, Slot::kCompleted)) {
        close_dropped(slot, true);
      } else if (scored) {
        (first == nullptr ? first : last->next) = &slot;
        last = &slot;
      }
    }
    if (first == nullptr || !shard.hand_over(first, last)) continue;
    const std::scoped_lock lock(shard.mutex);
    shard.settle(drafts_);
  }
}

// The first steps of the texts of requests up to `end`, for their lanes, before anybody can inherit one.
void Claim::note_steps(std::size_t end) {
  for (std::size_t i = done_; i < end && step_ < steps_.size(); ++i) {
    Slot& slot = *slots_[i];
    if (steps_[step_].slot != &slot) continue;
    const std::scoped_lock lock(forest_.shard(ids_[i]).mutex);
    for (; step_ < steps_.size() && steps_[step_].slot == &slot; ++step_) {
      slot.lane->steps.insert_or_assign(steps_[step_].place, steps_[step_].length);
    }
  }
}

void Claim::fulfil() {
  take();
  check();
  check_scores();
  if (answers_->completion_values) drafts_ = forest_.drafts_.take();
  // With a splitter, or where child values hang on the split, everything is taken apart before anything is
  // handed in. Else nothing more can be wrong: a few requests at a time, while their memory is at hand.
  const bool by_children = forest_.params_.mode == Mode::value && answers_->completion_values;
  const bool sure = !forest_.splitter_ && !by_children;
  if (sure && !sure_of_scores()) {
    score(ids_.size(), false);
    scored_ = value_ = child_value_ = 0;
  }
  for (std::size_t end = 0; end < ids_.size();) {
    end = sure ? std::min(end + kTogether, ids_.size()) : ids_.size();
    split(end);
    score(end, true);
    while (done_ < end) {
      const std::size_t next = std::min(done_ + kTogether, end);
      write(next);
      hand_in(next);
    }
  }
}

void Claim::cancel() {
  take();
  while (done_ < slots_.size()) {
    Slot& slot = *slots_[done_++];
    Shard& shard = forest_.shard(slot.place);
    const std::scoped_lock lock(shard.mutex);
    if (slot.dropped()) {
      shard.close_dropped(slot, slot.completed());
    } else {
      shard.drop(slot);
    }
  }
}

void Forest::fulfil(std::span<const RequestId> ids, const Answers& answers) {
  Claim claim(*this, ids, &answers);
  claim.fulfil();
}

void Forest::cancel(std::span<const RequestId> ids) {
  Claim claim(*this, ids, nullptr);
  claim.cancel();
}

void Forest::clear() {
  cancel_all();
  for (const auto& place : shards_) {
    const std::scoped_lock lock(place->mutex);
    place->clear();
  }
}

}  // namespace restrl::search
