#include "glimodern/rotary.h"

#include "call_isa.h"
#include "rotary/kernels.h"
#include "threads.h"

namespace glimodern {

void rotary(Dtype dtype, const void* x, const void* cos, const void* sin, void* y, const RotaryShape& shape,
            int threads) {
  const Isa isa = current_isa();
  with_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const Rotary<T> in{static_cast<const T*>(x), static_cast<const Accumulator<T>*>(cos),
                       static_cast<const Accumulator<T>*>(sin), static_cast<T*>(y), shape};
    parallel_rows(shape.tokens, shape.groups * shape.heads * 2 * shape.half, threads,
                  [&](int64_t begin, int64_t end) { CALL_ISA(isa, T, rotary, in, begin, end); });
  });
}

}  // namespace glimodern
