#include "search/record.h"

#include <algorithm>
#include <cstring>

namespace restrl::search {
namespace {

constexpr std::size_t kLongestVarint = 10;

char* put(char* at, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) *at++ = static_cast<char>(value | 0x80);
  *at++ = static_cast<char>(value);
  return at;
}

std::uint64_t get(const char*& at) {
  std::uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(*at++);
    value |= std::uint64_t{byte & 0x7fU} << shift;
    if (byte < 0x80) return value;
  }
}

char* put_bytes(char* at, const void* bytes, std::size_t size) {
  if (size > 0) std::memcpy(at, bytes, size);
  return at + size;
}

double get_double(const char*& at) {
  double value;
  std::memcpy(&value, at, sizeof value);
  at += sizeof value;
  return value;
}

// Small whatever its sign: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
std::uint64_t zigzag(std::int64_t value) {
  return static_cast<std::uint64_t>(value) << 1 ^ static_cast<std::uint64_t>(value >> 63);
}

std::int64_t unzigzag(std::uint64_t value) {
  return static_cast<std::int64_t>(value >> 1) ^ -static_cast<std::int64_t>(value & 1);
}

}  // namespace

std::uint32_t Record::child_in(std::uint32_t lane) const {
  std::uint32_t child = 0;
  while (!children[child].visible || lane-- > 0) ++child;
  return child;
}

std::size_t longest_record(const RecordFormat& format) {
  constexpr std::size_t kPerCompletion = 3 * sizeof(double) + 3 * kLongestVarint;
  return kPerCompletion * format.k + 2 * kLongestVarint + sizeof(char*);
}

char* write_record(const RecordFormat& format, std::uint32_t expansion, const RecordRows& record,
                   const char* copies, char* at, std::uint64_t& text_bytes) {
  for (double value : record.values) at = put_bytes(at, &value, sizeof value);
  at = put(at, zigzag(std::int64_t{record.simulation} - std::int64_t{expansion}));
  if (format.reuse) at = put(at, std::uint64_t{record.reused});
  for (std::uint32_t child : record.child_of) at = put(at, std::uint64_t{child});
  for (const Record::Child& child : record.children) {
    at = put(at, std::uint64_t{child.length} << 2 | std::uint64_t{child.terminal} << 1 |
                     std::uint64_t{child.visible});
  }
  if (format.scored) {
    for (const Record::Child& child : record.children) {
      if (!child.visible) at = put_bytes(at, &child.score, sizeof child.score);
    }
  }
  const char* const texts = at;
  std::size_t copied = 0;
  for (const Text& text : record.texts) {
    const bool held = text.owner != nullptr;
    at = put(at, std::uint64_t{text.size} << 1 | std::uint64_t{held});
    if (held) {
      at = put_bytes(at, &text.data, sizeof text.data);
    } else {
      copied += text.size;
    }
  }
  if (copied > 0) at = put_bytes(at, &copies, sizeof copies);
  text_bytes += static_cast<std::uint64_t>(at - texts);
  return at;
}

void read_record(const RecordFormat& format, std::uint32_t expansion, const char* at, Record& record) {
  record.values.resize(format.k);
  record.child_of.resize(format.k);
  record.children.clear();
  for (double& value : record.values) value = get_double(at);
  record.simulation = static_cast<std::uint32_t>(unzigzag(get(at)) + expansion);
  record.reused = format.reuse ? static_cast<std::uint32_t>(get(at)) : 0;
  for (std::uint32_t i = 0; i < format.k; ++i) {
    const auto child = static_cast<std::uint32_t>(get(at));
    record.child_of[i] = child;
    if (child == record.children.size()) record.children.push_back({0, 0, i, false, false, 0.0});
    ++record.children[child].count;
  }
  for (Record::Child& child : record.children) {
    const std::uint64_t step = get(at);
    child.length = static_cast<std::uint32_t>(step >> 2);
    child.terminal = (step & 2) != 0;
    child.visible = (step & 1) != 0;
  }
  if (format.scored) {
    for (Record::Child& child : record.children) {
      if (!child.visible) child.score = get_double(at);
    }
  }
  record.texts.clear();
  std::size_t copied = 0;
  for (std::uint32_t i = record.reused; i < format.k; ++i) {
    const std::uint64_t size = get(at);
    Text text{nullptr, nullptr, static_cast<std::uint32_t>(size >> 1)};
    if ((size & 1) != 0) {
      std::memcpy(&text.data, at, sizeof text.data);
      at += sizeof text.data;
    } else {
      copied += text.size;
    }
    record.texts.push_back(text);
  }
  if (copied == 0) return;
  const char* copy;
  std::memcpy(&copy, at, sizeof copy);
  for (Text& text : record.texts) {
    if (text.data != nullptr) continue;
    text.data = copy;
    copy += text.size;
  }
}

}  // namespace restrl::search
