"""What this machine is, what the package finds on it, and whether that fits together."""

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
VARIABLES = ("GLIMODERN_ISA", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TRITON_INTERPRET")  # that change what runs
REINSTALL = 'install a C++17 compiler ("apt-get install g++") and install glimodern again'
_TOLERANCE = 1e-5  # between kernels and plain PyTorch in fp32, of sums of 32 numbers around 1


def version_of(package: str) -> str:
    """The installed version; empty if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """Facts by name; "versions" and "backends" (device -> operator -> backend_info) are dicts."""
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
    checks.run("packages", _packages, "install glimodern again, with its requirements")
    checks.run("extension", _extension, REINSTALL)
    checks.run("operators", _operators, f"send this report with a bug report; {REINSTALL}")
    checks.run("threads", _threads, "unset OMP_NUM_THREADS, or call torch.set_num_threads")
    checks.run("gpu", _gpu, "install a PyTorch and a Triton that are made for this GPU")


def _packages() -> tuple[None, str]:
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in importlib.metadata.requires("glimodern") or ()]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    bad = [one for one in wanted if not one.specifier.contains(version_of(one.name) or "0", prereleases=True)]
    if bad:
        said = (f"{one.name}: expected {one.specifier}, got {version_of(one.name) or 'none'}" for one in bad)
        raise CheckError("; ".join(said), "pip install " + " ".join(f'"{one.name}{one.specifier}"' for one in bad))
    return None, f"{len(wanted)} requirements are met, Python {sys.version.split()[0]}"


def _extension() -> tuple[None, str]:
    from glimodern.ops import dispatch

    if dispatch.extension is None:
        raise CheckError(f"{dispatch.EXTENSION_ERROR}; CPUs run plain PyTorch, slowly", REINSTALL)
    isas, used = dispatch.extension.available_isas(), dispatch.extension.current_isa()
    openmp = "with OpenMP" if dispatch.extension.openmp() else "without OpenMP, so on one core"
    return None, f"built {openmp}; this CPU runs {', '.join(isas)}; {used} is used"


def _operators() -> tuple[None, str]:
    """Each device's kernels against plain PyTorch, on two small texts."""
    import torch

    from glimodern import ops

    told = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        draw = torch.Generator().manual_seed(0)
        a, b, u = (torch.randn(rows, 32, generator=draw).to(device) for rows in (30, 30, 5))
        cu_words, cu_types = (torch.tensor(cu, dtype=torch.int32, device=device) for cu in ([0, 12, 30], [0, 2, 5]))
        score = functools.partial(ops.span_scores, a, b, u, u[:, 0], cu_words, cu_types, 6)
        got = score()
        with ops.use_backend("reference"):
            wanted = score()
        inside = torch.isfinite(wanted)
        off = float((got - wanted)[inside].abs().max() / wanted[inside].abs().max())
        name = ops.backend_info(device)["span_scores"]["backend"]
        if not off <= _TOLERANCE:  # NaN is none
            raise CheckError(
                f"span_scores by {name} on {device}: expected plain PyTorch's numbers, got them off by {off:.1e}",
                f"send this report with a bug report; until then, glimodern.ops.use_backend('reference'); {REINSTALL}",
            )
        told.append(f"{device}: {name} agrees with plain PyTorch")
    return None, "; ".join(told)


def _threads() -> tuple[None, str]:
    import torch

    threads = torch.get_num_threads()
    if threads > cores():
        raise CheckError(
            f"expected at most a thread a core ({cores()}), got {threads} threads, which wait for each other",
            f"unset OMP_NUM_THREADS, or torch.set_num_threads({cores()})",
        )
    return None, f"{threads} of {cores()} cores"


def _gpu() -> tuple[None, str]:
    import torch

    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    if not torch.cuda.is_available():
        if driver:
            raise CheckError(
                f"this machine has an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU",
                "install a PyTorch built for CUDA (https://pytorch.org/get-started), or update the driver",
            )
        return None, "none; the CPU is used"
    if importlib.util.find_spec("triton") is None:
        raise CheckError("PyTorch sees a GPU, but Triton is not installed", "pip install triton")
    return None, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
