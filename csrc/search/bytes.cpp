#include "search/bytes.h"

#include <array>
#include <bit>
#include <cmath>

#include "search/errors.h"

namespace restrl::search {
namespace {

constexpr unsigned kRaw = 0;
constexpr unsigned kFloat = 1;
constexpr unsigned kKnown = 2;

// Tables for eight bytes at a time: table[j][b] is the checksum of byte b
// followed by j zero bytes.
constexpr auto kCrc = [] {
  std::array<std::array<std::uint64_t, 256>, 8> table{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::uint64_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xc96c5795d7870f42ULL : 0);
    table[0][byte] = crc;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned j = 1; j < 8; ++j) {
      table[j][byte] = table[j - 1][byte] >> 8 ^ table[0][table[j - 1][byte] & 0xff];
    }
  }
  return table;
}();

std::uint64_t little_endian(const char* bytes, unsigned size) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  }
  return value;
}

// Whether the double is a float32 (of a value model, say), bit for bit;
// `single` gets its bits.
bool as_float(std::uint64_t bits, std::uint32_t& single) {
  const auto value = std::bit_cast<double>(bits);
  if (!(std::fabs(value) <= 3.4028234663852886e38)) return false;
  const auto narrow = static_cast<float>(value);
  single = std::bit_cast<std::uint32_t>(narrow);
  return std::bit_cast<std::uint64_t>(static_cast<double>(narrow)) == bits;
}

}  // namespace

std::uint64_t crc64(std::string_view bytes) {
  std::uint64_t crc = ~std::uint64_t{0};
  while (bytes.size() >= 8) {
    crc ^= little_endian(bytes.data(), 8);
    std::uint64_t next = 0;
    for (unsigned j = 0; j < 8; ++j) next ^= kCrc[7 - j][crc >> (8 * j) & 0xff];
    crc = next;
    bytes.remove_prefix(8);
  }
  for (char byte : bytes) crc = crc >> 8 ^ kCrc[0][(crc ^ static_cast<unsigned char>(byte)) & 0xff];
  return ~crc;
}

bool is_utf8(std::string_view bytes) {
  for (std::size_t i = 0; i < bytes.size();) {
    const auto first = static_cast<unsigned char>(bytes[i++]);
    if (first < 0x80) continue;
    const unsigned more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    if (first < 0xc2 || first > 0xf4 || bytes.size() - i < more) return false;
    std::uint32_t code = first & (0x3fU >> more);
    for (unsigned j = 0; j < more; ++j) {
      const auto next = static_cast<unsigned char>(bytes[i++]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fU);
    }
    constexpr std::uint32_t kLowest[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLowest[more] || code > 0x10ffff) return false;
  }
  return true;
}

std::size_t Doubles::find(std::uint64_t bits) const {
  const auto found = index_.find(bits);
  return found == index_.end() ? kMost : found->second;
}

void Doubles::add(std::uint64_t bits) {
  if (values_.size() == kMost) return;
  index_.emplace(bits, values_.size());
  values_.push_back(bits);
}

void Writer::fixed(std::uint64_t value, unsigned size) {
  for (unsigned i = 0; i < size; ++i) byte(value >> (8 * i) & 0xff);
}

void Writer::varint(std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) byte(0x80 | (value & 0x7f));
  byte(static_cast<unsigned>(value));
}

void Writer::text(std::string_view text) {
  varint(text.size());
  bytes_ += text;
}

void Writer::number(double value) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::size_t known = doubles_.find(bits);
  if (known != Doubles::kMost) return byte(static_cast<unsigned>(kKnown + known));
  doubles_.add(bits);
  std::uint32_t single = 0;
  if (as_float(bits, single)) {
    byte(kFloat);
    fixed(single, 4);
  } else {
    byte(kRaw);
    fixed(bits, 8);
  }
}

void Writer::bits(const std::vector<bool>& bits) {
  for (std::size_t i = 0; i < bits.size(); i += 8) {
    unsigned packed = 0;
    for (std::size_t j = i; j < bits.size() && j < i + 8; ++j) packed |= unsigned{bits[j]} << (j - i);
    byte(packed);
  }
}

void Reader::fail(const std::string& what) const {
  throw SnapshotError("snapshot, byte " + std::to_string(begin_) + ": " + what);
}

std::string_view Reader::raw(const char* what, std::uint64_t size) {
  begin_ = at_;
  if (size > left()) {
    fail(std::string(what) + " needs " + std::to_string(size) + " bytes, but " + std::to_string(left()) +
         " are left");
  }
  at_ += size;
  return bytes_.substr(begin_, size);
}

unsigned Reader::byte(const char* what, unsigned highest) {
  const auto value = static_cast<unsigned char>(raw(what, 1)[0]);
  if (value > highest) {
    fail(std::string(what) + " is " + std::to_string(value) + ", must be at most " + std::to_string(highest));
  }
  return value;
}

std::uint64_t Reader::fixed(const char* what, unsigned size) {
  return little_endian(raw(what, size).data(), size);
}

std::uint64_t Reader::varint(const char* what, std::uint64_t highest) {
  const std::size_t begin = at_;
  std::uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    const unsigned next = byte(what);
    begin_ = begin;
    if (shift == 63 && next > 1) fail(std::string(what) + " is no number of 64 bits");
    value |= std::uint64_t{next & 0x7f} << shift;
    if (next >= 0x80) continue;
    if (next == 0 && shift > 0) fail(std::string(what) + " has needless bytes");
    break;
  }
  if (value > highest) {
    fail(std::string(what) + " is " + std::to_string(value) + ", must be at most " + std::to_string(highest));
  }
  return value;
}

std::string_view Reader::text(const char* what) {
  const std::uint64_t size = varint(what, 0xfffffffd);
  const std::string_view text = raw(what, size);
  if (!is_utf8(text)) fail(std::string(what) + " is not UTF-8");
  return text;
}

double Reader::number(const char* what) {
  const std::size_t begin = at_;
  const unsigned code = byte(what);
  if (code >= kKnown) {
    if (code - kKnown >= doubles_.size())
      fail(std::string(what) + " refers to a number that did not come yet");
    return std::bit_cast<double>(doubles_[code - kKnown]);
  }
  std::uint64_t bits = fixed(what, code == kFloat ? 4 : 8);
  begin_ = begin;
  if (code == kFloat) {
    const auto single = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (!std::isfinite(single)) fail(std::string(what) + " is not finite");
    bits = std::bit_cast<std::uint64_t>(static_cast<double>(single));
  }
  const auto value = std::bit_cast<double>(bits);
  std::uint32_t single = 0;
  if (!std::isfinite(value)) fail(std::string(what) + " is not finite");
  if (doubles_.find(bits) != Doubles::kMost || (code == kRaw && as_float(bits, single))) {
    fail(std::string(what) + " has needless bytes");
  }
  doubles_.add(bits);
  return value;
}

std::vector<bool> Reader::bits(const char* what, std::size_t size) {
  const std::string_view packed = raw(what, (size + 7) / 8);
  std::vector<bool> bits(size);
  for (std::size_t i = 0; i < 8 * packed.size(); ++i) {
    const bool bit = (static_cast<unsigned char>(packed[i / 8]) >> (i % 8) & 1) != 0;
    if (i < size) {
      bits[i] = bit;
    } else if (bit) {
      fail(std::string(what) + " has bits past its end");
    }
  }
  return bits;
}

}  // namespace restrl::search
