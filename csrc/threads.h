// OpenMP, or one thread without it.
#pragma once

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

}  // namespace glimodern
