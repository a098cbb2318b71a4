#include "simd/avx2.h"

#include "span_vectors/kernels.h"
#include "span_vectors/rows.h"

namespace glimodern {

void hidden_row_avx2(const SpanRows& in, int64_t row, float* x) { hidden_row<Avx2>(in, row, x); }

void hidden_slice_backward_avx2(const SpanRows& in, const float* x, const float* dx, int64_t column, int64_t columns,
                                float* da, float* db) {
  hidden_slice_backward<Avx2>(in, x, dx, column, columns, da, db);
}

}  // namespace glimodern
