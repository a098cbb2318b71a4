"""attention_varlen: every backend against the fp64 reference, forward and backward; the contract of the public op."""

import ctypes
import math
import mmap
from dataclasses import dataclass
from typing import NamedTuple

import naive
import pytest
import torch
from accuracy import assert_accurate
from backends import CPP, running, skip_unless_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import bounds_of
from torch import Tensor

from glimodern import ops, reference
from glimodern.layers.attention import Packing, packed_attention
from glimodern.ops import _attention_tiles as plain_tiles
from glimodern.ops import _attention_varlen, dispatch
from glimodern.ops._attention_varlen import _text_by_text
from glimodern.ops.dispatch import takes_flash

BACKENDS = ("reference", *CPP)
BF16_BACKENDS = (*BACKENDS, "cpp-avx512_bf16", "cpp-amx")


class Batch(NamedTuple):
    qkv: Tensor  # [N, 3, heads, head_dim]
    cu_seqlens: Tensor
    longest: int


@dataclass(frozen=True)
class Case:
    """Texts of so many tokens; scale multiplies q, and so the scores."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    dim: int
    window: int | None = None
    scale: float = 1.0

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        qkv = torch.randn(sum(self.lengths), 3, self.heads, self.dim, generator=generator)
        qkv[:, 0] *= self.scale
        return Batch(qkv.to(dtype), bounds_of(self.lengths), max(self.lengths, default=0))


CASES = (
    Case("plain", (7, 12), 3, 16),
    Case("one token", (1,), 2, 16),
    Case("empty text in the batch", (5, 0, 9), 2, 32),
    Case("only an empty text", (0,), 2, 16),
    Case("no text", (), 2, 16),
    Case("short texts", (45, 40, 120, 77), 2, 64),
    Case("window", (45, 9, 120), 2, 32, window=7),
    Case("window of the query alone", (20, 3), 2, 16, window=0),
    Case("window wider than the text", (20, 3), 2, 16, window=50),
    Case("head dim no multiple of a vector", (21, 18), 2, 20, window=6),
    Case("head dim one", (9,), 1, 1),
    Case("head dim 96", (70,), 1, 96),
    Case("head dim 128", (33,), 2, 128),
    Case("several blocks of keys backward", (300,), 1, 32),
    Case("several blocks of keys forward", (700, 2), 1, 16),
    Case("long with a window", (900, 130), 1, 32, window=64),
    Case("long with a wide window", (1200,), 1, 16, window=300),
    Case("huge scores", (40,), 2, 32, scale=300.0),
    Case("tiny scores", (40,), 2, 32, scale=1e-6),
)


def run(batch: Batch, upstream: Tensor, window: int | None, dropout_p: float = 0.0, seed: int = 0):
    """out and the gradient of the fused qkv, of which q, k and v are slices."""
    qkv = batch.qkv.clone().requires_grad_()
    out = ops.attention_varlen(
        *qkv.unbind(1), batch.cu_seqlens, batch.longest, window=window, dropout_p=dropout_p, seed=seed
    )
    return out.detach(), torch.autograd.grad(out, qkv, upstream)[0]


def eager(batch: Batch, upstream: Tensor, window: int | None, dropout_p: float = 0.0, seed: int = 0):
    qkv = batch.qkv.clone().requires_grad_()
    out = reference.attention_varlen(*qkv.unbind(1), batch.cu_seqlens, window, None, dropout_p, seed)
    if not out.requires_grad:
        return out, torch.zeros_like(qkv)
    return out.detach(), torch.autograd.grad(out, qkv, upstream)[0]


def upstream_of(batch: Batch) -> Tensor:
    shape = (len(batch.qkv), *batch.qkv.shape[2:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(batch.qkv.dtype)


def assert_matches(
    backend: str, case: Case, dropout_p: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> None:
    skip_unless_runs(backend)
    batch = case.build(dtype=dtype)
    upstream = upstream_of(batch)
    double = batch._replace(qkv=batch.qkv.double())
    truth, true_grad = eager(double, upstream.double(), case.window, dropout_p, seed)
    plain, plain_grad = eager(batch, upstream, case.window, dropout_p, seed)
    with running(backend):
        out, grad = run(batch, upstream, case.window, dropout_p, seed)
    assert_accurate(out, truth, plain, what="out")
    if dtype == torch.bfloat16 and case.scale > 1.0:
        return  # rowsum(dO * out) of the rounded out, times huge q: more rounding than where eager's softmax cancels
    if case.name == "drawn" or case.window == 0 or batch.longest <= 1:
        # Few keys: a score's gradient P * (dP - rowsum(dO * out)) is 0 or near, of which rounding is left where eager's
        # softmax cancels exactly. The size of its terms is dv's, so the three are judged as one tensor.
        return assert_accurate(grad, true_grad, plain_grad, what="dqkv")
    for place, name in enumerate("qkv"):
        assert_accurate(grad[:, place], true_grad[:, place], plain_grad[:, place], what=f"d{name}")


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, case, dropout_p):
    if backend == "cpp-scalar" and sum(case.lengths) > 700:
        pytest.skip("covered by the shorter cases; the scalar kernel is slow")
    assert_matches(backend, case, dropout_p, seed=11)


@pytest.mark.parametrize("case", [CASES[5], CASES[9], CASES[15]], ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_fp16(backend, case):
    assert_matches(backend, case, 0.1, seed=3, dtype=torch.float16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("backend", BF16_BACKENDS)
def test_bf16(backend, case):
    if backend == "cpp-scalar" and sum(case.lengths) > 700:
        pytest.skip("covered by the shorter cases; the scalar kernel is slow")
    assert_matches(backend, case, 0.1, seed=3, dtype=torch.bfloat16)


@pytest.mark.parametrize("backend", BF16_BACKENDS)
def test_bf16_rows_at_odd_places(backend):
    """Rows of q, k and v that begin in the middle of a pair, NaN around them."""
    batch = CASES[9].build(dtype=torch.bfloat16)
    odd = torch.full((len(batch.qkv), 3, 2, 23), math.nan, dtype=torch.bfloat16)
    odd[..., 1:21] = batch.qkv
    with running(backend):
        one, other = (
            ops.attention_varlen(*x.unbind(1), batch.cu_seqlens, batch.longest, window=6)
            for x in (batch.qkv, odd[..., 1:21])
        )
    assert torch.allclose(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("backend", CPP[1:])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    dim=st.integers(1, 40),
    window=st.one_of(st.none(), st.integers(0, 100)),
    dropout_p=st.sampled_from([0.0, 0.25]),
)
def test_ragged_shapes(backend, lengths, heads, dim, window, dropout_p):
    assert_matches(backend, Case("drawn", tuple(lengths), heads, dim, window), dropout_p, seed=5)


@pytest.mark.parametrize("backend", BF16_BACKENDS[-2:])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    dim=st.one_of(st.sampled_from([32, 64, 80, 128]), st.integers(1, 100)),
    window=st.one_of(st.none(), st.integers(0, 70)),
    dropout_p=st.sampled_from([0.0, 0.25]),
)
def test_ragged_shapes_in_bf16(backend, lengths, dim, window, dropout_p):
    assert_matches(backend, Case("drawn", tuple(lengths), 2, dim, window), dropout_p, seed=5, dtype=torch.bfloat16)


@pytest.mark.parametrize("backend", BF16_BACKENDS[1:])
@pytest.mark.parametrize(
    ("length", "window", "scale"),
    [(513, None, None), (1100, 64, None), (700, 300, None), (600, None, 0.0), (600, 20, -0.3)],
)
def test_long_texts_in_bf16(backend, length, window, scale):
    """Several blocks of keys, several tasks; scores of which the largest product is not the largest."""
    batch = Case("", (length, 3), 1, 64).build(dtype=torch.bfloat16)
    qkv = batch.qkv.unbind(1)
    truth, plain = (
        reference.attention_varlen(*x, batch.cu_seqlens, window, scale) for x in (batch.qkv.double().unbind(1), qkv)
    )
    with running(backend):
        got = ops.attention_varlen(*qkv, batch.cu_seqlens, batch.longest, window=window, scale=scale)
    assert_accurate(got, truth, plain)


@pytest.mark.parametrize("backend", BF16_BACKENDS)
@pytest.mark.parametrize("window", [None, 9])
def test_a_text_alone_has_the_same_bits_in_bf16(backend, window):
    batch = CASES[5].build(dtype=torch.bfloat16)
    with running(backend):
        together = ops.attention_varlen(*batch.qkv.unbind(1), batch.cu_seqlens, batch.longest, window=window)
        for rows, got in zip(batch.qkv.split(CASES[5].lengths), together.split(CASES[5].lengths), strict=True):
            bounds = bounds_of((len(rows),))
            assert torch.equal(ops.attention_varlen(*rows.clone().unbind(1), bounds, len(rows), window=window), got)


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="no mprotect")
@pytest.mark.parametrize("backend", BF16_BACKENDS[1:])
@pytest.mark.parametrize("length", [1, 15, 17, 45])
def test_nothing_is_read_beyond_the_tensors(backend, length):
    """Rows that end where a page ends that may be read, before one that may not."""
    rows = torch.randn(length, 3, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    size, page = 2 * rows.numel(), mmap.PAGESIZE
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(place + whole), ctypes.c_size_t(page), 0) == 0
    last = torch.frombuffer(memory, dtype=torch.bfloat16, count=rows.numel(), offset=whole - size).view(rows.shape)
    last.copy_(rows)
    with running(backend):
        one, other = (ops.attention_varlen(*x.unbind(1), bounds_of((length,)), length) for x in (rows, last))
    assert torch.equal(one, other)


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
    inputs = Case("", (1, 7, 0, 3), 2, 2).build(dtype=torch.float64)
    q, k, v = (x.clone().requires_grad_() for x in inputs.qkv.unbind(1))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.attention_varlen(q, k, v, inputs.cu_seqlens, 7, window=window, dropout_p=0.3, seed=2)

    expected = naive.attention_varlen(q, k, v, inputs.cu_seqlens, window, None, 0.3, 2)
    with running(backend):
        torch.testing.assert_close(attend(q, k, v), expected)
        assert torch.autograd.gradcheck(attend, (q, k, v), nondet_tol=0.0)


def test_no_tile_is_longer_than_its_window_allows():
    bounds = (0, 8192, 8292)
    area = {w: max((t.q1 - t.q0) * (t.k1 - t.k0) for t in plain_tiles.tiles(bounds, w)) for w in (64, None)}
    assert area[64] <= 64 * 192 and area[None] <= 32 * 8192


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck(backend, needs_grad):
    batch = Case("", (4, 0, 6), 2, 8).build()
    q, k, v = (x.clone().requires_grad_(needs_grad) for x in batch.qkv.unbind(1))
    with running(backend):
        torch.library.opcheck(
            torch.ops.glimodern.attention_varlen.default, (q, k, v, *[None] * 4, batch.cu_seqlens, 6, 3, 0.3, 0.1, 3)
        )


def test_compiles_without_a_graph_break():
    batch = CASES[0].build()
    qkv = batch.qkv.clone().requires_grad_()

    def model(qkv: Tensor) -> Tensor:
        return ops.attention_varlen(*qkv.unbind(1), batch.cu_seqlens, batch.longest, window=4).sigmoid()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    upstream = upstream_of(batch)
    for got, wanted in zip(
        (compiled(qkv), torch.autograd.grad(compiled(qkv), qkv, upstream)[0]),
        (model(qkv), torch.autograd.grad(model(qkv), qkv, upstream)[0]),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_texts_do_not_see_each_other(backend):
    """One text's tokens change nothing in another's rows, to the bit; nor do keys outside the window."""
    batch, upstream = CASES[6].build(), upstream_of(CASES[6].build())
    changed = batch.qkv.clone()
    changed[45:54] = 7e30
    with running(backend):
        one, other = (run(batch._replace(qkv=x), upstream, 7, 0.2, 9) for x in (batch.qkv, changed))
    for x, y in zip(one, other, strict=True):
        assert torch.equal(x[:45], y[:45]) and torch.equal(x[54:], y[54:])
    far = batch.qkv.clone()
    far[20] = 7e30
    with running(backend):
        out = run(batch._replace(qkv=far), upstream, 7, 0.2, 9)[0]
    assert torch.equal(out[:13], one[0][:13]) and torch.equal(out[28:], one[0][28:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_every_time(backend):
    batch = CASES[6].build()
    with running(backend):
        first, second = (run(batch, upstream_of(batch), 7, 0.2, 9) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BF16_BACKENDS[1:])
@pytest.mark.parametrize("case", [CASES[5], CASES[15]], ids=["short", "long"])
def test_same_bits_for_every_number_of_threads(backend, case, dtype):
    batch = case.build(dtype=dtype)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with running(backend):
                outputs.append(run(batch, upstream_of(batch), case.window, 0.2, 9))
    finally:
        torch.set_num_threads(before)
    for other in outputs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 9])
def test_the_mask_is_the_hash_of_query_head_key_and_seed(backend, window):
    """All scores 0, v the identity: out is keep / (1 - p) / keys, as naive.keep says."""
    heads, tokens, p, seed = 3, 24, 0.3, 123456789012
    q, v = torch.zeros(5 + tokens, heads, tokens), torch.zeros(5 + tokens, heads, tokens)
    v[5:] = torch.eye(tokens)[:, None]
    with running(backend):
        out = ops.attention_varlen(
            q, q, v, bounds_of((5, tokens)), tokens, window=window, dropout_p=p, seed=seed, scale=1.0
        )
    places = torch.arange(tokens)
    rows = [
        [naive.keep((5 + query) * heads + head, tokens, p, seed) for query in range(tokens)] for head in range(heads)
    ]
    keep = torch.stack([torch.stack(row) for row in rows])
    seen = (places[:, None] - places).abs() <= (tokens if window is None else window)
    expected = (keep & seen) / (1.0 - p) / seen.sum(-1, keepdim=True)
    torch.testing.assert_close(out[5:].transpose(0, 1), expected)


def test_dropout_statistics():
    """The share kept is 1 - p within five standard deviations, over all and by query and key; seeds are unrelated."""
    p, heads, n = 0.3, 4, 300
    places = torch.arange(n)
    one, two = (reference.attention_keep(heads, places, places, p, seed).double() for seed in (1, 2))
    deviation = math.sqrt(p * (1 - p))
    assert abs(float(one.mean()) - (1 - p)) < 5 * deviation / math.sqrt(heads * n * n)
    for place in (1, 2):
        assert float((one.mean((0, place)) - (1 - p)).abs().max()) < 5 * deviation / math.sqrt(heads * n)
    for other in (two, one.roll(1, 0), one.roll(1, 1), one.roll(1, 2)):
        agreement = float((one == other).double().mean())
        assert abs(agreement - (p * p + (1 - p) ** 2)) < 5 * 0.5 / math.sqrt(heads * n * n)


def test_a_row_of_the_mask_is_dropout_keeps():
    keep = reference.attention_keep(3, torch.tensor([7, 9]), torch.arange(40), 0.4, 5)
    assert torch.equal(keep[2], reference.dropout_keep(torch.tensor([7, 9]) * 3 + 2, 40, 0.4, 5))


def test_inputs_are_left_alone_and_backward_repeats():
    batch = CASES[5].build()
    inputs = [x.clone().requires_grad_() for x in batch.qkv.unbind(1)]
    before = [x.detach().clone() for x in inputs]
    out = ops.attention_varlen(*inputs, batch.cu_seqlens, batch.longest, dropout_p=0.2, seed=4)
    upstream = torch.randn_like(out)
    kept = upstream.clone()
    first = torch.autograd.grad(out, inputs, upstream, retain_graph=True)
    second = torch.autograd.grad(out, inputs, upstream)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip((*inputs, upstream), (*before, kept), strict=True))


@pytest.mark.parametrize("expected", range(3))
def test_only_requested_gradients(expected):
    batch = CASES[0].build()
    inputs = [x.clone().requires_grad_(place == expected) for place, x in enumerate(batch.qkv.unbind(1))]
    ops.attention_varlen(*inputs, batch.cu_seqlens, batch.longest).square().sum().backward()
    assert [x.grad is not None for x in inputs] == [place == expected for place in range(3)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_poisoned_memory(backend):
    """torch.empty is filled with NaN: nothing is read before it is written, and everything is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with running(backend):
            for case in (CASES[5], CASES[6], CASES[9], CASES[15]):
                batch = case.build()
                out, grad = run(batch, upstream_of(batch), case.window, 0.2, 1)
                assert out.isfinite().all() and grad.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", range(3))
