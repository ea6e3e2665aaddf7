// A mutex whose holders are quick: who finds it taken looks again for some microseconds before going to
// sleep.
#pragma once

#include <mutex>

namespace restrl::search {

class PatientMutex {
 public:
  void lock() {
    for (int look = 0; look < kLooks; ++look) {
      if (mutex_.try_lock()) return;
      for (int i = 0; i < kPauses; ++i) pause();
    }
    mutex_.lock();
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  // Some 20 us in all: longer than a batch of answers takes, as long as falling asleep and waking up.
  static constexpr int kLooks = 100;
  static constexpr int kPauses = 10;

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::mutex mutex_;
};

}  // namespace restrl::search
