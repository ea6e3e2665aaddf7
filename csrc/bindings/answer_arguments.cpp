#include "answer_arguments.h"

#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>

#include <algorithm>
#include <optional>
#include <span>
#include <string>

#include "search/errors.h"

namespace py = pybind11;

namespace restrl {
namespace {

using search::AnswerError;

constexpr Py_ssize_t kAhead = 8;  // objects whose memory is asked for before they are read

bool is_row(PyObject* object) {
  return PyList_Check(object) || PyTuple_Check(object) ||
         (PyFloat_Check(object) == 0 && PyUnicode_Check(object) == 0 && PyLong_Check(object) == 0 &&
          PySequence_Check(object) != 0);
}

// Whether reading it runs no Python, so that nobody changes the sequence it is in meanwhile.
bool is_plain(PyObject* item) {
  return PyFloat_CheckExact(item) || (PyUnicode_CheckExact(item) && PyUnicode_IS_COMPACT_ASCII(item));
}

py::object fast_sequence(PyObject* sequence, const char* what) {
  if (PyList_CheckExact(sequence) || PyTuple_CheckExact(sequence)) {
    return py::reinterpret_borrow<py::object>(sequence);
  }
  auto items = py::reinterpret_steal<py::object>(
      PySequence_Fast(sequence, ("expected a sequence of " + std::string(what)).c_str()));
  if (!items) throw py::error_already_set();
  return items;
}

// Calls function(item) for the items of a sequence. What it calls (__float__, an iterator) may be Python that
// changes a list: an item that is not plain is held, and the size looked at again. Returns how many.
template <typename Function>
std::size_t for_each(PyObject* sequence, const char* what, Function function) {
  const py::object items = fast_sequence(sequence, what);
  const py::scoped_critical_section section(items);
  Py_ssize_t i = 0;
  for (; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
    if (i + kAhead < PySequence_Fast_GET_SIZE(items.ptr())) {
      __builtin_prefetch(PySequence_Fast_GET_ITEM(items.ptr(), i + kAhead), 1);  // for its reference count
    }
    PyObject* const item = PySequence_Fast_GET_ITEM(items.ptr(), i);
    if (is_plain(item)) {
      function(item);
    } else {
      const auto held = py::reinterpret_borrow<py::object>(item);
      function(held.ptr());
    }
  }
  return static_cast<std::size_t>(i);
}

// The items of `object` if it is an array of T that lies in one piece as it is.
template <typename T>
std::optional<std::span<const T>> plain_array(const py::object& object) {
  using Plain = py::array_t<T, py::array::c_style>;
  if (!Plain::check_(object)) return std::nullopt;
  const auto array = py::reinterpret_borrow<Plain>(object);
  return std::span<const T>(array.data(), static_cast<std::size_t>(array.size()));
}

// Rows or a flat sequence: add(item) for every item, the lengths of rows into `lengths`.
template <typename Function>
void for_each_item(PyObject* sequence, std::size_t requests, const char* what,
                   std::vector<std::uint32_t>& lengths, Function add) {
  bool flat = false;
  const std::size_t outer = for_each(sequence, what, [&](PyObject* item) {
    if (!flat && lengths.empty()) flat = !is_row(item);
    if (flat) {
      add(item);
    } else {
      if (!is_row(item)) throw py::type_error(std::string(what) + " are rows or one flat list, not both");
      lengths.push_back(static_cast<std::uint32_t>(for_each(item, what, add)));
    }
  });
  if (!flat && outer != requests) {
    throw AnswerError(std::to_string(requests) + " requests got " + std::to_string(outer) + " lists of " +
                      what);
  }
}

}  // namespace

Ids::Ids(const py::object& ids) {
  if (PyList_Check(ids.ptr()) || PyTuple_Check(ids.ptr())) {
    for_each(ids.ptr(), "request ids", [&](PyObject* item) {
      const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(item));  // NumPy's integers too
      if (!number) throw py::error_already_set();
      const unsigned long long id = PyLong_AsUnsignedLongLong(number.ptr());
      if (id == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw py::error_already_set();
        PyErr_Clear();
        throw search::RequestError("request " + std::string(py::repr(item)) +
                                   " is not open: unknown, answered or cancelled");
      }
      list_.push_back(id);
    });
    ids_ = list_;
    return;
  }
  if (const auto plain = plain_array<search::RequestId>(ids)) {
    // A copy: the array may be written to while the GIL is released or a splitter runs.
    list_.assign(plain->begin(), plain->end());
    ids_ = list_;
    return;
  }
  const auto given = py::array::ensure(ids);
  if (!given || (given.dtype().kind() != 'u' && given.dtype().kind() != 'i')) {
    PyErr_Clear();
    throw py::type_error("request ids are a list or an array of integers");
  }
  const py::array_t<search::RequestId, py::array::c_style | py::array::forcecast> array(given);
  list_.assign(array.data(), array.data() + array.size());
  ids_ = list_;
}

Values::Values(const py::object& values, std::size_t requests, const char* what) {
  if (PyList_Check(values.ptr()) || PyTuple_Check(values.ptr())) {
    list_.reserve(requests);
    for_each_item(values.ptr(), requests, what, lengths_, [&](PyObject* item) {
      const double value = PyFloat_AsDouble(item);
      if (value == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
      list_.push_back(value);
    });
    values_ = list_;
    return;
  }
  if (const auto plain = plain_array<double>(values)) {
    list_.assign(plain->begin(), plain->end());  // a copy, as of the ids
    values_ = list_;
    return;
  }
  const auto array = py::array_t<double, py::array::c_style | py::array::forcecast>::ensure(values);
  if (!array) {  // which has cleared numpy's error
    throw py::type_error(std::string(what) + " are rows of floats, a flat list of them or an array");
  }
  list_.assign(array.data(), array.data() + array.size());
  values_ = list_;
}

Texts::Texts(const py::object& texts, std::size_t requests) {
  const bool counted = PyList_CheckExact(texts.ptr()) || PyTuple_CheckExact(texts.ptr());
  texts_.reserve(std::max(requests, counted ? static_cast<std::size_t>(Py_SIZE(texts.ptr())) : 0));
  for_each_item(texts.ptr(), requests, "completions", lengths_, [&](PyObject* item) { texts_.add(item); });
}

}  // namespace restrl
