"""The one accuracy rule: a kernel may err no more than eager PyTorch does in the same dtype, plus rounding.

Truth is the reference in fp64 on the same (rounded) inputs. For the largest and for the root-mean-square error alike:

    error(kernel) <= c * error(eager, same dtype) + ulps * eps * size of the truth (its largest value, its RMS)
"""

import torch
from torch import Tensor


def _finite_error(values: Tensor, truth: Tensor, finite: Tensor) -> tuple[float, float]:
    error = (values.double() - truth)[finite]
    return (float(error.abs().max()), float(error.square().mean().sqrt())) if error.numel() else (0.0, 0.0)


def assert_accurate(
    got: Tensor, truth: Tensor, eager: Tensor, *, c: float = 2.0, ulps: float = 4.0, what: str = "result"
) -> None:
    """got and eager in one dtype, truth in fp64, all of one shape; infinities must agree, NaN is an error."""
    assert truth.dtype == torch.float64, "the truth is computed in fp64"
    assert got.shape == truth.shape == eager.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype == eager.dtype, f"{what}: dtype {got.dtype}, expected {eager.dtype}"
    finite = truth.isfinite()
    assert torch.equal(got.double()[~finite], truth[~finite]), f"{what}: infinities differ from the truth's"
    assert bool(got[finite].isfinite().all()), f"{what}: not finite where the truth is"
    if not bool(finite.any()):
        return
    size = truth[finite]
    slack = ulps * torch.finfo(got.dtype).eps
    allowed = zip(
        _finite_error(got, truth, finite),
        _finite_error(eager, truth, finite),
        (float(size.abs().max()), float(size.square().mean().sqrt())),
        ("largest", "RMS"),
        strict=True,
    )
    for error, eager_error, scale, kind in allowed:
        bound = c * eager_error + slack * scale
        assert error <= bound, f"{what}: {kind} error {error:.3g} > {bound:.3g} (eager's is {eager_error:.3g})"
