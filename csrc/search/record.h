// The cold record of an expansion: what is read only for states, results and snapshots, packed into bytes.
//
//   f64 x k            values of the completions
//   varint             simulation - expansion, zigzag
//   varint             R, how many completions are reused (only with `reuse`)
//   varint x k         child that each completion leads to
//   varint x children  length of its step << 2 | terminal << 1 | visible
//   f64 x hidden       value mode: first scores of the children that are not visible, in order
//   text x (k - R)     of the fresh completions: varint size << 1 | held; of one that its owner holds then
//   its address address            of the other texts of this record, which lie side by side (only if they
//   have bytes)
//
// A reused completion has no text here: it is the tail of one of its node's parent's completions, and which
// one follows from child_of there. The first completion of a child, its count and a visible child's lane
// follow from the order. With k = 5 a record takes 40 bytes of values and some 17 more (steps of 32 to 4095
// bytes); texts, with their sizes and addresses, are not counted as memory of nodes.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "search/climb.h"
#include "search/params.h"
#include "search/text.h"
#include "search/tree_data.h"

namespace restrl::search {

struct Record {
  struct Child {
    std::uint32_t length;  // of its step, bytes
    std::uint32_t count;   // completions that lead here
    std::uint32_t first;   // the first one that does
    bool terminal;
    bool visible;
    double score;  // value mode: the first score; after read_record() only where not visible
  };
  std::uint32_t simulation = 0;
  std::uint32_t reused = 0;
  std::vector<double> values;
  std::vector<std::uint32_t> child_of;
  std::vector<Child> children;
  std::vector<Text> texts;  // of the fresh completions

  std::uint32_t child_in(std::uint32_t lane) const;  // the child in visible lane `lane`
};

// How the records of one tree are read and written.
struct RecordFormat {
  explicit RecordFormat(const SearchParams& params)
      : k(params.k),
        num_decisions(params.num_decisions),
        shift(static_cast<std::uint32_t>(std::bit_width((std::min(k, num_decisions) - 1) / 4))),
        scored(params.mode == Mode::value),
        reuse(params.reuse) {}
  std::uint32_t k;
  std::uint32_t num_decisions;
  std::uint32_t shift;  // the smallest with four visible children in each of 2^shift lines
  bool scored;          // value mode
  bool reuse;
};

// What of an expansion is known before its place in the tree is: its lines, its record less the inherited
// values and the number of the simulation, what it adds. Made under no lock, by whichever thread has the
// answer; Tree::expand_drafted() copies it in, maybe on another one, which is why it lies in one piece:
//
//   [ header 64 B | lines 64 B each | values f64 x fresh | owners 8 B x held | visible u8 x k | tail ]
class alignas(64) Draft {
 public:
  static std::unique_ptr<Draft> make(const RecordFormat& format);  // throws bad_alloc
  static void operator delete(void* draft) { ::operator delete(draft, std::align_val_t(alignof(Draft))); }

  Line* lines() { return reinterpret_cast<Line*>(this + 1); }  // [2^shift] as they begin
  const Line* lines() const { return reinterpret_cast<const Line*>(this + 1); }
  std::span<double> values() { return {reinterpret_cast<double*>(lines() + line_count_), fresh_count}; }
  std::span<const double> values() const {
    return {reinterpret_cast<const double*>(lines() + line_count_), fresh_count};
  }
  void** owners() { return reinterpret_cast<void**>(lines() + line_count_) + k_; }  // [owner_count]
  void* const* owners() const { return reinterpret_cast<void* const*>(lines() + line_count_) + k_; }
  std::uint8_t* visible() { return reinterpret_cast<std::uint8_t*>(owners() + k_); }  // [children]
  // [tail_size] the record after the simulation's number, less the address
  char* tail() { return reinterpret_cast<char*>(owners() + k_) + k_; }
  const char* tail() const { return reinterpret_cast<const char*>(owners() + k_) + k_; }

  // Asks for its memory: it comes from another core's cache.
  void prefetch() const {
    const char* const begin = reinterpret_cast<const char*>(this);
    for (std::size_t line = 0; line < 6; ++line) __builtin_prefetch(begin + line * sizeof(Line));
  }

  Draft* next = nullptr;         // in the list that owns it
  std::uint64_t text_bytes = 0;  // of the fresh texts, newlines counted
  std::size_t copied = 0;        // bytes of the texts without an owner
  Visit fresh{0, 0.0};           // of the drawn completions; value mode: of all children
  std::uint32_t references = 0;  // bytes of `tail` that refer to texts
  std::uint32_t tail_size = 0;
  std::uint16_t fresh_count = 0;  // completions drawn
  std::uint16_t owner_count = 0;  // of them with an owner
  std::uint16_t child_count = 0;
  std::uint16_t visible_count = 0;  // of the children

 private:
  explicit Draft(const RecordFormat& format) : k_(format.k), line_count_(1U << format.shift) {}
  static std::size_t bytes(const RecordFormat& format);
  std::uint32_t k_;
  std::uint32_t line_count_;
};

// Fills `draft` from an expansion taken apart; its first `reused` texts are inherited. `values` are those of
// the drawn completions, `scores` in value mode those of the children.
void write_draft(const RecordFormat& format, const Split& split, std::uint32_t reused,
                 std::span<const double> values, std::span<const double> scores, Draft& draft);

// The same for children of which `draft.visible` says already which are visible; the lines and values are
// left alone.
void write_tail(const RecordFormat& format, const Split& split, std::uint32_t reused,
                std::span<const double> scores, Draft& draft);

// Bytes that write_record() writes at most, those behind the record included.
std::size_t longest_record(const RecordFormat& format);

// Writes a record, and maybe some bytes behind it, and returns its end: the values of its `inherited`
// completions, what `draft` has, and `copies`, where its texts without an owner lie side by side.
char* write_record(std::uint32_t expansion, std::uint32_t simulation, std::span<const double> inherited,
                   const Draft& draft, const char* copies, char* at);

// Reads a record into `record`, whose vectors keep their memory.
void read_record(const RecordFormat& format, std::uint32_t expansion, const char* at, Record& record);

}  // namespace restrl::search
