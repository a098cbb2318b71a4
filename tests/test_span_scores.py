"""span_scores: every backend against the fp64 reference, forward and backward; the contract of the public function."""

import math

import naive
import pytest
import torch
from accuracy import assert_accurate
from backends import (
    BACKENDS,
    CPP,
    FP64_BACKENDS,
    assert_same_bits,
    outputs_by_threads,
    poisoned,
    running,
    skip_unless_runs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SPAN_CASES, SpanBatch, SpanCase, case_id
from torch import Tensor

from glimodern import ops, reference
from glimodern.ops import dispatch


def run(batch: SpanBatch, upstream: Tensor, dropout_p: float = 0.0, seed: int = 0, function=ops.span_scores):
    """Logits and the four gradients for an upstream gradient; spans outside their text get NaN upstream, unread."""
    leaves = batch.leaves()
    logits = function(*leaves.floats, *leaves.bounds, leaves.max_width, dropout_p=dropout_p, seed=seed)
    grads = torch.autograd.grad(logits, leaves.floats, upstream.to(logits), allow_unused=True, materialize_grads=True)
    return logits.detach(), grads


def eager(batch: SpanBatch, upstream: Tensor, dropout_p: float, seed: int, function=reference.span_scores):
    leaves = batch.leaves()
    logits = function(*leaves.floats, *leaves.bounds, leaves.max_width, dropout_p, seed)
    if not logits.requires_grad:
        return logits, tuple(torch.zeros_like(x) for x in leaves.floats)
    grads = torch.autograd.grad(logits, leaves.floats, upstream.to(logits), allow_unused=True, materialize_grads=True)
    return logits.detach(), grads


def assert_matches(backend: str, batch: SpanBatch, dropout_p: float = 0.0, seed: int = 0, *, ulps: float = 4.0) -> None:
    """The backend "reference" computes by the oracle itself, so its truth is the naive definition."""
    skip_unless_runs(backend)
    definition = naive.span_scores if backend == "reference" else reference.span_scores
    size = int((batch.cu_words.diff() * batch.cu_types.diff()).sum()) * batch.max_width
    upstream = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(batch.a.dtype)
    truth, true_grads = eager(batch.to(torch.float64), upstream, dropout_p, seed, definition)
    plain, plain_grads = eager(batch, upstream, dropout_p, seed)
    with running(backend) as device:
        logits, grads = run(batch.on(device), upstream.to(device), dropout_p, seed)
    assert_accurate(logits.cpu(), truth, plain, ulps=ulps, what="logits")
    for name, got, true_grad, plain_grad in zip("abuc", grads, true_grads, plain_grads, strict=True):
        assert_accurate(got.cpu(), true_grad, plain_grad, ulps=ulps, what=f"d{name}")


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("case", SPAN_CASES, ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, case, dropout_p):
    if backend == "triton" and not case.small and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter is too slow for this case")
    assert_matches(backend, case.build(), dropout_p, seed=11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [SPAN_CASES[0], SPAN_CASES[10], SPAN_CASES[14]], ids=case_id)
@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_half_precision_on_the_cpu_is_rounded_once(backend, case, dtype):
    """bf16 is read as it is stored; odd widths, one row of which is not aligned to 4 bytes, too."""
    assert_matches(backend, case.build(dtype=dtype), 0.25, seed=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_half_precision_are_fp32(backend, dtype):
    """Not rounded on their way out: no two spans tie; gradients have the inputs' dtypes."""
    batch = SpanCase("", (5, 2), (40, 3), 24, 3).build(dtype=dtype).leaves()
    with running(backend) as device:
        there = batch.on(device)
        logits = ops.span_scores(*there.floats, *there.bounds, there.max_width)
        grads = torch.autograd.grad(logits, there.floats, torch.ones_like(logits))
    assert logits.dtype == torch.float32 and {x.dtype for x in grads} == {dtype}
    inside = logits.detach()[logits.isfinite()]
    assert len(inside.unique()) == len(inside)
    assert float((inside != inside.to(dtype)).double().mean()) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_autocast_does_not_round_logits(backend, dtype):
    batch = SPAN_CASES[0].build(dtype=dtype)
    with running(backend):
        wanted = ops.span_scores(*batch.floats, *batch.bounds, batch.max_width)
        with torch.autocast("cpu", torch.bfloat16):
            logits = ops.span_scores(*batch.floats, *batch.bounds, batch.max_width)
    assert logits.dtype == torch.float32 and torch.equal(logits, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_textbook_form_gives_logits_in_fp32_too(dtype):
    batch = SPAN_CASES[0].build(dtype=dtype)
    w1, w2 = torch.randn(20, 2 * 48).to(dtype), torch.randn(6, 20).to(dtype)
    b1, b2, q = torch.zeros(20).to(dtype), torch.zeros(6).to(dtype), torch.randn(5, 6).to(dtype)
    with torch.autocast("cpu", enabled=False):
        logits = reference.textbook_scores(batch.a, batch.b, w1, b1, w2, b2, q, *batch.bounds, batch.max_width)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    inside = logits[logits.isfinite()]
    assert len(inside.unique()) == len(inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_five_thousand_types(backend, dtype):
    assert_matches(backend, SpanCase("", (3, 2), (5000, 1), 24, 2).build(dtype=dtype))


@pytest.mark.parametrize("backend", CPP[1:])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=4),
    hidden=st.integers(1, 150),
    max_width=st.integers(1, 20),
    dropout_p=st.sampled_from([0.0, 0.25]),
)
def test_ragged_shapes(backend, texts, hidden, max_width, dropout_p):
    case = SpanCase("drawn", tuple(w for w, _ in texts), tuple(t for _, t in texts), hidden, max_width)
    assert_matches(backend, case.build(seed=3), dropout_p, seed=5)


@pytest.mark.parametrize("backend", FP64_BACKENDS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradcheck_in_fp64(backend, dropout_p):
    batch = SpanCase("", (3, 0, 2), (2, 1, 3), 5, 2).build(dtype=torch.float64).leaves()

    def inside(*floats: Tensor) -> Tensor:
        logits = ops.span_scores(*floats, *batch.bounds, batch.max_width, dropout_p=dropout_p, seed=2)
        return logits[logits.isfinite()]

    with running(backend):
        assert torch.autograd.gradcheck(inside, batch.floats, nondet_tol=0.0)


@pytest.mark.parametrize("case", SPAN_CASES, ids=case_id)
@pytest.mark.parametrize("backend", FP64_BACKENDS)
def test_fp64(backend, case):
    """The truth is no more precise than the kernel: both may be off by the rounding of up to 1,100 additions."""
    assert_matches(backend, case.build(dtype=torch.float64), 0.2, seed=5, ulps=32.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_poisoned_memory(backend, dtype):
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("the reference's bits are of interest here, tests/test_kernels.py has Triton's dtypes")
    batch = SPAN_CASES[2].build(dtype=dtype)
    upstream = torch.randn((3 * 2 + 5) * 3, generator=torch.Generator().manual_seed(0))
    with running(backend) as device:
        clean = run(batch.on(device), upstream.to(device), 0.2, 9)
        with poisoned():
            other = run(batch.on(device), upstream.to(device), 0.2, 9)
    assert_same_bits((clean[0], *clean[1]), (other[0], *other[1]))


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, needs_grad, dtype):
    batch = SPAN_CASES[0].build(dtype=dtype)
    floats = batch.leaves().floats if needs_grad else batch.floats
    with running(backend):
        torch.library.opcheck(
            torch.ops.glimodern.span_scores.default, (*floats, *batch.bounds, batch.max_width, 0.1, 3)
        )


def test_compiles_without_a_graph_break():
    batch = SPAN_CASES[0].build().leaves()

    def model(*floats: Tensor) -> Tensor:
        return ops.span_scores(*floats, *batch.bounds, batch.max_width).sigmoid()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*batch.floats), model(*batch.floats))


@pytest.mark.parametrize("backend", BACKENDS)
def test_spans_outside_their_text(backend):
    """-inf going out; whatever gradient comes back there is not read."""
    batch = SPAN_CASES[5].build()
    with running(backend) as device:
        logits, clean = run(batch.on(device), torch.ones(1, device=device).expand(5 * 9 * 2 + 2 * 9 * 2))
        upstream = torch.where(logits.isinf(), 7e30, 1.0)
        _, dirty = run(batch.on(device), upstream)
    per_text = ops.split_scores(logits.cpu(), *batch.bounds, batch.max_width)
    for part in per_text:
        words, widths, _ = part.shape
        inside = torch.arange(words)[:, None] + torch.arange(widths)[None, :] < words
        assert torch.equal(part.isfinite().all(-1), inside)
        assert torch.equal(part == -math.inf, ~inside[..., None].expand_as(part))
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_every_time(backend):
    batch = SPAN_CASES[0].build()
    upstream = torch.randn(7 * 4 * 3 + 4 * 4 * 2, generator=torch.Generator().manual_seed(0))
    with running(backend) as device:
        first = run(batch.on(device), upstream.to(device), 0.2, 9)
        second = run(batch.on(device), upstream.to(device), 0.2, 9)
    assert_same_bits((first[0], *first[1]), (second[0], *second[1]))


@pytest.mark.parametrize("backend", CPP)
def test_same_bits_for_every_number_of_threads(backend):
    batch = next(case for case in SPAN_CASES if case.name.startswith("longer")).build()
    upstream = torch.randn((70 * 9 + 33 * 10) * 12, generator=torch.Generator().manual_seed(0))

    def outputs():
        with running(backend):
            logits, grads = run(batch, upstream, 0.2, 9)
        return logits, *grads

    assert_same_bits(*outputs_by_threads(outputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mask_is_the_hash_of_span_column_and_seed(backend):
    """a + b = 1, u picks one column: each logit is 0 or 1 / (1 - p), as naive.keep says."""
    words, hidden, width, p, seed = 6, 40, 3, 0.3, 123456789012
    ones = torch.full((words, hidden), 0.5)
    bounds = torch.tensor([0, words], dtype=torch.int32), torch.tensor([0, hidden], dtype=torch.int32)
    with running(backend) as device:
        arguments = (ones, ones, torch.eye(hidden), torch.zeros(hidden), *bounds)
        logits = ops.span_scores(*(x.to(device) for x in arguments), width, dropout_p=p, seed=seed).cpu()
    keep = torch.stack([naive.keep(row, hidden, p, seed) for row in range(words * width)]).view(words, width, hidden)
    inside = torch.arange(words)[:, None] + torch.arange(width)[None, :] < words
    got = logits.view(words, width, hidden)[inside]
    torch.testing.assert_close(got, keep[inside] / (1.0 - p))


def mask_of(backend: str, words: int, hidden: int, width: int, p: float, seed: int) -> Tensor:
    """What span_scores keeps, [spans inside the text, hidden]: a + b = 1 and u the unit vectors."""
    half = torch.full((words, hidden), 0.5)
    bounds = torch.tensor([0, words], dtype=torch.int32), torch.tensor([0, hidden], dtype=torch.int32)
    with running(backend) as device:
        arguments = (x.to(device) for x in (half, half, torch.eye(hidden), torch.zeros(hidden), *bounds))
        logits = ops.span_scores(*arguments, width, dropout_p=p, seed=seed).cpu().view(-1, hidden)
    return (logits[logits[:, 0].isfinite()] > 0).double()


@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_dropout_statistics(backend):
    """The share kept is 1 - p within five standard deviations: over all, by column, by span. Neighbouring columns and
    spans and other seeds agree as often as independent draws do."""
    p = 0.3
    one, two = (mask_of(backend, 340, 64, 12, p, seed) for seed in (1, 2))
    rows, hidden = one.shape
    deviation = math.sqrt(p * (1 - p))
    assert abs(float(one.mean()) - (1 - p)) < 5 * deviation / math.sqrt(rows * hidden)
    assert float((one.mean(0) - (1 - p)).abs().max()) < 5 * deviation / math.sqrt(rows)
    assert float((one.mean(1) - (1 - p)).abs().max()) < 5 * deviation / math.sqrt(hidden)
    pairs = {"seed": (one, two), "column": (one[:, 1:], one[:, :-1]), "span": (one[1:], one[:-1])}
    for name, (x, y) in pairs.items():
        agreement = float((x == y).double().mean())
        assert abs(agreement - (p * p + (1 - p) ** 2)) < 5 * 0.5 / math.sqrt(x.numel()), name


def test_inputs_are_left_alone_and_backward_repeats():
    batch = SPAN_CASES[0].build().leaves()
    before = [x.detach().clone() for x in batch.floats]
    logits = ops.span_scores(*batch.floats, *batch.bounds, batch.max_width, dropout_p=0.2, seed=4)
    upstream = torch.randn_like(logits)
    first = torch.autograd.grad(logits, batch.floats, upstream, retain_graph=True)
    second = torch.autograd.grad(logits, batch.floats, upstream)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(batch.floats, before, strict=True))


@pytest.mark.parametrize("expected", range(4))
def test_only_requested_gradients(expected):
    batch = SPAN_CASES[0].build()
    floats = [x.clone().requires_grad_(place == expected) for place, x in enumerate(batch.floats)]
    logits = ops.span_scores(*floats, *batch.bounds, batch.max_width)
    logits[logits.isfinite()].square().sum().backward()
    assert [x.grad is not None for x in floats] == [place == expected for place in range(4)]


@pytest.mark.parametrize("backend", CPP)
def test_nan_is_not_hidden(backend):
    batch = SPAN_CASES[0].build()
    batch.a[2, 5] = -math.nan
    with running(backend):
        logits = ops.span_scores(*batch.floats, *batch.bounds, batch.max_width)
    part = ops.split_scores(logits, *batch.bounds, batch.max_width)[0]
    assert part[2].isnan().all() and not part[[0, 1, 3]].isnan().any()


def test_inputs_of_any_layout():
    batch = SPAN_CASES[0].build()
    wide = batch._replace(a=batch.a.T.contiguous().T, b=torch.cat([batch.b, batch.b], 1)[:, : batch.b.shape[1]])
    assert not wide.a.is_contiguous() and not wide.b.is_contiguous()
    arguments = (*batch.bounds, batch.max_width)
    assert torch.equal(ops.span_scores(*wide.floats, *arguments), ops.span_scores(*batch.floats, *arguments))
    long = (x.long() for x in batch.bounds)
    assert torch.equal(
        ops.span_scores(*batch.floats, *long, batch.max_width), ops.span_scores(*batch.floats, *arguments)
    )


def changed(**changes: object) -> tuple:
    names = ("a", "b", "u", "c", "cu_words", "cu_types", "max_width")
    batch = SPAN_CASES[0].build()
    values = dict(zip(names, (*batch.floats, *batch.bounds, batch.max_width), strict=True)) | changes
    return tuple(values[name] for name in names)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"b": torch.zeros(11, 7)}, ValueError, r"a, b: expected one shape \[words, H\]"),
        ({"u": torch.zeros(5, 7)}, ValueError, r"u: expected \[types, 48\]"),
        ({"c": torch.zeros(4)}, ValueError, r"c: expected \[5\]"),
        ({"a": torch.zeros(11, 48, dtype=torch.int32)}, TypeError, "a: expected fp32"),
        ({"a": [1.0]}, TypeError, "a: expected a tensor, got list"),
        ({"cu_words": torch.tensor([0.0, 7.0, 11.0])}, TypeError, "cu_words: expected int32"),
        ({"cu_words": torch.tensor([0, 7, 12])}, ValueError, "cu_words: expected offsets that rise from 0 to 11"),
        ({"cu_words": torch.tensor([0, 12, 11])}, ValueError, "cu_words: expected offsets that rise from 0 to 11"),
        ({"cu_types": torch.tensor([1, 3, 5])}, ValueError, "cu_types: expected offsets that rise from 0 to 5"),
        ({"cu_types": torch.tensor([0, 5])}, ValueError, "cu_words, cu_types: expected the same length"),
        ({"max_width": 0}, ValueError, "max_width: expected at least 1, got 0"),
        ({"a": torch.zeros(11, 48, device="meta")}, ValueError, "b: expected device meta"),
    ],
)
def test_bad_input_is_a_clear_error(changes, error, message):
    with pytest.raises(error, match=message):
        ops.span_scores(*changed(**changes))


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, math.nan])
def test_bad_dropout(dropout_p):
    with pytest.raises(ValueError, match=r"dropout_p: expected a number in \[0, 1\)"):
        ops.span_scores(*changed(), dropout_p=dropout_p)


