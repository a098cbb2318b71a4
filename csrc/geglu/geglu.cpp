#include "glimodern/geglu.h"

#include "call_isa.h"
#include "geglu/kernels.h"
#include "threads.h"

namespace glimodern {

void geglu_forward(Dtype dtype, const void* x, void* y, int64_t rows, int64_t width, int threads) {
  const Isa isa = current_isa();
  with_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const Geglu<T> in{static_cast<const T*>(x), nullptr, static_cast<T*>(y), width};
    parallel_rows(rows, 2 * width, threads,
                  [&](int64_t begin, int64_t end) { CALL_ISA(isa, T, geglu_forward, in, begin, end); });
  });
}

void geglu_backward(Dtype dtype, const void* dy, const void* x, void* dx, int64_t rows, int64_t width, int threads) {
  const Isa isa = current_isa();
  with_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const Geglu<T> in{static_cast<const T*>(x), static_cast<const T*>(dy), static_cast<T*>(dx), width};
    parallel_rows(rows, 2 * width, threads,
                  [&](int64_t begin, int64_t end) { CALL_ISA(isa, T, geglu_backward, in, begin, end); });
  });
}

}  // namespace glimodern
