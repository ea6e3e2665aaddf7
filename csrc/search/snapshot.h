// Snapshots: one search tree as bytes, in mid-search or finished, and back.
// docs/formats.md has every byte.
//
//   Forest::image ─► TreeImage ─► encode() ─► bytes ─► decode() ─► TreeImage ─►
//   Forest::insert
//
// The format knows nothing of how a tree lies in memory, and what follows from
// the rest is not stored: children follow from the completions, reused
// completions from those of the parent, N from the visits of terminal nodes, V
// from W and N; of W, where it can be foretold up to rounding, only the
// rounding is stored.
//
// decode() trusts nothing: it checks every number before its use, needs memory
// in proportion to the input, and accepts exactly what encode() writes:
// encode(decode(bytes)) == bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "search/forest.h"
#include "search/forest_data.h"
#include "search/params.h"

namespace restrl::search {

struct Snapshot {
  SearchParams params;
  bool splitter = false;  // a callable ends the steps, not params.step_ends
  std::uint64_t seed = 0;
  TreeImage tree;  // texts lie where it was made from: in a tree, or in the bytes
};

// Throws std::logic_error for an image that contradicts itself, SnapshotError
// for text that is not UTF-8 and sums that are not finite: what decode() would
// refuse is never written.
std::string encode(const Snapshot& snapshot);

// Throws SnapshotError naming what is wrong and at which byte. `bytes` must
// outlive the result.
Snapshot decode(std::string_view bytes);

// The first field in which the two differ, with both values, as one phrase;
// empty if they are equal.
std::string difference(const SearchParams& snapshot, const SearchParams& forest);

// A tree of a forest as a snapshot, whatever is under way in it; and a new tree
// of a forest that goes on exactly where the saved one stood: its open requests
// are handed out again, oldest first, under their simulations' numbers and with
// the completions they have. load() throws SnapshotError for bytes that are
// damaged, or of a search with other parameters, another seed, or a splitter
// where the forest has none.
std::string save(const Forest& forest, TreeId tree);
TreeId load(Forest& forest, std::string_view bytes, const Keep& keep = nullptr);

}  // namespace restrl::search
