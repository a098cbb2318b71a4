#include "simd/avx2.h"

#include "token_scores/vectors.h"

namespace glimodern {

void pair_products_avx2(const TokenPairs<float>& in, int64_t begin, int64_t end, float* products) {
  pair_products<Avx2>(in, begin, end, products);
}
void pair_products_avx2(const TokenPairs<float>& in, int64_t begin, int64_t end, Bf16* products) {
  pair_products<Avx2>(in, begin, end, products);
}
void pair_products_avx2(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, float* products) {
  pair_products<Avx2>(in, begin, end, products);
}
void pair_products_avx2(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, Bf16* products) {
  pair_products<Avx2>(in, begin, end, products);
}
void pair_logits_avx2(const TokenPairs<float>& in, int64_t begin, int64_t end, const float* sums) {
  pair_logits<Avx2>(in, begin, end, sums);
}
void pair_logits_avx2(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, const float* sums) {
  pair_logits<Avx2>(in, begin, end, sums);
}

void hidden_gradients_avx2(const TokenHidden& in, int64_t begin, int64_t end) {
  hidden_gradients<Avx2>(in, begin, end);
}

}  // namespace glimodern
