"""Linear layers with padded rows: autocast's values and gradients to bf16's rounding, and few different products."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glimodern.layers import padded_linear
from glimodern.layers.dropout import dropout
from glimodern.layers.padded_linear import PaddedLinears, padded_rows


@pytest.fixture
def seen(monkeypatch):
    """The numbers of rows that products were computed with."""
    counts = []
    padded = padded_linear._padded

    def counting(x):
        counts.append(len(padded(x)))
        return padded(x)

    monkeypatch.setattr(padded_linear, "_padded", counting)
    return counts


def test_rows():
    sizes = [padded_rows(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes) and len(set(sizes)) < 45
    assert all(n <= size < n + 64 or size <= n * 9 / 8 for n, size in enumerate(sizes, 1))
    assert padded_rows(64) == 64 and padded_rows(65) == 128 and padded_rows(4097) == 4608


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (64, 24), (3, 50, 24), (24,)], ids=str)
def test_values_and_gradients_beside_fp64(seen, shape, bias):
    torch.manual_seed(0)
    x, linear = torch.randn(shape, requires_grad=True), nn.Linear(24, 40, bias=bias)
    upstream = torch.randn(*shape[:-1], 40)
    inputs = [x, *linear.parameters()]

    def computed(mode):
        with torch.autocast("cpu", torch.bfloat16):
            if mode:
                with PaddedLinears():
                    y = linear(x)
            else:
                y = linear(x)
        assert y.dtype == torch.bfloat16
        return [y, *torch.autograd.grad(y, inputs, upstream.bfloat16())]

    exact = [value.detach().double().requires_grad_() for value in inputs]
    whole = F.linear(exact[0], *exact[1:])
    expected = [whole, *torch.autograd.grad(whole, exact, upstream.bfloat16().double())]
    ours, plain = computed(True), computed(False)
    assert seen
    for one, other, true in zip(ours, plain, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        scale = true.abs().max() * 2**-8
        assert (one.double() - true).abs().max() <= 2 * (other.double() - true).abs().max() + scale


def test_a_part_of_a_weight_and_an_input_without_a_gradient(seen):
    torch.manual_seed(0)
    x, weight = torch.randn(70, 16), torch.randn(8, 32, requires_grad=True)
    before = x.clone()
    with torch.autocast("cpu", torch.bfloat16), PaddedLinears():
        y = F.linear(x, weight.chunk(2, dim=1)[1])
    y.float().sum().backward()
    assert torch.equal(x, before) and not weight.grad[:, :16].any()
    torch.testing.assert_close(weight.grad[:, 16:], x.sum(0).expand(8, -1), rtol=2e-2, atol=0.2)


def test_what_it_leaves_as_it_is(seen):
    x, linear = torch.randn(5, 24), nn.Linear(24, 40)
    with PaddedLinears():
        assert linear(x).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert linear(x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x[:0]).shape == (0, 40)
        with torch.autocast("cpu", torch.float16):
            assert linear(x).dtype == torch.float16
    assert not seen


def test_dropout_in_bf16_has_the_mask_of_fp32():
    x = torch.rand(40, 64) + 1
    torch.manual_seed(3)
    whole = dropout(x, 0.3)
    torch.manual_seed(3)
    low = dropout(x.bfloat16(), 0.3)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, dropout_of(x.bfloat16(), whole != 0))


def dropout_of(x, kept):
    return torch.where(kept, x.float() / 0.7, 0.0).bfloat16()
