#include "glimodern/linear_packed.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "contention.h"
#include "glimodern/isa.h"
#include "linear_packed/kernels.h"
#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

std::atomic<bool> vnni{true};

const LinearKernels& kernels(WeightDtype dtype) {
#if defined(GLIMODERN_X86)
  const Isa isa = current_isa(dtype == WeightDtype::fp32 ? Isa::avx512 : Isa::amx);
#if defined(GLIMODERN_AMX)
  if (isa == Isa::amx) return linear_kernels_amx(dtype);
#endif
#if defined(GLIMODERN_AVX512_BF16)
  if (isa == Isa::avx512_bf16 && dtype == WeightDtype::bf16) return linear_kernels_avx512_bf16();
#endif
  if (isa >= Isa::avx512) {
    static const bool has_vnni = __builtin_cpu_supports("avx512vnni");
    if (dtype == WeightDtype::int8 && has_vnni && vnni.load()) return linear_kernels_avx512vnni();
    return linear_kernels_avx512(dtype);
  }
  if (isa == Isa::avx2) return linear_kernels_avx2(dtype);
#endif
  return linear_kernels_scalar(dtype);
}

struct Grid {  // parts of the rows, parts of the panels
  int64_t rows, columns;
};

// The split among threads with the shortest longest part. A tile's products count 1; a panel that is fetched anew by
// each part of the rows counts half a tile.
Grid split(int64_t tiles, int64_t panels, int64_t threads) {
  Grid best{1, 1};
  int64_t shortest = 0;
  for (int64_t columns = 1; columns <= threads; ++columns) {
    const Grid grid{std::min(std::max<int64_t>(tiles, 1), threads / columns), std::min(panels, columns)};
    const int64_t part = ((panels + grid.columns - 1) / grid.columns) * (2 * ((tiles + grid.rows - 1) / grid.rows) + 1);
    if (shortest == 0 || part < shortest) shortest = part, best = grid;
  }
  return best;
}

}  // namespace

void allow_vnni(bool allowed) { vnni.store(allowed); }

void linear_packed(const LinearPacked& in, int threads) {
  if (in.rows == 0 || in.outputs == 0) return;
  const LinearKernels& run = kernels(in.weight_dtype);
  const int64_t groups = padded_groups(in, run.group_unit), bytes = groups * run.x_bytes;
  const bool as_is = in.x_dtype == run.as_is && bytes == in.inputs * run.x_itemsize;
  // An odd number of lines, so that the rows of a tile do not fall on the same lines of the first cache.
  const int64_t stride = as_is ? bytes : ((bytes + kLine - 1) / kLine | 1) * kLine;
  const int64_t products = in.rows * in.inputs * in.outputs;
  if (products < 65536) threads = 1;  // a thread's start costs more

  // So many rows are prepared at once that each thread's share stays in its second cache.
  const int64_t block = block_rows(stride, run.tile_rows);
  const int64_t most = as_is ? in.rows : std::min(in.rows, 2 * block * threads);
  PreparedRows prepared{static_cast<char*>(const_cast<void*>(in.x)), stride, groups, as_is, nullptr, nullptr};
  Scratch rows, scales, zeros;
  if (!as_is) {
    const int64_t readable = (most + run.row_unit - 1) / run.row_unit * run.row_unit;
    rows = make_scratch(static_cast<size_t>(readable * stride) / sizeof(float));
    prepared.data = reinterpret_cast<char*>(rows.get());
    scales = make_scratch(static_cast<size_t>(most));
    prepared.scale = scales.get();
    zeros = make_scratch(static_cast<size_t>(most));
    prepared.zero = reinterpret_cast<int32_t*>(zeros.get());
  }
  const int64_t panels = panel_count(in);
  const int64_t tail = as_is && run.row_unit > 1 ? run.tile_rows * stride / 4 : 0;
  const size_t tile = whole_lines(static_cast<size_t>(block * run.tile_panels * kPanelColumns + tail));
  const Scratch sums = make_scratch(tile * static_cast<size_t>(threads));

  for (int64_t first = 0; first < in.rows; first += most) {
    const int64_t count = std::min(most, in.rows - first), from = as_is ? 0 : first;
    const int64_t tiles = (count + run.tile_rows - 1) / run.tile_rows;
    const int64_t wide_panels = (panels + run.tile_panels - 1) / run.tile_panels;
    // Beside other processes a thread may lose its core in the middle: smaller parts, for whoever is free.
    const Grid grid = split(tiles, wide_panels, short_waits() ? 4 * threads : threads);
#pragma omp parallel num_threads(threads)
    {
      if (!as_is) {
#pragma omp for schedule(dynamic, 16)
        for (int64_t row = 0; row < count; ++row) run.prepare(in, first + row, prepared, row);
      }
#pragma omp for schedule(dynamic)
      for (int64_t part = 0; part < grid.rows * grid.columns; ++part) {
        const int64_t r = part / grid.columns, c = part % grid.columns;
        const auto row = [&](int64_t n) { return first + std::min(count, tiles * n / grid.rows * run.tile_rows); };
        const auto panel = [&](int64_t n) {
          return std::min(panels, wide_panels * n / grid.columns * run.tile_panels);
        };
        run.multiply(in, prepared, from, row(r), row(r + 1), panel(c), panel(c + 1),
                     sums.get() + tile * static_cast<size_t>(thread_index()));
      }
    }
  }
}

}  // namespace glimodern