def test_split_scores_checks_the_size():
    batch = SPAN_CASES[0].build()
    with pytest.raises(ValueError, match=r"logits: expected \[116\]"):
        ops.split_scores(torch.zeros(3), *batch.bounds, batch.max_width)


def test_mixed_dtypes_promote():
    batch = SPAN_CASES[0].build()
    half = ops.span_scores(batch.a.bfloat16(), batch.b, batch.u, batch.c.half(), *batch.bounds, batch.max_width)
    assert half.dtype == torch.float32
    exact = ops.span_scores(batch.a.bfloat16(), batch.b, batch.u.double(), batch.c, *batch.bounds, batch.max_width)
    assert exact.dtype == torch.float64
    logits = ops.span_scores(batch.a.bfloat16(), batch.b, batch.u, batch.c, *batch.bounds, batch.max_width)
    assert logits.dtype == torch.float32


def test_backend_info_and_forcing():
    info = ops.backend_info("cpu")
    assert set(info) == set(dispatch.OPERATORS)
    assert all(entry["backend"] in ("cpp", "reference") and entry["why"] for entry in info.values())
    assert ops.backend_info("cpu", torch.float64)["span_scores"]["isa"] in ("scalar", "")
    with ops.use_backend("reference"):
        assert ops.backend_info("cpu")["span_scores"]["why"] == "forced by use_backend"
    with pytest.raises(ValueError, match="expected one of"), ops.use_backend("fortran"):
        pass


