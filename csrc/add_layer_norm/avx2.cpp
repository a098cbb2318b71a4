#include "simd/avx2.h"

#include "add_layer_norm/vectors.h"

namespace glimodern {

#define GLIMODERN_DEFINE(T)                                                                                \
  void add_layer_norm_forward_avx2(const NormForward<T>& in, int64_t begin, int64_t end, float* row) {     \
    forward<Pair<Avx2>>(in, begin, end, row);                                                              \
  }                                                                                                        \
  void add_layer_norm_backward_avx2(const NormBackward<T>& in, int64_t begin, int64_t end, float* dweight, \
                                    float* dbias) {                                                        \
    backward<Pair<Avx2>>(in, begin, end, dweight, dbias);                                                  \
  }

GLIMODERN_DEFINE(float)
GLIMODERN_DEFINE(Bf16)

}  // namespace glimodern
