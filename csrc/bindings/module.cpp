// restrl._core: table of contents.
#include "register.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Native core of restrl: the forest of search trees and its benchmark.";
  restrl::register_search(m);
  restrl::register_forest(m);
  restrl::register_snapshot(m);
  restrl::register_bench(m);
  restrl::register_bench_forest(m);
}
