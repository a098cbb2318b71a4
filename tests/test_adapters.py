"""Adapters: written as peft reads them, loaded without peft, on their own base only; models with them."""

import json
import math
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bi_encoder_rows import save_encoder
from conftest import WORDS, make_tiny_model, quietly_int8
from encoder_rows import LABELS, ROWS, TEXTS, config_of, make_tokenizer, padded_reference, ragged, run_padded
from safetensors.torch import load_file, save_file

from glimodern import GLiModern
from glimodern.checkpoint.adapter import read_adapter, remove_adapter, write_adapter
from glimodern.encoder import build_encoder
from glimodern.layers.packed_linear import can_pack

peft = pytest.importorskip("peft", reason="needs the extra lora")

from glimodern.train.lora import Lora, check_rank, target_layers  # noqa: E402
from glimodern.train.tuning import TuningConfig  # noqa: E402

TEXT, ASKED = " ".join(WORDS), ["person", "place", "machine"]


def disturb(model: GLiModern, size: float) -> None:
    """Stand in for training: give everything that would be trained other values.

    size: of the change of the encoder's adapters. The head's are changed less: random ones soon saturate all scores.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                step = 0.02 if ".lora_" not in name else size if name.startswith("encoder.") else 0.2 * size
                parameter += step * torch.randn(parameter.shape, generator=generator)


def adapter_of(base: Path, folder: Path, *, head: str = "full", rank: int = 3, size: float = 0.5) -> Path:
    """Write folder/adapter and folder/model, as training on a base does; return folder/adapter."""
    model = GLiModern.from_pretrained(base, trainable=True)
    lora = Lora(model, TuningConfig(lora_rank=rank, lora_head=head), str(base), seed=0)  # type: ignore[arg-type]
    disturb(model, size)
    lora.save(model, folder)
    return folder / "adapter"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    make_tiny_model(dropout=0.0, max_width=6).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["lora", "full", "frozen"])
def adapter(request, base, tmp_path_factory) -> Path:
    return adapter_of(base, tmp_path_factory.mktemp(request.param), head=request.param)


@torch.no_grad()
def scores(model: GLiModern, words: Sequence[Sequence[str]] = (WORDS, WORDS[:4])) -> torch.Tensor:
    """The logits of all spans of texts."""
    found = torch.cat([x.flatten() for x in model.scores(model.packer.pack(words, [ASKED] * len(words)))])
    return found[found.isfinite()].float()


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The RMS of the difference by that of what is wanted."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def test_the_files_are_pefts(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6)
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert "base_model.model.layers.0.attn.Wqkv.lora_A.weight" in names
    assert len(names) == 2 * 2 * 4  # A and B, two layers of four
    assert (adapter / "head.safetensors").exists() == json.loads((adapter / "adapter_base.json").read_text())["head"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
def test_a_model_with_an_adapter_is_the_merged_one(base, adapter, dtype):
    if dtype == "int8" and not can_pack():
        pytest.skip("nothing packs on this CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights in int8 find other entities
        plain, merged = (GLiModern.from_pretrained(folder, dtype=dtype) for folder in (base, adapter.parent / "model"))
    before = scores(plain)
    model = plain.with_adapter(adapter)
    exact = scores(GLiModern.from_pretrained(adapter.parent / "model", dtype="fp32"))
    assert off(scores(model), exact) <= 1.5 * off(scores(merged), exact) + 1e-5
    assert off(before, exact) > 2 * off(scores(model), exact)
    assert torch.equal(scores(plain), before)  # the base's bits
    assert (model.dtype_name, model.adapter, plain.adapter) == (dtype, adapter, None)
    assert model.weights_fingerprint not in (plain.weights_fingerprint, merged.weights_fingerprint)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(
    "kind",
    [
        {"span_mode": "token_level"},
        {"span_mode": "marker"},
        {"span_mode": "ffn"},
        {"hidden_size": 24},
        {"layers of an LSTM": 1},
    ],
    ids=str,
)
def test_updates_of_every_head(tmp_path, kind, dtype):
    if dtype == "int8" and not can_pack():
        pytest.skip("nothing packs on this CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # span_mode "ffn" is ours, and random weights in int8 find other entities
        lstm = kind.get("layers of an LSTM", 0)
        model = make_tiny_model(dropout=0.0, max_width=6, **({} if lstm else kind))
        config = replace(model.config, num_rnn_layers=lstm)
        torch.manual_seed(0)
        GLiModern(config, model.encoder, model.tokenizer).save_pretrained(tmp_path / "base")
        folder = adapter_of(tmp_path / "base", tmp_path, head="lora", size=0.2)
        texts = [WORDS[n:] + WORDS[:n] for n in range(len(WORDS))]
        exact, plain, merged, updated = (
            scores(GLiModern.from_pretrained(tmp_path / name, dtype=dtype, adapter=adapter), texts)
            for name, dtype, adapter in (
                ("model", "fp32", None),
                ("base", dtype, None),
                ("model", dtype, None),
                ("base", dtype, folder),
            )
        )
    # A layer that is packed again is rounded twice, and each bound is a ratio of two draws of rounding errors. An LSTM
    # carries an error from word to word.
    assert off(updated, exact) <= {"fp32": 1.5, "bf16": 3.0, "int8": 4.0}[dtype] * off(merged, exact) + 1e-5
    assert off(plain, exact) > 8 * off(updated, exact)


def test_updates_of_a_head_are_small(base, tmp_path):
    """Two factors of rank 3, or of the layer's smaller side, for each linear layer, and nothing else."""
    folder = adapter_of(base, tmp_path, head="lora")
    state = load_file(folder / "head.safetensors")
    assert len(state) == 16 and sum(x.numel() for x in state.values()) == 3 * (7 * 5 + 6) * 32
    adapter = read_adapter(folder)
    assert not adapter.head and set(adapter.head_updates) == {
        f"head.{part}.{number}" for part in ("start", "end", "span", "prompt") for number in (0, 3)
    }
    make_tiny_model(dropout=0.0, span_mode="token_level").save_pretrained(tmp_path / "token")
    state = load_file(adapter_of(tmp_path / "token", tmp_path / "of token", head="lora", rank=8) / "head.safetensors")
    assert state["scorer.out_mlp.3.lora_A.weight"].shape == (3, 128)


