"""OnnxPredictor: the results of GLiModern from an exported folder, in a process without torch."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern import reference
from glimodern.inference.greedy import select_in_python
from tests.bi_encoder_rows import save_encoder
from tests.conftest import WORDS, clear_threshold, make_tiny_model

LABELS = ["person", "place", "machine"]
TEXTS = [" ".join(WORDS), "Ada met Charles .", "", "London", " ".join(WORDS * 12)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=120), st.booleans(), st.booleans())
def test_the_search_in_python_equals_the_oracle(spans, flat, multi_label):
    start = torch.tensor([first for first, _ in spans], dtype=torch.int64)
    end = start + torch.tensor([width for _, width in spans], dtype=torch.int64)
    wanted = reference.select_spans(start, end, flat=flat, multi_label=multi_label)
    assert select_in_python(start.numpy(), end.numpy(), flat, multi_label).tolist() == wanted.tolist()


pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from glimodern import GLiModern, OnnxPredictor  # noqa: E402
from glimodern.data.calibration import Calibration  # noqa: E402
from glimodern.export.write import export_model  # noqa: E402

HEADS = {
    "spans": {"subtoken_pooling": "mean"},
    "tokens": {"span_mode": "token_level"},
    "two encoders": {"labels_encoder": "labels"},
    "two encoders, tokens": {"labels_encoder": "labels", "span_mode": "token_level"},
}
EXPORTS = [  # each head in one layout at least, and each layout with and without prompts
    ("spans", "padded"), ("spans", "packed"), ("tokens", "packed"), ("two encoders", "packed"),
    ("two encoders, tokens", "padded"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints by head, and their exports by head and layout."""
    folder = tmp_path_factory.mktemp("models")
    save_encoder(folder / "labels", "bert", 48, 330)
    for name, head in HEADS.items():
        options = {**head, "labels_encoder": str(folder / "labels")} if "labels_encoder" in head else head
        make_tiny_model(dropout=0.0, max_width=6, **options).save_pretrained(folder / name)
    for name, layout in EXPORTS:
        export_model(folder / name, folder / f"{name}, {layout}", layout=layout)
    return folder


@pytest.fixture(scope="module")
def models(folders):
    """The checkpoints, each with a threshold that separates its scores, by head."""
    loaded = {name: GLiModern.from_pretrained(folders / name, dtype="fp32") for name in HEADS}
    return {name: (model, clear_threshold(model, TEXTS, LABELS)) for name, model in loaded.items()}


@pytest.fixture(scope="module", params=EXPORTS, ids=", ".join)
def export(request):
    """Head and layout of an export."""
    return request.param


@pytest.fixture(scope="module")
def model(models, export):
    return models[export[0]][0]


@pytest.fixture(scope="module")
def threshold(models, export):
    return models[export[0]][1]


@pytest.fixture(scope="module")
def exported(folders, export):
    return OnnxPredictor.from_pretrained(folders / ", ".join(export), threads=1)


def assert_same(got, wanted):
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert [(e["start"], e["end"], e["text"], e["label"]) for e in ours] == [
            (e["start"], e["end"], e["text"], e["label"]) for e in theirs
        ]
        assert [e["score"] for e in ours] == pytest.approx([e["score"] for e in theirs], abs=1e-5)
        assert (ours.words_cut, ours.windows) == (theirs.words_cut, theirs.windows)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"flat": False}, {"flat": False, "multi_label": True}, {"top_k": 2}, {"batch_tokens": 40},
        {"window": 16, "context": 4}, {"window": "sentence"}, {"labels_per_prompt": 1},
    ],
    ids=str,
)  # fmt: skip
def test_predict_finds_what_glimodern_finds(exported, model, threshold, options):
    wanted = model.predict(TEXTS, LABELS, threshold, **options)
    assert any(wanted) and wanted[4].windows > 1
    assert_same(exported.predict(TEXTS, LABELS, threshold, **options), wanted)


