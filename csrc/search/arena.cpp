#include "search/arena.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Under AddressSanitizer every block is one of its own, so that an access past its end is seen.
#if defined(__SANITIZE_ADDRESS__)
#define RESTRL_POOL 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RESTRL_POOL 0
#endif
#endif
#if !defined(RESTRL_POOL)
#define RESTRL_POOL 1
#endif

namespace restrl::search {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kSmallest = 256;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLargest = kHugePage;  // of the pool
constexpr std::size_t kRegion = std::size_t{32} << 20;
// Between two blocks, so that the same row of many trees does not fall into the same set of the caches.
constexpr std::size_t kStagger = 3 * kLine;

#if defined(__linux__)

// Address space of `bytes` bytes (a multiple of kHugePage) that begins at a huge page.
void* map(std::size_t bytes) {
  void* const block = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) throw std::bad_alloc();
  char* const begin = static_cast<char*>(block);
  const std::size_t skip = (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
  if (skip > 0) munmap(begin, skip);
  if (skip < kHugePage) munmap(begin + skip + bytes, kHugePage - skip);
  madvise(begin + skip, bytes, MADV_HUGEPAGE);  // a wish: small pages are only slower
  return begin + skip;
}

void* remap(void* block, std::size_t capacity, std::size_t, std::size_t bytes) {
  void* const target = map(bytes);
  // Both begin at a huge page, so huge pages move whole.
  if (mremap(block, capacity, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED) {
    munmap(target, bytes);
    throw std::bad_alloc();
  }
  madvise(target, bytes, MADV_HUGEPAGE);
  return target;
}

void unmap(void* block, std::size_t bytes) noexcept { munmap(block, bytes); }

#else

void* map(std::size_t bytes) { return ::operator new(bytes, std::align_val_t(kLine)); }

void unmap(void* block, std::size_t) noexcept { ::operator delete(block, std::align_val_t(kLine)); }

void* remap(void* block, std::size_t capacity, std::size_t used, std::size_t bytes) {
  void* const target = map(bytes);
  std::memcpy(target, block, used);
  unmap(block, capacity);
  return target;
}

#endif

class Pool {
 public:
  void* take(std::size_t bytes) {
    if (!RESTRL_POOL) return ::operator new(bytes, std::align_val_t(kLine));
    std::scoped_lock lock(mutex_);
    Free*& list = free_[std::countr_zero(bytes)];
    if (list != nullptr) return std::exchange(list, list->next);
    if (left_ < bytes) {
      region_ = static_cast<char*>(map(kRegion));
      left_ = kRegion;
    }
    void* const block = region_;
    const std::size_t step = bytes + kStagger < left_ ? bytes + kStagger : left_;
    region_ += step;
    left_ -= step;
    return block;
  }

  void give(void* block, std::size_t bytes) noexcept {
    if (!RESTRL_POOL) return ::operator delete(block, std::align_val_t(kLine));
    std::scoped_lock lock(mutex_);
    Free*& list = free_[std::countr_zero(bytes)];
    list = new (block) Free{list};
  }

 private:
  struct Free {
    Free* next;
  };
  std::mutex mutex_;
  std::array<Free*, 64> free_{};  // by the logarithm of the size
  char* region_ = nullptr;
  std::size_t left_ = 0;
};

// Never destroyed: trees may die after it.
Pool& pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

std::size_t capacity_for(std::size_t bytes) {
  const std::size_t capacity = std::bit_ceil(bytes < kSmallest ? kSmallest : bytes);
  if (capacity == 0) throw std::bad_alloc();
  return capacity;
}

}  // namespace

void* allocate_block(std::size_t& bytes) {
  bytes = capacity_for(bytes);
  return bytes <= kLargest ? pool().take(bytes) : map(bytes);
}

void* grow_block(void* block, std::size_t capacity, std::size_t used, std::size_t& bytes) {
  if (capacity > kLargest) {
    bytes = capacity_for(bytes);
    return remap(block, capacity, used, bytes);
  }
  void* const grown = allocate_block(bytes);
  std::memcpy(grown, block, used);
  free_block(block, capacity);
  return grown;
}

void free_block(void* block, std::size_t capacity) noexcept {
  if (capacity <= kLargest) {
    pool().give(block, capacity);
  } else {
    unmap(block, capacity);
  }
}

TextStore::~TextStore() {
  for (const Block& block : blocks_) free_block(block.data, block.capacity);
}

void TextStore::reserve(std::size_t size) {
  if (size <= left_) return;
  // Twice the last one, up to a megabyte, so that small trees stay small and big ones have few blocks.
  const std::size_t last = blocks_.empty() ? 0 : blocks_.back().capacity;
  std::size_t capacity = std::max(size, std::min(2 * last, kLargest / 2));
  blocks_.reserve(blocks_.size() + 1);
  void* const data = allocate_block(capacity);
  blocks_.push_back({data, capacity});
  at_ = static_cast<char*>(data);
  left_ = capacity;
}

}  // namespace restrl::search
