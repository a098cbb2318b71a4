#include "glimodern/dropout.h"

#include <algorithm>

#include "dropout/kernels.h"
#include "glimodern/isa.h"
#include "integer_math.h"

namespace glimodern {
namespace {

constexpr int64_t kTaskElements = 16384;  // 64 KB: starting a thread costs more than a smaller task

auto kernel() {
#if defined(GLIMODERN_X86)
  const Isa isa = current_isa();
  if (isa == Isa::avx512) return dropout_rows_avx512;
  if (isa == Isa::avx2) return dropout_rows_avx2;
#endif
  return dropout_rows_scalar;
}

}  // namespace

void dropout_rows(const DropoutRows& in, int threads) {
  const auto run = kernel();
  const int64_t step = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, in.columns));
  const int64_t tasks = ceil_div(in.rows, step);
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < tasks; ++n) run(in, n * step, std::min(in.rows, (n + 1) * step));
}

}  // namespace glimodern
