"""Preparing a loaded model for inference: device, dtype and packed linear layers."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from glimodern import ops
from glimodern.checkpoint.config import CONFIG_FILE
from glimodern.checkpoint.folder import Checkpoint
from glimodern.checkpoint.quantised import check_quantised, dequantise, quantised_layers
from glimodern.display import first_line
from glimodern.encoder import Encoder, build_encoder
from glimodern.layers.packed_linear import PackedLinear, can_pack
from glimodern.network.span_network import SpanNetwork
from glimodern.ops.dispatch import native_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the available device with this name: "cpu", "cuda", "cuda:1", "mps", ..., or "auto".

    "auto" is the CUDA device if there is one, else the CPU. Raises TypeError for a value that is not a name, ValueError
    for an unknown name and for a device that this machine lacks.
    """
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a string or torch.device, got {type(device).__name__}")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        resolved = torch.device("cpu") if resolved.type == "cpu" else resolved  # drops the index of "cpu:0"
    except RuntimeError as error:
        raise ValueError(
            f"device: expected 'auto', 'cpu', 'cuda', 'cuda:N' or another of PyTorch's names, got {device!r}"
            + ("; a GPU is 'cuda'" if str(device).lower().startswith("gpu") else "")
        ) from error
    problem = _problem(resolved)
    if problem:
        raise ValueError(
            f"device: expected a device of this machine, got {str(device)!r}: {problem}; use 'cpu' or 'auto'"
        )
    return resolved


def _problem(device: torch.device) -> str:
    """Reason why a device cannot hold a model; empty if it can."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA GPU"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} GPUs, counted from 0"
    if device.type == "meta":
        return "it holds no values"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # NotImplementedError is a RuntimeError
        return f"PyTorch {torch.__version__} cannot use it ({first_line(error)[:80]})"
    return ""


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of activations and of weights that are not packed.

    dtype: "fp32", "bf16", "fp16", "auto", "int8", or one of torch's float dtypes. "auto" and "int8" give bf16 on
    hardware that multiplies it natively, else fp32.
    """
    if not isinstance(dtype, (str, torch.dtype)):
        raise TypeError(f"dtype: expected a string or torch.dtype, got {type(dtype).__name__}")
    if dtype in ("auto", "int8"):
        return torch.bfloat16 if native_bf16(device) else torch.float32
    resolved = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if resolved in (*DTYPES.values(), torch.float64):
        return resolved
    raise ValueError(f"dtype: expected one of {[*DTYPES, 'int8', 'auto']} or a float dtype of torch, got {dtype!r}")


def encoder_of(stored: Checkpoint, config: dict[str, Any]) -> Encoder:
    """Build the checkpoint's encoder without weights. Raises ValueError if the config does not describe an encoder."""
    try:
        return build_encoder(config, values=False)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{stored.weights.with_name(CONFIG_FILE)}: encoder_config: expected a config that an encoder can be built "
            f"from, got model_type {config.get('model_type')!r} and: {first_line(error) or type(error).__name__}"
        ) from error


def freeze(network: SpanNetwork) -> None:
    """Set a network to inference only: no parameter requires gradients, and the label encoder is sealed."""
    network.requires_grad_(False)
    network.inference_only = True
    if network.label_encoder is not None:
        network.label_encoder.seal()


def computes_as_stored(stored: Checkpoint, dtype: str | torch.dtype, device: torch.device, *, trainable: bool) -> bool:
    """Return whether to compute in int8 because the weights are stored so; if not, dequantise the checkpoint's state.

    dtype: as given to from_pretrained; "auto" computes in int8 on a CPU. Raises ValueError for scales that do not fit.
    """
    if not quantised_layers(stored.state):
        return False
    check_quantised(stored.state, stored.weights)
    if dtype in ("auto", "int8") and device.type == "cpu" and not trainable:
        return True
    dequantise(stored.state)
    return False


def check_int8_kernel() -> None:
    """Raise ValueError if this machine's CPU has no vector kernel for int8."""
    if not can_pack():
        raise ValueError(f"dtype: expected {_KERNEL} for 'int8', got {_no_kernel()}; load with dtype='fp32'")


_KERNEL = "the C++ extension and a CPU with AVX2"


def _no_kernel() -> str:
    return f"neither or one of them ({ops.backend_info('cpu')['linear_packed']['why']})"


def pack_stored(network: SpanNetwork, dtype: torch.dtype, stored: Checkpoint) -> None:
    """Pack a network whose weights are held in int8. dtype: see `pack`. Warns where that is slow."""
    if not can_pack():
        warnings.warn(
            f"{stored.weights}: expected {_KERNEL} for weights in int8, got {_no_kernel()}; they are computed slowly, "
            'load with dtype="fp32" for speed',
            stacklevel=3,
        )
    pack(network, dtype, int8=True)


def pack(network: SpanNetwork, dtype: torch.dtype, *, int8: bool = False) -> None:
    """Pack the linear layers for inference on a CPU.

    dtype: fp32 or bf16; nothing is packed without a kernel that makes it pay. int8: quantise the weights, or take them
    as they are held in int8; dtype is then that of activations and of layers that are not quantised.
    """
    packed = "int8" if int8 else "fp32" if dtype == torch.float32 else "bf16"
    if not int8 and not can_pack():
        return
    unpacked = [] if network.encoder.pack(packed) else [(network.encoder, "encoder")]
    if network.label_encoder is not None and not network.label_encoder.pack(packed):
        unpacked.append((network.label_encoder.encoder, "label encoder"))
    if int8:
        for encoder, name in unpacked:
            warnings.warn(
                f"dtype: expected an encoder whose layers can be packed, got {encoder.model_type}; the {name} "
                "is not quantised, only the other layers are in int8",
                stacklevel=4,
            )
    pack_head(network, packed, dtype)
    network.packed_dtype = packed
    network.eval()  # new modules are in training mode


def pack_head(network: SpanNetwork, packed: str, dtype: torch.dtype) -> None:
    """Pack the linear layers outside the encoders. packed: "fp32", "bf16" or "int8". dtype: see `pack`."""
    if isinstance(network.projection, torch.nn.Linear):
        network.projection = PackedLinear(network.projection, packed)
    network.head.pack(packed, "fp32" if dtype == torch.float32 else "bf16")
