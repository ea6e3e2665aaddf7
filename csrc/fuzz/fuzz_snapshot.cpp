// The reader of snapshots under a fuzzer (clang, -DRESTRL_FUZZ=ON). Size and
// checksum are set right first, so that what is behind them is met; the
// fuzzer's input is the body between them.
//
//   fuzz_snapshot CORPUS -max_total_time=600        seeds: fuzz_seeds CORPUS
//
// A finding is a crash, a sanitizer's report, an exception that is no
// SnapshotError, bytes that are taken though their tree is saved as others, or
// virtual loss left behind.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "search/bytes.h"
#include "search/dummy.h"
#include "search/errors.h"
#include "search/forest.h"
#include "search/snapshot.h"

using namespace restrl::search;

namespace {

constexpr std::size_t kHead = 20;
constexpr std::size_t kChecksum = 8;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "finding: %s\n", what);
  std::abort();
}

// The body with a head before and a checksum behind it.
std::string seal(std::string_view body) {
  std::string bytes("\x89RSTREE\n\x01\0\0\0", 12);
  const std::uint64_t size = kHead + body.size() + kChecksum;
  for (unsigned i = 0; i < 8; ++i) bytes += static_cast<char>(size >> (8 * i) & 0xff);
  bytes += body;
  const std::uint64_t crc = crc64(bytes);
  for (unsigned i = 0; i < 8; ++i) bytes += static_cast<char>(crc >> (8 * i) & 0xff);
  return bytes;
}

// A forest takes what the reader takes, and the tree can be searched on. Work
// is bounded by the snapshot's own parameters, which a forest's owner chose and
// a file cannot: those with more to do are not driven.
void exercise(const Snapshot& snapshot, const std::string& bytes) {
  Forest forest(snapshot.params, snapshot.seed);
  TreeId tree;
  try {
    tree = load(forest, bytes);
  } catch (const SnapshotError&) {
    return;
  }
  require(save(forest, tree) == bytes, "a loaded tree is saved as other bytes");
  const TreeStats stats = forest.stats(tree);
  const std::uint64_t left = snapshot.params.simulations - stats.simulations;
  if (left < 200 && snapshot.params.k < 50) {
    for (int round = 0; round < 3; ++round) {
      std::vector<Request> asked;
      for (const Request& request : forest.next(8)) {
        forest.state(request.id);
        if (!request.completed) asked.push_back(request);
      }
      answer_dummy(forest, 1, asked, 4);
    }
    const std::string later = save(forest, tree);
    Forest other(snapshot.params, snapshot.seed);
    require(save(other, load(other, later)) == later, "a tree that went on is saved as other bytes");
  }
  forest.cancel_all();
  require(forest.nodes_in_flight(tree) == 0, "virtual loss is left behind");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes = seal({reinterpret_cast<const char*>(data), size});
  try {
    const Snapshot snapshot = decode(bytes);
    require(encode(snapshot) == bytes, "bytes are taken that are never written");
    exercise(snapshot, bytes);
  } catch (const SnapshotError&) {
  }
  return 0;
}
