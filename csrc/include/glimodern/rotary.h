// rotary: y = [x1 cos - x2 sin | x2 cos + x1 sin] with [x1 | x2] = x, one angle a token and pair.
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

struct RotaryShape {
  int64_t tokens, groups, heads, half;              // half: of a head's width
  int64_t token_stride, group_stride, head_stride;  // of x, in numbers; a head's numbers lie side by side
  bool inverse;                                     // turn by the opposite angles: the backward pass
};

// x -> y [tokens, groups, heads, 2 * half], contiguous; cos, sin [tokens, half] in fp32 (fp64 for fp64).
void rotary(Dtype, const void* x, const void* cos, const void* sin, void* y, const RotaryShape&, int threads);

}  // namespace glimodern
