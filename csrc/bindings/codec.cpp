#include "codec.h"

#include <pybind11/critical_section.h>

#include <cstring>

namespace py = pybind11;

namespace restrl {
namespace {

class Encoder {
 public:
  Encoder(py::handle hook, std::uint64_t max_bytes) : hook_(hook), max_bytes_(max_bytes) {}

  void put(PyObject* v, int depth) {
    if (depth > kMaxDepth) throw CodecError("nested too deeply");
    if (out.size() > max_bytes_) throw CodecTooLarge("more than " + std::to_string(max_bytes_) + " bytes");
    if (v == Py_None) {
      out += 'N';
    } else if (v == Py_True) {
      out += 'T';
    } else if (v == Py_False) {
      out += 'F';
    } else if (PyLong_CheckExact(v)) {
      put_int(v);
    } else if (PyFloat_CheckExact(v)) {
      out += 'f';
      raw(PyFloat_AS_DOUBLE(v));
    } else if (PyUnicode_CheckExact(v)) {
      put_str(v);
    } else if (PyList_CheckExact(v)) {
      // The length is read again at every step: a hook may run code that changes the list.
      const py::scoped_critical_section section(py::handle{v});  // other threads may not, between two items
      head('l', PyList_GET_SIZE(v));
      const Py_ssize_t n = PyList_GET_SIZE(v);
      for (Py_ssize_t i = 0; i < n; ++i) {
        if (PyList_GET_SIZE(v) != n) throw CodecError("changed while it was read");
        put(py::reinterpret_borrow<py::object>(PyList_GET_ITEM(v, i)).ptr(), depth + 1);
      }
    } else if (PyTuple_CheckExact(v)) {
      head('t', PyTuple_GET_SIZE(v));
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(v); ++i) put(PyTuple_GET_ITEM(v, i), depth + 1);
    } else if (PyDict_CheckExact(v)) {
      put_dict(v, depth);
    } else if (PyAnySet_CheckExact(v)) {
      put_set(v, depth);
    } else if (PyBytes_CheckExact(v)) {
      blob('b', PyBytes_AS_STRING(v), PyBytes_GET_SIZE(v));
    } else if (PyByteArray_CheckExact(v)) {
      blob('B', PyByteArray_AS_STRING(v), PyByteArray_GET_SIZE(v));
    } else if (PyComplex_CheckExact(v)) {
      out += 'c';
      raw(PyComplex_RealAsDouble(v));
      raw(PyComplex_ImagAsDouble(v));
    } else {
      put_other(v, depth);
    }
  }

  std::string out;

 private:
  template <typename T>
  void raw(T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }

  void head(char tag, Py_ssize_t n) {
    if (static_cast<std::uint64_t>(n) > max_bytes_)
      throw CodecTooLarge("more than " + std::to_string(max_bytes_) + " items");
    out += tag;
    raw(static_cast<std::uint32_t>(n));
  }

  void blob(char tag, const char* data, Py_ssize_t n) {
    head(tag, n);
    out.append(data, static_cast<std::size_t>(n));
  }

  void put_int(PyObject* v) {
    int overflow = 0;
    const long long small = PyLong_AsLongLongAndOverflow(v, &overflow);
    if (overflow == 0) {
      out += 'i';
      raw(static_cast<std::int64_t>(small));
      return;
    }
    const auto whole = py::reinterpret_borrow<py::object>(v);
    const auto bits = whole.attr("bit_length")().cast<std::uint64_t>();
    if (bits / 8 > max_bytes_)
      throw CodecTooLarge("an int of more than " + std::to_string(max_bytes_) + " bytes");
    const py::bytes bytes = whole.attr("to_bytes")(bits / 8 + 1, "little", py::arg("signed") = true);
    blob('I', PyBytes_AS_STRING(bytes.ptr()), PyBytes_GET_SIZE(bytes.ptr()));
  }

  void put_str(PyObject* v) {
    Py_ssize_t n = 0;
    if (const char* text = PyUnicode_AsUTF8AndSize(v, &n)) {
      blob('s', text, n);
      return;
    }
    PyErr_Clear();  // a lone surrogate
    PyObject* bytes = PyUnicode_AsEncodedString(v, "utf-8", "surrogatepass");
    if (bytes == nullptr) throw py::error_already_set();
    const auto owner = py::reinterpret_steal<py::object>(bytes);
    blob('s', PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes));
  }

  void put_dict(PyObject* v, int depth) {
    const py::scoped_critical_section section(py::handle{v});
    const Py_ssize_t n = PyDict_GET_SIZE(v);
    head('d', n);
    Py_ssize_t at = 0, seen = 0;
    PyObject *key = nullptr, *value = nullptr;
    while (PyDict_Next(v, &at, &key, &value)) {
      const auto k = py::reinterpret_borrow<py::object>(key),
                 item = py::reinterpret_borrow<py::object>(value);
      put(key, depth + 1);
      put(value, depth + 1);
      if (PyDict_GET_SIZE(v) != n || ++seen > n) throw CodecError("changed while it was read");
    }
  }

  void put_set(PyObject* v, int depth) {
    head(PyFrozenSet_CheckExact(v) ? 'Z' : 'S', PySet_GET_SIZE(v));
    for (py::handle item : py::iter(v))
      put(item.ptr(), depth + 1);  // iteration itself notices a changed size
  }

