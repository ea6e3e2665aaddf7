// Checks of the C++ tests: a failed one prints where and what, and the test's main() returns 1.
#pragma once

#include <cstdio>
#include <string>

namespace restrl::testing {

inline int failures = 0;

inline void report(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++failures;
}

inline int result() { return failures == 0 ? 0 : 1; }

}  // namespace restrl::testing

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) restrl::testing::report(__FILE__, __LINE__, "not " #condition); \
  } while (false)

// `expression` throws `type` with a message that contains `part`.
#define CHECK_THROWS(type, part, expression)                                                             \
  do {                                                                                                   \
    try {                                                                                                \
      (void)(expression);                                                                                \
      restrl::testing::report(__FILE__, __LINE__, #expression " threw nothing");                         \
    } catch (const type& error) {                                                                        \
      if (std::string(error.what()).find(part) == std::string::npos) {                                   \
        restrl::testing::report(__FILE__, __LINE__, std::string(#expression " threw: ") + error.what()); \
      }                                                                                                  \
    }                                                                                                    \
  } while (false)
