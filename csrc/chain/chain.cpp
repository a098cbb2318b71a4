#include "glimodern/chain.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <utility>

#include "bf16.h"
#include "contention.h"
#include "glimodern/add_layer_norm.h"
#include "glimodern/rotary.h"
#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

constexpr int64_t kPartsPerThread = 8, kLeastPartRows = 64;  // of run_by_texts

int64_t itemsize(Dtype dtype) { return dtype == Dtype::bf16 ? 2 : 4; }

// Whole lines, an odd number of them, so that buffers do not fall on the same lines of the caches.
int64_t buffer_bytes(int64_t rows, int64_t width, Dtype dtype) {
  return ((rows * width * itemsize(dtype) / 64 + 1) | 1) * 64;
}

}  // namespace

struct Chain::State {
  std::vector<char*> buffers;
  char* at(int buffer) const { return buffers[static_cast<size_t>(buffer)]; }
};

int Chain::buffer(int64_t width) {
  widths_.push_back(width);
  return static_cast<int>(widths_.size()) - 1;
}

void Chain::add(int dst, Step step) {
  steps_.push_back(std::move(step));
  last_ = dst;
}

void Chain::linear(int src, int dst, LinearPacked layer) {
  layer.x_dtype = layer.y_dtype = dtype_;
  add(dst, [=](const State& state, const ChainCall& call, int64_t rows) {
    LinearPacked in = layer;
    in.x = state.at(src), in.y = state.at(dst), in.rows = rows;
    linear_packed(in, call.threads);
  });
}

void Chain::add_layer_norm(int x, int residual, int dst, int sum, NormWeights norm) {
  const int64_t width = widths_[static_cast<size_t>(x)];
  add(dst, [=, dtype = dtype_](const State& state, const ChainCall& call, int64_t rows) {
    std::vector<float> copies;
    copies.reserve(2 * static_cast<size_t>(width));
    const auto wide = [&](const void* numbers) -> const void* {
      if (norm.dtype == Dtype::fp32 || numbers == nullptr) return numbers;
      const size_t first = copies.size();
      for (int64_t n = 0; n < width; ++n) copies.push_back(widen(static_cast<const Bf16*>(numbers)[n]));
      return copies.data() + first;
    };
    add_layer_norm_forward(
        dtype,
        {state.at(x), residual < 0 ? nullptr : state.at(residual), wide(norm.weight), wide(norm.bias), norm.eps,
         state.at(dst), sum < 0 ? nullptr : state.at(sum), nullptr, nullptr, rows, width},
        call.threads);
  });
}

void Chain::rotary(int src, int dst, int table, int64_t heads, int64_t half) {
  const int64_t width = 2 * heads * half;
  if (table_widths_.size() <= static_cast<size_t>(table)) table_widths_.resize(static_cast<size_t>(table) + 1);
  table_widths_[static_cast<size_t>(table)] = half;
  add(dst, [=, dtype = dtype_](const State& state, const ChainCall& call, int64_t rows) {
    const size_t cos = 2 * static_cast<size_t>(table);
    glimodern::rotary(dtype, state.at(src), call.tables[cos], call.tables[cos + 1], state.at(dst),
                      {rows, 2, heads, half, 3 * width, width, 2 * half, false}, call.threads);
  });
}

void Chain::attention(Part q, Part k, Part v, int dst, int64_t heads, int64_t head_dim, int64_t window, double scale) {
  const auto width = [this](const Part& part) { return widths_[static_cast<size_t>(part.buffer)]; };
  const int64_t q_row = width(q), k_row = width(k), v_row = width(v);
  add(dst, [=, dtype = dtype_](const State& state, const ChainCall& call, int64_t) {
    const auto rows_of = [&](const Part& part, int64_t row) {
      return AttentionRows{state.at(part.buffer) + part.column * itemsize(dtype), row, head_dim};
    };
    AttentionInputs in{};
    in.q = rows_of(q, q_row), in.k = rows_of(k, k_row), in.v = rows_of(v, v_row);
    in.dtype = dtype;
    in.cu_seqlens = call.cu_seqlens;
    in.texts = call.texts, in.heads = heads, in.head_dim = head_dim;
    in.window = window < 0 ? std::numeric_limits<int32_t>::max() : window;
    in.scale = scale;
    in.keep_scale = 1.0;
    attention_varlen_forward(in, state.at(dst), nullptr, call.threads);
  });
}

void Chain::keep(int src, int dst) {
  const int64_t bytes = widths_[static_cast<size_t>(src)] * itemsize(dtype_);
  add(dst, [=](const State& state, const ChainCall& call, int64_t) {
    const char* from = state.at(src);
    char* to = state.at(dst);
    for (int64_t r = 0; r < call.kept_rows; ++r, to += bytes) std::memcpy(to, from + call.kept[r] * bytes, bytes);
  });
}

void Chain::kept_from_here() { all_rows_steps_ = steps_.size(); }

