#include "register.h"

namespace restrl {

void register_search(pybind11::module_&) {}

}  // namespace restrl
