"""token_scores: every backend against the fp64 reference, forward and backward; the contract of the public function."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import naive
import pytest
import torch
from accuracy import assert_accurate
from backends import BACKENDS, CPP, assert_same_bits, outputs_by_threads, poisoned, running, skip_unless_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import bounds_of, case_id
from torch import Tensor

from glimodern import ops, reference

NAMES = ("a", "b", "x", "y", "w1", "w2", "b2")


class Batch(NamedTuple):
    floats: tuple[Tensor, ...]
    bounds: tuple[Tensor, Tensor]

    def to(self, dtype: torch.dtype) -> "Batch":
        return Batch(tuple(x.to(dtype) for x in self.floats), self.bounds)

    def on(self, device: torch.device) -> "Batch":
        return Batch(tuple(x.to(device) for x in self.floats), tuple(x.to(device) for x in self.bounds))

    def leaves(self) -> "Batch":
        return Batch(tuple(x.detach().clone().requires_grad_() for x in self.floats), self.bounds)


@dataclass(frozen=True)
class Case:
    """Texts of so many words and types; scale multiplies W2, and so the logits."""

    name: str
    words: tuple[int, ...]
    types: tuple[int, ...]
    hidden: int
    width: int
    scale: float = 1.0
    small: bool = True  # small enough for Triton's interpreter

    @property
    def pairs(self) -> int:
        return sum(words * types for words, types in zip(self.words, self.types, strict=True))

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        n, m, hidden, width = sum(self.words), sum(self.types), self.hidden, self.width
        shapes = ((n, hidden), (m, hidden), (n, width), (m, width), (hidden, width), (3, hidden), (3,))
        sizes = (1.0, 1.0, 1.0, 1.0, width**-0.5, self.scale * hidden**-0.5, self.scale)
        floats = tuple(
            torch.randn(shape, generator=generator) * size for shape, size in zip(shapes, sizes, strict=True)
        )
        return Batch(floats, (bounds_of(self.words), bounds_of(self.types))).to(dtype)


CASES = (
    Case("plain", (7, 4), (3, 2), 48, 12),
    Case("one pair", (1,), (1,), 16, 4),
    Case("empty text in the batch", (3, 0, 5), (2, 3, 1), 32, 8),
    Case("only an empty text", (0,), (2,), 16, 4),
    Case("no text", (), (), 16, 4),
    Case("a text without types", (4, 4), (0, 2), 32, 8),
    Case("dims that are no multiple of 16", (5, 3), (3, 7), 149, 37),
    Case("widths one", (4,), (2,), 1, 1),
    Case("huge logits", (6,), (3,), 32, 8, scale=300.0),
    Case("tiny logits", (6,), (3,), 32, 8, scale=1e-6),
    Case("more than a block of pairs", (70, 33), (9, 10), 300, 72, small=False),
    Case("many types", (5, 2), (700, 33), 40, 12, small=False),
)


def run(batch: Batch, upstream: Tensor, dropout_p: float = 0.0, seed: int = 0, function=ops.token_scores):
    """Logits and the gradients of all floats for an upstream gradient."""
    leaves = batch.leaves()
    logits = function(*leaves.floats, *leaves.bounds, dropout_p=dropout_p, seed=seed)
    if not logits.requires_grad:
        return logits, tuple(torch.zeros_like(x) for x in leaves.floats)
    grads = torch.autograd.grad(logits, leaves.floats, upstream.to(logits), allow_unused=True, materialize_grads=True)
    return logits.detach(), grads


def assert_matches(backend: str, case: Case, dtype=torch.float32, dropout_p=0.0, seed=0, *, ulps=4.0, data=0) -> None:
    """The backend "reference" computes by the oracle itself, so its truth is the naive definition."""
    skip_unless_runs(backend)
    definition = naive.token_scores if backend == "reference" else reference.token_scores
    batch = case.build(data, dtype)
    upstream = torch.randn(case.pairs, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    truth, true_grads = run(batch.to(torch.float64), upstream, dropout_p, seed, definition)
    plain, plain_grads = run(batch, upstream, dropout_p, seed, reference.token_scores)
    with running(backend) as device:
        logits, grads = run(batch.on(device), upstream.to(device), dropout_p, seed)
    half = (
        backend == "triton" and dtype != torch.float32
    )  # products are rounded to the inputs' dtype, as logits of spans
    logits, plain = (logits.cpu().to(dtype), plain.to(dtype)) if half else (logits.cpu(), plain)
    assert_accurate(logits, truth, plain, ulps=ulps, what="logits")
    for name, got, true_grad, plain_grad in zip(NAMES, grads, true_grads, plain_grads, strict=True):
        assert_accurate(got.cpu(), true_grad, plain_grad, ulps=ulps, what=f"d{name}")


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, case, dropout_p):
    if backend in ("reference", "triton") and not case.small and not torch.cuda.is_available():
        pytest.skip("the naive definition and Triton's interpreter are too slow for this case")
    assert_matches(backend, case, dropout_p=dropout_p, seed=11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[6]], ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, case, dtype):
    assert_matches(backend, case, dtype, 0.25, seed=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_half_precision_are_fp32(backend, dtype):
    batch = CASES[0].build(dtype=dtype).leaves()
    with running(backend) as device:
        there = batch.on(device)
        logits = ops.token_scores(*there.floats, *there.bounds)
        grads = torch.autograd.grad(logits, there.floats, torch.ones_like(logits))
    assert logits.dtype == torch.float32 and {x.dtype for x in grads} == {dtype}
    assert float((logits != logits.to(dtype)).double().mean()) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_autocast_does_not_round_logits(backend, dtype):
    batch = CASES[0].build(dtype=dtype)
    with running(backend):
        wanted = ops.token_scores(*batch.floats, *batch.bounds)
        with torch.autocast("cpu", torch.bfloat16):
            logits = ops.token_scores(*batch.floats, *batch.bounds)
    assert logits.dtype == torch.float32 and torch.equal(logits, wanted)


@pytest.mark.parametrize("backend", CPP[1:])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=4),
    hidden=st.integers(1, 150),
    width=st.integers(1, 50),
    dropout_p=st.sampled_from([0.0, 0.25]),
)
def test_ragged_shapes(backend, texts, hidden, width, dropout_p):
    case = Case("drawn", tuple(w for w, _ in texts), tuple(t for _, t in texts), hidden, width)
    assert_matches(backend, case, dropout_p=dropout_p, seed=5, data=3)


def test_fp64_runs_the_reference():
    assert_matches("reference", CASES[0], torch.float64, 0.2, seed=5, ulps=32.0)
    assert ops.backend_info("cpu", torch.float64)["token_scores"]["backend"] == "reference"


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradcheck_in_fp64(dropout_p):
    batch = Case("", (3, 0, 2), (2, 1, 3), 5, 2).build(dtype=torch.float64).leaves()
    assert torch.autograd.gradcheck(
        lambda *floats: ops.token_scores(*floats, *batch.bounds, dropout_p=dropout_p, seed=2), batch.floats,
        nondet_tol=0.0,
    )  # fmt: skip


def test_the_gradients_of_tiles_are_those_of_the_whole(monkeypatch):
    batch, upstream = CASES[0].build(), torch.randn(CASES[0].pairs, 3)
    whole = run(batch, upstream, 0.3, 7)
    monkeypatch.setattr(ops._token_scores, "_TILE_HIDDEN", 200)
    for one, other in zip(run(batch, upstream, 0.3, 7)[1], whole[1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_the_gradient_of_w2_adds_up_many_pairs(backend):
    case = Case("many pairs", (1000,), (9,), 40, 6)
    upstream = torch.randn(case.pairs, 3, generator=torch.Generator().manual_seed(1)) + 1.0
    (*_, truth, _) = run(case.build(dtype=torch.float64), upstream.double())[1]
    with running(backend):
        (*_, grad, _) = run(case.build(), upstream)[1]
    assert (grad - truth).abs().max() <= 4 * torch.finfo(torch.float32).eps * truth.abs().max()


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_opcheck(backend, needs_grad):
    batch = CASES[0].build()
    floats = batch.leaves().floats if needs_grad else batch.floats
    with running(backend):
        torch.library.opcheck(torch.ops.glimodern.token_scores.default, (*floats, *batch.bounds, 0.1, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_poisoned_memory_and_same_bits_every_time(backend):
    batch, upstream = CASES[2].build(), torch.randn(CASES[2].pairs, 3, generator=torch.Generator().manual_seed(0))
    with running(backend) as device:
        clean = run(batch.on(device), upstream.to(device), 0.2, 9)
        with poisoned():
            other = run(batch.on(device), upstream.to(device), 0.2, 9)
    assert_same_bits((clean[0], *clean[1]), (other[0], *other[1]))


@pytest.mark.parametrize("backend", CPP)
def test_same_bits_for_every_number_of_threads_and_in_any_batch(backend):
    case = CASES[10]
    batch = case.build()

    def outputs():
        with running(backend):
            return (ops.token_scores(*batch.floats, *batch.bounds),)

    first, *others = outputs_by_threads(outputs)
    assert_same_bits(first, *others)
    a, b, x, y, *weights = batch.floats
    words, types = case.words[0], case.types[0]
    with running(backend):
        alone = ops.token_scores(
            a[:words], b[:types], x[:words], y[:types], *weights, bounds_of((words,)), bounds_of((types,))
        )
    assert torch.equal(alone, first[0][: words * types])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mask_is_the_hash_of_pair_column_and_seed(backend):
    """The hidden layer is 1 everywhere, so a logit counts the columns that the oracle's mask keeps."""
    words, types, hidden, p, seed = 4, 3, 40, 0.3, 123456789012
    zeros = torch.zeros(types, hidden), torch.ones(words, 2), torch.ones(types, 2), torch.zeros(hidden, 2)
    floats = (torch.ones(words, hidden), *zeros, torch.ones(3, hidden), torch.zeros(3))
    with running(backend) as device:
        there = Batch(floats, (bounds_of((words,)), bounds_of((types,)))).on(device)
        logits = ops.token_scores(*there.floats, *there.bounds, dropout_p=p, seed=seed).cpu()
    kept = torch.stack([naive.keep(row, hidden, p, seed) for row in range(words * types)]).sum(1) / (1.0 - p)
    torch.testing.assert_close(logits, kept[:, None].expand(-1, 3).to(logits))


