// A chain of operators on the rows of a packed batch, run by one call: for inference, where a short text's operators
// take less time than calling them one by one from Python.
//
// Every step reads and writes buffers [rows, width] in the chain's dtype, known by number; buffer 0 is the input. All
// lie in one workspace, which the caller provides for each run. Weights and tables are addresses that the caller keeps
// valid. Shapes are the caller's business (glimodern/ops/_chain.py).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "glimodern/attention_varlen.h"
#include "glimodern/dtype.h"
#include "glimodern/linear_packed.h"

namespace glimodern {

// What a run is about.
struct ChainCall {
  const void* input;  // [rows, width of buffer 0]
  void* workspace;    // Chain::workspace_bytes(the larger of rows and kept_rows), 64-byte aligned
  int64_t rows;
  const int32_t* cu_seqlens;  // [texts + 1]
  int64_t texts;
  std::vector<const float*> tables;  // cos, sin, cos, sin, ...: [rows, head_dim / 2] each
  const int64_t* kept;               // [kept_rows] the rows that `keep` leaves
  int64_t kept_rows;
  void* output;  // [rows or kept_rows, width of the last buffer]
  int threads;
};

class Chain {
 public:
  explicit Chain(Dtype dtype) : dtype_(dtype) {}

  int buffer(int64_t width);  // a new one; returns its number
  // dst <- act(src W^T + bias); everything of `layer` but x, y, their dtypes and rows is set.
  void linear(int src, int dst, LinearPacked layer);
  struct NormWeights {
    Dtype dtype;                // fp32 or bf16
    const void *weight, *bias;  // [width]; bias or null
    double eps;
  };
  // dst <- norm(x + residual); sum <- x + residual, which may be the residual's own buffer; residual, sum -1: none.
  void add_layer_norm(int x, int residual, int dst, int sum, NormWeights);
  // dst [rows, 2, heads, 2 half] <- the first two thirds of src [rows, 3, heads, 2 half] turned by a table.
  void rotary(int src, int dst, int table, int64_t heads, int64_t half);
  // dst <- attention of heads in q, k and v, each a buffer and the first column of its part. window < 0: none.
  struct Part {
    int buffer;
    int64_t column;
  };
  void attention(Part q, Part k, Part v, int dst, int64_t heads, int64_t head_dim, int64_t window, double scale);
  // dst <- the call's kept rows of src. Steps after `kept_from_here` work on so many rows.
  void keep(int src, int dst);
  void kept_from_here();

  int64_t workspace_bytes(int64_t rows) const;
  // The last step writes the output in place of its buffer, which no other step may use. While other processes share
  // the cores (contention.h), each thread takes a few texts through all steps, so that none waits for another between
  // steps: no row's bits depend on that.
  void run(const ChainCall&) const;

 private:
  void run_rows(const ChainCall&) const;
  void run_by_texts(const ChainCall&) const;
  struct State;
  using Step = std::function<void(const State&, const ChainCall&, int64_t rows)>;
  void add(int dst, Step step);

  Dtype dtype_;
  std::vector<int64_t> widths_;
  std::vector<int64_t> table_widths_;  // head_dim / 2, by table
  std::vector<Step> steps_;
  size_t all_rows_steps_ = SIZE_MAX;  // steps before `kept_from_here`
  int last_ = 0;
};

}  // namespace glimodern
