"""x W^T + b in fp32 on CPUs whose matrix library does not use the widest vectors.

PyTorch's own products go to MKL, which keeps to AVX2 on AMD CPUs; oneDNN, which PyTorch carries too, uses AVX-512
there. Which is faster depends on the machine and on the product (forward, gradient of x, gradient of W: oneDNN wants
its second factor reordered), so each of the three is timed once a process, and oneDNN takes those it wins by `_GAIN`.
Without AVX-512 it never won (AMD Milan: 0.5 to 0.95 of MKL's speed), so there nothing is timed and nothing changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PRODUCTS = FORWARD, GRAD_INPUT, GRAD_WEIGHT = "forward", "grad_input", "grad_weight"
_GAIN = 1.25  # a timing has to win by this much, so that noise does not choose
_ROWS = 128  # below, reordering the weight costs more than it saves
_PROBE = (768, 512, 512)  # tokens, in and out features: the middle of what small encoders use
_ROUNDS = 7


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, i], weight [o, i] -> x weight^T + bias by oneDNN, fp32."""
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, reordered, bias, "none", [], "")
    return out


def _onednn_grad_input(grad: Tensor, weight: Tensor) -> Tensor:
    return _onednn(grad, weight.t().contiguous(), None)


def _onednn_grad_weight(grad: Tensor, x: Tensor) -> Tensor:
    return _onednn(grad.t().contiguous(), x.t().contiguous(), None)


@cache
def onednn_products() -> frozenset[str]:
    """Which of the three products of a linear layer oneDNN takes on this machine; timed at the first call (0.1 s)."""
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not torch.backends.mkldnn.is_available():
        return frozenset()
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return frozenset()
    tokens, inputs, outputs = _PROBE
    shapes = (tokens, inputs), (outputs, inputs), (tokens, outputs)
    # Not on the default device: the first model of a process may be built under torch.device("meta").
    x, weight, grad = (torch.ones(shape, dtype=torch.float32, device="cpu") for shape in shapes)
    rivals: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        FORWARD: (lambda: F.linear(x, weight), lambda: _onednn(x, weight, None)),
        GRAD_INPUT: (lambda: grad.mm(weight), lambda: _onednn_grad_input(grad, weight)),
        GRAD_WEIGHT: (lambda: grad.t().mm(x), lambda: _onednn_grad_weight(grad, x)),
    }
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return frozenset(name for name, (usual, onednn) in rivals.items() if _speed_up(usual, onednn) >= _GAIN)


def _speed_up(usual: Callable[[], Tensor], other: Callable[[], Tensor]) -> float:
    """Best time of `usual` by best time of `other`, measured in turns after one call of each."""
    best = [float("inf"), float("inf")]
    for round_number in range(_ROUNDS + 1):
        for i, run in enumerate((usual, other)):
            start = time.perf_counter()
            run()
            if round_number > 0:
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]


class _Linear(torch.autograd.Function):
    """dX = G W;  dW = G^T X;  db = column sums of G."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: frozenset[str]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products = products
        return _onednn(x, weight, bias) if FORWARD in products else F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _onednn_grad_input(grad.contiguous(), weight) if GRAD_INPUT in ctx.products else grad.mm(weight)
        if ctx.needs_input_grad[1]:
            dw = _onednn_grad_weight(grad, x) if GRAD_WEIGHT in ctx.products else grad.t().mm(x)
        if ctx.needs_input_grad[2]:
            db = grad.sum(0)
        return dx, dw, db, None


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear`: x [..., i], weight [o, i], bias [o] -> [..., o].

    oneDNN takes its share (`onednn_products`) for fp32 on CPUs with at least 128 rows; autocast, other dtypes and
    devices, torch.compile and machines where nothing is gained go to `nn.functional.linear`.
    """
    usual = (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() < _ROWS * x.shape[-1]
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
    products = frozenset() if usual else onednn_products()
    if not products:
        return F.linear(x, weight, bias)
    rows: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias, products)
    return rows.view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """`nn.Linear` that calls `fast_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return fast_linear(input, self.weight, self.bias)


def accelerate_linears(module: nn.Module) -> int:
    """Make every `nn.Linear` in module a `Linear`, parameters and their names untouched; returns how many.

    Nothing is changed (0) on a machine where `onednn_products` is empty.
    """
    if not onednn_products():
        return 0
    linears = [m for m in module.modules() if type(m) is nn.Linear]
    for linear in linears:
        linear.__class__ = Linear
    return len(linears)
