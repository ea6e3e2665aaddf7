#include "search/text.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <unordered_map>

#include "search/errors.h"

namespace restrl::search {
namespace {

constexpr std::size_t kFew = 64;  // completions

// Code points for which Python's str.isspace() is true.
bool is_space(std::uint32_t code) {
  if (code < 0x80) return (code >= 0x09 && code <= 0x0d) || (code >= 0x1c && code <= 0x20);
  switch (code) {
    case 0x85:
    case 0xa0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202f:
    case 0x205f:
    case 0x3000:
      return true;
    default:
      return code >= 0x2000 && code <= 0x200a;
  }
}

// Length of the white space character that ends `text`, 0 if it ends in something else. No white space lies
// outside the Basic Multilingual Plane, so at most three bytes are looked at.
std::size_t trailing_space(std::string_view text) {
  const auto byte = [&](std::size_t from_end) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(text[text.size() - from_end]));
  };
  const std::size_t size = text.size();
  if (size == 0) return 0;
  const std::uint32_t last = byte(1);
  if (last < 0x80) return is_space(last) ? 1 : 0;
  if (size >= 2 && (byte(2) & 0xe0) == 0xc0) {
    return is_space((byte(2) & 0x1f) << 6 | (last & 0x3f)) ? 2 : 0;
  }
  if (size >= 3 && (byte(3) & 0xf0) == 0xe0) {
    return is_space((byte(3) & 0x0f) << 12 | (byte(2) & 0x3f) << 6 | (last & 0x3f)) ? 3 : 0;
  }
  return 0;
}

// Whether the first `length` bytes of both are equal, the implied newline counting as one.
bool same_step(const Text& a, const Text& b, std::uint32_t length) {
  const auto last = [&](const Text& text) { return length > text.size ? '\n' : text.data[length - 1]; };
  const std::size_t rest = length - 1;
  return last(a) == last(b) && (rest == 0 || a.data == b.data || std::memcmp(a.data, b.data, rest) == 0);
}

// The same as the public one for an end of one byte.
std::uint32_t first_step(const Text& text, char end) {
  const void* const found = text.size == 0 ? nullptr : std::memchr(text.data, end, text.size);
  if (found == nullptr) return text.size + 1;
  return static_cast<std::uint32_t>(static_cast<const char*>(found) - text.data) + 1;
}

// Equal for equal steps; steps begin alike (white space) more often than they end alike.
std::uint64_t step_key(const Text& text, std::uint32_t length) {
  const std::size_t rest = length - 1;
  std::uint64_t end = 0;
  if (rest >= 8) {
    std::memcpy(&end, text.data + rest - 8, 8);
  } else {
    for (std::size_t i = 0; i < rest; ++i) end = end << 8 | static_cast<unsigned char>(text.data[i]);
  }
  return end ^ std::uint64_t{length} << 40;
}

// Many: k^2 comparisons would be too many. Both return how many children there are.
std::size_t group_many(Split& split) {
  std::unordered_map<std::string, std::uint32_t> child_of_step;
  for (std::uint32_t i = 0; i < split.texts.size(); ++i) {
    const std::uint32_t length = split.steps[i];
    const auto next = static_cast<std::uint32_t>(child_of_step.size());
    const std::uint32_t child = child_of_step.try_emplace(split.texts[i].first(length), next).first->second;
    if (child == next) split.children[child] = {i, length, 0, length > split.texts[i].size};
    ++split.children[child].count;
    split.child_of[i] = child;
  }
  return child_of_step.size();
}

std::size_t group_few(Split& split) {
  std::array<std::uint64_t, kFew> keys;  // of the children
  const std::span<const Text> texts = split.texts;
  const std::uint32_t* const steps = split.steps.data();
  std::uint32_t* const child_of = split.child_of.data();
  Split::Child* const children = split.children.data();
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < texts.size(); ++i) {
    const std::uint32_t length = steps[i];
    const std::uint64_t key = step_key(texts[i], length);
    std::uint32_t child = 0;
    const auto leads_here = [&] {
      return keys[child] == key && children[child].line_length == length &&
             same_step(texts[children[child].completion], texts[i], length);
    };
    while (child < count && !leads_here()) ++child;
    if (child == count) {
      keys[count] = key;
      children[count++] = {i, length, 0, length > texts[i].size};
    }
    ++children[child].count;
    child_of[i] = child;
  }
  return count;
}

}  // namespace

std::string_view rstrip(std::string_view utf8) {
  while (const std::size_t length = trailing_space(utf8)) utf8.remove_suffix(length);
  return utf8;
}

std::string Text::first(std::uint32_t length) const {
  std::string step(stored(length));
  if (length > size) step += '\n';
  return step;
}

void too_long(std::size_t bytes) {
  throw LimitError("a completion has " + std::to_string(bytes) +
                   " bytes; a tree holds completions of less than 4 GiB");
}

std::uint32_t first_step(const Text& text, std::span<const std::string> ends) {
  // An end that reaches into the implied newline would end the whole text, which is what no end gives too.
  std::size_t length = std::size_t{text.size} + 1;
  if (text.size == 0) return 1;
  for (const std::string& end : ends) {
    if (end.size() == 1) {
      length = std::min<std::size_t>(length, first_step(text, end[0]));
    } else {
      const std::size_t found = text.view().find(end);
      if (found != std::string_view::npos) length = std::min(length, found + end.size());
    }
  }
  return static_cast<std::uint32_t>(length);
}

void split_texts(Split& split, std::span<const std::string> ends) {
  const std::size_t k = split.texts.size();
  const std::size_t known = split.steps.size();
  split.steps.resize(k);
  const bool one_byte = ends.size() == 1 && ends[0].size() == 1;
  for (std::size_t i = known; i < k; ++i) {
    split.steps[i] = one_byte ? first_step(split.texts[i], ends[0][0]) : first_step(split.texts[i], ends);
  }
  split.child_of.resize(k);
  split.children.resize(k);
  split.children.resize(k <= kFew ? group_few(split) : group_many(split));
}

Split split_completions(std::span<const std::string> completions, std::span<const std::string> ends) {
  Split split;
  for (const std::string& completion : completions) split.texts.push_back(to_text(completion));
  split_texts(split, ends);
  return split;
}

}  // namespace restrl::search
