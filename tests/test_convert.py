"""Data of annotation tools and other libraries: what rows mean, round trips, and `python -m glimodern.data.convert`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.data import Dataset, Example, load_dataset, load_table
from glimodern.data.convert.__main__ import main
from glimodern.data.convert.label_studio import make_config
from glimodern.data.convert.write import TARGETS, write_dataset
from glimodern.inputs.words import Word, cut_words

TEXT = "😀 Ada left New York."
ADA, CITY = [2, 5, "person"], [11, 19, "city"]


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def spans(example: Example) -> list[tuple[str, str]]:
    """The entities of an example with a text, by their text."""
    assert example.text is not None and example.offsets is not None
    return [
        (example.text[example.offsets[first][0] : example.offsets[last][1]], label)
        for first, last, label in example.entities
    ]


FOUND = [("Ada", "person"), ("New York", "city")]


# --- words -------------------------------------------------------------------------------------------------------


def test_words_are_cut_at_bounds_inside_them():
    words = [Word("ab", 0, 2), Word("cdef", 3, 7)]
    assert cut_words(words, [7, 0, 3, 2]) == words
    assert cut_words(words, [5, 4, 4, 1]) == [
        Word("a", 0, 1),
        Word("b", 1, 2),
        Word("c", 3, 4),
        Word("d", 4, 5),
        Word("ef", 5, 7),
    ]
    assert cut_words([], [1]) == []


# --- Doccano -----------------------------------------------------------------------------------------------------


def test_doccano(tmp_path, caplog):
    entities = [
        {"id": 1, "label": "person", "start_offset": 2, "end_offset": 5},
        {"id": 2, "label": "city", "start_offset": 11, "end_offset": 19},
    ]
    relations = [{"id": 1, "from_id": 1, "to_id": 2, "type": "left"}]
    path = write(
        tmp_path / "d.jsonl",
        {"id": 7, "text": TEXT, "entities": entities, "relations": relations, "Comments": []},
        {"id": 8, "text": "nobody", "entities": [], "relations": []},
        {"id": 9, "text": TEXT, "label": [ADA, CITY]},
        {"id": 10, "text": TEXT, "labels": [ADA, CITY]},
    )
    data = load_dataset(path)
    assert [spans(example) for example in data] == [FOUND, [], FOUND, FOUND]
    assert data.notes == {"relations, not read": 1} and "1 relations, not read" in caplog.text
    assert [spans(example) for example in load_dataset(path, format="doccano")] == [FOUND, [], FOUND, FOUND]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"entities": [{"label": "x", "start_offset": 0, "end_offset": 99}]}, "0 <= start < end <= 20"),
        ({"entities": [{"label": "x", "start_offset": 3, "end_offset": 5}]}, "which splits the word 'Ada'"),
        ({"entities": [{"start_offset": 2, "end_offset": 5}]}, "label: expected a string"),
        ({"entities": [{"label": "x", "start_offset": 2}]}, "expected two whole character offsets"),
        ({"labels": "x"}, r"expected a list of .*, got 'x'"),
    ],
)
def test_bad_doccano_rows(tmp_path, row, reason):
    path = write(tmp_path / "d.jsonl", {"text": TEXT, "label": []}, {"text": TEXT, **row})
    with pytest.raises(ValueError, match=rf"d\.jsonl:2: .*{reason}"):
        load_dataset(path, format="doccano")
    assert load_dataset(path, format="doccano", skip_bad_rows=True).skipped == 1


# --- Prodigy -----------------------------------------------------------------------------------------------------


def prodigy(*found: list[Any], **more: Any) -> dict[str, Any]:
    tokens = [{"text": "😀", "start": 0, "end": 1, "id": 0, "ws": True}]
    marked = [{"start": s, "end": e, "token_start": 1, "token_end": 1, "label": label} for s, e, label in found]
    return {"text": TEXT, "_input_hash": 1, "_task_hash": 2, "tokens": tokens, "spans": marked, **more}


def test_prodigy(tmp_path, caplog):
    no_spans = prodigy(answer="accept")
    del no_spans["spans"]
    path = write(
        tmp_path / "p.jsonl",
        prodigy(ADA, CITY, answer="accept", _view_id="ner_manual"),
        prodigy(ADA, answer="reject"),
        prodigy(ADA, answer="ignore"),
        prodigy(ADA, answer="ignore"),
        prodigy(ADA, answer="accept", _view_id="ner"),
        no_spans,
        prodigy(ADA),
    )
    data = load_dataset(path)
    assert [spans(example) for example in data] == [FOUND, [], FOUND[:1]]
    assert data.left_out == {
        "answered reject": 1,
        "answered ignore": 2,
        "yes-or-no questions about single entities": 1,
    }
    assert "left out rows without gold annotations: 1 answered reject, 2 answered ignore, 1 yes-or-no" in caplog.text


def test_bad_prodigy_rows(tmp_path):
    path = write(tmp_path / "p.jsonl", prodigy(answer="maybe"))
    with pytest.raises(ValueError, match=r'p\.jsonl:1: "answer": expected one of accept, reject, ignore, got \'maybe'):
        load_dataset(path)
    path = write(tmp_path / "q.jsonl", prodigy(ADA, answer="reject"))
    with pytest.raises(ValueError, match="expected gold annotations, got only rows without: 1 answered reject"):
        load_dataset(path)


# --- Label Studio ------------------------------------------------------------------------------------------------


def regions(*found: list[Any], text: str = TEXT, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "from_name": "label",
            "to_name": "text",
            "type": "labels",
            "value": {"start": start, "end": end, "text": text[start:end], "labels": [label]},
            **more,
        }
        for start, end, label in found
    ]


def task(*annotations: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"text": TEXT, "source": "web"}, "annotations": list(annotations), **more}


def test_label_studio_tasks(tmp_path, caplog):
    guess = [{"result": regions(ADA)}]
    path = tmp_path / "project.json"
    rows = [
        task({"result": regions(ADA, CITY)}),
        task(predictions=guess),
        {"id": 2, "data": {"text": TEXT}, "predictions": guess},
        task({"result": regions(ADA), "was_cancelled": True}, {"result": regions(CITY)}),
        task({"result": regions(ADA), "was_cancelled": True}),
        task({"result": regions(ADA)}, {"result": []}),
        task({"result": [*regions(ADA), {"type": "relation"}, {"type": "choices", "value": {"choices": ["good"]}}]}),
        task({"result": []}),
        {"data": {"content": TEXT, "page": 3}, "completions": [{"result": regions(CITY)}]},
    ]
    path.write_text(json.dumps(rows))
    data = load_dataset(path)
    assert [spans(example) for example in data] == [FOUND, FOUND[1:], FOUND[:1], FOUND[:1], [], FOUND[1:]]
    assert data.left_out == {"not annotated": 2, "annotation cancelled": 1}
    assert data.notes == {
        "tasks with several annotations, of which the first is read": 1,
        "results of the type relation, not read": 1,
        "results of the type choices, not read": 1,
    }
    assert (
        "2 not annotated, 1 annotation cancelled" in caplog.text
        and "1 tasks with several annotations, of which the first is read" in caplog.text
    )


def test_label_studio_json_min(tmp_path):
    values = [one["value"] for one in regions(ADA, CITY)]
    path = write(
        tmp_path / "min.jsonl",
        {"text": TEXT, "id": 1, "label": values, "annotator": 1, "annotation_id": 1},
        {"text": TEXT, "id": 1, "label": values[:1], "annotator": 2, "annotation_id": 2},
        {"text": TEXT, "id": 2, "annotator": 1, "annotation_id": 3},
        {"content": TEXT, "id": 3, "ner": values, "annotation_id": 4},
    )
    with pytest.raises(ValueError, match=r"two\.jsonl:1: .*\"text\" or one string, got \['a', 'b'\]"):
        load_dataset(write(tmp_path / "two.jsonl", {"a": "x", "b": "y", "id": 1, "annotation_id": 1}))
    data = load_dataset(path)
    assert [spans(example) for example in data] == [FOUND, [], FOUND]
    assert data.left_out == {"further annotation of a task": 1}


def test_the_field_with_the_text(tmp_path):
    row = {"data": {"title": "A", "body": TEXT}, "annotations": [{"result": regions(ADA)}]}
    path = write(tmp_path / "t.jsonl", row)
    with pytest.raises(ValueError, match=r"one string, got \['title', 'body'\]; name it \(text_key\)"):
        load_dataset(path)
    assert spans(load_dataset(path, text_key="body")[0]) == FOUND[:1]
    with pytest.raises(ValueError, match='"page": expected the text of the task, got None'):
        load_dataset(path, text_key="page")


def test_several_labels_of_a_region_and_offsets_alone(tmp_path):
    (one,) = regions(ADA)
    one["value"] = {"start": 2, "end": 5, "labels": ["person", "writer"]}
    data = load_dataset(write(tmp_path / "t.jsonl", task({"result": [one]})))
    assert spans(data[0]) == [("Ada", "person"), ("Ada", "writer")]


def test_utf_16_offsets_are_converted(tmp_path):
    """As Label Studio wrote them until 2021: the text says so, and all regions of a task must agree."""
    utf_16 = [[3, 6, "person"], [12, 20, "city"]]
    old = regions(*utf_16)
    for entry, name in zip(old, ("Ada", "New York"), strict=True):
        entry["value"]["text"] = name
    data = load_dataset(write(tmp_path / "old.jsonl", task({"result": old}), task({"result": regions(ADA, CITY)})))
    assert [spans(example) for example in data] == [FOUND, FOUND]
    assert data.notes == {"tasks whose offsets count UTF-16 units, converted to characters": 1}
    mixed = write(tmp_path / "mixed.jsonl", task({"result": [old[0], *regions(CITY)]}))
    with pytest.raises(ValueError, match=r"mixed\.jsonl:1: .*expected the text at its offsets, 'da '"):
        load_dataset(mixed)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"result": regions([2, 5, "x"], type="hypertextlabels")}, 'expected regions of the type "labels"'),
        ({"result": [{"type": "labels", "value": {"start": 2, "end": 5, "labels": []}}]}, "expected a label for each"),
        ({"result": [{"type": "labels", "value": {"start": "2", "end": 5, "labels": ["x"]}}]}, "whole character off"),
        ({"result": regions([2, 99, "x"])}, "expected the text at its offsets"),
        ({"result": None}, "expected a list of regions, .*got None"),
        ("text", '"annotations": expected a list of objects'),
        ({"result": regions([3, 5, "x"])}, "which splits the word 'Ada'"),
    ],
)
def test_bad_label_studio_tasks(tmp_path, annotation, reason):
    path = write(tmp_path / "t.jsonl", task({"result": []}), task(annotation))
    with pytest.raises(ValueError, match=rf"t\.jsonl:2: .*{reason}"):
        load_dataset(path)
    data = load_dataset(path, skip_bad_rows=True)
    assert (len(data), data.skipped) == (1, 1)


def test_label_studio_accepts_our_tasks(tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="needs the package label-studio-sdk")
    data = load_dataset(write(tmp_path / "s.jsonl", {"text": TEXT, "entities": [ADA, CITY]}))
    write_dataset(data, tmp_path / "t.json", "label-studio")
    (written,) = json.loads((tmp_path / "t.json").read_text())
    config = interface.LabelInterface(make_config(["person", "city"]))
    assert config.validate_task({"data": written["data"]}) and config.validate_annotation(written["annotations"][0])


def test_rows_of_our_own_with_fields_of_other_tools(tmp_path):
    """Further fields of a row with entities do not change what it is."""
    more = [
        {"data": {"source": "web"}},
        {"annotation_id": 3, "id": 1},
        {"relations": [], "types": ["person", "animal"]},
        {"answer": "accept"},
    ]
    path = write(tmp_path / "s.jsonl", *({"text": TEXT, "entities": [ADA], **fields} for fields in more))
    data = load_dataset(path)
    assert [spans(example) for example in data] == [FOUND[:1]] * 4
    assert data[2].types == ("person", "animal")


def test_a_format_that_is_asked_for(tmp_path):
    path = write(tmp_path / "t.jsonl", task({"result": regions(ADA)}))
    assert spans(load_dataset(path, format="label-studio")[0]) == FOUND[:1]
    with pytest.raises(ValueError, match=r"expected the keys \"text\" and \"label\" \(format='doccano'\)"):
        load_dataset(path, format="doccano")
    path = write(tmp_path / "p.jsonl", {"text": TEXT, "spans": [{"start": 2, "end": 5, "label": "person"}]})
    assert spans(load_dataset(path, format="prodigy")[0]) == FOUND[:1]


# --- spaCy -------------------------------------------------------------------------------------------------------


@pytest.fixture
def spacy():
    return pytest.importorskip("spacy", reason="needs the extra spacy")


def test_docbin(tmp_path, spacy, caplog):
    from spacy.tokens import DocBin

    nlp = spacy.blank("en")
    annotated, overlapping, plain, nobody = (nlp(text) for text in (TEXT, TEXT, TEXT, "nobody"))
    annotated.ents = [annotated.char_span(2, 5, "person"), annotated.char_span(11, 19, "city")]
    overlapping.ents = [overlapping.char_span(2, 5, "other")]
    overlapping.spans["sc"] = [overlapping.char_span(11, 19, "city"), overlapping.char_span(15, 19, "part")]
    nobody.ents = []
    DocBin(docs=[annotated, overlapping, plain, nobody, nlp("")]).to_disk(tmp_path / "train.spacy")
    data = load_dataset(tmp_path / "train.spacy")
    assert [spans(example) for example in data] == [FOUND, [("New York", "city"), ("York", "part")], [], []]
    assert data.left_out == {"not annotated": 1} and "1 not annotated" in caplog.text
    assert data[0].id == f"{tmp_path / 'train.spacy'}[0]" and data[0].text == TEXT
    (tmp_path / "train.spacy").rename(tmp_path / "train.bin")
    assert len(load_dataset(tmp_path / "train.bin", format="docbin")) == 4


@pytest.mark.parametrize("content", [b"", b"no docbin", b"\x78\x9c\x03\x00\x00\x00\x00\x01"])
def test_a_damaged_docbin(tmp_path, spacy, content):
    (tmp_path / "x.spacy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.spacy: expected a spaCy DocBin, got other or damaged data"):
        load_dataset(tmp_path / "x.spacy")


def test_a_docbin_with_a_label_that_is_empty(tmp_path, spacy):
    from spacy.tokens import DocBin

    doc = spacy.blank("en")(TEXT)
    doc.spans["sc"] = [doc[1:2]]
    DocBin(docs=[doc]).to_disk(tmp_path / "x.spacy")
    with pytest.raises(ValueError, match=r"x\.spacy\[0\]: label: expected a string that is not blank"):
        load_dataset(tmp_path / "x.spacy")


def test_a_docbin_for_spacy(tmp_path, spacy):
    """Tokens are spaCy's, cut where an entity ends inside one; overlapping entities go to doc.spans."""
    from spacy.tokens import DocBin

    rows = [
        {"text": "It took 10km.\n\n Ada  left", "entities": [[8, 10, "number"], [10, 12, "unit"], [16, 19, "person"]]},
        {"text": TEXT, "entities": [CITY, [15, 19, "part"], CITY]},
        {"text": "", "entities": []},
        {"text": "nobody", "entities": []},
    ]
    data = load_dataset(write(tmp_path / "rows.jsonl", *rows), cut_words=True)
    notes = write_dataset(data, tmp_path / "out.spacy", "docbin", "en")
    docs = list(DocBin().from_disk(tmp_path / "out.spacy").get_docs(spacy.blank("en").vocab))
    assert [doc.text for doc in docs] == [row["text"] for row in rows]
    assert [(one.text, one.label_) for one in docs[0].ents] == [("10", "number"), ("km", "unit"), ("Ada", "person")]
    assert docs[3].has_annotation("ENT_IOB") and not docs[3].ents
    assert [(one.text, one.label_) for one in docs[1].spans["sc"]] == [("New York", "city"), ("York", "part")]
    assert not docs[1].ents
    assert +notes == {'texts with overlapping entities, written to doc.spans["sc"], not to doc.ents': 1}
    with pytest.raises(ValueError, match="language: expected a code that spaCy has, such as 'en', got 'klingon'"):
        write_dataset(data, tmp_path / "other.spacy", "docbin", "klingon")
    assert not (tmp_path / "other.spacy").exists()


