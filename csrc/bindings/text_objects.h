// Python's str and the engine's UTF-8; lone surrogates, which a damaged token can leave in a completion, pass
// through unchanged.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>
#include <vector>

#include "search/forest_data.h"

namespace restrl {

std::string to_utf8(pybind11::handle text);  // throws TypeError
pybind11::str to_str(std::string_view utf8);

// Completions by reference: each `str` (or, where that holds lone surrogates, a `bytes` of its own) is owned
// by one Sampled::owner. Needs the GIL (or an attached thread) in every function, the destructor included.
class Borrowed {
 public:
  Borrowed() = default;
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed();

  void reserve(std::size_t count) { texts_.reserve(count); }
  void add(PyObject* text) {  // throws TypeError
    if (!PyUnicode_Check(text) || !PyUnicode_IS_COMPACT_ASCII(text)) return add_other(text);
    add(text, reinterpret_cast<const char*>(PyUnicode_1BYTE_DATA(text)),
        static_cast<std::size_t>(PyUnicode_GET_LENGTH(text)));
  }
  std::span<const search::Sampled> texts() const { return texts_; }
  // From here on the owners belong to somebody else.
  void hand_over() { owned_ = false; }

 private:
  void add_other(PyObject* text);
  void add(PyObject* text, const char* utf8, std::size_t size) {
    __builtin_prefetch(utf8 + size - 1);  // white space is looked for there soon
    texts_.emplace_back(std::string_view(utf8, size), text);
    Py_INCREF(text);
  }

  std::vector<search::Sampled> texts_;
  bool owned_ = true;
};

}  // namespace restrl
