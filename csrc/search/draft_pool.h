// Drafts that the calls of Forest::fulfil() hand on to each other, so that none is made anew for every
// answer.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "search/record.h"

namespace restrl::search {

// A list of drafts that are its own; nothing but its end allocates or frees.
class Drafts {
 public:
  Drafts() = default;
  Drafts(Drafts&& other) noexcept
      : first_(std::exchange(other.first_, nullptr)), last_(std::exchange(other.last_, nullptr)) {}
  Drafts& operator=(Drafts&& other) noexcept {
    std::swap(first_, other.first_);
    std::swap(last_, other.last_);
    return *this;
  }
  ~Drafts() {
    while (first_ != nullptr) pop();
  }

  void push(std::unique_ptr<Draft> draft) noexcept {
    draft->next = first_;
    first_ = draft.release();
    if (last_ == nullptr) last_ = first_;
  }
  // None from an empty list.
  std::unique_ptr<Draft> pop() noexcept {
    std::unique_ptr<Draft> draft(first_);
    if (first_ != nullptr) first_ = first_->next;
    if (first_ == nullptr) last_ = nullptr;
    return draft;
  }
  // All of `other`, before its own.
  void take(Drafts& other) noexcept {
    if (other.first_ == nullptr) return;
    other.last_->next = first_;
    if (last_ == nullptr) last_ = other.last_;
    first_ = std::exchange(other.first_, nullptr);
    other.last_ = nullptr;
  }

 private:
  Draft* first_ = nullptr;
  Draft* last_ = nullptr;
};

// Concurrency: every function may be called from any thread; a mutex of its own, under which nothing else is
// locked.
class DraftPool {
 public:
  Drafts take() {
    const std::scoped_lock lock(mutex_);
    return std::move(drafts_);
  }
  void give(Drafts& drafts) noexcept {
    const std::scoped_lock lock(mutex_);
    drafts_.take(drafts);
  }

 private:
  std::mutex mutex_;
  Drafts drafts_;
};

}  // namespace restrl::search
