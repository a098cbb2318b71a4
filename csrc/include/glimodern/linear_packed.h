// linear_packed: y = act(x W^T + bias) with a weight that was packed once, for inference.
//
// The weight lies in panels of kPanelColumns outputs; a panel holds, group after group of inputs, one line of 64 bytes:
// 4 bytes of each of its outputs. These are one input in fp32, two in bf16, or four in int8. Inputs are padded with
// zeros to a multiple of 2 groups (at least 2), outputs to whole panels (glimodern/ops/_linear_packed.py packs).
//
// bf16: x is rounded to bf16 too; the products of two bf16 numbers are exact, and their sums fp32.
//
// int8: a row is quantised to 0..255 between its smallest and its largest number (0 is always among them, and exact):
// q = round(x / row scale) + zero, and y = act(sum * (row scale * scale) + bias) with the exact sum of
// (q - zero) * weight in int32, taken as that of q * weight less zero * the sum of weights. No run of 8 inputs has
// pairs of weights whose 16-bit sums could overflow: see reference/linear_packed.py.
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

constexpr int64_t kPanelColumns = 16;

// geglu: gelu(first half) * second half of the products, which lie in the panels 8 by 8: a panel holds 8 of the first
// half and the 8 of the second that they meet.
enum class Activation { none, relu, gelu, geglu };
enum class WeightDtype { fp32, bf16, int8 };

struct LinearPacked {
  Dtype x_dtype, y_dtype;         // fp32 or bf16
  const void* x;                  // [rows, inputs], contiguous
  void* y;                        // [rows, outputs], contiguous
  int64_t rows, inputs, outputs;  // outputs: y's; geglu has two products for each
  WeightDtype weight_dtype;
  const void* weight;         // panels
  const float* input_scale;   // [inputs] x is multiplied by these first, int8 only; null: by nothing
  const float* scale;         // [16 * panels], int8 only
  const int32_t* weight_sum;  // [16 * panels] sum of an output's weights, int8 only
  const float* bias;          // [16 * panels]
  Activation activation;
};

// A row with a NaN or an infinity: NaN throughout in int8, as arithmetic has it in fp32. The same bits for every number
// of threads; in int8, gelu aside, for every instruction set too. (AVX-512 BF16 and AMX take numbers below 2^-126 for
// 0, where x or y is bf16.)
void linear_packed(const LinearPacked&, int threads);

// Whether VNNI may be used where the machine has it (it may by default); its results are the same.
void allow_vnni(bool allowed);

}  // namespace glimodern
