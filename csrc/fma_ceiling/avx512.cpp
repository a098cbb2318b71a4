#include "simd/avx512.h"

#include "fma_ceiling/loop.h"

namespace glimodern {

double fma_loop_avx512(int64_t steps, double* out) { return fma_loop<Avx512>(steps, out); }

}  // namespace glimodern
