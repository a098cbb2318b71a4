"""Measurements of the benchmarks: seconds in turns, memory of a call, the machine's ceilings, session facts."""

import ctypes
import functools
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import torch

from glimodern.ops.dispatch import extension

Call = Callable[[], object]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROOT = Path(__file__).resolve().parents[1]
DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


@functools.cache
def _cold() -> torch.Tensor:
    return torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)


def seconds_of(call: Call) -> float:
    """Measure the seconds of one call.

    On a GPU they are measured between two events, after a write that replaces the contents of the L2 cache. Launches
    queue up behind that write, so their latency counts only if the device has to wait for them.
    """
    if DEVICE.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _cold().zero_()
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def in_turns(calls: Mapping[str, Call], max_seconds: float, min_rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of every call, one call of each per round, in reversed order in every other round.

    There are rounds for about max_seconds, at most 200 and at least min_rounds, or at least 3 if a round takes 3
    seconds or more. The calls must be warmed up.
    """
    once = sum(map(seconds_of, calls.values()))
    rounds = max(int(max_seconds / once), min_rounds if once < 3.0 else min(min_rounds, 3))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    gc.collect()
    gc.disable()
    try:
        for _ in range(min(rounds, 200)):
            for name in order:
                seconds[name].append(seconds_of(calls[name]))
            order.reverse()
    finally:
        gc.enable()
    return seconds


def others_seconds() -> float:
    """CPU seconds of all other processes on the machine since a fixed time; 0 without /proc."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_mib(call: Call) -> float | None:
    """Measure the peak MiB of a call beyond the memory in use before it; None if that cannot be read.

    On a GPU this is memory of PyTorch's allocator. On Linux it is the resident set, whose peak is reset by
    /proc/self/clear_refs after glibc has returned its free memory. It includes scratch memory of C++ kernels, but not
    what a library keeps from its first call.
    """
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_mib("VmRSS")
    except (AttributeError, OSError):  # no glibc, no /proc, or a sandbox that forbids it
        return None
    call()
    return _status_mib("VmHWM") - before


def _best_rate(work: float, call: Call) -> float:
    call()
    return work / min(seconds_of(call) for _ in range(7)) / 1e9


@functools.cache
def gemm_gflops(dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product. On a CPU it is measured in fp32, in which the C++ kernels compute."""
    size, dtype = (8192, dtype) if DEVICE.type == "cuda" else (1536, torch.float32)
    x, y = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    return _best_rate(2 * size**3, lambda: x @ y)


@functools.cache
def fma_gflops() -> float | None:
    """GFLOP/s of FMAs on registers only (csrc/fma_ceiling/), in fp32 vectors; None on a GPU or without vectors."""
    if DEVICE.type != "cpu" or extension is None or extension.fma_loop(1, 1) == 0.0:
        return None
    steps, threads = 10**7, torch.get_num_threads()
    return _best_rate(extension.fma_loop(steps, threads), lambda: extension.fma_loop(steps, threads))


@functools.cache
def copy_gbs() -> float:
    """GB/s, read plus written, of a copy that is much larger than the caches."""
    x = torch.zeros((1 << 30) if DEVICE.type == "cuda" else (1 << 27), dtype=torch.uint8, device=DEVICE)
    y = torch.zeros_like(x)
    return _best_rate(2 * x.numel(), lambda: y.copy_(x))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu(field: str, default: str) -> str:
    """A field of the first processor in /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    found = (line.split(":", 1) for line in lines if ":" in line)
    return next((value.strip() for name, value in found if name.strip() == field), default)


def _machine() -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{_cpu('model name', platform.machine())}, {os.cpu_count()} cores"


def _kind() -> str:
    """What machines of one kind share: clouds give processors of several generations one name, but not one family."""
    if DEVICE.type == "cuda":
        return _machine()
    isa = extension.available_isas()[-1] if extension is not None else "no extension"
    return f"{_machine()}, family {_cpu('cpu family', 'unknown')}, {isa}"


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@functools.cache
def session_info() -> dict[str, object]:
    """Facts for every row: device, machine, threads, versions, commit."""
    packages = ("torch", "triton", "gliner", "glimodern")
    return {
        "device": DEVICE.type,
        "machine": _machine(),
        "kind": _kind(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": _commit(),
    }
