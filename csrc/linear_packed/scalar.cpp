// The reference implementation: one loop per symbol, sums in fp64.
#include <cmath>
#include <limits>

#include "bf16.h"
#include "linear_packed/kernels.h"
#include "normal_cdf.h"

namespace glimodern {
namespace {

float element(const LinearPacked& in, int64_t row, int64_t k) {
  const int64_t at = row * in.inputs + k;
  const float x =
      in.x_dtype == Dtype::fp32 ? static_cast<const float*>(in.x)[at] : widen(static_cast<const Bf16*>(in.x)[at]);
  return in.input_scale == nullptr ? x : x * in.input_scale[k];
}

float round_to_bf16(float x) {
  Bf16 y;
  narrow(x, &y);
  return widen(y);
}

void prepare(const LinearPacked& in, int64_t row, const PreparedRows& prepared, int64_t to) {
  char* out = prepared.data + to * prepared.stride;
  if (in.weight_dtype != WeightDtype::int8) {
    float* floats = reinterpret_cast<float*>(out);
    for (int64_t k = 0; k < prepared.groups * group_inputs(in.weight_dtype); ++k) {
      const float x = k < in.inputs ? element(in, row, k) : 0.0f;
      floats[k] = in.weight_dtype == WeightDtype::bf16 ? round_to_bf16(x) : x;
    }
    return;
  }
  float low = 0.0f, high = 0.0f;
  bool finite = true;
  for (int64_t k = 0; k < in.inputs; ++k) {
    const float x = element(in, row, k);
    finite = finite && std::isfinite(x);
    low = -x > low ? -x : low;
    high = x > high ? x : high;
  }
  const RowQuantisation range = row_quantisation(low, high);
  prepared.scale[to] = finite ? range.scale : std::numeric_limits<float>::quiet_NaN();
  prepared.zero_point[to] = finite ? range.zero_point : 0;
  uint8_t* q = reinterpret_cast<uint8_t*>(out);
  for (int64_t k = 0; k < prepared.groups * kGroupBytes; ++k) {
    const float steps = finite && k < in.inputs ? std::nearbyint(element(in, row, k) * range.inverse_scale) : 0.0f;
    const int shifted = static_cast<int>(steps) + prepared.zero_point[to];
    q[k] = static_cast<uint8_t>(shifted > 255 ? 255 : shifted);
  }
}

float product(const LinearPacked& in, const PreparedRows& prepared, int64_t row, int64_t output) {
  const int64_t groups = packed_groups(in);
  const char* x = prepared.data + row * prepared.stride;
  const char* w = static_cast<const char*>(in.weight) + output / kPanelColumns * groups * kLineBytes +
                  output % kPanelColumns * kGroupBytes;
  if (in.weight_dtype != WeightDtype::int8) {
    const float* floats = reinterpret_cast<const float*>(x);
    double sum = 0.0;
    for (int64_t k = 0; k < groups; ++k) {
      const char* line = w + k * kLineBytes;
      if (in.weight_dtype == WeightDtype::fp32) {
        sum += double{floats[k]} * *reinterpret_cast<const float*>(line);
      } else {
        const Bf16* pair = reinterpret_cast<const Bf16*>(line);
        sum += double{floats[2 * k]} * widen(pair[0]) + double{floats[2 * k + 1]} * widen(pair[1]);
      }
    }
    return static_cast<float>(sum);
  }
  int32_t sum = 0;
  for (int64_t k = 0; k < groups * kGroupBytes; ++k) {
    const int q = static_cast<uint8_t>(x[k]) - prepared.zero_point[row];
    sum += q * reinterpret_cast<const int8_t*>(w)[k / kGroupBytes * kLineBytes + k % kGroupBytes];
  }
  return static_cast<float>(sum) * (prepared.scale[row] * in.scale[output]);
}

// Product n of a row, with bias and low-rank update. from: the first prepared row.
float sum_of(const LinearPacked& in, const PreparedRows& prepared, int64_t row, int64_t from, int64_t n) {
  double sum = product(in, prepared, row - from, n) + in.bias[n];
  const int64_t rank = in.low_rank.rank;
  const float* b = in.low_rank.weight + n / kPanelColumns * round_up(rank, 2) * kPanelColumns + n % kPanelColumns;
  for (int64_t k = 0; k < rank; ++k) {
    const float z = in.y_dtype == Dtype::fp32 ? static_cast<const float*>(in.low_rank.z)[row * rank + k]
                                              : widen(static_cast<const Bf16*>(in.low_rank.z)[row * rank + k]);
    sum += double{z} * b[k * kPanelColumns];
  }
  return static_cast<float>(sum);
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;
    case Activation::gelu:
    case Activation::geglu:
      return static_cast<float>(x * normal_cdf(x));
    case Activation::gelu_tanh:
    case Activation::geglu_tanh:
      return static_cast<float>(x * sigmoid(1.5957691216057308 * (x + 0.044715 * double{x} * x * x)));
    case Activation::swiglu:
      return static_cast<float>(x * sigmoid(x));
  }
  return x;
}

void multiply(const LinearPacked& in, const PreparedRows& prepared, int64_t from, int64_t begin, int64_t end,
              int64_t panel, int64_t last, float*) {
  const int64_t per_panel = panel_outputs(in.activation);
  const int64_t outputs = min(last * per_panel, in.outputs);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t output = panel * per_panel; output < outputs; ++output) {
      const int64_t n = output / per_panel * kPanelColumns + output % per_panel;
      float y = activate(sum_of(in, prepared, row, from, n), in.activation);
      if (is_gated(in.activation)) y *= sum_of(in, prepared, row, from, n + 8);
      const int64_t at = row * in.outputs + output;
      if (in.y_dtype == Dtype::fp32) {
        narrow(y, static_cast<float*>(in.y) + at);
      } else {
        narrow(y, static_cast<Bf16*>(in.y) + at);
      }
    }
  }
}

int64_t no_scratch(const LinearPacked&, int64_t) { return 0; }

int64_t prepared_rows(int64_t) { return 64; }

}  // namespace

const LinearKernels& linear_kernels_scalar(WeightDtype dtype) {
  static constexpr LinearKernels fp32{1, 1, 2, 1, 4, 4, Dtype::fp32, 0, prepared_rows, prepare, multiply, no_scratch},
      bf16{1, 1, 2, 1, 8, 4, std::nullopt, 0, prepared_rows, prepare, multiply, no_scratch},
      int8{1, 1, 2, 1, 4, 1, std::nullopt, 0, prepared_rows, prepare, multiply, no_scratch};
  return dtype == WeightDtype::int8 ? int8 : dtype == WeightDtype::bf16 ? bf16 : fp32;
}

}  // namespace glimodern
