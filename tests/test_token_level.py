"""Token-level models whole: prediction, options, batches and windows, training, files, and what is refused."""

import asyncio
import json
import warnings

import pytest
import torch
import torch.nn.functional as F

from glimodern import GLiModern
from glimodern.checkpoint.folder import to_public
from glimodern.data import load_dataset
from glimodern.inputs.words import split_words
from glimodern.inspect import inspect
from glimodern.model.async_predictor import AsyncPredictor
from glimodern.train import __main__ as train_command
from tests import bi_encoder_rows, token_rows
from tests.conftest import WORDS, make_tiny_model
from tests.token_rows import LABELS, TEXTS

THREE = ["person", "place", "machine"]
ROW = {row.cells[0]: row for row in reversed(token_rows.ROWS)}  # the first of each kind


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """gliner's model with one encoder and `max_width` 1, and ours of its files."""
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    folder = tmp_path_factory.mktemp("one")
    public = token_rows.public_model(ROW["NuNER-Zero, gliner-multitask"], folder)
    return public, GLiModern.from_pretrained(folder / "public", dtype="fp32")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same with two encoders."""
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    folder = tmp_path_factory.mktemp("two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gliner: resizing embeddings is not supported
        public = token_rows.public_model(ROW["two encoders"], folder)
    return public, GLiModern.from_pretrained(folder / "public", dtype="fp32")


@pytest.fixture(scope="module")
def tiny():
    """A model of a random encoder whose head finds a few entities."""
    return spread(make_tiny_model(dropout=0.0, max_width=4, span_mode="token_level"))


def spread(model):
    """Scale the head's logits as `token_rows.spread_logits` does."""
    with torch.no_grad():
        model.head.word.weight.mul_(5.0)
        (logits,) = model.scores(model.packer.pack([WORDS], [THREE]))
        flat, last = logits.flatten(0, 1), model.head.pair[3]
        scale = 1.0 / flat.std(0)
        last.weight.mul_(scale[:, None])
        last.bias.copy_((last.bias - flat.mean(0)) * scale + torch.tensor([-0.3, -0.3, 1.0]))
    return model


def plain(results):
    return [[(e["start"], e["end"], e["label"], e["score"]) for e in entities] for entities in results]


# prediction


def test_entities_may_be_longer_than_max_width(one):
    public, ours = one
    assert ours.config.max_width == 1
    assert token_rows.same_entities(public, ours) > 3


def test_given_spans_all_scores_and_vectors_are_gliners(one):
    public, ours = one
    found = ours.predict(TEXTS, LABELS, 0.4, scores="all", vectors=True, long_texts="cut")
    theirs = public.inference(list(TEXTS), LABELS, threshold=0.4, return_vectors=True)
    assert [[(e["start"], e["end"], e["label"]) for e in text] for text in found] == [
        [(e["start"], e["end"], e["label"]) for e in text] for text in theirs
    ] and any(found)
    for text, wanted in zip(found, theirs, strict=True):
        for entity, their in zip(text, wanted, strict=True):
            assert entity["scores"][entity["label"]] == entity["score"]
            torch.testing.assert_close(
                torch.from_numpy(entity["vector"]), torch.as_tensor(their["vector"]), rtol=1e-4, atol=1e-5
            )
    spans = [[(e["start"], e["end"]) for e in text] for text in theirs]
    given = ours.predict(TEXTS, LABELS, 0.2, spans=spans, long_texts="cut")
    wanted = public.inference(
        list(TEXTS), LABELS, threshold=0.2, input_spans=[[{"start": s, "end": e} for s, e in text] for text in spans]
    )
    assert [[(e["start"], e["end"], e["label"]) for e in text] for text in given] == [
        [(e["start"], e["end"], e["label"]) for e in text] for text in wanted
    ]


def test_vectors_of_labels(two):
    public, ours = two
    vectors = ours.encode_labels(LABELS)
    assert bi_encoder_rows.same_entities(public, ours, 0.4)
    for labels in (LABELS, LABELS[::-1][:2]):
        first, second = (ours.predict(TEXTS, labels, 0.4, label_vectors=v) for v in (None, vectors))
        assert plain(first) == plain(second) and any(first)


