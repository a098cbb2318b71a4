#include "glimodern/span_vectors.h"

#include <algorithm>

#include "glimodern/isa.h"
#include "span_vectors/kernels.h"

namespace glimodern {
namespace {

constexpr int64_t kColumns = 256;  // of da and db that one task owns: 1 KB a row, whole cache lines

struct Kernels {
  void (*hidden_row)(const SpanRows&, int64_t row, float* x);
  void (*slice_backward)(const SpanRows&, const float* x, const float* dx, int64_t column, int64_t columns, float* da,
                         float* db);
};

Kernels kernels() {
#if defined(GLIMODERN_X86)
  const Isa isa = current_isa();
  if (isa == Isa::avx512) return {hidden_row_avx512, hidden_slice_backward_avx512};
  if (isa == Isa::avx2) return {hidden_row_avx2, hidden_slice_backward_avx2};
#endif
  return {hidden_row_scalar, hidden_slice_backward_scalar};
}

}  // namespace

void span_hidden(const SpanRows& in, float* x, int threads) {
  const Kernels run = kernels();
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < in.rows; ++row) run.hidden_row(in, row, x + row * in.hidden);
}

void span_hidden_backward(const SpanRows& in, const float* x, const float* dx, float* da, float* db, int threads) {
  const Kernels run = kernels();
  const int64_t slices = (in.hidden + kColumns - 1) / kColumns;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t slice = 0; slice < slices; ++slice) {
    const int64_t column = slice * kColumns;
    run.slice_backward(in, x, dx, column, std::min(kColumns, in.hidden - column), da, db);
  }
}

}  // namespace glimodern
