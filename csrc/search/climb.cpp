#include "search/climb.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "search/climb_walks.h"

namespace restrl::search {
namespace {

struct ScalarLanes {
  struct Values {
    double lane[4];
  };
  static Values load(const double* values) { return {{values[0], values[1], values[2], values[3]}}; }

  struct Addends {
    Addends(std::uint32_t added_N, double added_W) : N(added_N), W(added_W) {}
    void add(Line& line, std::uint32_t lane) const {
      line.N[lane] += N;
      line.W[lane] += W;
    }
    std::uint32_t N;
    double W;
  };

  template <bool>
  static Values uct(const Rows& rows, std::uint32_t line, double ratio) {
    Values values;
    plain_uct(rows, line, ratio, values.lane);
    return values;
  }

  static double largest(const Values& values) {
    double largest = values.lane[0];
    for (int i = 1; i < 4; ++i) largest = values.lane[i] > largest ? values.lane[i] : largest;
    return largest;
  }

  static std::uint32_t equal(const Values& values, double value) {
    std::uint32_t mask = 0;
    for (int i = 0; i < 4; ++i) mask |= static_cast<std::uint32_t>(values.lane[i] == value) << i;
    return mask;
  }
};

}  // namespace

const std::array<double, kTabulated> kLogs = [] {
  std::array<double, kTabulated> logs{};
  for (std::uint32_t N = 0; N < kTabulated; ++N) logs[N] = std::log(static_cast<double>(N));
  return logs;
}();

double repeated(double score, std::uint32_t count) {
  double sum = 0;
  for (std::uint32_t i = 0; i < count; ++i) sum += score;
  return sum;
}

const Walks kScalarWalks{"scalar", &climb<ScalarLanes>, &fly<ScalarLanes>, &next<ScalarLanes>,
                         &pick<ScalarLanes>};

const Walks& best_walks() {
#if defined(RESTRL_AVX2)
  static const bool avx2 = [] {
    const char* const scalar = std::getenv("RESTRL_SCALAR");
    return (scalar == nullptr || std::string_view(scalar) == "0") && __builtin_cpu_supports("avx2");
  }();
  if (avx2) return kAvx2Walks;
#endif
  return kScalarWalks;
}

}  // namespace restrl::search
