"""span_scores: C++ (each instruction set) against eager PyTorch, forward and backward, accuracy asserted first; against
the stored-hidden fold; and the whole head after the encoder against the public package's layers."""

import pytest
import torch
from accuracy import assert_accurate
from backends import CPP, running
from measure import demo_batch, pad_words, ragged_logits, span_batch, span_index, span_pairs
from torch import Tensor

from glimodern import ops, reference
from glimodern.head import SpanHead

SHAPES = {"74x35 words, 9 types": (74, 35, 9, 3072, 12), "16x32 words, 25 types": (16, 32, 25, 3072, 12)}
BACKENDS = ("eager", *CPP[1:])


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def batch(request):
    return span_batch(*request.param)


@pytest.fixture(scope="module")
def checked(batch):
    """Truth and eager's result, once a shape."""
    double = batch.to(torch.float64)
    truth = reference.span_scores(*double.floats, *batch.bounds, batch.max_width)
    return truth, reference.span_scores(*batch.floats, *batch.bounds, batch.max_width)


@pytest.mark.parametrize("backend", BACKENDS)
def bench_forward(benchmark, record_flops, batch, checked, backend):
    truth, plain = checked
    arguments = (*batch.floats, *batch.bounds, batch.max_width)
    benchmark.group = f"span_scores forward, {len(batch.a)} words, {len(batch.u)} types in all"
    if backend == "eager":
        benchmark(reference.span_scores, *arguments)
    else:
        with running(backend):
            assert_accurate(ops.span_scores(*arguments), truth, plain)
            benchmark(ops.span_scores, *arguments)
    record_flops(2 * batch.a.shape[1] * span_pairs(batch), backend=backend, shape=str(tuple(batch.a.shape)))


@pytest.mark.parametrize("backend", CPP[1:])
def bench_backward(benchmark, record_flops, batch, checked, backend):
    """Its accuracy is asserted by bench_span_loss.py, whose gradients are the same kernel's."""
    _, plain = checked
    leaves = batch.leaves()
    upstream = torch.where(plain.isfinite(), torch.randn(plain.shape, generator=torch.Generator().manual_seed(0)), 0.0)
    benchmark.group = f"span_scores backward, {len(batch.a)} words, {len(batch.u)} types in all"
    with running(backend):
        logits = ops.span_scores(*leaves.floats, *leaves.bounds, leaves.max_width)
        benchmark(torch.autograd.grad, logits, leaves.floats, upstream, retain_graph=True)
    record_flops(4 * batch.a.shape[1] * span_pairs(batch), backend=backend, shape=str(tuple(batch.a.shape)))


def stored_hidden(a: Tensor, b: Tensor, u: Tensor, c: Tensor, spans: Tensor) -> Tensor:
    """The fold in plain PyTorch, relu(a_i + b_j) stored: a, b [texts, words, H] padded, u [texts, types, H],
    c [texts, 1, types], spans [texts, S, 2] -> [texts, S, types]. The form of
    https://github.com/fastino-ai/GLiNER2/pull/143, written anew."""
    text = torch.arange(len(a))[:, None]
    hidden = torch.relu(a[text, spans[..., 0]] + b[text, spans[..., 1]])
    return torch.baddbmm(c, hidden, u.transpose(1, 2))


@pytest.mark.parametrize("backend", ["stored hidden, eager", "stored hidden, compiled", *CPP[1:]])
@torch.no_grad()
def bench_against_the_stored_hidden_fold(benchmark, record_flops, backend):
    """Scoring alone: both sides have a, b, u, c in the layout that suits them."""
    batch = demo_batch()
    truth = reference.span_scores(*batch.to(torch.float64).floats, *batch.bounds, batch.max_width)
    plain = reference.span_scores(*batch.floats, *batch.bounds, batch.max_width)
    benchmark.group = "span_scores alone, 2590 words, 9 types"
    if backend.startswith("stored"):
        texts = len(batch.cu_words) - 1
        padded = (pad_words(batch.a, batch), pad_words(batch.b, batch), batch.u.view(texts, -1, batch.u.shape[1]))
        arguments = (*padded, batch.c.view(texts, 1, -1), span_index(batch))
        function = torch.compile(stored_hidden) if backend.endswith("compiled") else stored_hidden
        assert_accurate(ragged_logits(function(*arguments), batch), truth, plain, c=4.0)
        benchmark(function, *arguments)
    else:
        with running(backend):
            arguments = (*batch.floats, *batch.bounds, batch.max_width)
            assert_accurate(ops.span_scores(*arguments), truth, plain)
            benchmark(ops.span_scores, *arguments)
    record_flops(2 * batch.a.shape[1] * span_pairs(batch), backend=backend, shape=str(tuple(batch.a.shape)))


@pytest.mark.parametrize("backend", ["gliner", *CPP[1:]])
@torch.no_grad()
def bench_head(benchmark, record_flops, backend):
    """Marker MLPs, span FFN, prompt MLP and scores, d 768, fp32: gliner's SpanRepLayer, prompt layer and einsum against
    our fold and span_scores, with the same weights."""
    layers = pytest.importorskip("gliner.modeling.layers", reason="needs the extra peers")
    from gliner.modeling.span_rep import SpanRepLayer

    batch, width = demo_batch(8), 768
    texts = len(batch.cu_words) - 1
    torch.manual_seed(0)
    theirs = SpanRepLayer(hidden_size=width, max_width=batch.max_width, span_mode="markerV0", dropout=0.0).eval()
    prompt = layers.create_projection_layer(width, 0.0).eval()
    head = SpanHead(width, 0.0, "markerV0").eval()
    public = theirs.span_rep_layer
    pairs = (head.start, public.project_start), (head.end, public.project_end), (head.span, public.out_project)
    for mine, other in (*pairs, (head.prompt, prompt)):
        mine.load_state_dict(other.state_dict())
    words, prompts = torch.randn(len(batch.a), width), torch.randn(len(batch.u), width)
    padded, spans = pad_words(words, batch), span_index(batch)

    def public_head() -> Tensor:
        vectors = theirs(padded, spans)
        return torch.einsum("BLKD,BCD->BLKC", vectors, prompt(prompts.view(texts, -1, width)))

    def fused_head() -> Tensor:
        return ops.span_scores(*head.fold(words, prompts), *batch.bounds, batch.max_width)

    benchmark.group = "span head after the encoder, 2590 words, 9 types, d 768"
    if backend == "gliner":
        benchmark.pedantic(public_head, rounds=3, warmup_rounds=1)
    else:
        with running(backend):
            wanted = ragged_logits(public_head().flatten(1, 2), batch)
            torch.testing.assert_close(fused_head(), wanted, rtol=1e-3, atol=1e-5)
            benchmark(fused_head)
    record_flops(8 * width * span_pairs(batch), backend=backend, shape=str((len(batch.a), width)))
