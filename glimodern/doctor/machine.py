"""Facts about this machine, and checks of packages, extension, operators, threads and GPU."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from glimodern.version import __version__

from .base import CheckError, Checks

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "gliner")
VARIABLES = ("GLIMODERN_ISA", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TRITON_INTERPRET")  # that affect computation
REINSTALL = 'install a C++17 compiler ("apt-get install g++") and install glimodern again'
_TOLERANCE = 1e-5  # relative, between kernels and plain PyTorch in fp32, for sums of 32 values around 1


def version_of(package: str) -> str:
    """Installed version of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """Describe this machine as facts by name. "versions" and "backends" (device -> operator -> info) are dicts."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "glimodern": __version__,
        "python": platform.python_version(),
        "versions": {name: version_of(name) or "not installed" for name in PACKAGES},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if importlib.util.find_spec("torch") is None:
        return facts
    import torch

    from glimodern import ops
    from glimodern.ops import dispatch

    extension = dispatch.extension
    facts["threads"] = torch.get_num_threads()
    facts["bf16 multiplied natively"] = dispatch.native_bf16(torch.device("cpu"))
    facts["instruction sets"] = [] if extension is None else list(extension.available_isas())
    facts["extension"] = dispatch.EXTENSION_ERROR if extension is None else str(extension.__file__)
    facts["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ["cpu", "cuda"] if facts["gpu"] else ["cpu"]
    facts["backends"] = {device: ops.backend_info(device) for device in devices}
    return facts


def check_machine(checks: Checks) -> None:
    """Check this machine."""
    checks.run("packages", _packages, "install glimodern again, with its requirements")
    checks.run("extension", _extension, REINSTALL)
    checks.run("operators", _operators, f"send this report with a bug report; {REINSTALL}")
    checks.run("threads", _threads, "unset OMP_NUM_THREADS, or call torch.set_num_threads")
    checks.run("gpu", _gpu, "install versions of PyTorch and Triton that support this GPU")


def _packages() -> tuple[None, str]:
    from packaging.requirements import Requirement

    required = [Requirement(line) for line in importlib.metadata.requires("glimodern") or ()]
    required = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    unmet = [r for r in required if not r.specifier.contains(version_of(r.name) or "0", prereleases=True)]
    if unmet:
        messages = (f"{r.name}: expected {r.specifier}, got {version_of(r.name) or 'none'}" for r in unmet)
        raise CheckError("; ".join(messages), "pip install " + " ".join(f'"{r.name}{r.specifier}"' for r in unmet))
    return None, f"{len(required)} requirements are met, Python {sys.version.split()[0]}"


def _extension() -> tuple[None, str]:
    from glimodern.ops import dispatch

    if dispatch.extension is None:
        raise CheckError(f"{dispatch.EXTENSION_ERROR}; operators on CPUs run in plain PyTorch, slowly", REINSTALL)
    isas, used = dispatch.extension.available_isas(), dispatch.extension.current_isa()
    openmp = "with OpenMP" if dispatch.extension.openmp() else "without OpenMP, so on one core"
    return None, f"built {openmp}; this CPU runs {', '.join(isas)}; {used} is used"


def _operators() -> tuple[None, str]:
    """Compare each device's kernels with plain PyTorch, on two small texts."""
    import torch

    from glimodern import ops

    details = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        draw = torch.Generator().manual_seed(0)
        a, b, u = (torch.randn(rows, 32, generator=draw).to(device) for rows in (30, 30, 5))
        cu_words, cu_types = (torch.tensor(cu, dtype=torch.int32, device=device) for cu in ([0, 12, 30], [0, 2, 5]))
        score = functools.partial(ops.span_scores, a, b, u, u[:, 0], cu_words, cu_types, 6)
        got = score()
        with ops.use_backend("reference"):
            expected = score()
        inside = torch.isfinite(expected)
        difference = float((got - expected)[inside].abs().max() / expected[inside].abs().max())
        name = ops.backend_info(device)["span_scores"]["backend"]
        if not difference <= _TOLERANCE:  # also true for NaN
            raise CheckError(
                f"span_scores by {name} on {device}: expected plain PyTorch's values, got a relative difference of "
                f"{difference:.1e}",
                f"send this report with a bug report; until then, glimodern.ops.use_backend('reference'); {REINSTALL}",
            )
        details.append(f"{device}: {name} agrees with plain PyTorch")
    return None, "; ".join(details)


def _threads() -> tuple[None, str]:
    import torch

    threads = torch.get_num_threads()
    if threads > cores():
        raise CheckError(
            f"threads: expected at most one per core ({cores()}), got {threads}, which wait for each other",
            f"unset OMP_NUM_THREADS, or torch.set_num_threads({cores()})",
        )
    return None, f"{threads} of {cores()} cores"


def _gpu() -> tuple[None, str]:
    import torch

    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    if not torch.cuda.is_available():
        if driver:
            raise CheckError(
                f"gpu: expected one, as this machine has an NVIDIA driver, got none from PyTorch {torch.__version__}",
                "install a PyTorch built for CUDA (https://pytorch.org/get-started), or update the driver",
            )
        return None, "none; the CPU is used"
    if importlib.util.find_spec("triton") is None:
        raise CheckError("triton: expected it beside a GPU, got none installed", "pip install triton")
    return None, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
