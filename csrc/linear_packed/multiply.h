// linear_packed for every vector class V (csrc/simd/) and dot-product type D (micro_kernel.h): the loops over rows,
// panels and chunks of inputs, and the tables of kernels.
#pragma once

#include "linear_packed/epilogue.h"
#include "linear_packed/micro_kernel.h"
#include "linear_packed/prepare.h"
#include "simd/gemm.h"

namespace {

// Fetches, for writing, the lines of y that an epilogue will write: `rows` rows from `row` on, panels [panel, panel +
// panels). A hint: addresses past the end of y do no harm.
inline void prefetch_outputs(const LinearPacked& in, int64_t row, int rows, int64_t panel, int64_t panels) {
  const int64_t per_panel = glimodern::panel_outputs(in.activation), itemsize = in.y_dtype == Dtype::fp32 ? 4 : 2;
  const char* y = static_cast<const char*>(in.y) + (row * in.outputs + panel * per_panel) * itemsize;
  for (int r = 0; r < rows; ++r, y += in.outputs * itemsize) {
    for (int64_t n = 0; n < panels * per_panel * itemsize; n += kLineBytes)
      __asm__ volatile("prefetchw %0" : : "m"(y[n]));
  }
}

// Rows [row, row + rows) of a block, N vectors of outputs from `panel` on. The inputs are processed in chunks, so that
// a chunk of the panels stays in L1 while the next chunk is prefetched. Summing by chunks also loses fewer digits in
// fp32. prefetch_panels: more panels follow the last chunk.
template <class D, class V, int N>
void multiply_panels(const LinearPacked& in, const char* x, int64_t stride, const float* row_scale,
                     const int32_t* zero_point, int64_t row, int64_t rows, int64_t panel, bool prefetch_panels,
                     float* scratch) {
  constexpr int64_t panels = N * V::width / kPanelColumns;
  const int64_t pairs = glimodern::packed_groups(in) / 2, bytes = pairs * 2 * kLineBytes;
  const int64_t chunks = ceil_div(pairs, glimodern::half_l1_bytes() / (2 * kLineBytes * panels));
  const char* w = static_cast<const char*>(in.weight) + panel * bytes;
  const Epilogue epilogue = choose_epilogue<D, V, N>(in);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = pairs * chunk / chunks, end = pairs * (chunk + 1) / chunks;
    const char* from = w + begin * 2 * kLineBytes;
    const bool last = chunk + 1 >= chunks;
    const char* next = last ? w + panels * bytes : w + end * 2 * kLineBytes;
    const int64_t next_lines = last && !prefetch_panels ? 0 : (end - begin) * 2;
    for (int64_t done = 0; done < rows;) {
      const int tile = tile_rows(rows - done, D::rows);
      for (int64_t line = next_lines * done / rows; line < next_lines * (done + tile) / rows; ++line) {
        for (int64_t p = 0; p < panels; ++p) __builtin_prefetch(next + p * bytes + line * kLineBytes, 0, 2);
      }
      if (last) prefetch_outputs(in, row + done, tile, panel, panels);
      float* sums = scratch + (chunks > 1 ? done * N * V::width : 0);
      PackedMicroKernel<D, V, D::rows, N>::run(tile, x + done * stride + begin * 2 * D::x_bytes, stride, from, bytes,
                                               end - begin, sums, chunk > 0);
      if (last) {
        epilogue(in, sums, tile, D::int8 ? row_scale + done : nullptr, D::int8 ? zero_point + done : nullptr,
                 row + done, panel * kPanelColumns);
      }
      done += tile;
    }
  }
}

// Rows that pass by one panel after another. They stay in a quarter of L2. In int8, which takes the least time for a
// row, the pages of y that they are written to also stay in the first-level TLB: more than 48 rows cost up to half of
// the speed where rows of y are 6 KB. Floats are up to 10 % faster with more rows, since a panel is read less often.
template <class D>
int64_t block_rows(int64_t stride) {
  return min(max(glimodern::half_l2_bytes() / 2 / stride, 2 * D::rows), D::int8 ? 48 : 192) / D::rows * D::rows;
}

// A group of panels stays in L2 while blocks of rows pass by it, so that rows of y are written from left to right.
template <class D, class V>
void multiply(const LinearPacked& in, const PreparedRows& prepared, int64_t from, int64_t begin, int64_t end,
              int64_t panel, int64_t last, float* scratch) {
  constexpr int per_panel = static_cast<int>(kPanelColumns) / V::width, panels = D::vectors / per_panel;
  const int64_t max_rows =
      ceil_div(end - begin, ceil_div(end - begin, block_rows<D>(prepared.stride)));  // nearly equal
  const int64_t bytes = glimodern::packed_groups(in) * kLineBytes;
  const int64_t max_panels = max(glimodern::half_l2_bytes() / bytes, panels);
  const int64_t step = round_up(ceil_div(last - panel, ceil_div(last - panel, max_panels)), panels);
  for (int64_t first = panel; first < last; first += step) {
    const int64_t stop = min(first + step, last);
    for (int64_t row = begin; row < end; row += max_rows) {
      const int64_t rows = min(end - row, max_rows);
      const char* x = prepared.data + (row - from) * prepared.stride;
      const float* scale = D::int8 ? prepared.scale + (row - from) : nullptr;
      const int32_t* zero_point = D::int8 ? prepared.zero_point + (row - from) : nullptr;
      int64_t p = first;
      for (; p + panels <= stop; p += panels) {
        multiply_panels<D, V, D::vectors>(in, x, prepared.stride, scale, zero_point, row, rows, p,
                                          row == begin && p + 2 * panels <= last, scratch);
      }
      for (; p < stop; ++p)
        multiply_panels<D, V, per_panel>(in, x, prepared.stride, scale, zero_point, row, rows, p, false, scratch);
    }
  }
}

// So many that they stay in L2.
template <class D>
int64_t prepared_rows(int64_t stride) {
  return 2 * min(max(glimodern::half_l2_bytes() / stride, 2 * D::rows), 384);
}

template <class D, class V>
int64_t scratch_floats(const LinearPacked&, int64_t stride) {
  return block_rows<D>(stride) * D::vectors * V::width;
}

// X: the type of a prepared row's elements.
template <class D, class V, class X>
constexpr glimodern::LinearKernels linear_kernels(std::optional<Dtype> in_place_dtype,
                                                  decltype(glimodern::LinearKernels::prepare) prepare) {
  return {D::rows,
          D::vectors * V::width / kPanelColumns,
          2,
          1,
          D::x_bytes,
          sizeof(X),
          in_place_dtype,
          0,
          prepared_rows<D>,
          prepare,
          multiply<D, V>,
          scratch_floats<D, V>};
}

template <class V>
constexpr glimodern::LinearKernels fp32_kernels() {
  return linear_kernels<Fp32<V>, V, float>(Dtype::fp32, prepare_floats<V, float, WeightDtype::fp32>);
}

template <class V>
constexpr glimodern::LinearKernels bf16_by_fma_kernels() {
  return linear_kernels<Bf16ByFma<V>, V, float>(std::nullopt, prepare_floats<V, float, WeightDtype::bf16>);
}

template <class D, class V>
constexpr glimodern::LinearKernels int8_kernels() {
  return linear_kernels<D, V, uint8_t>(std::nullopt, prepare_int8<D, V>);
}

}  // namespace
