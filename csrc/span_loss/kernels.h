// The kernels of each instruction set; csrc/span.cpp makes the tables.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

template <class W>
double focal_negatives_scalar(W* z, int64_t n, const FocalParams&, bool with_grad);
double focal_negatives_avx2(float* z, int64_t n, const FocalParams&, bool with_grad);
double focal_negatives_avx512(float* z, int64_t n, const FocalParams&, bool with_grad);

// x = the logit of a negative, minus the logit of a positive -> unweighted loss, and its derivative after x.
template <class W>
struct FocalPoint {
  W loss, slope;
};
template <class W>
FocalPoint<W> focal_point(W x, double gamma);

}  // namespace glimodern
