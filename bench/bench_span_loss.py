"""span_loss with its gradients: C++ (each instruction set) against eager PyTorch, accuracy asserted first; and the
head with it against the textbook form (span vectors materialised). Memory: head_memory.py."""

import pytest
import torch
from accuracy import assert_accurate
from backends import CPP, running
from measure import span_batch, span_pairs

from glimodern import ops, reference
from glimodern.head import SpanHead


def step(batch, dropout_p, function=ops.span_loss):
    loss = function(
        *batch.floats, *batch.bounds, batch.positives, batch.max_width, focal_gamma=2.0, dropout_p=dropout_p, seed=1
    )
    return loss.detach(), *torch.autograd.grad(loss, batch.floats)


@pytest.fixture(scope="module", params=[0.0, 0.4], ids=["no dropout", "dropout 0.4"])
def checked(request):
    """(batch, dropout_p, truth, eager's result), once a dropout_p: 512 words, 25 types, d 768, K 12."""
    batch = span_batch(16, 32, 25, 3072, 12).leaves()
    truth = step(batch.to(torch.float64).leaves(), request.param, reference.span_loss)
    return batch, request.param, truth, step(batch, request.param, reference.span_loss)


@pytest.mark.parametrize("backend", ("eager", *CPP[1:]))
def bench_loss_and_gradients(benchmark, record_flops, checked, backend):
    batch, dropout_p, truth, plain = checked
    benchmark.group = f"span_loss forward and backward, {len(batch.a)} words, dropout {dropout_p}"
    if backend == "eager":
        benchmark(step, batch, dropout_p, reference.span_loss)
    else:
        with running(backend):
            results = zip(("loss", *"abuc"), step(batch, dropout_p), truth, plain, strict=True)
            for name, got, true_value, plain_value in results:
                assert_accurate(got, true_value, plain_value, what=name)
            benchmark(step, batch, dropout_p)
    record_flops(6 * batch.a.shape[1] * span_pairs(batch), backend=backend, shape=str(tuple(batch.a.shape)))


@pytest.mark.parametrize("backend", ("textbook", *CPP[1:]))
def bench_head_and_loss(benchmark, record_flops, backend):
    """Forward and backward of one text: words and prompts in, the gradients of both and of the weights."""
    batch, width = span_batch(1, 512, 25, 8, 12), 768
    torch.manual_seed(0)
    head = SpanHead(width, 0.0, "markerV0")
    words, prompts = (torch.randn(n, width, requires_grad=True) for n in (512, 25))
    leaves = (words, prompts, *head.parameters())

    def textbook():
        logits = reference.textbook_scores(*head.parts(words, prompts), *batch.bounds, batch.max_width)
        loss = reference.loss_of_scores(logits, *batch.bounds, batch.positives, batch.max_width)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    def fused():
        loss = ops.span_loss(*head.fold(words, prompts), *batch.bounds, batch.positives, batch.max_width)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    benchmark.group = "span head and loss, forward and backward, 512 words, 25 types, d 768"
    if backend == "textbook":
        benchmark.pedantic(textbook, rounds=3, warmup_rounds=1)
    else:
        with running(backend):
            for got, wanted in zip(fused(), textbook(), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
            benchmark(fused)
    record_flops(24 * width * span_pairs(batch), backend=backend, shape=str((512, width)))
