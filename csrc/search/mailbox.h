// Things one thread leaves for another to collect.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace restrl::search {

// Concurrency: every function may be called from any thread; a mutex of its own, under which nothing else is
// locked.
template <typename T>
class Mailbox {
 public:
  void add(std::span<const T> items) {
    if (items.empty()) return;
    const std::scoped_lock lock(mutex_);
    items_.insert(items_.end(), items.begin(), items.end());
    size_.store(items_.size(), std::memory_order_relaxed);
  }
  void add(const T& item) { add(std::span(&item, 1)); }

  bool empty() const { return size_.load(std::memory_order_relaxed) == 0; }

  std::vector<T> take() {
    const std::scoped_lock lock(mutex_);
    size_.store(0, std::memory_order_relaxed);
    return std::exchange(items_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<T> items_;
  std::atomic<std::size_t> size_ = 0;
};

}  // namespace restrl::search
