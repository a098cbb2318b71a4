// The kernels of each instruction set, on tokens [begin, end); rotary.cpp selects one.
#pragma once

#include "bf16.h"
#include "glimodern/rotary.h"

namespace glimodern {

template <class T>
struct Rotary {
  const T* x;
  const Accumulator<T>* cos;
  const Accumulator<T>* sin;
  T* y;
  RotaryShape shape;
};

void rotary_scalar(const Rotary<float>&, int64_t begin, int64_t end);
void rotary_scalar(const Rotary<Bf16>&, int64_t begin, int64_t end);
void rotary_scalar(const Rotary<double>&, int64_t begin, int64_t end);
void rotary_avx2(const Rotary<float>&, int64_t begin, int64_t end);
void rotary_avx2(const Rotary<Bf16>&, int64_t begin, int64_t end);
void rotary_avx512(const Rotary<float>&, int64_t begin, int64_t end);
void rotary_avx512(const Rotary<Bf16>&, int64_t begin, int64_t end);

}  // namespace glimodern