def test_a_texts_scores_have_the_same_bits_in_any_batch(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    model = GLiModern.from_pretrained(tmp_path, dtype="fp32")
    texts = [" ".join((WORDS * 2)[:n]) for n in (18, 3, 31, 9)]
    together = model.predict(texts, THREE, 0.5)
    alone = [entities for text in texts for entities in model.predict([text], THREE, 0.5, batch_tokens=16)]
    assert any(together)
    if model.packed_dtype is not None:
        assert plain(together) == plain(alone)


def test_thresholds_of_labels_and_groups(tiny):
    text = " ".join(WORDS)
    low = tiny.predict(text, THREE, 0.3, flat=False, multi_label=True)[0]
    by_label = {"person": 0.3, "place": 0.6, "machine": 1.0}
    kept = tiny.predict(text, THREE, by_label, flat=False, multi_label=True)[0]
    wanted = [e for e in low if e["score"] > by_label[e["label"]]]
    assert {(e["start"], e["end"], e["label"]) for e in kept} >= {(e["start"], e["end"], e["label"]) for e in wanted}
    assert {e["label"] for e in kept} <= {"person", "place"}
    one_each = tiny.predict(text, THREE, 0.3, labels_per_prompt=1, flat=False, multi_label=True)[0]
    asked_alone = [tiny.predict(text, [label], 0.3, flat=False, multi_label=True)[0] for label in THREE]
    assert {(e["start"], e["end"], e["label"]) for e in one_each} == {
        (e["start"], e["end"], e["label"]) for found in asked_alone for e in found
    }


def test_windows_of_a_long_text(tiny):
    text = " ".join(WORDS * 6)
    found = tiny.predict(text, THREE, 0.5, window=20, context=4)[0]
    assert found.windows > 3 and found
    assert all(len(split_words(e["text"])) <= 20 for e in found)
    assert all(a["end"] < b["start"] for a, b in zip(found, found[1:], strict=False))


def test_concurrent_calls_are_answered_as_predict_does(tiny):
    texts = [" ".join((WORDS * 2)[:n]) for n in (18, 3, 31)]

    async def ask():
        async with AsyncPredictor(tiny) as predictor:
            calls = [predictor.predict(texts, THREE, t, flat=flat) for t in (0.3, 0.5) for flat in (True, False)]
            return await asyncio.gather(*calls)

    wanted = [tiny.predict(texts, THREE, t, flat=flat) for t in (0.3, 0.5) for flat in (True, False)]
    assert [[(e["start"], e["end"], e["label"]) for text in call for e in text] for call in asyncio.run(ask())] == [
        [(e["start"], e["end"], e["label"]) for text in call for e in text] for call in wanted
    ]


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_other_dtypes(dtype, one):
    _, exact = one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # int8 of random weights
        try:
            model = GLiModern.from_pretrained(exact.source[1], dtype=dtype)
        except ValueError as error:
            pytest.skip(str(error))
    report = model.check_precision(TEXTS, LABELS, 0.4)
    assert report.max_drift < 0.2 and report.mean_drift < 0.02


# training


GOLD = [[(0, 1, "person"), (3, 4, "person"), (6, 6, "place"), (7, 15, "machine")], []]


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0, "class_balance": 0.75, "reduction": "mean"}])
def test_loss_and_gradients_are_gliners(options, tmp_path):
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    public = token_rows.public_model(ROW["one encoder"], tmp_path)
    ours = GLiModern.from_pretrained(tmp_path / "public", trainable=True)
    texts = [WORDS, WORDS[:3]]
    collator = public.create_collator()
    rows = [{"tokenized_text": words, "ner": [list(e) for e in gold]} for words, gold in zip(texts, GOLD, strict=True)]
    batch = public.collate_batch(rows, THREE, collator)
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and name != "labels"}
    logits = public.model(**inputs).logits
    lengths, ids = torch.tensor([len(words) for words in texts]), {label: i for i, label in enumerate(THREE, 1)}
    labels = public.data_processor.create_labels(
        {"tokens": texts, "seq_length": lengths, "classes_to_id": [ids, ids], "entities": GOLD}
    )
    mask = torch.arange(logits.shape[1])[None, :] < lengths[:, None]
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    )  # gliner's, without its epsilon
    if options:
        right = torch.where(labels > 0, logits.sigmoid(), 1.0 - logits.sigmoid())
        weight = torch.where(labels > 0, options["class_balance"], 1.0 - options["class_balance"])
        cross_entropy = cross_entropy * (1.0 - right) ** options["focal_gamma"] * weight
    wanted = cross_entropy[mask].sum() / (mask.sum() * len(THREE) if options else 1.0)
    with torch.no_grad():
        named = {"gamma": options.get("focal_gamma", 0.0), "alpha": options.get("class_balance", -1.0)}
        theirs = public.model.loss(
            logits, labels, torch.ones(2, len(THREE)), mask, **named, reduction=options.get("reduction", "sum")
        )
    torch.testing.assert_close(wanted, theirs, rtol=1e-4, atol=1e-4)
    wanted.backward()
    gradients = {name: p.grad for name, p in public.model.named_parameters() if p.grad is not None}
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    packed = ours.packer.pack(texts, [THREE] * 2, GOLD)
    assert packed.entities_lost == 0
    for fused in (True, False):
        ours.zero_grad()
        loss = ours(packed, fused=fused, **options)
        loss.backward()
        torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=1e-5, atol=1e-5)
        got = to_public({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
        for name, gradient in gradients.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=2e-6 * scale, msg=name)


def test_dropout_is_the_same_in_both_forms_and_seeded():
    model = make_tiny_model(dropout=0.4, span_mode="token_level").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # of the encoder
    batch = model.packer.pack([WORDS, WORDS[:2]], [THREE, ["place"]], GOLD)
    losses = []
    for seed, fused in ((3, True), (3, False), (4, True)):
        torch.manual_seed(seed)
        losses.append(model(batch, fused=fused))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(losses[0], losses[2], rtol=1e-4)
    assert not torch.isclose(losses[0], model.eval()(batch), rtol=1e-4)


def sentences():
    """Entities of one, two and nine words; one in six places is not marked, for a calibration to have a miss."""
    names, long = ["Ada Lovelace", "Charles Babbage", "Alan"], "the very large and quite old engine of iron".split()
    rows = []
    for i in range(60):
        name = names[i % 3].split()
        words = [*name, "built", *long, "in", "London", "."]
        gold = [[0, len(name) - 1, "person"], [len(name) + 1, len(name) + 9, "machine"]]
        place = [[len(words) - 2, len(words) - 2, "place"]] if i % 6 < 5 else []
        rows.append({"tokenized_text": words, "ner": gold + place})
    return rows


def test_a_run_learns_entities_longer_than_max_width_and_gliner_loads_it(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, sentences())) + "\n")
    files = [part for flag in ("--train-data", "--dev-data", "--eval-data") for part in (flag, str(data))]
    flags = (
        "--encoder demo --span-mode token_level --max-width 3 --max-steps 60 --batch-size 8 --lr 2e-3 --head-lr 2e-3"
    )
    train_command.main(
        [*files, *flags.split(), "--dropout", "0.1", "--eval-steps", "60", "--no-progress", "--output-dir",
         str(tmp_path / "run")]
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    model = GLiModern.from_pretrained(tmp_path / "run" / "model", dtype="fp32")
    assert (model.config.span_mode, model.config.max_width) == ("token_level", 3)
    text = " ".join(sentences()[0]["tokenized_text"])
    found = model.predict(text, THREE)
    assert [(e["text"], e["label"]) for e in found[0]] == [
        ("Ada Lovelace", "person"), ("the very large and quite old engine of iron", "machine"), ("London", "place")
    ], report  # fmt: skip
    assert model.calibrate(load_dataset(data)).threshold_of("machine") < 1.0
    assert any(model.predict(text, THREE, "calibrated"))
    gliner = pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    public = gliner.GLiNER.from_pretrained(str(tmp_path / "run" / "model"), strict=True).eval()
    assert type(public).__name__ == "UniEncoderTokenGLiNER"
    theirs = public.inference([text], THREE)
    assert [(e["text"], e["label"]) for e in theirs[0]] == [(e["text"], e["label"]) for e in found[0]]


# files, and what is refused


def test_a_model_for_inference_is_saved_as_it_was(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "first")
    GLiModern.from_pretrained(tmp_path / "first", dtype="fp32").save_pretrained(tmp_path / "second")
    again = GLiModern.from_pretrained(tmp_path / "second", trainable=True)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in tiny.state_dict().items())


