"""linear_packed: products with a weight that was packed once, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glimodern.reference.linear_packed import ACTIVATIONS, linear_int8, quantise_weight, scale_inputs
from glimodern.runtime.ambient import lasting

from . import dispatch
from .dispatch import BF16, FP32, NAMES, backend, direct, needs_grad, storage

PANEL = 16
"""Outputs of a panel, as csrc/include/glimodern/linear_packed.h has it."""
_GROUP = {"fp32": 1, "bf16": 2, "int8": 4}  # inputs side by side in a panel
_MOST_INPUTS = 1 << 16  # sums of 255 * 127 products stay below 2^31


def _pack_panels(weight: Tensor, group: int) -> Tensor:
    """[o, i] -> [panels, groups, 16, group], zeros where there is no output or input."""
    outputs, inputs = weight.shape
    whole = max(-(-inputs // (2 * group)), 1) * 2 * group
    padded = F.pad(weight.contiguous(), (0, whole - inputs, 0, -outputs % PANEL))
    groups = padded.view(torch.int32)  # of 4 bytes in every dtype: one number to move
    panels = groups.unflatten(0, (-1, PANEL)).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return panels.view(weight.dtype).unflatten(2, (PANEL, group))


def _unpack_panels(panels: Tensor, rows: int, inputs: int) -> Tensor:
    groups = panels.flatten(2).view(torch.int32)
    weight = groups.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(panels.dtype)
    return weight.flatten(0, 1)[:rows, :inputs].contiguous()


def _pair_rows(x: Tensor) -> Tensor:
    """[2h, ...] -> [16 * ceil(h / 8), ...]: 8 rows of the first half, the same 8 of the second, and so on."""
    halves = x.unflatten(0, (2, -1))
    padding = (0, 0) * (x.ndim - 1) + (0, -halves.shape[1] % 8)
    return F.pad(halves, padding).unflatten(1, (-1, 8)).transpose(0, 1).flatten(0, 2)


def _unpair_rows(x: Tensor, outputs: int) -> Tensor:
    """[16 * ceil(h / 8), ...] -> [2h, ...], h = outputs."""
    return x.unflatten(0, (-1, 2, 8)).transpose(0, 1).flatten(1, 2)[:, :outputs].flatten(0, 1)


def _plain_rows(x: Tensor, outputs: int, gated: bool) -> Tensor:
    """What was arranged for panels, in the weight's own order."""
    return _unpair_rows(x, outputs) if gated else x[:outputs]


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A linear layer's weight [outputs, inputs] and bias as `linear_packed` reads them; made by `pack`."""

    panels: Tensor
    """[panels, groups, 16, 1] fp32, [panels, groups, 16, 2] bf16 or [panels, groups, 16, 4] int8."""
    scale: Tensor
    """fp32 [16 * panels], int8 only (else empty): what a whole number of an output's weights stands for."""
    weight_sum: Tensor
    """int32 [16 * panels], int8 only (else empty): the sum of an output's whole numbers."""
    bias: Tensor
    """fp32 [16 * panels], zeros without a bias."""
    input_scale: Tensor
    """fp32 [inputs], int8 only: x is multiplied by these first (`scale_inputs`); empty: by nothing."""
    outputs: int
    """Of the layer's result: half the weight's rows if gated."""
    inputs: int
    has_bias: bool
    gated: bool
    """Packed for the activation "geglu": rows of the two halves lie 8 by 8."""

    @classmethod
    @lasting()
    def pack(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        dtype: str = "int8",
        input_sizes: Tensor | None = None,
        *,
        gated: bool = False,
    ) -> PackedWeight:
        """weight [o, i], bias [o] of any float dtype; dtype "int8" (`quantise_weight`), "bf16" (rounded) or
        "fp32" (exact). input_sizes [i]: the largest |x| of each input, as measured, for fewer errors in int8
        (`scale_inputs`); the other dtypes have no use for it. gated: for the activation "geglu", and for no other.

        Raises ValueError for other shapes and dtypes, and for numbers that are not finite in int8.
        """
        if dtype not in _GROUP:
            raise ValueError(f"dtype must be one of {', '.join(map(repr, _GROUP))}, got {dtype!r}")
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ValueError(f"weight must be a float tensor [o, i], got {weight.dtype} {tuple(weight.shape)}")
        outputs, inputs = weight.shape
        if bias is not None and bias.shape != (outputs,):
            raise ValueError(f"bias must be [{outputs}] as weight has {outputs} rows, got {tuple(bias.shape)}")
        if gated and outputs % 2 != 0:
            raise ValueError(f"weight must have an even number of rows, two halves, to be gated, got {outputs}")
        weight = weight.detach().float()
        if input_sizes is not None and input_sizes.shape != (inputs,):
            raise ValueError(f"input_sizes must be [{inputs}], one an input, got {tuple(input_sizes.shape)}")

        def arrange(numbers: Tensor) -> Tensor:  # one a row -> one a panel's column
            return _pair_rows(numbers) if gated else F.pad(numbers, (0, -outputs % PANEL)).clone()

        scale, weight_sum = weight.new_empty(0), weight.new_empty(0, dtype=torch.int32)
        input_scale = weight.new_empty(0)
        if dtype == "int8":
            if inputs > _MOST_INPUTS:
                raise ValueError(f"weight may have {_MOST_INPUTS:,} inputs in int8, got {inputs:,}; use dtype='fp32'")
            if not bool(weight.isfinite().all()):
                raise ValueError("weight must be finite to be quantised; use dtype='fp32'")
            if input_sizes is not None and inputs and outputs:
                input_scale = scale_inputs(weight, input_sizes)
                weight = weight / input_scale
            weight, scale = quantise_weight(weight)
            sums = weight.sum(1, dtype=torch.int32)
            scale, weight_sum = arrange(scale), arrange(sums)
        elif dtype == "bf16":
            weight = weight.to(BF16)
        whole = weight.new_zeros(outputs, dtype=FP32) if bias is None else bias.detach().float()
        panels = _pack_panels(_pair_rows(weight) if gated else weight, _GROUP[dtype])
        outputs = outputs // 2 if gated else outputs
        return cls(panels, scale, weight_sum, arrange(whole), input_scale, outputs, inputs, bias is not None, gated)

    @property
    def dtype(self) -> str:
        return {torch.int8: "int8", BF16: "bf16"}.get(self.panels.dtype, "fp32")

    @property
    def device(self) -> torch.device:
        return self.panels.device

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """panels, scale, weight_sum, bias, input_scale."""
        return self.panels, self.scale, self.weight_sum, self.bias, self.input_scale

    def unpack(self) -> Tensor:
        """The weight [o, i], as it was packed: fp32, or bf16; what its whole numbers stand for, fp32, in int8."""
        weight = _plain_rows(_unpack_panels(self.panels, len(self.bias), self.inputs), self.outputs, self.gated)
        if self.dtype != "int8":
            return weight
        plain = weight * _plain_rows(self.scale, self.outputs, self.gated)[:, None]
        return plain * self.input_scale if self.input_scale.numel() else plain

    def unpack_bias(self) -> Tensor | None:
        """fp32 [o], or None."""
        return _plain_rows(self.bias, self.outputs, self.gated).clone() if self.has_bias else None

    @lasting()
    def to(self, device: torch.device | str) -> PackedWeight:
        panels, scale, weight_sum, bias, input_scale = (x.to(device) for x in self.tensors)
        return replace(self, panels=panels, scale=scale, weight_sum=weight_sum, bias=bias, input_scale=input_scale)


