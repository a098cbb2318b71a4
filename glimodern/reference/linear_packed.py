"""int8 linear layers: how weights and rows are quantised, and the product."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoder import geglu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x, "relu": torch.relu, "gelu": F.gelu, "geglu": geglu
}  # fmt: skip
STEPS = 255
"""Of a quantised row, from its smallest number, or 0, to its largest, or 0."""
LEAST_ROW_RANGE = 1e-30
"""These count as so far apart at least, so that 255 / it is finite: rows below come out as the bias."""


def sum_groups(weight: Tensor) -> Tensor:
    """[o, i], i a multiple of 8 -> [o, i / 4, 4]: the inputs whose products the kernels add in 16 bits.

    Of 8 neighbours these are 0, 1, 4, 5 and 2, 3, 6, 7.
    """
    return weight.unflatten(1, (-1, 2, 2, 2)).transpose(2, 3).flatten(3).flatten(1, 2)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [o, i] -> (int8 [o, i], scale fp32 [o]), symmetric, one scale an output.

    The scale is the smallest for which no number exceeds 127 and, in every group of `sum_groups`, neither the positive
    nor the negative numbers add up to more than 128. So four products with a number of [0, 255] fit 16 bits (255 * 128
    < 2^15), and vpmaddubsw, which saturates, is exact: 3 instead of 4 multiplications for 64 products on CPUs without
    VNNI, and the same bits on all.
    """
    weight = F.pad(weight.float(), (0, -weight.shape[1] % 8))
    groups = sum_groups(weight)
    sums = torch.maximum(groups.clamp(min=0).sum(-1), -groups.clamp(max=0).sum(-1))  # rounding adds 4 halves at most
    largest = torch.maximum(weight.abs() / 127.0, sums.repeat_interleave(4, 1) / 126.0)
    scale = F.pad(largest, (0, 1)).amax(1)
    scale = torch.where(scale > 0.0, scale, 1.0)
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


LEAST_INPUT_SIZE = 0.5
"""Of the mean of all inputs' sizes. What was small when it was measured may be large later: it is not magnified."""


def scale_inputs(weight: Tensor, input_sizes: Tensor) -> Tensor:
    """fp32 [i]: what to multiply each input by before it is quantised, and divide the weight [o, i] by, so that both
    are equally hard: sqrt(largest |weight| / largest |x|), with a geometric mean of 1.

    input_sizes [i]: the largest |x| of each input, as measured; counted as LEAST_INPUT_SIZE at least. Inputs that are
    always large then no longer set the step of all others. SmoothQuant, https://arxiv.org/abs/2211.10438, with its
    alpha of 1/2.
    """
    sizes, weights = input_sizes.float(), weight.abs().amax(0)
    sizes = sizes.clamp(min=LEAST_INPUT_SIZE * sizes.mean()).clamp(min=1e-20)
    scale = (weights.clamp(min=1e-3 * weights.mean()).clamp(min=1e-20) / sizes).sqrt()
    return scale / scale.log().mean().exp()


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, i] -> (q, whole numbers in [0, 255], fp32 [n, i]; scale fp32 [n, 1]; zero fp32 [n, 1]).

    x is about (q - zero) * scale, one scale and one zero a row: the 255 steps lie between the row's smallest and its
    largest number, so that what comes out of a ReLU or a GELU, hardly below 0, does not lose half of them. 0 is always
    in between, and exact. A row with a NaN or an infinity: zeros and the scale NaN.
    """
    x = x.float()
    finite = x.isfinite().all(1, keepdim=True)
    ends = F.pad(torch.where(finite, x, 0.0), (0, 1))
    steps = x.new_tensor(STEPS)  # a tensor: PyTorch multiplies by the inverse of a number
    scale = -ends.amin(1, keepdim=True) / steps + ends.amax(1, keepdim=True) / steps
    scale = torch.maximum(scale, x.new_tensor(LEAST_ROW_RANGE) / steps)
    factor = x.new_tensor(1.0) / scale
    zero = torch.round(-ends.amin(1, keepdim=True) * factor)
    q = torch.where(finite, (torch.round(x * factor) + zero).clamp(max=STEPS), zero)
    return q, torch.where(finite, scale, torch.nan), zero


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """y = act(x W^T + bias) with W = weight * scale: x [n, i], int8 weight [o, i], scale and bias fp32 [o] -> fp32.

    x is quantised by rows; the sums of products of whole numbers are exact (fp64 holds them), then rounded to fp32.
    """
    q, row_scale, zero = quantise_rows(x)
    sums = ((q - zero).double() @ weight.double().T).float()
    return ACTIVATIONS[activation](sums * (row_scale * scale) + bias)
