// The normal distribution function in fp64, for the scalar kernels.
#pragma once

#include <cmath>

namespace {

inline double normal_cdf(double x) { return 0.5 * std::erfc(x * -0.70710678118654752); }

}  // namespace