def test_a_docbin_without_spacy(tmp_path):
    (tmp_path / "x.spacy").write_bytes(b"x")
    code = (
        "import sys; sys.modules['spacy'] = None\nfrom glimodern.data import load_dataset\n"
        f"try: load_dataset({str(tmp_path / 'x.spacy')!r})\nexcept ImportError as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "expected the package spacy, got none; pip install 'glimodern[spacy]'" in answer.stdout, answer.stderr


# --- tables ------------------------------------------------------------------------------------------------------


TOKENS = ["😀", "Ada", "left", "New", "York", "."]
TAGGED = [(1, 1, "person"), (3, 4, "location")]


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
    tags = datasets.ClassLabel(names=["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(tags)}
    )
    rows = {"tokens": [TOKENS, ["nobody"], []], "ner_tags": [[0, 1, 0, 3, 4, 0], [0], []]}
    return datasets.Dataset.from_dict(rows, features=features)


def check_table(data: Dataset, name: str) -> None:
    assert [(example.words, example.entities) for example in data] == [(TOKENS, TAGGED), (["nobody"], []), ([], [])]
    assert data[0].id == f"{name}[0]"


def test_a_loaded_table(table):
    check_table(load_table(table), "table")
    check_table(load_table(table, "news"), "news")
    assert load_table(table, label_names={"PER": "human"}).types == ["human", "location"]


def test_a_table_of_any_kind():
    data = load_table(iter([{"text": TEXT, "entities": [ADA, CITY]}]), "rows")
    assert spans(data[0]) == FOUND and data.name == "rows"
    with pytest.raises(ValueError, match=r"rows\[0\]: expected the keys"):
        load_table([{"txt": TEXT}], "rows")


def test_parquet(table, tmp_path):
    path = tmp_path / "news" / "train.parquet"
    path.parent.mkdir()
    table.to_parquet(path)
    check_table(load_dataset(path), str(path))
    data = load_dataset(tmp_path / "news", split="train")
    check_table(data, str(path))
    assert data.name == "news-train"


def test_parquet_of_spans(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
    entities = [[{"start": 2, "end": 5, "label": "person"}], []]
    datasets.Dataset.from_dict({"text": [TEXT, "nobody"], "entities": entities}).to_parquet(tmp_path / "s.parquet")
    assert [spans(example) for example in load_dataset(tmp_path / "s.parquet")] == [FOUND[:1], []]


def test_parquet_without_names(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra datasets (pyarrow)")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"tokens": [["a"]], "ner_tags": [[3]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet\[0\]: \"ner_tags\": expected .*, got 3"):
        load_dataset(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ValueError, match=r"y\.parquet: expected a Parquet file, got other or damaged data"):
        load_dataset(tmp_path / "y.parquet")


def test_a_saved_table(table, tmp_path):
    import datasets

    table.save_to_disk(tmp_path / "one")
    check_table(load_dataset(tmp_path / "one"), str(tmp_path / "one"))
    check_table(load_dataset(tmp_path / "one", split="train"), str(tmp_path / "one"))
    datasets.DatasetDict(train=table, validation=table).save_to_disk(tmp_path / "two")
    data = load_dataset(tmp_path / "two", split="dev")
    check_table(data, str(tmp_path / "two"))
    assert data.name == "two-dev"
    with pytest.raises(ValueError, match=r"split: expected the name of one of its splits \(train, validation\), got"):
        load_dataset(tmp_path / "two")
    with pytest.raises(FileNotFoundError, match="no table for 'test', got train, validation"):
        load_dataset(tmp_path / "two", split="test")


# --- round trips -------------------------------------------------------------------------------------------------


@st.composite
def annotated(draw: st.DrawFn) -> dict[str, Any]:
    text = draw(st.text("ab 😀é東-.,\n", max_size=20))
    pairs = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from(["x", "y z"])), max_size=4))
    entities = []
    for start, width, label in pairs:
        name = text[start : start + width]
        if name.strip():
            start += len(name) - len(name.lstrip())
            entities.append([start, start + len(name.strip()), label])
    return {"text": text, "entities": entities}


