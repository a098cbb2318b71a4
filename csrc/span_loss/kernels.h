// The kernels of each instruction set; csrc/span.cpp makes the tables.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

template <class Acc>
double focal_negatives_scalar(Acc* z, int64_t n, const FocalParams&, bool with_grad);
double focal_negatives_avx2(float* z, int64_t n, const FocalParams&, bool with_grad);
double focal_negatives_avx512(float* z, int64_t n, const FocalParams&, bool with_grad);

// The unweighted loss at x, and its derivative with respect to x. x: the logit of a negative, minus the logit of a
// positive.
template <class Acc>
struct FocalPoint {
  Acc loss, slope;
};
template <class Acc>
FocalPoint<Acc> focal_point(Acc x, double gamma);

}  // namespace glimodern