def test_a_model_and_its_adapters_share_memory(base, adapter):
    plain = GLiModern.from_pretrained(base, dtype="fp32")
    model = plain.with_adapter(adapter)
    ours, theirs = dict(model.encoder.named_parameters()), dict(plain.encoder.named_parameters())
    shared = [name for name, weight in ours.items() if weight is theirs[name]]
    assert "model.embeddings.tok_embeddings.weight" in shared
    if can_pack():
        assert len(shared) == len(ours)
        for mine, own in zip(model.encoder.model.layers, plain.encoder.model.layers, strict=True):
            assert mine.attn.Wqkv.packed is own.attn.Wqkv.packed and mine.attn.Wqkv is not own.attn.Wqkv
        if not read_adapter(adapter).head:
            assert model.head.start[0].packed is plain.head.start[0].packed


def test_loading_with_an_adapter_and_merging(base, adapter, tmp_path):
    wanted = scores(GLiModern.from_pretrained(base, dtype="fp32").with_adapter(adapter))
    assert torch.equal(scores(GLiModern.from_pretrained(base, dtype="fp32", adapter=adapter)), wanted)
    merged = GLiModern.from_pretrained(base, trainable=True, adapter=adapter)
    assert merged.adapter is None
    merged.save_pretrained(tmp_path / "merged")
    saved, trained = (
        load_file(tmp_path / "merged" / "model.safetensors"),
        load_file(adapter.parent / "model" / "model.safetensors"),
    )
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], trained[name]) for name in saved)


