// A mutex whose holders are quick: who finds it taken looks again for some microseconds before going to
// sleep.
#pragma once

#include <atomic>
#include <mutex>

namespace restrl::search {

class PatientMutex {
 public:
  void lock() {
    if (mutex_.try_lock()) return;
    waiters_.fetch_add(1, std::memory_order_relaxed);
    wait();
    waiters_.fetch_sub(1, std::memory_order_relaxed);
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

  // For a holder that goes on and on: lets somebody who waits have a turn.
  void give_way() {
    const int waiters = waiters_.load(std::memory_order_relaxed);
    if (waiters == 0) return;
    unlock();
    for (int look = 0; look < kLooks && waiters_.load(std::memory_order_relaxed) >= waiters; ++look) rest();
    lock();
  }

 private:
  // Some 20 us in all: longer than a batch of answers takes, as long as falling asleep and waking up.
  static constexpr int kLooks = 100;
  static constexpr int kPauses = 10;

  void wait() {
    for (int look = 0; look < kLooks; ++look) {
      rest();
      if (mutex_.try_lock()) return;
    }
    mutex_.lock();
  }

  static void rest() {
    for (int i = 0; i < kPauses; ++i) {
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  }

  std::mutex mutex_;
  std::atomic<int> waiters_ = 0;
};

}  // namespace restrl::search
