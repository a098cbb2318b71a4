// What span_scores, span_loss and span_entities share: the inputs, the blocks of words that are the unit of work, and a
// table of kernels per instruction set.
//
//     logit(i, k, t) = drop(relu(a_i + b_{i+k})) . u_t + c_t      words i, i+k and type t of one text, 0 <= k < K
//
// All matrices are row-major and contiguous. a, b and u are stored in fp32, bf16 or fp64. Everything else is in the
// accumulator dtype: fp32, or fp64 for fp64, which runs in the scalar kernels (for gradcheck). Nothing here depends on
// torch. Kernels trust their caller: csrc/*bindings.cpp and glimodern/ops/ check the inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "glimodern/dropout.h"
#include "glimodern/dtype.h"

namespace glimodern {

struct SpanInputs {
  Dtype dtype;              // of a, b and u
  const void* a;            // [words, hidden]
  const void* b;            // [words, hidden]
  const void* u;            // [types, hidden]
  const void* c;            // [types], accumulator dtype
  const int32_t* cu_words;  // [texts + 1]
  const int32_t* cu_types;  // [texts + 1]
  int64_t texts, words, types, hidden;
  int64_t max_width;  // K
  Dropout dropout;    // of span vectors
};

// Acc, here and below: the accumulator type.
template <class Acc>
struct SpanGradsOf {  // shaped like a, b, u, c; zeroed by the caller
  Acc* a;
  Acc* b;
  Acc* u;
  Acc* c;
};
using SpanGrads = SpanGradsOf<float>;

// Consecutive words of one text. The value of (word i, width k, type t) lies at
// offset + (i - first) * stride + k * types + t.
struct WordBlock {
  int64_t first, last;        // words [first, last) of the batch
  int64_t text_end;           // spans end before this word
  int64_t first_type, types;  // the text's types
  int64_t offset, stride;

  int64_t widths(int64_t word, int64_t max_width) const {  // spans that start at word and stay in the text
    return text_end - word < max_width ? text_end - word : max_width;
  }
};

// Words of a block at most; the scratch of the tiled kernels is laid out for it.
constexpr int64_t kBlockWords = 48;
// Columns of a, b and u that one gradient task owns.
constexpr int64_t kSliceColumns = 64;

struct FocalParams {
  double gamma;
  double positive_weight, negative_weight;  // all factors of the loss: scale, class balance, 1 / count
};

template <class Acc>
struct SpanKernelsOf {
  // values <- logits of the block's spans; values of spans that leave the text are not written. scratch:
  // scratch_floats.
  void (*score_block)(const SpanInputs&, const WordBlock&, Acc* values, float* scratch);
  // grads += the gradients of columns [column, column + kSliceColumns) of a, b, u. values: the blocks' d loss / d
  // logit.
  void (*grad_slice)(const SpanInputs&, const WordBlock* blocks, int64_t count, const Acc* values, int64_t column,
                     const SpanGradsOf<Acc>& grads, float* scratch);
  // z [n]: logits of negatives. Returns their weighted loss; with_grad: z <- d loss / d z.
  double (*focal_negatives)(Acc* z, int64_t n, const FocalParams&, bool with_grad);
  size_t scratch_floats;  // 64-byte aligned scratch of score_block and grad_slice, per thread
};

using SpanKernels = SpanKernelsOf<float>;

const SpanKernels& span_kernels();                  // of current_isa()
const SpanKernelsOf<double>& span_kernels(double);  // selected by the argument's type; always scalar
inline const SpanKernels& span_kernels(float) { return span_kernels(); }

// Cuts the batch into blocks of at most `words` words and `values` values, none across texts. packed: values only of
// spans that can exist (stride min(K, the text's words) * types), each block at offset 0; else the layout of
// span_scores.
std::vector<WordBlock> word_blocks(const SpanInputs&, int64_t words, int64_t values, bool packed);

// grads += the gradients from the values (d loss / d logit) of blocks [begin, end). The result does not depend on the
// number of threads.
template <class Acc>
void span_gradients(const SpanInputs&, const std::vector<WordBlock>& blocks, size_t begin, size_t end,
                    const Acc* values, const SpanGradsOf<Acc>&, float* scratch, int threads);

}  // namespace glimodern
