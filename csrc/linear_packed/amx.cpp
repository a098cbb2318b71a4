// Products of whole tiles (csrc/simd/amx.h): the panels' lines are the right side's tiles as they lie.
#include "simd/amx.h"

#include "simd/avx512_bf16.h"

#include "linear_packed/int8_avx512.h"

namespace glimodern {
namespace {

constexpr int64_t kRows = 2 * kTileRows, kColumns = 2;  // rows and panels of a block of sums
constexpr int64_t kChunkBytes = 16 << 10;               // of panels that stay in the first cache: 24 KB are slower
constexpr int64_t kGroups = 16;                         // of inputs in a tile
constexpr int64_t kFetchRows = 128;  // fewer: the next panel is read before what is fetched of it arrives

struct Bf16Product : Fp32<Avx512Bf16Pairs>, Bf16Tiles {};
struct Int8Product : Int8Avx512, Int8Tiles {};

// Rows of x; the last ones of a matrix are copied where whole tiles of them can be read.
struct Left {
  const char* data;
  int64_t stride;
  int64_t tail;  // the first row that is in `copy`
  const char* copy;
  const char* at(int64_t row) const { return row < tail ? data + row * stride : copy + (row - tail) * stride; }
};

// The last groups of a panel that fill no tile, with zeros behind them.
struct Rest {
  alignas(64) char lines[kColumns * kTileBytes];
  Rest(const char* w, int64_t panel, int64_t panels, int64_t groups) {
    __builtin_memset(lines, 0, sizeof lines);
    for (int64_t p = 0; p < panels; ++p) __builtin_memcpy(lines + p * kTileBytes, w + p * panel, groups * kLine);
  }
};

// Rows of a block of sums that wait to be finished, which is done while the next block's products are under way.
struct Waiting {
  const LinearPacked& in;
  const Finish finish;
  const int64_t vectors, column;
  const float *sums = nullptr, *row_scale = nullptr;
  const int32_t* row_zero = nullptr;
  int64_t row = 0;
  int rows = 0;

  void some(int most) {
    const int now = rows < most ? rows : most;
    if (now == 0) return;
    finish(in, sums, now, row_scale, row_zero, row, column);
    sums += now * vectors * Avx512::width;
    if (row_scale != nullptr) row_scale += now, row_zero += now;
    row += now;
    rows -= now;
  }
};

template <class D, int M, int N>
void block(const char* x, int64_t stride, const char* w, int64_t panel, int64_t steps, const char* rest, float* sums,
           bool more, Waiting& waiting) {
  constexpr int64_t row_bytes = N * 64;
  const int part = static_cast<int>((waiting.rows + steps) / (steps + 1));
  const auto between = [&] { waiting.some(part); };
  if (steps > 0 || rest == nullptr) multiply_tiles<D, M, N>(x, stride, w, panel, steps, sums, row_bytes, more, between);
  if (rest != nullptr) {
    multiply_tiles<D, M, N>(x + steps * 64, stride, rest, kTileBytes, 1, sums, row_bytes, more || steps > 0, between);
  }
  waiting.some(kRows);
}

// multiply_panels of tiles.h, a block of sums at a time.
template <class D, int N>
void multiply_columns(const LinearPacked& in, const Left& x, const float* row_scale, const int32_t* row_zero,
                      int64_t row, int64_t rows, int64_t panel, bool more, float* scratch) {
  using V = Avx512Bf16;
  const int64_t groups = packed_groups(in), bytes = groups * kLine, steps = groups / kGroups, left = groups % kGroups;
  const int64_t chunks = steps == 0 ? 1 : (steps * N * kTileBytes + kChunkBytes - 1) / kChunkBytes;
  const char* w = static_cast<const char*>(in.weight) + panel * bytes;
  const Rest rest(w + steps * kTileBytes, bytes, N, left);
  Waiting waiting{in, finish_of<D, V, N>(in), N, panel * kPanelColumns};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = steps * chunk / chunks, end = steps * (chunk + 1) / chunks;
    const bool last = chunk + 1 == chunks;
    const char* next = last ? w + N * bytes : w + end * kTileBytes;
    const int64_t next_lines = (last && !more) || rows < kFetchRows ? 0 : (end - begin) * kGroups;
    for (int64_t done = 0; done < rows; done += kRows) {
      const int64_t tile = rows - done < kRows ? rows - done : kRows;
      for (int64_t line = next_lines * done / rows; line < next_lines * (done + tile) / rows; ++line) {
        for (int64_t p = 0; p < N; ++p) __builtin_prefetch(next + p * bytes + line * kLine, 0, 2);
      }
      float* sums = scratch + done * N * V::width;
      const auto run = tile > kTileRows ? block<D, 2, N> : block<D, 1, N>;
      run(x.at(done) + begin * 64, x.stride, w + begin * kTileBytes, bytes, end - begin,
          last && left > 0 ? rest.lines : nullptr, sums, chunk > 0, waiting);
      if (!last) continue;
      waiting.sums = sums, waiting.row = row + done, waiting.rows = static_cast<int>(tile);
      if constexpr (D::int8) waiting.row_scale = row_scale + done, waiting.row_zero = row_zero + done;
    }
  }
  waiting.some(kRows);
}

template <class D>
void multiply(const LinearPacked& in, const PreparedRows& prepared, int64_t from, int64_t begin, int64_t end,
              int64_t panel, int64_t last, float* scratch) {
  const WholeTiles tiles;
  const int64_t most = block_rows(prepared.stride, kRows);
  char* copy = reinterpret_cast<char*>(scratch + most * kColumns * kPanelColumns);
  for (int64_t row = begin; row < end; row += most) {
    const int64_t rows = end - row < most ? end - row : most, odd = rows % kTileRows;
    Left x{prepared.data + (row - from) * prepared.stride, prepared.stride, rows, copy};
    if (odd > 0 && prepared.as_is) {
      x.tail = rows / kRows * kRows;
      __builtin_memcpy(copy, x.data + x.tail * x.stride, (rows - x.tail) * x.stride);
    }
    const float* scale = D::int8 ? prepared.scale + (row - from) : nullptr;
    const int32_t* zero = D::int8 ? prepared.zero + (row - from) : nullptr;
    int64_t p = panel;
    for (; p + 2 <= last; p += 2) multiply_columns<D, 2>(in, x, scale, zero, row, rows, p, p + 4 <= last, scratch);
    if (p < last) multiply_columns<D, 1>(in, x, scale, zero, row, rows, p, false, scratch);
  }
}

}  // namespace

const LinearKernels& linear_kernels_amx(WeightDtype dtype) {
  static constexpr LinearKernels bf16{kRows,
                                      kColumns,
                                      kGroups,
                                      kTileRows,
                                      4,
                                      2,
                                      Dtype::bf16,
                                      prepare_floats<Avx512, Bf16, WeightDtype::bf16>,
                                      multiply<Bf16Product>};
  static constexpr LinearKernels int8{
      kRows, kColumns, kGroups, kTileRows, 4, 1, Dtype::fp64, prepare_int8<Int8Product, Avx512>, multiply<Int8Product>};
  return dtype == WeightDtype::int8 ? int8 : bf16;
}

}  // namespace glimodern
