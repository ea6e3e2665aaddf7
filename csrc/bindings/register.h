// One function per concept; each lives in its own register_*.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace restrl {

void register_search(pybind11::module_& m);
void register_forest(pybind11::module_& m);
void register_snapshot(pybind11::module_& m);
void register_sandbox(pybind11::module_& m);
void register_bench(pybind11::module_& m);
void register_bench_forest(pybind11::module_& m);

}  // namespace restrl
