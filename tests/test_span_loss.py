"""span_loss: every backend against the fp64 reference, loss and gradients; the contract of the public function."""

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

from glimodern import ops, reference
from glimodern.ops.dispatch import accumulator_dtype

OPTIONS = {
    "plain": {},
    "paper": {"focal_gamma": 2.0, "focal_scale": 1.5, "reduction": "mean"},
    "balanced": {"focal_gamma": 0.0, "class_balance": 0.75},
    "any-gamma": {"focal_gamma": 1.3, "class_balance": 0.25, "dropout_p": 0.3, "seed": 17},
}
UPSTREAM = 0.731


def run(batch: SpanBatch, function=ops.span_loss, **options):
    """Loss and the four gradients for an upstream gradient that is not 1."""
    leaves = batch.leaves()
    loss = function(*leaves.floats, *leaves.bounds, leaves.positives, leaves.max_width, **options)
    if not loss.requires_grad:
        return loss, tuple(torch.zeros_like(x) for x in leaves.floats)
    upstream = torch.tensor(UPSTREAM).to(loss)
    return loss.detach(), torch.autograd.grad(loss, leaves.floats, upstream, allow_unused=True, materialize_grads=True)


def assert_matches(backend: str, batch: SpanBatch, **options) -> None:
    """The backend "reference" computes by the oracle itself, so its truth is the naive definition."""
    skip_unless_runs(backend)
    definition = naive.span_loss if backend == "reference" else reference.span_loss
    truth, true_grads = run(batch.to(torch.float64), definition, **options)
    plain, plain_grads = run(batch, reference.span_loss, **options)
    with running(backend) as device:
        loss, grads = run(batch.on(device), **options)
    assert loss.dtype == accumulator_dtype(batch.a) and loss.ndim == 0
    assert_accurate(loss.cpu(), truth, plain.to(loss.dtype), what="loss")
    for name, got, true_grad, plain_grad in zip("abuc", grads, true_grads, plain_grads, strict=True):
        assert_accurate(got.cpu(), true_grad, plain_grad, what=f"d{name}")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", SPAN_CASES, ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, case, options):
    if backend == "triton" and not torch.cuda.is_available():
        if not case.small:
            pytest.skip("Triton's interpreter is too slow for this case")
        if "dropout_p" not in options and case is not SPAN_CASES[0]:
            pytest.skip("Triton's interpreter is slow: one set of options a case, all on the first")
    assert_matches(backend, case.build(), **options)


@pytest.mark.parametrize("case", [SPAN_CASES[0], SPAN_CASES[10], SPAN_CASES[14]], ids=case_id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_other_dtypes(backend, dtype, case):
    """Halves are rounded once, in the gradients; their loss is fp32, and as exact as that of fp32 inputs."""
    batch = case.build(dtype=dtype)
    definition = naive.span_loss if backend == "reference" else reference.span_loss
    truth, true_grads = run(batch.to(torch.float64), definition, **OPTIONS["any-gamma"])
    with running(backend):
        loss, grads = run(batch, **OPTIONS["any-gamma"])
    assert loss.dtype == accumulator_dtype(batch.a)
    torch.testing.assert_close(loss.double(), truth, rtol=8 * torch.finfo(loss.dtype).eps, atol=0)
    for name, got, true_grad in zip("abuc", grads, true_grads, strict=True):
        assert got.dtype == dtype
        ulps = 32.0 if dtype == torch.float64 else 4.0  # where the truth is no more precise than the kernel
        assert_accurate(got, true_grad, true_grad.to(dtype), ulps=ulps, what=f"d{name}")


@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_five_thousand_types(backend):
    assert_matches(backend, SpanCase("", (3, 2), (5000, 1), 24, 2).build(), **OPTIONS["paper"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_poisoned_memory(backend):
    batch = SPAN_CASES[2].build()
    with running(backend) as device:
        clean = run(batch.on(device), **OPTIONS["any-gamma"])
        with poisoned():
            other = run(batch.on(device), **OPTIONS["any-gamma"])
    assert_same_bits((clean[0], *clean[1]), (other[0], *other[1]))


@pytest.mark.parametrize("backend", ["reference", *CPP])
def test_the_loss_drops_what_span_scores_drops(backend):
    """Loss and gradients are those of span_scores' logits with the same seed, and of no other."""
    batch = SPAN_CASES[0].build()
    with running(backend):
        loss, grads = run(batch, dropout_p=0.4, seed=8)
        leaves = batch.leaves()
        logits = ops.span_scores(*leaves.floats, *leaves.bounds, batch.max_width, dropout_p=0.4, seed=8)
        same = naive.loss_of_scores(logits, *batch.bounds, batch.positives, batch.max_width)
        wanted = torch.autograd.grad(same * UPSTREAM, leaves.floats)
        other, _ = run(batch, dropout_p=0.4, seed=9)
    torch.testing.assert_close(loss, same.detach())
    for got, grad in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, grad)
    assert not torch.isclose(loss, other)


@pytest.mark.parametrize("backend", CPP[1:])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=4),
    hidden=st.integers(1, 150),
    max_width=st.integers(1, 20),
    options=st.sampled_from(list(OPTIONS.values())),
)
def test_ragged_shapes(backend, texts, hidden, max_width, options):
    case = SpanCase("drawn", tuple(w for w, _ in texts), tuple(t for _, t in texts), hidden, max_width)
    assert_matches(backend, case.build(seed=3), **options)


