// The kernels of each instruction set; linear_packed.cpp selects one.
#pragma once

#include <cstdint>
#include <optional>

#include "caches.h"
#include "glimodern/linear_packed.h"
#include "integer_math.h"

namespace glimodern {

constexpr int64_t kLineBytes = 64;  // a group of inputs in a panel
constexpr int64_t kGroupBytes = 4;  // one output's part of a line

constexpr float kQuantSteps = 255.0f;   // of a quantised row, from min(0, minimum) to max(0, maximum)
constexpr float kMinRowRange = 1e-30f;  // shorter ranges count as this long: 255 / range stays finite

// Functions of this header are static: every instruction set compiles its own copy.
static inline int64_t group_inputs(WeightDtype dtype) {
  return dtype == WeightDtype::int8 ? 4 : dtype == WeightDtype::bf16 ? 2 : 1;
}

// Groups of inputs in a packed panel.
static inline int64_t packed_groups(const LinearPacked& in) {
  return ceil_div(max(in.inputs, 1), 2 * group_inputs(in.weight_dtype)) * 2;
}

static inline int64_t panel_outputs(Activation activation) {
  return is_gated(activation) ? kPanelColumns / 2 : kPanelColumns;
}

static inline int64_t panel_count(const LinearPacked& in) { return ceil_div(in.outputs, panel_outputs(in.activation)); }

// Rows of x as the kernels read them: bf16 or fp32, zero-padded, or quantised to uint8. The padding of uint8 rows is
// arbitrary, since it meets weights of 0.
struct PreparedRows {
  char* data;
  int64_t stride;       // bytes
  int64_t groups;       // of inputs in a row
  bool in_place;        // data is x itself; else rows are readable up to a multiple of LinearKernels::row_unit
  float* scale;         // int8 only: [rows]
  int32_t* zero_point;  // int8 only: [rows], the q that represents 0
};

struct LinearKernels {
  int64_t split_rows, tile_panels;  // threads split rows and panels by multiples of these
  int64_t group_unit;               // groups of inputs read at a time
  int64_t row_unit;                 // rows read at a time
  int64_t x_bytes;                  // of a group in a prepared row
  int64_t x_itemsize;               // of an input in a prepared row
  // The kernel reads rows of x of this dtype in place if they need no padding; none: it always prepares them.
  std::optional<Dtype> in_place_dtype;
  int64_t alias_bytes;  // rows a multiple of this apart are not read in place: they map to too few sets of L1; 0: none
  int64_t (*prepared_rows)(int64_t stride);  // as many as a thread prepares at once
  // Prepares row `row` of x as row `to`.
  void (*prepare)(const LinearPacked&, int64_t row, const PreparedRows&, int64_t to);
  // y of rows [begin, end) and panels [panel, last). Prepared rows start at row `from` of x.
  void (*multiply)(const LinearPacked&, const PreparedRows&, int64_t from, int64_t begin, int64_t end, int64_t panel,
                   int64_t last, float* scratch);
  // Floats of multiply's scratch memory. stride: of a prepared row.
  int64_t (*scratch_floats)(const LinearPacked&, int64_t stride);
};

struct RowQuantisation {
  float scale, inverse_scale;  // scale: of one step
  int32_t zero_point;
};

// low, high >= 0: the row's values lie in [-low, high].
static inline RowQuantisation row_quantisation(float low, float high) {
  const float step = low / kQuantSteps + high / kQuantSteps, min_step = kMinRowRange / kQuantSteps;  // no overflow
  const float scale = step < min_step ? min_step : step, inverse_scale = 1.0f / scale;
  return {scale, inverse_scale, static_cast<int32_t>(__builtin_nearbyintf(low * inverse_scale))};
}

const LinearKernels& linear_kernels_scalar(WeightDtype);
const LinearKernels& linear_kernels_avx2(WeightDtype);
const LinearKernels& linear_kernels_avx512(WeightDtype);
const LinearKernels& linear_kernels_avx512_bf16();
const LinearKernels& linear_kernels_avx512vnni();
const LinearKernels& linear_kernels_amx(WeightDtype);  // bf16, int8

}  // namespace glimodern
