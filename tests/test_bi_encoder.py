"""Bi-encoders: gliner's scores, labels that do not know of each other, vectors that are kept, saved and refused."""

import copy
import importlib
import json
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from glimodern import GLiModern, LabelVectors, ops
from glimodern.layers.packed_linear import can_pack
from glimodern.network import label_encoder, type_cache
from glimodern.ops import _head as _cost
from glimodern.train.config import parse_train_config
from glimodern.train.interrupts import Stopped
from glimodern.train.log import RunLog
from glimodern.train.loop import train
from tests.bi_encoder_rows import difference, encoder_config, save_encoder, spread_types
from tests.conftest import WORDS
from tests.test_train import losses, rows

LABELS = ["person", "place", "machine", "Krankheit (disease)"]
POOL = [*LABELS, *(f"type number {i}" for i in range(60)), "x", "\u200b", "日本", "a " * 40]
TEXT = " ".join(WORDS)
TEXTS = [TEXT, "Ada met Charles .", "", "London", TEXT + " " + TEXT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A label encoder of width 48 under labels/, and a bi-encoder of head width 32 under model/."""
    folder = tmp_path_factory.mktemp("bi")
    save_encoder(folder / "labels", "bert", 48, 330)
    make_bi(folder / "labels").save_pretrained(folder / "model")
    return folder


def make_bi(labels_encoder, seed=0, **head):
    from glimodern.train.demo import train_tokenizer

    tokenizer = train_tokenizer([WORDS] * 4, LABELS, vocab_size=320)
    torch.manual_seed(seed)
    head = {"dropout": 0.0, "max_width": 6, "labels_encoder": str(labels_encoder), **head}
    model = GLiModern.from_encoder_config(encoder_config("modernbert", 32, len(tokenizer)), tokenizer, **head).eval()
    spread_types(model.head.prompt)
    return model


@pytest.fixture(scope="module")
def model(folder):
    """A bi-encoder for inference; tests must leave it as it is."""
    return GLiModern.from_pretrained(folder / "model", dtype="fp32")


def threshold_of(model, share=0.8):
    """A probability that some spans pass and that none is near."""
    logits = torch.cat([t.flatten() for t in model.scores(model.packer.pack([WORDS], [LABELS]))])
    values = torch.sigmoid(logits[torch.isfinite(logits)]).sort().values
    upper = values[int(share * len(values)) :]
    gap = int(upper.diff().argmax())
    return float(upper[gap : gap + 2].mean())


def same(results, others):
    assert [[(e["start"], e["end"], e["label"]) for e in r] for r in results] == [
        [(e["start"], e["end"], e["label"]) for e in r] for r in others
    ]
    for result, other in zip(results, others, strict=True):
        assert [e["score"] for e in result] == pytest.approx([e["score"] for e in other], abs=1e-6)
    assert any(results)


# a label's score is its own


def all_scores(model, labels, vectors=None):
    """{(word, width, label): probability} of every span of TEXT, as predict computes them."""
    batch = model.packer.pack([WORDS], [labels])
    found = model._candidates(batch, 0.0, vectors)
    columns = (found.word.tolist(), found.width.tolist(), found.type.tolist(), found.score.tolist())
    return {(word, width, labels[kind]): score for word, width, kind, score in zip(*columns, strict=True)}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    others=st.lists(st.sampled_from(POOL), unique=True, max_size=len(POOL)),
    place=st.integers(0, len(POOL)),
    chunk=st.sampled_from([1, 7, 64, 2048]),
    texts=st.integers(1, 3),
)
@pytest.mark.parametrize("label", ["person", "Krankheit (disease)"])
def test_a_score_depends_on_its_label_alone(model, monkeypatch, label, others, place, chunk, texts):
    """Not on the other labels, few (the fold) or many (span vectors), nor on how labels and texts are batched."""
    labels = [other for other in others if other != label]
    labels.insert(place, label)
    monkeypatch.setattr(label_encoder, "_CHUNK_TOKENS", chunk)
    vectors = model.encode_labels(labels)
    alone = model.encode_labels([label]).vectors[0]
    assert (vectors.vectors[vectors.rows[label]] - alone).abs().max() <= 1e-6 * max(1.0, float(alone.abs().max()))
    wanted = all_scores(model, [label])
    assert max(wanted.values()) - min(wanted.values()) > 0.1
    assert len(wanted) == sum(min(6, len(WORDS) - i) for i in range(len(WORDS)))
    got = all_scores(model, labels, vectors)
    for word, width, _ in wanted:
        assert abs(got[word, width, label] - wanted[word, width, label]) <= 1e-6
    logits = model.scores(model.packer.pack([WORDS] * texts, [[label], labels, POOL][:texts]))
    column = torch.sigmoid(logits[-1][..., ([label], labels, POOL)[texts - 1].index(label)])
    for (word, width, _), score in wanted.items():
        assert abs(float(column[word, width]) - score) <= 1e-6


@pytest.mark.parametrize("kept", [False, True], ids=["vectors", "kept fold"])
def test_a_thousand_labels_in_bf16_have_scores_of_their_own(folder, kept, monkeypatch):
    """And those of fp32, as near as vectors in bf16 are."""
    monkeypatch.setattr(type_cache, "_MAX_LABELS", 4096 if kept else 10)
    labels = [f"kind {i} of thing" for i in range(1000)]
    exact, half = (
        all_scores(GLiModern.from_pretrained(folder / "model", dtype=dtype), labels) for dtype in ("fp32", "bf16")
    )
    near = [(exact[key], half[key]) for key in exact.keys() & half.keys() if key[:2] == (0, 0)]
    assert len(near) == 1000
    assert len({score for _, score in near}) > 0.99 * len({score for score, _ in near})
    assert max(abs(x - y) for x, y in near) < 0.1


def test_texts_hold_no_labels(model):
    many = [f"type number {i}" for i in range(5000)]
    few, all_of_them = (model.packer.pack([WORDS], [labels]) for labels in (LABELS[:1], many))
    assert torch.equal(few.input_ids, all_of_them.input_ids)
    assert len(few.input_ids) == len(model.packer.tokenize([WORDS])[0].ids) + 2
    assert all_of_them.labels == tuple(many)


# predicting with vectors


def test_vectors_find_what_labels_find(model):
    threshold = threshold_of(model)
    wanted = model.predict(TEXTS, LABELS, threshold)
    vectors = model.encode_labels([*LABELS, LABELS[0]])
    assert vectors.labels == tuple(LABELS) and vectors.vectors.shape == (4, 32)
    same(model.predict(TEXTS, None, threshold, label_vectors=vectors), wanted)
    same(model.predict(TEXTS, LABELS, threshold, label_vectors=model.encode_labels(POOL)), wanted)
    same(list(model.predict(iter(TEXTS), threshold=threshold, label_vectors=vectors)), wanted)


def test_labels_per_text(model):
    threshold, vectors = threshold_of(model), model.encode_labels(POOL)
    labels = [["person"], ["place", "person"], ["machine"], LABELS, POOL]
    alone = [model.predict(text, asked, threshold)[0] for text, asked in zip(TEXTS, labels, strict=True)]
    same(model.predict(TEXTS, labels, threshold), alone)
    same(model.predict(TEXTS, labels, threshold, label_vectors=vectors), alone)
    same(list(model.predict(iter(TEXTS), iter(labels), threshold, label_vectors=vectors)), alone)


def test_many_labels_are_not_multiplied_by_texts(model, monkeypatch):
    """Type vectors exist once a text at most, and results do not depend on how many texts share a call."""
    vectors = model.encode_labels(POOL)
    threshold = threshold_of(model)
    wanted = model.predict(TEXTS * 3, None, threshold, label_vectors=vectors)
    sizes, whole = [], type_cache.ops.head_entities

    def watched(a, b, w2, b2, q, *rest):
        sizes.append(len(q))
        return whole(a, b, w2, b2, q, *rest)

    monkeypatch.setattr(type_cache.ops, "head_entities", watched)
    for rows_at_a_time, calls in ((10, 12), (2 * len(POOL), 6), (10_000, 1)):
        monkeypatch.setattr(type_cache, "_TYPE_ROWS", rows_at_a_time)
        sizes.clear()
        same(model.predict(TEXTS * 3, None, threshold, label_vectors=vectors), wanted)
        assert len(sizes) == calls and max(sizes) <= max(rows_at_a_time, len(POOL))


def test_a_known_fold_changes_no_entity():
    """ops.head_entities finds the same with u and c given, on either side of where span vectors are cheaper."""
    generator = torch.Generator().manual_seed(0)
    a, b, w2, b2, q = (torch.randn(*s, generator=generator) for s in ((9, 32), (9, 32), (8, 32), (8,), (40, 8)))
    cu_words = torch.tensor([0, 5, 9], dtype=torch.int32)
    for types in (2, 12, 40):
        cu_types = torch.tensor([0, types // 2, types], dtype=torch.int32)
        rest = (cu_words, cu_types, 3, 0.9)
        wanted = ops.head_entities(a, b, w2, b2, q[:types], *rest)
        got = ops.head_entities(a, b, w2, b2, q[:types], *rest, (q[:types] @ w2, q[:types] @ b2))
        assert len(wanted.word) > 0
        for one, other in zip(wanted, got, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    cost = [_cost.scoring_cost(9, 12, 2, 3, 32, 8, folded) for folded in (False, True)]
    assert cost[0].fold - cost[1].fold == 12 * 8 * 32 and cost[0].vectors == cost[1].vectors


def test_the_last_labels_are_kept(folder, monkeypatch):
    model = GLiModern.from_pretrained(folder / "model", dtype="fp32")
    asked = []
    model.label_encoder.register_forward_pre_hook(lambda _, args: asked.append(list(args[0])))
    threshold = threshold_of(model)
    asked.clear()
    first = model.predict(TEXTS, LABELS, threshold)
    same(model.predict(TEXTS, LABELS, threshold), first)
    model.predict(TEXTS, [*LABELS[1:], "x"], threshold)
    assert asked == [LABELS, ["x"]]
    monkeypatch.setattr(type_cache, "_MAX_LABELS", 6)
    model.predict(TEXT, ["person", "y", "z"], threshold)
    same(model.predict(TEXTS, LABELS, threshold), first)
    assert asked[2:] == [["person", "y", "z"], LABELS[1:]]


def test_nothing_is_kept_of_weights_that_change(folder):
    model = GLiModern.from_pretrained(folder / "model", trainable=True)
    vectors, fingerprint = model.encode_labels(LABELS), model.label_encoder.fingerprint
    before = all_scores(model, LABELS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)  # one that leaves no trace in _version
    model(model.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])).backward()
    optimizer.step()
    after = all_scores(model, LABELS)
    assert max(abs(after[key] - before[key]) for key in before) > 1e-3
    copied = copy.deepcopy(model)
    assert all_scores(copied, LABELS) == after
    assert model.label_encoder.fingerprint != fingerprint
    with pytest.raises(ValueError, match="label_vectors: expected vectors from the label encoder of"):
        model.predict(TEXT, label_vectors=vectors)


def rounded(found):
    """Entities without what rounding changes."""
    return [[{**entity, "score": pytest.approx(entity["score"], abs=1e-6)} for entity in text] for text in found]


def test_vectors_are_saved_and_other_models_refuse_them(model, folder, tmp_path):
    vectors, threshold = model.encode_labels(LABELS), threshold_of(model)
    vectors.save(tmp_path / "v.safetensors")
    loaded = LabelVectors.load(tmp_path / "v.safetensors")
    assert (loaded.labels, loaded.model, loaded.fingerprint) == (vectors.labels, vectors.model, vectors.fingerprint)
    assert torch.equal(loaded.vectors, vectors.vectors)
    wanted = model.predict(TEXTS, LABELS, threshold)
    for dtype in ("fp32", "bf16"):  # the same weights, whatever they are computed in
        again = GLiModern.from_pretrained(folder / "model", dtype=dtype)
        found = again.predict(TEXTS, None, threshold, label_vectors=loaded)
        assert dtype == "bf16" or found == rounded(wanted)

    save_encoder(tmp_path / "labels", "bert", 40, 330)
    other = make_bi(tmp_path / "labels")
    with pytest.raises(
        ValueError, match=r"label_vectors: expected vectors from the label encoder of .*got vectors from the one of"
    ):
        other.predict(TEXT, label_vectors=loaded)
    narrow = replace(loaded, vectors=loaded.vectors[:, :16])
    with pytest.raises(ValueError, match=r"label_vectors: expected vectors of shape \[4, 32\].*got \[4, 16\]"):
        model.predict(TEXT, label_vectors=narrow)

    whole = (tmp_path / "v.safetensors").read_bytes()
    (tmp_path / "half").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="half: not a whole safetensors file"):
        LabelVectors.load(tmp_path / "half")
    with pytest.raises(ValueError, match=r"expected a file of LabelVectors\.save"):
        LabelVectors.load(folder / "model" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        LabelVectors.load(tmp_path / "none")


def test_wrong_use(model, tiny_model):
    vectors = model.encode_labels(LABELS)
    with pytest.raises(ValueError, match="encode_labels: expected a bi-encoder, got a model that reads the labels"):
        tiny_model.encode_labels(LABELS)
    with pytest.raises(ValueError, match="label_vectors: expected a bi-encoder"):
        tiny_model.predict(TEXT, label_vectors=vectors)
    with pytest.raises(TypeError, match="label_vectors: expected LabelVectors of encode_labels, got Tensor"):
        model.predict(TEXT, label_vectors=vectors.vectors)
    with pytest.raises(TypeError, match="labels: expected an iterable of strings.*got None"):
        model.predict(TEXT)
    with pytest.raises(TypeError, match="labels: expected an iterable of strings.*got the string"):
        model.encode_labels("person")
    for labels in (["person", "plaice"], [["plaice"]]):
        message = r"labels.*: expected labels of label_vectors, got 1 without a vector, \['plaice'\]"
        with pytest.raises(ValueError, match=message):
            model.predict([TEXT], labels, label_vectors=vectors)
    with pytest.warns(UserWarning, match=r"labels: expected at most 128 tokens, .* got more in 1, .*'long long"):
        model.encode_labels(["person", "long " * 200])
    assert model.predict([TEXT], [], threshold=0.0, label_vectors=vectors) == [[]]
    assert len(model.encode_labels([])) == 0
    assert model.encode_labels(label for label in LABELS).labels == tuple(LABELS)
    assert model.predict([TEXT], threshold=0.0, label_vectors=model.encode_labels([])) == [[]]


def test_descriptions_are_encoded_and_kept(model, tmp_path):
    """Under the label's name; the same description, or the name alone, chooses the vector, another is refused."""
    described = {"A": "person", "B": "machine"}
    threshold = threshold_of(model)
    wanted = model.predict(TEXTS, described, threshold)
    plain = model.predict(TEXTS, ["person", "machine"], threshold)
    same(wanted, [[{**e, "label": {"person": "A", "machine": "B"}[e["label"]]} for e in result] for result in plain])
    model.encode_labels(described).save(tmp_path / "v")
    vectors = LabelVectors.load(tmp_path / "v")
    assert vectors.labels == ("A", "B") and vectors.descriptions == described
    for labels in (None, described, ["A", "B"], {"A", "B"}, [described] * len(TEXTS), iter(["A", "B"])):
        same(model.predict(TEXTS, labels, threshold, label_vectors=vectors), wanted)
    with pytest.raises(ValueError, match=r"labels\['A'\]: expected the description encoded in label_vectors"):
        model.predict(TEXTS, {"A": "place"}, label_vectors=vectors)
    with pytest.raises(ValueError, match=r"labels\[1\]: expected labels of label_vectors, got 1 without .*\['C'\]"):
        model.predict(TEXTS[:2], [["A"], ["C"]], label_vectors=vectors)


def test_special_tokens_in_labels_are_text(model):
    """A label's vector is that of its letters, not of a token that ends a label or is masked."""
    tokenizer, backend = model.label_encoder.tokens.tokenizer, model.label_encoder.tokenizer.backend_tokenizer
    specials = {backend.token_to_id(name) for name in ("[SEP]", "[CLS]", "[PAD]")}
    first, last = tokenizer.encode("person").ids[0], tokenizer.encode("person").ids[-1]
    assert tokenizer.encode("person").ids == backend.encode("person").ids
    assert {first, last} <= specials
    assert not specials & {*tokenizer.encode("person [SEP] [PAD]").ids[1:-1]}
    assert specials & {*backend.encode("person [SEP] [PAD]").ids[1:-1]}


def test_encoding_labels_changes_no_mode(folder):
    model = make_bi(folder / "labels").train()
    model.label_encoder.encoder.eval()
    modes = [module.training for module in model.modules()]
    assert model.encode_labels(LABELS).vectors.requires_grad is False
    assert [module.training for module in model.modules()] == modes


# loading


def test_prompt_tokens_that_the_embedding_lacks(model):
    """The public package adds <<ENT>> to a bi-encoder's tokenizer, not to its embedding; here such text is text."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens(["<<ENT>>", "<<SEP>>"], special_tokens=True)
    again = GLiModern(model.config, model.encoder, tokenizer, model.label_encoder).eval()
    assert again.packer.pack([["<<ENT>>", "."]], [LABELS]).input_ids.max() < model.config.vocab_size
    assert again.predict("<<ENT>> .", LABELS, 0.0)[0]


@pytest.mark.parametrize("dtype", ["int8", "bf16", "auto"])
def test_dtypes(folder, model, dtype):
    if dtype == "int8" and not can_pack():
        pytest.skip("int8 needs vector kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights sit at the threshold, so the canary sings
        other = GLiModern.from_pretrained(folder / "model", dtype=dtype)
    wanted, got = (m.scores(m.packer.pack([WORDS], [LABELS]))[0] for m in (model, other))
    inside = torch.isfinite(wanted)
    assert (got.float() - wanted)[inside].abs().max() < 0.1 * wanted[inside].abs().max()
    assert other.check_precision([TEXT], LABELS, 0.0).max_drift < 0.1
    vectors = other.encode_labels(LABELS)
    assert vectors.fingerprint == model.label_encoder.fingerprint
    assert all_scores(other, LABELS, vectors).keys() == all_scores(model, LABELS).keys()


def test_int8_packs_both_encoders_and_asks_the_canary(folder, monkeypatch):
    if not can_pack():
        pytest.skip("int8 needs vector kernels")
    from glimodern.model import storing

    monkeypatch.setattr(storing, "LEAST_AGREEMENT", 1.01)
    with pytest.warns(UserWarning, match="expected at least 101 % agreement"):
        model = GLiModern.from_pretrained(folder / "model", dtype="int8")
    kinds = [type(m).__name__ for m in (*model.encoder.modules(), *model.label_encoder.modules())]
    assert kinds.count("PackedLinear") > 0 and kinds.count("PackedEmbedding") == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "labels_tokenizer/tokenizer.json"])
def test_a_tokenizer_of_a_larger_encoder(folder, model, tmp_path, name):
    model.save_pretrained(tmp_path / "m")
    words = json.loads((tmp_path / "m" / name).read_text())
    words["model"]["vocab"].update({f"more {i}": 5000 + i for i in range(40)})
    (tmp_path / "m" / name).write_text(json.dumps(words))
    with pytest.raises(ValueError, match=rf"m/{name}: expected at most \d+ tokens, the rows of the encoder .* got"):
        GLiModern.from_pretrained(tmp_path / "m")


def test_labels_tokenizer_missing(folder, model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    for file in (tmp_path / "m" / "labels_tokenizer").iterdir():
        file.unlink()
    assert (
        GLiModern.from_pretrained(tmp_path / "m").label_encoder is not None
    )  # by the label encoder's name, a folder here
    fields = json.loads((tmp_path / "m" / "gliner_config.json").read_text())
    (tmp_path / "m" / "gliner_config.json").write_text(json.dumps({**fields, "labels_encoder": "no/where"}))
    with pytest.raises(FileNotFoundError, match=r"no folder labels_tokenizer.*'no/where'.*copy it to"):
        GLiModern.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "gliner_config.json").write_text(
        json.dumps({**fields, "labels_encoder": "no/where", "labels_encoder_config": None})
    )
    with pytest.raises(ValueError, match=r"labels_encoder_config: expected .*'no/where'"):
        GLiModern.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("field", [{"fuse_layers": True}, {"post_fusion_schema": "l2l-l2t"}])
def test_other_kinds_of_bi_encoder(folder, model, tmp_path, field):
    model.save_pretrained(tmp_path / "m")
    fields = json.loads((tmp_path / "m" / "gliner_config.json").read_text())
    (tmp_path / "m" / "gliner_config.json").write_text(json.dumps({**fields, **field}))
    with pytest.raises(ValueError, match=f"{next(iter(field))}.*not supported"):
        GLiModern.from_pretrained(tmp_path / "m")


def test_two_pretrained_encoders(folder, tmp_path):
    """What from_encoder builds has both encoders' weights and no prompt tokens, and the public package reads it."""
    save_encoder(tmp_path / "text", "modernbert", 40, 400)
    ours = GLiModern.from_encoder(tmp_path / "text", labels_encoder=str(folder / "labels"), max_width=4).eval()
    assert ours.tokenizer.convert_tokens_to_ids("<<ENT>>") in (None, ours.tokenizer.unk_token_id)
    for part, place in ((ours.encoder, tmp_path / "text"), (ours.label_encoder.encoder, folder / "labels")):
        stored = load_file(place / "model.safetensors")
        assert all(torch.equal(part.model.state_dict()[name], stored[name]) for name in stored)
    gliner = pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    ours.save_pretrained(tmp_path / "saved")
    public = gliner.GLiNER.from_pretrained(str(tmp_path / "saved"), strict=True).eval()
    assert difference(public, ours, [WORDS, WORDS[:3]]) <= 1e-4


# training


@pytest.mark.parametrize("fused", [True, False])
def test_every_weight_that_is_used_gets_a_gradient(folder, fused):
    model = make_bi(folder / "labels", dropout=0.1).train()
    batch = model.packer.pack(
        [WORDS, [], WORDS[:2]], [LABELS[:2], ["person"], ["machine", "place"]], [[(0, 1, "person")], [], []]
    )
    assert batch.labels == ("person", "place", "machine") and batch.type_index.tolist() == [0, 1, 0, 2, 1]
    model(batch, fused=fused).backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert all("pooler" in name for name in names)
    model.freeze_encoder()
    model.train()
    assert not model.label_encoder.encoder.training and model.label_encoder.training
    model.zero_grad()
    model(batch, fused=fused).backward()
    assert all(p.grad is None for p in model.label_encoder.encoder.parameters())
    assert all(p.grad is not None for p in model.label_encoder.projection.parameters())


def test_training_saving_and_resuming(folder, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows())) + "\n")

    def arguments(output, *more):
        return [
            *("--train-data", str(data), "--dev-data", str(data), "--eval-data", str(data), "--encoder", "demo"),
            *("--labels-encoder", str(folder / "labels"), "--output-dir", str(output), "--batch-size", "8"),
            *("--lr", "1e-3", "--head-lr", "2e-3", "--eval-steps", "0", "--checkpoint-steps", "10", "--no-progress"),
            *("--hidden-size", "32", "--dropout", "0.1", "--max-steps", "20", "--batch-tokens", "300", *more),
        ]

    train(parse_train_config(arguments(tmp_path / "run")))
    whole = losses(tmp_path / "run")
    assert sum(list(whole.values())[-4:]) < 0.5 * sum(list(whole.values())[:4])
    loaded = GLiModern.from_pretrained(tmp_path / "run" / "model")
    assert loaded.config.labels_encoder == str(folder / "labels") and loaded.label_encoder is not None
    start = load_file(folder / "labels" / "model.safetensors")["encoder.layer.0.output.dense.weight"]
    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    name = "token_rep_layer.labels_encoder.model.encoder.layer.0.output.dense.weight"
    assert not torch.equal(trained[name], start)

    write = RunLog.step

    def stop_at_ten(log, step, **values):
        write(log, step, **values)
        if step == 10:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", stop_at_ten)
        with pytest.raises(Stopped):
            train(parse_train_config(arguments(tmp_path / "stopped")))
    train(parse_train_config(arguments(tmp_path / "stopped", "--resume")))
    assert losses(tmp_path / "stopped") == whole
    again = load_file(tmp_path / "stopped" / "model" / "model.safetensors")
    assert all(torch.equal(again[key], trained[key]) for key in trained)
    with pytest.raises(ValueError, match="labels_encoder: expected .*, as in the checkpoint of init_from"):
        train(
            parse_train_config(
                ["--init-from", str(tmp_path / "run" / "model"), "--labels-encoder", "x/y"]
                + ["--output-dir", str(tmp_path / "n")]
            )
        )


# the benchmark


def test_bench_labels(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    bench = importlib.import_module("bench_labels")
    monkeypatch.setattr(bench, "find_spec", lambda name: None)  # gliner's side is for machines with time
    files = ("--json", str(tmp_path / "labels.json"), "--plot", str(tmp_path / "labels.png"))
    point = ("--model", "tiny", "--counts", "1,200", "--texts", "2", "--seconds", "0.01", "--most-seconds", "60")
    monkeypatch.setattr(sys, "argv", ["bench_labels.py", *point, *files])
    bench.main()
    results = json.loads((tmp_path / "labels.json").read_text())
    assert [row["labels"] for row in results["rows"]] == [1, 200]
    assert all({bench.OURS, bench.UNI} == row["seconds"].keys() for row in results["rows"])
    assert (tmp_path / "labels.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "| 2 x 200 |" in printed and "encode_labels, 16 labels: ours" in printed
