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
      for (int64_t head = 0; head < in.heads; ++head) tasks.push_back({start, end, q0, q1, head, nullptr});
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

// Parts of a backward pass's texts, of which each sums the gradients of the positions' tables.
constexpr int64_t kPositionParts = 4;

// Lays out the tables of relative positions for texts of at most max_seqlen tokens, and sets in.prepared.
Scratch prepare_positions(const AttentionKernels& kernels, int64_t max_seqlen, bool backward, int threads,
                          AttentionInputs& in) {
  in.prepared = {nullptr, 0, 0, backward};
  if (in.positions.rows == nullptr) return nullptr;
  in.prepared.half = kernels.positions.half(in, max_seqlen);
  const size_t stride = whole_lines(kernels.positions.tables(in));
  Scratch tables = make_scratch(stride * static_cast<size_t>(in.heads));
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, in.heads)));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t head = 0; head < in.heads; ++head) {
    kernels.positions.prepare(in, head, tables.get() + stride * static_cast<size_t>(head));
  }
  in.prepared.tables = tables.get();
  in.prepared.head_stride = static_cast<int64_t>(stride);
  return tables;
}

}  // namespace

#define GLIMODERN_POSITIONS(isa, half_isa, tables_isa)                                  \
  {                                                                                     \
      attention_position_half_##half_isa,       attention_position_tables_##tables_isa, \
      attention_prepare_positions_##tables_isa, attention_position_sums_##isa,          \
      attention_reduce_scratch_##isa,           attention_reduce_positions_##isa}

const AttentionKernels& attention_kernels(Dtype dtype) {
  static const AttentionKernels scalar{attention_forward_scalar,
                                       attention_backward_scalar,
                                       attention_forward_scratch_scalar,
                                       attention_backward_scratch_scalar,
                                       kTaskQueries,
                                       GLIMODERN_POSITIONS(scalar, scalar, scalar)};
#if defined(GLIMODERN_X86)
  static const AttentionKernels avx2{attention_forward_avx2,
                                     attention_backward_avx2,
                                     attention_forward_scratch_avx2,
                                     attention_backward_scratch_avx2,
                                     kTaskQueries,
                                     GLIMODERN_POSITIONS(avx2, avx2, avx2)};
  static const AttentionKernels avx512{attention_forward_avx512,
                                       attention_backward_avx512,
                                       attention_forward_scratch_avx512,
                                       attention_backward_scratch_avx512,
                                       kTaskQueries,
                                       GLIMODERN_POSITIONS(avx512, avx512, avx512)};
  const Isa isa = dtype == Dtype::fp64 ? Isa::scalar : current_isa(dtype == Dtype::bf16 ? Isa::amx : Isa::avx512);
#if defined(GLIMODERN_AVX512_BF16)
  static const AttentionKernels avx512_bf16{attention_forward_avx512_bf16,
                                            attention_backward_avx512,
                                            attention_forward_scratch_avx512,
                                            attention_backward_scratch_avx512,
                                            kTaskQueries,
                                            GLIMODERN_POSITIONS(avx512, avx512, avx512_bf16)};
  if (isa == Isa::avx512_bf16) return avx512_bf16;
#endif
#if defined(GLIMODERN_AMX)
  static const AttentionKernels amx{attention_forward_amx,
                                    attention_backward_avx512,
                                    attention_forward_scratch_amx,
                                    attention_backward_scratch_avx512,
                                    kAmxTaskQueries,
                                    GLIMODERN_POSITIONS(avx512, amx, amx)};
  if (isa == Isa::amx) return amx;
#endif
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx2) return avx2;
#endif
  return scalar;
}

void attention_varlen_forward(const AttentionInputs& inputs, void* out, void* lse, int threads) {
  const AttentionKernels& kernels = attention_kernels(inputs.dtype);
  const auto tasks = make_tasks(inputs, kernels.task_queries);
  if (tasks.empty()) return;
  AttentionInputs in = inputs;
  const Scratch tables = prepare_positions(kernels, max_seqlen(tasks), false, threads, in);
  run_tasks(tasks, in.heads, kernels.forward_scratch(in, max_seqlen(tasks)), threads,
            [&](const AttentionTask& task, float* scratch) { kernels.forward(in, task, out, lse, scratch); });
}

void attention_varlen_backward(const AttentionInputs& inputs, const AttentionGrads& grads, int threads) {
  const AttentionKernels& kernels = attention_kernels(inputs.dtype);
  auto tasks = make_tasks(inputs, inputs.tokens() + 1);
  AttentionInputs in = inputs;
  const int64_t longest = tasks.empty() ? 1 : max_seqlen(tasks);
  const Scratch tables = prepare_positions(kernels, longest, true, threads, in);
  const auto run = [&](const AttentionTask& task, float* scratch) { kernels.backward(in, task, grads, scratch); };
  const size_t scratch_floats = kernels.backward_scratch(in, longest);
  if (in.positions.rows == nullptr) {
    if (!tasks.empty()) run_tasks(tasks, in.heads, scratch_floats, threads, run);
    return;
  }
  // One thread sums the gradients of a head's tables over a fixed part of the texts, in a fixed order.
  const int64_t texts = static_cast<int64_t>(tasks.size()) / std::max<int64_t>(in.heads, 1);
  const int64_t parts = std::max<int64_t>(1, std::min(kPositionParts, texts));
  const size_t stride = whole_lines(kernels.positions.sums(in));
  const Scratch sums = make_scratch(stride * static_cast<size_t>(in.heads * parts));
  std::vector<AttentionTask> heads_parts;  // of which `head` is the head and `start` the part
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t head = 0; head < in.heads; ++head) heads_parts.push_back({part, 0, 0, 0, head, nullptr});
  }
  run_tasks(heads_parts, 1, scratch_floats, threads, [&](const AttentionTask& which, float* scratch) {
    float* const own = sums.get() + stride * static_cast<size_t>(which.head * parts + which.start);
    std::fill(own, own + stride, 0.0f);
    for (int64_t text = which.start; text < texts; text += parts) {
      AttentionTask task = tasks[static_cast<size_t>(text * in.heads + which.head)];
      task.position_sums = own;
      run(task, scratch);
    }
  });
  const auto rest = whole_lines(kernels.positions.scratch(in));
  heads_parts.resize(static_cast<size_t>(in.heads));
  run_tasks(heads_parts, 1, rest, threads, [&](const AttentionTask& which, float* scratch) {
    kernels.positions.reduce(in, grads, which.head, sums.get() + stride * static_cast<size_t>(which.head * parts),
                             parts, static_cast<int64_t>(stride), scratch);
  });
}

}  // namespace glimodern