def test_long_texts_that_are_cut(exported, model, threshold):
    with pytest.warns(UserWarning, match="words at their ends were not read"):
        got = exported.predict(TEXTS, LABELS, threshold, long_texts="cut")
    with pytest.warns(UserWarning, match="words at their ends were not read"):
        wanted = model.predict(TEXTS, LABELS, threshold, long_texts="cut")
    assert_same(got, wanted)
    with pytest.raises(ValueError, match=r"^texts\[4\]: expected at most"):
        exported.predict(TEXTS, LABELS, long_texts="error")


def test_labels_and_thresholds_of_each_text(exported, model, threshold):
    labels = [LABELS, ["place"], LABELS[:2], {"person": "name of a person"}, LABELS[1:]]
    thresholds = [threshold, 0.0, {"person": threshold, "*": 0.0}, 1.0, threshold]
    assert_same(exported.predict(TEXTS, labels, thresholds), model.predict(TEXTS, labels, thresholds))


def test_a_stream_is_answered_in_order(exported, model, threshold):
    stream = exported.predict(iter(TEXTS * 3), LABELS, threshold, batch_tokens=64)
    assert not isinstance(stream, list)
    assert_same(list(stream), model.predict(TEXTS * 3, LABELS, threshold))


def test_given_spans_and_all_scores(exported, model):
    spans = [[(0, 12), (17, 32)], [(0, 3)], [], [(0, 6)], [(0, 12), (36, 42)]]
    for options in ({"spans": spans}, {"scores": "all"}, {"spans": spans, "scores": "all"}):
        got, wanted = (one.predict(TEXTS, LABELS, 0.3, **options) for one in (exported, model))
        assert any(wanted)
        assert_same(got, wanted)
        for ours, theirs in zip(sum(got, []), sum(wanted, []), strict=True):
            assert ours.get("scores", {}) == pytest.approx(theirs.get("scores", {}), abs=1e-5)


def test_texts_given_as_words(exported, model, threshold):
    texts = [text.split() for text in TEXTS]
    got, wanted = (one.predict_words(texts, LABELS, threshold=threshold) for one in (exported, model))
    assert [[entity[:3] for entity in one.entities] for one in got] == [
        [entity[:3] for entity in one.entities] for one in wanted
    ]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.predict(7, LABELS), TypeError, "^texts: expected a string"),
        (lambda m: m.predict("a", "person"), TypeError, "^labels: expected an iterable"),
        (lambda m: m.predict("a", LABELS, 2.0), ValueError, r"^threshold: expected a probability in \[0, 1\], got 2"),
        (lambda m: m.predict("a", LABELS, "calibrated"), ValueError, "^threshold: expected a calibrated model"),
        (lambda m: m.predict("a", LABELS, vectors=True), ValueError, "^vectors: expected False, got True; an exported"),
        (lambda m: m.predict("a", LABELS, label_vectors=3), ValueError, "^label_vectors: expected None, got vectors"),
        (lambda m: m.predict("a", LABELS, batch_tokens="all"), ValueError, "^batch_tokens: expected a number of tok"),
        (lambda m: m.predict("a", LABELS, windows=3), TypeError, "windows is called window here"),
        (lambda m: m.predict("a", [""]), ValueError, r"^labels\[0\]: expected a name such as 'person', got an empty"),
    ],
)
def test_bad_arguments(exported, call, error, message):
    with pytest.raises(error, match=message):
        call(exported)


def test_no_labels_find_nothing(exported):
    assert exported.predict(TEXTS, []) == [[]] * len(TEXTS)
    assert exported.predict(TEXTS[:2], [[], LABELS], 0.0)[0] == []


def test_entities_longer_than_max_width(folders, models):
    model, _ = models["tokens"]
    exported = OnnxPredictor.from_pretrained(folders / "tokens, packed", threads=1)
    got, wanted = (one.predict(TEXTS[:1], LABELS, 0.0, flat=False, multi_label=True) for one in (exported, model))
    assert_same(got, wanted)
    assert max(len(entity["text"].split()) for entity in got[0]) == len(WORDS) > 6


def test_a_label_that_does_not_fit(folders):
    prompts, two = (OnnxPredictor.from_pretrained(folders / name) for name in ("spans, padded", "two encoders, packed"))
    with pytest.raises(ValueError, match="^labels: 1 label does not fit the prompt"):
        prompts.predict("a", ["x" * 999])
    with pytest.warns(UserWarning, match="^labels: expected at most 128 tokens, the label encoder's limit, got more"):
        two.predict("a", ["x" * 999])


