// A queue in one circular buffer that only ever grows: no allocation once it has its size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

namespace restrl::search {

template <typename T>
class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    clear();
    if (data_ != nullptr) std::allocator<T>().deallocate(data_, capacity_);
  }

  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return capacity_; }
  T& operator[](std::size_t i) { return data_[(head_ + i) & (capacity_ - 1)]; }
  const T& operator[](std::size_t i) const { return data_[(head_ + i) & (capacity_ - 1)]; }

  // Room for `more` entries, so that as many push() cannot fail.
  void reserve(std::size_t more) {
    if (size_ + more <= capacity_) return;
    std::size_t capacity = std::max<std::size_t>(capacity_, 4);
    while (capacity < size_ + more) capacity *= 2;
    T* data = std::allocator<T>().allocate(capacity);
    for (std::size_t i = 0; i < size_; ++i) {
      std::construct_at(data + i, std::move((*this)[i]));
      std::destroy_at(&(*this)[i]);
    }
    if (data_ != nullptr) std::allocator<T>().deallocate(data_, capacity_);
    data_ = data;
    capacity_ = capacity;
    head_ = 0;
  }

  void push(T value) {
    reserve(1);
    std::construct_at(&(*this)[size_], std::move(value));
    ++size_;
  }

  void swap(Ring& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    std::swap(head_, other.head_);
    std::swap(size_, other.size_);
  }

  T pop() { return take(0); }
  void clear() {
    while (!empty()) pop();
  }

  // Takes entry i out; those before it move up by one.
  T take(std::size_t i) {
    T taken = std::move((*this)[i]);
    std::destroy_at(&(*this)[i]);
    for (; i > 0; --i) {
      std::construct_at(&(*this)[i], std::move((*this)[i - 1]));
      std::destroy_at(&(*this)[i - 1]);
    }
    head_ = (head_ + 1) & (capacity_ - 1);
    --size_;
    return taken;
  }

 private:
  T* data_ = nullptr;
  std::size_t capacity_ = 0;  // a power of two, or 0
  std::size_t head_ = 0;
  std::size_t size_ = 0;
};

}  // namespace restrl::search
