// The kernels of each instruction set; csrc/span.cpp makes the tables.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

double focal_negatives_scalar(float* z, int64_t n, const FocalParams&, bool with_grad);
double focal_negatives_avx2(float* z, int64_t n, const FocalParams&, bool with_grad);
double focal_negatives_avx512(float* z, int64_t n, const FocalParams&, bool with_grad);

// x = the logit of a negative, minus the logit of a positive -> unweighted loss, and its derivative after x.
struct FocalPoint {
  float loss, slope;
};
FocalPoint focal_point(float x, float gamma);

}  // namespace glimodern
