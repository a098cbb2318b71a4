"""The weights of a model in the dtype of a file: int8 and bf16, made from fp32 and compared with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glimodern.display import short
from glimodern.layers.packed_linear import measured_inputs

from .loading import pack
from .precision import LEAST_AGREEMENT, PrecisionReport, Questions, answers, compare_answers

if TYPE_CHECKING:
    from .glimodern import GLiModern

STORED_DTYPES = ("fp32", "bf16", "int8")


def lower(model: GLiModern, dtype: str, plain: torch.dtype, asked: Questions) -> PrecisionReport:
    """Pack a plain fp32 model for inference on a CPU, and compare its answers before and after.

    dtype: "int8", which is scaled by each layer's inputs in the built-in sentences, or "bf16". plain: dtype of the
    activations, and of layers that are not packed.
    """
    if dtype == "int8":
        with measured_inputs(model):
            built_in = Questions.read(model, None, None)
            exact = answers(model, built_in)
        exact = exact if asked == built_in else answers(model, asked)
    else:
        exact = answers(model, asked)
    pack(model, plain, int8=dtype == "int8")
    model.to(dtype=plain)
    return compare_answers(dtype, answers(model, asked), exact)


def in_dtype(
    state: dict[str, Tensor], dtype: str, asked: Questions, plain_copy: Callable[[dict[str, Tensor]], GLiModern]
) -> tuple[dict[str, Tensor], GLiModern, PrecisionReport]:
    """Return a state dict in fp32 as a file in dtype holds it, a model that computes so, and the change.

    plain_copy: builds a plain model for inference on the CPU from a state dict, which it empties.

    The tensors do not depend on this machine's kernels. In int8, what is not quantised is in fp32. In bf16, vectors
    (biases, norms) are in fp32: kernels add biases in fp32.
    """
    state = {name: tensor.cpu() for name, tensor in state.items()}
    copy = plain_copy(dict(state))
    if dtype == "int8":
        report = lower(copy, dtype, torch.float32, asked)
        return copy.state_dict(), copy, report
    report = lower(copy, dtype, torch.bfloat16, asked)
    for name, x in state.items():
        state[name] = x.to(torch.bfloat16) if x.is_floating_point() and x.ndim > 1 else x
    return state, copy, report


def check_dtype(dtype: str, computed: str) -> None:
    """Raise ValueError unless a model that computes in the dtype `computed` can be stored in `dtype`."""
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype: expected one of {STORED_DTYPES} or None, got {dtype!r}")
    if dtype != computed != "fp32":
        raise ValueError(
            f'dtype: expected a model in fp32 to save in {dtype}, got one in {computed}; load it with dtype="fp32"'
        )


def check_agreement(precision: dict[str, Any] | None, *, force: bool) -> None:
    """Raise ValueError if weights in a smaller dtype find other entities than fp32, or none was found to compare by.

    force: only warn.
    """
    if precision is None or (precision["entities"] and precision["agreement"] >= LEAST_AGREEMENT):
        return
    least = f"at least {100 * LEAST_AGREEMENT:.0f} % agreement on some entities"
    problem = f"expected {least}, got {PrecisionReport(**precision)}"
    if not force:
        raise ValueError(f"dtype: {problem}; save in another dtype, give texts and labels of yours, or force=True")
    warnings.warn(f"dtype: {problem}; saved because of force=True", stacklevel=4)


def warn_of(precision: dict[str, Any], file: str) -> None:
    """Warn if a model in int8 finds other entities than fp32. precision: of its config. file: named in errors.

    Raises ValueError for a config whose precision is not one of `PrecisionReport`'s.
    """
    try:
        report = PrecisionReport(**precision)
        text = str(report)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: precision: expected {', '.join(PrecisionReport.__annotations__)}, got {short(precision)}; save "
            "the model again"
        ) from error
    if not report.agreement >= LEAST_AGREEMENT:
        warnings.warn(
            f"{file}: expected at least {100 * LEAST_AGREEMENT:.0f} % agreement, got {text}; check it on your own "
            "texts with check_precision, or use fp32 or bf16",
            stacklevel=4,
        )
