// The kernels of each instruction set; linear_packed.cpp chooses.
#pragma once

#include <cstdint>

#include "caches.h"
#include "glimodern/linear_packed.h"

namespace glimodern {

constexpr int64_t kLine = 64;       // bytes of a group of inputs in a panel
constexpr int64_t kGroupBytes = 4;  // of an output in a line

constexpr float kSteps = 255.0f;          // of a quantised row, from its smallest number, or 0, to its largest, or 0
constexpr float kLeastRowRange = 1e-30f;  // these count as so far apart at least: 255 / it is finite

static inline int64_t group_inputs(WeightDtype dtype) {
  return dtype == WeightDtype::int8 ? 4 : dtype == WeightDtype::bf16 ? 2 : 1;
}

static inline int64_t packed_groups(const LinearPacked& in) {
  const int64_t inputs = in.inputs > 0 ? in.inputs : 1, together = 2 * group_inputs(in.weight_dtype);
  return (inputs + together - 1) / together * 2;
}

// The same in a row that a kernel reads `unit` groups at a time.
static inline int64_t padded_groups(const LinearPacked& in, int64_t unit) {
  return (packed_groups(in) + unit - 1) / unit * unit;
}

static inline int64_t panel_outputs(Activation activation) {
  return activation == Activation::geglu ? kPanelColumns / 2 : kPanelColumns;
}

static inline int64_t panel_count(const LinearPacked& in) {
  const int64_t outputs = panel_outputs(in.activation);
  return (in.outputs + outputs - 1) / outputs;
}

// Rows of x as the kernels multiply them: bf16 or fp32 with zeros behind x's own, or uint8 q with anything, which meets
// weights of 0.
struct PreparedRows {
  char* data;
  int64_t stride;  // bytes
  int64_t groups;  // of inputs in a row
  bool as_is;      // these are x's own; else rows are readable up to a multiple of LinearKernels::row_unit
  float* scale;    // [rows], int8 only
  int32_t* zero;   // [rows] the q that stands for 0, int8 only
};

struct LinearKernels {
  int64_t tile_rows, tile_panels;
  int64_t group_unit;  // groups of inputs that are read at a time
  int64_t row_unit;    // rows that are read at a time
  int64_t x_bytes;     // of a group in a prepared row
  int64_t x_itemsize;  // of an input in a prepared row
  Dtype as_is;         // rows of x in this dtype without padding are multiplied where they lie; fp64: none are
  // Row `row` of x -> row `to` of the prepared ones.
  void (*prepare)(const LinearPacked&, int64_t row, const PreparedRows&, int64_t to);
  // y of rows [begin, end), prepared as rows from `from` on, and panels [panel, last). scratch: block_rows rows of
  // tile_panels panels, and if row_unit > 1 tile_rows rows of x.
  void (*multiply)(const LinearPacked&, const PreparedRows&, int64_t from, int64_t begin, int64_t end, int64_t panel,
                   int64_t last, float* scratch);
};

struct RowRange {
  float scale, factor;  // what a step stands for, steps a unit
  int32_t zero;
};

// low, high >= 0: how far a row reaches below and above 0. Static: every instruction set compiles its own.
static inline RowRange row_range(float low, float high) {
  const float step = low / kSteps + high / kSteps, least = kLeastRowRange / kSteps;  // low + high may overflow
  const float scale = step < least ? least : step, factor = 1.0f / scale;
  return {scale, factor, static_cast<int32_t>(__builtin_nearbyintf(low * factor))};
}

// How many rows of x meet a panel one after the other: whole tiles, which stay in the second cache.
static inline int64_t block_rows(int64_t stride, int64_t tile_rows) {
  const int64_t rows = half_level2() / stride, least = 2 * tile_rows;
  return (rows < least ? least : rows > 384 ? 384 : rows) / tile_rows * tile_rows;
}

const LinearKernels& linear_kernels_scalar(WeightDtype);
const LinearKernels& linear_kernels_avx2(WeightDtype);
const LinearKernels& linear_kernels_avx512(WeightDtype);
const LinearKernels& linear_kernels_avx512_bf16();
const LinearKernels& linear_kernels_avx512vnni();
const LinearKernels& linear_kernels_amx(WeightDtype);  // bf16, int8

}  // namespace glimodern
