// A chain of operators on the rows of a packed batch, run by one call. For inference, where the operators on a short
// text take less time than their calls from Python.
//
// Steps read and write numbered buffers [rows, width] in the chain's dtype; buffer 0 is the input. All other buffers
// lie in a workspace that the caller provides for each run. Weights and tables are addresses that the caller keeps
// valid; the chain reads them at each run and copies nothing. glimodern/ops/_chain.py checks shapes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "glimodern/attention_varlen.h"
#include "glimodern/dtype.h"
#include "glimodern/linear_packed.h"

namespace glimodern {

// The arguments of a run.
struct ChainCall {
  const void* input;  // [rows, width of buffer 0]
  void* workspace;    // Chain::workspace_bytes(max(rows, kept_rows)), 64-byte aligned
  int64_t rows;
  const int32_t* cu_seqlens;  // [texts + 1]
  int64_t texts;
  std::vector<const float*> tables;  // cos, sin, cos, sin, ...: [rows, head_dim / 2] each
  const int64_t* kept;               // [kept_rows] the rows that `keep` selects
  int64_t kept_rows;
  void* output;  // [rows or kept_rows, width of the last buffer]
  int threads;
};

class Chain {
 public:
  explicit Chain(Dtype dtype) : dtype_(dtype) {}

  int buffer(int64_t width);  // adds a buffer and returns its number
  // dst <- act(src W^T + bias + z B^T). The caller sets all of `layer` but x, y, their dtypes, rows and z. z: a buffer
  // of `rank` columns; -1: no low-rank update.
  void linear(int src, int dst, LinearPacked layer, int z);
  struct NormWeights {
    Dtype dtype;                // fp32 or bf16
    const void *weight, *bias;  // [width]; bias may be null
    double eps;
    bool rms;
  };
  // dst <- norm(x + residual); sum <- x + residual. sum may be the residual's buffer; -1 for residual or sum: none.
  void add_layer_norm(int x, int residual, int dst, int sum, NormWeights);
  // Columns of a buffer from `first` on.
  struct Columns {
    int buffer;
    int64_t first;
  };
  // dst [rows, heads, 2 half] <- as many columns of src, rotated by a table's angles.
  void rotary(Columns src, int dst, int table, int64_t heads, int64_t half);
  // dst [rows, heads, repeats, head_dim] <- each head of src [rows, heads, head_dim] `repeats` times: the keys or
  // values of grouped queries.
  void repeat_heads(int src, int dst, int64_t heads, int64_t repeats);
  // dst <- attention of q, k and v, each `heads * head_dim` columns. window < 0: none. positions.rows null: no terms.
  void attention(Columns q, Columns k, Columns v, int dst, int64_t heads, int64_t head_dim, int64_t window,
                 double scale, Positions positions);
  // dst <- the kept rows of src.
  void keep(int src, int dst);
  // Steps added from now on work on kept_rows rows.
  void kept_from_here();

  int64_t workspace_bytes(int64_t rows) const;
  // The last step writes to the output in place of its buffer, which no other step may use. While other processes share
  // the cores (contention.h), each thread takes a few texts through all steps, so that no thread waits for another
  // between steps. The bits of a row do not depend on that.
  void run(const ChainCall&) const;

 private:
  void run_rows(const ChainCall&) const;
  void run_by_texts(const ChainCall&) const;
  struct Buffers;
  using Step = std::function<void(const Buffers&, const ChainCall&, int64_t rows)>;
  void add(int dst, Step step);

  Dtype dtype_;
  std::vector<int64_t> widths_;        // by buffer
  std::vector<int64_t> table_widths_;  // head_dim / 2, by table
  std::vector<Step> steps_;
  size_t all_rows_steps_ = SIZE_MAX;  // steps before `kept_from_here`
  int last_ = 0;                      // buffer of the last step
};

}  // namespace glimodern