@pytest.mark.parametrize("backend", CPP)
def test_many_panels(backend):
    """More logits than the kernel's scratch holds at a time (2^21), and single words that exceed a block's share."""
    skip_unless_runs(backend)
    assert_matches(backend, SpanCase("", (900,), (400,), 3, 12).build(), focal_gamma=2.0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", FP64_BACKENDS)
def test_gradcheck_in_fp64(backend, options):
    batch = SpanCase("", (3, 0, 2), (2, 1, 3), 5, 2).build(dtype=torch.float64).leaves()

    def loss(*floats):
        return ops.span_loss(*floats, *batch.bounds, batch.positives, batch.max_width, **options)

    with running(backend):
        assert loss(*batch.floats).dtype == torch.float64
        assert torch.autograd.gradcheck(loss, batch.floats, nondet_tol=0.0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", [SPAN_CASES[0], SPAN_CASES[5], SPAN_CASES[7], SPAN_CASES[12]], ids=case_id)
def test_the_oracles_gradient_is_that_of_its_loss(case, options):
    """By autograd, in fp64; zero for spans that leave their text."""
    batch = case.build(dtype=torch.float64)
    logits = reference.span_scores(*batch.floats, *batch.bounds, batch.max_width).requires_grad_()
    options = {name: value for name, value in options.items() if name not in ("dropout_p", "seed")}
    arguments = (*batch.bounds, batch.positives, batch.max_width)
    (truth,) = torch.autograd.grad(reference.loss_of_scores(logits, *arguments, **options), logits)
    grad = reference.loss_gradient(logits.detach(), *arguments, **options)
    assert grad.dtype == torch.float64
    torch.testing.assert_close(grad, truth, rtol=1e-12, atol=1e-300)
    assert not grad[logits.isinf()].any()


@pytest.mark.parametrize("gamma", [0.0, 2.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_every_logit(backend, dtype, gamma):
    """One word and zero vectors: logits are c, here from -90 to 90, and dc is the focal loss's gradient.

    Errors are relative to each gradient, as confident ones are many orders of magnitude smaller than others.
    """
    if dtype == torch.float64 and backend not in FP64_BACKENDS:
        pytest.skip("fp64 has a scalar kernel only")
    c = torch.cat([torch.linspace(-90.0, 90.0, 181), torch.linspace(-3.0, 3.0, 61)]).repeat_interleave(2).to(dtype)
    types = len(c)
    positive = torch.arange(types) % 2 == 1
    rows = torch.stack([torch.zeros(types // 2), torch.zeros(types // 2), positive.nonzero()[:, 0]], 1).long()
    zeros, bounds = torch.zeros(1, 8, dtype=dtype), (torch.tensor([0, n], dtype=torch.int32) for n in (1, types))
    batch = SpanBatch(zeros, zeros, torch.zeros(types, 8, dtype=dtype), c, *bounds, rows, 1)
    with running(backend) as device:
        leaves = batch.on(device).leaves()
        ops.span_loss(*leaves.floats, *leaves.bounds, leaves.positives, 1, focal_gamma=gamma).backward()
    sign = torch.where(positive, -1.0, 1.0).double()
    truth = sign * reference.focal_bce_grad(sign * c.double(), gamma)
    normal = truth.abs() > 1e-36  # of fp32; what is smaller may round to zero
    dc = leaves.c.grad.cpu().double()
    torch.testing.assert_close(dc[normal], truth[normal], rtol=64 * torch.finfo(dtype).eps, atol=0.0)
    assert dc[~normal].abs().le(1e-35).all()


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck(backend, needs_grad):
    batch = SPAN_CASES[0].build()
    floats = batch.leaves().floats if needs_grad else batch.floats
    options = (batch.max_width, 2.0, 1.0, 0.75, True, 0.1, 3, needs_grad)
    with running(backend):
        torch.library.opcheck(
            torch.ops.glimodern.span_loss.default, (*floats, *batch.bounds, batch.positives, *options)
        )


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_compiles_without_a_graph_break(backend):
    batch = SPAN_CASES[0].build().leaves()

    def model(*floats):
        return 3.0 * ops.span_loss(*floats, *batch.bounds, batch.positives, batch.max_width, focal_gamma=2.0)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with running(backend):
        got, wanted = (torch.autograd.grad(f(*batch.floats), batch.floats) for f in (compiled, model))
    assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_every_time(backend):
    batch = SPAN_CASES[0].build()
    with running(backend) as device:
        first, second = (run(batch.on(device), focal_gamma=2.0, dropout_p=0.2, seed=9) for _ in range(2))
    assert_same_bits((first[0], *first[1]), (second[0], *second[1]))


@pytest.mark.parametrize("backend", CPP)
def test_same_bits_for_every_number_of_threads(backend):
    skip_unless_runs(backend)
    batch = next(case for case in SPAN_CASES if case.name.startswith("longer")).build()

    def outputs():
        with running(backend):
            loss, grads = run(batch, focal_gamma=2.0, dropout_p=0.2, seed=9)
        return loss, *grads

    assert_same_bits(*outputs_by_threads(outputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_is_the_same_with_and_without_gradients(backend):
    batch = SPAN_CASES[0].build()
    with running(backend) as device:
        moved = batch.on(device)
        bare = ops.span_loss(*moved.floats, *moved.bounds, moved.positives, moved.max_width, focal_gamma=2.0)
        with_grads, _ = run(moved, focal_gamma=2.0)
    assert not bare.requires_grad
    assert torch.equal(bare, with_grads)


@pytest.mark.parametrize("backend", CPP)
def test_order_and_repetition_of_positives_do_not_matter(backend):
    batch = SPAN_CASES[0].build()
    shuffled = torch.cat([batch.positives.flip(0), batch.positives[:1]]).to(torch.int32)
    with running(backend):
        one, two = run(batch), run(batch._replace(positives=shuffled))
    assert torch.equal(one[0], two[0])
    assert all(torch.equal(x, y) for x, y in zip(one[1], two[1], strict=True))


def test_it_agrees_with_span_scores():
    """Gradients of the loss are those of binary cross-entropy over span_scores' logits."""
    batch = SPAN_CASES[0].build()
    leaves = batch.leaves()
    logits = ops.span_scores(*leaves.floats, *leaves.bounds, leaves.max_width)
    y = torch.zeros_like(logits)
    parts = ops.split_scores(y, *batch.bounds, batch.max_width)
    for word, k, kind in batch.positives.tolist():
        text = int(torch.searchsorted(batch.cu_words[1:], word, right=True))
        parts[text][word - int(batch.cu_words[text]), k, kind - int(batch.cu_types[text])] = 1.0
    inside = logits.isfinite()
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits[inside], y[inside], reduction="sum")
    grads = torch.autograd.grad(plain * UPSTREAM, leaves.floats)
    loss, loss_grads = run(batch)
    torch.testing.assert_close(loss, plain.detach())
    for got, wanted in zip(loss_grads, grads, strict=True):
        torch.testing.assert_close(got, wanted)


def test_inputs_are_left_alone_and_backward_repeats():
    batch = SPAN_CASES[0].build().leaves()
    before = [x.detach().clone() for x in (*batch.floats, batch.positives)]
    loss = ops.span_loss(*batch.floats, *batch.bounds, batch.positives, batch.max_width, dropout_p=0.2, seed=4)
    first = torch.autograd.grad(loss, batch.floats, torch.tensor(0.5), retain_graph=True)
    second = torch.autograd.grad(loss, batch.floats, torch.tensor(2.0))
    assert all(torch.equal(4.0 * x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip((*batch.floats, batch.positives), before, strict=True))


@pytest.mark.parametrize("expected", range(4))
def test_only_requested_gradients(expected):
    batch = SPAN_CASES[0].build()
    floats = [x.clone().requires_grad_(place == expected) for place, x in enumerate(batch.floats)]
    ops.span_loss(*floats, *batch.bounds, batch.positives, batch.max_width).backward()
    assert [x.grad is not None for x in floats] == [place == expected for place in range(4)]


@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
@pytest.mark.parametrize("backend", CPP)
def test_nan_is_not_hidden(backend, gamma):
    batch = SPAN_CASES[0].build()
    batch.a[2, 5] = -math.nan
    with running(backend):
        loss, grads = run(batch, focal_gamma=gamma)
    assert loss.isnan()
    assert grads[2].isnan().any() and grads[3].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_logits_do_not_overflow(backend):
    """Logits of about ±1000: the loss is their sum, and no exponential overflows or loses it."""
    words, width = 4, 2
    a = torch.full((words, 1), 1000.0)
    u, c = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
    bounds = torch.tensor([0, words], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)
    batch = SpanBatch(a, torch.zeros_like(a), u, c, *bounds, torch.tensor([[0, 0, 1], [1, 0, 0]]), width)
    for gamma in (0.0, 2.0, 0.5):
        with running(backend) as device:
            loss, grads = run(batch.on(device), focal_gamma=gamma)
        assert (
            float(loss) == 7000.0
        )  # 7 spans with logit 1000 of type 0, one of them positive, and one positive at -1000
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    "row",
    [(-1, 0, 0), (11, 0, 3), (6, 1, 0), (0, 4, 0), (0, -1, 0), (0, 0, 3), (7, 0, 2), (0, 0, 5), (0, 0, -1)],
    ids=str,
)
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_positives_outside_their_text_are_an_error(backend, row):
    batch = SPAN_CASES[0].build()
    positives = torch.tensor([(0, 0, 0), row])
    message = r"positives: expected rows \(word, k, type\) .*, got \(" + ", ".join(map(str, row)) + r"\) in row 1"
    with running(backend), pytest.raises(ValueError, match=message):
        ops.span_loss(*batch.floats, *batch.bounds, positives, batch.max_width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal_gamma": -1.0}, "focal_gamma: expected a finite number"),
        ({"focal_gamma": math.nan}, "focal_gamma: expected a finite number"),
        ({"class_balance": 1.5}, "class_balance: expected None or"),
        ({"reduction": "none"}, "reduction: expected 'sum' or 'mean', got 'none'"),
        ({"dropout_p": 1.0}, "dropout_p: expected"),
    ],
)
def test_bad_options_are_clear_errors(options, message):
    batch = SPAN_CASES[0].build()
    with pytest.raises(ValueError, match=message):
        ops.span_loss(*batch.floats, *batch.bounds, batch.positives, batch.max_width, **options)


@pytest.mark.parametrize("positives", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(1, 3)])
def test_bad_positives_are_clear_errors(positives):
    batch = SPAN_CASES[0].build()
    with pytest.raises(ValueError, match=r"positives: expected integers \[P, 3\]"):
        ops.span_loss(*batch.floats, *batch.bounds, positives, batch.max_width)