int64_t Chain::workspace_bytes(int64_t rows) const {
  int64_t bytes = 0;
  for (int64_t width : widths_) bytes += buffer_bytes(rows, width, dtype_);
  return bytes;
}

void Chain::run(const ChainCall& call) const {
  int64_t longest = 0;
  for (int64_t n = 0; n < call.texts; ++n) {
    longest = std::max<int64_t>(longest, call.cu_seqlens[n + 1] - call.cu_seqlens[n]);
  }
  // A text is one thread's: where it has more than twice a fair share of the rows, the others would wait for it.
  if (call.threads > 1 && call.texts > 1 && longest * call.threads <= 2 * call.rows && short_waits()) {
    run_by_texts(call);
  } else {
    run_rows(call);
  }
}

void Chain::run_by_texts(const ChainCall& call) const {
  struct Part {
    int64_t first_text, texts;
    std::vector<int32_t> cu_seqlens;
    std::vector<int64_t> kept, places;  // rows of the part, and where they go in the output
  };
  const bool keeps = all_rows_steps_ < steps_.size();
  const int64_t share = std::max(call.rows / (kPartsPerThread * call.threads), kLeastPartRows);
  std::vector<Part> parts;
  std::vector<int64_t> ends;  // rows before the end of each part
  int64_t most = 0;
  for (int64_t text = 0, first = 0; text < call.texts; first = text) {
    const int32_t start = call.cu_seqlens[first];
    Part part{first, 0, {0}, {}, {}};
    do {
      part.cu_seqlens.push_back(call.cu_seqlens[++text] - start);
    } while (text < call.texts && part.cu_seqlens.back() < share);
    part.texts = text - first;
    most = std::max<int64_t>(most, part.cu_seqlens.back());
    ends.push_back(call.cu_seqlens[text]);
    parts.push_back(std::move(part));
  }
  for (int64_t n = 0; keeps && n < call.kept_rows; ++n) {
    const auto end = std::upper_bound(ends.begin(), ends.end(), call.kept[n]);
    Part& part = parts[static_cast<size_t>(end - ends.begin())];
    part.kept.push_back(call.kept[n] - call.cu_seqlens[part.first_text]);
    part.places.push_back(n);
    most = std::max<int64_t>(most, static_cast<int64_t>(part.kept.size()));
  }
  const int64_t in_bytes = widths_.front() * itemsize(dtype_);
  const int64_t out_bytes = widths_[static_cast<size_t>(last_)] * itemsize(dtype_);
  const auto floats = [](int64_t bytes) { return whole_lines(static_cast<size_t>(bytes) / sizeof(float) + 1); };
  const size_t workspace = floats(workspace_bytes(most)), output = keeps ? floats(most * out_bytes) : 0;
  const int threads = static_cast<int>(std::min<size_t>(static_cast<size_t>(call.threads), parts.size()));
  const Scratch scratch = make_scratch((workspace + output) * static_cast<size_t>(threads));
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (size_t n = 0; n < parts.size(); ++n) {
    const Part& part = parts[n];
    const int64_t first = call.cu_seqlens[part.first_text];
    float* const own = scratch.get() + (workspace + output) * static_cast<size_t>(thread_index());
    ChainCall mine = call;
    mine.input = static_cast<const char*>(call.input) + first * in_bytes;
    mine.workspace = own;
    mine.rows = part.cu_seqlens.back();
    mine.cu_seqlens = part.cu_seqlens.data();
    mine.texts = part.texts;
    for (size_t t = 0; t < mine.tables.size(); ++t) mine.tables[t] += first * table_widths_[t / 2];
    mine.kept = part.kept.data();
    mine.kept_rows = static_cast<int64_t>(part.kept.size());
    char* const whole = static_cast<char*>(call.output);
    char* const out = keeps ? reinterpret_cast<char*>(own + workspace) : whole + first * out_bytes;
    mine.output = out;
    mine.threads = 1;
    try {
      run_rows(mine);
    } catch (...) {
#pragma omp critical(chain_error)
      error = std::current_exception();
    }
    for (size_t k = 0; k < part.places.size(); ++k) {
      const size_t row = static_cast<size_t>(out_bytes);
      std::memcpy(whole + static_cast<size_t>(part.places[k]) * row, out + k * row, row);
    }
  }
  if (error) std::rethrow_exception(error);
}

void Chain::run_rows(const ChainCall& call) const {
  State state;
  char* next = static_cast<char*>(call.workspace);
  for (int64_t width : widths_) {
    state.buffers.push_back(next);
    next += buffer_bytes(std::max(call.rows, call.kept_rows), width, dtype_);
  }
  state.buffers.front() = static_cast<char*>(const_cast<void*>(call.input));
  state.buffers[static_cast<size_t>(last_)] = static_cast<char*>(call.output);
  for (size_t n = 0; n < steps_.size(); ++n) steps_[n](state, call, n < all_rows_steps_ ? call.rows : call.kept_rows);
}

}  // namespace glimodern
