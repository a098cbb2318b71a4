#include "glimodern/attention_varlen.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "attention_varlen/kernels.h"
#include "glimodern/isa.h"
#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

// Longest texts first, so that dynamic scheduling ends evenly. A text's heads are consecutive, since they share cache
// lines.
std::vector<AttentionTask> make_tasks(const AttentionInputs& in, int64_t queries) {
  std::vector<int64_t> order(static_cast<size_t>(in.texts));
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto length = [&in](int64_t text) { return in.cu_seqlens[text + 1] - in.cu_seqlens[text]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return length(x) > length(y); });
  std::vector<AttentionTask> tasks;
  for (int64_t text : order) {
    const int64_t start = in.cu_seqlens[text], end = in.cu_seqlens[text + 1];
    if (start == end) break;
    const int64_t blocks = (end - start - 1) / queries + 1;
    for (int64_t n = 0; n < blocks; ++n) {
      const int64_t q0 = start + (end - start) * n / blocks, q1 = start + (end - start) * (n + 1) / blocks;
      for (int64_t head = 0; head < in.heads; ++head) tasks.push_back({start, end, q0, q1, head});
    }
  }
  return tasks;
}

template <class Run>  // run(task, scratch)
void run_tasks(const std::vector<AttentionTask>& tasks, int64_t heads, size_t scratch_floats, int threads,
               const Run& run) {
  const int64_t count = static_cast<int64_t>(tasks.size());
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));
  const size_t stride = whole_lines(scratch_floats);
  const Scratch scratch = make_scratch(stride * static_cast<size_t>(threads));
  // A thread takes consecutive heads of a text and prefetches the next head while it works (pack.h).
  const int chunk = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(heads, count / (8 * threads))));
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) {
    run(tasks[static_cast<size_t>(n)], scratch.get() + stride * static_cast<size_t>(thread_index()));
  }
}

int64_t max_seqlen(const std::vector<AttentionTask>& tasks) { return tasks.front().end - tasks.front().start; }

}  // namespace

const AttentionKernels& attention_kernels(Dtype dtype) {
  static const AttentionKernels scalar{attention_forward_scalar, attention_backward_scalar,
                                       attention_forward_scratch_scalar, attention_backward_scratch_scalar,
                                       kTaskQueries};
#if defined(GLIMODERN_X86)
  static const AttentionKernels avx2{attention_forward_avx2, attention_backward_avx2, attention_forward_scratch_avx2,
                                     attention_backward_scratch_avx2, kTaskQueries};
  static const AttentionKernels avx512{attention_forward_avx512, attention_backward_avx512,
                                       attention_forward_scratch_avx512, attention_backward_scratch_avx512,
                                       kTaskQueries};
  const Isa isa = dtype == Dtype::fp64 ? Isa::scalar : current_isa(dtype == Dtype::bf16 ? Isa::amx : Isa::avx512);
#if defined(GLIMODERN_AVX512_BF16)
  static const AttentionKernels avx512_bf16{attention_forward_avx512_bf16, attention_backward_avx512,
                                            attention_forward_scratch_avx512, attention_backward_scratch_avx512,
                                            kTaskQueries};
  if (isa == Isa::avx512_bf16) return avx512_bf16;
#endif
#if defined(GLIMODERN_AMX)
  static const AttentionKernels amx{attention_forward_amx, attention_backward_avx512, attention_forward_scratch_amx,
                                    attention_backward_scratch_avx512, kAmxTaskQueries};
  if (isa == Isa::amx) return amx;
#endif
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx2) return avx2;
#endif
  return scalar;
}

void attention_varlen_forward(const AttentionInputs& in, void* out, void* lse, int threads) {
  const AttentionKernels& kernels = attention_kernels(in.dtype);
  const auto tasks = make_tasks(in, kernels.task_queries);
  if (tasks.empty()) return;
  run_tasks(tasks, in.heads, kernels.forward_scratch(in, max_seqlen(tasks)), threads,
            [&](const AttentionTask& task, float* scratch) { kernels.forward(in, task, out, lse, scratch); });
}

void attention_varlen_backward(const AttentionInputs& in, const AttentionGrads& grads, int threads) {
  const AttentionKernels& kernels = attention_kernels(in.dtype);
  const auto tasks = make_tasks(in, in.tokens() + 1);
  if (tasks.empty()) return;
  run_tasks(tasks, in.heads, kernels.backward_scratch(in, max_seqlen(tasks)), threads,
            [&](const AttentionTask& task, float* scratch) { kernels.backward(in, task, grads, scratch); });
}

}  // namespace glimodern
