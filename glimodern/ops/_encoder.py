"""What geglu, rotary and add_layer_norm share."""

from torch import Tensor

from glimodern.ops.dispatch import FLOATS


def check_floats(op: str, tensors: dict[str, Tensor]) -> None:
    """All tensors of a float dtype, on the device of the first."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
        if x.dtype not in FLOATS:
            raise TypeError(f"{op}: {name} must be fp32, fp16, bf16 or fp64, got {x.dtype}; convert it")
        if x.device != first.device:
            raise ValueError(f"{op}: {name} is on {x.device}, {first_name} on {first.device}; move it")


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