  void put_other(PyObject* v, int depth) {
    if (hook_.is_none()) throw CodecError(std::string("a ") + Py_TYPE(v)->tp_name);
    const py::object got = hook_(py::handle(v));
    const py::tuple pair = got.cast<py::tuple>();
    if (pair.size() != 2) throw CodecError("the hook gives (tag, payload)");
    out += 'x';
    put(pair[0].ptr(), depth + 1);
    put(pair[1].ptr(), depth + 1);
  }

  py::handle hook_;
  std::uint64_t max_bytes_;
};

class Decoder {
 public:
  Decoder(const char* data, std::size_t size, py::handle hook, std::uint64_t max_objects)
      : at_(data), end_(data + size), hook_(hook), left_(max_objects) {}

  py::object get(int depth) {
    if (depth > kMaxDepth) throw CodecError("nested too deeply");
    switch (const char tag = *take(1)) {
      case 'N':
        return py::none();
      case 'T':
        return py::bool_(true);
      case 'F':
        return py::bool_(false);
      case 'i':
        return py::reinterpret_steal<py::object>(PyLong_FromLongLong(raw<std::int64_t>()));
      case 'I':
        return get_int();
      case 'f':
        return py::float_(raw<double>());
      case 'c': {
        const auto re = raw<double>(), im = raw<double>();
        return py::reinterpret_steal<py::object>(PyComplex_FromDoubles(re, im));
      }
      case 's': {
        const std::uint32_t n = count(1);
        return owned(PyUnicode_DecodeUTF8(take(n), n, "surrogatepass"));
      }
      case 'b': {
        const std::uint32_t n = count(1);
        return owned(PyBytes_FromStringAndSize(take(n), n));
      }
      case 'B': {
        const std::uint32_t n = count(1);
        return owned(PyByteArray_FromStringAndSize(take(n), n));
      }
      case 'l': {
        charge(1);
        const std::uint32_t n = count(1);
        py::list list(n);
        for (std::uint32_t i = 0; i < n; ++i) PyList_SET_ITEM(list.ptr(), i, get(depth + 1).release().ptr());
        return list;
      }
      case 't': {
        charge(1);
        const std::uint32_t n = count(1);
        py::tuple tuple(n);
        for (std::uint32_t i = 0; i < n; ++i)
          PyTuple_SET_ITEM(tuple.ptr(), i, get(depth + 1).release().ptr());
        return tuple;
      }
      case 'S':
      case 'Z':
        return get_set(tag, depth);
      case 'd': {
        charge(4);
        const std::uint32_t n = count(2);
        py::dict dict;
        for (std::uint32_t i = 0; i < n; ++i) {
          const py::object key = get(depth + 1), value = get(depth + 1);
          if (PyDict_SetItem(dict.ptr(), key.ptr(), value.ptr()) != 0) throw py::error_already_set();
        }
        return dict;
      }
      case 'x': {
        charge(8);
        const py::object name = get(depth + 1), payload = get(depth + 1);
        if (hook_.is_none()) throw CodecError("an object that is not plain data");
        return hook_(name, payload);
      }
      default:
        throw CodecError("unknown tag");
    }
  }

  void finish() const {
    if (at_ != end_) throw CodecError("bytes after the end");
  }

 private:
  static py::object owned(PyObject* object) {
    if (object == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
  }

  const char* take(std::size_t n) {
    if (static_cast<std::size_t>(end_ - at_) < n) throw CodecError("cut short");
    const char* here = at_;
    at_ += n;
    return here;
  }

  template <typename T>
  T raw() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }

  void charge(std::uint64_t objects) {
    if (left_ < objects) throw CodecTooLarge("too many objects");
    left_ -= objects;
  }

  // A count of items of at least `least` bytes each.
  std::uint32_t count(std::uint32_t least) {
    const auto n = raw<std::uint32_t>();
    if (static_cast<std::uint64_t>(n) * least > static_cast<std::uint64_t>(end_ - at_))
      throw CodecError("cut short");
    return n;
  }

  py::object get_int() {
    const std::uint32_t n = count(1);
    const py::object type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyLong_Type));
    return type.attr("from_bytes")(py::bytes(take(n), n), "little", py::arg("signed") = true);
  }

  py::object get_set(char tag, int depth) {
    charge(4);
    const std::uint32_t n = count(1);
    py::list items(n);
    for (std::uint32_t i = 0; i < n; ++i) PyList_SET_ITEM(items.ptr(), i, get(depth + 1).release().ptr());
    return owned(tag == 'S' ? PySet_New(items.ptr()) : PyFrozenSet_New(items.ptr()));
  }

  const char* at_;
  const char* end_;
  py::handle hook_;
  std::uint64_t left_;  // objects that may still be made
};

}  // namespace

std::string encode_plain(py::handle value, py::handle hook, std::uint64_t max_bytes) {
  Encoder encoder(hook, max_bytes);
  encoder.put(value.ptr(), 0);
  if (encoder.out.size() > max_bytes)
    throw CodecTooLarge("more than " + std::to_string(max_bytes) + " bytes");
  return std::move(encoder.out);
}

py::object decode_plain(const char* data, std::size_t size, py::handle hook, std::uint64_t max_objects) {
  Decoder decoder(data, size, hook, max_objects);
  py::object value = decoder.get(0);
  decoder.finish();
  return value;
}

}  // namespace restrl