def test_a_forced_backend_never_falls_back(monkeypatch):
    batch = SPAN_CASES[0].build(dtype=torch.float64)
    with running("triton") as device, pytest.raises(RuntimeError, match="cannot run: .*fp64"):
        ops.span_scores(*batch.on(device).floats, *batch.on(device).bounds, batch.max_width)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="Triton"), ops.use_backend("triton"):
            pass


def test_without_the_extension_it_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "extension", None)
    monkeypatch.setattr(dispatch, "EXTENSION_ERROR", "no compiler")
    dispatch.warn_once.cache_clear()
    batch = SPAN_CASES[0].build()
    with caplog.at_level("WARNING", logger="glimodern"):
        for _ in range(2):
            logits = ops.span_scores(*batch.floats, *batch.bounds, batch.max_width)
    assert torch.equal(logits, reference.span_scores(*batch.floats, *batch.bounds, batch.max_width))
    assert [record.message for record in caplog.records] == ["span_scores runs in plain PyTorch, slowly: no compiler"]
    assert ops.backend_info("cpu")["span_scores"] == {"backend": "reference", "isa": "", "why": "no compiler"}


def test_the_instruction_set_is_forced_by_the_environment(monkeypatch):
    skip_unless_runs("cpp-scalar")
    batch = SPAN_CASES[0].build()
    for isa in dispatch.extension.available_isas():
        with running(f"cpp-{isa}"):
            wanted = ops.span_scores(*batch.floats, *batch.bounds, batch.max_width)
        monkeypatch.setenv("GLIMODERN_ISA", isa)
        assert ops.backend_info("cpu")["span_scores"]["isa"] == {"avx512_bf16": "avx512", "amx": "avx512"}.get(isa, isa)
        assert torch.equal(ops.span_scores(*batch.floats, *batch.bounds, batch.max_width), wanted)
    monkeypatch.setenv("GLIMODERN_ISA", "mmx")
    with pytest.raises(ValueError, match=r"GLIMODERN_ISA: expected one of scalar.*, got 'mmx'"):
        ops.backend_info("cpu")
