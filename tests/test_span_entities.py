"""span_entities: every backend against the plain definition on its own logits, and against the fp64 truth."""

import math

import naive
import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from backends import BACKENDS, CPP, FP64_BACKENDS, running
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SPAN_CASES, SpanBatch, SpanCase, case_id
from torch import Tensor

from glimodern import ops, reference
from glimodern.ops import PackedWeight, _span_vectors
from glimodern.ops import _head as _cost
from glimodern.ops._check import text_offsets
from glimodern.ops._span_entities import logit_bounds, probabilities

PLAIN = SPAN_CASES[0]


def spans_of(batch: SpanBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(word, width, type) of every entry of a text's logits [words, K, types], counted in the batch, text by text."""
    grids = []
    bounds = zip(batch.cu_words.tolist(), batch.cu_words[1:].tolist(), strict=False)
    for text, (w0, w1) in enumerate(bounds):
        t0, t1 = batch.cu_types[text : text + 2].tolist()
        axes = torch.arange(w0, w1), torch.arange(batch.max_width), torch.arange(t0, t1)
        grids.append(torch.meshgrid(*axes, indexing="ij"))
    return grids


def defined(logits: Tensor, batch: SpanBatch, threshold: Tensor) -> ops.SpanEntities:
    """The candidates by definition, from logits laid out as span_scores'; those outside their text are -inf."""
    columns: list[list[Tensor]] = [[torch.empty(0, dtype=torch.int64)] for _ in range(3)] + [[torch.empty(0)]]
    parts = ops.split_scores(logits, *batch.bounds, batch.max_width)
    for part, grid in zip(parts, spans_of(batch), strict=True):
        score = torch.sigmoid(part.double()).float()
        passed = ~(score <= threshold[grid[2]])
        for column, values in zip(columns, (*grid, score), strict=True):
            column.append(values[passed])
    return ops.SpanEntities(*map(torch.cat, columns))


def thresholds(types: int) -> Tensor:
    return torch.rand(types, generator=torch.Generator().manual_seed(7))


def entities(batch: SpanBatch, threshold: float | Tensor) -> ops.SpanEntities:
    return ops.span_entities(*batch.floats, *batch.bounds, batch.max_width, threshold)


def assert_same(got: ops.SpanEntities, wanted: ops.SpanEntities) -> None:
    for name, x, y in zip(got._fields, got, wanted, strict=True):
        assert x.dtype == y.dtype, name
        torch.testing.assert_close(
            x.cpu(), y, rtol=3e-7 if name == "score" else 0.0, atol=0.0, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("case", SPAN_CASES, ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_exactly_the_spans_whose_probability_is_above(backend, case):
    if backend == "triton" and not case.small and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter is too slow for this case")
    batch = case.build()
    with running(backend) as device:
        there = batch.on(device)
        logits = ops.span_scores(*there.floats, *there.bounds, there.max_width).cpu()
        for threshold in (thresholds(len(batch.u)), 0.0, 0.5, 0.97, 1.0):
            limit = torch.full((len(batch.u),), threshold) if isinstance(threshold, float) else threshold
            asked = threshold if isinstance(threshold, float) else threshold.to(device)
            assert_same(entities(there, asked), defined(logits, batch, limit))


@pytest.mark.parametrize("case", SPAN_CASES, ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_as_accurate_as_eager(backend, case):
    if backend == "triton" and not case.small and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter is too slow for this case")
    batch = case.build()
    exact = batch.to(torch.float64)
    definition = naive.span_scores if backend == "reference" else reference.span_scores
    truth = definition(*exact.floats, *batch.bounds, batch.max_width).sigmoid()
    plain = reference.span_scores(*batch.floats, *batch.bounds, batch.max_width).sigmoid()
    with running(backend) as device:
        found = entities(batch.on(device), 0.0)
    places = {}
    flat = (torch.cat([x.flatten() for x in column]).tolist() for column in zip(*spans_of(batch), strict=True))
    for place, span in enumerate(zip(*flat, strict=True)):
        places[span] = place
    got = torch.zeros(truth.shape)  # a probability that fp32 rounds to 0 is not above 0
    where = [places[span] for span in zip(*(column.tolist() for column in found[:3]), strict=True)]
    got[where] = found.score.cpu()
    assert_accurate(got, truth, plain, what="probabilities")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_half_precision_is_scored_in_fp32(backend, dtype):
    batch = PLAIN.build(dtype=dtype)
    single = batch.to(torch.float32)
    with running(backend):
        logits = ops.span_scores(*single.floats, *single.bounds, single.max_width)
        assert_same(entities(batch, 0.5), defined(logits, batch, torch.full((5,), 0.5)))


@pytest.mark.parametrize("case", SPAN_CASES, ids=case_id)
@pytest.mark.parametrize("backend", FP64_BACKENDS)
def test_fp64_is_scored_in_fp64(backend, case):
    batch = case.build(dtype=torch.float64)
    logits = naive.span_scores(*batch.floats, *batch.bounds, batch.max_width)
    for threshold in (thresholds(len(batch.u)), torch.zeros(len(batch.u)), torch.ones(len(batch.u))):
        wanted = naive.span_entities(logits, *batch.bounds, batch.max_width, threshold)
        with running(backend):
            *places, score = entities(batch, threshold)
        assert list(zip(*(column.tolist() for column in places), strict=True)) == [row[:3] for row in wanted]
        assert score.dtype == torch.float64
        truth = torch.sigmoid(torch.tensor([row[3] for row in wanted], dtype=torch.float64))
        torch.testing.assert_close(score, truth, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("backend", CPP[1:])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=4),
    hidden=st.integers(1, 70),
    max_width=st.integers(1, 20),
    threshold=st.floats(0.0, 1.0),
)
def test_ragged_shapes(backend, texts, hidden, max_width, threshold):
    case = SpanCase("drawn", tuple(w for w, _ in texts), tuple(t for _, t in texts), hidden, max_width)
    batch = case.build(seed=3)
    with running(backend):
        logits = ops.span_scores(*batch.floats, *batch.bounds, max_width)
        assert_same(entities(batch, threshold), defined(logits, batch, torch.full((len(batch.u),), threshold)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_comparison_is_strict_and_in_fp32(backend):
    batch = PLAIN.build()
    with running(backend) as device:
        there = batch.on(device)
        logits = ops.span_scores(*there.floats, *there.bounds, there.max_width)
        probability = reference.probability(logits[logits.isfinite()])
        for score in probability.unique().tolist()[::16]:
            above = int((probability > score).sum())
            assert len(entities(there, score).score) == above
            assert len(entities(there, math.nextafter(score, 0.0)).score) == above  # the same fp32
            below = float(np.nextafter(np.float32(score), np.float32(0.0)))
            assert len(entities(there, below).score) == int((probability >= score).sum())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0.0, 1.0, width=32))
def test_a_bound_is_the_largest_logit_that_does_not_pass(threshold):
    limit = torch.tensor([threshold])
    bound = logit_bounds(limit)
    assert bool(reference.probability(bound) <= limit)
    if threshold < 1.0:
        assert bool(reference.probability(torch.nextafter(bound, torch.tensor([math.inf]))) > limit)
    above = torch.nextafter(limit, torch.tensor([2.0]))
    middle = (limit.double() + above.double()) / 2 if threshold < 1.0 else limit.double()
    torch.testing.assert_close(torch.sigmoid(logit_bounds(limit, torch.float64)), middle, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_a_candidate(backend):
    batch = PLAIN.build()
    batch.a[2, 5] = math.nan
    with running(backend) as device:
        found = entities(batch.on(device), 1.0)
    assert set(found.word.tolist()) == {2}
    assert len(found.word) == batch.max_width * 3
    assert bool(found.score.isnan().all())


@pytest.mark.parametrize("backend", CPP)
def test_same_result_for_every_number_of_threads(backend):
    batch = next(case for case in SPAN_CASES if case.name.startswith("longer")).build()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with running(backend):
                found.append(entities(batch, 0.9))
    finally:
        torch.set_num_threads(before)
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_opcheck(backend):
    batch = PLAIN.build()
    with running(backend):
        for threshold, each in ((0.5, None), (0.0, thresholds(5))):
            arguments = (*batch.floats, *batch.bounds, threshold, each, batch.max_width)
            torch.library.opcheck(torch.ops.glimodern.span_entities.default, arguments)


def test_compiles_without_a_graph_break():
    batch = PLAIN.build()

    def model(*floats: Tensor) -> tuple[Tensor, Tensor]:
        found = ops.span_entities(*floats, *batch.bounds, batch.max_width, 0.6)
        return found.word + found.width, found.score * 2.0

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert all(torch.equal(x, y) for x, y in zip(compiled(*batch.floats), model(*batch.floats), strict=True))


def test_inputs_of_any_layout_are_left_unchanged_and_no_gradient_flows():
    batch = PLAIN.build()
    wanted = entities(batch, thresholds(5))
    odd = batch._replace(a=batch.a.T.contiguous().T.requires_grad_(), u=batch.u.repeat_interleave(2, 1)[:, ::2])
    before = [x.detach().clone() for x in odd[:6]]
    limits = thresholds(10)[::2]
    got = entities(odd, limits)
    assert_same(got, entities(batch, limits.contiguous()))
    assert not got.score.requires_grad
    assert all(torch.equal(x.detach(), y) for x, y in zip(odd[:6], before, strict=True))
    long = batch._replace(cu_words=batch.cu_words.long(), cu_types=batch.cu_types.long())
    assert_same(entities(long, thresholds(5)), wanted)


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (1.5, r"threshold: expected a probability in \[0, 1\], got 1.5"),
        (math.nan, r"threshold: expected a probability in \[0, 1\]"),
        (torch.tensor([0.5, 0.5, -0.1, 0.5, 0.5]), r"threshold: expected probabilities in \[0, 1\]"),
        (torch.tensor([0.5, 0.5, math.nan, 0.5, 0.5]), r"threshold: expected probabilities in \[0, 1\]"),
        (torch.tensor([0.5, 0.5]), r"a float tensor \[5\]"),
        (torch.zeros(5, dtype=torch.int64), r"a float tensor \[5\]"),
        (torch.zeros(5, device="meta"), "threshold: expected device cpu"),
    ],
)
def test_bad_threshold(threshold, message):
    with pytest.raises(ValueError, match=message):
        entities(PLAIN.build(), threshold)


def test_bad_bounds():
    batch = PLAIN.build()
    with pytest.raises(ValueError, match="cu_words: expected offsets that rise from 0 to 11"):
        entities(batch._replace(cu_words=torch.tensor([0, 7, 12])), 0.5)


def factors(types: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """a, b, w2, b2, q, cu_words, cu_types of a head with H = 4 d."""
    batch = SpanCase("", (9, 0, 4), types, 64, 3).build(dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    w2 = torch.randn(16, 64, generator=generator).to(dtype) / 8
    b2, q = torch.randn(16, generator=generator).to(dtype), torch.randn(sum(types), 16, generator=generator).to(dtype)
    return batch.a, batch.b, w2, b2, q, *batch.bounds


@pytest.mark.parametrize("vectors", [False, True], ids=["fold", "vectors"])
@pytest.mark.parametrize("weight", ["bf16", "packed bf16", "fp16"])
@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_a_thousand_labels_in_half_precision_have_scores_of_their_own(backend, weight, vectors, monkeypatch):
    """As fp32 scores the same numbers, but for what rounds the vectors of spans or types once; never the logits."""
    monkeypatch.setattr(_cost, "vectors_are_cheaper", lambda *shape: vectors)
    half = weight != "fp16"
    a, b, w2, b2, q, *bounds = factors((1000, 3, 0), torch.bfloat16 if half else torch.float16)
    q = q * 0.75  # logits between -10 and 10: none saturates
    exact = ops.head_scores(*(x.double() for x in (a, b, w2, b2, q)), *bounds, 3)
    w2 = PackedWeight.pack(w2.T.contiguous(), dtype="bf16") if weight == "packed bf16" else w2
    with running(backend):
        logits = ops.head_scores(a, b, w2, b2, q, *bounds, 3)
        found = ops.head_entities(a, b, w2, b2, q, *bounds, 3, 0.0)
    assert logits.dtype == found.score.dtype == torch.float32
    assert_same(found, defined(logits, on(bounds, 3), torch.zeros(1003)))
    inside = exact.isfinite()
    assert torch.equal(logits.isfinite(), inside)
    logits, exact = logits[inside], exact[inside]
    assert len(logits.unique()) > 0.99 * len(logits)
    error = (logits - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < (2**-8 if half else 2**-11)
    one_word = found.score[(found.word == 0) & (found.width == 0)]
    assert len(one_word) == 1000 and len(one_word.unique()) > 990


@pytest.mark.parametrize("vectors", [False, True], ids=["fold", "vectors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_triton_scores_heads_in_fp32(dtype, vectors, monkeypatch):
    monkeypatch.setattr(_cost, "vectors_are_cheaper", lambda *shape: vectors)
    with running("triton") as device:
        there = [x.to(device) for x in factors((20, 3, 0), dtype)]
        logits = ops.head_scores(*there, 3).cpu()
    assert logits.dtype == torch.float32
    inside = logits[logits.isfinite()]
    assert len(inside.unique()) == len(inside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_does_not_round_logits_by_vectors(dtype):
    wanted = _cost.scores_by_vectors(*factors((40, 3, 0), dtype), 3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = _cost.scores_by_vectors(*factors((40, 3, 0), dtype), 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, wanted)


def test_nan_and_gradients_in_bf16_by_vectors(monkeypatch):
    monkeypatch.setattr(_cost, "vectors_are_cheaper", lambda *shape: True)
    *floats, cu_words, cu_types = factors((40, 3, 0), torch.bfloat16)
    leaves = [x.requires_grad_() for x in floats]
    logits = ops.head_scores(*leaves, cu_words, cu_types, 3)
    assert logits.dtype == torch.float32
    grads = torch.autograd.grad(logits[logits.isfinite()].sum(), leaves)
    assert {x.dtype for x in grads} == {torch.bfloat16} and all(bool(x.isfinite().all()) for x in grads)
    broken = [x.detach() for x in leaves]
    broken[0] = broken[0].index_fill(0, torch.tensor([2]), math.nan)
    found = ops.head_entities(*broken, cu_words, cu_types, 3, 1.0)
    assert set(found.word.tolist()) == {2} and bool(found.score.isnan().all()) and len(found.word) == 3 * 40


def on(bounds: list[Tensor], max_width: int) -> SpanBatch:
    """A batch of these bounds, without numbers."""
    return SpanBatch(*(torch.empty(0) for _ in range(4)), *bounds, torch.empty(0, 3), max_width)


@pytest.mark.parametrize("types", [(3, 2, 1), (40, 5, 0), (5000, 1, 2)], ids=str)
def test_fold_and_vectors_score_alike(types, monkeypatch):
    results = {}
    for vectors in (False, True):
        monkeypatch.setattr(_cost, "vectors_are_cheaper", lambda *shape, chosen=vectors: chosen)
        results[vectors] = (ops.head_scores(*factors(types), 3), ops.head_entities(*factors(types), 3, 0.8))
    a, b, w2, b2, q, *bounds = factors(types, torch.float64)
    truth = reference.span_scores(a, b, q @ w2, q @ b2, *bounds, 3)
    assert_accurate(results[True][0], truth, results[False][0], what="logits")
    batch = on(bounds, 3)
    for vectors, (logits, found) in results.items():
        assert_same(found, defined(logits, batch, torch.full((sum(types),), 0.8)))
        assert len(found.word) > 0, vectors


def test_offsets_are_checked_once_by_vectors(monkeypatch):
    """However many tiles of spans there are; the offsets that a user gives are checked."""
    checked = []

    def counted(name, cu, rows):
        checked.append(name)
        return text_offsets(name, cu, rows)

    for module in (_cost, _span_vectors):
        monkeypatch.setattr(module, "text_offsets", counted)
    monkeypatch.setattr(_cost, "vectors_are_cheaper", lambda *shape: True)
    monkeypatch.setattr(_cost, "_TILE_LOGITS", 64)
    *floats, cu_words, cu_types = factors((30, 3, 2))
    ops.head_entities(*floats, cu_words, cu_types, 3, 0.5)
    assert checked == ["cu_words", "cu_types"]
    for bad in ((cu_words + 1, cu_types), (cu_words, cu_types.flip(0))):
        with pytest.raises(ValueError, match="expected offsets that rise from 0"):
            ops.head_entities(*floats, *bad, 3, 0.5)
    with pytest.raises(ValueError, match=r"w2: expected \[d, 64\]"):
        ops.head_entities(*floats[:2], floats[2][:, :60], *floats[3:], cu_words, cu_types, 3, 0.5)
    with pytest.raises(ValueError, match=r"threshold: expected probabilities in \[0, 1\]"):
        ops.head_entities(*floats, cu_words, cu_types, 3, torch.full((35,), 2.0))


def test_folded_types_score_as_the_head_does():
    a, b, w2, b2, q, *bounds = factors((3, 2, 1))
    assert not ops.vectors_are_cheaper(len(q), 3, 3, *w2.shape[::-1])
    folded = ops.fold_types(q, w2, b2)
    scores = ops.head_scores(a, b, w2, b2, q, *bounds, 3)
    assert torch.equal(scores, ops.span_scores(a, b, *folded, *bounds, 3))
    found = ops.head_entities(a, b, w2, b2, q, *bounds, 3, 0.5, folded)
    assert_same(found, ops.span_entities(a, b, *folded, *bounds, 3, 0.5))


def test_scores_by_vectors_have_gradients(monkeypatch):
    grads = []
    for vectors in (False, True):
        monkeypatch.setattr(_cost, "vectors_are_cheaper", lambda *shape, chosen=vectors: chosen)
        *floats, cu_words, cu_types = factors((3, 2, 1), torch.float64)
        leaves = [x.requires_grad_() for x in floats]
        logits = ops.head_scores(*leaves, cu_words, cu_types, 3)
        upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        grads.append(torch.autograd.grad(logits, leaves, upstream))
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("width", [384, 768])
def test_the_choice_turns_near_four_thirds_of_the_width(width):
    """Long texts: without u = q W2 the turn is 4d/3 types; that product brings it lower."""
    chosen = [_cost.vectors_are_cheaper(types, 1, 12, 4 * width, width) for types in range(1, 5001)]
    turn = chosen.index(True)
    assert all(chosen[turn:])
    assert width / 2 < turn < 2 * width
    assert not _cost.vectors_are_cheaper(74 * 9, 74, 12, 4 * width, width)
    assert not _cost.vectors_are_cheaper(0, 0, 12, 4 * width, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_does_not_depend_on_the_number_of_candidates(dtype):
    logits = 3 * torch.randn(2048, generator=torch.Generator().manual_seed(0), dtype=dtype)
    whole = probabilities(logits)
    assert torch.equal(whole, torch.sigmoid(logits))  # whole vectors
    for count in (1, 5, 33, 100):
        assert all(
            torch.equal(probabilities(part), want)
            for part, want in zip(logits.split(count), whole.split(count), strict=True)
        )