def test_nan_is_not_hidden(backend, place):
    batch = Case("", (30, 8), 2, 16).build()
    batch.qkv[4, place, 1, 3] = math.nan
    with running(backend):
        out = ops.attention_varlen(*batch.qkv.unbind(1), batch.cu_seqlens, 30)
    touched = out[:30, 1] if place else out[4, 1]
    assert (touched[:, 3] if place == 2 else touched).isnan().all()
    assert not out[30:].isnan().any() and not out[:, 0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_any_layout(dtype):
    batch = CASES[9].build(dtype=dtype)
    q, k, v = (x.contiguous() for x in batch.qkv.unbind(1))
    options = dict(window=6, dropout_p=0.2, seed=8)
    plain = ops.attention_varlen(q, k, v, batch.cu_seqlens, batch.longest, **options)
    layouts = {
        "slices of a fused qkv": batch.qkv.unbind(1),
        "head-major": [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)],
        "last dimension strided": [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
    }
    for name, inputs in layouts.items():
        got = ops.attention_varlen(*inputs, batch.cu_seqlens, batch.longest, **options)
        assert torch.equal(got, plain), name
    assert torch.equal(ops.attention_varlen(q, k, v, batch.cu_seqlens.long(), 99, **options), plain)
    leaf = q.clone().requires_grad_()
    out = ops.attention_varlen(leaf, k, v, batch.cu_seqlens, batch.longest, **options)
    upstream = torch.randn(out.shape[1:], dtype=dtype)
    dense, expanded = (
        torch.autograd.grad(out, leaf, x, retain_graph=True)[0]
        for x in (upstream.expand(out.shape).contiguous(), upstream.expand(out.shape))
    )
    assert torch.equal(dense, expanded)


def test_mixed_dtypes_promote():
    batch = CASES[0].build()
    q, k, v = batch.qkv.unbind(1)
    assert ops.attention_varlen(q.bfloat16(), k, v, batch.cu_seqlens, batch.longest).dtype == torch.float32


def test_autocast_changes_nothing():
    batch = CASES[0].build()
    for backend in ("reference", "cpp-scalar"):
        with running(backend):
            plain = run(batch, upstream_of(batch), None)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                inside = run(batch, upstream_of(batch), None)
        assert all(torch.equal(x, y) for x, y in zip(plain, inside, strict=True))


def changed(**changes: object) -> tuple:
    batch = CASES[0].build()
    q, k, v = batch.qkv.unbind(1)
    values = dict(q=q, k=k, v=v, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.longest) | changes
    return tuple(values.values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, "q: expected a tensor, got list"),
        ({"k": torch.zeros(19, 2, 16)}, ValueError, "q, k, v: expected one shape"),
        ({"q": torch.zeros(19, 3, 16, dtype=torch.int32)}, TypeError, "q: expected fp32"),
        ({"v": torch.zeros(19, 3, 16, device="meta")}, ValueError, "v: expected device cpu"),
        ({"cu_seqlens": torch.tensor([0.0, 7.0, 19.0])}, TypeError, "cu_seqlens: expected int32"),
        ({"cu_seqlens": torch.zeros(2, 2, dtype=torch.int32)}, ValueError, r"cu_seqlens: expected \[texts \+ 1\]"),
        ({"cu_seqlens": torch.tensor([0, 7, 20])}, ValueError, "cu_seqlens: expected offsets that rise from 0 to 19"),
        ({"cu_seqlens": torch.tensor([0, 20, 19])}, ValueError, "cu_seqlens: expected offsets that rise from 0 to 19"),
        ({"max_seqlen": 11}, ValueError, "max_seqlen: expected at least 12, the longest text of cu_seqlens, got 11"),
        ({"max_seqlen": -1}, ValueError, "max_seqlen: expected the tokens of the longest text, got -1"),
    ],
)
def test_bad_input_is_a_clear_error(changes, error, message):
    with pytest.raises(error, match=message):
        ops.attention_varlen(*changed(**changes))


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_offsets_on_the_host_hide_no_bad_tensor(backend, needs_grad):
    """The kernels read the tensor."""
    batch = CASES[0].build()
    q, k, v = (x.clone().requires_grad_(needs_grad) for x in batch.qkv.unbind(1))
    good, bad = batch.cu_seqlens, torch.tensor([0, 7, 20], dtype=torch.int32)
    with running(backend):
        plain = ops.attention_varlen(q, k, v, good, 13)
        assert torch.equal(ops.attention_varlen(q, k, v, good, 13, offsets=good.tolist()), plain)
        with pytest.raises(ValueError, match="cu_seqlens: expected offsets that rise from 0 to 19"):
            ops.attention_varlen(q, k, v, bad, 13, offsets=good.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_p": 1.0}, "dropout_p: expected"),
        ({"dropout_p": math.nan}, "dropout_p"),
        ({"window": -1}, "window: expected None"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ops.attention_varlen(*changed(), **options)


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_a_packing_checks_its_offsets_once(backend, monkeypatch):
    """And what a user gives to the operator is checked at every call."""
    batch, checks = CASES[0].build(), []
    q, k, v = batch.qkv.unbind(1)

    def counted(*arguments):
        checks.append(arguments)
        return checked_offsets(*arguments)

    checked_offsets = _attention_varlen._checked_offsets
    monkeypatch.setattr(_attention_varlen, "_checked_offsets", counted)
    offsets = tuple(batch.cu_seqlens.tolist())
    with running(backend), torch.no_grad():
        known = ops.attention_varlen(q, k, v, batch.cu_seqlens, batch.longest)
        assert len(checks) == 1
        for given in (None, offsets):
            packing = Packing.of(batch.cu_seqlens, batch.longest, len(q), given)
            assert torch.equal(packed_attention(q, k, v, packing), known)
        unknown = Packing(batch.cu_seqlens, batch.longest, len(q))
        assert torch.equal(packed_attention(q, k, v, unknown), known)
        assert len(checks) == 1
        with pytest.raises(ValueError, match="cu_seqlens: expected offsets that rise from 0 to 18"):
            packed_attention(q[1:], k[1:], v[1:], packing)
    other = (0, *(n - 1 for n in offsets[1:-1]), offsets[-1])
    with pytest.raises(ValueError, match="offsets: expected the elements of cu_seqlens"):
        Packing.of(batch.cu_seqlens, batch.longest, len(q), other)


def test_cuda_takes_flash_attention(monkeypatch):
    """What would run there, asked without a GPU."""
    monkeypatch.setattr(dispatch, "flash_attention", lambda: print)
    assert ops.backend_info("cuda", torch.bfloat16)["attention_varlen"]["backend"] == "flash"
    info = ops.backend_info("cuda", torch.float32)["attention_varlen"]
    assert info["backend"] == "reference" and "take fp16, bf16, got fp32" in info["why"]
    monkeypatch.setattr(dispatch, "flash_attention", lambda: None)
    assert "varlen_attn" in ops.backend_info("cuda", torch.bfloat16)["attention_varlen"]["why"]


def as_on_cuda(monkeypatch, flash, drops):
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda op, device_type, dtype: choose(op, "cuda", dtype))
    monkeypatch.setattr(dispatch, "flash_attention", lambda: flash)
    monkeypatch.setattr(dispatch, "flash_drops", lambda: drops)
    monkeypatch.setattr(dispatch, "_has_ampere", lambda: True)


def test_dropout_on_cuda_takes_flash_attn_where_that_drops(monkeypatch):
    """The package flash-attn gets the probability, and nothing where there is none (PyTorch's knows no such name)."""
    given = []

    def flash(q, k, v, cu, longest, scale, window, **drop):
        given.append((drop, cu.dtype, longest, scale, window))
        return q

    as_on_cuda(monkeypatch, flash, drops=True)
    q, cu = torch.ones(5, 2, 8, dtype=torch.bfloat16), torch.tensor([0, 2, 5], dtype=torch.int32)
    ops.attention_varlen(q, q, q, cu, 3)
    ops.attention_varlen(q, q, q, cu.long(), 4, dropout_p=0.1, scale=0.3, window=2)
    assert given == [
        ({}, torch.int32, 3, 1 / math.sqrt(8), None),
        ({"dropout_p": 0.1}, torch.int32, 4, 0.3, 2),
    ]
    assert takes_flash("cuda", torch.bfloat16, 64, 0.1) and not takes_flash("cuda", torch.float32, 64)


def test_dropout_on_cuda_without_flash_attn_goes_text_by_text(monkeypatch):
    """No tiles but where there is a window: PyTorch's attention, with the probability."""
    asked, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, *, dropout_p, scale):
        asked.append((q.shape[2], dropout_p))
        return attend(q, k, v, dropout_p=dropout_p, scale=scale)

    as_on_cuda(monkeypatch, print, drops=False)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    q, cu = torch.ones(5, 2, 8, dtype=torch.bfloat16), torch.tensor([0, 2, 5], dtype=torch.int32)
    assert ops.attention_varlen(q, q, q, cu, 3, dropout_p=0.1).shape == q.shape
    assert asked == [(2, 0.1), (3, 0.1)] and not takes_flash("cuda", torch.bfloat16, 8, 0.1)
    warned = []
    monkeypatch.setattr(dispatch, "warn_once", warned.append)
    ops.attention_varlen(q, q, q, cu, 3, dropout_p=0.1, window=1)
    assert len(asked) == 2
    assert len(warned) == 1 and "in plain PyTorch, slowly" in warned[0] and "dropout_p 0.1 and head_dim 8" in warned[0]
    for offsets in (None, [0, 2, 4]):
        with pytest.raises(ValueError, match="cu_seqlens: expected offsets that rise from 0 to 5"):
            bounds = cu if offsets else torch.tensor([0, 2, 4], dtype=torch.int32)
            ops.attention_varlen(q, q, q, bounds, 3, dropout_p=0.1, offsets=offsets)


