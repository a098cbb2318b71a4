"""attention_varlen: C++ (each instruction set) against scaled_dot_product_attention (SDPA), accuracy asserted first."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from accuracy import assert_accurate
from backends import CPP, running
from measure import attention_batch, attention_pairs
from torch import Tensor

from glimodern import ops


class Setting(NamedTuple):
    lengths: tuple[int, ...]
    heads: int
    dim: int
    window: int | None
    dtype: torch.dtype


# 64 texts of 40 to 120 tokens, 4,500 in all; 8 sentences of MiniLM's training batch; one long text.
SHORT = tuple(40 + round(80 * (37 * n % 64 / 63) ** 1.652) for n in range(64))
SETTINGS = {
    "64 texts, 4,500 tokens, bf16": Setting(SHORT, 12, 64, None, torch.bfloat16),
    "64 texts, 4,500 tokens, fp32": Setting(SHORT, 12, 64, None, torch.float32),
    "8,192 tokens, window 64, fp32": Setting((8192,), 12, 64, 64, torch.float32),
    "8,192 tokens, window 64, bf16": Setting((8192,), 12, 64, 64, torch.bfloat16),
}
TRAINING = Setting((45,) * 8, 12, 32, None, torch.float32)
sdpa = torch.nn.functional.scaled_dot_product_attention


def text_by_text(q: Tensor, k: Tensor, v: Tensor, setting: Setting, dropout_p: float = 0.0) -> Tensor:
    """SDPA, one call a text; a windowed one has a mask [L, L]."""
    texts = zip(*(x.transpose(0, 1).split(setting.lengths, 1) for x in (q, k, v)), strict=True)
    return torch.cat([sdpa(*(x[None] for x in text), _band(setting), dropout_p)[0] for text in texts], 1).transpose(
        0, 1
    )


def padded(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> Tensor:
    """SDPA on texts padded to the longest, with a mask; padding and its removal are in the time."""
    lengths = torch.tensor(setting.lengths)
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    wide = q.new_zeros(3, *inside.shape, setting.heads, setting.dim)
    wide[:, inside] = torch.stack((q, k, v))
    return sdpa(*wide.transpose(2, 3), inside[:, None, None, :]).transpose(1, 2)[inside]


def _band(setting: Setting) -> Tensor | None:
    if setting.window is None:
        return None
    places = torch.arange(max(setting.lengths))
    return (places[:, None] - places).abs() <= setting.window


def ours(q: Tensor, k: Tensor, v: Tensor, setting: Setting, dropout_p: float = 0.0) -> Tensor:
    cu_seqlens = torch.tensor([0, *setting.lengths]).cumsum(0).to(torch.int32)
    return ops.attention_varlen(
        q, k, v, cu_seqlens, max(setting.lengths), window=setting.window, dropout_p=dropout_p, seed=1
    )


PEERS: dict[str, Callable[..., Tensor]] = {"SDPA by text": text_by_text, "SDPA padded": padded}


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS)
def problem(request):
    """setting, q k v [N, heads, head_dim] (slices of one tensor), fp64 truth, SDPA's result."""
    setting = request.param
    qkv = attention_batch(setting.lengths, setting.heads, setting.dim).to(setting.dtype).unbind(1)
    return setting, qkv, ours(*(x.double() for x in qkv), setting), text_by_text(*qkv, setting)


@pytest.mark.parametrize("backend", [*PEERS, *CPP[1:]])
def bench_forward(benchmark, record_flops, problem, backend):
    setting, qkv, truth, plain = problem
    if backend == "SDPA padded" and len(setting.lengths) == 1:
        pytest.skip("one text: nothing to pad")
    benchmark.group = (
        f"attention_varlen forward, {len(setting.lengths)} texts, window {setting.window}, {setting.dtype}"
    )
    if backend in PEERS:
        rounds = dict(rounds=5, iterations=1, warmup_rounds=1)
        assert_accurate(PEERS[backend](*qkv, setting), truth, plain)
        benchmark.pedantic(PEERS[backend], (*qkv, setting), **rounds)
    else:
        with running(backend):
            assert_accurate(ours(*qkv, setting), truth, plain)
            benchmark(ours, *qkv, setting)
    flops = 4 * setting.heads * setting.dim * attention_pairs(setting.lengths, setting.window)
    record_flops(flops, backend=backend, tokens=sum(setting.lengths))


@pytest.mark.parametrize("backend", ["SDPA by text", "reference", *CPP[1:]])
def bench_training(benchmark, record_flops, backend):
    """Forward and backward with dropout 0.1 of a MiniLM layer; gradients checked with the same mask in fp64."""
    qkv = attention_batch(TRAINING.lengths, TRAINING.heads, TRAINING.dim).requires_grad_()
    upstream = torch.randn(len(qkv), TRAINING.heads, TRAINING.dim, generator=torch.Generator().manual_seed(2))
    attend = text_by_text if backend == "SDPA by text" else ours

    def step(leaf: Tensor, upstream: Tensor) -> Tensor:
        return torch.autograd.grad(attend(*leaf.unbind(1), TRAINING, 0.1), leaf, upstream)[0]

    benchmark.group = "attention_varlen forward + backward, dropout 0.1, 8 texts of 45 tokens"
    if backend == "SDPA by text":
        benchmark(step, qkv, upstream)
    else:
        truth = step(qkv.detach().double().requires_grad_(), upstream.double())
        with running("reference"):
            plain = step(qkv, upstream)
        with running(backend):
            assert_accurate(step(qkv, upstream), truth, plain)
            benchmark(step, qkv, upstream)
    flops = 14 * TRAINING.heads * TRAINING.dim * attention_pairs(TRAINING.lengths, None)
    record_flops(flops, backend=backend, tokens=len(qkv))
