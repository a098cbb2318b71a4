"""Choose the backend of an operator: Triton, FlashAttention, C++ or plain PyTorch.

No other module imports the kernels or the extension.
"""

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
    EXTENSION_ERROR = f"the C++ extension glimodern._C could not be loaded ({error}); reinstall with a C++17 compiler"

_LOGGER = logging.getLogger("glimodern")
FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
FLOATS = (FP32, FP16, BF16, FP64)


class Kernels(NamedTuple):
    """Tensor dtypes that an operator's kernels take, by backend; empty: no such kernel.

    flash: FlashAttention, from the package flash-attn or from PyTorch, which replaces Triton on CUDA.
    """

    cpp: tuple[torch.dtype, ...] = ()
    triton: tuple[torch.dtype, ...] = ()
    flash: tuple[torch.dtype, ...] = ()


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
    "token_scores": Kernels(cpp=(FP32, FP16, BF16), triton=(FP32, FP16, BF16)),
}
_BACKENDS = ("cpp", "triton", "flash", "reference")
NAMES = {FP32: "fp32", FP16: "fp16", BF16: "bf16", FP64: "fp64"}
FLASH_MAX_DIM = 256  # FlashAttention-2's kernels: head dims up to this, multiples of 8
_WARNINGS_REMEMBERED = 256

_forced: str | None = None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_problem(device_type: str) -> str:
    """Why Triton cannot run on tensors of this device; empty if it can."""
    if not _has_triton():
        return "Triton is not installed"
    if device_type == "cuda" or (device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return ""
    return f"Triton needs CUDA tensors (or TRITON_INTERPRET=1 for tensors on the CPU), got {device_type}"


def _cpp_problem(device_type: str) -> str:
    """Why the C++ kernels cannot run on tensors of this device; empty if they can."""
    if extension is None:
        return EXTENSION_ERROR
    return "" if device_type == "cpu" else f"the C++ kernels need tensors on the CPU, got {device_type}"


def _flash_kernel() -> tuple[Callable[..., Tensor], str] | None:
    """FlashAttention of flash-attn, or else of PyTorch, with the name of its scale argument; None: neither."""
    for module, function, scale_name in (
        ("flash_attn", "flash_attn_varlen_func", "softmax_scale"),
        ("torch.nn.attention.varlen", "varlen_attn", "scale"),
    ):
        try:
            run = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError):  # not installed, or built for another PyTorch
            continue
        if {scale_name, "window_size"} <= inspect.signature(run).parameters.keys():  # PyTorch's first had no windows
            return run, scale_name
    return None


@functools.cache
def flash_attention() -> Callable[..., Tensor] | None:
    """(q, k, v, cu_seqlens, max_seqlen, scale, window) -> attention, by flash-attn or else PyTorch; None: neither.

    It takes dropout_p too if `flash_drops`, and then draws from the device's generator.
    """
    kernel = _flash_kernel()
    if kernel is None:
        return None
    run, scale_name = kernel

    def attend(
        q: Tensor, k: Tensor, v: Tensor, cu: Tensor, max_seqlen: int, scale: float, window: int | None, **drop: float
    ) -> Tensor:
        side = -1 if window is None else window
        options: dict[str, Any] = {scale_name: scale, "window_size": (side, side), **drop}
        out: Tensor = run(q, k, v, cu, cu, max_seqlen, max_seqlen, **options)
        return out

    return attend


@functools.cache
def flash_drops() -> bool:
    """Whether `flash_attention` takes dropout_p: flash-attn's does, PyTorch's varlen_attn does not."""
    kernel = _flash_kernel()
    return kernel is not None and "dropout_p" in inspect.signature(kernel[0]).parameters


def _flash_problem(device_type: str) -> str:
    """Why FlashAttention cannot run on tensors of this device; empty if it can."""
    if device_type != "cuda":
        return f"FlashAttention needs CUDA tensors, got {device_type}"
    if not flash_attention():
        return "neither flash-attn nor PyTorch's varlen_attn (with windows) is installed"
    return "" if _has_ampere() else "FlashAttention needs compute capability 8.0 (Ampere) or more"


