#include "text_objects.h"

namespace py = pybind11;

namespace restrl {
namespace {

py::bytes encode(PyObject* text) {
  auto bytes = py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass"));
  if (!bytes) throw py::error_already_set();
  return bytes;
}

void check_str(PyObject* text) {
  if (PyUnicode_Check(text)) return;
  throw py::type_error("expected str, not " + std::string(py::str(py::type::of(py::handle(text)))));
}

}  // namespace

std::string to_utf8(py::handle text) {
  check_str(text.ptr());
  return encode(text.ptr());
}

py::str to_str(std::string_view utf8) {
  PyObject* text = PyUnicode_DecodeUTF8(utf8.data(), static_cast<Py_ssize_t>(utf8.size()), "surrogatepass");
  if (text == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

Borrowed::~Borrowed() {
  if (!owned_) return;
  for (const search::Sampled& text : texts_) Py_DECREF(static_cast<PyObject*>(text.owner));
}

void Borrowed::add_other(PyObject* text) {
  check_str(text);
  Py_ssize_t size = 0;
  const char* const utf8 = PyUnicode_AsUTF8AndSize(text, &size);  // kept by the str
  if (utf8 != nullptr) return add(text, utf8, static_cast<std::size_t>(size));
  if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError) == 0) throw py::error_already_set();
  PyErr_Clear();
  py::bytes bytes = encode(text);
  texts_.emplace_back(std::string_view(bytes), bytes.ptr());
  bytes.release();
}

}  // namespace restrl
