#include "simd/avx2.h"

#include "linear_packed/multiply.h"

namespace glimodern {
namespace {

struct Int8 {
  using A = __m256i;
  using W = __m256i;
  static constexpr bool int8 = true;
  static constexpr int x_bytes = 4;
  // 15 registers: 8 accumulators, 4 vectors of weights, 2 of x, 1 temporary.
  static constexpr int rows = 4, vectors = 2, bytes = 32;

  static A zero() { return _mm256_setzero_si256(); }
  static A plus(A x, A y) { return _mm256_add_epi32(x, y); }
  static A load(const float* p) { return _mm256_load_si256(reinterpret_cast<const A*>(p)); }
  static void store(float* p, A x) { _mm256_store_si256(reinterpret_cast<A*>(p), x); }
  static W weights(const char* w) { return _mm256_loadu_si256(reinterpret_cast<const W*>(w)); }
  static W broadcast(const char* x) {
    return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float*>(x)));
  }
  static __m256 subtract_zero_point(A sum, int32_t zero_point, const int32_t* weight_sum) {
    const A weights = _mm256_loadu_si256(reinterpret_cast<const A*>(weight_sum));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_mullo_epi32(_mm256_set1_epi32(zero_point), weights)));
  }
  static W products(W x, W w) { return _mm256_maddubs_epi16(x, w); }
  static W plus16(W x, W y) { return _mm256_add_epi16(x, y); }
  static A widen(W x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
  template <int R, int N>
  static void step(const char* x, int64_t stride, const char* w, int64_t panel, A* sum) {
    step_by_two_groups<Int8, Avx2, R, N>(x, stride, w, panel, sum);
  }
  static void quantise(const __m256* x, int32_t zero_point, uint8_t* to) {
    const A shift = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
    const A low = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
    const A high = _mm256_packs_epi32(_mm256_cvtps_epi32(x[2]), _mm256_cvtps_epi32(x[3]));
    const A q = _mm256_packus_epi16(_mm256_add_epi16(low, shift), _mm256_add_epi16(high, shift));
    const A order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work on 128-bit halves
    _mm256_storeu_si256(reinterpret_cast<A*>(to), _mm256_permutevar8x32_epi32(q, order));
  }
};

}  // namespace

const LinearKernels& linear_kernels_avx2(WeightDtype dtype) {
  static constexpr LinearKernels fp32 = fp32_kernels<Avx2>(), bf16 = bf16_by_fma_kernels<Avx2>(),
                                 int8 = int8_kernels<Int8, Avx2>();
  return dtype == WeightDtype::int8 ? int8 : dtype == WeightDtype::bf16 ? bf16 : fp32;
}

}  // namespace glimodern
