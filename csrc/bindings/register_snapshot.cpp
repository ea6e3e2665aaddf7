// restrl._core: trees as bytes and back.
#include <pybind11/stl.h>

#include <string_view>

#include "forest_object.h"
#include "register.h"
#include "search/errors.h"
#include "search/snapshot.h"
#include "text_objects.h"

namespace py = pybind11;

namespace restrl {
namespace {

using namespace search;

py::bytes save_tree(const ForestObject& object, TreeId tree) {
  const std::string bytes = [&] {
    const py::gil_scoped_release release;
    return save(object.forest, tree);
  }();
  return py::bytes(bytes);
}

// Bytes of its own for a text that a forest holds by reference.
Sampled keep_text(std::string_view utf8) {
  const py::gil_scoped_acquire acquire;
  PyObject* bytes = PyBytes_FromStringAndSize(utf8.data(), static_cast<Py_ssize_t>(utf8.size()));
  if (bytes == nullptr) throw py::error_already_set();
  return {{PyBytes_AS_STRING(bytes), utf8.size()}, bytes};
}

TreeId load_tree(ForestObject& object, const py::bytes& data) {
  struct Burial {
    ForestObject& object;
    ~Burial() { object.bury(); }
  } const burial{object};
  const std::string_view bytes = data;
  const py::gil_scoped_release release;
  return load(object.forest, bytes, keep_text);
}

py::dict snapshot_info(const py::bytes& data) {
  const std::string_view bytes = data;
  const Snapshot snapshot = [&] {
    const py::gil_scoped_release release;
    return decode(bytes);
  }();
  py::dict info;
  info["key"] = to_str(snapshot.tree.key);
  info["params"] = snapshot.params;
  info["seed"] = snapshot.seed;
  info["splitter"] = snapshot.splitter;
  info["simulations"] = snapshot.tree.stats.simulations;
  info["in_flight"] = snapshot.tree.window.size();
  return info;
}

}  // namespace

void register_snapshot(py::module_& m) {
  py::register_exception<SnapshotError>(m, "SnapshotError", m.attr("SearchError"));
  auto forest = py::reinterpret_borrow<py::class_<ForestObject>>(m.attr("Forest"));
  forest.def("save", &save_tree, py::arg("tree"), "The tree as a snapshot, whatever is under way in it.");
  forest.def("load", &load_tree, py::arg("data"),
             "A new tree that goes on exactly where the saved one stood; its id.");
  m.def("snapshot_info", &snapshot_info, py::arg("data"), "What a snapshot is of, without a forest.");
}

}  // namespace restrl
