// The steps of token_scores around its matrix product, one loop per symbol, sums in fp64. Every other instruction set
// must agree with it.
#include "dropout_mask.h"
#include "token_scores/kernels.h"

namespace glimodern {
namespace {

template <class T, class Product>
void products_of(const TokenPairs<T>& in, int64_t begin, int64_t end, Product* products) {
  for (int64_t pair = begin; pair < end; ++pair) {
    const T* x = in.x + in.word[pair] * in.width;
    const T* y = in.y + in.type[pair] * in.width;
    for (int64_t j = 0; j < in.width; ++j) narrow(widen(x[j]) * widen(y[j]), products++);
  }
}

template <class T>
void logits_of(const TokenPairs<T>& in, int64_t begin, int64_t end, const float* sums) {
  for (int64_t pair = begin; pair < end; ++pair, sums += in.hidden) {
    const T* a = in.a + in.word[pair] * in.hidden;
    const T* b = in.b + in.type[pair] * in.hidden;
    const uint32_t key = dropout_key(static_cast<uint64_t>(pair), in.dropout.seed);
    double total[3] = {in.b2[0], in.b2[1], in.b2[2]};
    for (int64_t h = 0; h < in.hidden; ++h) {
      const float z = sums[h] + (widen(a[h]) + widen(b[h]));
      double hidden = z < 0.0f ? 0.0 : z;  // NaN stays
      if (in.dropout.enabled) {
        hidden = dropout_keeps(key, h, in.dropout.threshold) ? hidden * in.dropout.keep_scale : 0.0;
      }
      for (int n = 0; n < 3; ++n) total[n] += hidden * in.w2[n * in.hidden + h];
    }
    for (int n = 0; n < 3; ++n) in.logits[3 * pair + n] = static_cast<float>(total[n]);
  }
}

}  // namespace

void pair_products_scalar(const TokenPairs<float>& in, int64_t begin, int64_t end, float* products) {
  products_of(in, begin, end, products);
}
void pair_products_scalar(const TokenPairs<float>& in, int64_t begin, int64_t end, Bf16* products) {
  products_of(in, begin, end, products);
}
void pair_products_scalar(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, float* products) {
  products_of(in, begin, end, products);
}
void pair_products_scalar(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, Bf16* products) {
  products_of(in, begin, end, products);
}
void pair_logits_scalar(const TokenPairs<float>& in, int64_t begin, int64_t end, const float* sums) {
  logits_of(in, begin, end, sums);
}
void pair_logits_scalar(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, const float* sums) {
  logits_of(in, begin, end, sums);
}

void hidden_gradients_scalar(const TokenHidden& in, int64_t begin, int64_t end) {
  for (int64_t pair = begin; pair < end; ++pair) {
    const float* a = in.a + pair / in.types * in.hidden;
    const float* b = in.b + pair % in.types * in.hidden;
    float* values = in.values + pair * in.hidden;
    float* dz = in.dz + pair * in.hidden;
    const uint32_t key = dropout_key(static_cast<uint64_t>(in.first + pair), in.dropout.seed);
    for (int64_t h = 0; h < in.hidden; ++h) {
      const float z = values[h] + (a[h] + b[h]);
      double scale = 1.0, grad = 0.0;
      if (in.dropout.enabled) scale = dropout_keeps(key, h, in.dropout.threshold) ? in.dropout.keep_scale : 0.0;
      for (int n = 0; n < 3; ++n) grad += static_cast<double>(in.grad[3 * pair + n]) * in.w2[n * in.hidden + h];
      values[h] = z < 0.0f ? 0.0f : static_cast<float>(z * scale);  // NaN stays
      dz[h] = z > 0.0f ? static_cast<float>(grad * scale) : 0.0f;
    }
  }
}

}  // namespace glimodern
