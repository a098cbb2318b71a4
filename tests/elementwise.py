"""For the tests of the encoder's elementwise operators: an operator against its oracle, results and gradients."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from accuracy import assert_accurate
from backends import running, skip_unless_runs
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]
# Triton 3.9's interpreter truncates fp32 to bf16 where hardware rounds to nearest: twice the error at each rounding.
TRITON_BF16_FACTOR = 4.0


def draw(*shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN, so that whatever an operator leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(function: Function, floats: Sequence[Tensor | None], constants: Sequence[object], upstream: Sequence[Tensor]):
    """Results, and the gradients of the floats that are tensors, for a gradient of each result."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in floats]
    results = function(*leaves, *constants)
    results = (results,) if isinstance(results, Tensor) else results
    grads = torch.autograd.grad(
        results, [x for x in leaves if x is not None], [g.to(y) for g, y in zip(upstream, results, strict=True)]
    )
    return [y.detach() for y in results], grads


def assert_matches(
    backend: str,
    op: Function,
    oracle: Function,
    definition: Function,
    floats: Sequence[Tensor | None],
    constants: Sequence[object] = (),
) -> None:
    """op on a backend against the oracle in fp64, by the accuracy rule; the inputs stay as they are.

    The backend "reference" computes by the oracle itself, so its truth is the naive definition (tests/naive.py).
    """
    skip_unless_runs(backend)
    dtype = next(x.dtype for x in floats if x is not None)
    if dtype == torch.float16 and backend.startswith("cpp"):
        pytest.skip("no fp16 kernels in C++")
    with torch.no_grad():
        results = oracle(*floats, *constants)
    shapes = [results.shape] if isinstance(results, Tensor) else [y.shape for y in results]
    upstream = draw(*shapes, seed=1, dtype=dtype)
    doubles = [None if x is None else x.double() for x in floats]
    truth, true_grads = run(definition if backend == "reference" else oracle, doubles, constants, upstream)
    eager, eager_grads = run(oracle, floats, constants, upstream)
    with running(backend) as device, poisoned():
        mine = [None if x is None else x.to(device) for x in floats]
        others = [x.to(device) if isinstance(x, Tensor) else x for x in constants]
        before = [None if x is None else x.clone() for x in mine]
        got, grads = run(op, mine, others, [g.to(device) for g in upstream])
        assert all(x is None or torch.equal(x, y) for x, y in zip(mine, before, strict=True))
    c = TRITON_BF16_FACTOR if backend == "triton" and dtype == torch.bfloat16 else 2.0
    for number, values in enumerate(zip(got, truth, eager, strict=True)):
        assert_accurate(values[0].cpu(), *values[1:], c=c, what=f"result {number}")
    for number, values in enumerate(zip(grads, true_grads, eager_grads, strict=True)):
        assert_accurate(values[0].cpu(), *values[1:], c=c, what=f"gradient {number}")


def odd_values(dtype: torch.dtype) -> Tensor:
    """NaN of every kind of bits, infinities, the largest numbers, both zeros: 16 of them."""
    kinds = {torch.bfloat16: (torch.int16, 16), torch.float32: (torch.int32, 0)}
    integer, shift = kinds[dtype]
    bits = [0x7FC00000, 0x7F810000, 0x7FFF0000, 0xFFC00000, 0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF, 0x7F800000]
    bits += [0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F0000, 0x00000000, 0x80000000, 0x00000001, 0x3F808000]
    numbers = torch.tensor(bits, dtype=torch.int64)
    numbers = (numbers >> shift) - torch.where(numbers >= 1 << 31, 1 << (32 - shift), 0)
    return numbers.to(integer).view(dtype)


def assert_same_bits(backend: str, op: Function, floats: Sequence[Tensor | None], constants: Sequence[object] = ()):
    """Twice in a row and, for C++, whatever the number of threads."""
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 1, 2, 5) if backend.startswith("cpp") else (1, 1):
            torch.set_num_threads(threads)
            with running(backend) as device:
                mine = [None if x is None else x.to(device) for x in floats]
                others = [x.to(device) if isinstance(x, Tensor) else x for x in constants]
                with torch.no_grad():
                    results = op(*mine, *others)
                shapes = [results.shape] if isinstance(results, Tensor) else [y.shape for y in results]
                upstream = [g.to(device) for g in draw(*shapes, seed=1)]
                got, grads = run(op, mine, others, upstream)
                outputs.append((*got, *grads))
    finally:
        torch.set_num_threads(before)
    for other in outputs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(outputs[0], other, strict=True))
