#include "bindings.h"

#include <limits>

#include "dropout_mask.h"
#include "glimodern/attention_varlen.h"

namespace nb = nanobind;

namespace glimodern {
namespace {

AttentionInputs inputs(AttentionRows q, AttentionRows k, AttentionRows v, Dtype dtype, uintptr_t cu_seqlens,
                       int64_t texts, int64_t heads, int64_t head_dim, int64_t window, double scale, double dropout_p,
                       uint64_t seed, Positions positions) {
  AttentionInputs in{};
  in.q = q;
  in.k = k;
  in.v = v;
  in.dtype = dtype;
  in.cu_seqlens = at<const int32_t>(cu_seqlens);
  in.texts = texts;
  in.heads = heads;
  in.head_dim = head_dim;
  in.window = window < 0 ? std::numeric_limits<int32_t>::max() : window;
  in.scale = scale;
  in.dropout = make_dropout(dropout_p, seed);
  in.positions = positions;
  return in;
}

}  // namespace

// Each [tokens, heads, head_dim] is an address and the strides of tokens and heads in elements. window -1: none.
// Addresses of 0: no such tensor.
#define ROWS_PARAMETERS(x) uintptr_t x, int64_t x##_row, int64_t x##_head
#define ROWS(x) (AttentionRows{at<const void>(x), x##_row, x##_head})
#define ATTENTION_PARAMETERS                                                                                    \
  ROWS_PARAMETERS(q), ROWS_PARAMETERS(k), ROWS_PARAMETERS(v), Dtype dtype, uintptr_t cu_seqlens, int64_t texts, \
      int64_t heads, int64_t head_dim, int64_t window, double scale, double dropout_p, uint64_t seed,           \
      uintptr_t position_rows, int64_t reach, int64_t table_rows, uintptr_t c2p, uintptr_t p2c, uintptr_t bias
#define ATTENTION_ARGUMENTS                                                                                         \
  ROWS(q), ROWS(k), ROWS(v), dtype, cu_seqlens, texts, heads, head_dim, window, scale, dropout_p, seed, Positions { \
    at<const int32_t>(position_rows), reach, table_rows, at<const void>(c2p), at<const void>(p2c),                  \
        at<const void>(bias)                                                                                        \
  }

void bind_attention_varlen(nb::module_& m) {
  m.def("attention_varlen_forward", [](ATTENTION_PARAMETERS, uintptr_t out, uintptr_t lse, int threads) {
    nb::gil_scoped_release release;
    attention_varlen_forward(inputs(ATTENTION_ARGUMENTS), at<void>(out), at<void>(lse), checked_threads(threads));
  });
  m.def("attention_varlen_backward", [](ATTENTION_PARAMETERS, ROWS_PARAMETERS(grad_out), ROWS_PARAMETERS(out),
                                        uintptr_t lse, uintptr_t grad_q, uintptr_t grad_k, uintptr_t grad_v,
                                        uintptr_t grad_c2p, uintptr_t grad_p2c, uintptr_t grad_bias, int threads) {
    nb::gil_scoped_release release;
    const AttentionGrads grads{ROWS(grad_out),     ROWS(out),          at<const void>(lse),
                               at<void>(grad_q),   at<void>(grad_k),   at<void>(grad_v),
                               at<void>(grad_c2p), at<void>(grad_p2c), at<void>(grad_bias)};
    attention_varlen_backward(inputs(ATTENTION_ARGUMENTS), grads, checked_threads(threads));
  });
}

}  // namespace glimodern
