#include "register.h"

namespace restrl {

void register_sandbox(pybind11::module_&) {}

}  // namespace restrl
