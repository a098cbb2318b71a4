"""attention_varlen with terms of relative distance: every backend against the fp64 reference, forward and backward; the
contract of the argument; the groups that run where no kernel takes it."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import naive
import pytest
import torch
from accuracy import assert_accurate
from backends import CPP, assert_same_bits, outputs_by_threads, poisoned, running, skip_unless_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import bounds_of
from torch import Tensor

from glimodern import ops, reference
from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.padded_attention import PaddedPacking, PaddedTexts
from glimodern.layers.relative_attention import grouped_attention
from glimodern.ops import RelativePositions
from glimodern.ops import _attention_tiles as plain_tiles

BACKENDS = ("reference", *CPP)
BF16_BACKENDS = (*BACKENDS, "cpp-avx512_bf16", "cpp-amx")
FEW = 7  # table rows that many distances share
TABLES = {"c": "c2p", "p": "p2c", "b": "bias"}


class Batch(NamedTuple):
    leaves: dict[str, Tensor]  # q, k, v [N, heads, head_dim], and the tables that there are
    rows: Tensor
    cu_seqlens: Tensor
    longest: int

    def attend(self, attend: Any, leaves: dict[str, Tensor], *lengths: int, **options: Any) -> Tensor:
        q, k, v, *_ = leaves.values()
        tables = {name: x for name, x in leaves.items() if name not in "qkv"}
        return attend(q, k, v, self.cu_seqlens, *lengths, positions=RelativePositions(self.rows, **tables), **options)


@dataclass(frozen=True)
class Case:
    """Texts of so many tokens, distances up to `reach`, and the terms among "cpb": c2p, p2c, bias.

    few: random rows of FEW, so that distances share some and rows do not rise with the distance.
    """

    name: str
    lengths: tuple[int, ...]
    heads: int
    dim: int
    reach: int
    terms: str = "cpb"
    window: int | None = None
    few: bool = False

    def build(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        tokens, distances = sum(self.lengths), 2 * self.reach + 1
        leaves = {name: torch.randn(tokens, self.heads, self.dim, generator=draw) for name in "qkv"}
        rows = torch.randint(0, FEW, (distances,), generator=draw) if self.few else torch.arange(distances)
        count = FEW if self.few else distances
        for term in self.terms:
            shape = (count, self.heads) if term == "b" else (count, self.heads, self.dim)
            leaves[TABLES[term]] = torch.randn(shape, generator=draw)
        single = torch.promote_types(dtype, torch.float32)
        leaves = {name: x.to(single if name == "bias" else dtype) for name, x in leaves.items()}
        return Batch(leaves, rows.int(), bounds_of(self.lengths), max(self.lengths, default=0))


CASES = (
    Case("all terms", (7, 12), 3, 16, 5),
    Case("c2p", (45, 40, 120), 2, 64, 20, "c"),
    Case("p2c", (45, 40, 120), 2, 64, 20, "p"),
    Case("bias", (45, 40, 120), 2, 64, 20, "b"),
    Case("c2p and p2c", (45, 70, 33), 2, 64, 100, "cp"),
    Case("one row for all distances", (20, 33), 2, 16, 0),
    Case("reach beyond the texts", (5, 9), 2, 16, 300),
    Case("rows that do not rise", (45, 70), 2, 32, 30, few=True),
    Case("empty text in the batch", (5, 0, 9), 2, 32, 4),
    Case("only an empty text", (0,), 2, 16, 3),
    Case("no text", (), 2, 16, 3),
    Case("one token", (1, 1), 2, 16, 3),
    Case("window", (45, 9, 120), 2, 32, 15, window=7),
    Case("window wider than the reach", (120, 9), 2, 32, 3, window=30),
    Case("window of the query alone", (20, 3), 2, 16, 4, window=0),
    Case("head dim no multiple of a vector", (21, 48), 2, 20, 17, window=9),
    Case("head dim one", (9, 40), 1, 1, 5),
    Case("head dim 80", (50,), 1, 80, 12, "cp"),
    Case("several blocks of keys", (300, 3), 1, 32, 40),
    Case("far texts", (700,), 1, 16, 30, "cp", few=True),
    Case("long with a window", (900, 130), 1, 32, 40, window=64),
)
SMALL = [case for case in CASES if sum(case.lengths) <= 300]
by_name = {"ids": lambda case: case.name.replace(" ", "-")}


def run(batch: Batch, upstream: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """out and the gradients of the leaves."""
    leaves = {name: x.clone().requires_grad_() for name, x in batch.leaves.items()}
    out = batch.attend(ops.attention_varlen, leaves, batch.longest, **options)
    return out.detach(), *torch.autograd.grad(out, list(leaves.values()), upstream)


def eager(batch: Batch, upstream: Tensor, dtype: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
    """`run` by the oracle, in one dtype."""
    leaves = {name: x.to(dtype).requires_grad_() for name, x in batch.leaves.items()}
    out = batch.attend(reference.attention_varlen, leaves, **options)
    if not out.requires_grad:
        return out, *(torch.zeros_like(x) for x in leaves.values())
    grads = torch.autograd.grad(out, list(leaves.values()), upstream.to(dtype))
    return out.detach(), *grads


def upstream_of(batch: Batch) -> Tensor:
    q = batch.leaves["q"]
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(q.dtype)


def assert_matches(backend: str, case: Case, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    skip_unless_runs(backend)
    batch = case.build(dtype)
    upstream = upstream_of(batch)
    options = dict(window=case.window, **options)
    truth, plain = (eager(batch, upstream, d, **options) for d in (torch.float64, dtype))
    with running(backend):
        found = run(batch, upstream, **options)
    assert_accurate(found[0], truth[0], plain[0], what="out")
    grads = {name: x for name, *x in zip(batch.leaves, found[1:], truth[1:], plain[1:], strict=True)}
    if case.window == 0 or case.reach == 0 or case.name == "drawn" or batch.longest <= 1:
        # With few keys a score's gradient P * (dP - rowsum(dO * out)) is near 0, and rounding is left of it where
        # eager's softmax cancels exactly. So is the gradient of a table row that all keys of a query share. The size of
        # the terms is that of dv, so all are judged as one tensor with it, a row's sums by their number of terms.
        joined = [
            torch.cat([x.flatten().to(d) for x in y])
            for y, d in zip(zip(*grads.values(), strict=True), (dtype, torch.float64, dtype), strict=True)
        ]
        return assert_accurate(*joined, ulps=4.0 * math.sqrt(1 + sum(case.lengths)), what="gradients")
    for name, (got, right, rough) in grads.items():
        # The gradient of a table's row is a sum over pairs that cancel, of which the largest terms are rounded.
        assert_accurate(got, right, rough.to(got.dtype), ulps=4.0 if name in "qkv" else 8.0, what=f"d{name}")


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES, **by_name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, case, dropout_p):
    if backend == "cpp-scalar" and case not in SMALL:
        pytest.skip("covered by the shorter cases; the scalar kernel is slow")
    assert_matches(backend, case, dropout_p=dropout_p, seed=11)


@pytest.mark.parametrize("case", [CASES[4], CASES[15], CASES[18]], **by_name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fp16(backend, case):
    assert_matches(backend, case, torch.float16, dropout_p=0.1, seed=3)


@pytest.mark.parametrize("case", CASES, **by_name)
@pytest.mark.parametrize("backend", BF16_BACKENDS)
def test_bf16(backend, case):
    if backend == "cpp-scalar" and case not in SMALL:
        pytest.skip("covered by the shorter cases; the scalar kernel is slow")
    assert_matches(backend, case, torch.bfloat16, dropout_p=0.1, seed=3)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*((name, torch.float32) for name in CPP[1:]), *((name, torch.bfloat16) for name in BF16_BACKENDS[-3:])],
)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    dim=st.one_of(st.sampled_from([16, 32, 64]), st.integers(1, 70)),
    reach=st.integers(0, 100),
    terms=st.sampled_from(["c", "p", "b", "cp", "cpb"]),
    window=st.one_of(st.none(), st.integers(0, 70)),
    few=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.25]),
)
def test_ragged_shapes(backend, dtype, lengths, dim, reach, terms, window, few, dropout_p):
    case = Case("drawn", tuple(lengths), 2, dim, reach, terms, window, few)
    assert_matches(backend, case, dtype, dropout_p=dropout_p, seed=5)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(
    ("backend", "short"),
    [("reference", 4), ("reference", 256), ("cpp-scalar", 256)],
    ids=["reference-many-tiles", "reference-one-tile", "cpp-scalar"],
)
def test_gradcheck_in_fp64(backend, window, short, monkeypatch):
    monkeypatch.setattr(plain_tiles, "_SHORT", short)
    monkeypatch.setattr(plain_tiles, "_TILE", 16)
    monkeypatch.setattr(plain_tiles, "_MIN_ROWS", 2)
    batch = Case("", (1, 7, 0, 3), 2, 2, 3, few=True).build(torch.float64)
    leaves = [x.clone().requires_grad_() for x in batch.leaves.values()]

    def attend(*leaves: Tensor) -> Tensor:
        named = dict(zip(batch.leaves, leaves, strict=True))
        return batch.attend(ops.attention_varlen, named, 7, window=window, dropout_p=0.3, seed=2)

    named = dict(zip(batch.leaves, leaves, strict=True))
    expected = batch.attend(naive.attention_varlen, named, window=window, dropout_p=0.3, seed=2)
    with running(backend):
        torch.testing.assert_close(attend(*leaves), expected)
        assert torch.autograd.gradcheck(attend, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("terms", ["cpb", "p"])
def test_opcheck(backend, needs_grad, terms):
    batch = Case("", (4, 0, 6), 2, 8, 3, terms).build()
    leaves = {name: x.clone().requires_grad_(needs_grad) for name, x in batch.leaves.items()}
    inputs = [leaves.get(name) for name in ("q", "k", "v", *TABLES.values())]
    with running(backend):
        torch.library.opcheck(
            torch.ops.glimodern.attention_varlen.default,
            (*inputs, batch.rows, batch.cu_seqlens, 6, 3, 0.3, 0.1, 3),
        )


def test_compiles_without_a_graph_break():
    batch = CASES[0].build()
    leaves = {name: x.clone().requires_grad_() for name, x in batch.leaves.items()}

    def model(leaves: dict[str, Tensor]) -> Tensor:
        return batch.attend(ops.attention_varlen, leaves, batch.longest, window=4).sigmoid()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    upstream = upstream_of(batch)
    for got, wanted in zip(
        (compiled(leaves), *torch.autograd.grad(compiled(leaves), list(leaves.values()), upstream)),
        (model(leaves), *torch.autograd.grad(model(leaves), list(leaves.values()), upstream)),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BF16_BACKENDS)
@pytest.mark.parametrize("case", [CASES[4], CASES[7], CASES[13], CASES[18]], **by_name)
def test_a_text_alone_has_the_same_bits(backend, case, dtype):
    batch = case.build(dtype)
    with running(backend):
        together = batch.attend(ops.attention_varlen, batch.leaves, batch.longest, window=case.window)
        rows = zip(*(batch.leaves[name].split(case.lengths) for name in "qkv"), strict=True)
        for own, got in zip(rows, together.split(case.lengths), strict=True):
            alone = batch._replace(cu_seqlens=bounds_of((len(got),)))
            leaves = {**batch.leaves, **dict(zip("qkv", own, strict=True))}
            found = alone.attend(ops.attention_varlen, leaves, len(got), window=case.window)
            assert torch.equal(found, got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BF16_BACKENDS[1:])
@pytest.mark.parametrize("case", [CASES[4], CASES[18], CASES[20]], **by_name)
def test_same_bits_for_every_number_of_threads(backend, case, dtype):
    if backend == "cpp-scalar" and case not in SMALL:
        pytest.skip("covered by the shorter cases; the scalar kernel is slow")
    batch = case.build(dtype)
    upstream = upstream_of(batch)
    with running(backend):
        first, *others = outputs_by_threads(lambda: run(batch, upstream, window=case.window, dropout_p=0.2, seed=9))
    assert_same_bits(first, *others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BF16_BACKENDS)
def test_poisoned_memory(backend, dtype):
    """Nothing is read before it is written, and everything is written; without gradients the result is the same."""
    with running(backend):
        for case in (CASES[0], CASES[6], CASES[7], CASES[15]):
            batch = case.build(dtype)
            with poisoned():
                found = run(batch, upstream_of(batch), window=case.window, dropout_p=0.2, seed=1)
                assert all(x.isfinite().all() for x in found)
                options = dict(window=case.window, dropout_p=0.2, seed=1)
                assert torch.equal(batch.attend(ops.attention_varlen, batch.leaves, batch.longest, **options), found[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("table", TABLES.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BF16_BACKENDS)
def test_rows_that_no_distance_uses_reach_nothing(backend, dtype, table, bad):
    """Those of distances beyond the longest text, and those that no distance has."""
    batch = Case("", (9, 17), 2, 16, 40).build(dtype)
    used = torch.zeros(len(batch.leaves[table]), dtype=torch.bool)
    used[40 - 16 : 40 + 17] = True
    changed = {**batch.leaves, table: batch.leaves[table].clone()}
    changed[table][~used] = bad
    with running(backend):
        one, other = (run(batch._replace(leaves=x), upstream_of(batch)) for x in (batch.leaves, changed))
    for name, x, y in zip(("out", *batch.leaves), one, other, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("backend", BF16_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("scale", [1.0, 0.125, 1e-7])
def test_a_bias_may_mask_keys(backend, dtype, masked, scale):
    """All that lie before the query, or after it: whole blocks of keys, the first one too."""
    skip_unless_runs(backend)
    batch = Case("", (5, 40) if backend == "cpp-scalar" else (5, 40, 700), 1, 32, reach=50, terms="b").build(dtype)
    for hidden in (slice(51, None), slice(None, 50)):
        bias = batch.leaves["bias"].clone()
        bias[hidden] = masked
        leaves = {**batch.leaves, "bias": bias}
        truth, plain = (
            batch.attend(reference.attention_varlen, {name: x.to(d) for name, x in leaves.items()}, None, scale)
            for d in (torch.float64, dtype)
        )
        with running(backend):
            found = batch.attend(ops.attention_varlen, leaves, batch.longest, scale=scale)
        assert_accurate(found, truth, plain)


@pytest.mark.parametrize("table", TABLES.values())
@pytest.mark.parametrize("backend", BF16_BACKENDS)
def test_nan_is_not_hidden(backend, table):
    """In the row of distance 2: query i and key i - 2."""
    batch = Case("", (9, 2), 2, 16, 5).build()
    changed = {**batch.leaves, table: batch.leaves[table].clone()}
    changed[table][5 + 2, 1] = math.nan
    with running(backend):
        out = batch.attend(ops.attention_varlen, changed, 9)
    assert out[2:9, 1].isnan().all()
    assert not out[:2].isnan().any() and not out[9:].isnan().any() and not out[:, 0].isnan().any()


@pytest.mark.parametrize("expected", range(6))
def test_only_requested_gradients(expected):
    batch = CASES[0].build()
    leaves = {name: x.clone().requires_grad_(place == expected) for place, (name, x) in enumerate(batch.leaves.items())}
    batch.attend(ops.attention_varlen, leaves, batch.longest).square().sum().backward()
    assert [x.grad is not None for x in leaves.values()] == [place == expected for place in range(6)]


def test_inputs_are_left_alone_and_backward_repeats():
    batch = CASES[4].build()
    leaves = {name: x.clone().requires_grad_() for name, x in batch.leaves.items()}
    out = batch.attend(ops.attention_varlen, leaves, batch.longest, dropout_p=0.2, seed=4)
    upstream = torch.randn_like(out)
    first = torch.autograd.grad(out, list(leaves.values()), upstream, retain_graph=True)
    second = torch.autograd.grad(out, list(leaves.values()), upstream)
    assert_same_bits(first, second)
    assert_same_bits(list(batch.leaves.values()), list(leaves.values()))


def test_tables_of_any_layout_and_dtype():
    batch = CASES[0].build()
    q, k, v, c2p, p2c, bias = batch.leaves.values()
    plain = batch.attend(ops.attention_varlen, batch.leaves, batch.longest)
    strided = RelativePositions(
        batch.rows.long(),
        c2p.transpose(0, 1).contiguous().transpose(0, 1),
        p2c.mT.contiguous().mT,
        bias.t().clone().t(),
    )
    assert torch.equal(ops.attention_varlen(q, k, v, batch.cu_seqlens, 12, positions=strided), plain)
    half = RelativePositions(batch.rows, c2p.bfloat16(), p2c.bfloat16(), bias.bfloat16())
    rounded = half._replace(c2p=half.c2p.float(), p2c=half.p2c.float(), bias=half.bias.float())
    one, other = (ops.attention_varlen(q, k, v, batch.cu_seqlens, 12, positions=x) for x in (half, rounded))
    assert one.dtype == torch.float32 and torch.equal(one, other)
    leaf = bias.bfloat16().requires_grad_()
    ops.attention_varlen(q, k, v, batch.cu_seqlens, 12, positions=half._replace(bias=leaf)).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"c2p": None, "p2c": None, "bias": None}, ValueError, "positions: expected c2p, p2c or bias, got none"),
        ({"rows": torch.zeros(4).int()}, ValueError, r"positions.rows: expected \[2 reach \+ 1\], .* got \(4,\)"),
        ({"rows": torch.zeros(3, 3).int()}, ValueError, "positions.rows: expected"),
        ({"rows": torch.zeros(3)}, TypeError, "positions.rows: expected int32 or int64, got torch.float32"),
        (
            {"rows": torch.tensor([0, 1, 11])},
            ValueError,
            "positions.rows: expected rows of tables of 11 rows, got 0 to",
        ),
        ({"rows": torch.tensor([-1, 1, 2])}, ValueError, "tables of 11 rows, got -1 to 2"),
        ({"p2c": torch.zeros(11, 3, 8)}, ValueError, r"positions.p2c: expected \(11, 3, 16\), got \(11, 3, 8\)"),
        ({"p2c": torch.zeros(10, 3, 16)}, ValueError, r"positions.p2c: expected \(11, 3, 16\), got"),
        ({"bias": torch.zeros(11, 2)}, ValueError, r"positions.bias: expected \(11, 3\), got \(11, 2\)"),
        ({"c2p": [1.0]}, TypeError, "c2p: expected a tensor, got list"),
        ({"bias": torch.zeros(11, 3).int()}, TypeError, "bias: expected fp32"),
        ({"bias": torch.zeros(11, 3, device="meta")}, ValueError, "bias: expected device cpu"),
        ({"rows": torch.zeros(3, device="meta").int()}, ValueError, "positions.rows: expected device cpu"),
    ],
)
@pytest.mark.parametrize("needs_grad", [True, False])
def test_bad_input_is_a_clear_error(changes, error, message, needs_grad):
    batch = CASES[0].build()
    q, k, v, c2p, p2c, bias = batch.leaves.values()
    positions = RelativePositions(**(dict(rows=batch.rows, c2p=c2p, p2c=p2c, bias=bias) | changes))
    with pytest.raises(error, match=message):
        ops.attention_varlen(q.clone().requires_grad_(needs_grad), k, v, batch.cu_seqlens, 12, positions=positions)


# Where no kernel takes positions: groups of padded texts


@pytest.mark.parametrize("case", [case for case in CASES if case.window is None], **by_name)
def test_groups_compute_the_same(case):
    """By length, and all texts in one; forward and backward."""
    batch = case.build()
    packing = Packing.of(batch.cu_seqlens, batch.longest, sum(case.lengths))
    leaves = {name: x.clone().requires_grad_() for name, x in batch.leaves.items()}
    q, k, v, *_ = leaves.values()
    positions = RelativePositions(batch.rows, **{name: x for name, x in leaves.items() if name not in "qkv"})
    wanted = packed_attention(q, k, v, packing, scale=0.3, positions=positions)
    assert torch.equal(wanted, batch.attend(ops.attention_varlen, leaves, batch.longest, scale=0.3))
    outs = [grouped_attention(q, k, v, packing.groups, positions, scale=0.3)]
    if sum(case.lengths):
        padded = PaddedPacking(PaddedTexts.of_lengths(torch.tensor(case.lengths)))
        outs.append(packed_attention(q, k, v, padded, scale=0.3, positions=positions))
    upstream = upstream_of(batch)
    for out in outs:
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
        if wanted.numel():
            grads, right = (
                torch.autograd.grad(x, list(leaves.values()), upstream, retain_graph=True) for x in (out, wanted)
            )
            for got, expected in zip(grads, right, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_padded_texts_have_no_window_with_positions():
    batch = CASES[0].build()
    packing = PaddedPacking(PaddedTexts.of_lengths(torch.tensor(CASES[0].lengths)))
    q, k, v, c2p, *_ = batch.leaves.values()
    with pytest.raises(ValueError, match="window: expected None with positions on padded texts, got 3"):
        packed_attention(q, k, v, packing, window=3, positions=RelativePositions(batch.rows, c2p))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [CASES[4], CASES[7], CASES[12]], **by_name)
def test_on_a_gpu(case, dtype):
    """The operator, and the groups that encoders take there where there is no window."""
    batch = case.build(dtype)
    upstream = upstream_of(batch)
    truth, plain = (eager(batch, upstream, d, window=case.window) for d in (torch.float64, dtype))
    there = Batch(
        {name: x.cuda() for name, x in batch.leaves.items()}, batch.rows.cuda(), batch.cu_seqlens.cuda(), batch.longest
    )
    found = run(there, upstream.cuda(), window=case.window)
    for name, got, right, rough in zip(("out", *batch.leaves), found, truth, plain, strict=True):
        assert_accurate(got.cpu(), right, rough.to(got.dtype), what=name)
    if case.window is None:
        packing = Packing.of(there.cu_seqlens, there.longest, sum(case.lengths))
        q, k, v, *_ = there.leaves.values()
        tables = {name: x for name, x in there.leaves.items() if name not in "qkv"}
        out = packed_attention(q, k, v, packing, positions=RelativePositions(there.rows, **tables))
        assert_accurate(out.cpu(), truth[0], plain[0])