@pytest.mark.parametrize("target", TARGETS)
@settings(deadline=None, derandomize=True, max_examples=50)
@given(rows=st.lists(annotated(), min_size=1, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, target: Any, rows: list[dict[str, Any]]) -> None:
    """Every format that we write is read back: the same texts and the same spans, overlaps included."""
    if target == "docbin":
        pytest.importorskip("spacy", reason="needs the extra spacy")
    folder = tmp_path_factory.getbasetemp()
    path = folder / {"docbin": "round.spacy", "label-studio": "round.json"}.get(target, f"{target}.jsonl")
    data = load_dataset(write(folder / "rows.jsonl", *rows), cut_words=True)
    write_dataset(data, path, target)
    again = load_dataset(path, cut_words=True)
    if target == "gliner":
        assert [(one.words, one.entities) for one in again] == [(one.words, one.entities) for one in data]
        return
    assert [example.text for example in again] == [row["text"] for row in rows]
    for example, row in zip(again, rows, strict=True):
        assert example.offsets is not None
        found = [
            (example.offsets[first][0], example.offsets[last][1], label) for first, last, label in example.entities
        ]
        wanted = [tuple(entity) for entity in row["entities"]]
        if target == "docbin":  # it keeps spans in its own order, and each once
            assert sorted(found) == sorted(set(wanted))
        else:
            assert found == wanted


def test_prodigy_tokens(tmp_path):
    data = load_dataset(write(tmp_path / "s.jsonl", {"text": "10km  to go", "entities": [[0, 2, "n"]]}), cut_words=True)
    write_dataset(data, tmp_path / "p.jsonl", "prodigy")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert [(one["text"], one["start"], one["end"], one["id"], one["ws"]) for one in row["tokens"]] == [
        ("10", 0, 2, 0, False),
        ("km", 2, 4, 1, True),
        ("to", 6, 8, 2, True),
        ("go", 9, 11, 3, False),
    ]
    assert row["spans"] == [{"start": 0, "end": 2, "token_start": 0, "token_end": 0, "label": "n"}]


def test_what_a_format_cannot_hold(tmp_path):
    rows = [
        Example(["Ada", "left"], [(0, 0, "person")], types=("person", "city"), group="news"),
        Example(["", "a"], [(0, 0, "nothing")]),
    ]
    notes = write_dataset(Dataset("d", rows), tmp_path / "d.jsonl", "doccano")
    assert +notes == {
        "entities without a visible character, left out": 1,
        "lists of the types that a text is asked, left out": 1,
        "names of groups, left out": 1,
    }
    assert [json.loads(line) for line in (tmp_path / "d.jsonl").open()] == [
        {"text": "Ada left", "label": [[0, 3, "person"]]},
        {"text": " a", "label": []},
    ]
    for target in ("spans", "gliner"):
        write_dataset(Dataset("d", rows[:1]), tmp_path / "d.jsonl", target)
        assert load_dataset(tmp_path / "d.jsonl")[0].types == ("person", "city")
    with pytest.raises(ValueError, match="target: expected one of spans, gliner, .* got 'csv'"):
        write_dataset(Dataset("d", rows), tmp_path / "d.jsonl", "csv")  # type: ignore[arg-type]


# --- the command line --------------------------------------------------------------------------------------------


def convert(*arguments: Any) -> None:
    main([str(argument) for argument in arguments])


def test_the_command_says_what_did_not_come_along(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", prodigy([3, 5, "x"], CITY), prodigy(ADA, answer="reject"), prodigy(answer="?"))
    convert(path, tmp_path / "out" / "t.json", "--to", "label-studio", "--skip-bad-rows")
    printed = capsys.readouterr().out
    assert "1 texts, 2 entities, 1 rows left out (answered reject), 1 bad rows skipped, 1 cuts of words" in printed
    data = load_dataset(tmp_path / "out" / "t.json", cut_words=True)
    assert spans(data[0]) == [("da", "x"), ("New York", "city")]


def test_the_command_reads_splits_and_tags(tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.conll").write_text("Ada B-PER\nleft O\n\nYork B-LOC\n")
    convert(tmp_path / "corpus", tmp_path / "out.jsonl", "--to", "spans", "--split", "train")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert rows[0] == {
        "text": "Ada left",
        "entities": [{"start": 0, "end": 3, "label": "person", "text": "Ada"}],
    }
    assert "2 texts, 2 entities" in capsys.readouterr().out


def test_files_are_not_replaced(tmp_path, capsys):
    source = write(tmp_path / "in" / "s.jsonl", {"text": TEXT, "entities": [ADA]})
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"output: expected a file that does not exist, .* add --overwrite"):
        convert(source, out, "--to", "doccano")
    with pytest.raises(ValueError, match="is read by the same command"):
        convert(source, source, "--to", "doccano", "--overwrite")
    with pytest.raises(ValueError, match="output: expected a file outside .*in, which the command reads"):
        convert(source.parent, source.parent / "new.jsonl", "--to", "doccano")
    bad = write(tmp_path / "bad.jsonl", {"text": TEXT})
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        convert(bad, out, "--to", "doccano", "--overwrite")
    assert out.read_text() == "mine" and sorted(one.name for one in tmp_path.iterdir()) == [
        "bad.jsonl",
        "in",
        "out.jsonl",
    ]
    convert(source, out, "--to", "doccano", "--overwrite")
    assert json.loads(out.read_text()) == {"text": TEXT, "label": [ADA]}
    capsys.readouterr()


def test_the_command_needs_no_torch(tmp_path):
    source = write(tmp_path / "s.jsonl", {"text": TEXT, "entities": [ADA]})
    given_words = [str(source), str(tmp_path / "out.jsonl"), "--to", "prodigy"]
    code = (
        "import sys; from glimodern.data.convert.__main__ import main; "
        f"main({given_words!r}); print('torch' in sys.modules or 'spacy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "False", answer.stderr
