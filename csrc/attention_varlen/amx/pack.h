// Tile packing of the AMX attention forward pass: q, k and v -> tiles, sums -> rows of the result.
#pragma once

#include "attention_varlen/amx/tiles.h"

namespace glimodern {
namespace {

// Up to kTileDepth elements of a row, zero-padded.
inline __m512i load_tile_row(const Bf16* from, int64_t elements) {
  if (elements >= kTileDepth) return _mm512_loadu_si512(from);
  const __mmask32 exists = elements <= 0 ? 0 : (1u << elements) - 1;
  return _mm512_maskz_loadu_epi16(exists, from);
}

// `rows` rows of q -> `padded` whole rows of `depth` tiles, zero-padded.
void pack_queries(const Bf16* from, int64_t stride, int64_t rows, int64_t padded, int64_t dim, int64_t depth,
                  char* to) {
  for (int64_t r = 0; r < padded; ++r) {
    for (int64_t k = 0; k < depth; ++k, to += 64) {
      _mm512_store_si512(to, load_tile_row(from + r * stride + k * kTileDepth, r < rows ? dim - k * kTileDepth : 0));
    }
  }
}

// The AMX unit powers down after about 400 ns without use, and takes 250 ns to power up. Packing takes longer, so it
// multiplies and stores a tile now and then. scratch: one tile, overwritten.
inline void keep_amx_powered(float* scratch) {
  _tile_dpbf16ps(7, 4, 5);
  _tile_stored(7, scratch, 64);
}

// 16 rows of k -> one tile of B: line d holds elements 2 d and 2 d + 1 of every key.
template <bool kFull>
inline void pack_key_tile(const Bf16* from, int64_t stride, int64_t rows, int64_t elements, char* to) {
  F x[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    x[r] = _mm512_castsi512_ps(load_tile_row(from + r * stride, kFull ? kTileDepth : (r < rows ? elements : 0)));
  }
  V::transpose(x);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) V::store(reinterpret_cast<float*>(to + r * 64), x[r]);
}

// k -> [tiles of 16 keys][depth] tiles.
void pack_keys(const Bf16* from, int64_t stride, int64_t rows, int64_t dim, int64_t depth, char* to, float* scratch) {
  for (int64_t r0 = 0; r0 < rows; r0 += kTileRows, from += kTileRows * stride) {
    if (r0 % 64 == 0) keep_amx_powered(scratch);
    for (int64_t h = 0; h < depth * kTileDepth; h += kTileDepth, to += kTileBytes) {
      if (rows - r0 >= kTileRows && dim - h >= kTileDepth) {
        pack_key_tile<true>(from + h, stride, kTileRows, kTileDepth, to);
      } else {
        pack_key_tile<false>(from + h, stride, rows - r0, dim - h, to);
      }
    }
  }
}

// Two rows of v -> one line in each of the 2 * depth panels.
template <bool kFull>
inline void pack_value_line(const Bf16* from, int64_t stride, int64_t rows, int64_t dim, int64_t depth, int64_t panel,
                            float* to) {
  for (int64_t k = 0; k < depth; ++k, from += kTileDepth, to += 2 * panel) {
    const int64_t elements = dim - k * kTileDepth;
    const __m512i x = load_tile_row(from, kFull ? kTileDepth : (rows > 0 ? elements : 0));
    const __m512i y = load_tile_row(from + stride, kFull ? kTileDepth : (rows > 1 ? elements : 0));
    _mm512_store_si512(to, _mm512_unpacklo_epi16(x, y));
    _mm512_store_si512(to + panel, _mm512_unpackhi_epi16(x, y));
  }
}

// v -> [2 * depth] panels of `lines` lines, each 16 columns of two keys. Of every 32 columns, the even panel takes the
// first four of every eight, the odd panel the others; store_rows() restores the order.
void pack_values(const Bf16* from, int64_t stride, int64_t rows, int64_t lines, int64_t dim, int64_t depth,
                 int64_t panel, float* to, float* scratch) {
  for (int64_t line = 0; line < lines; ++line, from += 2 * stride, to += 16) {
    if (line % 32 == 0) keep_amx_powered(scratch);
    if (rows - 2 * line >= 2 && dim % kTileDepth == 0) {
      pack_value_line<true>(from, stride, 2, dim, depth, panel, to);
    } else {
      pack_value_line<false>(from, stride, rows - 2 * line, dim, depth, panel, to);
    }
  }
}

// sums [2 * depth] tiles, columns in the order of pack_values(), times factor [rows] -> rows of the result.
void store_rows(const float* sums, const float* factor, int64_t rows, int64_t depth, int64_t dim, Bf16* to,
                int64_t stride) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t r = 0; r < rows; ++r, sums += 16, to += stride) {
    const F scale = V::set1(factor[r]);
    for (int64_t k = 0; k < depth; ++k) {
      const F x = V::mul(scale, V::load(sums + 2 * k * kTileFloats));
      const F y = V::mul(scale, V::load(sums + (2 * k + 1) * kTileFloats));
      const __m512bh both = _mm512_cvtne2ps_pbh(y, x);
      __m512i bits;
      __builtin_memcpy(&bits, &both, sizeof bits);
      bits = _mm512_permutexvar_epi64(order, bits);
      const int64_t elements = dim - k * kTileDepth;
      if (elements >= kTileDepth) {
        _mm512_storeu_si512(to + k * kTileDepth, bits);
      } else {
        _mm512_mask_storeu_epi16(to + k * kTileDepth, (1u << elements) - 1, bits);
      }
    }
  }
}

}  // namespace
}  // namespace glimodern
