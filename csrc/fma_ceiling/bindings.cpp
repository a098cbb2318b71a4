#include "bindings.h"

#include "fma_ceiling/loop.h"
#include "glimodern/isa.h"
#include "threads.h"

namespace glimodern {

void bind_fma_ceiling(nanobind::module_& m) {
  // Runs `steps` steps of the current instruction set's loop on each thread; returns their FLOPs, 0 for scalar.
  m.def("fma_loop", [](int64_t steps, int threads) {
    nanobind::gil_scoped_release release;
    double flops = 0.0;
#if defined(GLIMODERN_X86)
    const Isa isa = current_isa();
    if (isa == Isa::scalar) return flops;
    const auto loop = isa == Isa::avx512 ? fma_loop_avx512 : fma_loop_avx2;
    double kept = 0.0;
#pragma omp parallel for reduction(+ : flops, kept) num_threads(checked_threads(threads))
    for (int thread = 0; thread < threads; ++thread) {
      double out;
      flops += loop(steps, &out);
      kept += out;
    }
#else
    (void)steps, (void)threads;
#endif
    return flops;
  });
}

}  // namespace glimodern
