// AMX kernels for bf16 and int8. The panels' lines are B's tiles as they lie in memory. The epilogue of a block runs in
// the shadow of the next block's tile products.
#include "simd/amx.h"

#include "simd/avx512_bf16.h"

#include "linear_packed/int8_avx512.h"

namespace glimodern {
namespace {

constexpr int64_t kRows = 2 * kTileRows, kPanels = 2;  // of a block: 2 x 2 tiles of accumulators
constexpr int64_t kChunkBytes = 16 << 10;              // of panels that stay in L1; 24 KB are slower
constexpr int64_t kTileGroups = 16;                    // groups of inputs in a tile
constexpr int64_t kPrefetchRows = 128;  // with fewer rows the next panel is read before its prefetch arrives

struct Bf16Product : Fp32<Avx512Bf16Pairs>, Bf16Tiles {};
struct Int8Product : Int8Avx512, Int8Tiles {};

// The A operand: rows of x. Rows from `tail` on are read from `copy`, where whole tiles are readable.
struct AOperandRows {
  const char* data;
  int64_t stride;
  int64_t tail;
  const char* copy;
  const char* at(int64_t row) const { return row < tail ? data + row * stride : copy + (row - tail) * stride; }
};

// The last groups of the panels, which fill no tile, zero-padded to one tile per panel.
struct TailTiles {
  alignas(64) char lines[kPanels * kTileBytes];
  TailTiles(const char* w, int64_t panel, int64_t panels, int64_t groups) {
    __builtin_memset(lines, 0, sizeof lines);
    for (int64_t p = 0; p < panels; ++p) __builtin_memcpy(lines + p * kTileBytes, w + p * panel, groups * kLineBytes);
  }
};

// The rows of a finished block that wait for their epilogue.
struct PendingEpilogue {
  const LinearPacked& in;
  const Epilogue epilogue;
  const int64_t vectors, column;
  const float *sums = nullptr, *row_scale = nullptr;
  const int32_t* zero_point = nullptr;
  int64_t row = 0;
  int rows = 0;

