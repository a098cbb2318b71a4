// The kernels of each instruction set; linear_packed.cpp chooses.
#pragma once

#include <cstdint>

#include "glimodern/linear_packed.h"

namespace glimodern {

constexpr int64_t kLine = 64;           // bytes of a group of inputs in a panel
constexpr int64_t kGroupBytes = 4;      // of a group in a row of x, and of an output in a line
constexpr int64_t kChunkBytes = 16384;  // of panels that a tile's rows meet one after the other: half the first cache
constexpr int64_t kBlockBytes = 256 << 10;  // of rows of x that meet a panel one after the other: half the second cache

constexpr float kLeastRowMax = 1e-30f;  // a row's largest number counts as this at least: 127 / it is finite

inline int64_t packed_groups(const LinearPacked& in) {
  const int64_t inputs = in.inputs > 0 ? in.inputs : 1;
  return in.int8 ? (inputs + 7) / 8 * 2 : (inputs + 1) / 2 * 2;
}

inline int64_t panel_count(const LinearPacked& in) { return (in.outputs + kPanelColumns - 1) / kPanelColumns; }

// Rows of x as the kernels multiply them: uint8 (q + 128) or fp32, packed_groups() groups of them readable.
struct PreparedRows {
  char* data;
  int64_t stride;  // bytes
  float* scale;    // [rows], int8 only
};

struct LinearKernels {
  int64_t tile_rows, tile_panels;
  // Row `row` of x -> row `to` of the prepared ones.
  void (*prepare)(const LinearPacked&, int64_t row, const PreparedRows&, int64_t to);
  // y of rows [begin, end), prepared as rows from `from` on, and panels [panel, last). scratch: block_rows rows of
  // tile_panels panels.
  void (*multiply)(const LinearPacked&, const PreparedRows&, int64_t from, int64_t begin, int64_t end, int64_t panel,
                   int64_t last, float* scratch);
};

// How many rows of x meet a panel one after the other.
inline int64_t block_rows(int64_t stride) {
  const int64_t rows = kBlockBytes / stride;
  return rows < 24 ? 24 : rows > 384 ? 384 : rows / 12 * 12;
}

const LinearKernels& linear_kernels_scalar(bool int8);
const LinearKernels& linear_kernels_avx2(bool int8);
const LinearKernels& linear_kernels_avx512(bool int8);
const LinearKernels& linear_kernels_avx512vnni();

}  // namespace glimodern
