"""The fused operators, public: `span_scores` and `span_loss` of ARCHITECTURE §4, for this model and for any other.

Each is a `torch.library` custom op (`torch.ops.glimodern.*`) with a fake and autograd, so it works under autograd,
`torch.compile` and `torch.export`. Backends: Triton on CUDA, C++ on CPUs (fp32; fp16 and bf16 are computed in
fp32 and rounded once), plain PyTorch (`glimodern.reference`) elsewhere and for fp64. `backend_info` says which runs and
why; `use_backend` forces one. Where neither gradients nor a compiler ask for the registered op, the public functions
call the backend directly.

This module alone imports the kernels and the extension.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from glimodern import reference

_extension: Any
try:
    _extension = importlib.import_module("glimodern._C")
    _EXTENSION_ERROR = ""
except ImportError as error:
    _extension = None
    _EXTENSION_ERROR = f"the C++ extension glimodern._C is not there ({error}); reinstall with a C++17 compiler"

_LOGGER = logging.getLogger("glimodern")
_OPS = ("span_scores", "span_loss")
_BACKENDS = ("cpp", "triton", "reference")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_forced: str | None = None

Grads = tuple[Tensor, Tensor, Tensor, Tensor]  # of, or like, a, b, u, c


# Choice of the backend


def _triton_problem(device_type: str) -> str:
    """Why Triton cannot run on such tensors; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device_type == "cuda" or (device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return ""
    return f"Triton needs CUDA tensors (or TRITON_INTERPRET=1 for tensors on the CPU), got {device_type}"


def _cpp_problem(device_type: str) -> str:
    if _extension is None:
        return _EXTENSION_ERROR
    return "" if device_type == "cpu" else f"the C++ kernels need tensors on the CPU, got {device_type}"


@functools.cache
def _warn_once(message: str) -> None:
    _LOGGER.warning(message)


def _choose(device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """(backend, why) for tensors of this device and dtype. Raises if the forced backend cannot run on them."""
    if _forced is not None:
        problem = {"cpp": _cpp_problem, "triton": _triton_problem}.get(_forced, lambda _: "")(device_type)
        if not problem and _forced != "reference" and dtype == torch.float64:
            problem = "the kernels are for fp32, fp16 and bf16; fp64 runs on the reference"
        if problem:
            raise RuntimeError(f"the backend {_forced!r}, forced by use_backend, cannot run: {problem}")
        return _forced, "forced by use_backend"
    if dtype == torch.float64:
        return "reference", "fp64 runs in plain PyTorch"
    if device_type == "cuda":
        problem = _triton_problem(device_type)
        return ("reference", problem) if problem else ("triton", "tensors on a CUDA device")
    if device_type == "cpu":
        problem = _cpp_problem(device_type)
        return ("reference", problem) if problem else ("cpp", "tensors on the CPU")
    return "reference", f"no kernel for {device_type} tensors"


def _backend(x: Tensor) -> str:
    backend, why = _choose(x.device.type, x.dtype)
    if backend == "reference" and _forced is None and x.dtype != torch.float64:
        _warn_once(f"glimodern.ops runs in plain PyTorch, slowly: {why}")
    return backend


def backend_info(
    device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, str]]:
    """Per operator what would run on such tensors: {"backend": cpp | triton | reference, "isa", "why"}.

    device: None means CUDA if this machine has it, else the CPU. "isa" is the instruction set of the C++ kernels
    (scalar, avx2, avx512; the environment variable GLIMODERN_ISA forces one), empty for the other backends.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    backend, why = _choose(torch.device(device).type, dtype)
    isa = _extension.current_isa() if backend == "cpp" else ""
    return {op: {"backend": backend, "isa": isa, "why": why} for op in _OPS}


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Forces the backend "cpp", "triton" or "reference" for all threads of the process while the context lasts.

    None lifts an outer force. Raises RuntimeError if the backend cannot run on this machine, and so does every operator
    given tensors that the forced backend cannot take: nothing falls back.
    """
    global _forced
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"use_backend: wanted one of {', '.join(_BACKENDS)} or None, got {name!r}")
    problem = ""
    if name == "cpp":
        problem = _cpp_problem("cpu")
    elif name == "triton":
        problem = _triton_problem("cuda" if torch.cuda.is_available() else "cpu")
    if problem:
        raise RuntimeError(f"the backend {name!r} cannot run: {problem}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


# Checks


def _check(
    op: str,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
) -> None:
    """Shapes, dtypes and devices: what can be known without reading the tensors."""
    floats = {"a": a, "b": b, "u": u, "c": c}
    for name, x in (*floats.items(), ("cu_words", cu_words), ("cu_types", cu_types)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
        if x.device != a.device:
            raise ValueError(f"{op}: {name} is on {x.device}, a on {a.device}; move it with .to(a.device)")
    for name, x in floats.items():
        if x.dtype not in _FLOATS:
            raise TypeError(f"{op}: {name} must be fp32, fp16, bf16 or fp64, got {x.dtype}; convert it")
    for name, x in (("cu_words", cu_words), ("cu_types", cu_types)):
        if x.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{op}: {name} must be int32, got {x.dtype}; use .to(torch.int32)")
        if x.ndim != 1 or x.shape[0] < 1:
            raise ValueError(f"{op}: {name} must be [texts + 1], got {tuple(x.shape)}")
    if a.ndim != 2 or b.shape != a.shape:
        raise ValueError(f"{op}: a and b must both be [words, H], got {tuple(a.shape)} and {tuple(b.shape)}")
    if u.ndim != 2 or u.shape[1] != a.shape[1]:
        raise ValueError(f"{op}: u must be [types, {a.shape[1]}] (H as in a), got {tuple(u.shape)}")
    if c.shape != u.shape[:1]:
        raise ValueError(f"{op}: c must be [{u.shape[0]}] (one bias a type of u), got {tuple(c.shape)}")
    if cu_words.shape != cu_types.shape:
        raise ValueError(
            f"{op}: cu_words and cu_types must both be [texts + 1], got {len(cu_words)} and {len(cu_types)} entries"
        )
    if max_width < 1:
        raise ValueError(f"{op}: max_width must be at least 1, got {max_width}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{op}: dropout_p must be in [0, 1), got {dropout_p}")


def _bounds(name: str, cu: Tensor, rows: int) -> list[int]:
    """cu [texts + 1] on the CPU as a list, checked to rise from 0 to `rows`."""
    bounds: list[int] = cu.tolist()
    if bounds[0] != 0 or bounds[-1] != rows or any(x > y for x, y in zip(bounds, bounds[1:], strict=False)):
        shown = bounds if len(bounds) <= 8 else [*bounds[:4], "...", *bounds[-3:]]
        raise ValueError(f"{name} must rise from 0 to {rows} (cumulative lengths, one more than texts), got {shown}")
    return bounds


def _check_positives(positives: Tensor, cu_words: Tensor, cu_types: Tensor, max_width: int) -> None:
    """Every row (word, k, type) must be a span of at most max_width words of one text, and a type of that text."""
    if not positives.shape[0]:
        return
    word, k, kind = positives.long().T.contiguous().unbind()
    starts, type_starts = cu_words.long(), cu_types.long()
    text = torch.searchsorted(starts[1:].contiguous(), word, right=True)
    valid = (word >= 0) & (text < len(starts) - 1) & (k >= 0) & (k < max_width)
    text = text.clamp(max=max(len(starts) - 2, 0))
    if len(starts) > 1:
        valid &= (word + k < starts[text + 1]) & (kind >= type_starts[text]) & (kind < type_starts[text + 1])
    if not valid.all():
        row = int((~valid).nonzero()[0])
        raise ValueError(
            f"positives row {row} is (word, k, type) = {tuple(positives[row].tolist())}, wanted a span word..word+k of"
            f" at most max_width = {max_width} words inside one text and a type of that text, word and type counted in"
            " the whole batch"
        )


def _promote(*floats: Tensor) -> list[Tensor]:
    """All in the widest dtype among them, which autocast may mix."""
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in floats])
    return [x.to(dtype) for x in floats]


