// AMX: matrix products of tiles of 16 rows of 64 bytes. Tiles 0 to 3 accumulate, tiles 4 and 5 hold A, tiles 6 and 7 B.
#pragma once

#include <immintrin.h>

#include <cstdint>

// Compiler barrier. The intrinsics do not tell the compiler that tile loads and stores access memory.
#define GLIMODERN_TILE_BARRIER __asm__ volatile("" ::: "memory")

namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 1024;

// Configures eight full tiles for the thread during its lifetime. Live tile state would slow down context switches.
struct TileConfig {
  TileConfig() {
    // Static: GCC's intrinsic declares only the first bytes as read.
    static constexpr struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config{};
    _tile_loadconfig(&config);
  }
  ~TileConfig() { _tile_release(); }
  TileConfig(const TileConfig&) = delete;
  TileConfig& operator=(const TileConfig&) = delete;
};

// Tile products C += A B: groups of 4 bytes in a row of A with those in a column of B.
struct Bf16Tiles {
#define GLIMODERN_MULTIPLY_TILES(product)                                               \
  static inline __attribute__((always_inline)) void multiply_00() { product(0, 4, 6); } \
  static inline __attribute__((always_inline)) void multiply_01() { product(1, 4, 7); } \
  static inline __attribute__((always_inline)) void multiply_10() { product(2, 5, 6); } \
  static inline __attribute__((always_inline)) void multiply_11() { product(3, 5, 7); }
  GLIMODERN_MULTIPLY_TILES(_tile_dpbf16ps)
};

struct Int8Tiles {  // uint8 in A, int8 in B
  GLIMODERN_MULTIPLY_TILES(_tile_dpbusd)
#undef GLIMODERN_MULTIPLY_TILES
};

// c [16 M rows, 16 N columns] <- A B, or += if accumulate; M and N are 1 or 2; strides in bytes. The next of a's
// `depth` tiles lies 64 bytes on, the next of b's one tile on; b's second column of tiles lies b_panel on. a should lie
// in L1. b is loaded past it, so that a stays there. overlap() is called once per depth step, for other work in the
// shadow of the products.
template <class T, int M, int N, class Overlap>
inline __attribute__((always_inline)) void multiply_tiles(const char* a, int64_t a_stride, const char* b,
                                                          int64_t b_panel, int64_t depth, float* c, int64_t c_stride,
                                                          bool accumulate, Overlap overlap) {
  char* const c00 = reinterpret_cast<char*>(c);
  char* const c10 = c00 + kTileRows * c_stride;
  GLIMODERN_TILE_BARRIER;
  if (accumulate) {
    _tile_loadd(0, c00, c_stride);
    if constexpr (N == 2) _tile_loadd(1, c00 + 64, c_stride);
    if constexpr (M == 2) _tile_loadd(2, c10, c_stride);
    if constexpr (M == 2 && N == 2) _tile_loadd(3, c10 + 64, c_stride);
  } else {
    _tile_zero(0);
    if constexpr (N == 2) _tile_zero(1);
    if constexpr (M == 2) _tile_zero(2);
    if constexpr (M == 2 && N == 2) _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; ++k, a += 64, b += kTileBytes) {
    _tile_stream_loadd(6, b, 64);
    if constexpr (N == 2) _tile_stream_loadd(7, b + b_panel, 64);
    _tile_loadd(4, a, a_stride);
    T::multiply_00();
    if constexpr (N == 2) T::multiply_01();
    if constexpr (M == 2) {
      _tile_loadd(5, a + kTileRows * a_stride, a_stride);
      T::multiply_10();
      if constexpr (N == 2) T::multiply_11();
    }
    overlap();
  }
  _tile_stored(0, c00, c_stride);
  if constexpr (N == 2) _tile_stored(1, c00 + 64, c_stride);
  if constexpr (M == 2) _tile_stored(2, c10, c_stride);
  if constexpr (M == 2 && N == 2) _tile_stored(3, c10 + 64, c_stride);
  GLIMODERN_TILE_BARRIER;
}

// One row of N tiles of c, contiguous <- A B in bf16, or += if accumulate; N is 2 or 4, since more accumulators leave
// too few tiles for A and B; strides in bytes. The next of a's `depth` tiles lies a_step on, the next of b's b_step on;
// b's next column of tiles lies b_column on.
template <int N>
inline __attribute__((always_inline)) void multiply_row_of_tiles(const char* a, int64_t a_stride, int64_t a_step,
                                                                 const char* b, int64_t b_step, int64_t b_column,
                                                                 int64_t depth, float* c, bool accumulate) {
  char* const c0 = reinterpret_cast<char*>(c);
  GLIMODERN_TILE_BARRIER;
  if (accumulate) {
    _tile_loadd(0, c0, 64);
    _tile_loadd(1, c0 + kTileBytes, 64);
    if constexpr (N == 4) _tile_loadd(2, c0 + 2 * kTileBytes, 64);
    if constexpr (N == 4) _tile_loadd(3, c0 + 3 * kTileBytes, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (N == 4) _tile_zero(2);
    if constexpr (N == 4) _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
    _tile_loadd(4, a, a_stride);
    _tile_loadd(5, b, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, b + b_column, 64);
    _tile_dpbf16ps(1, 4, 6);
    if constexpr (N == 4) {
      _tile_loadd(7, b + 2 * b_column, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, b + 3 * b_column, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, c0, 64);
  _tile_stored(1, c0 + kTileBytes, 64);
  if constexpr (N == 4) _tile_stored(2, c0 + 2 * kTileBytes, 64);
  if constexpr (N == 4) _tile_stored(3, c0 + 3 * kTileBytes, 64);
  GLIMODERN_TILE_BARRIER;
}

}  // namespace
