// How the elementwise operators' numbers are stored, and what they are computed in.
#pragma once

namespace glimodern {

enum class Dtype { fp32, bf16, fp64 };

template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

}  // namespace glimodern
