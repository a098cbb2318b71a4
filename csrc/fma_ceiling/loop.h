// A loop of FMAs on registers: the peak FLOP rate of an instruction set, for the benchmarks.
#pragma once

#include <cstdint>

namespace glimodern {

// Runs `steps` steps on one thread and returns their FLOPs. *out keeps the compiler from removing the loop.
double fma_loop_avx2(int64_t steps, double* out);
double fma_loop_avx512(int64_t steps, double* out);

}  // namespace glimodern

namespace {

template <class V>
double fma_loop(int64_t steps, double* out) {
  constexpr int chains = 10;  // two FMAs per cycle with a latency of 4 need 8
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
  for (int n = 0; n < chains; ++n) *out += V::reduce_add(x[n]);
  return 2.0 * V::width * chains * static_cast<double>(steps);
}

}  // namespace
