"""`glimodern.export`: the folded model as an ONNX graph, against GLiModern and in the readers of the public format."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from encoder_rows import LABELS, ROWS, TEXTS, _train, config_of, make_tokenizer  # noqa: E402

from glimodern import GLiModern, cli  # noqa: E402
from glimodern.export import __main__ as command  # noqa: E402
from glimodern.export.graph import graphs_of  # noqa: E402
from glimodern.export.layouts import METADATA, OPSETS, inputs_of, output_of  # noqa: E402
from glimodern.export.scores import Scores  # noqa: E402
from glimodern.export.session import Graph  # noqa: E402
from glimodern.export.trace import describe, trace  # noqa: E402
from glimodern.export.write import export_model  # noqa: E402
from tests.bi_encoder_rows import save_encoder  # noqa: E402
from tests.conftest import clear_threshold, make_tiny_model  # noqa: E402

LAYOUTS = ("padded", "packed")
# of other lengths, numbers of texts and numbers of labels than the two texts that are traced
BATCHES = (TEXTS, TEXTS[1:2], [TEXTS[1] * 3, ["x"], TEXTS[0], TEXTS[2] * 2, TEXTS[3]])


def scores_of(model, layout, opset=19):
    """The traced graphs in ONNX Runtime."""
    import onnxruntime

    opened = []
    for graph in graphs_of(model, layout):
        description = describe(model, graph.part, "fp32")
        session = onnxruntime.InferenceSession(trace(graph, description, opset).SerializeToString())
        (output,) = output_of(graph.part, model.config)
        opened.append(Graph(session, description, output, Path("model.onnx")))
    labels = None if model.label_encoder is None else model.label_encoder.tokens
    return Scores(opened[0], model.packer.widest_entity, labels, opened[1] if opened[1:] else None, 8)


def assert_same_logits(model, layout, batches=BATCHES, opset=19, tolerance=1e-5):
    scores = scores_of(model, layout, opset)
    for texts in batches:
        labels = [[*LABELS, "thing or so"][i % 2 : 2 + i % 3] for i in range(len(texts))]
        got = scores.logits(model.packer.pack_arrays(model.packer.tokenize(texts), labels))
        with torch.no_grad():
            wanted = [text.numpy() for text in model.scores(model.packer.pack(texts, labels))]
        longest, most = max(map(len, wanted)), max(map(len, labels))
        inner = (most, 3) if model.config.any_width else (model.config.max_width, most)
        assert got.shape == (len(texts), longest, *inner)
        axis = 1 if model.config.any_width else 2  # of the types
        for one, other in zip(got, wanted, strict=True):
            words, types = len(other), other.shape[axis]
            own, beyond = np.split(one[:words], [types], axis)
            np.testing.assert_allclose(own, other, rtol=0, atol=tolerance)
            assert np.isneginf(one[words:]).all() and np.isneginf(beyond).all()


def model_of(row):
    torch.manual_seed(0)
    tokenizer = make_tokenizer(row.tokenizer)
    return GLiModern.from_encoder_config(config_of(row, tokenizer), tokenizer, dropout=0.0, max_width=4)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_encoder(row):
    model = model_of(row).eval().requires_grad_(False)
    layout = LAYOUTS[ROWS.index(row) % 2]  # the encoder sees packed rows in both
    assert_same_logits(model, layout)


# Pooling and both layouts are in test_onnx_predictor.py too, two encoders in both layouts there and in
# test_onnx_int8.py.
HEADS = {
    "marker, last, an LSTM": ("padded", dict(span_mode="marker", subtoken_pooling="last")),
    "ffn, mean, a projection": ("padded", dict(span_mode="ffn", subtoken_pooling="mean", hidden_size=24)),
    "max, type vector at the label": ("packed", dict(subtoken_pooling="max", embed_ent_token=False)),
    "words, an LSTM": ("packed", dict(span_mode="token_level")),
    "words, mean, a projection, type vector at the label": (
        "padded",
        dict(span_mode="token_level", subtoken_pooling="mean", embed_ent_token=False, hidden_size=24),
    ),
    "two encoders, max, an LSTM that is not run": ("padded", dict(labels_encoder="bert", subtoken_pooling="max")),
    "two encoders, ffn, a projection": ("packed", dict(labels_encoder="mpnet", span_mode="ffn", hidden_size=24)),
    "two encoders, words": ("padded", dict(labels_encoder="roberta", span_mode="token_level")),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head(name, tmp_path):
    from glimodern.network.word_lstm import WordLstm

    layout, head = HEADS[name]
    if kind := head.get("labels_encoder"):
        save_encoder(tmp_path, kind, 48, 330)
        head = {**head, "labels_encoder": str(tmp_path)}
    model = make_tiny_model(dropout=0.0, max_width=3, **head).requires_grad_(False)
    if "LSTM" in name:
        torch.manual_seed(1)
        model.rnn = WordLstm(model.config.hidden_size, 1).requires_grad_(False)
    assert_same_logits(model, layout)


@pytest.mark.parametrize("opset", (OPSETS[0], OPSETS[-1]))
def test_opsets(tiny_model, opset):
    assert_same_logits(tiny_model, "padded", BATCHES[:1], opset)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_word_without_tokens_is_a_zero_vector(layout):
    (model,) = (model_of(row).eval().requires_grad_(False) for row in ROWS if row.name == "BERT")
    texts = [["Ada", "\u200b", "met", "Charles"], ["London", "."]]
    assert (model.packer.pack(texts, [LABELS] * 2).word_index < 0).any()
    assert_same_logits(model, layout, [texts])


@pytest.mark.parametrize("labels_encoder", (None, "labels"))
@pytest.mark.parametrize("span_mode", ("markerV0", "token_level"))
def test_names_are_those_of_the_public_export(tiny_model, span_mode, labels_encoder):
    gliner = pytest.importorskip("gliner.model", reason="needs the extra peers")
    config = replace(tiny_model.config, span_mode=span_mode, labels_encoder=labels_encoder)
    name = ("Uni" if labels_encoder is None else "Bi") + "Encoder" + ("Token" if config.any_width else "Span")
    model_class = getattr(gliner, f"{name}GLiNER")
    spec = model_class._get_onnx_input_spec(object.__new__(model_class))
    axes = inputs_of("padded", config)
    assert spec["input_names"] == list(axes) and spec["output_names"] == list(output_of("padded", config))
    assert {name: dict(enumerate(names)) for name, names in axes.items()} == {
        name: spec["dynamic_axes"][name] for name in axes
    }


# folders


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny BERT that has learnt TEXTS."""
    (row,) = (row for row in ROWS if row.name == "BERT")
    model, folder = model_of(row), tmp_path_factory.mktemp("checkpoint") / "model"
    for _ in range(4):
        _train(model)
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    command.main([str(checkpoint), str(folder)])
    return folder


