// The Python object around a Forest: it holds the splitter, and lets go of the `str` objects that the trees
// hold.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "search/forest.h"

namespace restrl {

class ForestObject {
 public:
  ForestObject(const search::SearchParams& params, std::uint64_t seed, pybind11::object split);
  ForestObject(const ForestObject&) = delete;
  ForestObject& operator=(const ForestObject&) = delete;
  ~ForestObject();

  // Lets go of what the forest has dropped; with the GIL, after every call that may drop something.
  void bury();

  pybind11::object splitter;  // None, or text -> length of its first step in characters
  search::Forest forest;

 private:
  std::size_t call_splitter(std::string_view text) const;
};

}  // namespace restrl
