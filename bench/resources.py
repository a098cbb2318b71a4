"""Resources of every Triton kernel's machine code, without a GPU: registers, spills, shared memory, occupancy.

    python bench/resources.py [--quick] [--op NAME]... [--target cuda:90]... [--json FILE] [--dump DIR]

Compiles all launches of bench/launches.py for sm_80, sm_90 and sm_100, or for each --target (cuda:CAPABILITY,
hip:ARCH). The real launchers run on CPU tensors, and Triton's launch code chooses types, alignments, constants and
options. Only the driver is replaced, by one that has a target and launches nothing. The exit status is 1 if a kernel
for NVIDIA spills, or if a kernel that multiplies matrices (launches.CONTRACTIONS) has no tensor-core instruction. For
AMD both are reported only.

--dump writes each code object with a JSON that contains all facts needed to run it outside Triton. Integer tensors of
its example launch are given with their values; floating-point tensors may have any values.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter would replace the compiler

import torch
import triton
from launches import CONTRACTIONS, LAUNCHES, Case
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager
from triton.runtime.jit import JITFunction

TARGETS = ("cuda:80", "cuda:90", "cuda:100")
WAVE32 = re.compile("gfx1[0-9]{3}")  # RDNA; GCN and CDNA have waves of 64 lanes
TENSOR_CORE = re.compile(r"\b(?:[DHIQ]MMA|[HIQ]GMMA|UTC\w*MMA)(?:\.\w+)*|\bv_s?w?mf?mac?_\w+")
SCALAR_BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of the resident warps on one multiprocessor, which has four schedulers with separate registers.

    warps: maximum per scheduler. registers: per scheduler and lane, allocated in steps of `granule`. shared: bytes of
    shared memory. reserved: bytes that each block takes in addition to its own. blocks: maximum resident blocks.
    """

    warps: int
    registers: int
    granule: int
    shared: int
    reserved: int
    blocks: int

    def occupancy(self, registers: int, shared: int, tensor_memory: int, warps: int) -> float:
        """Resident warps divided by the multiprocessor's maximum; 0 if no block fits."""
        by_registers = 4 * min(self.warps, self.registers // (-(-registers // self.granule) * self.granule))
        blocks = min(self.blocks, by_registers // warps, self.shared // (shared + self.reserved or 1))
        if tensor_memory:
            blocks = min(blocks, 512 // tensor_memory)  # columns of sm_100's tensor memory
        return blocks * warps / (4 * self.warps)


# NVIDIA: the CUDA programming guide's tables of compute capabilities (65,536 registers and 64 warps in four parts), by
# https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
# AMD: LLVM's GCNSubtarget, as https://llvm.org/docs/CommandGuide/llvm-calc-occupancy.html prints it; a compute unit of
# gfx942, a workgroup processor of gfx1100.
MULTIPROCESSORS = {
    "cuda:80": Multiprocessor(16, 512, 8, 164 * 1024, 1024, 32),
    "cuda:90": Multiprocessor(16, 512, 8, 228 * 1024, 1024, 32),
    "cuda:100": Multiprocessor(16, 512, 8, 228 * 1024, 1024, 32),
    "hip:gfx942": Multiprocessor(8, 512, 8, 64 * 1024, 0, 16),
    "hip:gfx1100": Multiprocessor(16, 1536, 24, 128 * 1024, 0, 32),
}


class OfflineDriver:
    """Replaces Triton's driver: it has a target to compile for, but no device."""

    def __init__(self, target: str) -> None:
        backend, arch = target.split(":")
        wide = backend == "hip" and not WAVE32.fullmatch(arch)
        self.target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 64 if wide else 32)
        self.name = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        """The key of each kernel's cache of compiled variants."""
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0


class Job(NamedTuple):
    op: str
    case: Case
    target: str
    dump: Path | None


class Launch(NamedTuple):
    compiled: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]


def recorded(job: Job) -> Iterator[Launch]:
    """Run an operator's launchers and yield their launches, compiled."""
    launched: list[Launch] = []
    run = JITFunction.run

    def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool = False, **kwargs: Any) -> None:
        compiled = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        launched.append(Launch(compiled, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, grid))

    driver.set_active(OfflineDriver(job.target))
    JITFunction.run = record
    try:
        LAUNCHES[job.op].launch(job.case)
    finally:
        JITFunction.run = run
    yield from launched


