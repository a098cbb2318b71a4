"""The oracles of glimodern.reference against naive definitions (tests/naive.py), in fp64, with gradients."""

import math

import naive
import numpy as np
import pytest
import torch
from shapes import SPAN_CASES, SpanCase, bounds_of, case_id
from torch import Tensor

from glimodern import reference
from glimodern.reference.linear_packed import linear_int8, quantise_rows, quantise_weight, scale_inputs

CASES = tuple(case for case in SPAN_CASES if case.hidden < 1000)
LOSSES = {
    "bce": {},
    "focal, mean": {"focal_gamma": 2.0, "focal_scale": 1.5, "reduction": "mean"},
    "balanced": {"class_balance": 0.75},
    "all": {"focal_gamma": 1.3, "focal_scale": 0.5, "class_balance": 0.25, "reduction": "mean", "dropout_p": 0.3},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(oracle, definition, leaves: list[Tensor], constants=(), **options) -> None:
    """Results to the rounding of fp64, and the gradients of a random combination of the results."""
    results = []
    for function in (oracle, definition):
        fresh = [x.detach().clone().requires_grad_() for x in leaves]
        y = function(*fresh, *constants, **options)
        upstream = normal(*y.shape, seed=1).masked_fill(y.detach().isinf(), 0.0)
        grads = [torch.zeros_like(x) for x in leaves]
        if y.requires_grad:
            total = (torch.where(y.isinf(), 0.0, y) * upstream).sum()
            grads = torch.autograd.grad(total, fresh, allow_unused=True, materialize_grads=True)
        results.append((y.detach(), *grads))
    for got, wanted in zip(*results, strict=True):
        size = max([1.0, *wanted[wanted.isfinite()].abs().tolist()])
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-13 * size)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_span_scores_are_the_sums_over_one_span_at_a_time(case, dropout_p):
    batch = case.build(dtype=torch.float64)
    assert_same(
        reference.span_scores, naive.span_scores, batch.floats, (*batch.bounds, case.max_width, dropout_p, 2**40 + 3)
    )


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_span_loss_is_the_focal_loss_of_every_span_and_type(case, options):
    batch = case.build(dtype=torch.float64)
    constants = (*batch.bounds, batch.positives, case.max_width)
    assert_same(reference.span_loss, naive.span_loss, batch.floats, constants, seed=5, **options)


