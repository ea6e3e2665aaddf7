#include "search/record.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "search/climb.h"

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

namespace {

// Of a completion: its child, the child's step and score, its text's size and address.
constexpr std::size_t kLongestCompletion = 3 + 5 + sizeof(double) + 5 + sizeof(char*);
constexpr std::size_t kLongestCount = 3;  // of at most 65535

std::size_t longest_tail(const RecordFormat& format) { return kLongestCompletion * format.k + kLongestCount; }

bool same_bits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

// The num_decisions children of highest first score, the earlier one of equals.
void choose_visible(const RecordFormat& format, std::span<const double> scores, std::size_t count,
                    std::vector<std::uint8_t>& visible) {
  const std::size_t most = format.num_decisions;
  if (visible.size() < count) visible.resize(count);
  std::uint8_t* const rows = visible.data();
  if (!format.scored || count <= most) {
    for (std::size_t i = 0; i < count; ++i) rows[i] = i < most ? 1 : 0;
    return;
  }
  std::vector<std::uint32_t> order(count);
  for (std::uint32_t i = 0; i < count; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  });
  std::fill_n(rows, count, std::uint8_t{0});
  for (std::size_t i = 0; i < most; ++i) rows[order[i]] = 1;
}

// A child that nothing was backed up through yet.
Draft::Child new_lane(bool terminal, double score, std::uint32_t count) {
  Draft::Child lane{repeated(score, count), count, terminal ? kTerminal : 0};
  if (!same_bits(lane.W / count, score)) {
    lane.W = score;
    lane.flags |= kFresh;
  }
  return lane;
}

}  // namespace

std::size_t longest_record(const RecordFormat& format) {
  return sizeof(double) * format.k + kLongestVarint + longest_tail(format) + sizeof(char*);
}

void write_draft(const RecordFormat& format, const Split& split, std::uint32_t reused,
                 std::span<const double> values, std::span<const double> scores, Draft& draft) {
  const std::span<const Split::Child> children = split.children;
  choose_visible(format, scores, children.size(), draft.visible);
  write_tail(format, split, reused, scores, draft);
  draft.lanes.resize(std::min<std::size_t>(children.size(), format.num_decisions));
  const std::uint8_t* const visible = draft.visible.data();
  Draft::Child* lane = draft.lanes.data();
  Visit fresh{0, 0.0};
  if (format.scored) {
    for (std::size_t i = 0; i < children.size(); ++i) {
      const std::uint32_t count = children[i].count;
      fresh = {fresh.N + count, fresh.W + repeated(scores[i], count)};
      if (visible[i] != 0) *lane++ = new_lane(children[i].terminal, scores[i], count);
    }
  } else {
    for (std::size_t i = 0; i < draft.lanes.size(); ++i) {
      *lane++ = {0.0, 0, children[i].terminal ? kTerminal : 0};
    }
    for (const double value : values) fresh = {fresh.N + 1, fresh.W + value};
  }
  draft.fresh = fresh;
}

void write_tail(const RecordFormat& format, const Split& split, std::uint32_t reused,
                std::span<const double> scores, Draft& draft) {
  if (draft.tail.size() < longest_tail(format)) draft.tail.resize(longest_tail(format));
  const std::span<const Split::Child> children = split.children;
  const std::uint8_t* const visible = draft.visible.data();
  char* const begin = draft.tail.data();
  char* at = begin;
  if (format.reuse) at = put(at, std::uint64_t{reused});
  for (const std::uint32_t child : split.child_of) at = put(at, std::uint64_t{child});
  for (std::size_t i = 0; i < children.size(); ++i) {
    at = put(at, std::uint64_t{children[i].line_length} << 2 | std::uint64_t{children[i].terminal} << 1 |
                     std::uint64_t{visible[i]});
  }
  if (format.scored) {
    for (std::size_t i = 0; i < children.size(); ++i) {
      if (visible[i] == 0) at = put_bytes(at, &scores[i], sizeof scores[i]);
    }
  }
  const char* const references = at;
  std::size_t copied = 0;
  std::uint64_t text_bytes = 0;
  for (const Text& text : std::span(split.texts).subspan(reused)) {
    const bool held = text.owner != nullptr;
    text_bytes += std::uint64_t{text.size} + 1;
    at = put(at, std::uint64_t{text.size} << 1 | std::uint64_t{held});
    if (held) {
      at = put_bytes(at, &text.data, sizeof text.data);
    } else {
      copied += text.size;
    }
  }
  draft.tail_size = static_cast<std::size_t>(at - begin);
  draft.references = static_cast<std::uint64_t>(at - references) + (copied > 0 ? sizeof(char*) : 0);
  draft.copied = copied;
  draft.text_bytes = text_bytes;
}

char* write_record(std::uint32_t expansion, std::uint32_t simulation, std::span<const double> inherited,
                   std::span<const double> values, const Draft& draft, const char* copies, char* at) {
  at = put_bytes(at, inherited.data(), inherited.size_bytes());
  at = put_bytes(at, values.data(), values.size_bytes());
  at = put(at, zigzag(std::int64_t{simulation} - std::int64_t{expansion}));
  at = put_bytes(at, draft.tail.data(), draft.tail_size);
  return draft.copied > 0 ? put_bytes(at, &copies, sizeof copies) : at;
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
