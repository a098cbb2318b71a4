// rotary: y = [x1 cos - x2 sin | x2 cos + x1 sin] with [x1 | x2] = x and one angle per token and pair of elements.
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

struct RotaryShape {
  int64_t tokens, groups, heads, half;              // half = head_dim / 2
  int64_t token_stride, group_stride, head_stride;  // of x, in elements; a head's elements are contiguous
  bool inverse;                                     // rotates by the opposite angles, for the backward pass
};

// x -> y [tokens, groups, heads, 2 * half], contiguous. cos, sin: [tokens, half] in the accumulator dtype.
void rotary(Dtype, const void* x, const void* cos, const void* sin, void* y, const RotaryShape&, int threads);

}  // namespace glimodern