@functools.cache
def _has_ampere() -> bool:
    """Whether the current CUDA device is Ampere or later; true without a device, to report what would run on one."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)


def takes_flash(device_type: str, dtype: torch.dtype, head_dim: int, dropout_p: float = 0.0) -> bool:
    """Whether attention_varlen gives such tensors to FlashAttention, which reads cu_seqlens on the device."""
    chosen, _ = choose("attention_varlen", device_type, dtype)
    drops = dropout_p == 0.0 or flash_drops()
    return chosen == "flash" and drops and head_dim % 8 == 0 and head_dim <= FLASH_MAX_DIM


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


@functools.lru_cache(maxsize=_WARNINGS_REMEMBERED)
def warn_once(message: str) -> None:
    """Log a warning, unless it is among the last 256 different ones that were logged."""
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
    """Whether this backend takes x and no other one is forced; raises nothing."""
    return _forced in (None, backend) and not _problem(op, backend, x.device.type, x.dtype)


def backend(op: str, x: Tensor) -> str:
    """The backend that runs `op` on tensors like x; warns once if that is plain PyTorch for lack of a kernel."""
    name, why = choose(op, x.device.type, x.dtype)
    if name == "reference" and _forced is None and x.dtype != FP64:
        warn_once(f"{op} runs in plain PyTorch, slowly: {why}")
    return name


def backend_info(
    device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, str]]:
    """Report what would run on such tensors, per operator: {"backend": cpp | triton | flash | reference, "isa", "why"}.

    device: None means CUDA if this machine has it, else the CPU. "isa" is the instruction set of the C++ kernels
    (scalar, avx2, avx512, avx512_bf16, amx), empty for the other backends. The environment variable GLIMODERN_ISA
    forces one. fp64 is always scalar. Only attention_varlen, linear_packed and token_scores, which calls linear_packed,
    have avx512_bf16 and amx kernels, in bf16, and the last two an amx kernel in int8; all else runs avx512 there.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    info = {}
    for op in OPERATORS:
        name, why = choose(op, torch.device(device).type, dtype)
        isa = ""
        if name == "cpp":
            bf16_products = op in ("attention_varlen", "linear_packed", "token_scores") and dtype == BF16
            isa = "scalar" if dtype == FP64 else extension.current_isa(bf16_products)
        info[op] = {"backend": name, "isa": isa, "why": why}
    return info


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force the backend cpp, triton, flash or reference in all threads of the process while the context lasts.

    None lifts an outer force. Nothing falls back: every operator raises RuntimeError for tensors that the forced
    backend cannot take, and so does use_backend if the backend cannot run on this machine. Raises ValueError for an
    unknown name.
    """
    global _forced
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"name: expected one of {', '.join(_BACKENDS)} or None, got {name!r}")
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
    """Whether operators on host integers run in C++, the only backend with kernels for them."""
    return extension is not None and _forced != "reference"


def triton_kernels(op: str) -> Any:
    """The module kernels/OP.py."""
    return importlib.import_module(f"glimodern.kernels.{op}")


def storage(dtype: torch.dtype) -> Any:
    """The extension's enumerator for a dtype."""
    return getattr(extension.Dtype, NAMES[dtype])


def promote(*floats: Tensor) -> Sequence[Tensor]:
    """The tensors in the widest dtype among them, which autocast may mix."""
    dtype = floats[0].dtype
    if all([x.dtype == dtype for x in floats]):
        return floats
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in floats])
    return [x.to(dtype) for x in floats]


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums and logits for x: fp32, or fp64 for fp64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def direct(needs_gradient: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether to call the backend without the registered op: no autograd, no tracing, no tensor subclass."""
    if needs_gradient or torch.compiler.is_compiling():
        return False
    for x in tensors:  # a generator in all() takes longer
        if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return False
    return True


def needs_grad(*tensors: Tensor) -> bool:
    """Whether autograd records operations on these tensors."""
    return torch.is_grad_enabled() and any([x.requires_grad for x in tensors])


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 natively; false on a CPU if GLIMODERN_ISA forces a lesser instruction set."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    forced_below_bf16 = extension is not None and extension.current_isa(True) not in ("avx512_bf16", "amx")
    return torch.cpu._is_avx512_bf16_supported() and not forced_below_bf16
