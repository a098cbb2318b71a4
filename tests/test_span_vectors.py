"""span_vectors: every backend against the fp64 reference, forward and backward; the contract of the public function."""

import math
from collections.abc import Callable
from typing import NamedTuple

import naive
import pytest
import torch
from accuracy import assert_accurate
from backends import BACKENDS, CPP, FP64_BACKENDS, running
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SPAN_CASES, SpanCase, case_id
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glimodern import ops, reference

PLAIN = SPAN_CASES[0]
WIDTH = 70  # of the vectors: no multiple of any tile


class Case(NamedTuple):
    """What span_vectors takes, and an upstream gradient."""

    a: Tensor
    b: Tensor
    w2: Tensor
    b2: Tensor
    cu_words: Tensor
    max_width: int
    spans: Tensor | None
    upstream: Tensor

    def to(self, *where: torch.dtype | torch.device) -> "Case":
        floats = [x.to(*where) for x in (self.a, self.b, self.w2, self.b2)]
        if isinstance(where[0], torch.dtype):
            return Case(*floats, self.cu_words, self.max_width, self.spans, self.upstream.to(*where))
        spans = None if self.spans is None else self.spans.to(*where)
        return Case(*floats, self.cu_words.to(*where), self.max_width, spans, self.upstream.to(*where))


