// geglu: y = gelu(a) * b with [a | b] = x. gelu(a) = a * Phi(a), where Phi is the normal distribution function (the
// exact "erf" GELU).
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

// x [rows, 2 * width] -> y [rows, width].
void geglu_forward(Dtype, const void* x, void* y, int64_t rows, int64_t width, int threads);

// dx [rows, 2 * width] from dy [rows, width]: da = dy * b * (Phi(a) + a * phi(a)), db = dy * gelu(a).
void geglu_backward(Dtype, const void* dy, const void* x, void* dx, int64_t rows, int64_t width, int threads);

}  // namespace glimodern
