// Matrix products of tiles: AMX. A tile holds 16 rows of 64 bytes; tiles 0 to 3 are sums, 4 and 5 rows of the left
// side, 6 and 7 lines of the right.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 1024;

// While it lives, the thread's tiles are whole ones. (Their state would slow down every switch of threads.)
struct WholeTiles {
  WholeTiles() {
    // Static: GCC's intrinsic tells the compiler of its first bytes alone.
    static constexpr struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config{};
    _tile_loadconfig(&config);
  }
  ~WholeTiles() { _tile_release(); }
  WholeTiles(const WholeTiles&) = delete;
  WholeTiles& operator=(const WholeTiles&) = delete;
};

// Products of tiles: tile C += A B, numbers of 4 bytes of A's row with those of B's column.
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

// c [16 M rows, 16 N columns], rows c_stride bytes apart, <- products of `steps` tiles of a, rows a_stride bytes apart
// and the next tile 64 bytes on, and of b, whose tiles lie one after the other and the second column of tiles b_panel
// bytes on; more: onto what c holds. M, N: 1 or 2. between() is called once a tile, for other work while its products
// are under way.
template <class T, int M, int N, class Between>
inline __attribute__((always_inline)) void multiply_tiles(const char* a, int64_t a_stride, const char* b,
                                                          int64_t b_panel, int64_t steps, float* c, int64_t c_stride,
                                                          bool more, Between between) {
  char* const c00 = reinterpret_cast<char*>(c);
  char* const c10 = c00 + kTileRows * c_stride;
  __asm__ volatile("" ::: "memory");  // what was stored is there: the intrinsics do not say that they load
  if (more) {
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
  for (int64_t k = 0; k < steps; ++k, a += 64, b += kTileBytes) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, a_stride);
    T::multiply_00();
    if constexpr (N == 2) {
      _tile_loadd(7, b + b_panel, 64);
      T::multiply_01();
    }
    if constexpr (M == 2) {
      _tile_loadd(5, a + kTileRows * a_stride, a_stride);
      T::multiply_10();
      if constexpr (N == 2) T::multiply_11();
    }
    between();
  }
  _tile_stored(0, c00, c_stride);
  if constexpr (N == 2) _tile_stored(1, c00 + 64, c_stride);
  if constexpr (M == 2) _tile_stored(2, c10, c_stride);
  if constexpr (M == 2 && N == 2) _tile_stored(3, c10 + 64, c_stride);
  __asm__ volatile("" ::: "memory");  // nor that they store
}

// c, N tiles one after the other <- products of `steps` tiles of one row of a, its next tile a_step bytes on, and of N
// columns of b, whose next tile lies b_step bytes on and the next column b_column; more: onto what c holds. Five tiles
// and more of sums leave too few for a and b: N is 2 or 4.
template <int N>
inline __attribute__((always_inline)) void multiply_row_of_tiles(const char* a, int64_t a_stride, int64_t a_step,
                                                                 const char* b, int64_t b_step, int64_t b_column,
                                                                 int64_t steps, float* sums, bool more) {
  char* const c = reinterpret_cast<char*>(sums);
  __asm__ volatile("" ::: "memory");
  if (more) {
    _tile_loadd(0, c, 64);
    _tile_loadd(1, c + kTileBytes, 64);
    if constexpr (N == 4) _tile_loadd(2, c + 2 * kTileBytes, 64);
    if constexpr (N == 4) _tile_loadd(3, c + 3 * kTileBytes, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (N == 4) _tile_zero(2);
    if constexpr (N == 4) _tile_zero(3);
  }
  for (int64_t k = 0; k < steps; ++k, a += a_step, b += b_step) {
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
  _tile_stored(0, c, 64);
  _tile_stored(1, c + kTileBytes, 64);
  if constexpr (N == 4) _tile_stored(2, c + 2 * kTileBytes, 64);
  if constexpr (N == 4) _tile_stored(3, c + 3 * kTileBytes, 64);
  __asm__ volatile("" ::: "memory");  // nor that they store
}

}  // namespace
