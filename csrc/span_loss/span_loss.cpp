#include "glimodern/span_loss.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "scratch.h"
#include "span_loss/kernels.h"
#include "threads.h"

namespace glimodern {
namespace {

constexpr int64_t kBlockValues = int64_t{1} << 18;  // logits of a block at most: 1 MB; a single word may exceed it
constexpr int64_t kBatchValues = int64_t{1} << 21;  // logits in scratch at a time: 8 MB

struct Positive {
  int64_t k, type_id;
  bool operator<(const Positive& other) const { return k != other.k ? k < other.k : type_id < other.type_id; }
  bool operator==(const Positive& other) const { return k == other.k && type_id == other.type_id; }
};

// The distinct positives, by word: those of word i are list[starts[i] .. starts[i + 1]).
struct Positives {
  std::vector<int64_t> starts;
  std::vector<Positive> list;
};

Positives sort_positives(const SpanInputs& in, const int64_t* rows, int64_t count) {
  Positives out;
  out.starts.assign(static_cast<size_t>(in.words) + 1, 0);
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [rows](int64_t p, int64_t q) {
    return std::lexicographical_compare(rows + 3 * p, rows + 3 * p + 3, rows + 3 * q, rows + 3 * q + 3);
  });
  out.list.reserve(order.size());
  const int64_t* previous = nullptr;
  for (int64_t p : order) {
    const int64_t* row = rows + 3 * p;
    if (previous != nullptr && std::equal(row, row + 3, previous)) continue;
    previous = row;
    out.list.push_back({row[1], row[2]});
    ++out.starts[static_cast<size_t>(row[0]) + 1];
  }
  for (size_t i = 1; i < out.starts.size(); ++i) out.starts[i] += out.starts[i - 1];
  return out;
}

// The loss of one word with logits z [widths, types]; with_grad: z <- d loss / d z. For the pass over the negatives,
// positives get logit -inf, where loss and slope of a negative are 0.
template <class Acc>
double word_loss(const SpanKernelsOf<Acc>& kernels, const WordBlock& block, int64_t widths, const Positive* begin,
                 const Positive* end, const FocalParams& params, bool with_grad, Acc* z, std::vector<Acc>& slopes) {
  double loss = 0.0;
  slopes.clear();
  for (const Positive* p = begin; p != end; ++p) {
    Acc& logit = z[p->k * block.types + p->type_id - block.first_type];
    const FocalPoint<Acc> point = focal_point(-logit, params.gamma);
    loss += params.positive_weight * point.loss;
    slopes.push_back(static_cast<Acc>(-params.positive_weight * point.slope));
    logit = -std::numeric_limits<Acc>::infinity();
  }
  loss += kernels.focal_negatives(z, widths * block.types, params, with_grad);
  for (const Positive* p = begin; with_grad && p != end; ++p) {
    z[p->k * block.types + p->type_id - block.first_type] = slopes[static_cast<size_t>(p - begin)];
  }
  return loss;
}

}  // namespace

template <class Acc>
double span_loss(const SpanInputs& in, const int64_t* rows, int64_t count, const FocalParams& params,
                 const SpanGradsOf<Acc>* grads, int threads) {
  const SpanKernelsOf<Acc>& kernels = span_kernels(Acc{});
  const Positives positives = sort_positives(in, rows, count);
  std::vector<WordBlock> blocks = word_blocks(in, kBlockWords, kBlockValues, true);

  // Batches: consecutive blocks whose logits fit the scratch together.
  std::vector<size_t> batches{0};
  int64_t used = 0, max_used = 0;
  for (size_t n = 0; n < blocks.size(); ++n) {
    const int64_t size = (blocks[n].last - blocks[n].first) * blocks[n].stride;
    if (used > 0 && used + size > kBatchValues) {
      batches.push_back(n);
      used = 0;
    }
    blocks[n].offset = used;
    used += size;
    max_used = std::max(max_used, used);
  }
  batches.push_back(blocks.size());

  std::unique_ptr<Acc[]> values(new Acc[static_cast<size_t>(max_used)]);
  const size_t stride = whole_lines(kernels.scratch_floats);
  const Scratch scratch = make_scratch(stride * static_cast<size_t>(threads));
  std::vector<std::vector<Acc>> slopes(static_cast<size_t>(threads));
  int64_t max_positives = 0;
  for (int64_t i = 0; i < in.words; ++i) {
    max_positives = std::max(max_positives,
                             positives.starts[static_cast<size_t>(i) + 1] - positives.starts[static_cast<size_t>(i)]);
  }
  for (auto& list : slopes)
    list.reserve(static_cast<size_t>(max_positives));  // no exception may leave the parallel region
  std::vector<double> losses(static_cast<size_t>(in.words), 0.0);

  for (size_t batch = 0; batch + 1 < batches.size(); ++batch) {
    const int64_t begin = static_cast<int64_t>(batches[batch]), end = static_cast<int64_t>(batches[batch + 1]);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t n = begin; n < end; ++n) {
      const WordBlock& block = blocks[static_cast<size_t>(n)];
      const size_t thread = static_cast<size_t>(thread_index());
      kernels.score_block(in, block, values.get(), scratch.get() + stride * thread);
      for (int64_t i = block.first; i < block.last; ++i) {
        const size_t word = static_cast<size_t>(i);
        losses[word] =
            word_loss(kernels, block, block.widths(i, in.max_width), positives.list.data() + positives.starts[word],
                      positives.list.data() + positives.starts[word + 1], params, grads != nullptr,
                      values.get() + block.offset + (i - block.first) * block.stride, slopes[thread]);
      }
    }
    if (grads != nullptr) {
      span_gradients(in, blocks, batches[batch], batches[batch + 1], values.get(), *grads, scratch.get(), threads);
    }
  }
  double total = 0.0;
  for (double loss : losses) total += loss;
  return total;
}

template double span_loss(const SpanInputs&, const int64_t*, int64_t, const FocalParams&, const SpanGrads*, int);
template double span_loss(const SpanInputs&, const int64_t*, int64_t, const FocalParams&, const SpanGradsOf<double>*,
                          int);

}  // namespace glimodern
