// Plain Python data as bytes: what crosses between processes that do not trust each other.
//
// Exact types only: None, bool, int, float, complex, str (lone surrogates included), bytes, bytearray, list,
// tuple, set, frozenset, dict. Anything else goes through `hook`, a callable that turns it into (tag: str,
// payload) on the way out and back into an object on the way in. Both directions are bounded in bytes and
// depth, and decoding checks every length against the bytes that are left.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace restrl {

struct CodecError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct CodecTooLarge : CodecError {
  using CodecError::CodecError;
};

std::string encode_plain(pybind11::handle value, pybind11::handle hook, std::uint64_t max_bytes);

// `max_objects` bounds the memory that the decoded data take, which may be a hundred times its bytes: a list
// or tuple counts 1, a dict or set 4, what the hook makes 8, anything else nothing; past it CodecTooLarge.
pybind11::object decode_plain(const char* data, std::size_t size, pybind11::handle hook,
                              std::uint64_t max_objects);

inline constexpr int kMaxDepth = 200;

}  // namespace restrl
