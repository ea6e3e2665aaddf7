// The slots of a shard: found by any thread while their owner adds more, and never moved.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace restrl::search {

// Concurrency: find() from any thread at any time; everything else under the shard's mutex. Block b has
// kFirst << b slots; they are made one by one, so that memory nobody needs is not touched.
template <typename Slot>
class SlotTable {
 public:
  SlotTable() = default;
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;
  ~SlotTable() {
    for (std::size_t i = 0; i < size(); ++i) std::destroy_at(find(i));
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      if (blocks_[b] != nullptr) std::allocator<Slot>().deallocate(blocks_[b], kFirst << b);
    }
  }

  std::size_t size() const { return size_.load(std::memory_order_acquire); }

  // Null if there is none of this number.
  Slot* find(std::size_t i) const { return i < size() ? at(i) : nullptr; }

  // A new slot, number size(). Throws bad_alloc.
  Slot& add() {
    const std::size_t i = size_.load(std::memory_order_relaxed);
    const std::size_t b = block(i);
    if (blocks_[b] == nullptr) blocks_[b] = std::allocator<Slot>().allocate(kFirst << b);
    Slot* const slot = std::construct_at(at(i));
    size_.store(i + 1, std::memory_order_release);
    return *slot;
  }

 private:
  static constexpr std::size_t kFirst = 16;
  static std::size_t block(std::size_t i) {
    return static_cast<std::size_t>(std::bit_width(i / kFirst + 1)) - 1;
  }
  Slot* at(std::size_t i) const {
    const std::size_t b = block(i);
    return blocks_[b] + (i - kFirst * ((std::size_t{1} << b) - 1));
  }

  std::array<Slot*, 28> blocks_{};  // each written before `size_` reaches it
  std::atomic<std::size_t> size_ = 0;
};

}  // namespace restrl::search