  void run(int max_rows) {
    const int now = rows < max_rows ? rows : max_rows;
    if (now == 0) return;
    epilogue(in, sums, now, row_scale, zero_point, row, column);
    sums += now * vectors * Avx512::width;
    if (row_scale != nullptr) row_scale += now, zero_point += now;
    row += now;
    rows -= now;
  }
};

// A block of M x N tiles: `depth` tiles of inputs, and `tail` if not null; runs the pending epilogue on the way.
template <class D, int M, int N>
void multiply_block(const char* x, int64_t stride, const char* w, int64_t panel, int64_t depth, const char* tail,
                    float* sums, bool accumulate, PendingEpilogue& pending) {
  constexpr int64_t row_bytes = N * 64;
  const int share = static_cast<int>((pending.rows + depth) / (depth + 1));
  const auto overlap = [&] { pending.run(share); };
  if (depth > 0 || tail == nullptr) {
    multiply_tiles<D, M, N>(x, stride, w, panel, depth, sums, row_bytes, accumulate, overlap);
  }
  if (tail != nullptr) {
    multiply_tiles<D, M, N>(x + depth * 64, stride, tail, kTileBytes, 1, sums, row_bytes, accumulate || depth > 0,
                            overlap);
  }
  pending.run(kRows);
}

// multiply_panels of multiply.h, a block of tiles at a time.
template <class D, int N>
void multiply_panels(const LinearPacked& in, const AOperandRows& x, const float* row_scale, const int32_t* zero_point,
                     int64_t row, int64_t rows, int64_t panel, bool prefetch_panels, float* scratch) {
  using V = Avx512Bf16;
  const int64_t groups = packed_groups(in), bytes = groups * kLineBytes;
  const int64_t depth = groups / kTileGroups, tail_groups = groups % kTileGroups;
  const int64_t chunks = depth == 0 ? 1 : ceil_div(depth * N * kTileBytes, kChunkBytes);
  const char* w = static_cast<const char*>(in.weight) + panel * bytes;
  const TailTiles tail(w + depth * kTileBytes, bytes, N, tail_groups);
  PendingEpilogue pending{in, choose_epilogue<D, V, N>(in), N, panel * kPanelColumns};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = depth * chunk / chunks, end = depth * (chunk + 1) / chunks;
    const bool last = chunk + 1 == chunks;
    const char* next = last ? w + N * bytes : w + end * kTileBytes;
    const int64_t next_lines = (last && !prefetch_panels) || rows < kPrefetchRows ? 0 : (end - begin) * kTileGroups;
    for (int64_t done = 0; done < rows; done += kRows) {
      const int64_t tile = min(rows - done, kRows);
      for (int64_t line = next_lines * done / rows; line < next_lines * (done + tile) / rows; ++line) {
        for (int64_t p = 0; p < N; ++p) __builtin_prefetch(next + p * bytes + line * kLineBytes, 0, 2);
      }
      float* sums = scratch + done * N * V::width;
      const auto run = tile > kTileRows ? multiply_block<D, 2, N> : multiply_block<D, 1, N>;
      run(x.at(done) + begin * 64, x.stride, w + begin * kTileBytes, bytes, end - begin,
          last && tail_groups > 0 ? tail.lines : nullptr, sums, chunk > 0, pending);
      if (!last) continue;
      pending.sums = sums, pending.row = row + done, pending.rows = static_cast<int>(tile);
      if constexpr (D::int8) pending.row_scale = row_scale + done, pending.zero_point = zero_point + done;
    }
  }
  pending.run(kRows);
}

template <class D>
void multiply(const LinearPacked& in, const PreparedRows& prepared, int64_t from, int64_t begin, int64_t end,
              int64_t panel, int64_t last, float* scratch) {
  const TileConfig tiles;
  const int64_t max_rows = block_rows(prepared.stride, kRows);
  char* copy = reinterpret_cast<char*>(scratch + max_rows * kPanels * kPanelColumns);
  for (int64_t row = begin; row < end; row += max_rows) {
    const int64_t rows = min(end - row, max_rows);
    AOperandRows x{prepared.data + (row - from) * prepared.stride, prepared.stride, rows, copy};
    if (rows % kTileRows > 0 && prepared.in_place) {
      x.tail = rows / kRows * kRows;
      __builtin_memcpy(copy, x.data + x.tail * x.stride, (rows - x.tail) * x.stride);
    }
    const float* scale = D::int8 ? prepared.scale + (row - from) : nullptr;
    const int32_t* zero_point = D::int8 ? prepared.zero_point + (row - from) : nullptr;
    int64_t p = panel;
    for (; p + 2 <= last; p += 2) multiply_panels<D, 2>(in, x, scale, zero_point, row, rows, p, p + 4 <= last, scratch);
    if (p < last) multiply_panels<D, 1>(in, x, scale, zero_point, row, rows, p, false, scratch);
  }
}

template <class D>
constexpr LinearKernels amx_kernels(int64_t x_itemsize, std::optional<Dtype> in_place_dtype,
                                    decltype(LinearKernels::prepare) prepare) {
  return {kRows, kPanels, kTileGroups, kTileRows, 4, x_itemsize, in_place_dtype, prepare, multiply<D>};
}

}  // namespace

const LinearKernels& linear_kernels_amx(WeightDtype dtype) {
  static constexpr LinearKernels bf16 = amx_kernels<Bf16Product>(2, Dtype::bf16,
                                                                 prepare_floats<Avx512, Bf16, WeightDtype::bf16>),
                                 int8 = amx_kernels<Int8Product>(1, std::nullopt, prepare_int8<Int8Product, Avx512>);
  return dtype == WeightDtype::int8 ? int8 : bf16;
}

}  // namespace glimodern
