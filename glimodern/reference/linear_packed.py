"""The oracle of int8 linear layers: quantisation of weights and rows, and the product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoder import geglu

Activation = Callable[[Tensor], Tensor]
_gelu_tanh: Activation = partial(F.gelu, approximate="tanh")


def _gated(activation: Activation) -> Activation:
    def gated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return activation(first) * second

    return gated


GATED: dict[str, Activation] = {"geglu": geglu, "geglu_tanh": _gated(_gelu_tanh), "swiglu": _gated(F.silu)}
"""Activations [..., 2h] -> [..., h]: an activation of the first half, times the second half."""
ACTIVATIONS: dict[str, Activation] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    **GATED,
}
STEPS = 255
"""Steps of a quantised row between min(its minimum, 0) and max(its maximum, 0)."""
LEAST_ROW_RANGE = 1e-30
"""Least range of a row, so that 255 / range is finite: rows with a smaller range come out as the bias."""


def sum_groups(weight: Tensor) -> Tensor:
    """Group the inputs whose products the kernels add in 16 bits: [o, i], i a multiple of 8 -> [o, i / 4, 4].

    Of 8 neighbours the groups are 0, 1, 4, 5 and 2, 3, 6, 7.
    """
    return weight.unflatten(1, (-1, 2, 2, 2)).transpose(2, 3).flatten(3).flatten(1, 2)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight [o, i], symmetric, one scale per output: (int8 [o, i], scale fp32 [o]).

    The scale is the smallest for which no element exceeds 127 and, in every group of `sum_groups`, neither the positive
    nor the negative elements add up to more than 128. So four products with an element of [0, 255] fit 16 bits
    (255 * 128 < 2^15), and vpmaddubsw, which saturates, is exact: 3 instead of 4 multiplications for 64 products on
    CPUs without VNNI, and the same bits on all.
    """
    weight = F.pad(weight.float(), (0, -weight.shape[1] % 8))
    groups = sum_groups(weight)
    sums = torch.maximum(groups.clamp(min=0).sum(-1), -groups.clamp(max=0).sum(-1))  # rounding adds 4 halves at most
    least_scale = torch.maximum(weight.abs() / 127.0, sums.repeat_interleave(4, 1) / 126.0)
    scale = F.pad(least_scale, (0, 1)).amax(1)
    scale = torch.where(scale > 0.0, scale, 1.0)
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


LEAST_INPUT_SIZE = 0.5
"""Least size of an input, as a share of the mean size: an input that was small when measured may be large later."""


def scale_inputs(weight: Tensor, input_sizes: Tensor) -> Tensor:
    """Factors fp32 [i] that make inputs and weight equally hard to quantise.

    x is multiplied by the factors before it is quantised, and the weight [o, i] divided by them: sqrt(largest |weight|
    / largest |x|) of each input, with a geometric mean of 1. Inputs that are always large then no longer set the step
    of all others.

    input_sizes: [i], the largest |x| of each input, as measured; counted as LEAST_INPUT_SIZE * mean at least.

    Source: SmoothQuant, https://arxiv.org/abs/2211.10438, with its alpha of 1/2.
    """
    sizes, weights = input_sizes.float(), weight.abs().amax(0)
    sizes = sizes.clamp(min=LEAST_INPUT_SIZE * sizes.mean()).clamp(min=1e-20)
    scale = (weights.clamp(min=1e-3 * weights.mean()).clamp(min=1e-20) / sizes).sqrt()
    return scale / scale.log().mean().exp()


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise the rows of x [n, i]: (q fp32 [n, i], integers in [0, 255]; scale fp32 [n, 1]; zero fp32 [n, 1]).

    x is about (q - zero) * scale, one scale and one zero per row. The 255 steps lie between the row's minimum and
    maximum, so that the result of a ReLU or a GELU, hardly below 0, does not lose half of them. 0 is always in between,
    and exact. A row with a NaN or an infinity has q = zero and the scale NaN.
    """
    x = x.float()
    finite = x.isfinite().all(1, keepdim=True)
    ends = F.pad(torch.where(finite, x, 0.0), (0, 1))
    steps = x.new_tensor(STEPS)  # a tensor: PyTorch multiplies by the inverse of a Python number
    scale = -ends.amin(1, keepdim=True) / steps + ends.amax(1, keepdim=True) / steps
    scale = torch.maximum(scale, x.new_tensor(LEAST_ROW_RANGE) / steps)
    factor = x.new_tensor(1.0) / scale
    zero = torch.round(-ends.amin(1, keepdim=True) * factor)
    q = torch.where(finite, (torch.round(x * factor) + zero).clamp(max=STEPS), zero)
    return q, torch.where(finite, scale, torch.nan), zero


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """y = act(x W^T + bias) with W = weight * scale and x quantised by rows, in fp32.

    x: [n, i]. weight: int8 [o, i]. scale: fp32 [o]. bias: fp32 [o], or [n, o] with an addend. Sums of integer products
    are exact (fp64 holds them), then rounded to fp32.
    """
    q, row_scale, zero = quantise_rows(x)
    sums = ((q - zero).double() @ weight.double().T).float()
    return ACTIVATIONS[activation](sums * (row_scale * scale) + bias)
