#include "simd/avx2.h"

#include "fma_ceiling/loop.h"

namespace glimodern {

double fma_loop_avx2(int64_t steps, double* out) { return fma_loop<Avx2>(steps, out); }

}  // namespace glimodern