def build(case: SpanCase, chosen: bool, dtype: torch.dtype = torch.float32, width: int = WIDTH) -> Case:
    """chosen: some spans, out of order and with repeats; else all."""
    batch = case.build(dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    w2 = (torch.randn(width, case.hidden, generator=generator) / case.hidden**0.5).to(dtype)
    b2 = torch.randn(width, generator=generator).to(dtype)
    spans, shape = None, (len(batch.a), case.max_width, width)
    if chosen:
        ends = batch.cu_words[1:].repeat_interleave(batch.cu_words.diff())[:, None]
        inside = torch.arange(len(batch.a))[:, None] + torch.arange(case.max_width) < ends
        spans = inside.nonzero()
        spans = spans[torch.randint(len(spans), (len(spans) // 2 + 2,), generator=generator)] if len(spans) else spans
        shape = (len(spans), width)
    upstream = torch.randn(shape, generator=generator).to(dtype)
    return Case(batch.a, batch.b, w2, b2, batch.cu_words, case.max_width, spans, upstream)


def run(case: Case, function: Callable[..., Tensor] = ops.span_vectors, dropout_p: float = 0.0, seed: int = 0):
    """The vectors and the four gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in case[:4]]
    vectors = function(*leaves, case.cu_words, case.max_width, case.spans, dropout_p=dropout_p, seed=seed)
    if not vectors.requires_grad:
        return vectors, [torch.zeros_like(x) for x in leaves]
    grads = torch.autograd.grad(vectors, leaves, case.upstream, allow_unused=True, materialize_grads=True)
    return vectors.detach(), grads


def assert_matches(backend: str, case: Case, dropout_p: float = 0.0, c: float = 2.0) -> None:
    """The backend "reference" computes by the oracle itself, so its truth is the naive definition."""
    definition = naive.span_vectors if backend == "reference" else reference.span_vectors
    truth, true_grads = run(case.to(torch.float64), definition, dropout_p, 11)
    plain, plain_grads = run(case, reference.span_vectors, dropout_p, 11)
    with running(backend) as device:
        vectors, grads = run(case.to(device), dropout_p=dropout_p, seed=11)
    assert_accurate(vectors.cpu(), truth, plain, c=c, what="vectors")
    for name, got, true, other in zip(("da", "db", "dw2", "db2"), grads, true_grads, plain_grads, strict=True):
        assert_accurate(got.cpu(), true, other, c=c, what=name)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("chosen", [False, True], ids=["all", "chosen"])
@pytest.mark.parametrize("case", SPAN_CASES, ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, case, chosen, dropout_p):
    if backend == "triton" and not case.small and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter is too slow for this case")
    assert_matches(backend, build(case, chosen), dropout_p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [PLAIN, SPAN_CASES[2], SPAN_CASES[10], SPAN_CASES[11]], ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, case, dtype):
    """Triton 3.9's interpreter truncates fp32 to bf16: twice the error at each rounding."""
    for chosen, dropout_p in ((False, 0.0), (True, 0.4)):
        assert_matches(backend, build(case, chosen, dtype), dropout_p, c=4.0 if backend == "triton" else 2.0)


@pytest.mark.parametrize("backend", FP64_BACKENDS)
def test_fp64_is_computed_in_fp64(backend):
    case = build(PLAIN, True, torch.float64)
    wanted, wanted_grads = run(case, naive.span_vectors, 0.2, 3)
    with running(backend):
        vectors, grads = run(case, dropout_p=0.2, seed=3)
    for got, truth in zip((vectors, *grads), (wanted, *wanted_grads), strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-13, atol=1e-13)


class Conversions(TorchDispatchMode):
    """The sizes of what is converted to another dtype while this lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].is_floating_point():
            self.sizes.add(result.numel())
        return result


@pytest.mark.parametrize("backend", CPP)
def test_bf16_is_read_and_written_as_it_is(backend):
    """Only W2 and b2 are converted, for the product: neither words nor vectors."""
    case = build(PLAIN, False, torch.bfloat16)
    with running(backend), Conversions() as seen:
        ops.span_vectors(*case[:4], case.cu_words, case.max_width)
    assert seen.sizes == {case.w2.numel(), case.b2.numel()}


@pytest.mark.parametrize("backend", CPP[1:])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    hidden=st.integers(1, 300),
    max_width=st.integers(1, 20),
    width=st.integers(1, 40),
    chosen=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.25]),
)
def test_ragged_shapes(backend, texts, hidden, max_width, width, chosen, dropout_p):
    case = SpanCase("drawn", tuple(texts), (0,) * len(texts), hidden, max_width)
    assert_matches(backend, build(case, chosen, width=width), dropout_p)


@pytest.mark.parametrize("chosen", [False, True], ids=["all", "chosen"])
@pytest.mark.parametrize("backend", FP64_BACKENDS)
def test_gradcheck_in_fp64(backend, chosen):
    case = build(SpanCase("", (3, 0, 2), (0, 0, 0), 5, 2), chosen, torch.float64, width=3)
    floats = [x.requires_grad_() for x in case[:4]]

    def vectors(*floats: Tensor) -> Tensor:
        return ops.span_vectors(*floats, case.cu_words, case.max_width, case.spans, dropout_p=0.3, seed=2)

    with running(backend):
        assert torch.autograd.gradcheck(vectors, floats, nondet_tol=0.0)


@pytest.mark.parametrize("chosen", [False, True], ids=["all", "chosen"])
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_opcheck(backend, chosen):
    case = build(PLAIN, chosen)
    floats = [x.requires_grad_() for x in case[:4]]
    with running(backend):
        arguments = (*floats, case.cu_words, case.spans, case.max_width, 0.1, 3)
        torch.library.opcheck(torch.ops.glimodern.span_vectors.default, arguments)


def test_compiles_without_a_graph_break():
    case = build(PLAIN, True)
    floats = [x.requires_grad_() for x in case[:4]]

    def model(*floats: Tensor) -> Tensor:
        return ops.span_vectors(*floats, case.cu_words, case.max_width, case.spans).tanh()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*floats), model(*floats))


@pytest.mark.parametrize("backend", BACKENDS)
def test_spans_outside_their_text(backend):
    """Zero going out; whatever gradient comes back there is not read."""
    case = build(SPAN_CASES[5], False)
    with running(backend) as device:
        vectors, clean = run(case.to(device))
        outside = vectors.eq(0.0).all(-1)
        dirty = case.upstream.masked_fill(outside.cpu()[..., None], math.nan)
        _, grads = run(case._replace(upstream=dirty).to(device))
    words = torch.tensor([5, 4, 3, 2, 1, 2, 1])[:, None]  # that follow in the text, itself included
    assert torch.equal(outside.cpu(), torch.arange(case.max_width)[None, :] >= words)
    for x, y in zip(clean, grads, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_chosen_spans_are_rows_of_all(backend):
    case = build(PLAIN, True)
    with running(backend) as device:
        there = case.to(device)
        some = ops.span_vectors(*there[:4], there.cu_words, there.max_width, there.spans, dropout_p=0.3, seed=4)
        every = ops.span_vectors(*there[:4], there.cu_words, there.max_width, dropout_p=0.3, seed=4)
    word, k = there.spans.T
    torch.testing.assert_close(some, every[word, k])


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_every_time_whatever_memory_holds(backend):
    case = build(SPAN_CASES[5], False)
    with running(backend) as device:
        vectors, grads = run(case.to(device), dropout_p=0.2, seed=9)
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty is NaN now
        try:
            again, other = run(case.to(device), dropout_p=0.2, seed=9)
        finally:
            torch.use_deterministic_algorithms(False)
    for x, y in zip((vectors, *grads), (again, *other), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", CPP)
def test_the_kernels_give_the_same_bits_for_every_number_of_threads(backend):
    """The products are the matrix library's; so W2 is the identity, whose products are exact."""
    case = build(next(case for case in SPAN_CASES if case.name.startswith("longer")), False, width=1100)
    case = case._replace(w2=torch.eye(1100), b2=torch.zeros(1100))
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with running(backend):
                vectors, (da, db, *_) = run(case, dropout_p=0.2, seed=9)
            outputs.append((vectors, da, db))
    finally:
        torch.set_num_threads(before)
    for other in outputs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mask_is_the_hash_of_span_column_and_seed(backend):
    words, hidden, width, p, seed = 6, 40, 3, 0.3, 123456789012
    ones, zeros = torch.ones(words, hidden), torch.zeros(words, hidden)
    with running(backend) as device:
        arguments = (x.to(device) for x in (ones, zeros, torch.eye(hidden), torch.zeros(hidden)))
        bounds = torch.tensor([0, words], dtype=torch.int32, device=device)
        vectors = ops.span_vectors(*arguments, bounds, width, dropout_p=p, seed=seed).cpu()
    keep = torch.stack([naive.keep(row, hidden, p, seed) for row in range(words * width)]).view(words, width, hidden)
    inside = torch.arange(words)[:, None] + torch.arange(width) < words
    torch.testing.assert_close(vectors[inside], keep[inside] / (1.0 - p))


def test_inputs_are_unchanged_and_of_any_layout():
    case = build(PLAIN, True)
    odd = case._replace(a=case.a.T.contiguous().T, w2=case.w2.repeat_interleave(2, 1)[:, ::2], spans=case.spans.int())
    before = [x.clone() for x in (*odd[:5], odd.spans)]
    vectors, grads = run(odd)
    wanted, wanted_grads = run(case)
    assert torch.equal(vectors, wanted)
    assert all(torch.equal(x, y) for x, y in zip(grads, wanted_grads, strict=True))
    assert all(torch.equal(x, y) for x, y in zip((*odd[:5], odd.spans), before, strict=True))


@pytest.mark.parametrize("expected", range(4))
def test_only_requested_gradients(expected):
    case = build(PLAIN, False)
    floats = [x.clone().requires_grad_(place == expected) for place, x in enumerate(case[:4])]
    ops.span_vectors(*floats, case.cu_words, case.max_width).square().sum().backward()
    assert [x.grad is not None for x in floats] == [place == expected for place in range(4)]


def test_a_second_backward_pass_gives_the_same():
    case = build(PLAIN, False)
    floats = [x.clone().requires_grad_() for x in case[:4]]
    vectors = ops.span_vectors(*floats, case.cu_words, case.max_width)
    first = torch.autograd.grad(vectors, floats, case.upstream, retain_graph=True)
    second = torch.autograd.grad(vectors, floats, case.upstream)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(vectors, floats, case.upstream)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend):
    case = build(PLAIN, False)
    case.a[2, 5] = -math.nan
    with running(backend) as device:
        there = case.to(device)
        vectors = ops.span_vectors(*there[:4], there.cu_words, there.max_width)
    assert bool(vectors[2].isnan().all()) and not bool(vectors[[0, 1, 3]].isnan().any())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"b": torch.zeros(11, 7)}, ValueError, r"a, b: expected one shape \[words, H\]"),
        ({"w2": torch.zeros(70, 7)}, ValueError, r"w2: expected \[d, 48\]"),
        ({"b2": torch.zeros(4)}, ValueError, r"b2: expected \[70\]"),
        ({"a": torch.zeros(11, 48, dtype=torch.int32)}, TypeError, "a: expected fp32"),
        ({"w2": [1.0]}, TypeError, "w2: expected a tensor, got list"),
        ({"cu_words": torch.tensor([0.0, 7.0, 11.0])}, TypeError, "cu_words: expected int32"),
        ({"cu_words": torch.tensor([0, 7, 12])}, ValueError, "cu_words: expected offsets that rise from 0 to 11"),
        ({"cu_words": torch.tensor(0)}, ValueError, r"cu_words: expected \[texts \+ 1\]"),
        ({"spans": torch.tensor([[0.0, 1.0]])}, TypeError, "spans: expected int32"),
        ({"spans": torch.tensor([0, 1])}, ValueError, r"spans: expected \[s, 2\]"),
        ({"spans": torch.tensor([[0, 0], [5, 2]])}, ValueError, r"spans: expected rows .* got \(5, 2\) in row 1"),
        ({"spans": torch.tensor([[0, 4]])}, ValueError, "at most max_width = 4 words"),
        ({"spans": torch.tensor([[-1, 0]])}, ValueError, "in row 0"),
        ({"spans": torch.tensor([[11, 0]])}, ValueError, "in row 0"),
        ({"max_width": 0}, ValueError, "max_width: expected at least 1, got 0"),
        ({"a": torch.zeros(11, 48, device="meta")}, ValueError, "b: expected device meta"),
    ],
)
def test_bad_input_is_a_clear_error(changes, error, message):
    case = build(PLAIN, False)._replace(**changes)
    with pytest.raises(error, match=message):
        ops.span_vectors(*case[:7])


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, math.nan])
def test_bad_dropout(dropout_p):
    with pytest.raises(ValueError, match=r"dropout_p: expected a number in \[0, 1\)"):
        ops.span_vectors(*build(PLAIN, False)[:7], dropout_p=dropout_p)


def test_mixed_dtypes_promote():
    case = build(PLAIN, False)
    assert ops.span_vectors(case.a.bfloat16(), *case[1:6]).dtype == torch.float32
