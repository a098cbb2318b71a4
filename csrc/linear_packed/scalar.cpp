#include <cmath>
#include <limits>

#include "bf16.h"
#include "linear_packed/kernels.h"

namespace glimodern {
namespace {

float x_at(const LinearPacked& in, int64_t row, int64_t k) {
  const int64_t place = row * in.inputs + k;
  const float value =
      in.x_dtype == Dtype::fp32 ? static_cast<const float*>(in.x)[place] : widen(static_cast<const Bf16*>(in.x)[place]);
  return in.input_scale == nullptr ? value : value * in.input_scale[k];
}

float rounded(float x) {
  Bf16 y;
  narrow(x, &y);
  return widen(y);
}

void prepare(const LinearPacked& in, int64_t row, const PreparedRows& prepared, int64_t to) {
  char* out = prepared.data + to * prepared.stride;
  if (in.weight_dtype != WeightDtype::int8) {
    float* values = reinterpret_cast<float*>(out);
    for (int64_t k = 0; k < prepared.groups * group_inputs(in.weight_dtype); ++k) {
      const float value = k < in.inputs ? x_at(in, row, k) : 0.0f;
      values[k] = in.weight_dtype == WeightDtype::bf16 ? rounded(value) : value;
    }
    return;
  }
  float low = 0.0f, high = 0.0f;
  bool finite = true;
  for (int64_t k = 0; k < in.inputs; ++k) {
    const float value = x_at(in, row, k);
    finite = finite && std::isfinite(value);
    low = -value > low ? -value : low;
    high = value > high ? value : high;
  }
  const RowRange range = row_range(low, high);
  prepared.scale[to] = finite ? range.scale : std::numeric_limits<float>::quiet_NaN();
  prepared.zero[to] = finite ? range.zero : 0;
  uint8_t* q = reinterpret_cast<uint8_t*>(out);
  for (int64_t k = 0; k < prepared.groups * kGroupBytes; ++k) {
    const float value = finite && k < in.inputs ? std::nearbyint(x_at(in, row, k) * range.factor) : 0.0f;
    const int shifted = static_cast<int>(value) + prepared.zero[to];
    q[k] = static_cast<uint8_t>(shifted > 255 ? 255 : shifted);
  }
}

float product(const LinearPacked& in, const PreparedRows& prepared, int64_t row, int64_t output) {
  const int64_t groups = packed_groups(in);
  const char* x = prepared.data + row * prepared.stride;
  const char* w = static_cast<const char*>(in.weight) + output / kPanelColumns * groups * kLine +
                  output % kPanelColumns * kGroupBytes;
  if (in.weight_dtype != WeightDtype::int8) {
    const float* values = reinterpret_cast<const float*>(x);
    double sum = 0.0;
    for (int64_t k = 0; k < groups; ++k) {
      const char* line = w + k * kLine;
      if (in.weight_dtype == WeightDtype::fp32) {
        sum += double{values[k]} * *reinterpret_cast<const float*>(line);
      } else {
        const Bf16* pair = reinterpret_cast<const Bf16*>(line);
        sum += double{values[2 * k]} * widen(pair[0]) + double{values[2 * k + 1]} * widen(pair[1]);
      }
    }
    return static_cast<float>(sum);
  }
  int32_t sum = 0;
  for (int64_t k = 0; k < groups * kGroupBytes; ++k) {
    const int q = static_cast<uint8_t>(x[k]) - prepared.zero[row];
    sum += q * reinterpret_cast<const int8_t*>(w)[k / kGroupBytes * kLine + k % kGroupBytes];
  }
  return static_cast<float>(sum) * (prepared.scale[row] * in.scale[output]);
}

float activated(float value, Activation activation) {
  if (activation == Activation::relu) return value < 0.0f ? 0.0f : value;
  if (activation != Activation::none) return static_cast<float>(value * 0.5 * std::erfc(value * -0.70710678118654752));
  return value;
}

void multiply(const LinearPacked& in, const PreparedRows& prepared, int64_t from, int64_t begin, int64_t end,
              int64_t panel, int64_t last, float*) {
  const int64_t of_panel = panel_outputs(in.activation);
  const int64_t outputs = last * of_panel < in.outputs ? last * of_panel : in.outputs;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t output = panel * of_panel; output < outputs; ++output) {
      const int64_t n = output / of_panel * kPanelColumns + output % of_panel;
      float value = activated(product(in, prepared, row - from, n) + in.bias[n], in.activation);
      if (in.activation == Activation::geglu) value *= product(in, prepared, row - from, n + 8) + in.bias[n + 8];
      const int64_t place = row * in.outputs + output;
      if (in.y_dtype == Dtype::fp32) {
        narrow(value, static_cast<float*>(in.y) + place);
      } else {
        narrow(value, static_cast<Bf16*>(in.y) + place);
      }
    }
  }
}

}  // namespace

const LinearKernels& linear_kernels_scalar(WeightDtype dtype) {
  static constexpr LinearKernels fp32{1, 1, 2, 1, 4, 4, Dtype::fp32, prepare, multiply},
      bf16{1, 1, 2, 1, 8, 4, Dtype::fp64, prepare, multiply}, int8{1, 1, 2, 1, 4, 1, Dtype::fp64, prepare, multiply};
  return dtype == WeightDtype::int8 ? int8 : dtype == WeightDtype::bf16 ? bf16 : fp32;
}

}  // namespace glimodern
