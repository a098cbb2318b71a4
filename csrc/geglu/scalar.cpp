#include <cmath>

#include "geglu/kernels.h"
#include "glimodern/dtype.h"
#include "normal_cdf.h"

namespace glimodern {
namespace {

double normal_density(double a) { return 0.39894228040143268 * std::exp(-0.5 * a * a); }

template <class T>
void forward(const Geglu<T>& in, int64_t begin, int64_t end) {
  using Acc = Accumulator<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = in.x + row * 2 * in.width;
    for (int64_t j = 0; j < in.width; ++j) {
      const double a = widen(x[j]), b = widen(x[in.width + j]);
      narrow(static_cast<Acc>(a * normal_cdf(a) * b), in.out + row * in.width + j);
    }
  }
}

template <class T>
void backward(const Geglu<T>& in, int64_t begin, int64_t end) {
  using Acc = Accumulator<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = in.x + row * 2 * in.width;
    T* dx = in.out + row * 2 * in.width;
    for (int64_t j = 0; j < in.width; ++j) {
      const double a = widen(x[j]), b = widen(x[in.width + j]), dy = widen(in.dy[row * in.width + j]);
      const double cdf = normal_cdf(a);
      narrow(static_cast<Acc>(dy * b * (cdf + a * normal_density(a))), dx + j);
      narrow(static_cast<Acc>(dy * a * cdf), dx + in.width + j);
    }
  }
}

}  // namespace

void geglu_forward_scalar(const Geglu<float>& in, int64_t begin, int64_t end) { forward(in, begin, end); }
void geglu_forward_scalar(const Geglu<Bf16>& in, int64_t begin, int64_t end) { forward(in, begin, end); }
void geglu_forward_scalar(const Geglu<double>& in, int64_t begin, int64_t end) { forward(in, begin, end); }
void geglu_backward_scalar(const Geglu<float>& in, int64_t begin, int64_t end) { backward(in, begin, end); }
void geglu_backward_scalar(const Geglu<Bf16>& in, int64_t begin, int64_t end) { backward(in, begin, end); }
void geglu_backward_scalar(const Geglu<double>& in, int64_t begin, int64_t end) { backward(in, begin, end); }

}  // namespace glimodern
