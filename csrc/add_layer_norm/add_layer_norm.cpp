#include "glimodern/add_layer_norm.h"

#include <algorithm>

#include "add_layer_norm/kernels.h"
#include "call_isa.h"
#include "integer_math.h"
#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

// The gradients of weight and bias are summed within at most kMaxBlocks blocks of at least kBlockRows rows, then over
// the blocks. This bounds the scratch, and the result does not depend on the number of threads.
constexpr int64_t kBlockRows = 16, kMaxBlocks = 128;

// Elements of a row of scratch: pairs of vectors of every instruction set, whole cache lines.
int64_t padded(int64_t width) { return round_up(width, 32); }

template <class Acc>
Scratch make_accumulators(int64_t count) {
  return make_scratch(static_cast<size_t>(count) * (sizeof(Acc) / sizeof(float)));
}

template <class Acc>
void sum_blocks(const Acc* partial, int64_t blocks, int64_t stride, int64_t width, Acc* out) {
  std::fill(out, out + width, Acc(0));
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t j = 0; j < width; ++j) out[j] += partial[block * stride + j];
  }
}

}  // namespace

void add_layer_norm_forward(Dtype dtype, const AddLayerNormForward& args, int threads) {
  const Isa isa = current_isa();
  with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    using Acc = Accumulator<T>;
    const NormForward<T> in{static_cast<const T*>(args.x),
                            static_cast<const T*>(args.residual),
                            args.weight_dtype,
                            args.weight,
                            args.bias,
                            args.eps,
                            static_cast<T*>(args.normed),
                            static_cast<T*>(args.sum),
                            static_cast<Acc*>(args.mean),
                            static_cast<Acc*>(args.rstd),
                            args.width,
                            args.rms};
    const int64_t stride = padded(args.width);
    const Scratch scratch = make_accumulators<Acc>(3 * stride * threads);
    parallel_rows(args.rows, args.width, threads, [&](int64_t begin, int64_t end) {
      Acc* own = reinterpret_cast<Acc*>(scratch.get()) + 3 * stride * thread_index();
      CALL_ISA(isa, T, add_layer_norm_forward, in, begin, end, own, stride);
    });
  });
}

void add_layer_norm_backward(Dtype dtype, const AddLayerNormBackward& args, int threads) {
  const Isa isa = current_isa();
  const int64_t blocks = std::min(ceil_div(args.rows, kBlockRows), kMaxBlocks);
  with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    using Acc = Accumulator<T>;
    const NormBackward<T> in{static_cast<const T*>(args.grad_normed),
                             static_cast<const T*>(args.grad_sum),
                             static_cast<const T*>(args.sum),
                             static_cast<const Acc*>(args.weight),
                             static_cast<const Acc*>(args.mean),
                             static_cast<const Acc*>(args.rstd),
                             static_cast<T*>(args.grad_x),
                             args.width,
                             args.rms};
    const int64_t stride = padded(args.width);
    const Scratch scratch = make_accumulators<Acc>((2 * blocks + threads) * stride);
    Acc* const partial = reinterpret_cast<Acc*>(scratch.get());
    parallel_rows(blocks, args.rows * args.width / std::max<int64_t>(blocks, 1), threads,
                  [&](int64_t first, int64_t last) {
                    Acc* own = partial + (2 * blocks + thread_index()) * stride;
                    for (int64_t block = first; block < last; ++block) {
                      Acc* dweight = args.grad_weight == nullptr ? nullptr : partial + block * stride;
                      Acc* dbias = args.grad_bias == nullptr ? nullptr : partial + (blocks + block) * stride;
                      if (dweight != nullptr) std::fill(dweight, dweight + stride, Acc(0));
                      if (dbias != nullptr) std::fill(dbias, dbias + stride, Acc(0));
                      const int64_t begin = args.rows * block / blocks, end = args.rows * (block + 1) / blocks;
                      CALL_ISA(isa, T, add_layer_norm_backward, in, begin, end, dweight, dbias, own);
                    }
                  });
    if (args.grad_weight != nullptr) {
      sum_blocks(partial, blocks, stride, args.width, static_cast<Acc*>(args.grad_weight));
    }
    if (args.grad_bias != nullptr) {
      sum_blocks(partial + blocks * stride, blocks, stride, args.width, static_cast<Acc*>(args.grad_bias));
    }
  });
}

}  // namespace glimodern
