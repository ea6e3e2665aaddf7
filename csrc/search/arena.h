// Memory of the trees: growing arrays of plain rows, tens of bytes for a small tree, gigabytes for a big one.
//
// Concurrency: an Array belongs to its tree. The pool behind all arrays of the process has one mutex, taken
// only when an array doubles or dies: some ten times in the life of an array, never per simulation.
//
//   bytes of an array
//   up to 2 MiB   a block of the pool: powers of two, cut one after the other out of regions of 32 MiB with
//                 huge pages; a freed block serves the next array of its size. 10,000 small trees lie densely
//                 in a few regions. The pool keeps its regions for the life of the process.
//   above         a mapping of its own with huge pages; it doubles by moving page tables (mremap), not bytes,
//                 and what is not touched takes no memory. Freed, it goes back to the system.
//
// Rows are addressed by index, so arrays may move when they grow. Freeing a tree is a handful of frees,
// whatever its size.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace restrl::search {

// A block of at least `bytes` bytes, aligned to a cache line; `bytes` becomes its capacity. Throws
// std::bad_alloc.
void* allocate_block(std::size_t& bytes);

// A block of at least `bytes` bytes that begins with the first `used` bytes of `block` (of `capacity` bytes),
// which is freed. Throws std::bad_alloc with nothing changed.
void* grow_block(void* block, std::size_t capacity, std::size_t used, std::size_t& bytes);

void free_block(void* block, std::size_t capacity) noexcept;

template <typename T>
class Array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Array() = default;
  Array(Array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  Array& operator=(Array&&) = delete;
  ~Array() {
    if (data_ != nullptr) free_block(data_, bytes_);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return bytes_ / sizeof(T); }

  // Room for `size` rows. Throws std::bad_alloc with nothing changed.
  void reserve(std::size_t size) {
    if (size * sizeof(T) <= bytes_) return;
    std::size_t bytes = size * sizeof(T);
    data_ = static_cast<T*>(data_ == nullptr ? allocate_block(bytes)
                                             : grow_block(data_, bytes_, size_ * sizeof(T), bytes));
    bytes_ = bytes;
  }

  // Within what is reserved; new rows hold anything.
  void resize(std::size_t size) { size_ = size; }
  void push_back(const T& row) { data_[size_++] = row; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t bytes_ = 0;
};

// Bytes that stay where they are for the store's life.
class TextStore {
 public:
  TextStore() = default;
  TextStore(TextStore&&) = delete;
  ~TextStore();

  // Room for `size` bytes side by side; take() hands them out. Throws std::bad_alloc with nothing changed.
  void reserve(std::size_t size);
  char* take(std::size_t size) {
    left_ -= size;
    return std::exchange(at_, at_ + size);
  }

 private:
  struct Block {
    void* data;
    std::size_t capacity;
  };
  std::vector<Block> blocks_;
  char* at_ = nullptr;
  std::size_t left_ = 0;
};

}  // namespace restrl::search
