// The walks of climb.h for processors with AVX2, chosen at run time; the only file compiled for them.
#include <immintrin.h>

#include "search/climb_walks.h"

namespace restrl::search {
namespace {

struct Avx2Lanes {
  using Values = __m256d;
  static Values load(const double* values) { return _mm256_load_pd(values); }

  // What a change adds to a line, by the lane it is for; -0.0 leaves a sum as it is, whatever its sign. The
  // line is read and written whole: a store of one lane would hold up the load of four that follows.
  struct Addends {
    Addends(std::uint32_t N, double W) {
      const __m256d sum = _mm256_set1_pd(W);
      const __m256d none = _mm256_set1_pd(-0.0);
      _mm256_store_pd(sums[0], _mm256_blend_pd(none, sum, 1));
      _mm256_store_pd(sums[1], _mm256_blend_pd(none, sum, 2));
      _mm256_store_pd(sums[2], _mm256_blend_pd(none, sum, 4));
      _mm256_store_pd(sums[3], _mm256_blend_pd(none, sum, 8));
      const __m128i count = _mm_cvtsi32_si128(static_cast<int>(N));
      _mm_store_si128(reinterpret_cast<__m128i*>(counts[0]), count);
      _mm_store_si128(reinterpret_cast<__m128i*>(counts[1]), _mm_slli_si128(count, 4));
      _mm_store_si128(reinterpret_cast<__m128i*>(counts[2]), _mm_slli_si128(count, 8));
      _mm_store_si128(reinterpret_cast<__m128i*>(counts[3]), _mm_slli_si128(count, 12));
    }
    void add(Line& line, std::uint32_t lane) const {
      _mm256_store_pd(line.W, _mm256_add_pd(_mm256_load_pd(line.W), _mm256_load_pd(sums[lane])));
      __m128i* const N = reinterpret_cast<__m128i*>(line.N);
      _mm_store_si128(N, _mm_add_epi32(_mm_load_si128(N),
                                       _mm_load_si128(reinterpret_cast<const __m128i*>(counts[lane]))));
    }
    alignas(32) double sums[4][4];
    alignas(16) std::uint32_t counts[4][4];
  };

  template <bool kFlight>
  static Values uct(const Rows& rows, std::uint32_t line, double ratio) {
    const Line& row = rows.lines[line];
    const __m256d W = _mm256_load_pd(row.W);
    const __m128i N = _mm_load_si128(reinterpret_cast<const __m128i*>(row.N));
    // Visits stay below 2^31 (Tree::expand), so that the signed conversion is right.
    const __m256d seen = _mm256_cvtepi32_pd(N);
    __m256d expected = seen;
    if (kFlight) {
      const __m128i O =
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows.flight + 4 * std::size_t{line}));
      expected = _mm256_cvtepi32_pd(_mm_add_epi32(N, _mm_cvtepu16_epi32(O)));
    }
    const __m256d divisor = _mm256_max_pd(rows.unobserved ? seen : expected, _mm256_set1_pd(1.0));
    const __m256d V = _mm256_div_pd(W, divisor);
    const __m256d spread =
        _mm256_div_pd(_mm256_set1_pd(ratio), _mm256_add_pd(_mm256_set1_pd(rows.eps), expected));
    return _mm256_add_pd(V, _mm256_mul_pd(_mm256_set1_pd(rows.c), _mm256_sqrt_pd(spread)));
  }

  static __m256d spread_largest(Values values) {
    const __m256d pairs = _mm256_max_pd(values, _mm256_permute2f128_pd(values, values, 1));
    return _mm256_max_pd(pairs, _mm256_permute_pd(pairs, 5));
  }
  static double largest(Values values) { return _mm256_cvtsd_f64(spread_largest(values)); }

  static std::uint32_t equal(Values values, double value) {
    const __m256d same = _mm256_cmp_pd(values, _mm256_set1_pd(value), _CMP_EQ_OQ);
    return static_cast<std::uint32_t>(_mm256_movemask_pd(same));
  }
};

}  // namespace

const Walks kAvx2Walks{"avx2", &climb<Avx2Lanes>, &fly<Avx2Lanes>, &next<Avx2Lanes>, &pick<Avx2Lanes>};

}  // namespace restrl::search
