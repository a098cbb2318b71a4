#include "glimodern/chain.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <utility>

#include "contention.h"
#include "glimodern/add_layer_norm.h"
#include "glimodern/rotary.h"
#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

constexpr int64_t kGroupsPerThread = 8, kMinGroupRows = 64;  // of run_by_texts

int64_t itemsize(Dtype dtype) { return dtype == Dtype::bf16 ? 2 : 4; }

// An odd number of whole cache lines, so that the rows of different buffers do not map to the same cache sets.
int64_t buffer_bytes(int64_t rows, int64_t width, Dtype dtype) {
  return ((rows * width * itemsize(dtype) / 64 + 1) | 1) * 64;
}

}  // namespace

struct Chain::Buffers {
  std::vector<char*> addresses;
  char* at(int buffer) const { return addresses[static_cast<size_t>(buffer)]; }
};

int Chain::buffer(int64_t width) {
  widths_.push_back(width);
  return static_cast<int>(widths_.size()) - 1;
}

void Chain::add(int dst, Step step) {
  steps_.push_back(std::move(step));
  last_ = dst;
}

void Chain::linear(int src, int dst, LinearPacked layer, int z) {
  layer.x_dtype = layer.y_dtype = dtype_;
  add(dst, [=](const Buffers& buffers, const ChainCall& call, int64_t rows) {
    LinearPacked in = layer;
    in.x = buffers.at(src), in.y = buffers.at(dst), in.rows = rows;
    if (z >= 0) in.low_rank.z = buffers.at(z);
    linear_packed(in, call.threads);
  });
}

void Chain::add_layer_norm(int x, int residual, int dst, int sum, NormWeights norm) {
  const int64_t width = widths_[static_cast<size_t>(x)];
  add(dst, [=, dtype = dtype_](const Buffers& buffers, const ChainCall& call, int64_t rows) {
    add_layer_norm_forward(
        dtype,
        {buffers.at(x), residual < 0 ? nullptr : buffers.at(residual), norm.dtype, norm.weight, norm.bias, norm.eps,
         buffers.at(dst), sum < 0 ? nullptr : buffers.at(sum), nullptr, nullptr, rows, width, norm.rms},
        call.threads);
  });
}

void Chain::rotary(Columns src, int dst, int table, int64_t heads, int64_t half) {
  const int64_t row = widths_[static_cast<size_t>(src.buffer)];
  if (table_widths_.size() <= static_cast<size_t>(table)) table_widths_.resize(static_cast<size_t>(table) + 1);
  table_widths_[static_cast<size_t>(table)] = half;
  add(dst, [=, dtype = dtype_](const Buffers& buffers, const ChainCall& call, int64_t rows) {
    const size_t cos = 2 * static_cast<size_t>(table);
    glimodern::rotary(dtype, buffers.at(src.buffer) + src.first * itemsize(dtype), call.tables[cos],
                      call.tables[cos + 1], buffers.at(dst), {rows, 1, heads, half, row, row, 2 * half, false},
                      call.threads);
  });
}

void Chain::repeat_heads(int src, int dst, int64_t heads, int64_t repeats) {
  const int64_t width = widths_[static_cast<size_t>(src)];
  const size_t bytes = static_cast<size_t>(width / heads * itemsize(dtype_));
  add(dst, [=](const Buffers& buffers, const ChainCall& call, int64_t rows) {
    const char* const from = buffers.at(src);
    char* const to = buffers.at(dst);
    parallel_rows(rows * heads, width / heads * repeats, call.threads, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin * repeats; n < end * repeats; ++n) {
        std::memcpy(to + static_cast<size_t>(n) * bytes, from + static_cast<size_t>(n / repeats) * bytes, bytes);
      }
    });
  });
}

void Chain::attention(Columns q, Columns k, Columns v, int dst, int64_t heads, int64_t head_dim, int64_t window,
                      double scale, Positions positions) {
  const auto width = [this](const Columns& columns) { return widths_[static_cast<size_t>(columns.buffer)]; };
  const int64_t q_row = width(q), k_row = width(k), v_row = width(v);
  add(dst, [=, dtype = dtype_](const Buffers& buffers, const ChainCall& call, int64_t) {
    const auto rows_of = [&](const Columns& columns, int64_t row) {
      return AttentionRows{buffers.at(columns.buffer) + columns.first * itemsize(dtype), row, head_dim};
    };
    AttentionInputs in{};
    in.q = rows_of(q, q_row), in.k = rows_of(k, k_row), in.v = rows_of(v, v_row);
    in.dtype = dtype;
    in.cu_seqlens = call.cu_seqlens;
    in.texts = call.texts, in.heads = heads, in.head_dim = head_dim;
    in.window = window < 0 ? std::numeric_limits<int32_t>::max() : window;
    in.scale = scale;
    in.dropout.keep_scale = 1.0;
    in.positions = positions;
    attention_varlen_forward(in, buffers.at(dst), nullptr, call.threads);
  });
}

