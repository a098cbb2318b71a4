"""ops.Chain: the same as its operators one by one; encoders run by it, and when they do not."""

import copy
import gc
import importlib
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from backends import extension, poisoned, running, skip_unless_runs
from torch import Tensor, nn

from glimodern import ops
from glimodern.encoder import build_encoder
from glimodern.encoder.adapter import first_position
from glimodern.encoder.layer_chain import ChainedFamily, Layer, rotary_angles
from glimodern.layers.attention import Packing
from glimodern.layers.chained import Chained
from glimodern.layers.packed_linear import PackedLinear, can_pack
from glimodern.ops import Chain, Columns, PackedWeight

transformers = pytest.importorskip("transformers")

TINY = dict(vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
MODERNBERT = dict(
    model_type="modernbert", pad_token_id=1, cls_token_id=0, sep_token_id=2, initializer_range=0.3, local_attention=16
)
T5 = dict(
    model_type="t5", vocab_size=100, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4, is_encoder_decoder=False
)  # fmt: skip
DEBERTA = dict(
    model_type="deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
    type_vocab_size=0, max_relative_positions=20, initializer_range=0.3,
)  # fmt: skip
CONFIGS = {
    "modernbert": {**TINY, **MODERNBERT},
    "biases": {**TINY, **MODERNBERT, "mlp_bias": True, "attention_bias": True, "norm_bias": True},
    "bert": {**TINY, "model_type": "bert", "initializer_range": 0.3},
    "roberta": {**TINY, "model_type": "roberta", "pad_token_id": 1, "initializer_range": 0.3},
    "gelu by tanh": {**TINY, "model_type": "bert", "initializer_range": 0.3, "hidden_act": "gelu_new"},
    "distilbert": {
        "model_type": "distilbert", "vocab_size": 100, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 96,
        "initializer_range": 0.3,
    },
    "albert": {**TINY, "model_type": "albert", "embedding_size": 32, "initializer_range": 0.3},
    "albert in groups": {
        **TINY, "model_type": "albert", "embedding_size": 80, "initializer_range": 0.3, "num_hidden_layers": 5,
        "num_hidden_groups": 2, "inner_group_num": 2,
    },
    "nomic_bert": {**TINY, "model_type": "nomic_bert", "initializer_range": 0.15},
    "eurobert": {
        **TINY, "model_type": "eurobert", "num_key_value_heads": 2, "mask_token_id": 3, "pad_token_id": 1,
        "initializer_range": 0.15,
    },
    "eurobert with biases": {
        **TINY, "model_type": "eurobert", "num_key_value_heads": 4, "mask_token_id": 3, "pad_token_id": 1,
        "initializer_range": 0.15, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "head_dim": 24,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    },
    "xlm-roberta-xl": {**TINY, "model_type": "xlm-roberta-xl", "pad_token_id": 1, "initializer_range": 0.3},
    # Most distances of LENGTHS lie beyond the buckets.
    "deberta-v3": {**TINY, **DEBERTA, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "deberta-v2": {**TINY, **DEBERTA, "type_vocab_size": 2, "position_biased_input": True},
    "deberta, c2p alone": {**TINY, **DEBERTA, "pos_att_type": ["c2p"]},
    "deberta without positions": {**TINY, **DEBERTA, "relative_attention": False},
    "mpnet": {**TINY, "model_type": "mpnet", "pad_token_id": 1, "initializer_range": 0.3},
    "t5": T5,
    "t5 gated": {**T5, "feed_forward_proj": "gated-silu", "relative_attention_max_distance": 20},
    "mt5": {**T5, "model_type": "mt5", "feed_forward_proj": "gated-gelu"},
    "umt5": {**T5, "model_type": "umt5", "feed_forward_proj": "gated-gelu"},
    "deberta-v2 of narrow embeddings": {**TINY, **DEBERTA, "position_buckets": 8, "embedding_size": 32},
}  # fmt: skip
OURS = ("modernbert", "biases")  # whose modules are this package's, with the same bits
FAMILIES = ("bert", "distilbert", "albert", "nomic_bert", "eurobert", "xlm-roberta-xl")
RELATIVE = ("deberta-v3", "mpnet")  # with tables that a chain has copies of
BY_DISTANCE = ("t5", "t5 gated", "umt5", *RELATIVE)  # whose scores have terms of relative distances
# With a layer norm that the operator's can replace.
LAYER_NORMED = ("bert", "roberta", *(name for name in CONFIGS if name.startswith("deberta")), "mpnet")
LENGTHS = [1, 40, 17, 64]
ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")


@pytest.fixture(autouse=True)
def needs_vectors():
    skip_unless_runs("cpp-scalar")
    if not can_pack():
        pytest.skip("nothing packs on this CPU")


def packed_encoder(config: dict, dtype: str):
    torch.manual_seed(0)
    encoder = build_encoder(config).eval().requires_grad_(False)
    assert encoder.pack(dtype)
    return encoder.to(torch.bfloat16 if dtype == "bf16" else torch.float32)


def batch(lengths=LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, cu_seqlens and rows, some of them twice."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 100, (sum(lengths),), generator=generator)
    cu = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    return ids, cu, torch.randint(0, max(len(ids), 1), (30,), generator=generator)


def hidden(encoder, rows=True, lengths=LENGTHS) -> Tensor:
    ids, cu, kept = batch(lengths)
    with torch.inference_mode():
        return encoder(ids, cu, max(lengths, default=0), kept if rows else None)


def plainly(encoder, monkeypatch, rows=True) -> Tensor:
    """Without a chain."""
    with monkeypatch.context() as patch:
        patch.setattr(Chained, "of", lambda *arguments: None)
        return hidden(encoder, rows)


def assert_near(found: Tensor, wanted: Tensor, dtype: str) -> None:
    """To rounding in fp32; by the mean error in other dtypes."""
    if dtype == "fp32":
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    else:
        error, size = (found - wanted).float(), wanted.float()
        assert error.square().mean().sqrt() < 0.05 * size.square().mean().sqrt()


def runs_of(monkeypatch) -> list[int]:
    """Rows of every chain that runs from now on."""
    runs: list[int] = []
    run = Chain.run

    def counted(self, x, *arguments, **options):
        runs.append(len(x))
        return run(self, x, *arguments, **options)

    monkeypatch.setattr(Chain, "run", counted)
    return runs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("config", CONFIGS)
def test_encoders_are_their_modules_one_by_one(config, dtype, isa, monkeypatch):
    encoder = packed_encoder(CONFIGS[config], dtype)
    runs = runs_of(monkeypatch)
    with running(f"cpp-{isa}"):
        for rows in (True, False):
            wanted, before = plainly(encoder, monkeypatch, rows), len(runs)
            with poisoned():
                found = hidden(encoder, rows)
            assert len(runs) == before + 1 and found.shape == wanted.shape and found.dtype == wanted.dtype
            if config in OURS:
                assert torch.equal(found, wanted)
            else:  # transformers' own norms, and angles in the model's dtype
                assert_near(found, wanted, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [name for name in CONFIGS if name not in OURS])
def test_chains_are_as_accurate_as_the_modules(config, dtype, monkeypatch):
    """By the accuracy rule, against the same weights in fp64."""
    encoder = packed_encoder(CONFIGS[config], dtype)
    exact = build_encoder(CONFIGS[config]).eval().double()
    exact.load_state_dict({name: value.double() for name, value in encoder.state_dict().items()})
    assert_accurate(hidden(encoder), hidden(exact), plainly(encoder, monkeypatch))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("config", LAYER_NORMED)
def test_encoders_are_their_operators_in_bits(config, dtype, isa, monkeypatch):
    """With the operator's layer norm in place of PyTorch's, the modules give the same bits."""

    def norm(self, x):
        return ops.add_layer_norm(x, None, self.weight, self.bias, self.eps, return_sum=False)

    monkeypatch.setattr(nn.LayerNorm, "forward", norm)
    encoder = packed_encoder(CONFIGS[config], dtype)
    with running(f"cpp-{isa}"):
        assert torch.equal(hidden(encoder), plainly(encoder, monkeypatch))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("config", RELATIVE)
def test_a_text_has_the_same_bits_in_any_batch(config, dtype, monkeypatch):
    """By a chain and by the modules."""
    encoder = packed_encoder(CONFIGS[config], dtype)
    ids, cu, _ = batch()

    def run(ids, lengths):
        return encoder(ids, F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(), max(lengths))

    for chained in (True, False):
        with torch.inference_mode(), monkeypatch.context() as patch:
            if not chained:
                patch.setattr(Chained, "of", lambda *arguments: None)
            together = run(ids, LENGTHS).split(LENGTHS)
            for text, found in zip(ids.split(LENGTHS), together, strict=True):
                assert torch.equal(run(text, [len(text)]), found)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("config", ["modernbert", *FAMILIES, *BY_DISTANCE, "deberta-v2 of narrow embeddings"])
def test_a_text_alone_has_the_bits_of_its_batch(config, dtype):
    encoder = packed_encoder(CONFIGS[config], dtype)
    ids, cu, _ = batch()
    with torch.inference_mode():
        together = encoder(ids, cu, 64)
        alone = [encoder(x, torch.tensor([0, len(x)], dtype=torch.int32), 64) for x in ids.split(LENGTHS)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("config", ["albert", "nomic_bert", "eurobert"])
def test_threads_that_take_whole_texts_find_the_same_bits(config):
    """As they do while others use the cores; tests/test_contention.py has more of it."""
    encoder, threads = packed_encoder(CONFIGS[config], "fp32"), torch.get_num_threads()
    wanted = [hidden(encoder, rows) for rows in (True, False)]
    try:
        torch.set_num_threads(2)
        extension.set_short_waits(True, 2)
        assert all(torch.equal(hidden(encoder, rows), y) for rows, y in zip((True, False), wanted, strict=True))
    finally:
        extension.set_short_waits(False, 2)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("config", ["modernbert", *FAMILIES, *BY_DISTANCE])
def test_modules_run_themselves_where_a_chain_cannot(config, monkeypatch):
    encoder = packed_encoder(CONFIGS[config], "fp32")
    runs = runs_of(monkeypatch)
    wanted = hidden(encoder)
    assert len(runs) == 1
    with ops.use_backend("reference"):
        torch.testing.assert_close(hidden(encoder), wanted, rtol=0.0, atol=1e-4)
    module = next(m for m in encoder.modules() if isinstance(m, PackedLinear))
    called = []
    handle = module.register_forward_hook(lambda *arguments: called.append(1))
    torch.testing.assert_close(hidden(encoder), wanted, rtol=0.0, atol=1e-4)
    assert called and len(runs) == 1
    handle.remove()
    hidden(encoder)
    assert len(runs) == 2
    assert hidden(encoder, lengths=[0, 0]).shape == (0, 64) if config != "modernbert" else True
    assert len(runs) == 2
    encoder.train()
    hidden(encoder)
    assert len(runs) == 2


@pytest.mark.parametrize("config", ["modernbert", *FAMILIES, *BY_DISTANCE])
def test_a_chain_follows_its_weights(config, monkeypatch):
    encoder = packed_encoder(CONFIGS[config], "bf16")
    runs = runs_of(monkeypatch)
    before = hidden(encoder)
    inside = encoder.model if config in ("modernbert", "eurobert") else layers_of(encoder, config)
    norms = [m for m in inside.modules() if type(m).__name__.endswith("Norm")]
    with torch.no_grad():
        norms[-1].weight.mul_(2.0)  # in place
    written = hidden(encoder)
    assert_near(written, plainly(encoder, monkeypatch), "bf16")
    norms[-1].weight = nn.Parameter(norms[-1].weight * -1.0, requires_grad=False)
    replaced = hidden(encoder)
    assert_near(replaced, plainly(encoder, monkeypatch), "bf16")
    assert not torch.equal(before, written) and not torch.equal(written, replaced) and len(runs) == 3
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(hidden(other), replaced)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("config", RELATIVE)
def test_a_chain_follows_its_tables_of_positions(config, dtype, monkeypatch):
    """Written in place, and replaced."""
    encoder = packed_encoder(CONFIGS[config], dtype)
    runs, name = runs_of(monkeypatch), "rel_embeddings" if config != "mpnet" else "relative_attention_bias"
    table = encoder.model.encoder.get_submodule(name)
    close = dict(rtol=0.05, atol=0.1) if dtype != "fp32" else dict(rtol=1e-4, atol=1e-4)
    found = [hidden(encoder)]
    for change in (lambda: table.weight.mul_(3.0).add_(torch.randn_like(table.weight)), lambda: exchange(table)):
        with torch.no_grad():
            change()
        found.append(hidden(encoder))
        torch.testing.assert_close(found[-1], plainly(encoder, monkeypatch), **close)
        assert not torch.allclose(found[-1], found[-2], atol=0.2)
    assert len(runs) == 3


def exchange(table: nn.Embedding) -> None:
    table.weight = nn.Parameter(torch.randn_like(table.weight), requires_grad=False)


def test_a_convolution_makes_no_chain(monkeypatch):
    encoder = packed_encoder({**CONFIGS["deberta-v2"], "conv_kernel_size": 3, "conv_act": "gelu"}, "fp32")
    runs = runs_of(monkeypatch)
    assert hidden(encoder).isfinite().all() and not runs


@pytest.mark.parametrize("config", [*FAMILIES, *BY_DISTANCE])
def test_plain_linears_make_no_chain(config, monkeypatch):
    torch.manual_seed(0)
    encoder = build_encoder(CONFIGS[config]).eval()
    runs = runs_of(monkeypatch)
    hidden(encoder)
    assert not runs


def small_chain() -> Chain:
    chain = Chain(torch.float32, 24)
    q = chain.linear(0, PackedWeight.pack(torch.ones(16, 24), None, "fp32"))
    chain.attention(Columns(q), Columns(q), Columns(q), chain.buffer(16), 2)
    return chain


def attention_of(x: Tensor, layer: Layer, cu: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
    q, k, v = (linear(x) for linear in (layer.query, layer.key, layer.value))
    q, k, v = (y.unflatten(1, (-1, q.shape[1] // layer.heads)) for y in (q, k, v))
    if table is not None:
        q, k = ops.rotary(q, *table), ops.rotary(k, *table)
    k, v = (y.repeat_interleave(layer.heads // layer.key_heads, dim=1) for y in (k, v))
    return layer.output(ops.attention_varlen(q, k, v, cu, max(LENGTHS), scale=layer.scale).flatten(1))


def norm_of(module, branch: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    if isinstance(module, nn.LayerNorm):
        return ops.add_layer_norm(branch, residual, module.weight, module.bias, module.eps)
    return ops.add_rms_norm(branch, residual, module.weight, module.variance_epsilon)


def by_operators(encoder, config: str) -> Tensor:
    """The layers of an encoder, one operator after the other."""
    model, kind = encoder.model, encoder.model_type.replace("-", "_")
    file = importlib.import_module(f"glimodern.encoder.{kind}")
    family = ChainedFamily(lambda *arguments: None, ()) if kind == "bert" else getattr(file, kind.upper())
    ids, cu, _ = batch()
    positions = Packing.of(cu, max(LENGTHS), len(ids)).position_ids + first_position(encoder.config)
    x = family.embed(model, ids, positions)
    table = rotary_angles(model, positions) if family.rotary else None
    layers = [file._layer(layer) for layer in layers_of(encoder, config)]
    if kind not in ("eurobert", "xlm_roberta_xl"):
        if kind == "albert":  # one layer, all along
            x, layers = model.encoder.embedding_hidden_mapping_in(x), layers * 3
        for layer in layers:
            x, _ = norm_of(layer.attention_norm, attention_of(x, layer, cu, table), x)
            x, _ = norm_of(layer.feed_forward_norm, layer.down(layer.up(x)), x)
        return x
    branch, residual = x, None
    for layer in layers:
        normed, residual = norm_of(layer.attention_norm, branch, residual)
        normed, residual = norm_of(layer.feed_forward_norm, attention_of(normed, layer, cu, table), residual)
        branch = layer.down(layer.up(normed))
    return norm_of(model.norm if kind == "eurobert" else model.encoder.LayerNorm, branch, residual)[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("config", FAMILIES)
def test_a_familys_chain_is_its_operators_one_by_one(config, dtype, isa):
    encoder = packed_encoder(CONFIGS[config], dtype)
    with running(f"cpp-{isa}"), torch.inference_mode():
        assert torch.equal(hidden(encoder, rows=False), by_operators(encoder, config))


LAYERS = {  # where each family's layers are, by their names in the model
    "bert": "encoder.layer", "distilbert": "transformer.layer", "albert": "encoder.albert_layer_groups.0.albert_layers",
    "xlm-roberta-xl": "encoder.layer", "mpnet": "encoder.layer", "deberta-v2": "encoder.layer",
    **dict.fromkeys(("t5", "t5 gated", "umt5"), "encoder.block"),
    "deberta-v3": "encoder.layer",
}  # fmt: skip


def layers_of(encoder, config) -> nn.ModuleList:
    return encoder.model.get_submodule(LAYERS.get(config, "layers"))


@pytest.mark.parametrize("config", ["modernbert", *FAMILIES, *BY_DISTANCE])
def test_modules_that_are_not_the_published_ones_make_no_chain(config, monkeypatch):
    """An adapter inside a layer is run, and layers that are taken away are not."""
    encoder = packed_encoder(CONFIGS[config], "fp32")
    runs = runs_of(monkeypatch)
    before = hidden(encoder)
    layers = layers_of(encoder, config)
    if config == "modernbert":
        layers[0].mlp = nn.Sequential(layers[0].mlp)
    else:
        layers[0].adapter = nn.Linear(64, 64)
    torch.testing.assert_close(hidden(encoder), before, rtol=1e-4, atol=1e-4)
    assert len(runs) == 1
    if config == "modernbert":
        layers[0].mlp = layers[0].mlp[0]
    else:
        del layers[0].adapter
    if len(layers) > 1:
        del layers[1]
        assert not torch.allclose(hidden(encoder), before, atol=1e-2) and len(runs) == 2
    runs.clear()
    other = packed_encoder({**CONFIGS[config], "initializer_range": 0.4}, "fp32")
    name, _, rest = LAYERS.get(config, "layers").partition(".")
    setattr(encoder.model, name, other.model.get_submodule(name))
    torch.testing.assert_close(hidden(encoder), plainly(encoder, monkeypatch), rtol=1e-4, atol=1e-4)
    assert len(runs) == 1


@pytest.mark.parametrize("config", ["nomic_bert", "eurobert"])
def test_two_layers_that_are_no_gate_make_no_chain(config, monkeypatch):
    encoder = packed_encoder(CONFIGS[config], "fp32")
    before, runs = hidden(encoder), runs_of(monkeypatch)
    mlp = layers_of(encoder, config)[1].mlp
    weight, other = mlp.gate_proj.packed.unpack().chunk(2)
    plain = [nn.Linear(64, 96, bias=False) for _ in range(2)]
    for linear, values in zip(plain, (weight, other), strict=True):
        linear.weight = nn.Parameter(values, requires_grad=False)
    mlp.gate_proj, mlp.up_proj = (PackedLinear(linear, "fp32") for linear in plain)
    mlp.act_fn = nn.SiLU()
    torch.testing.assert_close(hidden(encoder), before, rtol=1e-4, atol=1e-4)
    assert not runs


def test_weights_that_move_are_followed(monkeypatch):
    """As a process does that shares its model with others."""
    encoder = packed_encoder(CONFIGS["modernbert"], "fp32")
    before = hidden(encoder)
    for module in encoder.modules():
        if isinstance(module, PackedLinear):
            for tensor in module.packed.tensors:
                tensor.set_(tensor.clone())
    runs = runs_of(monkeypatch)
    assert torch.equal(hidden(encoder), before) and len(runs) == 1


def test_each_weight_that_moves_is_followed(monkeypatch):
    """The panels alone, and memory that a parameter's data is exchanged for; the old memory has other values."""
    encoder = packed_encoder(CONFIGS["modernbert"], "fp32")
    before, runs = hidden(encoder), runs_of(monkeypatch)
    linear = next(module for module in encoder.modules() if isinstance(module, PackedLinear))
    old, moved = linear.packed.panels[:], linear.packed.panels.clone()
    linear.packed.panels.set_(moved)
    old.zero_()
    assert torch.equal(hidden(encoder), before)
    norm = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)][-1]
    old, norm.weight.data = norm.weight.data, norm.weight.data.clone()
    old.zero_()
    assert torch.equal(hidden(encoder), before) and len(runs) == 2


def test_a_part_in_training_mode_has_its_dropout(monkeypatch):
    """Also where the chain was made before."""
    encoder = packed_encoder({**CONFIGS["bert"], "hidden_dropout_prob": 0.5}, "fp32")
    before, runs = hidden(encoder), runs_of(monkeypatch)
    layer = encoder.model.encoder.layer[0]
    for module in (layer, layer.output.dropout):
        module.train()
        assert not torch.allclose(hidden(encoder), before, atol=1e-2) and not runs
        encoder.eval()
        assert torch.equal(hidden(encoder), before) and len(runs) == 1
        runs.clear()


def test_hooks_before_a_module_are_called(monkeypatch):
    encoder = packed_encoder(CONFIGS["bert"], "fp32")
    before, runs, called = hidden(encoder), runs_of(monkeypatch), []
    module = next(m for m in encoder.modules() if isinstance(m, PackedLinear))
    module.register_forward_pre_hook(lambda *arguments: called.append(1))
    torch.testing.assert_close(hidden(encoder), before, rtol=0.0, atol=1e-4)
    assert called and not runs


def prune_neurons(layer):
    layer.intermediate.dense, layer.output.dense = nn.Linear(64, 48), nn.Linear(48, 64)


def other_heads(layer):
    layer.attention.self.num_attention_heads = 2
    layer.attention.self.attention_head_size = 32


def prune_heads(layer):
    attention = layer.attention.self
    attention.query, attention.key, attention.value = (nn.Linear(64, 32) for _ in range(3))
    attention.num_attention_heads, attention.all_head_size = 2, 32
    layer.attention.output.dense = nn.Linear(32, 64)


@pytest.mark.parametrize("prune", [prune_neurons, prune_heads, other_heads])
def test_pruned_layers_make_no_chain(prune, monkeypatch):
    torch.manual_seed(0)
    encoder = build_encoder(CONFIGS["bert"]).eval()
    prune(encoder.model.encoder.layer[1])
    encoder.requires_grad_(False)
    wanted = hidden(encoder)
    assert encoder.pack("fp32")
    runs = runs_of(monkeypatch)
    torch.testing.assert_close(hidden(encoder), wanted, rtol=1e-4, atol=1e-4)
    assert not runs


@pytest.mark.parametrize("config", ["modernbert", *FAMILIES])
def test_another_activation_makes_no_chain(config, monkeypatch):
    torch.manual_seed(0)
    field = {"modernbert": "hidden_activation", "distilbert": "activation"}.get(config, "hidden_act")
    encoder = build_encoder({**CONFIGS[config], field: "mish"}).eval().requires_grad_(False)
    wanted = hidden(encoder)
    assert encoder.pack("fp32")
    runs = runs_of(monkeypatch)
    torch.testing.assert_close(hidden(encoder), wanted, rtol=1e-4, atol=1e-4)
    assert not runs


def test_threads_at_once():
    encoder = packed_encoder(CONFIGS["modernbert"], "fp32")
    wanted, found = [hidden(encoder, lengths=[n, 40]) for n in range(1, 9)], {}

    def work(n):
        for _ in range(20):
            found.setdefault(n, []).append(hidden(encoder, lengths=[n + 1, 40]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, wanted[n]) for n, results in found.items() for result in results)
    assert [len(results) for results in found.values()] == [20] * 8


def test_steps_by_hand():
    torch.manual_seed(0)
    x, weight, bias, norm = torch.randn(9, 24), torch.randn(24, 24), torch.randn(24), torch.randn(24)
    packed = PackedWeight.pack(weight, bias, "fp32")
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    chain = Chain(torch.float32, 24)
    made = chain.linear(0, packed, activation="relu")
    seen, branch = chain.buffer(24), chain.buffer(24)
    chain.attention(Columns(made), Columns(made), Columns(0), seen, 3, window=1, scale=0.5)
    chain.linear(seen, packed, branch)
    kept_branch, kept_x = chain.keep(branch, 0)
    chain.add_layer_norm(kept_branch, kept_x, chain.buffer(24), norm, None, 1e-5)
    kept = torch.tensor([8, 0, 0])
    with poisoned():
        y = chain.run(x.clone(), cu, kept)
    q, v = (z.view(9, 3, 8) for z in (ops.linear_packed(x, packed, "relu"), x))
    attended = ops.attention_varlen(q, q, v, cu, 5, window=1, scale=0.5).view(9, 24)
    mixed = ops.linear_packed(attended, packed)
    assert torch.equal(y, ops.add_layer_norm(mixed[kept], x[kept], norm, None, 1e-5, return_sum=False))


def positions_for(dtype, terms, heads=3, dim=8, reach=4):
    torch.manual_seed(1)
    count = 2 * reach + 1
    tables = dict(c2p=torch.randn(count, heads, dim).to(dtype), p2c=torch.randn(count, heads, dim).to(dtype))
    tables["bias"] = torch.randn(count, heads)
    return ops.RelativePositions(torch.randperm(count).int(), **{name: tables[name] for name in terms})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("terms", [["c2p"], ["p2c"], ["bias"], ["c2p", "p2c", "bias"]], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_attention_with_positions_is_the_operator(dtype, terms, isa):
    """In bits; each run reads the tables."""
    torch.manual_seed(0)
    x, cu = torch.randn(60, 72).to(dtype), torch.tensor([0, 4, 4, 45, 60], dtype=torch.int32)
    positions = positions_for(dtype, terms)
    with running(f"cpp-{isa}"):
        for window in (None, 5):
            chain = Chain(dtype, 72)
            columns = (Columns(0), Columns(0, 24), Columns(0, 48))
            chain.attention(*columns, chain.buffer(24), 3, window, 0.3, positions)
            for _ in range(2):
                q, k, v = x.view(60, 3, 3, 8).unbind(1)
                wanted = ops.attention_varlen(q, k, v, cu, 41, window=window, scale=0.3, positions=positions)
                with poisoned():
                    assert torch.equal(chain.run(x.clone(), cu, None), wanted.flatten(1))
                for table in positions[1:]:
                    if table is not None:
                        table.mul_(2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rows=torch.tensor([0, 9, 1], dtype=torch.int32)), "positions.rows: expected rows of tables of 9 rows"),
        (dict(rows=torch.tensor([0, 1], dtype=torch.int32)), r"positions.rows: expected \[2 reach \+ 1\]"),
        (dict(rows=torch.tensor([0, 1, 2])), "positions.rows: expected a contiguous tensor in torch.int32"),
        (dict(c2p=torch.zeros(9, 3, 8).bfloat16()), "positions.c2p: expected a contiguous tensor in torch.float32"),
        (dict(p2c=torch.zeros(9, 3, 9)), r"positions.p2c: expected \(9, 3, 8\)"),
        (dict(bias=torch.zeros(3, 9).t()), "positions.bias: expected a contiguous tensor .* with strides"),
        (dict(c2p=None, p2c=None, bias=None), "positions: expected c2p, p2c or bias, got none"),
    ],
)
def test_positions_must_fit(change, message):
    positions = positions_for(torch.float32, ["c2p", "p2c", "bias"])._replace(**change)
    chain = Chain(torch.float32, 24)
    with pytest.raises(ValueError, match=message):
        chain.attention(Columns(0), Columns(0), Columns(0), chain.buffer(24), 3, positions=positions)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_each_run_reads_the_weights_of_a_norm(dtype, weight_dtype, isa):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(9, 40).to(dtype), torch.randn(40).to(weight_dtype), torch.randn(40).to(weight_dtype)
    chain, cu = Chain(dtype, 40), torch.tensor([0, 9], dtype=torch.int32)
    chain.add_layer_norm(0, None, chain.buffer(40), weight, bias, 1e-5)
    with running(f"cpp-{isa}"):
        for _ in range(2):
            expected = ops.add_layer_norm(x, None, weight, bias, 1e-5, return_sum=False)
            assert torch.equal(chain.run(x.clone(), cu, None), expected)
            weight.mul_(2.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rms_norms_and_their_sums(dtype, isa):
    torch.manual_seed(0)
    x, weight = torch.randn(9, 40).to(dtype), torch.randn(40).to(dtype)
    chain, cu = Chain(dtype, 40), torch.tensor([0, 9], dtype=torch.int32)
    normed, total = chain.buffer(40), chain.buffer(40)
    chain.add_rms_norm(0, None, normed, weight, 1e-3)
    chain.add_rms_norm(normed, 0, total, weight, 1e-3, store_sum=True)
    chain.add_rms_norm(total, 0, chain.buffer(40), weight, 1e-3)
    with running(f"cpp-{isa}"), poisoned():
        first = ops.add_rms_norm(x, None, weight, 1e-3, return_sum=False)
        second, residual = ops.add_rms_norm(first, x, weight, 1e-3)
        expected = ops.add_rms_norm(second, residual, weight, 1e-3, return_sum=False)
        assert torch.equal(chain.run(x.clone(), cu, None), expected)


@pytest.mark.parametrize("texts", [[9], [2, 3, 4] * 50], ids=["one", "many"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_grouped_queries(dtype, texts):
    """Rotated columns from any place; keys and values that three queries share."""
    torch.manual_seed(0)
    rows, heads, key_heads, dim = sum(texts), 6, 2, 8
    x, cu = torch.randn(rows, 5 + (6 + 2 + 2) * 8).to(dtype), F.pad(torch.tensor(texts).cumsum(0), (1, 0)).int()
    angles = torch.randn(rows, dim // 2)
    chain = Chain(dtype, x.shape[1])
    q, k, v, all_k, all_v, context = (chain.buffer(n * dim) for n in (6, 2, 2, 6, 6, 6))
    chain.rotary(Columns(0, 5), q, 0, heads)
    chain.rotary(Columns(0, 53), k, 0, key_heads)
    chain.linear(0, PackedWeight.pack(torch.eye(x.shape[1])[-16:], None, "fp32"), v)
    chain.repeat_heads(k, all_k, key_heads, 3)
    chain.repeat_heads(v, all_v, key_heads, 3)
    chain.attention(Columns(q), Columns(all_k), Columns(all_v), context, heads)
    table = angles.cos(), angles.sin()
    with poisoned():
        found = chain.run(x.clone(), cu, None, [table])
    queries, keys, values = x[:, 5:].unflatten(1, (-1, dim)).split((6, 2, 2), dim=1)
    queries, keys = (ops.rotary(y.contiguous(), *table) for y in (queries, keys))
    keys, values = (y.repeat_interleave(3, dim=1) for y in (keys, values))
    expected = ops.attention_varlen(queries, keys, values, cu, max(texts)).flatten(1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("x", "kept", "message"),
    [
        (torch.zeros(3, 23), torch.arange(3), r"x: expected torch.float32 \[rows, 24\]"),
        (torch.zeros(3, 24).bfloat16(), torch.arange(3), "got torch.bfloat16"),
        (torch.zeros(3, 24), torch.tensor([3]), "kept: expected rows of x, 0 to 2, got 3 to 3"),
        (torch.zeros(3, 24), torch.tensor([-1, 0]), "got -1 to 0"),
        (torch.zeros(3, 24), None, "kept: expected rows"),
        (torch.zeros(4, 24), torch.arange(3), "cu_seqlens"),
    ],
)
def test_bad_input_is_a_clear_error(x, kept, message):
    chain = small_chain()
    chain.keep(2)
    with pytest.raises(ValueError, match=message):
        chain.run(x, torch.tensor([0, 3], dtype=torch.int32), kept)


def test_rows_are_kept_only_by_keep():
    x, cu = torch.zeros(3, 24), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match="kept: expected None"):
        small_chain().run(x, cu, torch.arange(1))
    assert small_chain().run(x, cu, None).shape == (3, 16)


def test_widths_must_fit():
    chain, packed = Chain(torch.float32, 24), PackedWeight.pack(torch.ones(16, 23), None, "fp32")
    gated = PackedWeight.pack(torch.ones(16, 24), None, "fp32", gated=True)
    with pytest.raises(ValueError, match="src: expected a buffer of 23 columns, got buffer 0 of 24"):
        chain.linear(0, packed)
    with pytest.raises(ValueError, match="expected one of geglu, geglu_tanh, swiglu for a weight"):
        chain.linear(0, gated, activation="relu")
    with pytest.raises(ValueError, match="k: expected 16 columns from 9 on, got buffer 0 of 24"):
        chain.attention(Columns(0), Columns(0, 9), Columns(0), chain.buffer(16), 2)
    with pytest.raises(ValueError, match=r"weight: expected a contiguous tensor \[24\]"):
        chain.add_layer_norm(0, None, chain.buffer(24), torch.ones(24, 2)[:, 0], None, 1e-5)
    with pytest.raises(ValueError, match="dst: expected a buffer of 16 columns, got buffer 0 of 24"):
        chain.linear(0, PackedWeight.pack(torch.ones(16, 24), None, "fp32"), 0)
    narrow = chain.buffer(23)
    with pytest.raises(ValueError, match=f"dst: expected a buffer of 24 columns, got buffer {narrow} of 23"):
        chain.add_layer_norm(0, None, narrow, torch.ones(24), None, 1e-5)
    with pytest.raises(ValueError, match=f"residual: expected a buffer of 24 columns, got buffer {narrow} of 23"):
        chain.add_layer_norm(0, narrow, chain.buffer(24), torch.ones(24), None, 1e-5)
    with pytest.raises(ValueError, match=f"x: expected 16 columns from 8 on, got buffer {narrow} of 23"):
        chain.rotary(Columns(narrow, 8), chain.buffer(16), 0, 1)
    with pytest.raises(ValueError, match=f"dst: expected a buffer of 22 columns, got buffer {narrow} of 23"):
        chain.rotary(Columns(0), narrow, 0, 1)
    with pytest.raises(ValueError, match=f"residual: expected a buffer of 24 columns, got buffer {narrow} of 23"):
        chain.add_rms_norm(0, narrow, chain.buffer(24), torch.ones(24), 1e-5)
    with pytest.raises(ValueError, match=f"src: expected a buffer of 22 columns, got buffer {narrow} of 23"):
        chain.repeat_heads(narrow, chain.buffer(46), 2, 2)
    with pytest.raises(ValueError, match=f"dst: expected a buffer of 48 columns, got buffer {narrow} of 23"):
        chain.repeat_heads(0, narrow, 3, 2)


def test_a_norm_has_one_dtype():
    chain, weight = Chain(torch.float32, 24), torch.ones(24)
    for name, given in (("weight", (weight.double(), None)), ("bias", (weight, weight.bfloat16()))):
        with pytest.raises(
            ValueError, match=rf"{name}: expected a contiguous tensor \[24\] in fp32 or bf16, weight and"
        ):
            chain.add_layer_norm(0, None, chain.buffer(24), *given, 1e-5)


def test_weights_stay_alive():
    """The steps hold addresses alone."""
    chain = Chain(torch.float32, 24)
    packed, norm, bias = PackedWeight.pack(torch.ones(24, 24), None, "fp32"), torch.ones(24), torch.ones(24)
    chain.add_layer_norm(chain.linear(0, packed), None, chain.buffer(24), norm, bias, 1e-5)
    positions = positions_for(torch.float32, ["c2p", "p2c", "bias"])
    chain.attention(Columns(0), Columns(0), Columns(0), chain.buffer(24), 3, positions=positions)
    kept = [weakref.ref(tensor) for tensor in (*packed.tensors, norm, bias, *positions) if tensor is not None]
    del packed, norm, bias, positions
    gc.collect()
    assert all(tensor() is not None for tensor in kept)
    del chain
    gc.collect()
    assert all(tensor() is None for tensor in kept)


@pytest.mark.parametrize("layout", ["rows of any stride", "int32 indices", "more rows than the input has"])
def test_rows_asked_for(layout):
    x, cu = torch.randn(6, 24, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 6], dtype=torch.int32)
    chain = Chain(torch.float32, 24)
    (kept,) = chain.keep(0)
    chain.linear(kept, PackedWeight.pack(torch.eye(24), None, "fp32"))
    rows, given = torch.tensor([5, 0, 3]), x.clone()
    if layout == "rows of any stride":
        rows, given = torch.tensor([5, 9, 0, 9, 3, 9])[::2], x.t().contiguous().t()
    if layout == "int32 indices":
        rows = rows.int()
    if layout == "more rows than the input has":
        rows = rows.repeat(300)
    with poisoned():
        assert torch.equal(chain.run(given, cu, rows), x[rows.long()])


def test_kept_rows_may_be_the_result():
    x, chain = torch.randn(6, 24, generator=torch.Generator().manual_seed(0)), Chain(torch.float32, 24)
    chain.linear(0, PackedWeight.pack(torch.eye(24), None, "fp32"))
    chain.keep(0)
    rows = torch.tensor([5, 0, 3])
    assert torch.equal(chain.run(x.clone(), torch.tensor([0, 6], dtype=torch.int32), rows), x[rows])


def test_why_no_chain_takes_an_input():
    x = torch.zeros(2, 24)
    assert Chain.problem(x) == "" and Chain.problem(x.bfloat16()) == ""
    assert "runs on the CPU, got meta" in Chain.problem(x.to("meta"))
    assert "fp32 or bf16, got torch.float16" in Chain.problem(x.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in Chain.problem(x)
    trained = x.clone().requires_grad_()
    assert "no gradients" in Chain.problem(trained)
    with torch.no_grad():
        assert Chain.problem(trained) == ""
    with ops.use_backend("reference"):
        assert "add_layer_norm, attention_varlen, linear_packed, rotary would not" in Chain.problem(x)


def test_tables_must_be_given():
    chain = Chain(torch.float32, 48)
    chain.rotary(Columns(0), chain.buffer(32), 1, 4)
    for tables in ((), [(torch.zeros(3, 4), torch.zeros(3, 4))]):
        with pytest.raises(ValueError, match=r"tables: expected cos and sin of shapes \[\(3, 4\), \(3, 4\)\]"):
            chain.run(torch.zeros(3, 48), torch.tensor([0, 3], dtype=torch.int32), None, tables)
