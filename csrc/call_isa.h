// Dispatch by instruction set and by dtype.
#pragma once

#include <type_traits>

#include "bf16.h"
#include "glimodern/dtype.h"
#include "glimodern/isa.h"

// CALL_ISA(isa, T, kernel, ...) calls kernel_scalar, kernel_avx2 or kernel_avx512; fp64 has scalar kernels only.
#if defined(GLIMODERN_X86)
#define CALL_ISA(isa, T, kernel, ...)          \
  do {                                         \
    if constexpr (std::is_same_v<T, double>) { \
      kernel##_scalar(__VA_ARGS__);            \
    } else if (isa == Isa::avx512) {           \
      kernel##_avx512(__VA_ARGS__);            \
    } else if (isa == Isa::avx2) {             \
      kernel##_avx2(__VA_ARGS__);              \
    } else {                                   \
      kernel##_scalar(__VA_ARGS__);            \
    }                                          \
  } while (false)
#else
#define CALL_ISA(isa, T, kernel, ...) kernel##_scalar(__VA_ARGS__)
#endif

namespace glimodern {

// body(T{}) with the storage type T of dtype.
template <class Body>
void with_dtype(Dtype dtype, Body body) {
  if (dtype == Dtype::fp32) body(float{});
  if (dtype == Dtype::bf16) body(Bf16{});
  if (dtype == Dtype::fp64) body(double{});
}

}  // namespace glimodern
