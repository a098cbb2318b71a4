"""span_scores: C++ (each instruction set) against eager PyTorch, forward and backward, accuracy asserted first."""

import pytest
import torch
from accuracy import assert_accurate
from backends import CPP, running
from measure import span_batch, span_pairs

from glimodern import ops, reference

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
