#include "simd/avx512.h"

#include "add_layer_norm/vectors.h"

namespace glimodern {

#define GLIMODERN_DEFINE(T, Lanes)                                                                           \
  void add_layer_norm_forward_avx512(const NormForward<T>& in, int64_t begin, int64_t end, float* scratch,   \
                                     int64_t stride) {                                                       \
    forward<Lanes>(in, begin, end, scratch, stride);                                                         \
  }                                                                                                          \
  void add_layer_norm_backward_avx512(const NormBackward<T>& in, int64_t begin, int64_t end, float* dweight, \
                                      float* dbias, float* scratch) {                                        \
    backward<Lanes>(in, begin, end, dweight, dbias, scratch);                                                \
  }

GLIMODERN_DEFINE(float, Pair<Avx512>)
GLIMODERN_DEFINE(Bf16, EvenOdd<Avx512>)

}  // namespace glimodern
