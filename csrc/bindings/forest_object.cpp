#include "forest_object.h"

#include <string>
#include <utility>

#include "search/errors.h"
#include "text_objects.h"

namespace py = pybind11;

namespace restrl {
namespace {

// Bytes of the first `characters` characters of `utf8`.
std::size_t byte_length(std::string_view utf8, std::size_t characters) {
  std::size_t length = 0;
  for (; length < utf8.size(); ++length) {
    const bool begins = (static_cast<unsigned char>(utf8[length]) & 0xc0) != 0x80;
    if (begins && characters-- == 0) break;
  }
  return length;
}

}  // namespace

ForestObject::ForestObject(const search::SearchParams& params, std::uint64_t seed, py::object split)
    : splitter(std::move(split)),
      forest(
          params, seed, splitter.is_none() ? search::Splitter() : [this](std::string_view text) {
            return call_splitter(text);
          }) {
  if (!splitter.is_none() && PyCallable_Check(splitter.ptr()) == 0) {
    throw py::type_error("splitter must be callable or None");
  }
}

ForestObject::~ForestObject() {
  forest.clear();
  bury();
}

void ForestObject::bury() {
  while (forest.has_dropped()) {
    for (void* text : forest.take_dropped()) Py_DECREF(static_cast<PyObject*>(text));
  }
}

// Called with no lock held, from whatever thread answers requests.
std::size_t ForestObject::call_splitter(std::string_view text) const {
  const py::gil_scoped_acquire acquire;
  const py::object result = splitter(to_str(text));
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(result.ptr()));
  if (!number && PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
  PyErr_Clear();
  int overflow = 0;
  const long long length = number ? PyLong_AsLongLongAndOverflow(number.ptr(), &overflow) : 0;
  if (overflow <= 0 && length < 1) {
    throw search::AnswerError("splitter gave " + std::string(py::repr(result)) +
                              " as the length of a first step; it must be an int of at least 1");
  }
  return overflow > 0 ? text.size() : byte_length(text, static_cast<std::size_t>(length));
}

}  // namespace restrl
