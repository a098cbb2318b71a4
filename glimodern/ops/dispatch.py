"""Which backend runs an operator: Triton, C++ or plain PyTorch; the only importer of kernels and of the extension."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

extension: Any
try:
    extension = importlib.import_module("glimodern._C")
    EXTENSION_ERROR = ""
except ImportError as error:
    extension = None
    EXTENSION_ERROR = f"the C++ extension glimodern._C is not there ({error}); reinstall with a C++17 compiler"

_LOGGER = logging.getLogger("glimodern")
FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
FLOATS = (FP32, FP16, BF16, FP64)


class Kernels(NamedTuple):
    """The dtypes of the tensors that an operator's kernels take, by backend; none: there is no such kernel.

    flash: FlashAttention, of the package flash-attn or of PyTorch, in Triton's place on CUDA.
    """

    cpp: tuple[torch.dtype, ...] = ()
    triton: tuple[torch.dtype, ...] = ()
    flash: tuple[torch.dtype, ...] = ()


# One line an operator.
OPERATORS: dict[str, Kernels] = {
    "dropout": Kernels(cpp=(FP32,), triton=()),
    "attention_varlen": Kernels(cpp=FLOATS, flash=(FP16, BF16)),
    "geglu": Kernels(cpp=(FP32, BF16, FP64), triton=(FP32, FP16, BF16)),
    "rotary": Kernels(cpp=(FP32, BF16, FP64), triton=(FP32, FP16, BF16)),
    "add_layer_norm": Kernels(cpp=(FP32, BF16, FP64), triton=(FP32, FP16, BF16)),
    "linear_packed": Kernels(cpp=(FP32, BF16)),
    "span_entities": Kernels(cpp=FLOATS, triton=(FP32, FP16, BF16)),
    "span_vectors": Kernels(cpp=FLOATS, triton=(FP32, FP16, BF16)),
    "span_scores": Kernels(cpp=FLOATS, triton=(FP32, FP16, BF16)),
    "span_loss": Kernels(cpp=FLOATS, triton=(FP32, FP16, BF16)),
}
_BACKENDS = ("cpp", "triton", "flash", "reference")
NAMES = {FP32: "fp32", FP16: "fp16", BF16: "bf16", FP64: "fp64"}

_forced: str | None = None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_problem(device_type: str) -> str:
    """Why Triton cannot run on such tensors; empty if it can."""
    if not _has_triton():
        return "Triton is not installed"
    if device_type == "cuda" or (device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return ""
    return f"Triton needs CUDA tensors (or TRITON_INTERPRET=1 for tensors on the CPU), got {device_type}"


def _cpp_problem(device_type: str) -> str:
    if extension is None:
        return EXTENSION_ERROR
    return "" if device_type == "cpu" else f"the C++ kernels need tensors on the CPU, got {device_type}"


def _flash_kernel() -> tuple[Callable[..., Tensor], str] | None:
    """The function of flash-attn, or else of PyTorch, and its name for the scale."""
    for name, wanted, scale_name in (
        ("flash_attn", "flash_attn_varlen_func", "softmax_scale"),
        ("torch.nn.attention.varlen", "varlen_attn", "scale"),
    ):
        try:
            run = getattr(importlib.import_module(name), wanted)
        except (ImportError, AttributeError):  # not there, or built for another PyTorch
            continue
        if {scale_name, "window_size"} <= inspect.signature(run).parameters.keys():  # PyTorch's first had no windows
            return run, scale_name
    return None


@functools.cache
def flash_attention() -> Callable[..., Tensor] | None:
    """(q, k, v, cu_seqlens, max_seqlen, scale, window) -> attention, by flash-attn or else PyTorch; None: neither.

    Where `flash_drops`, dropout_p may follow: it drops by the device's generator.
    """
    kernel = _flash_kernel()
    if kernel is None:
        return None
    run, scale_name = kernel

    def attend(
        q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, scale: float, window: int | None, **drop: float
    ) -> Tensor:
        reach = -1 if window is None else window
        out: Tensor = run(q, k, v, cu, cu, longest, longest, **{scale_name: scale}, window_size=(reach, reach), **drop)
        return out

    return attend


@functools.cache
def flash_drops() -> bool:
    """Whether `flash_attention` takes dropout_p: flash-attn's does, PyTorch's varlen_attn does not."""
    kernel = _flash_kernel()
    return kernel is not None and "dropout_p" in inspect.signature(kernel[0]).parameters


def _flash_problem(device_type: str) -> str:
    if device_type != "cuda":
        return f"FlashAttention needs CUDA tensors, got {device_type}"
    if not flash_attention():
        return "neither flash-attn nor PyTorch's varlen_attn (with windows) is installed"
    return "" if _has_ampere() else "FlashAttention needs compute capability 8.0 (Ampere) or more"


@functools.cache
def _has_ampere() -> bool:
    """Of the current device; true where there is none, to tell what would run there."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)


