#include "glimodern/token_scores.h"

#include <algorithm>

#include "call_isa.h"
#include "integer_math.h"
#include "scratch.h"
#include "threads.h"
#include "token_scores/kernels.h"

namespace glimodern {
namespace {

// Pairs per thread whose products and hidden values exist at a time. More pairs share one pass over W1p; the hidden
// values of fewer pairs stay in cache.
constexpr int64_t kBlockPairs = 128;

template <class T, class Product>
void all_scores(const TokenPairs<T>& in, LinearPacked product, int64_t pairs, int threads) {
  const Isa isa = current_isa();
  const int64_t step = std::min(kBlockPairs * threads, pairs);
  const size_t for_products = whole_lines(static_cast<size_t>(step * in.width));
  const Scratch scratch = make_scratch(for_products + static_cast<size_t>(step * in.hidden));
  Product* products = reinterpret_cast<Product*>(scratch.get());
  float* sums = scratch.get() + for_products;
  product.x = products;
  product.y = sums;
  for (int64_t first = 0; first < pairs; first += step) {
    product.rows = std::min(step, pairs - first);
    parallel_rows(product.rows, in.width, threads, [&](int64_t begin, int64_t end) {
      CALL_ISA(isa, T, pair_products, in, first + begin, first + end, products + begin * in.width);
    });
    linear_packed(product, threads);
    parallel_rows(product.rows, in.hidden, threads, [&](int64_t begin, int64_t end) {
      CALL_ISA(isa, T, pair_logits, in, first + begin, first + end, sums + begin * in.hidden);
    });
  }
}

template <class T>
TokenPairs<T> pairs_of(const TokenScores& in) {
  return {static_cast<const T*>(in.a),
          static_cast<const T*>(in.b),
          static_cast<const T*>(in.x),
          static_cast<const T*>(in.y),
          in.w2,
          in.b2,
          in.word,
          in.type,
          in.logits,
          in.width,
          in.hidden,
          in.dropout};
}

}  // namespace

void token_hidden_gradients(const TokenHidden& in, int threads) {
  const Isa isa = current_isa();
  parallel_rows(in.words * in.types, in.hidden, threads,
                [&](int64_t begin, int64_t end) { CALL_ISA(isa, float, hidden_gradients, in, begin, end); });
}

void token_scores(const TokenScores& in, const LinearPacked& weight, int threads) {
  if (in.pairs == 0) return;
  const bool bf16_products = weight.weight_dtype == WeightDtype::bf16;
  LinearPacked product = weight;
  product.inputs = in.width;
  product.outputs = in.hidden;
  product.x_dtype = bf16_products ? Dtype::bf16 : Dtype::fp32;
  product.y_dtype = Dtype::fp32;
  product.activation = Activation::none;
  const auto run = [&](auto element) {
    using T = decltype(element);
    if (bf16_products) {
      all_scores<T, Bf16>(pairs_of<T>(in), product, in.pairs, threads);
    } else {
      all_scores<T, float>(pairs_of<T>(in), product, in.pairs, threads);
    }
  };
  if (in.dtype == Dtype::bf16) {
    run(Bf16{});
  } else {
    run(float{});
  }
}

}  // namespace glimodern
