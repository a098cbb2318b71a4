"""The Triton kernels against the oracle: on the GPU if there is one, else in Triton's interpreter on CPU tensors.

The interpreter runs the kernels' own program but not their machine code: it cannot show a wrong layout, a race or the
tensor cores' rounding. tests/test_resources.py compiles them; the same tests on a GPU run the compiled code.
"""

import math

import pytest
import torch
from accuracy import assert_accurate
from shapes import SMALL_SPAN_CASES, SpanBatch, SpanCase, case_id
from torch import Tensor

from glimodern import reference

pytest.importorskip("triton", reason="triton is not installed")
span_scores = pytest.importorskip("glimodern.kernels.span_scores", exc_type=ModuleNotFoundError)
span_loss = pytest.importorskip("glimodern.kernels.span_loss", exc_type=ModuleNotFoundError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 12_345_678_901  # more than 32 bits: only the low ones count
# Two tiles of rows, words, columns and types; a tile that meets three texts, one of them empty.
TILED = SpanCase("two tiles each way", (13, 0, 2, 6), (70, 4, 3, 5), 72, 4)
CASES = (*SMALL_SPAN_CASES, TILED)
# Triton 3.9's interpreter truncates fp32 to bf16 where hardware rounds to nearest: twice the error at each rounding.
HALF_FACTOR = {torch.float16: 2.0, torch.bfloat16: 4.0}
LOSSES = {
    "bce": (0.0, 1.0, None, False),
    "focal 2, mean": (2.0, 1.0, None, True),
    "focal 1.5, balanced": (1.5, 0.7, 0.75, False),
    "balanced, mean": (0.0, 1.0, 0.75, True),
}


def on_device(case: SpanCase, dtype: torch.dtype = torch.float32) -> SpanBatch:
    batch = case.build(dtype=dtype)
    return SpanBatch(*(x.to(DEVICE) if isinstance(x, Tensor) else x for x in batch))


def scores(batch: SpanBatch, dropout_p: float = 0.0) -> Tensor:
    return span_scores.span_scores_forward(*batch.floats, *batch.bounds, batch.max_width, dropout_p, SEED)


def reference_scores(batch: SpanBatch, dropout_p: float = 0.0) -> Tensor:
    return reference.span_scores(*batch.floats, *batch.bounds, batch.max_width, dropout_p, SEED)


def reference_grads(output: Tensor, batch: SpanBatch, upstream: Tensor | None) -> tuple[Tensor, ...]:
    if not output.requires_grad:
        return tuple(torch.zeros_like(x) for x in batch.floats)
    return torch.autograd.grad(output, batch.floats, upstream, allow_unused=True, materialize_grads=True)


def loss(batch: SpanBatch, options: tuple, dropout_p: float = 0.0, compute_grads: bool = True) -> tuple:
    return span_loss.span_loss_forward(
        *batch.floats, *batch.bounds, batch.positives, batch.max_width, *options, dropout_p, SEED, compute_grads
    )


def reference_loss(batch: SpanBatch, options: tuple, dropout_p: float = 0.0) -> Tensor:
    *focal, mean = options
    reduction = "mean" if mean else "sum"
    return reference.span_loss(
        *batch.floats, *batch.bounds, batch.positives, batch.max_width, *focal, reduction, dropout_p, SEED
    )


def check_scores(case: SpanCase, dtype: torch.dtype, dropout_p: float, c: float = 2.0) -> None:
    batch = on_device(case, dtype)
    truth = reference_scores(batch.to(torch.float64), dropout_p)
    got, eager = scores(batch, dropout_p), reference_scores(batch, dropout_p)
    assert got.dtype == eager.dtype == torch.float32
    # hidden values are rounded to the inputs' dtype, so that logits are as exact as that
    assert_accurate(got.to(dtype), truth, eager.to(dtype), c=c, what="logits")


def check_scores_grads(case: SpanCase, dtype: torch.dtype, dropout_p: float, c: float = 2.0) -> None:
    batch = on_device(case, dtype)
    exact, eager = batch.to(torch.float64).leaves(), batch.leaves()
    exact_logits, eager_logits = reference_scores(exact, dropout_p), reference_scores(eager, dropout_p)
    upstream = torch.randn(exact_logits.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    outside = exact_logits.isinf()
    truth = reference_grads(exact_logits, exact, upstream.double())
    eager_grads = reference_grads(eager_logits, eager, upstream)
    poisoned = upstream.masked_fill(outside, math.nan)  # a span that leaves its text: its gradient is not read
    got = span_scores.span_scores_backward(
        poisoned, batch.a, batch.b, batch.u, *batch.bounds, batch.max_width, dropout_p, SEED
    )
    for name, mine, true, other in zip(("da", "db", "du", "dc"), got, truth, eager_grads, strict=True):
        assert_accurate(mine, true, other, c=c, what=name)


def check_loss(case: SpanCase, dtype: torch.dtype, options: tuple, dropout_p: float, c: float = 2.0) -> None:
    batch = on_device(case, dtype)
    exact, eager = batch.to(torch.float64).leaves(), batch.leaves()
    truth, other = reference_loss(exact, options, dropout_p), reference_loss(eager, options, dropout_p)
    total, *grads = loss(batch, options, dropout_p)
    assert total.dtype == torch.float32 and total.shape == ()
    # as exact as the logits
    assert_accurate(total.to(dtype), truth.detach(), other.detach().to(dtype), c=c, what="loss")
    true_grads, other_grads = reference_grads(truth, exact, None), reference_grads(other, eager, None)
    for name, mine, true, eager_grad in zip(("da", "db", "du", "dc"), grads, true_grads, other_grads, strict=True):
        assert_accurate(mine, true, eager_grad, c=c, what=name)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_scores(case: SpanCase, dropout_p: float) -> None:
    check_scores(case, torch.float32, dropout_p)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_scores_backward(case: SpanCase) -> None:
    check_scores_grads(case, torch.float32, 0.3)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_loss_and_its_gradients(case: SpanCase) -> None:
    check_loss(case, torch.float32, (2.0, 0.7, 0.75, True), 0.3)


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_loss_options(options: tuple) -> None:
    check_loss(SMALL_SPAN_CASES[0], torch.float32, options, 0.0)


@pytest.mark.parametrize("dtype", HALF_FACTOR, ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    for case in SMALL_SPAN_CASES[:2]:
        check_scores(case, dtype, 0.3, c=HALF_FACTOR[dtype])
        check_scores_grads(case, dtype, 0.3, c=HALF_FACTOR[dtype])
        check_loss(case, dtype, (2.0, 1.0, 0.75, False), 0.0, c=HALF_FACTOR[dtype])


def test_dropout_mask_is_the_references() -> None:
    words, hidden, max_width, dropout_p = 6, 40, 3, 0.4
    u = torch.eye(hidden, device=DEVICE)
    cu_words, cu_types = (torch.tensor([0, x], dtype=torch.int32, device=DEVICE) for x in (words, hidden))
    a, b, c = u.new_ones(words, hidden), u.new_zeros(words, hidden), u.new_zeros(hidden)
    rows = torch.arange(words * max_width, device=DEVICE)
    for seed in (0, 7, -1, 2**32 - 5, 2**40 + 3):
        logits = span_scores.span_scores_forward(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)
        logits = logits.view(len(rows), hidden)
        inside = rows // max_width + rows % max_width < words
        keep = reference.dropout_keep(rows, hidden, dropout_p, seed)
        assert torch.equal(logits[inside] != 0, keep[inside])


def test_loss_without_gradients_is_the_same_bits() -> None:
    batch = on_device(SMALL_SPAN_CASES[0])
    for options in LOSSES.values():
        alone, *grads = loss(batch, options, compute_grads=False)
        assert torch.equal(alone, loss(batch, options)[0])
        assert grads == [None] * 4


def test_no_positives() -> None:
    batch = on_device(SMALL_SPAN_CASES[0])
    batch = batch._replace(positives=batch.positives[:0])
    truth, eager = (reference_loss(batch.to(dtype), LOSSES["bce"]) for dtype in (torch.float64, torch.float32))
    assert_accurate(loss(batch, LOSSES["bce"])[0], truth, eager, what="loss")


def test_order_and_type_of_positives_do_not_matter() -> None:
    batch = on_device(SMALL_SPAN_CASES[0])
    expected = loss(batch, LOSSES["bce"])
    changed = batch._replace(positives=batch.positives.flip(0).to(torch.int32))
    assert all(torch.equal(x, y) for x, y in zip(loss(changed, LOSSES["bce"]), expected, strict=True))


def test_loss_of_confident_spans_is_accurate_to_its_last_digits() -> None:
    """softplus(-20) = 2e-9 must not round to zero: each span's share is exp(-20) to fp32's relative precision."""
    case = SpanCase("confident", (6,), (3,), 16, 3, scale=0.0)
    batch = on_device(case)
    batch = batch._replace(c=batch.c - 20.0, positives=batch.positives[:0])
    truth = reference_loss(batch.to(torch.float64), LOSSES["bce"])
    torch.testing.assert_close(loss(batch, LOSSES["bce"])[0].double(), truth, rtol=1e-5, atol=0.0)


def test_runs_are_bit_equal_and_inputs_unchanged() -> None:
    batch = on_device(SMALL_SPAN_CASES[0])
    before = [x.clone() for x in batch[:7]]
    first, second = (loss(batch, LOSSES["focal 2, mean"], 0.3) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(before, batch[:7], strict=True))


def test_strided_inputs() -> None:
    batch = on_device(SMALL_SPAN_CASES[0])
    strided = batch._replace(a=batch.a.t().contiguous().t(), u=batch.u.repeat_interleave(2, 1)[:, ::2])
    assert not strided.a.is_contiguous() and not strided.u.is_contiguous()
    assert torch.equal(scores(strided), scores(batch))


def test_not_a_number_is_not_swallowed() -> None:
    batch = on_device(SMALL_SPAN_CASES[0])
    batch.a[1, 5] = math.nan
    assert torch.equal(scores(batch).isnan(), reference_scores(batch).isnan())
    assert loss(batch, LOSSES["bce"])[0].isnan()