void Chain::keep(int src, int dst) {
  const int64_t bytes = widths_[static_cast<size_t>(src)] * itemsize(dtype_);
  add(dst, [=](const Buffers& buffers, const ChainCall& call, int64_t) {
    const char* from = buffers.at(src);
    char* to = buffers.at(dst);
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
  // run_by_texts gives each text to one thread. The others would wait for a text of more than twice the mean share.
  if (call.threads > 1 && call.texts > 1 && longest * call.threads <= 2 * call.rows && short_waits()) {
    run_by_texts(call);
  } else {
    run_rows(call);
  }
}

void Chain::run_by_texts(const ChainCall& call) const {
  struct Group {  // consecutive texts that one thread takes through all steps
    int64_t first_text, texts;
    std::vector<int32_t> cu_seqlens;
    std::vector<int64_t> kept, output_rows;  // rows of the group, and their rows in the output
  };
  const bool keeps = all_rows_steps_ < steps_.size();
  const int64_t min_rows = std::max(call.rows / (kGroupsPerThread * call.threads), kMinGroupRows);
  std::vector<Group> groups;
  std::vector<int64_t> ends;  // rows before the end of each group
  int64_t max_rows = 0;
  for (int64_t text = 0, first = 0; text < call.texts; first = text) {
    const int32_t start = call.cu_seqlens[first];
    Group group{first, 0, {0}, {}, {}};
    do {
      group.cu_seqlens.push_back(call.cu_seqlens[++text] - start);
    } while (text < call.texts && group.cu_seqlens.back() < min_rows);
    group.texts = text - first;
    max_rows = std::max<int64_t>(max_rows, group.cu_seqlens.back());
    ends.push_back(call.cu_seqlens[text]);
    groups.push_back(std::move(group));
  }
  for (int64_t n = 0; keeps && n < call.kept_rows; ++n) {
    const auto end = std::upper_bound(ends.begin(), ends.end(), call.kept[n]);
    Group& group = groups[static_cast<size_t>(end - ends.begin())];
    group.kept.push_back(call.kept[n] - call.cu_seqlens[group.first_text]);
    group.output_rows.push_back(n);
    max_rows = std::max<int64_t>(max_rows, static_cast<int64_t>(group.kept.size()));
  }
  const int64_t in_bytes = widths_.front() * itemsize(dtype_);
  const int64_t out_bytes = widths_[static_cast<size_t>(last_)] * itemsize(dtype_);
  const auto floats = [](int64_t bytes) { return whole_lines(static_cast<size_t>(bytes) / sizeof(float) + 1); };
  const size_t workspace = floats(workspace_bytes(max_rows)), output = keeps ? floats(max_rows * out_bytes) : 0;
  const int threads = static_cast<int>(std::min<size_t>(static_cast<size_t>(call.threads), groups.size()));
  const Scratch scratch = make_scratch((workspace + output) * static_cast<size_t>(threads));
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (size_t n = 0; n < groups.size(); ++n) {
    const Group& group = groups[n];
    const int64_t first = call.cu_seqlens[group.first_text];
    float* const group_scratch = scratch.get() + (workspace + output) * static_cast<size_t>(thread_index());
    ChainCall group_call = call;
    group_call.input = static_cast<const char*>(call.input) + first * in_bytes;
    group_call.workspace = group_scratch;
    group_call.rows = group.cu_seqlens.back();
    group_call.cu_seqlens = group.cu_seqlens.data();
    group_call.texts = group.texts;
    for (size_t t = 0; t < group_call.tables.size(); ++t) group_call.tables[t] += first * table_widths_[t / 2];
    group_call.kept = group.kept.data();
    group_call.kept_rows = static_cast<int64_t>(group.kept.size());
    char* const whole = static_cast<char*>(call.output);
    char* const out = keeps ? reinterpret_cast<char*>(group_scratch + workspace) : whole + first * out_bytes;
    group_call.output = out;
    group_call.threads = 1;
    try {
      run_rows(group_call);
    } catch (...) {
#pragma omp critical(chain_error)
      error = std::current_exception();
    }
    for (size_t k = 0; k < group.output_rows.size(); ++k) {
      const size_t row = static_cast<size_t>(out_bytes);
      std::memcpy(whole + static_cast<size_t>(group.output_rows[k]) * row, out + k * row, row);
    }
  }
  if (error) std::rethrow_exception(error);
}

void Chain::run_rows(const ChainCall& call) const {
  Buffers buffers;
  char* next = static_cast<char*>(call.workspace);
  for (int64_t width : widths_) {
    buffers.addresses.push_back(next);
    next += buffer_bytes(std::max(call.rows, call.kept_rows), width, dtype_);
  }
  buffers.addresses.front() = static_cast<char*>(const_cast<void*>(call.input));
  buffers.addresses[static_cast<size_t>(last_)] = static_cast<char*>(call.output);
  for (size_t n = 0; n < steps_.size(); ++n) steps_[n](buffers, call, n < all_rows_steps_ ? call.rows : call.kept_rows);
}

}  // namespace glimodern
