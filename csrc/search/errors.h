// Typed errors of the search engine; each maps to one Python class of the same name (bindings).
// A caller's mistake is always one of these: no assert and no abort on what a user gave.
#pragma once

#include <stdexcept>

namespace restrl::search {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A field of SearchParams is outside its range; the message names field and value.
struct ParamError : Error {
  using Error::Error;
};

// An id names no open request or no tree of this forest (unknown, answered before, cancelled or removed).
struct RequestError : Error {
  using Error::Error;
};

// An answer does not fit its request: wrong counts, a score that is not finite, scores before completions.
struct AnswerError : Error {
  using Error::Error;
};

// A tree outgrew its 32-bit indices.
struct LimitError : Error {
  using Error::Error;
};

// Bytes are no snapshot, a damaged one, or one of a search with other parameters; or a tree cannot be written
// as one. The message names what is wrong and the offset.
struct SnapshotError : Error {
  using Error::Error;
};

}  // namespace restrl::search
