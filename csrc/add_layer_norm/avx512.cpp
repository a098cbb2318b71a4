#include "simd/avx512.h"

#include "add_layer_norm/vectors.h"

namespace glimodern {

#define GLIMODERN_DEFINE(T)                                                                                  \
  void add_layer_norm_forward_avx512(const NormForward<T>& in, int64_t begin, int64_t end, float* row) {     \
    forward<Pair<Avx512>>(in, begin, end, row);                                                              \
  }                                                                                                          \
  void add_layer_norm_backward_avx512(const NormBackward<T>& in, int64_t begin, int64_t end, float* dweight, \
                                      float* dbias) {                                                        \
    backward<Pair<Avx512>>(in, begin, end, dweight, dbias);                                                  \
  }

GLIMODERN_DEFINE(float)
GLIMODERN_DEFINE(Bf16)

}  // namespace glimodern
