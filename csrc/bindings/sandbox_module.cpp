// restrl._sandbox: what judges and zygotes load of the native part, and nothing else.
#include "register.h"

PYBIND11_MODULE(_sandbox, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Confinement of untrusted code and the messages around it.";
  restrl::register_sandbox(m);
}
