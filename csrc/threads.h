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

// body(begin, end) over all rows, one run of rows a thread; with fewer threads where one would get under 16,384
// numbers.
template <class Body>
void parallel_rows(int64_t rows, int64_t width, int threads, Body body) {
  const int64_t most = rows * width / 16384 + 1;
  const int64_t parts = most < threads ? most : threads;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(parts))
  for (int64_t part = 0; part < parts; ++part) body(rows * part / parts, rows * (part + 1) / parts);
}

}  // namespace glimodern