def _direct(needs_grad: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether the registered op can be passed by: no autograd, no tracing, no tensor subclass."""
    return (
        not needs_grad
        and not torch.compiler.is_compiling()
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
    )


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


# Implementations: plain functions of tensors, chosen by _backend at every call


class _CppInputs:
    """Contiguous fp32 copies where needed, kept alive while the extension reads their addresses."""

    def __init__(
        self,
        floats: Sequence[Tensor],
        cu_words: Tensor,
        cu_types: Tensor,
        max_width: int,
        dropout_p: float,
        seed: int,
    ) -> None:
        self.floats = [x.detach().to(torch.float32).contiguous() for x in floats]
        self.cu = [x.to(torch.int32).contiguous() for x in (cu_words, cu_types)]
        a, _, u, _ = self.floats
        addresses = [x.data_ptr() for x in (*self.floats, *self.cu)]
        sizes = (len(self.cu[0]) - 1, a.shape[0], u.shape[0], a.shape[1], max_width)
        self.arguments = (*addresses, *sizes, dropout_p, seed & 0xFFFFFFFF)

    def zero_grads(self) -> list[Tensor]:
        return [torch.zeros_like(x) for x in self.floats]


def _triton(op: str) -> Any:
    return importlib.import_module(f"glimodern.kernels.{op}")


def _scores_impl(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    backend = _backend(a)
    size = 0
    if a.device.type == "cpu":
        words, types = _bounds("cu_words", cu_words, len(a)), _bounds("cu_types", cu_types, len(u))
        pairs = zip(zip(words, words[1:], strict=False), zip(types, types[1:], strict=False), strict=True)
        size = sum((w1 - w0) * (t1 - t0) for (w0, w1), (t0, t1) in pairs) * max_width
    if backend == "cpp":
        inputs = _CppInputs((a, b, u, c), cu_words, cu_types, max_width, dropout_p, seed)
        logits = torch.empty(size, dtype=torch.float32)
        _extension.span_scores_forward(*inputs.arguments, logits.data_ptr(), torch.get_num_threads())
        return logits.to(a.dtype)
    if backend == "triton":
        launch = _triton("span_scores").span_scores_forward
        return launch(a, b, u, c, cu_words.to(torch.int32), cu_types.to(torch.int32), max_width, dropout_p, seed)
    with torch.no_grad():
        wide = _widen(a, b, u, c)
        return reference.span_scores(*wide, cu_words, cu_types, max_width, dropout_p, seed).to(a.dtype)


def _scores_backward_impl(
    grad_logits: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    backend = _backend(a)
    if backend == "cpp":
        inputs = _CppInputs((a, b, u, c), cu_words, cu_types, max_width, dropout_p, seed)
        upstream, grads = grad_logits.to(torch.float32).contiguous(), inputs.zero_grads()
        addresses = [x.data_ptr() for x in (upstream, *grads)]
        _extension.span_scores_backward(*inputs.arguments, *addresses, torch.get_num_threads())
        return _narrow(a, *grads)
    if backend == "triton":
        launch = _triton("span_scores").span_scores_backward
        return launch(
            grad_logits, a, b, u, cu_words.to(torch.int32), cu_types.to(torch.int32), max_width, dropout_p, seed
        )
    wide, upstream = _widen(a, b, u, c), grad_logits.to(_wide_dtype(a))
    return _narrow(a, *_plain_grads(upstream, *wide, cu_words, cu_types, max_width, dropout_p, seed))


def _plain_grads(
    grad_logits: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    """The backward pass of ARCHITECTURE ("The fold") in plain PyTorch: autograd cannot record inside a custom op."""
    da, db, du, dc = (torch.zeros_like(x) for x in (a, b, u, c))
    parts = split_scores(grad_logits, cu_words, cu_types, max_width)
    word_bounds, type_bounds = cu_words.tolist(), cu_types.tolist()
    for part, w0, w1, t0, t1 in zip(parts, word_bounds, word_bounds[1:], type_bounds, type_bounds[1:], strict=False):
        ends = torch.arange(w1 - w0, device=a.device)[:, None] + torch.arange(max_width, device=a.device)[None, :]
        inside = ends < w1 - w0
        x = reference.span_hidden(a[w0:w1], b[w0:w1], max_width, w0, dropout_p, seed)[inside]
        grad = part[inside]
        dx = torch.where(x > 0.0, grad @ u[t0:t1] / (1.0 - dropout_p), 0.0)
        da[w0:w1].index_add_(0, inside.nonzero()[:, 0], dx)
        db[w0:w1].index_add_(0, ends[inside], dx)
        du[t0:t1] = grad.T @ x
        dc[t0:t1] = grad.sum(0)
    return da, db, du, dc


def _plain_slope(
    logits: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float,
    focal_scale: float,
    class_balance: float | None,
) -> Tensor:
    """d(sum of losses) / d(logits): sign * weight * s^gamma * (gamma * (1 - s) * softplus(x) + s), s = sigmoid(x)."""
    y = torch.zeros_like(logits, dtype=torch.bool)
    for part, w0, t0, row in _positives_by_text(y, cu_words, cu_types, positives, max_width):
        part[row[:, 0] - w0, row[:, 1], row[:, 2] - t0] = True
    x = torch.where(y, -logits, logits)
    s = torch.sigmoid(x)
    slope = (
        s
        if focal_gamma == 0.0
        else s**focal_gamma * (focal_gamma * torch.sigmoid(-x) * reference.focal_bce(x, 0.0) + s)
    )
    if class_balance is not None:
        slope = slope * torch.where(y, class_balance, 1.0 - class_balance).to(slope.dtype)
    return torch.where(y, -slope, slope) * focal_scale


def _positives_by_text(
    values: Tensor, cu_words: Tensor, cu_types: Tensor, positives: Tensor, max_width: int
) -> Iterator[tuple[Tensor, int, int, Tensor]]:
    """(view of values, first word, first type, rows) of every text; values laid out as span_scores' result."""
    texts = torch.searchsorted(cu_words[1:].contiguous(), positives[:, 0].to(cu_words.dtype).contiguous(), right=True)
    parts = split_scores(values, cu_words, cu_types, max_width)
    bounds = zip(cu_words.tolist(), cu_types.tolist(), strict=True)
    for text, (part, (w0, t0)) in enumerate(zip(parts, bounds, strict=False)):
        yield part, w0, t0, positives[texts == text].long()


def _pairs_inside(cu_words: Tensor, cu_types: Tensor, max_width: int) -> int:
    """How many (span, type) pairs lie inside their texts. Reads tensors."""
    words = cu_words.diff().long()
    widths = words.clamp(max=max_width)
    return int(((words * widths - widths * (widths - 1) // 2) * cu_types.diff()).sum())


def _loss_impl(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float,
    focal_scale: float,
    class_balance: float | None,
    mean: bool,
    dropout_p: float,
    seed: int,
    compute_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    backend = _backend(a)
    if a.device.type == "cpu":
        _bounds("cu_words", cu_words, len(a)), _bounds("cu_types", cu_types, len(u))
        _check_positives(positives, cu_words, cu_types, max_width)
    if backend == "cpp":
        inputs = _CppInputs((a, b, u, c), cu_words, cu_types, max_width, dropout_p, seed)
        rows = positives.to(torch.int64).contiguous()
        grads = inputs.zero_grads() if compute_grads else []
        scale = focal_scale / max(_pairs_inside(cu_words, cu_types, max_width), 1) if mean else focal_scale
        weights = (scale, scale) if class_balance is None else (scale * class_balance, scale * (1.0 - class_balance))
        addresses = [x.data_ptr() for x in grads] if compute_grads else [0, 0, 0, 0]
        total = _extension.span_loss(
            *inputs.arguments, rows.data_ptr(), len(rows), focal_gamma, *weights, compute_grads, *addresses,
            torch.get_num_threads(),
        )  # fmt: skip
        loss = torch.tensor(total, dtype=torch.float32)
        return _loss_outputs(loss, a, _narrow(a, *grads) if compute_grads else [])
    if backend == "triton":
        loss, *launched = _triton("span_loss").span_loss_forward(
            a, b, u, c, cu_words.to(torch.int32), cu_types.to(torch.int32), positives, max_width, focal_gamma,
            focal_scale, class_balance, mean, dropout_p, seed, compute_grads,
        )  # fmt: skip
        return _loss_outputs(loss, a, launched if compute_grads else [])

    with torch.no_grad():
        wide = _widen(a, b, u, c)
        logits = reference.span_scores(*wide, cu_words, cu_types, max_width, dropout_p, seed)
        options = (positives, max_width, focal_gamma, focal_scale, class_balance)
        loss = reference.loss_of_scores(logits, cu_words, cu_types, *options, "mean" if mean else "sum")
        if not compute_grads:
            return _loss_outputs(loss, a, [])
        slope = _plain_slope(logits, cu_words, cu_types, *options)
        if mean:
            slope = slope / max(_pairs_inside(cu_words, cu_types, max_width), 1)
        plain = _plain_grads(slope, *wide, cu_words, cu_types, max_width, dropout_p, seed)
        return _loss_outputs(loss, a, _narrow(a, *plain))


def _widen(a: Tensor, b: Tensor, u: Tensor, c: Tensor) -> Grads:
    wide = _wide_dtype(a)
    return a.to(wide), b.to(wide), u.to(wide), c.to(wide)


def _narrow(a: Tensor, da: Tensor, db: Tensor, du: Tensor, dc: Tensor) -> Grads:
    return da.to(a.dtype), db.to(a.dtype), du.to(a.dtype), dc.to(a.dtype)


def _wide_dtype(a: Tensor) -> torch.dtype:
    return torch.float64 if a.dtype == torch.float64 else torch.float32


def _loss_outputs(loss: Tensor, a: Tensor, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    da, db, du, dc = grads if grads else (a.new_empty(0) for _ in range(4))
    return loss, da, db, du, dc


# Registration


@torch.library.custom_op("glimodern::span_scores", mutates_args=())
def _scores_op(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    return _scores_impl(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)


@_scores_op.register_fake
def _(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed):  # type: ignore[no-untyped-def]
    return a.new_empty(torch.library.get_ctx().new_dynamic_size())


@torch.library.custom_op("glimodern::span_scores_backward", mutates_args=())
def _scores_backward_op(
    grad_logits: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    return _scores_backward_impl(grad_logits, a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)


@_scores_backward_op.register_fake
def _(grad_logits, a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (a, b, u, c))


def _scores_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _scores_autograd(ctx: Any, grad_logits: Tensor) -> tuple[Any, ...]:
    grads = _scores_backward_op(grad_logits, *ctx.saved_tensors, *ctx.options)
    wanted = (grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None, None)


_scores_op.register_autograd(_scores_autograd, setup_context=_scores_setup)


@torch.library.custom_op("glimodern::span_loss", mutates_args=())
def _loss_op(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float,
    focal_scale: float,
    class_balance: float | None,
    mean: bool,
    dropout_p: float,
    seed: int,
    compute_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _loss_impl(
        a, b, u, c, cu_words, cu_types, positives, max_width, focal_gamma, focal_scale, class_balance, mean, dropout_p,
        seed, compute_grads,
    )  # fmt: skip


@_loss_op.register_fake
def _(a, b, u, c, cu_words, cu_types, positives, *options):  # type: ignore[no-untyped-def]
    compute_grads = options[-1]
    loss = a.new_empty((), dtype=_wide_dtype(a))
    return loss, *(x.new_empty(x.shape if compute_grads else 0) for x in (a, b, u, c))


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.compute_grads = inputs[-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _loss_autograd(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
    if not ctx.compute_grads:
        raise RuntimeError("span_loss ran without compute_grads: it has no gradient; call glimodern.ops.span_loss")
    wanted = (
        (grad * upstream).to(grad.dtype) if needed else None
        for grad, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
    )
    return (*wanted, *(None,) * 11)


_loss_op.register_autograd(_loss_autograd, setup_context=_loss_setup)


# The public functions


def span_scores(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Logits of every span and type, ragged by text: drop(relu(a_i + b_{i+k})) . u_t + c_t.

    a, b [n, H] per word; u [m, H], c [m] per entity type (fp32, fp16, bf16 or fp64, promoted to the widest among them;
    all four differentiable); cu_words, cu_types int32 [texts + 1]: the texts' bounds in a and b, and in u and c.
    -> [sum of words * max_width * types] in that dtype: text after text, each row-major [words, max_width, types]
    (`split_scores` cuts it up); -inf, without gradient, where the span i..i+k leaves its text. dropout_p drops elements
    of relu(a + b) by a counter-based generator, a function of seed and place alone (reference.dropout_keep). Nothing of
    size n * max_width * H is stored.

    Raises ValueError or TypeError, with what was wanted, for bad shapes, dtypes, devices and, on the CPU, bounds.
    """
    _check("span_scores", a, b, u, c, cu_words, cu_types, max_width, dropout_p)
    a, b, u, c = _promote(a, b, u, c)
    run = _scores_impl if _direct(_needs_grad(a, b, u, c), (a, b, u, c)) else _scores_op
    return run(a, b, u, c, cu_words, cu_types, int(max_width), float(dropout_p), int(seed))


def span_loss(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    *,
    focal_gamma: float = 0.0,
    focal_scale: float = 1.0,
    class_balance: float | None = None,
    reduction: str = "sum",
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Focal binary cross-entropy over every (span, type) inside its text -> scalar, fp32 (fp64 for fp64 inputs).

    a .. max_width, dropout_p and seed as in `span_scores`; positives int [P, 3]: distinct rows (word, k, type), word
    and type counted in the whole batch, the span is word..word+k. Each pair costs sigmoid(x)^focal_gamma * softplus(x),
    x the negated logit of a positive or the logit of a negative, times focal_scale (the paper's alpha), times
    class_balance for a positive and 1 - class_balance for a negative (the public code's alpha; None: 1 and 1).
    reduction "mean" divides the sum by the number of pairs. Gradients are computed in the same call, if any input asks
    for one, and are not differentiable again.

    Raises ValueError or TypeError as `span_scores` does, and for positives outside their text (on the CPU).
    """
    _check("span_loss", a, b, u, c, cu_words, cu_types, max_width, dropout_p)
    if positives.ndim != 2 or positives.shape[1] != 3 or positives.is_floating_point():
        raise ValueError(
            "span_loss: positives must be integers [P, 3], rows (word, k, type), got"
            f" {tuple(positives.shape)} {positives.dtype}"
        )
    if positives.device != a.device:
        raise ValueError(f"span_loss: positives is on {positives.device}, a on {a.device}; move it with .to(a.device)")
    if not (focal_gamma >= 0.0 and math.isfinite(focal_gamma)):
        raise ValueError(f"span_loss: focal_gamma must be finite and at least 0, got {focal_gamma}")
    if class_balance is not None and not 0.0 <= class_balance <= 1.0:
        raise ValueError(f"span_loss: class_balance must be None or in [0, 1], got {class_balance}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"span_loss: reduction must be 'sum' or 'mean', got {reduction!r}")
    a, b, u, c = _promote(a, b, u, c)
    needs_grad = _needs_grad(a, b, u, c)
    run = _loss_impl if _direct(needs_grad, (a, b, u, c)) else _loss_op
    return run(
        a, b, u, c, cu_words, cu_types, positives, int(max_width), float(focal_gamma), float(focal_scale),
        None if class_balance is None else float(class_balance), reduction == "mean", float(dropout_p), int(seed),
        needs_grad,
    )[0]  # fmt: skip


def split_scores(logits: Tensor, cu_words: Tensor, cu_types: Tensor, max_width: int) -> list[Tensor]:
    """The logits of `span_scores` as one view [words, max_width, types] a text. Reads the two cu tensors."""
    shapes = list(zip(cu_words.diff().tolist(), cu_types.diff().tolist(), strict=True))
    wanted = sum(words * types for words, types in shapes) * max_width
    if logits.shape != (wanted,):
        raise ValueError(
            f"split_scores: logits must be [{wanted}] for these bounds and max_width, got {tuple(logits.shape)}"
        )
    parts = logits.split([words * max_width * types for words, types in shapes])
    return [part.view(words, max_width, types) for part, (words, types) in zip(parts, shapes, strict=True)]
