// linear_packed: y = act(x W^T + bias + z B^T) for inference, with a weight that was packed once.
//
// The weight is stored in panels of kPanelColumns outputs. A panel holds one line of 64 bytes per group of inputs: 4
// bytes for each of its outputs. A group is one input in fp32, two in bf16, four in int8. Inputs are padded with zeros
// to a multiple of 2 groups (at least 2), outputs to whole panels. glimodern/ops/_linear_packed.py packs.
//
// bf16: x is rounded to bf16 too. The product of two bf16 values is exact in fp32; sums are fp32.
//
// int8: each row of x is quantised to 0..255 between its minimum and its maximum, a range that always includes 0, which
// is exact: q = round(x / row_scale) + zero_point. y = act(sum * (row_scale * scale) + bias), where sum is the exact
// int32 sum of (q - zero_point) * weight, computed as the sum of q * weight minus zero_point * the sum of weights. The
// packed weights keep the 16-bit sums of any 8 consecutive inputs from overflow: see reference/linear_packed.py.
//
// z B^T is a low-rank update of the products (LoRA: z = x A^T), in fp32 for every W. It is summed in the epilogue,
// because its rank is small: as a product of its own it would write and read as much memory as y.
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

constexpr int64_t kPanelColumns = 16;

// gelu_tanh: x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), the tanh approximation of gelu. The gated ones multiply an
// activation of the first half of the products with the second half: geglu by gelu, geglu_tanh by gelu_tanh, swiglu by
// silu(x) = x * sigmoid(x). A panel then holds 8 outputs of the first half and the 8 of the second half that they are
// multiplied with.
enum class Activation { none, relu, gelu, gelu_tanh, geglu, geglu_tanh, swiglu };
static constexpr bool is_gated(Activation activation) { return activation >= Activation::geglu; }
enum class WeightDtype { fp32, bf16, int8 };

struct LowRank {
  int64_t rank = 0;               // 0: no update
  const void* z = nullptr;        // [rows, rank], contiguous, in y_dtype
  const float* weight = nullptr;  // panels of B in fp32, one for each panel of W
};

struct LinearPacked {
  Dtype x_dtype, y_dtype;         // fp32 or bf16
  const void* x;                  // [rows, inputs], contiguous
  void* y;                        // [rows, outputs], contiguous
  int64_t rows, inputs, outputs;  // outputs: columns of y; gated: of two products each
  WeightDtype weight_dtype;
  const void* weight;         // panels
  const float* input_scale;   // int8 only: [inputs], multiplies x before quantisation; or null
  const float* scale;         // int8 only: [16 * panels]
  const int32_t* weight_sum;  // int8 only: [16 * panels], the sum of an output's weights
  const float* bias;          // [16 * panels]
  Activation activation;
  LowRank low_rank;
};

// In int8, a row with a NaN or an infinity gives NaN in all outputs. The result has the same bits for every number of
// threads, and in int8, without an update and with no activation or relu, for every instruction set. AVX-512 BF16 and
// AMX treat values of magnitude below 2^-126 as 0 where x or y is bf16.
void linear_packed(const LinearPacked&, int threads);

// Whether VNNI may be used if the machine has it; true by default. Results are the same.
void allow_vnni(bool allowed);

}  // namespace glimodern