class Counting:
    """A session that counts the labels that it encodes."""

    def __init__(self, session):
        self.session, self.labels = session, 0

    def run(self, outputs, feed):
        self.labels += len(feed["cu_seqlens"]) - 1
        return self.session.run(outputs, feed)


def test_a_label_is_encoded_once_a_call(folders, models):
    model, threshold = models["two encoders"]
    exported = OnnxPredictor.from_pretrained(folders / "two encoders, packed", threads=1)
    counting = Counting(exported._label_graph.session)
    exported._label_graph = exported._label_graph._replace(session=counting)
    many = [*LABELS, *(f"kind {i} of thing" for i in range(300))]  # more tokens than are encoded at a time
    labels = [many, LABELS, many, many[::-1], many[5:]]
    assert_same(exported.predict(TEXTS, labels, threshold, batch_tokens=32), model.predict(TEXTS, labels, threshold))
    assert counting.labels == len(many)


def test_calibrated_thresholds_travel(folders, tmp_path):
    model = GLiModern.from_pretrained(folders / "spans", dtype="fp32")
    from glimodern.data import Dataset, Example

    examples = [Example(WORDS, [(0, 1, "person"), (6, 6, "place")])] * 6
    calibration = model.calibrate(Dataset("two types", examples))
    model.save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "onnx")
    exported = OnnxPredictor.from_pretrained(tmp_path / "onnx")
    assert isinstance(calibration, Calibration) and exported.calibration == calibration
    assert_same(exported.predict(TEXTS, LABELS[:2], "calibrated"), model.predict(TEXTS, LABELS[:2], "calibrated"))
    other = calibration.to_json().replace(calibration.fingerprint, "0" * len(calibration.fingerprint))
    (tmp_path / "onnx" / "calibration.json").write_text(other)
    with pytest.raises(ValueError, match=r"calibration\.json: fingerprint: expected "):
        OnnxPredictor.from_pretrained(tmp_path / "onnx")


# without torch

PROGRAM = """
import json, sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises
from glimodern import OnnxPredictor
folder, texts, labels, threshold = json.load(sys.stdin)
model = OnnxPredictor.from_pretrained(folder)
print(json.dumps(model.predict(texts, labels, threshold, flat=False)))
"""


@pytest.mark.parametrize("name", ["spans, padded", "two encoders, packed", "two encoders, tokens, padded"])
def test_a_process_without_torch(folders, models, name):
    model, threshold = models[name.rpartition(", ")[0]]
    given_texts = json.dumps([str(folders / name), TEXTS, LABELS, threshold])
    run = subprocess.run([sys.executable, "-c", PROGRAM], input=given_texts, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    wanted = model.predict(TEXTS, LABELS, threshold, flat=False)
    counts = [Counter((e["start"], e["end"], e["label"]) for e in text) for text in json.loads(run.stdout)]
    assert counts == [Counter((e["start"], e["end"], e["label"]) for e in text) for text in wanted]


# bad folders


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of an export, to be broken."""
    shutil.copytree(folders / "spans, padded", tmp_path / "onnx")
    return tmp_path / "onnx"


@pytest.fixture
def two_graphs(folders, tmp_path):
    """A copy of a bi-encoder's export in the layout "packed", to be broken."""
    shutil.copytree(folders / "two encoders, packed", tmp_path / "two")
    return tmp_path / "two"


def test_missing_files(copy):
    for name in ("tokenizer.json", "model.onnx", "gliner_config.json"):
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name.replace('.', '[.]')}: expected"):
            OnnxPredictor.from_pretrained(copy)


def test_missing_files_of_labels(two_graphs):
    (two_graphs / "labels.onnx").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"labels\.onnx: expected the label graph of an exported bi-encoder, got"
    ):
        OnnxPredictor.from_pretrained(two_graphs)
    (two_graphs / "labels_tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels_tokenizer/tokenizer\.json: expected the tokenizer"):
        OnnxPredictor.from_pretrained(two_graphs)


