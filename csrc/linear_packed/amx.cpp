// AMX kernels for bf16 and int8. The panels' lines are B's tiles as they lie in memory.
//
// kRows rows of x stay in L1 while a group of panels streams past them from L2, so that rows of y are written from left
// to right: a column of panels for all rows would touch a page per row. The epilogue of a block runs in the shadow of
// the next block's tile products.
#include "simd/amx.h"

#include "simd/avx512_bf16.h"

#include "linear_packed/int8_avx512.h"

namespace glimodern {
namespace {

constexpr int64_t kRows = 2 * kTileRows, kPanels = 2;  // of a block: 2 x 2 tiles of accumulators
constexpr int64_t kTileGroups = 16;                    // groups of inputs in a tile
constexpr int64_t kChunkTiles = 12;                    // of inputs: kRows rows of a chunk stay in L1
constexpr int64_t kMinEpilogueRows = 8;                // at a time: a call costs as much as some rows
constexpr int64_t kMaxGroupPanels = 256;               // bounds the scratch memory
constexpr int64_t kAliasBytes = 2048;                  // 16 of kRows rows would map to one set of L1
constexpr int64_t kMaxNextBytes = 128 << 10;           // longer blocks of rows would push panels out of L2

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

// The rows of a finished block that wait for their epilogue.
struct PendingEpilogue {
  const LinearPacked& in;
  Epilogue epilogue = nullptr;
  const float *sums = nullptr, *row_scale = nullptr;
  const int32_t* zero_point = nullptr;
  int64_t row = 0, column = 0, row_floats = 0;
  int rows = 0;

  void run(int max_rows) {
    const int now = rows < max_rows ? rows : max_rows;
    if (now == 0) return;
    epilogue(in, sums, now, row_scale, zero_point, row, column);
    sums += now * row_floats;
    if (row_scale != nullptr) row_scale += now, zero_point += now;
    row += now;
    rows -= now;
  }
};

// The lines of the next block's rows of x, which are prefetched a few at a time.
struct NextRows {
  const char* x;
  int64_t stride, bytes, rows;
  int64_t at = 0;

