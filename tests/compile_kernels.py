"""Compile every Triton kernel for NVIDIA GPUs without one: `python tests/compile_kernels.py` prints one JSON list.

The real launchers run on CPU tensors with the launch itself replaced by a recorder, so each kernel is compiled with
exactly the argument types, alignments, constants and options that it would be launched with. One entry per kernel,
input types, dropout, target and shape: their names; the machine code's registers and stack bytes a thread; the bytes
of shared memory; and the number of tensor-core instructions in the PTX.
"""

import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from glimodern.kernels import span_entities, span_loss, span_scores, span_vectors
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
# Words and types by text, H, K. "ones": every integer argument is 1, which Triton makes a constant.
SHAPES = {
    "usual": ((40, 0, 24), (9, 3, 16), 768, 12),
    "many types": ((40, 24), (700, 90), 768, 12),
    "ones": ((1,), (1,), 1, 1),
}
Job = tuple[str, float, str, str]  # dtype, dropout, target, shape
JOBS: list[Job] = [
    *itertools.product(DTYPES, (0.0, 0.3), TARGETS, ("usual",)),
    *itertools.product(("fp32",), (0.0,), TARGETS, ("many types",)),
    ("fp32", 0.0, "sm_90", "ones"),
]
launches: list[tuple[ASTSource, dict[str, int]]] = []


def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool = False, **kwargs: Any) -> None:
    """Stands in for JITFunction.run: notes what would be launched."""
    signature, constants, attributes = {}, {}, {}
    values = dict(zip((p.name for p in kernel.params), args, strict=False)) | kwargs
    for number, parameter in enumerate(kernel.params):
        value = values.pop(parameter.name)
        specialize = not parameter.do_not_specialize
        if parameter.is_constexpr or (specialize and isinstance(value, int) and value == 1):
            kind, constants[(number,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            kind, value = POINTERS[value.dtype], value.data_ptr()
        else:
            kind = "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"
        signature[parameter.name] = kind
        if specialize and kind not in ("constexpr", "fp32") and value % 16 == 0:
            attributes[(number,)] = [["tt.divisibility", 16]]
    launches.append((ASTSource(kernel, signature, constants, attributes), values))


def launchers(dtype: torch.dtype, dropout_p: float, shape: str) -> Iterator[Callable[[], object]]:
    """Calls that launch every kernel of the package, with and without its options."""
    words, types, hidden, max_width = SHAPES[shape]
    cu_words, cu_types = (torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in (words, types))
    a, b = torch.zeros(2, sum(words), hidden, dtype=dtype)
    u, c = torch.zeros(sum(types), hidden, dtype=dtype), torch.zeros(sum(types), dtype=dtype)
    positives = torch.zeros(1, 3, dtype=torch.int32)
    text = (a, b, u, c, cu_words, cu_types)
    yield lambda: span_scores.span_scores_forward(*text, max_width, dropout_p, 5)
    yield lambda: span_loss.span_loss_forward(*text, positives, max_width, 0.0, 1.0, None, False, dropout_p, 5, False)
    yield lambda: span_loss.span_loss_forward(*text, positives, max_width, 2.0, 1.0, 0.75, True, dropout_p, 5, True)
    yield lambda: launch_span_entities(dtype, shape)
    yield lambda: launch_span_vectors(dtype, dropout_p, shape)


def launch_span_entities(dtype: torch.dtype, shape: str) -> None:
    """Both passes; how many candidates there are, the kernels that do not run cannot tell."""
    words, types, hidden, max_width = SHAPES[shape]
    cu_words, cu_types = (torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in (words, types))
    a, u, c = (torch.zeros(x, dtype=dtype) for x in ((sum(words), hidden), (sum(types), hidden), (sum(types),)))
    counts = torch.zeros(sum(words) * max_width, 2 if sum(types) > 1 else 1, dtype=torch.int32)
    batch = (a, a, u, c, cu_words, cu_types, torch.zeros(sum(types)), max_width, counts)
    found = (*torch.zeros(2, 16, dtype=torch.int64), torch.zeros(16))
    span_entities.entities_pass(*batch, None, found)
    span_entities.entities_pass(*batch, counts.long(), found)


def launch_span_vectors(dtype: torch.dtype, dropout_p: float, shape: str) -> None:
    """Forward, and what a backward pass launches for a chunk of rows."""
    words, _, hidden, max_width = SHAPES[shape]
    a, w2 = torch.zeros(sum(words), hidden, dtype=dtype), torch.zeros(max(hidden // 4, 1), hidden, dtype=dtype)
    rows = torch.zeros(sum(words) * max_width, dtype=torch.int32)
    span_vectors.span_vectors_forward(a, a, w2, w2[:, 0].contiguous(), rows, rows, max_width, dropout_p, 5)
    x, grad = span_vectors.span_hidden(a, a, rows, rows, max_width, dropout_p, 5), torch.zeros(a.shape)
    span_vectors.span_hidden_backward(rows, rows, x, x, grad, grad, dropout_p)


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread; these kernels have no arrays of their own, so any stack is spills."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"\bREG:(\d+) STACK:(\d+)", text)[-1]
    return int(registers), int(stack)


def compile_one(job: Job) -> list[dict[str, Any]]:
    """Every kernel as it would be launched for one job."""
    dtype, dropout_p, target, shape = job
    JITFunction.run = record
    launches.clear()
    for launch in launchers(DTYPES[dtype], dropout_p, shape):
        launch()
    entries = []
    for source, options in launches:
        compiled = triton.compile(source, target=GPUTarget("cuda", TARGETS[target], 32), options=options)
        registers, stack = registers_and_stack(compiled.asm["cubin"])
        entries.append(
            {
                "kernel": source.name,
                "dtype": dtype,
                "dropout": dropout_p,
                "target": target,
                "shape": shape,
                "registers": registers,
                "stack": stack,
                "shared": compiled.metadata.shared,
                "tensor_core": len(TENSOR_CORE.findall(compiled.asm["ptx"])),
            }
        )
    return entries


def main() -> None:
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        print(json.dumps([entry for entries in pool.map(compile_one, JOBS) for entry in entries]))


if __name__ == "__main__":
    main()
