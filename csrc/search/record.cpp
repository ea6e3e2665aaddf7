#include "search/record.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

namespace restrl::search {
namespace {

constexpr std::size_t kLongestVarint = 10;
constexpr std::size_t kStep = 16;  // of put_roughly()

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

// The same in steps of 16 bytes, for a few of them: reads and writes up to 15 bytes too many.
char* put_roughly(char* at, const void* bytes, std::size_t size) {
  const char* const from = static_cast<const char*>(bytes);
  for (std::size_t i = 0; i < size; i += kStep) std::memcpy(at + i, from + i, kStep);
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
                    std::uint8_t* rows) {
  const std::size_t most = format.num_decisions;
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

// A scored child that nothing was backed up through yet, in lane `lane` of its line.
void score_lane(Line& line, std::uint32_t lane, double score, std::uint32_t count) {
  line.N[lane] = count;
  line.W[lane] = repeated(score, count);
  if (same_bits(line.W[lane] / count, score)) return;
  line.W[lane] = score;
  line.child[lane] |= kFresh;
}

}  // namespace

std::size_t Draft::bytes(const RecordFormat& format) {
  return sizeof(Draft) + (sizeof(Line) << format.shift) + 17 * std::size_t{format.k} + longest_tail(format) +
         kStep;
}

std::unique_ptr<Draft> Draft::make(const RecordFormat& format) {
  void* const room = ::operator new(bytes(format), std::align_val_t(alignof(Draft)));
  return std::unique_ptr<Draft>(::new (room) Draft(format));
}

std::size_t longest_record(const RecordFormat& format) {
  return sizeof(double) * format.k + kLongestVarint + longest_tail(format) + sizeof(char*) + kStep;
}

void write_draft(const RecordFormat& format, const Split& split, std::uint32_t reused,
                 std::span<const double> values, std::span<const double> scores, Draft& draft) {
  const std::span<const Split::Child> children = split.children;
  choose_visible(format, scores, children.size(), draft.visible());
  write_tail(format, split, reused, scores, draft);
  std::copy(values.begin(), values.end(), draft.values().begin());
  const std::uint8_t* const visible = draft.visible();
  Line* const lines = draft.lines();
  std::fill_n(lines, std::size_t{1} << format.shift, kEmptyLine);
  Visit fresh{0, 0.0};
  std::uint32_t lane = 0;
  for (std::size_t i = 0; i < children.size(); ++i) {
    const std::uint32_t count = children[i].count;
    if (format.scored) fresh = {fresh.N + count, fresh.W + repeated(scores[i], count)};
    if (visible[i] == 0) continue;
    Line& line = lines[lane / 4];
    line.W[lane % 4] = 0.0;
    line.child[lane % 4] = kLeaf | (children[i].terminal ? kTerminal : 0) | lane;
    if (format.scored) score_lane(line, lane % 4, scores[i], count);
    ++lane;
  }
  draft.visible_count = static_cast<std::uint16_t>(lane);
  if (!format.scored) {
    for (const double value : values) fresh = {fresh.N + 1, fresh.W + value};
  }
  draft.fresh = fresh;
}

void write_tail(const RecordFormat& format, const Split& split, std::uint32_t reused,
                std::span<const double> scores, Draft& draft) {
  const std::span<const Split::Child> children = split.children;
  const std::uint8_t* const visible = draft.visible();
  void** const owners = draft.owners();
  std::uint16_t owner_count = 0;
  char* const begin = draft.tail();
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
      owners[owner_count++] = text.owner;
      at = put_bytes(at, &text.data, sizeof text.data);
    } else {
      copied += text.size;
    }
  }
  draft.tail_size = static_cast<std::uint32_t>(at - begin);
  draft.references = static_cast<std::uint32_t>(at - references) + (copied > 0 ? sizeof(char*) : 0);
  draft.fresh_count = static_cast<std::uint16_t>(format.k - reused);
  draft.owner_count = owner_count;
  draft.child_count = static_cast<std::uint16_t>(children.size());
  draft.copied = copied;
  draft.text_bytes = text_bytes;
}

char* write_record(std::uint32_t expansion, std::uint32_t simulation, std::span<const double> inherited,
                   const Draft& draft, const char* copies, char* at) {
  at = put_bytes(at, inherited.data(), inherited.size_bytes());
  at = put_roughly(at, draft.values().data(), draft.values().size_bytes());
  at = put(at, zigzag(std::int64_t{simulation} - std::int64_t{expansion}));
  at = put_roughly(at, draft.tail(), draft.tail_size);
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