def disassembled(compiled: Any) -> str:
    """Disassemble a cubin. Returns the machine code and the resource usage as text, which Triton's cache keeps."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cache, name = get_cache_manager(compiled.hash), f"{compiled.name}.cuobjdump"
    if path := cache.get_file(name):
        return Path(path).read_text()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tools / "cuobjdump"), "-res-usage", "-sass", file.name]
        environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    text = re.sub(r" *(?:;) +/\*.*|^ +/\* 0x.*\n", "", text, flags=re.MULTILINE)
    cache.put(text, name, binary=False)
    return text


def machine_code(compiled: Any) -> tuple[int, int, Counter[str], list[tuple[int, int]]]:
    """Return registers per thread, spilled bytes per thread, matrix instructions by name, and the loops with some.

    A loop is (number of instructions, number of matrix instructions), innermost first (NVIDIA only).
    """
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        fields = {key: int(value) for key, value in re.findall(r"^ +[- ] \.(\w+): +(\d+)$", text, re.MULTILINE)}
        return fields["vgpr_count"], fields["private_segment_fixed_size"], Counter(TENSOR_CORE.findall(text)), []
    text = disassembled(compiled)
    registers, stack = re.findall(r"\bREG:(\d+) STACK:(\d+)", text)[-1]
    code = [(int(place, 16), line) for place, line in re.findall(r"^ +/\*([0-9a-f]{4,})\*/(.*)", text, re.MULTILINE)]
    matrix = [place for place, line in code if TENSOR_CORE.search(line)]
    loops = []
    for place, line in code:
        jump = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", line)
        if jump and (begin := int(jump[1], 16)) < place:
            inside = sum(begin <= x <= place for x in matrix)
            if inside:
                loops.append((sum(begin <= x <= place for x, _ in code), inside))
    names = Counter(match[0] for _, line in code if (match := TENSOR_CORE.search(line)))
    # A kernel declares no arrays, so its stack holds spilled registers only.
    return int(registers), int(stack), names, sorted(loops)


def constants(compiled: Any) -> dict[str, Any]:
    """Return the arguments that are compiled into the code: every tl.constexpr, and integers that are 1."""
    found = {compiled.src.fn.arg_names[place]: value for (place,), value in compiled.src.constants.items()}
    return {name: getattr(value, "value", value) for name, value in found.items()}


def kernel_arguments(compiled: Any) -> list[dict[str, Any]]:
    """List the arguments to pass, in order: name, Triton's type, bytes. The launcher's two hidden pointers come last.

    A hidden pointer may be null if it needs no bytes. Otherwise it needs that many bytes per program.
    """
    source, meta = compiled.src, compiled.metadata
    arguments: list[dict[str, Any]] = []
    for number, (name, kind) in enumerate(source.signature.items()):
        if kind == "constexpr":
            continue
        aligned = ["tt.divisibility", 16] in source.attrs.get((number,), [])
        width = 8 if kind.startswith("*") else SCALAR_BYTES[kind]
        arguments.append({"name": name, "type": kind, "bytes": width, "multiple_of_16": aligned})
    for name in ("global_scratch", "profile_scratch"):
        wanted = getattr(meta, f"{name}_size")
        arguments.append({"name": name, "type": "*i8", "bytes": 8, "hidden": True, "bytes_a_program": wanted})
    return arguments


def described(value: Any) -> Any:
    """Describe a launch's argument as JSON: a scalar, or a tensor's shape, strides and dtype, and integer values."""
    if not isinstance(value, torch.Tensor):
        return value
    tensor = {"shape": list(value.shape), "strides": list(value.stride()), "dtype": str(value.dtype).split(".")[1]}
    return tensor if value.is_floating_point() else tensor | {"values": value.tolist()}


def dump(launch: Launch, folder: Path, entry: dict[str, Any]) -> None:
    """Write OP.KERNEL.HASH.{cubin,hsaco} and the .json."""
    compiled, meta = launch.compiled, launch.compiled.metadata
    suffix = "cubin" if "cubin" in compiled.asm else "hsaco"
    arguments = kernel_arguments(compiled)
    grid = (*launch.grid, 1, 1)[:3]
    about = entry | {
        "symbol": compiled.name,
        "arguments": arguments,
        "constants": constants(compiled),
        "num_ctas": meta.num_ctas,
        "dynamic_shared_bytes": meta.shared,
        "cooperative_grid": meta.launch_cooperative_grid,
        "triton": triton.__version__,
        "launch": {
            "grid": grid,
            "block": (meta.num_warps * meta.target.warp_size, 1, 1),
            "arguments": {x["name"]: described(launch.arguments[x["name"]]) for x in arguments if "hidden" not in x},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{entry['op']}.{entry['kernel']}.{hashlib.sha256(repr(entry).encode()).hexdigest()[:8]}.{suffix}"
    path.write_bytes(compiled.asm[suffix])
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


def compile_job(job: Job) -> list[dict[str, Any]]:
    """Compile a job. Returns one entry per launch: operator, case, kernel, and resources of its machine code."""
    entries = []
    for number, launch in enumerate(recorded(job)):
        meta = launch.compiled.metadata
        registers, spills, instructions, loops = machine_code(launch.compiled)
        limits = MULTIPROCESSORS.get(job.target)
        tensor_memory = getattr(meta, "tmem_size", None) or 0
        entry = {
            "op": job.op,
            "launch_number": number,
            **job.case._asdict(),
            "target": job.target,
            "kernel": launch.compiled.src.fn.__name__,
            "flags": [name for name, value in constants(launch.compiled).items() if value is True],
            "warps": meta.num_warps,
            "registers": registers,
            "spills": spills,
            "shared": meta.shared,
            "tensor_memory": tensor_memory,
            "occupancy": limits and limits.occupancy(registers, meta.shared, tensor_memory, meta.num_warps),
            "contraction": launch.compiled.src.fn.__name__ in CONTRACTIONS,
            "tensor_core": dict(instructions),
            "loops": loops,
        }
        entries.append(entry)
        if job.dump:
            dump(launch, job.dump / job.target.replace(":", "_"), entry)
    return entries


def problem(entry: dict[str, Any]) -> str:
    """Return the reason for the exit status 1; empty if there is none, and for AMD."""
    if entry["target"].startswith("hip:"):
        return ""
    if entry["spills"]:
        return "spills"
    return "no tensor-core instruction" if entry["contraction"] and not entry["tensor_core"] else ""


def show(console: Console, target: str, entries: list[dict[str, Any]]) -> None:
    table = Table(title=f"{target}, Triton {triton.__version__}", title_justify="left")
    for name in (
        "operator",
        "kernel",
        "case",
        "warps",
        "registers",
        "spills B",
        "shared B",
        "occupancy",
        "tensor cores",
    ):
        table.add_column(name, justify="left" if name in ("operator", "kernel", "case", "tensor cores") else "right")
    for entry in entries:
        case = [entry["dtype"], entry["size"], f"dropout {entry['dropout']}" if entry["dropout"] else ""]
        instructions = ", ".join(f"{count} {name}" for name, count in entry["tensor_core"].items())
        occupancy = "" if entry["occupancy"] is None else f"{entry['occupancy']:.0%}"
        table.add_row(
            entry["op"], " ".join((entry["kernel"], *entry["flags"])), ", ".join(filter(None, case)),
            str(entry["warps"]), str(entry["registers"]), str(entry["spills"]), f"{entry['shared']:,}", occupancy,
            instructions or "none" * entry["contraction"],
            style="red" if problem(entry) else None,
        )  # fmt: skip
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fp32 and bf16, usual size, no dropout")
    parser.add_argument("--op", action="append", choices=LAUNCHES, help="only this operator; repeatable")
    parser.add_argument("--target", action="append", help="cuda:CAPABILITY or hip:ARCH; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write each code object with a JSON file")
    options = parser.parse_args()
    targets = options.target or TARGETS
    for target in targets:
        if not re.fullmatch(r"cuda:\d+|hip:gfx\w+", target):
            parser.error(f"--target: expected cuda:CAPABILITY (cuda:90) or hip:ARCH (hip:gfx942), got {target!r}")
    jobs = [
        Job(op, case, target, options.dump)
        for target in targets
        for op in options.op or LAUNCHES
        for case in LAUNCHES[op].cases
        if case.quick or not options.quick
    ]
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    with ProcessPoolExecutor(max_workers=min(len(jobs), len(os.sched_getaffinity(0)))) as pool:
        entries = [entry for found in pool.map(compile_job, jobs) for entry in found]
    if options.json:
        options.json.write_text(json.dumps(entries, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for target in targets:
        show(console, target, [entry for entry in entries if entry["target"] == target])
    failures = [entry for entry in entries if problem(entry)]
    for entry in failures:
        case = " ".join(str(entry[key]) for key in ("target", "op", "kernel", "dtype", "size", "dropout"))
        console.print(f"[red]{case}: {problem(entry)}[/red]")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