def test_plain_span_loss_is_pytorchs_binary_cross_entropy():
    logits = normal(2 * 3 * 2)
    bounds = bounds_of((2,)), bounds_of((2,))
    inside = torch.tensor([True, True, False, True, False, False]).repeat_interleave(2)  # spans by word, k; two types
    truth = torch.zeros(12, dtype=torch.float64)
    truth[[1, 6]] = 1.0  # word 0, k 0, type 1; word 1, k 0, type 0
    positives = torch.tensor([[0, 0, 1], [1, 0, 0]])
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits[inside], truth[inside], reduction="mean")
    got = reference.loss_of_scores(
        logits.masked_fill(~inside, -math.inf), *bounds, positives, max_width=3, reduction="mean"
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_span_vectors_are_the_second_linear_of_one_span_at_a_time(case, dropout_p):
    batch = case.build(dtype=torch.float64)
    leaves = [batch.a, batch.b, normal(7, case.hidden), normal(7)]
    assert_same(
        reference.span_vectors, naive.span_vectors, leaves, (batch.cu_words, case.max_width, None, dropout_p, 3)
    )


@pytest.mark.parametrize("identity", [False, True], ids=["ffn", "identity"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_head_before_the_fold_is_that_of_one_span_at_a_time(case, identity):
    batch = case.build(dtype=torch.float64)
    d = case.hidden
    hidden = 2 * d if identity else 9
    first = [None, None] if identity else [normal(9, 2 * d), normal(9, seed=2)]
    leaves = [batch.a, batch.b, normal(d, hidden, seed=3), normal(d, seed=4), normal(len(batch.u), d, seed=5)]
    constants = (*batch.bounds, case.max_width, 0.3, 7)

    def with_first(function):
        return lambda starts, ends, *rest: function(starts, ends, *first, *rest)

    assert_same(with_first(reference.textbook_scores), with_first(naive.head_scores), leaves, constants)


def test_the_fold_is_the_head_before_it():
    """a, b = W1's halves times starts and ends, u = W2^T q, c = b2 . q: the same logits."""
    batch = SpanCase("", (5, 0, 3), (2, 3, 1), 6, 4).build(dtype=torch.float64)
    w1, b1, w2, b2, q = normal(9, 12), normal(9, seed=2), normal(4, 9), normal(4, seed=3), normal(6, 4)
    a, b = batch.a @ w1[:, :6].T + b1, batch.b @ w1[:, 6:].T
    torch.testing.assert_close(
        reference.span_scores(a, b, q @ w2, q @ b2, *batch.bounds, 4, 0.2, 9),
        reference.textbook_scores(batch.a, batch.b, w1, b1, w2, b2, q, *batch.bounds, 4, 0.2, 9),
    )


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_span_entities_are_all_spans_above_the_threshold_in_order(case):
    batch = case.build(dtype=torch.float64)
    if len(batch.a):
        batch.a[-1, 0] = math.nan
    logits = naive.span_scores(*batch.floats, *batch.bounds, case.max_width)
    for threshold in (torch.rand(len(batch.u), generator=torch.Generator().manual_seed(7)), torch.ones(len(batch.u))):
        found = reference.span_entities(*batch.floats, *batch.bounds, case.max_width, threshold)
        wanted = naive.span_entities(logits, *batch.bounds, case.max_width, threshold)
        assert list(zip(*(column.tolist() for column in found[:3]), strict=True)) == [row[:3] for row in wanted]
        scores = torch.tensor([row[3] for row in wanted], dtype=torch.float64)
        torch.testing.assert_close(found[3], scores, rtol=1e-11, atol=1e-13, equal_nan=True)


def test_a_probability_equal_to_the_threshold_is_not_above_it():
    """Compared in fp32: the logit's sigmoid in fp64 may be a little above."""
    c = torch.tensor([0.0, 1e-9, 1e-6], dtype=torch.float64)
    a, u, bounds = c.new_zeros(1, 2), c.new_zeros(3, 2), (bounds_of((1,)), bounds_of((3,)))
    found = reference.span_entities(a, a, u, c, *bounds, 1, torch.full((3,), 0.5))
    assert found[2].tolist() == [2]


@pytest.mark.parametrize("lengths", [(7, 12), (5, 0, 9), (1,), (0,), ()], ids=str)
@pytest.mark.parametrize(
    ("window", "scale", "dropout_p"), [(None, None, 0.0), (3, None, 0.3), (0, -0.3, 0.0), (50, 2.0, 0.3)]
)
def test_attention_is_that_of_one_query_at_a_time(lengths, window, scale, dropout_p):
    leaves = [normal(sum(lengths), 3, 4, seed=seed) for seed in range(3)]
    constants = (bounds_of(lengths), window, scale, dropout_p, 123456789012)
    assert_same(reference.attention_varlen, naive.attention_varlen, leaves, constants)


def test_attention_to_a_whole_text_is_pytorchs():
    q, k, v = (normal(9, 2, 4, seed=seed) for seed in range(3))
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads_first)[0].transpose(0, 1)
    torch.testing.assert_close(reference.attention_varlen(q, k, v, bounds_of((9,))), wanted)


def test_mix32_is_the_published_hash():
    """Computed in whole numbers of any size; 2^32 values in, the same out, none twice."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    values = [*range(1000), 2**16, 2**31 - 1, 2**31, 2**32 - 1, *range(2**32 - 1000, 2**32 - 1)]
    hashes = reference.mix32(torch.tensor(values)).tolist()
    assert hashes == [mix(x) for x in values] == naive.mix32(np.array(values, dtype=np.uint32)).tolist()
    assert len(set(hashes)) == len(set(values))


@pytest.mark.parametrize("seed", [0, 7, -1, 2**32 - 5, 2**40 + 3])
def test_the_mask_of_a_row_is_a_function_of_its_number_and_the_seed(seed):
    rows = [0, 1, 5, 2**31, 2**32 - 1, 2**32 + 5]
    keep = reference.dropout_keep(torch.tensor(rows), 40, 0.3, seed)
    assert torch.equal(keep, torch.stack([naive.keep(row, 40, 0.3, seed) for row in rows]))
    assert torch.equal(keep[2], keep[5])  # numbers count modulo 2^32
    assert not torch.equal(keep[0], keep[1])


@pytest.mark.parametrize("dropout_p", [0.0, 0.25, 0.5, 0.999])
def test_the_bound_of_dropped_hashes_is_the_share_of_all_hashes(dropout_p):
    assert reference.dropout_threshold(dropout_p) == math.floor(dropout_p * 2**32)


def test_dropout_of_any_shape_is_that_of_its_rows():
    assert_same(reference.dropout, naive.dropout, [normal(2, 3, 7)], (0.4, 9))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0])
def test_geglu_is_the_normal_distribution_function(scale):
    assert_same(reference.geglu, naive.geglu, [scale * normal(4, 10)])


def test_rotary_turns_complex_numbers():
    angle = 3.0 * normal(5, 4, seed=2)
    assert_same(reference.rotary, naive.rotary, [normal(5, 2, 3, 8)], (angle.cos(), angle.sin()))
    assert_same(reference.rotary, naive.rotary, [normal(5, 3, 8)], (angle.cos(), angle.sin()))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("which", [0, 1], ids=["normed", "sum"])
def test_layer_norm_is_that_of_the_sum_by_mean_and_variance(residual, bias, which):
    leaves = [x for x, taken in ((normal(5, 9) + 3.0, True), (normal(5, 9, seed=1), residual)) if taken]
    leaves += [normal(9, seed=2), *([normal(9, seed=3)] if bias else [])]

    def one(function):
        def run(x, *rest):
            rest = list(rest)
            other = rest.pop(0) if residual else None
            return function(x, other, rest[0], rest[1] if bias else None, 0.1)[which]

        return run

    assert_same(one(reference.add_layer_norm), one(naive.add_layer_norm), leaves)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("which", [0, 1], ids=["normed", "sum"])
def test_rms_norm_is_that_of_the_sum_by_the_mean_square(residual, which):
    leaves = [normal(5, 9) + 3.0, *([normal(5, 9, seed=1)] if residual else []), normal(9, seed=2)]

    def one(function):
        return lambda x, *rest: function(x, rest[0] if residual else None, rest[-1], 0.1)[which]

    assert_same(one(reference.add_rms_norm), one(naive.add_rms_norm), leaves)


@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 1, 1), (3, 0, 5), (2, 4, 0), (7, 37, 19), (30, 200, 33)], ids=str)
def test_int8_products_are_those_of_whole_numbers(shape):
    n, i, o = shape
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((n, i), (o, i), (o,)))
    x[: n // 3].relu_()
    q, scale = quantise_weight(weight)
    whole, wanted_scale = naive.quantise_weight(weight.numpy())
    assert np.array_equal(q[:, :i].numpy(), whole) and np.array_equal(scale.numpy(), wanted_scale)
    got = linear_int8(x, q[:, :i], scale, bias, "relu")
    assert torch.equal(got, naive.linear_int8(x, weight, bias, torch.relu))


def test_a_quantised_row_stands_for_the_row():
    """Each number to half a step of (largest - smallest) / 255; 0 exactly."""
    x = torch.tensor([[-1.0, 0.0, 0.5, 1.55], [0.0, 1.0, 2.0, 5.1], [-5.1, -2.0, -1.0, 0.0]])
    q, scale, zero = quantise_rows(x)
    torch.testing.assert_close(scale[:, 0], torch.tensor([2.55, 5.1, 5.1]) / 255)
    assert zero[:, 0].tolist() == [100.0, 0.0, 255.0]
    assert q.tolist() == [[0.0, 100.0, 150.0, 255.0], [0.0, 50.0, 100.0, 255.0], [0.0, 155.0, 205.0, 255.0]]


def test_scales_of_inputs_share_the_difficulty_evenly():
    """sqrt(largest |weight| / largest |x|) by input, over its geometric mean."""
    weight = torch.tensor([[1.0, -8.0, 2.0], [-2.0, 4.0, 1.0]])
    sizes = torch.tensor([2.0, 2.0, 8.0])
    plain = [math.sqrt(2.0 / 2.0), math.sqrt(8.0 / 2.0), math.sqrt(2.0 / 8.0)]
    mean = math.prod(plain) ** (1 / 3)
    torch.testing.assert_close(scale_inputs(weight, sizes), torch.tensor(plain) / mean)