def test_text_by_text_is_the_same_attention():
    """Against the oracle, with gradients, tokens before and after the texts and an empty text."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(11, 2, 8, generator=draw, dtype=torch.float64) for _ in range(4))
    bounds = [2, 5, 5, 10]
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = _text_by_text(*inputs, bounds, 0.3, 0.0)
    grads = torch.autograd.grad(out, inputs, upstream)
    plain = [x[2:10].clone().requires_grad_() for x in (q, k, v)]
    wanted = ops.attention_varlen(*plain, torch.tensor([0, 3, 3, 8], dtype=torch.int32), 5, scale=0.3)
    torch.testing.assert_close(out[2:10], wanted)
    assert not out[:2].any() and not out[10:].any()
    for got, right in zip(grads, torch.autograd.grad(wanted, plain, upstream[2:10]), strict=True):
        torch.testing.assert_close(got[2:10], right)
    torch.manual_seed(0)
    ones = torch.ones(400, 4, 8)
    kept = _text_by_text(ones, ones, ones, [0, 400], 1.0, 0.25)
    assert kept.mean() == pytest.approx(1.0, abs=0.01) and kept.std() > 0.01
    torch.manual_seed(0)
    assert torch.equal(kept, _text_by_text(ones, ones, ones, [0, 400], 1.0, 0.25))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("dtype", "dropout_p"),
    [(torch.float32, 0.0), (torch.float32, 0.2), (torch.float16, 0.0), (torch.bfloat16, 0.0)],  # half: its own mask
)
@pytest.mark.parametrize("case", [CASES[5], CASES[15]], ids=["short", "window"])
def test_on_a_gpu(case, dtype, dropout_p):
    batch = case.build(dtype=dtype)
    upstream = upstream_of(batch)
    double = batch._replace(qkv=batch.qkv.double())
    truth, true_grad = eager(double, upstream.double(), case.window, dropout_p, 7)
    plain, plain_grad = eager(batch, upstream, case.window, dropout_p, 7)
    there = Batch(batch.qkv.cuda(), batch.cu_seqlens.cuda(), batch.longest)
    out, grad = run(there, upstream.cuda(), case.window, dropout_p, 7)
    assert_accurate(out.cpu(), truth, plain, what="out")
    assert_accurate(grad.cpu(), true_grad, plain_grad, what="dqkv")