def test_another_model_replaces_both_graphs(folders, two_graphs):
    export_model(folders / "spans", two_graphs)
    assert sorted(file.name for file in two_graphs.iterdir()) == [
        "gliner_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_label_graph_of_another_model(two_graphs, copy):
    def change(proto):
        proto.metadata_props[0].value = proto.metadata_props[0].value.replace('"fingerprint": "', '"fingerprint": "0')

    edited(two_graphs, change, "labels.onnx")
    with pytest.raises(
        ValueError, match=r"labels\.onnx: fingerprint: expected .*, as model\.onnx beside it says, got 0"
    ):
        OnnxPredictor.from_pretrained(two_graphs)


def test_graphs_under_each_other_s_names(two_graphs):
    shutil.copy(two_graphs / "labels.onnx", two_graphs / "model.onnx")
    with pytest.raises(
        ValueError, match=r"model\.onnx: part: expected one of 'padded', 'packed', got 'labels'; the file"
    ):
        OnnxPredictor.from_pretrained(two_graphs)


def test_a_half_written_graph(copy):
    content = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"model\.onnx: expected an ONNX model, got \d+ bytes that onnxruntime"
    ) as error:
        OnnxPredictor.from_pretrained(copy)
    assert "\n" not in str(error.value)


def edited(folder, change, name="model.onnx"):
    """Change a stored graph."""
    import onnx

    proto = onnx.load(folder / name)
    change(proto)
    onnx.save(proto, folder / name)


def test_a_graph_of_another_program(copy):
    edited(copy, lambda proto: proto.ClearField("metadata_props"))
    with pytest.raises(
        ValueError, match=r"model\.onnx: metadata: expected a description under 'glimodern', got a graph"
    ):
        OnnxPredictor.from_pretrained(copy)


def test_a_description_that_is_no_json(copy):
    def change(proto):
        proto.metadata_props[0].value = "{"

    edited(copy, change)
    with pytest.raises(ValueError, match=r"model\.onnx: metadata: expected a description in JSON, got '{'; export the"):
        OnnxPredictor.from_pretrained(copy)


def test_a_description_of_another_format(copy):
    def change(proto):
        proto.metadata_props[0].value = json.dumps({**json.loads(proto.metadata_props[0].value), "format": 99})

    edited(copy, change)
    with pytest.raises(ValueError, match=r"model\.onnx: metadata: expected format 2, got 99; export the model again"):
        OnnxPredictor.from_pretrained(copy)


