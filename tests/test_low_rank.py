"""LowRank updates of packed weights: by the accuracy rule, in linear_packed, in layers and in chains."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from backends import assert_same_bits, outputs_by_threads, poisoned, running
from test_chain import CONFIGS, FAMILIES, assert_near, hidden, packed_encoder, plainly, runs_of
from test_linear_packed import BF16_BACKENDS, DEFINITIONS, DTYPES, KINDS, draw, kernels
from torch import Tensor, nn

from glimodern.layers.packed_linear import PackedLinear, can_pack
from glimodern.layers.snapshot import Snapshot
from glimodern.ops import Chain, LowRank, PackedWeight, linear_packed
from glimodern.reference.linear_packed import ACTIVATIONS, GATED

SHAPES = [(0, 5, 3, 2), (1, 1, 1, 1), (7, 37, 19, 3), (45, 96, 50, 8), (401, 40, 17, 5)]  # n, i, o, rank


def factors(i: int, o: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(rank, i, generator=generator), torch.randn(o, rank, generator=generator)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("backend", "weights"),
    [
        *((name, "fp32") for name in ("reference", "cpp-scalar", "cpp-avx2", "cpp-avx512")),
        *((name, "bf16") for name in ("reference", *BF16_BACKENDS)),
        *((name, "int8") for name in ("reference", *KINDS)),
    ],
)
def test_updates_are_as_accurate_as_eager(backend, weights, shape, dtype, activation):
    """The products of the packed weight are taken as known: the update is added to them, before the activation."""
    gated = activation in GATED
    n, i, o, rank = shape
    rows = 2 * o if gated else o
    x, weight, bias = draw(n, i, rows)
    a, b = factors(i, rows, rank)
    x = x.to(dtype)
    before = x.clone()
    reduced = "fp32" if dtype == torch.float32 else "bf16"
    with running("reference") if backend == "reference" else kernels(backend), poisoned():
        packed = PackedWeight.pack(weight, bias, weights, gated=gated)
        update = LowRank.pack(packed, a, b, reduced)
        y = linear_packed(x, packed, activation, low_rank=update)
        z = linear_packed(x, update.down)
        plain = linear_packed(x, PackedWeight.pack(weight, bias, weights), dtype=torch.float32)
    assert y.dtype == z.dtype == dtype and y.shape == (n, o)
    truth = DEFINITIONS[activation](plain.double() + z.double() @ b.double().T)
    eager = ACTIVATIONS[activation](plain + z.float() @ b.T).to(dtype)
    assert_accurate(y, truth, eager)
    assert torch.equal(x, before)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_no_update_and_any_threads_give_the_same_bits(weights):
    x, weight, bias = draw(45, 96, 50)
    packed = PackedWeight.pack(weight, bias, weights)
    a, b = factors(96, 50, 8)
    update, none = LowRank.pack(packed, a, b, "fp32"), LowRank.pack(packed, a, torch.zeros_like(b), "fp32")
    assert torch.equal(linear_packed(x, packed, low_rank=none), linear_packed(x, packed))
    first, *others = outputs_by_threads(lambda: [linear_packed(x, packed, low_rank=update)])
    assert_same_bits(first, *others)
    alone = torch.cat([linear_packed(row[None], packed, low_rank=update) for row in x])
    assert torch.equal(alone, first[0])  # a row does not depend on its batch


def test_a_wide_batch_keeps_its_shape():
    x, weight, bias = draw(12, 24, 16)
    packed = PackedWeight.pack(weight, bias, "fp32")
    update = LowRank.pack(packed, *factors(24, 16, 4), "fp32")
    assert torch.equal(
        linear_packed(x.view(3, 4, 24), packed, low_rank=update),
        linear_packed(x, packed, low_rank=update).view(3, 4, 16),
    )


def test_opcheck():
    x, weight, bias = draw(5, 20, 7)
    packed = PackedWeight.pack(weight, bias, "fp32")
    update = LowRank.pack(packed, *factors(20, 7, 3), "fp32")
    z = linear_packed(x, update.down)
    with running("reference"):
        torch.library.opcheck(
            torch.ops.glimodern.linear_packed.default,
            (x, *packed.tensors, z, update.up.panels, 7, "relu", torch.float32),
        )


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((3, 21), (7, 3), r"a: expected \[rank, 20\], got \(3, 21\)"),
        ((0, 20), (7, 0), r"a: expected \[rank, 20\], got \(0, 20\)"),
        ((3, 20), (8, 3), r"b: expected \(7, 3\), got \(8, 3\)"),
        ((3, 20), (7, 4), r"b: expected \(7, 3\), got \(7, 4\)"),
    ],
)
def test_wrong_shapes_are_a_clear_error(a, b, message):
    packed = PackedWeight.pack(torch.zeros(7, 20))
    with pytest.raises(ValueError, match=message):
        LowRank.pack(packed, torch.zeros(a), torch.zeros(b), "fp32")


def test_an_update_of_another_layout_is_refused():
    one, other = PackedWeight.pack(torch.zeros(7, 20)), PackedWeight.pack(torch.zeros(40, 20))
    update = LowRank.pack(other, *factors(20, 40, 2), "fp32")
    with pytest.raises(ValueError, match="low_rank: expected an update of 20 inputs and 16 columns, got 20 and 48"):
        linear_packed(torch.zeros(3, 20), one, low_rank=update)


def updated(encoder: nn.Module) -> nn.Module:
    """A copy of a packed encoder with an update of every packed layer."""
    encoder = copy.deepcopy(encoder)
    dtype = "fp32" if next(encoder.parameters()).dtype == torch.float32 else "bf16"
    for layer in encoder.modules():
        if isinstance(layer, PackedLinear):
            rows, inputs = layer.weight_shape
            a, b = factors(inputs, rows, 4)
            layer.update(0.1 * a, 0.1 * b, dtype)
    return encoder


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512_bf16", "amx"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("config", ["modernbert", *FAMILIES])
def test_chains_run_updates(config, dtype, isa, monkeypatch):
    with running(f"cpp-{isa}"):
        if not can_pack():
            pytest.skip("nothing packs on this CPU")
        base = packed_encoder(CONFIGS[config], dtype)
        encoder = updated(base)
        before = hidden(base)
        runs = runs_of(monkeypatch)
        with poisoned():
            found = hidden(encoder)
        assert len(runs) == 1
        wanted = plainly(encoder, monkeypatch)
        if config == "modernbert":
            assert torch.equal(found, wanted)
        else:  # transformers' own norms, and angles in the model's dtype
            assert_near(found, wanted, dtype)
        assert not torch.allclose(found, before, atol=0.05)
        assert torch.equal(hidden(base), before)


def test_a_chain_is_rebuilt_when_a_layer_is_updated():
    if not can_pack():
        pytest.skip("nothing packs on this CPU")
    encoder = packed_encoder(CONFIGS["modernbert"], "fp32")
    before, snapshot = hidden(encoder), Snapshot(encoder)
    layer = encoder.model.layers[0].attn.Wqkv
    layer.update(*factors(64, 192, 2), "fp32")
    assert not snapshot.unchanged()
    assert not torch.allclose(hidden(encoder), before, atol=1e-3)


def test_layers_with_an_update_say_why_they_cannot_be_saved():
    layer = PackedLinear(nn.Linear(8, 5), "fp32")
    x = torch.randn(3, 8)
    a, b = factors(8, 5, 2)
    wanted = F.linear(x, layer.packed.unpack() + b @ a, layer.packed.unpack_bias())
    layer.update(a, b, "fp32")
    torch.testing.assert_close(layer(x), wanted)
    with pytest.raises(ValueError, match="expected a weight to save, got one with an adapter; load"):
        layer.state_dict()
    moved = copy.deepcopy(layer).to(torch.bfloat16)
    assert torch.equal(moved(x), layer(x))


def test_updates_of_one_rank_share_a_buffer_of_a_chain():
    if not can_pack():
        pytest.skip("nothing packs on this CPU")
    packed = PackedWeight.pack(torch.randn(16, 16), None, "fp32")
    update = LowRank.pack(packed, *factors(16, 16, 3), "fp32")
    with running("cpp-scalar"):
        chain = Chain(torch.float32, 16)
        first = chain.linear(0, packed, low_rank=update)
        chain.linear(first, packed, low_rank=update)
        x = torch.randn(5, 16)
        found = chain.run(x, torch.tensor([0, 5], dtype=torch.int32), None)
        once = linear_packed(x, packed, low_rank=update)
        assert torch.equal(found, linear_packed(once, packed, low_rank=update))
        assert len(chain._widths) == 4
