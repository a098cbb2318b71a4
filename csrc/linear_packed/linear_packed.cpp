#include "glimodern/linear_packed.h"

#include <algorithm>
#include <atomic>

#include "contention.h"
#include "glimodern/isa.h"
#include "linear_packed/kernels.h"
#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

std::atomic<bool> vnni_allowed{true};

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
    if (dtype == WeightDtype::int8 && has_vnni && vnni_allowed.load()) return linear_kernels_avx512vnni();
    return linear_kernels_avx512(dtype);
  }
  if (isa == Isa::avx2) return linear_kernels_avx2(dtype);
#endif
  return linear_kernels_scalar(dtype);
}

struct Grid {  // ranges of rows, ranges of panels
  int64_t rows, columns;
};

// The split among threads whose longest part is shortest. The cost of a part is 2 per register tile, and 1 per panel
// that it fetches. Panels are split only if that saves 1/8: threads that write the same rows of y fetch lines and
// pages from each other's caches, and the next operator splits rows.
Grid choose_grid(int64_t tiles, int64_t panels, int64_t threads) {
  Grid best{1, 1};
  int64_t min_cost = 0;
  for (int64_t columns = 1; columns <= threads; ++columns) {
    const Grid grid{std::min(std::max<int64_t>(tiles, 1), threads / columns), std::min(panels, columns)};
    const int64_t cost = ceil_div(panels, grid.columns) * (2 * ceil_div(tiles, grid.rows) + 1);
    if (min_cost == 0 || 8 * cost < 7 * min_cost) min_cost = cost, best = grid;
  }
  return best;
}

}  // namespace

void allow_vnni(bool allowed) { vnni_allowed.store(allowed); }

void linear_packed(const LinearPacked& in, int threads) {
  if (in.rows == 0 || in.outputs == 0) return;
  const LinearKernels& run = kernels(in.weight_dtype);
  const int64_t groups = round_up(packed_groups(in), run.group_unit), bytes = groups * run.x_bytes;
  const bool in_place = run.in_place_dtype == in.x_dtype && bytes == in.inputs * run.x_itemsize &&
                        (run.alias_bytes == 0 || bytes % run.alias_bytes != 0);
  // An odd number of lines, so that the rows of a register tile do not map to the same sets of L1.
  const int64_t stride = in_place ? bytes : (ceil_div(bytes, kLineBytes) | 1) * kLineBytes;
  const int64_t products = in.rows * in.inputs * in.outputs;
  if (products < 65536) threads = 1;  // starting a thread costs more

  const int64_t max_rows = in_place ? in.rows : std::min(in.rows, run.prepared_rows(stride) * threads);
  PreparedRows prepared{static_cast<char*>(const_cast<void*>(in.x)), stride, groups, in_place, nullptr, nullptr};
  Scratch rows, scales, zero_points;
  if (!in_place) {
    const int64_t readable = round_up(max_rows, run.row_unit);
    rows = make_scratch(static_cast<size_t>(readable * stride) / sizeof(float));
    prepared.data = reinterpret_cast<char*>(rows.get());
    scales = make_scratch(static_cast<size_t>(max_rows));
    prepared.scale = scales.get();
    zero_points = make_scratch(static_cast<size_t>(max_rows));
    prepared.zero_point = reinterpret_cast<int32_t*>(zero_points.get());
  }
  const int64_t panels = panel_count(in), tile_columns = ceil_div(panels, run.tile_panels);
  const size_t thread_scratch = whole_lines(static_cast<size_t>(run.scratch_floats(in, stride)));
  const Scratch scratch = make_scratch(thread_scratch * static_cast<size_t>(threads));

  for (int64_t first = 0; first < in.rows; first += max_rows) {
    const int64_t count = std::min(max_rows, in.rows - first), from = in_place ? 0 : first;
    const int64_t tiles = ceil_div(count, run.split_rows);
    // Beside other busy processes a thread may lose its core: smaller parts, taken by whichever thread is free.
    const Grid grid = choose_grid(tiles, tile_columns, short_waits() ? 4 * threads : threads);
#pragma omp parallel num_threads(threads)
    {
      if (!in_place && grid.columns > 1) {
#pragma omp for schedule(dynamic, 16)
        for (int64_t row = 0; row < count; ++row) run.prepare(in, first + row, prepared, row);
      }
#pragma omp for schedule(dynamic)
      for (int64_t part = 0; part < grid.rows * grid.columns; ++part) {
        const int64_t r = part / grid.columns, c = part % grid.columns;
        const auto row = [&](int64_t n) { return first + std::min(count, tiles * n / grid.rows * run.split_rows); };
        const auto panel = [&](int64_t n) {
          return std::min(panels, tile_columns * n / grid.columns * run.tile_panels);
        };
        if (!in_place && grid.columns == 1) {  // a thread's rows stay in its caches
          for (int64_t n = row(r) - first; n < row(r + 1) - first; ++n) run.prepare(in, first + n, prepared, n);
        }
        run.multiply(in, prepared, from, row(r), row(r + 1), panel(c), panel(c + 1),
                     scratch.get() + thread_scratch * static_cast<size_t>(thread_index()));
      }
    }
  }
}

}  // namespace glimodern
