// Nothing but FMAs on registers: what no kernel of this instruction set can pass. For the benchmarks.
#pragma once

#include <cstdint>

namespace glimodern {

// FLOPs of one thread's loop of `steps` steps, an instruction set each; *out keeps the loop alive.
double fma_loop_avx2(int64_t steps, double* out);
double fma_loop_avx512(int64_t steps, double* out);

}  // namespace glimodern

namespace {

template <class V>
double fma_loop(int64_t steps, double* out) {
  constexpr int chains = 10;  // two FMAs a cycle of latency 4 need 8
  const auto factor = V::set1(0.5f), summand = V::set1(1.0f);
  typename V::F x[chains];
#pragma GCC unroll 16
  for (int n = 0; n < chains; ++n) x[n] = V::set1(static_cast<float>(n));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int n = 0; n < chains; ++n) x[n] = V::fma(x[n], factor, summand);
  }
  *out = 0.0;
#pragma GCC unroll 16
  for (int n = 0; n < chains; ++n) *out += V::sum(x[n]);
  return 2.0 * V::width * chains * static_cast<double>(steps);
}

}  // namespace
