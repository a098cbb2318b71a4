#include "simd/avx512.h"

#include "token_scores/vectors.h"

namespace glimodern {

void pair_products_avx512(const TokenPairs<float>& in, int64_t begin, int64_t end, float* products) {
  pair_products<Avx512>(in, begin, end, products);
}
void pair_products_avx512(const TokenPairs<float>& in, int64_t begin, int64_t end, Bf16* products) {
  pair_products<Avx512>(in, begin, end, products);
}
void pair_products_avx512(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, float* products) {
  pair_products<Avx512>(in, begin, end, products);
}
void pair_products_avx512(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, Bf16* products) {
  pair_products<Avx512>(in, begin, end, products);
}
void pair_logits_avx512(const TokenPairs<float>& in, int64_t begin, int64_t end, const float* sums) {
  pair_logits<Avx512>(in, begin, end, sums);
}
void pair_logits_avx512(const TokenPairs<Bf16>& in, int64_t begin, int64_t end, const float* sums) {
  pair_logits<Avx512>(in, begin, end, sums);
}

void hidden_gradients_avx512(const TokenHidden& in, int64_t begin, int64_t end) {
  hidden_gradients<Avx512>(in, begin, end);
}

}  // namespace glimodern