@pytest.mark.parametrize("backend", ["reference", *CPP])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_packed_weight(dtype, backend):
    """What linear_packed computes of the products, whatever the backend; in fp32 the plain weight's logits."""
    batch = CASES[6].build()
    packed = ops.PackedWeight.pack(batch.floats[4], dtype=dtype)
    floats = (*batch.floats[:4], packed, *batch.floats[5:])
    x, y = batch.floats[2:4]
    word, type_id = reference.pair_indices(*batch.bounds)
    with ops.use_backend("reference"):
        z = ops.linear_packed(x[word] * y[type_id], packed)
    hidden = torch.relu(z + batch.floats[0][word] + batch.floats[1][type_id])
    wanted = hidden @ batch.floats[5].T + batch.floats[6]
    with running(backend):
        logits = ops.token_scores(*floats, *batch.bounds)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=2e-5)
    if dtype == "fp32":
        truth = reference.token_scores(*batch.to(torch.float64).floats, *batch.bounds)
        assert_accurate(logits, truth, reference.token_scores(*batch.floats, *batch.bounds))


def test_a_packed_weight_has_no_gradient():
    batch = CASES[0].build().leaves()
    packed = ops.PackedWeight.pack(batch.floats[4], dtype="fp32")
    with pytest.raises(ValueError, match="w1: expected a tensor where gradients are required, got a weight packed"):
        ops.token_scores(*batch.floats[:4], packed, *batch.floats[5:], *batch.bounds)


