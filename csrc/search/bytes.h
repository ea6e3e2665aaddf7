// Bytes of a snapshot: little-endian numbers, varints, compact doubles, a
// checksum; reading them defensively.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace restrl::search {

// CRC-64/XZ (ECMA-182, reflected): crc64("123456789") = 995dc9bbdf1939fa.
std::uint64_t crc64(std::string_view bytes);

// Whether Python decodes `bytes` as UTF-8; lone surrogates pass (error handler
// "surrogatepass").
bool is_utf8(std::string_view bytes);

// Small whatever its sign: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
constexpr std::uint64_t zigzag(std::uint64_t difference) {
  return difference << 1 ^ (0 - (difference >> 63));
}
constexpr std::uint64_t unzigzag(std::uint64_t code) { return code >> 1 ^ (0 - (code & 1)); }

// The doubles met so far; both sides of a snapshot fill it alike. A double is
// one code byte, then:
//   0        its 8 bytes
//   1        the 4 bytes of the float32 it equals
//   2 + i    nothing: it is the i-th distinct double of the snapshot (i <= 253)
class Doubles {
 public:
  static constexpr std::size_t kMost = 254;
  // Index of the double with these bits, kMost if it is not in the table.
  std::size_t find(std::uint64_t bits) const;
  void add(std::uint64_t bits);
  std::size_t size() const { return values_.size(); }
  std::uint64_t operator[](std::size_t i) const { return values_[i]; }

 private:
  std::vector<std::uint64_t> values_;
  std::unordered_map<std::uint64_t, std::size_t> index_;
};

class Writer {
 public:
  void byte(unsigned value) { bytes_ += static_cast<char>(value); }
  void fixed(std::uint64_t value, unsigned size);  // `size` bytes, little-endian
  void varint(std::uint64_t value);                // 7 bits a byte, lowest first
  void text(std::string_view text);                // varint length, bytes
  void number(double value);                       // see Doubles
  void bits(const std::vector<bool>& bits);        // 8 a byte, lowest first, padded with 0

  std::size_t size() const { return bytes_.size(); }
  std::string& bytes() { return bytes_; }

 private:
  std::string bytes_;
  Doubles doubles_;
};

// Reads what Writer wrote, and only that: every value has one form. Throws
// SnapshotError naming what is wrong and where. `what` names the value in the
// message.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  unsigned byte(const char* what, unsigned highest = 255);
  std::uint64_t fixed(const char* what, unsigned size);
  std::uint64_t varint(const char* what, std::uint64_t highest);
  std::uint32_t count(const char* what, std::uint32_t highest = 0xffffffff) {
    return static_cast<std::uint32_t>(varint(what, highest));
  }
  std::string_view raw(const char* what,
                       std::uint64_t size);  // `size` bytes as they are
  std::string_view text(const char* what);   // UTF-8, less than 2^32 - 2 bytes
  double number(const char* what);           // finite
  std::vector<bool> bits(const char* what, std::size_t size);

  std::size_t left() const { return bytes_.size() - at_; }
  std::size_t offset() const { return at_; }
  [[noreturn]] void fail(const std::string& what) const;  // at the value last read

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
  std::size_t begin_ = 0;  // of the value last read
  Doubles doubles_;
};

}  // namespace restrl::search
