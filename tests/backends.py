"""The backends that can run here, as pytest parameters: the reference, C++ by instruction set, Triton.

Without a GPU, Triton runs by its interpreter (tests/conftest.py sets TRITON_INTERPRET=1 before Triton is imported).
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

from glimodern import ops

try:
    from glimodern import _C as extension  # noqa: N811
except ImportError:
    extension = None

CPP = tuple(f"cpp-{isa}" for isa in ("scalar", "avx2", "avx512"))
BACKENDS = ("reference", *CPP, "triton")


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
