// Storage dtypes, and the accumulator type that each is computed in.
#pragma once

namespace glimodern {

enum class Dtype { fp32, bf16, fp64 };

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
// float for float and Bf16, double for double.
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

}  // namespace glimodern
