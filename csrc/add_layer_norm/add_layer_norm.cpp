#include "glimodern/add_layer_norm.h"

#include <algorithm>

#include "add_layer_norm/kernels.h"
#include "call_isa.h"
#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

// The gradients of weight and bias are summed in blocks of at least kBlockRows rows, at most kMostBlocks, and then over
// the blocks: bounds the scratch, and does not depend on the number of threads.
constexpr int64_t kBlockRows = 16, kMostBlocks = 128;

// A row of scratch: whole vectors of every instruction set, two by two, and whole lines.
int64_t padded(int64_t width) { return (width + 31) / 32 * 32; }

template <class F>
Scratch make_wide_scratch(int64_t numbers) {
  return make_scratch(static_cast<size_t>(numbers) * (sizeof(F) / sizeof(float)));
}

template <class F>
void sum_blocks(const F* partial, int64_t blocks, int64_t stride, int64_t width, F* out) {
  std::fill(out, out + width, F(0));
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t j = 0; j < width; ++j) out[j] += partial[block * stride + j];
  }
}

}  // namespace

void add_layer_norm_forward(Dtype dtype, const AddLayerNormForward& args, int threads) {
  const Isa isa = current_isa();
  with_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    using F = Wide<T>;
    const NormForward<T> in{static_cast<const T*>(args.x),
                            static_cast<const T*>(args.residual),
                            static_cast<const F*>(args.weight),
                            static_cast<const F*>(args.bias),
                            args.eps,
                            static_cast<T*>(args.normed),
                            static_cast<T*>(args.sum),
                            static_cast<F*>(args.mean),
                            static_cast<F*>(args.rstd),
                            args.width};
    const int64_t stride = padded(args.width);
    const Scratch scratch = make_wide_scratch<F>(3 * stride * threads);
    parallel_rows(args.rows, args.width, threads, [&](int64_t begin, int64_t end) {
      F* mine = reinterpret_cast<F*>(scratch.get()) + 3 * stride * thread_index();
      CALL_ISA(isa, T, add_layer_norm_forward, in, begin, end, mine, stride);
    });
  });
}

void add_layer_norm_backward(Dtype dtype, const AddLayerNormBackward& args, int threads) {
  const Isa isa = current_isa();
  const int64_t blocks = std::min((args.rows + kBlockRows - 1) / kBlockRows, kMostBlocks);
  with_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    using F = Wide<T>;
    const NormBackward<T> in{static_cast<const T*>(args.grad_normed),
                             static_cast<const T*>(args.grad_sum),
                             static_cast<const T*>(args.sum),
                             static_cast<const F*>(args.weight),
                             static_cast<const F*>(args.mean),
                             static_cast<const F*>(args.rstd),
                             static_cast<T*>(args.grad_x),
                             args.width};
    const int64_t stride = padded(args.width);
    const Scratch scratch = make_wide_scratch<F>((2 * blocks + threads) * stride);
    F* const partial = reinterpret_cast<F*>(scratch.get());
    parallel_rows(blocks, args.rows * args.width / std::max<int64_t>(blocks, 1), threads,
                  [&](int64_t first, int64_t last) {
                    F* mine = partial + (2 * blocks + thread_index()) * stride;
                    for (int64_t block = first; block < last; ++block) {
                      F* dweight = args.grad_weight == nullptr ? nullptr : partial + block * stride;
                      F* dbias = args.grad_bias == nullptr ? nullptr : partial + (blocks + block) * stride;
                      if (dweight != nullptr) std::fill(dweight, dweight + stride, F(0));
                      if (dbias != nullptr) std::fill(dbias, dbias + stride, F(0));
                      const int64_t begin = args.rows * block / blocks, end = args.rows * (block + 1) / blocks;
                      CALL_ISA(isa, T, add_layer_norm_backward, in, begin, end, dweight, dbias, mine);
                    }
                  });
    if (args.grad_weight != nullptr) {
      sum_blocks(partial, blocks, stride, args.width, static_cast<F*>(args.grad_weight));
    }
    if (args.grad_bias != nullptr) {
      sum_blocks(partial + blocks * stride, blocks, stride, args.width, static_cast<F*>(args.grad_bias));
    }
  });
}

}  // namespace glimodern
