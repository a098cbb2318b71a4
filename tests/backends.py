"""The backends that can run here, as pytest parameters: the reference, C++ by instruction set, Triton.

Without a GPU, Triton runs by its interpreter (tests/conftest.py sets TRITON_INTERPRET=1 before Triton is imported).
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from glimodern import ops

try:
    from glimodern import _C as extension  # noqa: N811
except ImportError:
    extension = None

CPP = tuple(f"cpp-{isa}" for isa in ("scalar", "avx2", "avx512"))
BACKENDS = ("reference", *CPP, "triton")
FP64_BACKENDS = ("reference", "cpp-scalar")


def skip_unless_runs(name: str) -> None:
    if name.startswith("cpp-"):
        if extension is None:
            pytest.skip("the C++ extension is not built")
        if name.removeprefix("cpp-") not in extension.available_isas():
            pytest.skip(f"this machine or build has no {name.removeprefix('cpp-')}")
    elif name == "triton":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("Triton is not installed")
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no CUDA device, and TRITON_INTERPRET is not 1")


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty and its kin hold NaN (or the largest integer): whoever reads before writing is found out."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def outputs_by_threads(function: Callable[[], Sequence[torch.Tensor]]) -> list[Sequence[torch.Tensor]]:
    """function's tensors with 1, 2 and 5 threads of PyTorch, for comparison bit by bit."""
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs.append(function())
    finally:
        torch.set_num_threads(before)
    return outputs


def assert_same_bits(first: Sequence[torch.Tensor], *others: Sequence[torch.Tensor]) -> None:
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


@contextlib.contextmanager
def running(name: str) -> Iterator[torch.device]:
    """Forces a backend of BACKENDS, skipping the test where it cannot run; yields the device of its tensors."""
    skip_unless_runs(name)
    isa = name.removeprefix("cpp-") if name.startswith("cpp-") else ""
    device = torch.device("cuda" if name == "triton" and torch.cuda.is_available() else "cpu")
    with ops.use_backend("cpp" if isa else name):
        if isa:
            extension.set_isa(isa)
        try:
            yield device
        finally:
            if isa:
                extension.set_isa("")
