// OpenMP, or one thread without it.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace glimodern {

inline int thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Calls body(begin, end) on one contiguous range of rows per thread. Uses fewer threads if a range would hold fewer
// than 16,384 elements.
template <class Body>
void parallel_rows(int64_t rows, int64_t width, int threads, Body body) {
  const int64_t max_ranges = rows * width / 16384 + 1;
  const int64_t ranges = max_ranges < threads ? max_ranges : threads;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(ranges))
  for (int64_t n = 0; n < ranges; ++n) body(rows * n / ranges, rows * (n + 1) / ranges);
}

}  // namespace glimodern