def cpp_weight(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What the extension is told of `PackedWeight.tensors`: their kind and addresses."""
    panels, scale, weight_sum, bias, input_scale = tensors
    kind = "int8" if panels.dtype == torch.int8 else NAMES[panels.dtype]
    addresses = (x.data_ptr() if x.numel() else 0 for x in (panels, input_scale, scale, weight_sum, bias))
    return getattr(dispatch.extension.WeightDtype, kind), *addresses


def _linear_impl(
    x: Tensor,
    tensors: Sequence[Tensor],
    outputs: int,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    chosen = backend("linear_packed", x)
    rows, inputs = x.shape
    if chosen == "cpp" and dtype in (FP32, BF16):
        x = x.contiguous()
        y = x.new_empty(rows, outputs, dtype=dtype)
        dispatch.extension.linear_packed(
            storage(x.dtype), storage(dtype), x.data_ptr(), y.data_ptr(), rows, inputs, outputs, *cpp_weight(tensors),
            getattr(dispatch.extension.Activation, activation), torch.get_num_threads(),
        )  # fmt: skip
        return y
    panels, scale, _, bias, input_scale = tensors
    gated = activation == "geglu"
    weight = _plain_rows(_unpack_panels(panels, len(bias), inputs), outputs, gated)
    bias = _plain_rows(bias, outputs, gated)
    if panels.dtype == torch.int8:
        x = x.float() * input_scale if input_scale.numel() else x
        return linear_int8(x, weight, _plain_rows(scale, outputs, gated), bias, activation).to(dtype)
    # bf16 numbers and their products are exact in fp32
    return ACTIVATIONS[activation](F.linear(x.to(weight.dtype).float(), weight.float(), bias)).to(dtype)


@torch.library.custom_op("glimodern::linear_packed", mutates_args=())
def _linear_op(
    x: Tensor,
    panels: Tensor,
    scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor,
    input_scale: Tensor,
    outputs: int,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    tensors = (panels, scale, weight_sum, bias, input_scale)
    return _linear_impl(x, tensors, outputs, activation, dtype)


@_linear_op.register_fake
def _(x, panels, scale, weight_sum, bias, input_scale, outputs, activation, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], outputs, dtype=dtype)


def linear_packed(
    x: Tensor, packed: PackedWeight, activation: str = "none", dtype: torch.dtype | None = None
) -> Tensor:
    """y = act(x W^T + bias) with a packed W: x [..., i] -> y [..., o] in `dtype` (default: x's).

    activation: "none", "relu", "gelu" (exact), or "geglu": the gelu of the first half of W's rows times the second,
    o being half their number, with a weight that is packed for it.

    Inference only. fp32: sums in fp32, as `nn.functional.linear`. bf16: x is rounded to bf16 too, and sums are fp32.
    int8: every row of x is quantised between its smallest and its largest number, sums are exact, and the bits do not
    depend on threads nor (gelu aside) on the CPU; a row with a NaN or an infinity comes out as NaN, one below 1e-30 as
    act(bias). C++ kernels for fp32 and bf16 on CPUs; elsewhere plain PyTorch, which unpacks the weight at every call.

    Raises ValueError or TypeError for other shapes, dtypes and devices, and where x requires gradients.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"linear_packed: x must be a float tensor, got {kind}")
    if x.ndim == 0 or x.shape[-1] != packed.inputs:
        raise ValueError(f"linear_packed: x must be [..., {packed.inputs}], got {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear_packed: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if (activation == "geglu") != packed.gated:
        raise ValueError(
            f"linear_packed: activation must {'' if packed.gated else 'not '}be 'geglu' with a weight packed with "
            f"gated={packed.gated}, got {activation!r}; pack it with gated={not packed.gated}"
        )
    if x.device != packed.device:
        raise ValueError(f"linear_packed: x is on {x.device}, the weight on {packed.device}; move one with .to()")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"linear_packed: dtype must be a float dtype, got {dtype}")
    if needs_grad(x):
        raise ValueError(
            "linear_packed: x requires gradients, packed weights are for inference only; run under"
            " torch.inference_mode(), or load the model in fp32 to train"
        )
    tensors = packed.tensors
    rows = x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), packed.inputs)
    if direct(False, (rows,)):
        y = _linear_impl(rows, tensors, packed.outputs, activation, dtype or x.dtype)
    else:
        y = _linear_op(rows.detach(), *tensors, packed.outputs, activation, dtype or x.dtype)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], packed.outputs)
