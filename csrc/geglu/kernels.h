// The kernels of each instruction set, on rows [begin, end); geglu.cpp selects one.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace glimodern {

template <class T>
struct Geglu {
  const T* x;   // [rows, 2 * width]
  const T* dy;  // [rows, width], backward only
  T* out;       // y [rows, width], or dx [rows, 2 * width]
  int64_t width;
};

#define GLIMODERN_DECLARE_GEGLU(isa, T)                                  \
  void geglu_forward_##isa(const Geglu<T>&, int64_t begin, int64_t end); \
  void geglu_backward_##isa(const Geglu<T>&, int64_t begin, int64_t end);

GLIMODERN_DECLARE_GEGLU(scalar, float)
GLIMODERN_DECLARE_GEGLU(scalar, Bf16)
GLIMODERN_DECLARE_GEGLU(scalar, double)
GLIMODERN_DECLARE_GEGLU(avx2, float)
GLIMODERN_DECLARE_GEGLU(avx2, Bf16)
GLIMODERN_DECLARE_GEGLU(avx512, float)
GLIMODERN_DECLARE_GEGLU(avx512, Bf16)
#undef GLIMODERN_DECLARE_GEGLU

}  // namespace glimodern
