// Drafts that the calls of Forest::fulfil() hand on to each other, so that none is made anew for every
// answer.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "search/record.h"

namespace restrl::search {

// Concurrency: every function may be called from any thread; a mutex of its own, under which nothing else is
// locked. A batch belongs to the call that took it.
class DraftPool {
 public:
  using Batch = std::vector<std::unique_ptr<Draft>>;

  Batch take() {
    const std::scoped_lock lock(mutex_);
    if (batches_.empty()) {
      batches_.reserve(++lent_);  // so that give() cannot fail
      return {};
    }
    Batch batch = std::move(batches_.back());
    batches_.pop_back();
    return batch;
  }

  void give(Batch batch) noexcept {
    const std::scoped_lock lock(mutex_);
    batches_.push_back(std::move(batch));
  }

 private:
  std::mutex mutex_;
  std::vector<Batch> batches_;
  std::size_t lent_ = 0;  // batches in all, those that were lost with a failed call too
};

}  // namespace restrl::search
