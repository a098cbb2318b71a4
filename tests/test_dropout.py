"""dropout: every backend makes the mask of tests/naive.py, forward and backward; the mask's statistics."""

import naive
import pytest
import torch
from backends import CPP, running

from glimodern import ops

BACKENDS = ("reference", *CPP)
SHAPES = [(1,), (7,), (3, 1), (5, 37), (2, 9, 64), (40, 1100), (0, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mask_is_the_hash_of_row_column_and_seed(backend, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = x.detach().clone()
    with running(backend):
        y = ops.dropout(x, 0.3, seed=7)
        (grad,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(y, naive.dropout(x, 0.3, 7), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(grad, naive.dropout(upstream, 0.3, 7), rtol=1e-6, atol=0.0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("backend", CPP)
def test_same_bits_for_every_number_of_threads(backend):
    x = torch.randn(301, 700, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        with running(backend):
            runs = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                runs.append(ops.dropout(x, 0.5, seed=1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_strided_input_and_gradient():
    x = torch.randn(6, 20, requires_grad=True)
    y = ops.dropout(x.t(), 0.4, seed=3)
    assert torch.equal(y, ops.dropout(x.t().contiguous(), 0.4, seed=3))
    y.t().backward(torch.ones(6, 20))
    assert torch.equal(x.grad.t(), naive.dropout(torch.ones(20, 6), 0.4, 3))


def test_gradcheck_in_fp64():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.dropout(x, 0.3, 11), x, nondet_tol=0.0)


def test_share_scale_and_independence():
    p, rows, columns = 0.1, 2000, 500
    y = ops.dropout(torch.ones(rows, columns), p, seed=5)
    kept = y != 0
    error = (p * (1 - p)) ** 0.5
    assert abs(kept.float().mean() - (1 - p)) < 5 * error / (rows * columns) ** 0.5
    assert (kept.float().mean(0) - (1 - p)).abs().max() < 5 * error / rows**0.5
    assert (kept.float().mean(1) - (1 - p)).abs().max() < 5 * error / columns**0.5
    assert torch.allclose(y[kept], torch.tensor(1 / (1 - p)))
    other = ops.dropout(torch.ones(rows, columns), p, seed=6) != 0
    pairs = {"seeds": (kept, other), "rows": (kept[1:], kept[:-1]), "columns": (kept[:, 1:], kept[:, :-1])}
    for name, (a, b) in pairs.items():
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).float())[0, 1]
        assert abs(correlation) < 5 / a.numel() ** 0.5, name


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan")])
def test_bad_share(p):
    with pytest.raises(ValueError, match=rf"p: expected a number in \[0, 1\), got {p}"):
        ops.dropout(torch.ones(2), p, seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [2**31 - 5, 2**32 - 1, 2**40 + 2**20])
def test_seeds_count_modulo_2_to_the_32(backend, seed):
    x = torch.ones(4, 50)
    with running(backend):
        assert torch.equal(ops.dropout(x, 0.5, seed), naive.dropout(x, 0.5, seed))
        assert not torch.equal(ops.dropout(x, 0.5, seed), ops.dropout(x, 0.5, seed % 2**16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scalar_is_a_row_of_one(backend):
    with running(backend):
        for seed in range(8):
            y = ops.dropout(torch.tensor(3.0), 0.5, seed)
            assert y.shape == () and torch.equal(y[None], naive.dropout(torch.tensor([3.0]), 0.5, seed))


def test_a_second_derivative_is_an_error():
    x = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.dropout(x, 0.5, seed=1).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