  void prefetch(int64_t lines) {
    for (; lines > 0 && rows > 0; --lines) {
      __builtin_prefetch(x + at, 0, 2);
      at += kLineBytes;
      if (at >= bytes) at = 0, x += stride, --rows;
    }
  }
};

// A block of M x N tiles: `depth` tiles of inputs, and `tail` if not null. On the way it runs the pending epilogue and
// prefetches `lines` lines per tile of inputs.
template <class D, int M, int N>
void multiply_block(const char* x, int64_t stride, const char* w, int64_t panel, int64_t depth, const char* tail,
                    float* sums, bool accumulate, PendingEpilogue& pending, NextRows& next, int64_t lines) {
  constexpr int64_t row_bytes = N * 64;
  const int share = static_cast<int>(max((pending.rows + depth) / (depth + 1), kMinEpilogueRows));
  const auto overlap = [&] { pending.run(share), next.prefetch(lines); };
  if (depth > 0 || tail == nullptr) {
    multiply_tiles<D, M, N>(x, stride, w, panel, depth, sums, row_bytes, accumulate, overlap);
  }
  if (tail != nullptr) {
    multiply_tiles<D, M, N>(x + depth * 64, stride, tail, kTileBytes, 1, sums, row_bytes, accumulate || depth > 0,
                            overlap);
  }
  pending.run(kRows);
}

// Rows need not stay in L2, since each passes by a whole group of panels; up to 8 MB.
int64_t prepared_rows(int64_t stride) { return min(max((8 << 20) / stride, 2 * kRows), 1024); }

// Panels whose weights stay in L2 while rows of x pass through them.
int64_t group_panels(const LinearPacked& in) {
  const int64_t bytes = packed_groups(in) * kLineBytes;
  return min(max(half_l2_bytes() / bytes, kPanels), kMaxGroupPanels) / kPanels * kPanels;
}

constexpr int64_t kBlockFloats = kRows * kPanels * kPanelColumns;

int64_t scratch_floats(const LinearPacked& in, int64_t stride) {
  const int64_t panels = group_panels(in), sums = max(panels / kPanels, 2) * kBlockFloats;
  return sums + (panels * kTileBytes + kRows * stride) / static_cast<int64_t>(sizeof(float));
}

template <class D>
void multiply(const LinearPacked& in, const PreparedRows& prepared, int64_t from, int64_t begin, int64_t end,
              int64_t panel, int64_t last, float* scratch) {
  if (begin == end) return;
  const TileConfig tiles;
  const int64_t stride = prepared.stride, rows = end - begin;
  const int64_t groups = packed_groups(in), bytes = groups * kLineBytes, max_panels = group_panels(in);
  // Groups of nearly the same length.
  const int64_t step = round_up(ceil_div(last - panel, ceil_div(last - panel, max_panels)), kPanels);
  const int64_t depth = groups / kTileGroups, tail_groups = groups % kTileGroups;
  const int64_t chunks = depth == 0 ? 1 : ceil_div(depth, kChunkTiles);
  char* const tails = reinterpret_cast<char*>(scratch + max(max_panels / kPanels, 2) * kBlockFloats);
  char* const copy = tails + max_panels * kTileBytes;
  AOperandRows x{prepared.data + (begin - from) * stride, stride, rows, copy};
  if (rows % kTileRows > 0 && prepared.in_place) {
    x.tail = rows / kRows * kRows;
    __builtin_memcpy(copy, x.data + x.tail * stride, (rows - x.tail) * stride);
  }
  const Epilogue epilogue2 = choose_epilogue<D, Avx512Bf16, 2>(in), epilogue1 = choose_epilogue<D, Avx512Bf16, 1>(in);
  PendingEpilogue pending{in};
  int64_t blocks = 0;
  for (int64_t first = panel; first < last; first += step) {
    const int64_t panels = min(last - first, step);
    const char* const w = static_cast<const char*>(in.weight) + first * bytes;
    if (tail_groups > 0) {  // the last groups of the panels, which fill no tile, zero-padded
      __builtin_memset(tails, 0, panels * kTileBytes);
      for (int64_t p = 0; p < panels; ++p) {
        __builtin_memcpy(tails + p * kTileBytes, w + p * bytes + depth * kTileBytes, tail_groups * kLineBytes);
      }
    }
    for (int64_t done = 0; done < rows; done += kRows) {
      const int64_t tile = min(rows - done, kRows);
      NextRows next{x.data + (done + kRows) * stride, stride, depth * 64,
                    kRows * stride > kMaxNextBytes ? 0 : min(x.tail - done - kRows, kRows)};
      const int64_t lines = ceil_div(kRows, ceil_div(panels, kPanels));
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t start = depth * chunk / chunks, stop = depth * (chunk + 1) / chunks;
        const bool last_chunk = chunk + 1 == chunks;
        for (int64_t p = 0; p < panels; p += kPanels) {
          const bool two = p + 1 < panels;
          // Blocks of one chunk alternate between two places: the previous one waits for its epilogue.
          float* const sums = scratch + (chunks > 1 ? p / kPanels : blocks++ % 2) * kBlockFloats;
          const auto run = tile > kTileRows ? (two ? multiply_block<D, 2, 2> : multiply_block<D, 2, 1>)
                                            : (two ? multiply_block<D, 1, 2> : multiply_block<D, 1, 1>);
          run(x.at(done) + start * 64, stride, w + p * bytes + start * kTileBytes, bytes, stop - start,
              last_chunk && tail_groups > 0 ? tails + p * kTileBytes : nullptr, sums, chunk > 0, pending, next, lines);
          if (!last_chunk) continue;
          pending.epilogue = two ? epilogue2 : epilogue1;
          pending.row_floats = (two ? 2 : 1) * Avx512::width;
          pending.column = (first + p) * kPanelColumns;
          pending.sums = sums, pending.row = begin + done, pending.rows = static_cast<int>(tile);
          if constexpr (D::int8) {
            pending.row_scale = prepared.scale + (begin - from) + done;
            pending.zero_point = prepared.zero_point + (begin - from) + done;
          }
        }
      }
      if (chunks > 1 && panels <= kPanels) pending.run(kRows);  // the next block has the same place
    }
    pending.run(kRows);
  }
}

template <class D>
constexpr LinearKernels amx_kernels(int64_t x_itemsize, std::optional<Dtype> in_place_dtype,
                                    decltype(LinearKernels::prepare) prepare) {
  return {kTileRows,      kPanels,     kTileGroups,   kTileRows, 4,           x_itemsize,
          in_place_dtype, kAliasBytes, prepared_rows, prepare,   multiply<D>, scratch_floats};
}

}  // namespace

const LinearKernels& linear_kernels_amx(WeightDtype dtype) {
  static constexpr LinearKernels bf16 = amx_kernels<Bf16Product>(2, Dtype::bf16,
                                                                 prepare_floats<Avx512, Bf16, WeightDtype::bf16>),
                                 int8 = amx_kernels<Int8Product>(1, std::nullopt, prepare_int8<Int8Product, Avx512>);
  return dtype == WeightDtype::int8 ? int8 : bf16;
}

}  // namespace glimodern