def test_a_trainable_base_in_training_mode_does_not_change(base, adapter):
    model = GLiModern.from_pretrained(base, trainable=True).train()
    modes, weights = [m.training for m in model.modules()], [p.clone() for p in model.parameters()]
    model.with_adapter(adapter).predict(TEXT, ASKED)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def test_two_adapters_of_one_base_run_at_the_same_time(base, tmp_path):
    plain = GLiModern.from_pretrained(base, dtype="fp32")
    models = [plain, *(plain.with_adapter(adapter_of(base, tmp_path / str(n), size=n / 4)) for n in (1, 2))]
    wanted = [scores(model) for model in models]
    assert len({tuple(found.tolist()) for found in wanted}) == 3
    wrong: list[int] = []

    def run(number: int) -> None:
        wrong.extend(number for _ in range(8) if not torch.equal(scores(models[number]), wanted[number]))

    threads = [threading.Thread(target=run, args=(n,)) for n in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_check_precision_compares_with_the_adapter(base, adapter):
    model = GLiModern.from_pretrained(base, dtype="bf16", adapter=adapter)
    report = model.check_precision([TEXT], ASKED, 0.3)
    assert report.max_drift < 0.05


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_encoder(row, tmp_path):
    """peft reads the adapter on transformers' encoder, and its hidden states are those of ours, packed or not."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(row.tokenizer)
    config = config_of(row, tokenizer)
    model = GLiModern.from_encoder_config(config, tokenizer, dropout=0.0, max_width=4).eval()
    texts, batch = ragged(len(tokenizer))
    reference = padded_reference(model.encoder, model.encoder.config.to_dict())
    model.save_pretrained(tmp_path / "base")
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    lora = Lora(model, TuningConfig(lora_rank=2), str(tmp_path / "base"), seed=0)
    model.train()
    loss = model(model.packer.pack(TEXTS, [LABELS] * len(TEXTS), [[(0, 1, "person")]] * len(TEXTS)))
    loss.backward()
    for name, parameter in model.named_parameters():
        kind = "adapter" if ".lora_" in name else "base"
        assert parameter.requires_grad == (kind == "adapter"), name
        if kind == "adapter":
            assert parameter.grad is not None, name
    disturb(model, 0.05)
    lora.save(model.eval(), tmp_path)
    for name, parameter in model.named_parameters():
        original = name.replace(".base_layer", "")
        if name.startswith("encoder.") and ".lora_" not in name:
            assert torch.equal(parameter, frozen[original])
    loaded = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted = run_padded(loaded, texts, tokenizer.pad_token_id)
        ours = GLiModern.from_pretrained(tmp_path / "base", dtype="fp32", adapter=tmp_path / "adapter").encoder(*batch)
        merged = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32").encoder(*batch)
    assert (ours - wanted).abs().max() <= 2e-5 * max(1.0, float(wanted.abs().max()))
    assert (merged - wanted).abs().max() <= 2e-5 * max(1.0, float(wanted.abs().max()))


def test_a_bi_encoders_label_encoder_stays_as_it_is(tmp_path):
    save_encoder(tmp_path / "labels", "bert", 16, vocab_size=400)
    tokenizer = make_tokenizer("byte-level")
    config = config_of(ROWS[0], tokenizer)
    model = GLiModern.from_encoder_config(config, tokenizer, labels_encoder=tmp_path / "labels", dropout=0.0)
    model.save_pretrained(tmp_path / "base")
    folder = adapter_of(tmp_path / "base", tmp_path)
    plain = GLiModern.from_pretrained(tmp_path / "base", dtype="fp32")
    adapted = plain.with_adapter(folder)
    merged = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32")
    assert off(scores(adapted), scores(merged)) <= 1e-5
    assert off(scores(plain), scores(merged)) > 1e-3
    vectors = plain.encode_labels(ASKED)  # still those of the adapter's model
    assert adapted.predict(TEXT, label_vectors=vectors, threshold=0.3) == adapted.predict(TEXT, ASKED, 0.3)


def test_targets():
    encoder = build_encoder(config_of(ROWS[4], make_tokenizer("wordpiece"))).model
    everything = target_layers(encoder, ())
    assert len(everything) == 12 and not any("pooler" in name for name in everything)
    assert target_layers(encoder, ("query", "value")) == [
        name for name in everything if name.endswith(("query", "value"))
    ]
    assert target_layers(encoder, ("layer.1.output.dense",)) == ["encoder.layer.1.output.dense"]
    assert target_layers(encoder, ("pooler.dense",)) == ["pooler.dense"]
    with pytest.raises(ValueError, match=r"lora_targets: .*linear layers \(dense, key, query, value\), got 'q_proj'"):
        target_layers(encoder, ("query", "q_proj"))


def test_ranks():
    encoder = build_encoder(config_of(ROWS[4], make_tokenizer("wordpiece"))).model
    everything = target_layers(encoder, ())
    sides = [min(encoder.get_submodule(name).weight.shape) for name in everything]
    check_rank(encoder, everything, min(sides))
    with pytest.raises(ValueError, match=rf"lora_rank: expected at most {min(sides)}, as .* got {min(sides) + 1}; low"):
        check_rank(encoder, everything, min(sides) + 1)
    with pytest.raises(
        ValueError, match="lora_rank: expected an encoder with linear layers, got Embedding without one"
    ):
        target_layers(torch.nn.Embedding(2, 2), ())


# bad input: one line that names file, field, wanted and got


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def tensors(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


def each_tensor(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    tensors(folder, lambda state: state.update({name: change(x) for name, x in state.items()}))


def alpha(folder: Path, value: float | None) -> None:
    edit(folder / "adapter_config.json", lora_alpha=value)


WQKV = "base_model.model.layers.0.attn.Wqkv.lora_"
BROKEN = [
    (lambda f: (f / "adapter_config.json").unlink(), FileNotFoundError, "adapter_config.json: expected a file"),
    (lambda f: (f / "adapter_model.safetensors").unlink(), FileNotFoundError, "adapter_model.safetensors: expected a"),
    (lambda f: (f / "adapter_base.json").unlink(), FileNotFoundError, "adapter_base.json: expected a file of an adap"),
    (lambda f: (f / "head.safetensors").unlink(), FileNotFoundError, "head.safetensors: expected a file of an adapter"),
    (lambda f: cut(f / "adapter_config.json"), ValueError, "adapter_config.json: expected a JSON object, got .* bytes"),
    (lambda f: (f / "adapter_config.json").write_text("[]"), ValueError, r"adapter_config.json: .*object, got \[\]"),
    (lambda f: cut(f / "adapter_model.safetensors"), ValueError, "adapter_model.safetensors: not a whole safetensors"),
    (lambda f: cut(f / "head.safetensors"), ValueError, "head.safetensors: not a whole safetensors file: expected"),
    (lambda f: edit(f / "adapter_config.json", peft_type="IA3"), ValueError, "peft_type: expected 'LORA', got 'IA3'"),
    (lambda f: edit(f / "adapter_config.json", use_dora=True), ValueError, "use_dora: expected False, plain LoRA, got"),
    (lambda f: edit(f / "adapter_config.json", rank_pattern={"a": 1}), ValueError, "rank_pattern: expected {}, plain"),
    (lambda f: edit(f / "adapter_config.json", r="3"), ValueError, "adapter_config.json: r: expected a whole number"),
    (lambda f: alpha(f, None), ValueError, "lora_alpha: expected a number above 0, got None"),
    (lambda f: alpha(f, 0), ValueError, "lora_alpha: expected a number above 0, got 0"),
    (lambda f: alpha(f, -4.0), ValueError, "lora_alpha: expected a number above 0, got -4.0"),
    (lambda f: alpha(f, math.nan), ValueError, "lora_alpha: expected a number above 0, got nan"),
    (lambda f: alpha(f, math.inf), ValueError, "lora_alpha: expected a number above 0, got inf"),
    (lambda f: each_tensor(f, lambda x: x * math.nan), ValueError, "tensor .*: expected finite floats, got others"),
    (lambda f: each_tensor(f, torch.Tensor.int), ValueError, "tensor .*: expected finite floats, got torch.int32"),
    (
        lambda f: edit(f / "adapter_config.json", r=4),
        ValueError,
        r"lora_A.weight: expected shape \(4, inputs\) by r in",
    ),
    (
        lambda f: edit(f / "adapter_base.json", base_fingerprint=7),
        ValueError,
        "base_fingerprint: expected a str, got 7",
    ),
    (lambda f: edit(f / "adapter_base.json", head="yes"), ValueError, "head: expected a bool, got 'yes'"),
    (
        lambda f: edit(f / "adapter_base.json", base_fingerprint="0123", base="another"),
        ValueError,
        "adapter_base.json: base_fingerprint: expected [0-9a-f]{32}, that of .*/model, got 0123, that of another; load",
    ),
    (lambda f: tensors(f, lambda s: s.pop(WQKV + "B.weight")), ValueError, "lora_B.weight: expected it, got none"),
    (lambda f: tensors(f, lambda s: s.clear()), ValueError, "expected updates of linear layers, got no tensor"),
    (
        lambda f: tensors(f, lambda s: s.update({"layers.0.weight": torch.zeros(2)})),
        ValueError,
        "tensor layers.0.weight: expected base_model.model.LAYER.lora_A.weight or lora_B, got another name",
    ),
    (
        lambda f: tensors(f, lambda s: s.update({WQKV + "A.weight": torch.zeros(3, 40)})),
        ValueError,
        r"tensor layers.0.attn.Wqkv: expected an update of \(96, 32\), got \(96, 40\)",
    ),
    (
        lambda f: tensors(
            f, lambda s: s.update({name.replace("layers.0", "layers.9"): s[name].clone() for name in list(s)})
        ),
        ValueError,
        r"tensor layers.9.attn.\w+: expected a linear layer of the base, got no module of that name",
    ),
]


@pytest.mark.parametrize(("damage", "error", "message"), BROKEN)
def test_a_broken_adapter_is_a_clear_error(base, tmp_path, damage, error, message):
    folder = adapter_of(base, tmp_path)
    damage(folder)
    model = GLiModern.from_pretrained(base, dtype="fp32")
    with pytest.raises(error, match=message) as caught:
        model.with_adapter(folder)
    assert "\n" not in str(caught.value)


def in_head(change):  # type: ignore[no-untyped-def]
    def damage(folder: Path) -> None:
        state = load_file(folder / "head.safetensors")
        change(state)
        save_file(state, folder / "head.safetensors")

    return damage


START = "span_rep_layer.span_rep_layer.project_start.0.lora_"
BROKEN_HEADS = [
    (
        lambda s: s.pop(START + "B.weight"),
        r"head\.safetensors: tensor .*project_start\.0\.lora_B\.weight: expected it, got",
    ),
    (
        lambda s: s.update(x=torch.zeros(2)),
        "head.safetensors: tensor x: expected factors of updates alone, or whole ten",
    ),
    (lambda s: s[START + "A.weight"].fill_(math.nan), "tensor .*lora_A.weight: expected finite floats, got others"),
    (
        lambda s: s.update({START + "A.weight": torch.zeros(4, 32)}),
        r"project_start\.0: expected factors \(3, inputs\) and \(outputs, 3\) by r in adapter_config.*, got \(4, 32\)",
    ),
    (
        lambda s: s.update({START + "A.weight": torch.zeros(3, 40)}),
        r"tensor head\.start\.0: expected an update of \(128, 32\), got \(128, 40\); load it on its own base",
    ),
    (
        lambda s: s.update({name.replace("project_start", "project_stop"): s[name].clone() for name in list(s)}),
        r"tensor .*project_stop\.0: expected a linear layer of the base, got no module of that name",
    ),
    (
        lambda s: s.update(
            {
                f"token_rep_layer.bert_layer.model.layers.0.attn.Wqkv.lora_{x}.weight": torch.zeros(*shape)
                for x, shape in (("A", (3, 32)), ("B", (96, 3)))
            }
        ),
        r"tensor encoder\.model\.layers\.0\.attn\.Wqkv: expected a linear layer of the base, got no module of that",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN_HEADS)
def test_broken_updates_of_a_head_are_clear_errors(base, tmp_path, damage, message):
    folder = adapter_of(base, tmp_path, head="lora")
    in_head(damage)(folder)
    with pytest.raises(ValueError, match=message) as caught:
        GLiModern.from_pretrained(base, dtype="fp32").with_adapter(folder)
    assert "\n" not in str(caught.value)


def test_misuse_is_a_clear_error(base, adapter, tmp_path):
    model = GLiModern.from_pretrained(base, dtype="fp32")
    with pytest.raises(FileNotFoundError, match="adapter: expected a folder with adapter_config.json, got 'nowhere'"):
        model.with_adapter("nowhere")
    with pytest.raises(TypeError, match="adapter: expected a path"):
        model.with_adapter(3)  # type: ignore[arg-type]
    adapted = model.with_adapter(adapter)
    with pytest.raises(ValueError, match="with_adapter: expected a model without an adapter, got one with"):
        adapted.with_adapter(adapter)
    with pytest.raises(ValueError, match="adapter: expected none, or a merged one, to save"):
        adapted.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_writing_replaces_older_adapters_and_no_others(base, tmp_path):
    folder = adapter_of(base, tmp_path)
    (folder / "notes.txt").write_text("mine")
    adapter_of(base, tmp_path, head="frozen")
    assert not (folder / "head.safetensors").exists() and (folder / "notes.txt").read_text() == "mine"
    assert not read_adapter(folder).head
    (folder / "adapter_base.json").unlink()
    before = (folder / "adapter_config.json").read_bytes()
    with pytest.raises(
        ValueError, match="expected no adapter or an older one of glimodern to replace, got adapter_conf"
    ):
        write_adapter(folder, {}, {"x.lora_A.weight": torch.zeros(1)}, {}, "b", "f")
    assert (folder / "adapter_config.json").read_bytes() == before


def test_removing_an_adapter_leaves_other_files(base, tmp_path):
    folder = adapter_of(base, tmp_path)
    (folder / "notes.txt").write_text("mine")
    remove_adapter(folder)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    adapter_of(base, tmp_path)
    remove_adapter(folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "adapter_config.json").write_text("another's")
    remove_adapter(folder)
    assert (folder / "adapter_config.json").read_text() == "another's"


def test_int8_bases_have_their_own_fingerprint(base, adapter):
    if not can_pack():
        pytest.skip("nothing packs on this CPU")
    assert quietly_int8(base).with_adapter(adapter).dtype_name == "int8"
