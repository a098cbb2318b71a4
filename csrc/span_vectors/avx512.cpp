#include "simd/avx512.h"

#include "span_vectors/kernels.h"
#include "span_vectors/rows.h"

namespace glimodern {

void hidden_row_avx512(const SpanRows& in, int64_t row, float* x) { hidden_row<Avx512>(in, row, x); }

void hidden_slice_backward_avx512(const SpanRows& in, const float* x, const float* dx, int64_t column, int64_t columns,
                                  float* da, float* db) {
  hidden_slice_backward<Avx512>(in, x, dx, column, columns, da, db);
}

}  // namespace glimodern
