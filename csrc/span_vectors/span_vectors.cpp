#include "glimodern/span_vectors.h"

#include <algorithm>

#include "glimodern/isa.h"
#include "integer_math.h"
#include "span_vectors/kernels.h"

namespace glimodern {
namespace {

constexpr int64_t kColumns = 256;  // of da and db that one task owns: 1 KB per row, whole cache lines

template <class Acc>
struct Kernels {
  void (*hidden_row)(const SpanRows&, int64_t row, Acc* x);
  void (*slice_backward)(const SpanRows&, const Acc* x, const Acc* dx, int64_t column, int64_t columns, Acc* da,
                         Acc* db);
};

Kernels<float> kernels(float) {
#if defined(GLIMODERN_X86)
  const Isa isa = current_isa();
  if (isa == Isa::avx512) return {hidden_row_avx512, hidden_slice_backward_avx512};
  if (isa == Isa::avx2) return {hidden_row_avx2, hidden_slice_backward_avx2};
#endif
  return {hidden_row_scalar<float>, hidden_slice_backward_scalar<float>};
}

Kernels<double> kernels(double) { return {hidden_row_scalar<double>, hidden_slice_backward_scalar<double>}; }

}  // namespace

template <class Acc>
void span_hidden(const SpanRows& in, Acc* x, int threads) {
  const Kernels<Acc> run = kernels(Acc{});
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < in.rows; ++row) run.hidden_row(in, row, x + row * in.hidden);
}

template <class Acc>
void span_hidden_backward(const SpanRows& in, const Acc* x, const Acc* dx, Acc* da, Acc* db, int threads) {
  const Kernels<Acc> run = kernels(Acc{});
  const int64_t slices = ceil_div(in.hidden, kColumns);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t slice = 0; slice < slices; ++slice) {
    const int64_t column = slice * kColumns;
    run.slice_backward(in, x, dx, column, std::min(kColumns, in.hidden - column), da, db);
  }
}

template void span_hidden(const SpanRows&, float*, int);
template void span_hidden(const SpanRows&, double*, int);
template void span_hidden_backward(const SpanRows&, const float*, const float*, float*, float*, int);
template void span_hidden_backward(const SpanRows&, const double*, const double*, double*, double*, int);

}  // namespace glimodern