_PROBLEMS = {"cpp": _cpp_problem, "triton": _triton_problem, "flash": _flash_problem}


def _problem(op: str, backend: str, device_type: str, dtype: torch.dtype) -> str:
    """Why a backend cannot run an operator on such tensors; empty if it can."""
    if backend == "reference":
        return ""
    dtypes = getattr(OPERATORS[op], backend)
    if not dtypes:
        return f"{op} has no {backend} kernel"
    if dtype not in dtypes:
        return f"the {backend} kernels of {op} take {', '.join(map(NAMES.__getitem__, dtypes))}, got {NAMES[dtype]}"
    return _PROBLEMS[backend](device_type)


@functools.cache
def warn_once(message: str) -> None:
    _LOGGER.warning(message)


def choose(op: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """(backend, why) for tensors of this device and dtype. Raises if the forced backend cannot run on them."""
    if _forced is not None:
        problem = _problem(op, _forced, device_type, dtype)
        if problem:
            raise RuntimeError(f"the backend {_forced!r}, forced by use_backend, cannot run: {problem}")
        return _forced, "forced by use_backend"
    usual = {"cuda": "flash" if OPERATORS[op].flash else "triton", "cpu": "cpp"}.get(device_type)
    if usual is None:
        return "reference", f"no kernel for {device_type} tensors"
    problem = _problem(op, usual, device_type, dtype)
    return ("reference", problem) if problem else (usual, f"tensors on the {device_type.upper()}")


def can_run(op: str, backend: str, x: Tensor) -> bool:
    """Whether this backend takes x and no other one is forced; nothing raises."""
    return _forced in (None, backend) and not _problem(op, backend, x.device.type, x.dtype)


def backend(op: str, x: Tensor) -> str:
    """The backend that runs `op` on x and tensors like it; says once when that is the slow one."""
    name, why = choose(op, x.device.type, x.dtype)
    if name == "reference" and _forced is None and x.dtype != FP64:
        warn_once(f"{op} runs in plain PyTorch, slowly: {why}")
    return name


def backend_info(
    device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, str]]:
    """Per operator what would run on such tensors: {"backend": cpp | triton | flash | reference, "isa", "why"}.

    device: None means CUDA if this machine has it, else the CPU. "isa" is the instruction set of the C++ kernels
    (scalar, avx2, avx512, avx512_bf16, amx; the environment variable GLIMODERN_ISA forces one; always scalar for fp64;
    the last two are avx512 for all but the bf16 of attention_varlen and linear_packed, and amx linear_packed's int8),
    empty for the other backends.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    info = {}
    for op in OPERATORS:
        name, why = choose(op, torch.device(device).type, dtype)
        isa = ""
        if name == "cpp":
            pairs = op in ("attention_varlen", "linear_packed") and dtype == BF16
            isa = "scalar" if dtype == FP64 else extension.current_isa(pairs)
        info[op] = {"backend": name, "isa": isa, "why": why}
    return info


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Forces the backend cpp, triton, flash or reference for all threads of the process while the context lasts.

    None lifts an outer force. Raises RuntimeError if the backend cannot run on this machine, and so does every operator
    given tensors that the forced backend cannot take: nothing falls back.
    """
    global _forced
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"use_backend: expected one of {', '.join(_BACKENDS)} or None, got {name!r}")
    problem = ""
    if name == "cpp":
        problem = _cpp_problem("cpu")
    elif name == "triton":
        problem = _triton_problem("cuda" if torch.cuda.is_available() else "cpu")
    elif name == "flash":
        problem = _flash_problem("cuda" if torch.cuda.is_available() else "cpu")
    if problem:
        raise RuntimeError(f"the backend {name!r} cannot run: {problem}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def host_kernels() -> bool:
    """Whether operators on the host's integers, which no other backend has, run in C++."""
    return extension is not None and _forced != "reference"


def triton_kernels(op: str) -> Any:
    """The module kernels/OP.py."""
    return importlib.import_module(f"glimodern.kernels.{op}")


def storage(dtype: torch.dtype) -> Any:
    """The extension's name for a dtype."""
    return getattr(extension.Dtype, NAMES[dtype])


def promote(*floats: Tensor) -> list[Tensor]:
    """All in the widest dtype among them, which autocast may mix."""
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in floats])
    return [x.to(dtype) for x in floats]


def wide_dtype(x: Tensor) -> torch.dtype:
    """What plain PyTorch computes in for x: fp32, or fp64 for fp64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def direct(needs_gradient: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether the registered op can be passed by: no autograd, no tracing, no tensor subclass."""
    return (
        not needs_gradient
        and not torch.compiler.is_compiling()
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
    )


def needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 natively; a CPU not where GLIMODERN_ISA keeps the kernels to a lesser set."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    kept = extension is not None and extension.current_isa(True) not in ("avx512_bf16", "amx")
    return torch.cpu._is_avx512_bf16_supported() and not kept
