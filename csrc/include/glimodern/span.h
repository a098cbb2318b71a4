// What span_scores and span_loss share: the inputs, the blocks of words that are the unit of work, one table of
// kernels an instruction set.
//
//     logit(i, k, t) = drop(relu(a_i + b_{i+k})) . u_t + c_t      i, i+k words and t a type of one text, 0 <= k < K
//
// All matrices are row-major and contiguous. a, b and u are stored as fp32, bf16 or fp64; all else, and every sum, is
// "wide": fp32, or fp64 for fp64, which runs in the scalar kernels (for gradcheck). Nothing here knows torch. Kernels
// trust their caller: the inputs are checked where Python enters (csrc/*bindings.cpp, glimodern/ops/).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "glimodern/dtype.h"

namespace glimodern {

struct SpanInputs {
  Dtype dtype;              // of a, b and u
  const void* a;            // [words, hidden]
  const void* b;            // [words, hidden]
  const void* u;            // [types, hidden]
  const void* c;            // [types], wide
  const int32_t* cu_words;  // [texts + 1]
  const int32_t* cu_types;  // [texts + 1]
  int64_t texts, words, types, hidden;
  int64_t max_width;    // K
  bool dropout;         // whether elements are dropped at all
  uint32_t drop_below;  // an element whose hash is below this is dropped: floor(p * 2^32)
  double keep_scale;    // 1 / (1 - p)
  uint32_t seed;        // low 32 bits
};

template <class W>    // here and below: the wide type
struct SpanGradsOf {  // like a, b, u, c, all wide; the caller has zeroed them
  W* a;
  W* b;
  W* u;
  W* c;
};
using SpanGrads = SpanGradsOf<float>;

// Consecutive words of one text. Values of (word i, width k, type t) lie at offset + (i - first) * stride + k * types +
// t.
struct WordBlock {
  int64_t first, last;        // words [first, last) of the batch
  int64_t text_end;           // no span reaches this word
  int64_t first_type, types;  // the text's types
  int64_t offset, stride;

  int64_t widths(int64_t word, int64_t max_width) const {  // spans that start at word and stay in the text
    return text_end - word < max_width ? text_end - word : max_width;
  }
};

// Words a block holds at most; the tiled kernels' scratch is laid out for it.
constexpr int64_t kBlockWords = 48;
// Columns of a, b and u that one gradient task owns.
constexpr int64_t kSliceColumns = 64;

struct FocalParams {
  double gamma;
  double positive_weight, negative_weight;  // everything that multiplies the loss: scale, class balance, 1 / count
};

template <class W>
struct SpanKernelsOf {
  // values <- logits of the block's spans; spans that leave the text are not touched. scratch: scratch_floats.
  void (*score_block)(const SpanInputs&, const WordBlock&, W* values, float* scratch);
  // For columns [column, column + kSliceColumns) of a, b, u: grads += what the blocks' values, d loss / d logit, give.
  void (*grad_slice)(const SpanInputs&, const WordBlock* blocks, int64_t count, const W* values, int64_t column,
                     const SpanGradsOf<W>& grads, float* scratch);
  // z [n] logits of negatives -> their weighted loss, summed; with_grad: z <- d loss / d z.
  double (*focal_negatives)(W* z, int64_t n, const FocalParams&, bool with_grad);
  size_t scratch_floats;  // of 64-byte aligned scratch that score_block and grad_slice need, a thread
};

using SpanKernels = SpanKernelsOf<float>;

const SpanKernels& span_kernels();                  // of current_isa()
const SpanKernelsOf<double>& span_kernels(double);  // chosen by its argument's type; always the scalar ones
inline const SpanKernels& span_kernels(float) { return span_kernels(); }

// Cuts the batch into blocks of at most `words` words and `values` values, none across texts. packed: values of the
// spans that can exist only (stride min(K, the text's words) * types), each block at offset 0; else span_scores'
// layout.
std::vector<WordBlock> word_blocks(const SpanInputs&, int64_t words, int64_t values, bool packed);

// grads += what the blocks' values give, on `threads` threads; the result does not depend on their number.
template <class W>
void span_gradients(const SpanInputs&, const std::vector<WordBlock>& blocks, size_t begin, size_t end, const W* values,
                    const SpanGradsOf<W>&, float* scratch, int threads);

}  // namespace glimodern
