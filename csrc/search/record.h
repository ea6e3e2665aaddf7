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

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

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
        scored(params.mode == Mode::value),
        reuse(params.reuse) {}
  std::uint32_t k;
  std::uint32_t num_decisions;
  bool scored;  // value mode
  bool reuse;
};

// What of an expansion is known before its place in the tree is: its record less the values and the number of
// the simulation, its visible children, what it adds. Made under no lock; Tree::expand_drafted() takes it in.
struct Draft {
  struct Child {  // as its lane begins
    double W;
    std::uint32_t N;
    std::uint32_t flags;  // kTerminal, kFresh
  };
  std::vector<std::uint8_t> visible;  // [children] at least
  std::vector<Child> lanes;           // of the visible ones
  std::vector<char> tail;             // the record after the simulation's number, less the address
  std::size_t tail_size = 0;
  std::size_t copied = 0;        // bytes of the texts without an owner
  std::uint64_t text_bytes = 0;  // of the fresh texts, newlines counted
  std::uint64_t references = 0;  // bytes of `tail` that refer to them
  Visit fresh{0, 0.0};           // of the drawn completions; value mode: of all children
};

// Fills `draft` from an expansion taken apart; its first `reused` texts are inherited. `values` are those of
// the drawn completions, `scores` in value mode those of the children. Throws bad_alloc.
void write_draft(const RecordFormat& format, const Split& split, std::uint32_t reused,
                 std::span<const double> values, std::span<const double> scores, Draft& draft);

// The same for children of which `draft.visible` says already which are visible; the lanes are left alone.
void write_tail(const RecordFormat& format, const Split& split, std::uint32_t reused,
                std::span<const double> scores, Draft& draft);

// Bytes that a record takes at most.
std::size_t longest_record(const RecordFormat& format);

// Writes a record and returns its end: `inherited` and `values` of its completions, what `draft` has, and
// `copies`, where its texts without an owner lie side by side.
char* write_record(std::uint32_t expansion, std::uint32_t simulation, std::span<const double> inherited,
                   std::span<const double> values, const Draft& draft, const char* copies, char* at);

// Reads a record into `record`, whose vectors keep their memory.
void read_record(const RecordFormat& format, std::uint32_t expansion, const char* at, Record& record);

}  // namespace restrl::search