@pytest.mark.parametrize("backend", CPP)
def test_nan_is_not_hidden(backend):
    batch = CASES[0].build()
    batch.floats[0][2, 5] = -math.nan
    with running(backend):
        logits = ops.token_scores(*batch.floats, *batch.bounds)
    part = ops.split_token_scores(logits, *batch.bounds)[0]
    assert part[2].isnan().all() and not part[[0, 1, 3]].isnan().any()


def test_inputs_of_any_layout_and_dtype():
    batch = CASES[0].build()
    a, *rest = batch.floats
    wanted = ops.token_scores(*batch.floats, *batch.bounds)
    assert torch.equal(ops.token_scores(a.T.contiguous().T, *rest, *batch.bounds), wanted)
    assert torch.equal(ops.token_scores(*batch.floats, *(x.long() for x in batch.bounds)), wanted)
    assert ops.token_scores(a.bfloat16(), *rest, *batch.bounds).dtype == torch.float32
    assert ops.token_scores(a.double(), *rest, *batch.bounds).dtype == torch.float64


@pytest.mark.parametrize("place", range(7), ids=NAMES)
def test_only_requested_gradients(place):
    batch = CASES[0].build()
    floats = [x.clone().requires_grad_(n == place) for n, x in enumerate(batch.floats)]
    ops.token_scores(*floats, *batch.bounds).square().sum().backward()
    assert [x.grad is not None for x in floats] == [n == place for n in range(7)]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"b": torch.zeros(5, 7)}, ValueError, r"b: expected \[5, 48\], got \[5, 7\]"),
        ({"x": torch.zeros(11, 7)}, ValueError, r"x: expected \[11, 12\], got \[11, 7\]"),
        ({"w1": torch.zeros(48)}, ValueError, r"a, w1: expected \[words, H\] and \[H, d\]"),
        ({"w2": torch.zeros(2, 48)}, ValueError, r"w2: expected \[3, 48\]"),
        ({"b2": torch.zeros(2)}, ValueError, r"b2: expected \[3\]"),
        ({"a": torch.zeros(11, 48, dtype=torch.int32)}, TypeError, "a: expected fp32"),
        ({"cu_words": torch.tensor([0, 7, 12])}, ValueError, "cu_words: expected offsets that rise from 0 to 11"),
        ({"cu_types": torch.tensor([0, 5])}, ValueError, "cu_words, cu_types: expected the same length"),
        ({"a": torch.zeros(11, 48, device="meta")}, ValueError, "b: expected device meta"),
    ],
)
def test_bad_input_is_a_clear_error(changes, error, message):
    batch = CASES[0].build()
    values = dict(zip((*NAMES, "cu_words", "cu_types"), (*batch.floats, *batch.bounds), strict=True)) | changes
    with pytest.raises(error, match=message):
        ops.token_scores(*values.values())
    with pytest.raises(ValueError, match="dropout_p: expected a number"):
        ops.token_scores(*batch.floats, *batch.bounds, dropout_p=1.0)
    with pytest.raises(ValueError, match=r"logits: expected \[29, 3\]"):
        ops.split_token_scores(torch.zeros(3, 3), *batch.bounds)


def test_the_textbook_form_gives_the_same_logits():
    """The scorer before the fold, with dropout, from projections and the whole of W1."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    words, types, w1, b1, w2, b2 = draw(7, 10), draw(4, 10), draw(20, 15), draw(20), draw(3, 20), draw(3)
    bounds = bounds_of((5, 2)), bounds_of((3, 1))
    (word, x), (kind, y), (w1a, w1b, w1p) = words.chunk(2, 1), types.chunk(2, 1), w1.chunk(3, 1)
    folded = ops.token_scores(word @ w1a.T + b1, kind @ w1b.T, x, y, w1p, w2, b2, *bounds, dropout_p=0.3, seed=4)
    textbook = reference.textbook_token_scores(words, types, w1, b1, w2, b2, *bounds, 0.3, 4)
    torch.testing.assert_close(folded, textbook)
