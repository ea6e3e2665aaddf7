#include "search/text.h"

#include <cstddef>
#include <limits>

#include "search/errors.h"

namespace restrl::search {
namespace {

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

}  // namespace

std::string_view rstrip(std::string_view utf8) {
  while (const std::size_t length = trailing_space(utf8)) utf8.remove_suffix(length);
  return utf8;
}

Split split_completions(const std::vector<std::string>& completions) {
  Split split;
  split.texts.reserve(completions.size());
  split.child_of.reserve(completions.size());
  for (const std::string& completion : completions) {
    if (completion.size() >= std::numeric_limits<std::uint32_t>::max()) {
      throw LimitError("a completion has " + std::to_string(completion.size()) +
                       " bytes; a tree holds completions of less than 4 GiB");
    }
    const std::string_view stripped = rstrip(completion);
    const std::size_t newline = stripped.find('\n');
    const bool terminal = newline == std::string_view::npos;
    const auto length = static_cast<std::uint32_t>((terminal ? stripped.size() : newline) + 1);
    const auto index = static_cast<std::uint32_t>(split.texts.size());
    std::string& text = split.texts.emplace_back(stripped);
    text += '\n';

    const std::string_view line = std::string_view(text).substr(0, length);
    std::uint32_t child = 0;
    while (child < split.children.size() && split.line(split.children[child]) != line) ++child;
    if (child == split.children.size()) split.children.push_back({index, length, 0, terminal});
    ++split.children[child].count;
    split.child_of.push_back(child);
  }
  return split;
}

}  // namespace restrl::search
