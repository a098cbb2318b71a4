#include "glimodern/chain.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "bf16.h"

#include "glimodern/add_layer_norm.h"
#include "glimodern/rotary.h"

namespace glimodern {
namespace {

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
