// Things one thread leaves for another to collect.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

namespace restrl::search {

// Concurrency: every function may be called from any thread; a mutex of its own, under which nothing else is
// locked.
template <typename T>
class Mailbox {
 public:
  // Room for `count` more items that may come through add_expected(); settle() when they no longer may.
  void expect(std::size_t count) {
    const std::scoped_lock lock(mutex_);
    make_room(count);
    expected_ += count;
  }
  void settle(std::size_t count) noexcept {
    const std::scoped_lock lock(mutex_);
    expected_ -= std::min(count, expected_);
  }

  void add_expected(const T& item) noexcept {
    const std::scoped_lock lock(mutex_);
    items_.push_back(item);  // within what is reserved
    size_.store(items_.size(), std::memory_order_relaxed);
  }

  void add(std::span<const T> items) {
    if (items.empty()) return;
    const std::scoped_lock lock(mutex_);
    make_room(items.size());
    items_.insert(items_.end(), items.begin(), items.end());
    size_.store(items_.size(), std::memory_order_relaxed);
  }
  void add(const T& item) { add(std::span(&item, 1)); }

  bool empty() const { return size_.load(std::memory_order_relaxed) == 0; }

  std::vector<T> take() {
    const std::scoped_lock lock(mutex_);
    std::vector<T> taken;
    taken.reserve(expected_);
    taken.swap(items_);
    size_.store(0, std::memory_order_relaxed);
    return taken;
  }

 private:
  void make_room(std::size_t more) {
    const std::size_t needed = items_.size() + expected_ + more;
    if (items_.capacity() < needed) items_.reserve(std::max(needed, 2 * items_.capacity()));
  }

  std::mutex mutex_;
  std::vector<T> items_;
  std::size_t expected_ = 0;
  std::atomic<std::size_t> size_ = 0;
};

}  // namespace restrl::search
