// From sampled completions to actions: where a step ends and which samples share a child.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace restrl::search {

// A completion without the white space at its end; the newline that follows it in a program is implied, not
// stored. The bytes belong to `owner` where there is one (a Python str, say: whoever holds the Text last lets
// go of it), else to whoever made the Text.
struct Text {
  const char* data = nullptr;
  void* owner = nullptr;
  std::uint32_t size = 0;  // bytes, less than 2^32 - 1

  std::string_view view() const { return {data, size}; }
  std::string str() const { return std::string(view()) + '\n'; }
  // Its first `length` bytes, the implied newline counting as one.
  std::string_view stored(std::uint32_t length) const { return {data, length < size ? length : size}; }
  std::string first(std::uint32_t length) const;
  // What follows its first step of `length` bytes: "\n" alone where nothing does. Without owner.
  Text rest(std::uint32_t length) const {
    const std::uint32_t skip = length < size ? length : size;
    return {data + skip, nullptr, size - skip};
  }
};

// `utf8` without the white space at its end, white space being what Python's str.rstrip() removes.
std::string_view rstrip(std::string_view utf8);

[[noreturn]] void too_long(std::size_t bytes);

// Throws LimitError for a completion of 4 GiB or more.
inline void check_size(std::size_t bytes) {
  if (bytes >= std::numeric_limits<std::uint32_t>::max() - 1) too_long(bytes);
}

// A sampled completion as Text. Throws LimitError for one of 4 GiB or more.
inline Text to_text(std::string_view utf8, void* owner = nullptr) {
  const bool ends_plainly = !utf8.empty() && utf8.back() > ' ' && utf8.back() < 0x7f;
  const std::string_view stripped = ends_plainly ? utf8 : rstrip(utf8);
  check_size(stripped.size());
  return {stripped.data(), owner, static_cast<std::uint32_t>(stripped.size())};
}

// Bytes of the first step of `text`: the shortest beginning that ends in one of `ends`, else all of it
// (size + 1: its newline counts).
std::uint32_t first_step(const Text& text, std::span<const std::string> ends);

// The k completions of one expansion, taken apart.
//
//   texts      [k] completions, those that are reused first
//   steps      [k] bytes of their first steps
//   child_of   [k] completion -> child
//   children   in the order of their first completion
struct Split {
  struct Child {
    std::uint32_t completion;   // the first one that leads here; its text begins with the child's step
    std::uint32_t line_length;  // bytes of the step
    std::uint32_t count;        // completions that lead here
    bool terminal;              // that first completion was one last step
  };
  std::vector<Text> texts;
  std::vector<std::uint32_t> steps;
  std::vector<std::uint32_t> child_of;
  std::vector<Child> children;

  std::string line(const Child& child) const { return texts[child.completion].first(child.line_length); }
};

// Fills steps (unless they are there: one per text), child_of and children from `split.texts`.
void split_texts(Split& split, std::span<const std::string> ends);

// The same from plain strings, which must outlive the result.
Split split_completions(std::span<const std::string> completions, std::span<const std::string> ends);

}  // namespace restrl::search