def test_a_graph_with_other_inputs(copy):
    def change(proto):
        proto.metadata_props[0].value = json.dumps({**json.loads(proto.metadata_props[0].value), "part": "packed"})

    edited(copy, change)
    with pytest.raises(
        ValueError, match=r"model\.onnx: inputs: expected input_ids, cu_seqlens, .*, got input_ids, att"
    ):
        OnnxPredictor.from_pretrained(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "max_width",
            9,
            r"gliner_config\.json: max_width: expected 6, as model\.onnx beside it says, got 9; the files",
        ),
        (
            "span_mode",
            "token_level",
            r"json: span_mode: expected 'markerV0', as model\.onnx beside it says, got 'token",
        ),
        (
            "span_mode",
            "ffn",
            r"json: span_mode: expected 'markerV0', as model\.onnx beside it says, got 'ffn'; the fil",
        ),
        (
            "subtoken_pooling",
            "max",
            r"json: subtoken_pooling: expected 'mean', as model\.onnx beside it says, got 'max",
        ),
        ("embed_ent_token", False, r"json: embed_ent_token: expected True, as model\.onnx beside it says, got False"),
        (
            "hidden_size",
            64,
            r"json: hidden_size: expected 32, as model\.onnx beside it says, got 64; the files are not",
        ),
    ],
)
def test_a_config_of_another_model(copy, field, value, message):
    config = json.loads((copy / "gliner_config.json").read_text())
    (copy / "gliner_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=message):
        OnnxPredictor.from_pretrained(copy)


def test_a_config_without_its_label_encoder(two_graphs):
    config = json.loads((two_graphs / "gliner_config.json").read_text())
    (two_graphs / "gliner_config.json").write_text(json.dumps({**config, "labels_encoder": None}))
    with pytest.raises(
        ValueError, match=r"model\.onnx: inputs: expected .*cu_types, as gliner_config\.json and the .*, got"
    ):
        OnnxPredictor.from_pretrained(two_graphs)


def test_a_broken_tokenizer(copy):
    (copy / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokenizer, got 17 bytes that cannot be read"):
        OnnxPredictor.from_pretrained(copy)


def test_a_tokenizer_of_another_model(copy):
    words = json.loads((copy / "tokenizer.json").read_text())
    words["added_tokens"].append({**words["added_tokens"][-1], "id": 5000, "content": "<<MORE>>"})
    (copy / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected '<<ENT>>' as token \d+ of at most \d+, .* got"):
        OnnxPredictor.from_pretrained(copy)


@pytest.mark.parametrize(("name", "rows"), [("tokenizer.json", 320), ("labels_tokenizer/tokenizer.json", 330)])
def test_a_tokenizer_of_a_larger_encoder(two_graphs, name, rows):
    words = json.loads((two_graphs / name).read_text())
    words["model"]["vocab"].update({f"more {i}": 5000 + i for i in range(20)})
    (two_graphs / name).write_text(json.dumps(words))
    with pytest.raises(ValueError, match=rf"{name}: expected at most {rows} tokens, the rows of the encoder "):
        OnnxPredictor.from_pretrained(two_graphs)


@pytest.mark.parametrize("name", ["spans, padded", "spans, packed", "tokens, packed"])
def test_nan_is_not_hidden(folders, tmp_path, name):
    """Of a token that only the second text has."""
    from onnx import numpy_helper

    shutil.copytree(folders / name, tmp_path / "onnx")
    packer = OnnxPredictor.from_pretrained(folders / name).packer

    def ids(text):
        return set(packer.pack([text.split()], [LABELS]).input_ids.tolist())

    def change(proto):
        (table,) = (t for t in proto.graph.initializer if t.name.endswith("tok_embeddings.weight"))
        values = numpy_helper.to_array(table).copy()
        values[list(ids(TEXTS[0]) - ids(TEXTS[1]))] = np.nan
        table.CopyFrom(numpy_helper.from_array(values, table.name))

    edited(tmp_path / "onnx", change)
    broken = OnnxPredictor.from_pretrained(tmp_path / "onnx")
    for options in ({}, {"spans": iter([[(0, 3)], [(0, 3)]])}):
        stream = broken.predict(iter([TEXTS[1], TEXTS[0]]), LABELS, 0.3, batch_tokens=8, **options)
        next(stream)
        with pytest.raises(ValueError, match="^scores: expected numbers, got NaN; the model's weights"):
            next(stream)


FORK = """
import os, sys
os.environ["TOKENIZERS_PARALLELISM"] = "true"
from glimodern import OnnxPredictor
model = OnnxPredictor.from_pretrained(sys.argv[1], threads=2)
texts = ["Ada met Charles ."] * 60
wanted = model.predict(texts, ["person", "place"], 0.4)
child = os.fork()
if not child:
    os._exit(0 if model.predict(texts, ["person", "place"], 0.4) == wanted else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_answers(folders):
    subprocess.run([sys.executable, "-c", FORK, str(folders / "spans, packed")], check=True, timeout=60)


def test_copies_and_other_processes_open_it_again(exported, threshold):
    wanted = exported.predict(TEXTS, LABELS, threshold)
    assert pickle.loads(pickle.dumps(exported)).predict(TEXTS, LABELS, threshold) == wanted
    assert deepcopy(exported).predict(TEXTS, LABELS, threshold) == wanted


def test_glimodern_says_who_reads_an_export(copy):
    with pytest.raises(FileNotFoundError, match="no weights: .*open the exported model.onnx with"):
        GLiModern.from_pretrained(copy)


def test_bad_threads(folders):
    with pytest.raises(ValueError, match="^threads: expected a number of threads of at least 1, got 0"):
        OnnxPredictor.from_pretrained(folders / "spans, padded", threads=np.int64(0))