def test_the_command_says_what_it_wrote(checkpoint, tmp_path, capsys):
    command.main([str(checkpoint), str(tmp_path / "out"), "--layout", "packed", "--opset", "18"])
    said = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'model.onnx'}" in said.replace("\n", "") and "packed, opset 18" in said
    assert "100.0 % agreement" in said
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "gliner_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_an_older_export_is_replaced(checkpoint, exported, tmp_path):
    for layout in ("packed", "padded"):
        export_model(checkpoint, tmp_path / "out", layout=layout)
    import onnx

    (entry,) = onnx.load(tmp_path / "out" / "model.onnx").metadata_props
    assert entry.key == METADATA and json.loads(entry.value)["part"] == "padded"


# readers


PUBLIC = [" ".join(words) for words in (*TEXTS, TEXTS[1] + TEXTS[0])]


def found(entities):
    return [[(e["start"], e["end"], e["label"]) for e in text] for text in entities]


@pytest.mark.parametrize("batch_size", (1, 8))
def test_gliner_reads_it(checkpoint, exported, batch_size):
    gliner = pytest.importorskip("gliner", reason="needs the extra peers")
    public = gliner.GLiNER.from_pretrained(str(exported), load_onnx_model=True)
    wanted = GLiModern.from_pretrained(checkpoint, dtype="fp32").predict(PUBLIC, LABELS, 0.5)
    got = public.inference(PUBLIC, LABELS, threshold=0.5, batch_size=batch_size)
    assert any(wanted) and found(got) == found(wanted)
    for ours, theirs in zip(wanted, got, strict=True):
        assert [e["score"] for e in theirs] == pytest.approx([e["score"] for e in ours], abs=1e-5)


@pytest.mark.parametrize(
    ("span_mode", "labels_encoder"), [("token_level", None), ("markerV0", "labels"), ("token_level", "labels")]
)
def test_gliner_reads_other_heads(tmp_path, span_mode, labels_encoder):
    """Words, and two encoders, with random weights; one list of labels, or one for each text."""
    gliner = pytest.importorskip("gliner", reason="needs the extra peers")
    if labels_encoder is not None:
        save_encoder(tmp_path / "labels", "bert", 48, 330)
        labels_encoder = str(tmp_path / "labels")
    model = make_tiny_model(dropout=0.0, span_mode=span_mode, labels_encoder=labels_encoder)
    model.save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "onnx")
    public = gliner.GLiNER.from_pretrained(str(tmp_path / "onnx"), load_onnx_model=True)
    threshold = clear_threshold(model, PUBLIC, LABELS)
    for labels in (LABELS, [LABELS[: 1 + i % 2] for i in range(len(PUBLIC))]):
        wanted = model.predict(PUBLIC, labels, threshold)
        got = public.inference(PUBLIC, labels, threshold=threshold, batch_size=3)
        assert any(wanted) and found(got) == found(wanted)


