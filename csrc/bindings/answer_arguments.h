// What Python gives to Forest.fulfil(): lists of lists, flat lists or numpy arrays, read without converters.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "search/forest_data.h"
#include "text_objects.h"

namespace restrl {

// Ids as a list, a tuple or an array of integers. Throws TypeError, RequestError.
class Ids {
 public:
  explicit Ids(const pybind11::object& ids);
  std::span<const search::RequestId> get() const { return ids_; }

 private:
  std::vector<search::RequestId> list_;
  std::span<const search::RequestId> ids_;
};

// Floats as a list with one row for each request, a flat list, or an array of any shape. Throws TypeError,
// AnswerError.
class Values {
 public:
  Values(const pybind11::object& values, std::size_t requests, const char* what);
  search::Flat<double> get() const { return {values_, lengths_}; }

 private:
  std::vector<double> list_;
  std::vector<std::uint32_t> lengths_;
  std::span<const double> values_;
};

// Completions as a list with one row for each request, or a flat list of str. Throws TypeError, AnswerError.
class Texts {
 public:
  Texts(const pybind11::object& texts, std::size_t requests);
  search::Flat<search::Sampled> get() const { return {texts_.texts(), lengths_}; }
  void hand_over() { texts_.hand_over(); }

 private:
  Borrowed texts_;
  std::vector<std::uint32_t> lengths_;
};

}  // namespace restrl
