"""linear_packed: products with a weight that was packed once, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glimodern.reference.linear_packed import ACTIVATIONS, GATED, linear_int8, quantise_weight, scale_inputs
from glimodern.runtime.ambient import lasting

from . import dispatch
from ._register import Operator
from .dispatch import BF16, FP32, NAMES, backend, direct, needs_grad, storage

if TYPE_CHECKING:
    from ._low_rank import LowRank

PANEL = 16
"""Outputs per panel, as in csrc/include/glimodern/linear_packed.h."""
_GROUP = {"fp32": 1, "bf16": 2, "int8": 4}  # inputs side by side in a panel
_MAX_INPUTS = 1 << 16  # sums of 255 * 127 products stay below 2^31


def _name(dtype: torch.dtype) -> str:
    """Name of a packed weight's dtype: "int8", "bf16" or "fp32"."""
    return {torch.int8: "int8", BF16: "bf16"}.get(dtype, "fp32")


def _ceil_div(n: int, step: int) -> int:
    return -(-n // step)


def _pack_panels(weight: Tensor, group: int) -> Tensor:
    """Arrange a weight in panels: [o, i] -> [panels, groups, 16, group], zeros where there is no output or input."""
    outputs, inputs = weight.shape
    padded_inputs = max(_ceil_div(inputs, 2 * group), 1) * 2 * group
    padded = F.pad(weight.contiguous(), (0, padded_inputs - inputs, 0, -outputs % PANEL))
    groups = padded.view(torch.int32)  # a group has 4 bytes in every dtype: one element to move
    panels = groups.unflatten(0, (-1, PANEL)).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return panels.view(weight.dtype).unflatten(2, (PANEL, group))


def _unpack_panels(panels: Tensor, rows: int, inputs: int) -> Tensor:
    """The inverse of `_pack_panels`: [rows, inputs]."""
    groups = panels.flatten(2).view(torch.int32)
    weight = groups.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(panels.dtype)
    return weight.flatten(0, 1)[:rows, :inputs].contiguous()


def pair_rows(x: Tensor) -> Tensor:
    """Interleave two halves, [2h, ...] -> [16 * ceil(h / 8), ...]: 8 rows of the first, 8 of the second, and so on."""
    halves = x.unflatten(0, (2, -1))
    padding = (0, 0) * (x.ndim - 1) + (0, -halves.shape[1] % 8)
    return F.pad(halves, padding).unflatten(1, (-1, 8)).transpose(0, 1).flatten(0, 2)


def _unpair_rows(x: Tensor, outputs: int) -> Tensor:
    """The inverse of `pair_rows`: [16 * ceil(h / 8), ...] -> [2h, ...], h = outputs."""
    return x.unflatten(0, (-1, 2, 8)).transpose(0, 1).flatten(1, 2)[:, :outputs].flatten(0, 1)


def _arrange_rows(rows: Tensor, gated: bool) -> Tensor:
    """Arrange one element per row of a weight as the panels' columns, zeros where there is no output."""
    return pair_rows(rows) if gated else F.pad(rows, (0, -rows.shape[0] % PANEL)).clone()


def _plain_rows(x: Tensor, outputs: int, gated: bool) -> Tensor:
    """Rows that were arranged for panels, in the weight's own order."""
    return _unpair_rows(x, outputs) if gated else x[:outputs]


class QuantisedWeight(NamedTuple):
    """A linear layer's weight in int8, in the layer's own order: about weight * scale[:, None] * input_scale.

    As it is stored: the packed form depends on nothing else.
    """

    weight: Tensor
    """int8 [o, i], within the bounds of `quantise_weight`, which are not checked: beyond them, sums may saturate."""
    scale: Tensor
    """fp32 [o]."""
    input_scale: Tensor | None
    """fp32 [i], the factors of `scale_inputs`; None: no factors."""

    def check(self) -> None:
        """Raise ValueError unless dtypes and shapes are as above, and every scale is a positive number."""
        if self.weight.ndim != 2 or self.weight.dtype != torch.int8:
            raise ValueError(f"weight: expected int8 [o, i], got {self.weight.dtype} {tuple(self.weight.shape)}")
        outputs, inputs = self.weight.shape
        for name, scale, size in (("scale", self.scale, outputs), ("input_scale", self.input_scale, inputs)):
            if scale is None:
                continue
            if scale.dtype != FP32 or scale.shape != (size,):
                raise ValueError(f"{name}: expected fp32 [{size}], got {scale.dtype} {tuple(scale.shape)}")
            if not bool(((scale > 0.0) & scale.isfinite()).all()):
                raise ValueError(f"{name}: expected positive numbers, got others; quantise the weight again")


def _quantise(weight: Tensor, input_sizes: Tensor | None) -> QuantisedWeight:
    """Quantise a weight fp32 [o, i]. input_sizes: see `PackedWeight.pack`."""
    inputs = weight.shape[1]
    if inputs > _MAX_INPUTS:
        raise ValueError(
            f"weight: expected at most {_MAX_INPUTS:,} inputs for dtype='int8', got {inputs:,}; use dtype='fp32'"
        )
    if not bool(weight.isfinite().all()):
        raise ValueError("weight: expected finite elements for dtype='int8', got NaN or inf; use dtype='fp32'")
    input_scale = scale_inputs(weight, input_sizes) if input_sizes is not None and weight.numel() else None
    quantised, scale = quantise_weight(weight if input_scale is None else weight / input_scale)
    return QuantisedWeight(quantised[:, :inputs], scale, input_scale)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A linear layer's weight [outputs, inputs] and bias as `linear_packed` reads them.

    Made by `pack` from floats, by `of_quantised` from int8.
    """

    panels: Tensor
    """[panels, groups, 16, 1] fp32, [panels, groups, 16, 2] bf16 or [panels, groups, 16, 4] int8."""
    scale: Tensor
    """fp32 [16 * panels], the value of a quantised weight's unit step, per output; empty unless int8."""
    weight_sum: Tensor
    """int32 [16 * panels], the sum of an output's quantised weights; empty unless int8."""
    bias: Tensor
    """fp32 [16 * panels], zeros without a bias."""
    input_scale: Tensor
    """fp32 [inputs], the factors of `scale_inputs` that x is multiplied by first, int8 only; empty: no factors."""
    outputs: int
    """Width of the layer's result: half the weight's rows if gated."""
    inputs: int
    has_bias: bool
    gated: bool
    """Packed for a gated activation: rows of the two halves alternate 8 by 8."""

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
        """Pack a weight [o, i] and a bias [o] of any float dtype.

        dtype: "int8" (`quantise_weight`), "bf16" (rounded) or "fp32" (exact).
        input_sizes: [i], the largest |x| of each input, as measured, for smaller errors in int8 (`scale_inputs`); the
            other dtypes ignore it.
        gated: for a gated activation ("geglu", "geglu_tanh", "swiglu"), and for no other.

        Raises ValueError for other shapes and dtypes, and in int8 for weights that are not finite.
        """
        if dtype not in _GROUP:
            raise ValueError(f"dtype: expected one of {', '.join(map(repr, _GROUP))}, got {dtype!r}")
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ValueError(f"weight: expected a float tensor [o, i], got {weight.dtype} {tuple(weight.shape)}")
        inputs = weight.shape[1]
        weight = weight.detach()
        if input_sizes is not None and input_sizes.shape != (inputs,):
            raise ValueError(f"input_sizes: expected [{inputs}] (one per input), got {tuple(input_sizes.shape)}")
        if dtype == "int8":
            return cls.of_quantised(_quantise(weight.float(), input_sizes), bias, gated=gated)
        return cls._arranged(weight.to(BF16 if dtype == "bf16" else FP32), bias, gated)

    @classmethod
    @lasting()
    def of_quantised(
        cls, quantised: QuantisedWeight, bias: Tensor | None = None, *, gated: bool = False
    ) -> PackedWeight:
        """Pack a weight that is in int8 already; otherwise as `pack`, with the same bits.

        Raises ValueError for other shapes and dtypes, and for scales that are not positive numbers.
        """
        quantised.check()
        weight, scale, input_scale = quantised
        sums = weight.sum(1, dtype=torch.int32)
        arranged = cls._arranged(weight.detach(), bias, gated)
        return replace(
            arranged,
            scale=_arrange_rows(scale.detach(), gated),
            weight_sum=_arrange_rows(sums, gated),
            input_scale=arranged.input_scale if input_scale is None else input_scale.detach().clone(),
        )

    @classmethod
    def _arranged(cls, weight: Tensor, bias: Tensor | None, gated: bool) -> PackedWeight:
        """Arrange a weight in fp32, bf16 or int8, without scales."""
        outputs, inputs = weight.shape
        if bias is not None and bias.shape != (outputs,):
            raise ValueError(f"bias: expected [{outputs}] (one per row of weight), got {tuple(bias.shape)}")
        if gated and outputs % 2 != 0:
            raise ValueError(f"weight: expected an even number of rows, two halves, for gated=True, got {outputs}")
        row_bias = weight.new_zeros(outputs, dtype=FP32) if bias is None else bias.detach().float()
        return cls(
            panels=_pack_panels(pair_rows(weight) if gated else weight, _GROUP[_name(weight.dtype)]),
            scale=weight.new_empty(0, dtype=FP32),
            weight_sum=weight.new_empty(0, dtype=torch.int32),
            bias=_arrange_rows(row_bias, gated),
            input_scale=weight.new_empty(0, dtype=FP32),
            outputs=outputs // 2 if gated else outputs,
            inputs=inputs,
            has_bias=bias is not None,
            gated=gated,
        )

    def plus(self, update: Tensor) -> PackedWeight:
        """Pack the sum of this weight and an update fp32 [o, i], in the same dtype, with the same input_scale."""
        weight, bias = self.unpack().float() + update, self.unpack_bias()
        if self.dtype != "int8":
            return self.pack(weight, bias, self.dtype, gated=self.gated)
        input_scale = self.quantised().input_scale
        quantised, scale = quantise_weight(weight if input_scale is None else weight / input_scale)
        return self.of_quantised(
            QuantisedWeight(quantised[:, : self.inputs], scale, input_scale), bias, gated=self.gated
        )

    @property
    def dtype(self) -> str:
        """One of "int8", "bf16" and "fp32"."""
        return _name(self.panels.dtype)

    @property
    def device(self) -> torch.device:
        return self.panels.device

    @property
    def columns(self) -> int:
        """Columns of the panels: the products of a row, padding included."""
        return len(self.bias)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """panels, scale, weight_sum, bias, input_scale."""
        return self.panels, self.scale, self.weight_sum, self.bias, self.input_scale

    def unpack(self) -> Tensor:
        """The weight [o, i] as it was packed: fp32 or bf16; in int8 the dequantised weight, fp32."""
        if self.dtype != "int8":
            return self._unpack()
        weight, scale, input_scale = self.quantised()
        weight = weight * scale[:, None]
        return weight if input_scale is None else weight * input_scale

    def quantised(self) -> QuantisedWeight:
        """The weight in int8 as it was packed. Raises ValueError for the other dtypes."""
        if self.dtype != "int8":
            raise ValueError(f"weight: expected one packed in int8, got {self.dtype}; use unpack()")
        input_scale = self.input_scale.clone() if self.input_scale.numel() else None
        return QuantisedWeight(self._unpack(), _plain_rows(self.scale, self.outputs, self.gated).clone(), input_scale)

    def _unpack(self) -> Tensor:
        return _plain_rows(_unpack_panels(self.panels, len(self.bias), self.inputs), self.outputs, self.gated)

    def unpack_bias(self) -> Tensor | None:
        """The bias, fp32 [o], or None."""
        return _plain_rows(self.bias, self.outputs, self.gated).clone() if self.has_bias else None

    @lasting()
    def to(self, device: torch.device | str) -> PackedWeight:
        """The weight on another device."""
        panels, scale, weight_sum, bias, input_scale = (x.to(device) for x in self.tensors)
        return replace(self, panels=panels, scale=scale, weight_sum=weight_sum, bias=bias, input_scale=input_scale)


def cpp_weight(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Arguments of the extension for `PackedWeight.tensors`: the weight's dtype, and addresses."""
    panels, scale, weight_sum, bias, input_scale = tensors
    dtype = "int8" if panels.dtype == torch.int8 else NAMES[panels.dtype]
    addresses = (x.data_ptr() if x.numel() else 0 for x in (panels, input_scale, scale, weight_sum, bias))
    return getattr(dispatch.extension.WeightDtype, dtype), *addresses


def cpp_update(rank: int, z: Tensor | None, up: Tensor) -> tuple[int, int, int]:
    """Arguments of the extension for a low-rank update: rank, and addresses; zeros without one."""
    return (rank, 0 if z is None else z.data_ptr(), up.data_ptr()) if rank else (0, 0, 0)


class LinearInputs(NamedTuple):
    """Arguments of the registered op: x [rows, inputs], `PackedWeight.tensors`, a low-rank update, and options.

    z: [rows, rank] in `dtype`, and up: panels of B (`LowRank`); both empty without an update.
    """

    x: Tensor
    panels: Tensor
    scale: Tensor
    weight_sum: Tensor
    bias: Tensor
    input_scale: Tensor
    z: Tensor
    up: Tensor
    outputs: int
    activation: str
    dtype: torch.dtype


def _forward(inputs: LinearInputs) -> Tensor:
    x, panels, scale, _, bias, input_scale, z, up, outputs, activation, dtype = inputs
    chosen = backend("linear_packed", x)
    rows, width = x.shape
    if chosen == "cpp" and dtype in (FP32, BF16):
        x = x.contiguous()
        y = x.new_empty(rows, outputs, dtype=dtype)
        dispatch.extension.linear_packed(
            storage(x.dtype), storage(dtype), x.data_ptr(), y.data_ptr(), rows, width, outputs,
            *cpp_weight(inputs[1:6]), getattr(dispatch.extension.Activation, activation),
            *cpp_update(z.shape[1], z, up), torch.get_num_threads(),
        )  # fmt: skip
        return y
    gated = activation in GATED
    weight = _plain_rows(_unpack_panels(panels, len(bias), width), outputs, gated)
    columns, bias = len(bias), _plain_rows(bias, outputs, gated)
    if z.shape[1]:
        bias = bias + z.float() @ _plain_rows(_unpack_panels(up, columns, z.shape[1]), outputs, gated).T  # of each row
    if panels.dtype == torch.int8:
        x = x.float() * input_scale if input_scale.numel() else x
        return linear_int8(x, weight, _plain_rows(scale, outputs, gated), bias, activation).to(dtype)
    # products of two bf16 elements are exact in fp32
    x, weight = x.to(weight.dtype).float(), weight.float()
    sums = F.linear(x, weight, bias) if bias.ndim == 1 else F.linear(x, weight) + bias
    return ACTIVATIONS[activation](sums).to(dtype)


def _fake(inputs: LinearInputs) -> Tensor:
    return inputs.x.new_empty(inputs.x.shape[0], inputs.outputs, dtype=inputs.dtype)


_linear_packed = Operator("linear_packed", _forward, _fake)


def check_gate(activation: str, packed: PackedWeight) -> None:
    """ValueError unless the weight was packed for the activation."""
    if (activation in GATED) != packed.gated:
        raise ValueError(
            f"activation: expected {'one of' if packed.gated else 'any but'} {', '.join(GATED)} for a weight packed "
            f"with gated={packed.gated}, got {activation!r}; pack it with gated={not packed.gated}"
        )


def linear_packed(
    x: Tensor,
    packed: PackedWeight,
    activation: str = "none",
    dtype: torch.dtype | None = None,
    low_rank: LowRank | None = None,
) -> Tensor:
    """y = act(x W^T + bias) with a packed W, for inference only.

    x: [..., i], any float dtype.
    activation: "none", "relu", "gelu" (exact), "gelu_tanh" (its tanh approximation), or, for a weight packed with
        gated=True, an activation of the first half of W's rows times the second half: "geglu" (by gelu), "geglu_tanh"
        (by gelu_tanh), "swiglu" (by silu).
    dtype: of the result; None: that of x.
    low_rank: an update of W, of its packed layout: y = act(x W^T + bias + (x A^T) B^T).

    Returns [..., o], o being half of W's rows if gated. A weight packed in fp32 gives sums in fp32, as
    `nn.functional.linear`; in bf16, x is rounded to bf16 too, and sums are fp32. In int8, every row of x is quantised
    between its minimum and its maximum. Sums are then exact, and the bits depend neither on threads nor (but for the
    smooth activations) on the CPU; a row with a NaN or an infinity comes out as NaN, and a row whose range is below
    1e-30 as act(bias). CPUs have C++ kernels for x in fp32 and bf16; elsewhere plain PyTorch unpacks the weight at
    every call.

    Raises ValueError or TypeError for other shapes, dtypes and devices, and where x requires gradients.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a float tensor, got {given}")
    if x.ndim == 0 or x.shape[-1] != packed.inputs:
        raise ValueError(f"x: expected [..., {packed.inputs}], got {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    check_gate(activation, packed)
    if x.device != packed.device:
        raise ValueError(f"x: expected device {packed.device}, that of the weight, got {x.device}; move one with .to()")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a float dtype, got {dtype}")
    if needs_grad(x):
        raise ValueError(
            "x: expected no gradients, got a tensor that requires them, and packed weights are for inference only; "
            "run under torch.inference_mode(), or load the model in fp32 to train"
        )
    rows = x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), packed.inputs)
    dtype = dtype or x.dtype
    if low_rank is None:
        update = rows.new_empty(len(rows), 0), rows.new_empty(0)
    else:
        low_rank.check_layout(packed)
        update = linear_packed(rows, low_rank.down, dtype=dtype), low_rank.up.panels
    inputs = LinearInputs(rows, *packed.tensors, *update, packed.outputs, activation, dtype)
    if direct(False, (rows,)):
        y = _forward(inputs)
    else:
        y = _linear_packed.registered(inputs._replace(x=rows.detach()))
    return y if x.ndim == 2 else y.view(*x.shape[:-1], packed.outputs)
