#include "rotary/kernels.h"

namespace glimodern {
namespace {

template <class T>
void rotate(const Rotary<T>& in, int64_t begin, int64_t end) {
  using Acc = Accumulator<T>;
  const RotaryShape& shape = in.shape;
  T* y = in.y + begin * shape.groups * shape.heads * 2 * shape.half;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t group = 0; group < shape.groups; ++group) {
      for (int64_t head = 0; head < shape.heads; ++head, y += 2 * shape.half) {
        const T* x = in.x + token * shape.token_stride + group * shape.group_stride + head * shape.head_stride;
        for (int64_t j = 0; j < shape.half; ++j) {
          const Acc c = in.cos[token * shape.half + j], angle_sin = in.sin[token * shape.half + j];
          const Acc s = shape.inverse ? -angle_sin : angle_sin;
          const Acc x1 = widen(x[j]), x2 = widen(x[shape.half + j]);
          narrow(x1 * c - x2 * s, y + j);
          narrow(x2 * c + x1 * s, y + shape.half + j);
        }
      }
    }
  }
}

}  // namespace

void rotary_scalar(const Rotary<float>& in, int64_t begin, int64_t end) { rotate(in, begin, end); }
void rotary_scalar(const Rotary<Bf16>& in, int64_t begin, int64_t end) { rotate(in, begin, end); }
void rotary_scalar(const Rotary<double>& in, int64_t begin, int64_t end) { rotate(in, begin, end); }

}  // namespace glimodern
