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

#include "search/text.h"

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

// A record to be written, its rows wherever they are.
struct RecordRows {
  RecordRows() = default;
  RecordRows(const Record& record)  // NOLINT(google-explicit-constructor)
      : simulation(record.simulation),
        reused(record.reused),
        values(record.values),
        child_of(record.child_of),
        children(record.children),
        texts(record.texts) {}

  std::uint32_t simulation = 0;
  std::uint32_t reused = 0;
  std::span<const double> values;
  std::span<const std::uint32_t> child_of;
  std::span<const Record::Child> children;
  std::span<const Text> texts;
};

// How the records of one tree are read and written.
struct RecordFormat {
  std::uint32_t k;
  bool scored;  // value mode
  bool reuse;
};

// Bytes that a record takes at most.
std::size_t longest_record(const RecordFormat& format);

// Writes a record and returns its end. `copies` is where the texts without an owner lie side by side;
// `text_bytes` grows by what the references to texts take.
char* write_record(const RecordFormat& format, std::uint32_t expansion, const RecordRows& record,
                   const char* copies, char* at, std::uint64_t& text_bytes);

// Reads a record into `record`, whose vectors keep their memory.
void read_record(const RecordFormat& format, std::uint32_t expansion, const char* at, Record& record);

}  // namespace restrl::search