FAST_GLINER = os.environ.get("GLIMODERN_FAST_GLINER_PYTHON", "")
READ = """
import json, sys
from fast_gliner import FastGLiNER
folder, texts, labels = json.loads(sys.argv[1])
print(json.dumps(FastGLiNER.from_pretrained(folder).predict_entities(texts, labels)))
"""


@pytest.mark.skipif(not FAST_GLINER, reason="GLIMODERN_FAST_GLINER_PYTHON names no interpreter with fast_gliner")
def test_fast_gliner_reads_it(checkpoint, exported):
    arguments = json.dumps([str(exported), PUBLIC, LABELS])
    run = subprocess.run([FAST_GLINER, "-c", READ, arguments], capture_output=True, text=True, check=True)
    wanted = GLiModern.from_pretrained(checkpoint, dtype="fp32").predict(PUBLIC, LABELS, 0.5)
    assert any(wanted) and found(json.loads(run.stdout.splitlines()[-1])) == found(wanted)


# bad input


def test_a_folder_with_other_files(checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^out: expected an empty folder or an older export, got .* with notes\.txt;"):
        export_model(checkpoint, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_links_to_folders_stay_as_they_are(folders_of_a_user, checkpoint, tmp_path):
    """The name is one that an export of a bi-encoder writes into, and that another export empties."""
    (tmp_path / "out" / "labels_tokenizer").symlink_to(folders_of_a_user)
    with pytest.raises(ValueError, match=r"^out: expected .* with labels_tokenizer;"):
        export_model(checkpoint, tmp_path / "out")
    assert (folders_of_a_user / "tokenizer.json").read_text() == "of somebody"


@pytest.fixture
def folders_of_a_user(exported, tmp_path):
    """A folder with a tokenizer, and an export in `tmp_path / "out"`."""
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokenizer.json").write_text("of somebody")
    return tmp_path / "mine"


def test_the_label_graph_of_somebody(checkpoint, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out" / "labels.onnx").write_text("of somebody")
    with pytest.raises(ValueError, match=r"^out: expected .* with labels\.onnx;"):
        export_model(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "labels.onnx").read_text() == "of somebody"


def test_the_folder_of_a_checkpoint(checkpoint):
    before = sorted((file.name, file.stat().st_mtime_ns) for file in checkpoint.iterdir())
    with pytest.raises(ValueError, match=r"^out: .* with .*model\.safetensors;"):
        export_model(checkpoint, checkpoint)
    assert sorted((file.name, file.stat().st_mtime_ns) for file in checkpoint.iterdir()) == before


@pytest.mark.parametrize("name", ["calibration.json", "tokenizer.json", "model.onnx", "gliner_config.json"])
def test_files_of_others_stay(checkpoint, tmp_path, name):
    """Whatever has the name of a file that an export writes, but was not written by one."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("of somebody")
    with pytest.raises(ValueError, match=f"^out: expected an empty folder or an older export, got .* with {name};"):
        export_model(checkpoint, folder)
    assert {file.name: file.read_text() for file in folder.iterdir()} == {name: "of somebody"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, r"^dtype: expected one of 'fp32', 'int8', got 'bf16'$"),
        ({"opset": "19"}, r"^opset: expected 18 to 20, got '19';"),
        ({"opset": 19.0}, r"^opset: expected 18 to 20, got 19\.0;"),
        ({"opset": 11}, r"^opset: expected 18 to 20, got 11; the graph needs operators of opset 18"),
        ({"opset": 21}, r"^opset: expected 18 to 20, got 21;"),
        ({"layout": "flat"}, r"^layout: expected one of 'padded', 'packed', got 'flat'$"),
    ],
)
def test_bad_options(checkpoint, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_model(checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("glimodern.export.write._LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(ValueError, match="expected an encoder whose graph computes what GLiModern computes, got 'bert"):
        export_model(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, dtype, value):
    """int8 would store a row of NaN as one of zeros."""
    model = make_tiny_model(dropout=0.0)
    with torch.no_grad():
        model.encoder.model.embeddings.tok_embeddings.weight[7] = value
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"tensor encoder\..*tok_embeddings.weight: expected finite weights, got NaN"):
        export_model(tmp_path / "model", tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_one_line_on_the_command_line(checkpoint, tmp_path):
    arguments = [sys.executable, "-m", "glimodern.export", str(checkpoint), str(tmp_path / "out"), "--opset", "9"]
    run = subprocess.run(arguments, capture_output=True, text=True)
    assert run.returncode == cli.ERROR and run.stderr.startswith("error: opset: ") and run.stderr.count("\n") == 1


def test_an_encoder_that_cannot_compute_padded_texts():
    tokenizer = make_tokenizer("wordpiece")
    sizes = dict(hidden_size=16, num_hidden_layers=1, intermediate_size=16, max_position_embeddings=160)
    config = dict(model_type="fnet", vocab_size=len(tokenizer), **sizes)
    model = GLiModern.from_encoder_config(config, tokenizer, max_width=4).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="^encoder: expected one that takes an attention mask"):
        scores_of(model, "padded")