def changed(folder, **fields):
    file = folder / "gliner_config.json"
    stored = json.loads(file.read_text())
    stored.update(fields)
    file.write_text(json.dumps({name: value for name, value in stored.items() if value is not ...}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"span_mode": ..., "model_type": "gliner_uni_encoder_token"},
            "gliner_config.json: span_mode: expected 'token_level', of which model_type 'gliner_uni_encoder_token' "
            "is, got none; add the field, or correct it",
        ),
        (
            {"span_mode": "markerV0"},
            r"model.safetensors: span_mode: expected the weights of a span head \(span_rep_layer\.\*\) by "
            r"gliner_config.json, got those of a token-level head \(scorer\.\*\)",
        ),
        ({"represent_spans": True}, r"gliner_config.json: represent_spans: expected False, got True: not supported"),
        ({"hidden_size": 48}, r"model.safetensors: hidden_size: expected a head of width 48 .*, got 32"),
        ({"span_mode": "token-level"}, r"gliner_config.json: span_mode: expected .*'token_level', got 'token-level'"),
    ],
)
def test_a_bad_config_is_one_line(fields, message, tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        GLiModern.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_a_span_head_are_refused(tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    changed(tmp_path, span_mode="token_level")
    with pytest.raises(ValueError, match=r"expected the weights of a token-level head .* got those of a span head"):
        GLiModern.from_pretrained(tmp_path)


def test_a_tensor_that_is_missing_is_named(tmp_path, tiny):
    from safetensors.torch import load_file, save_file

    tiny.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["scorer.out_mlp.3.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing \['scorer.out_mlp.3.bias'\]"):
        GLiModern.from_pretrained(tmp_path)


def test_inspect_refuses_and_says_why(tiny):
    with pytest.raises(ValueError, match="model: expected a span model, whose spans can be ranked, got span_mode"):
        inspect(tiny, " ".join(WORDS), THREE)
