"""The readers: what each format means, where data is found, and how bad rows are reported."""

import json
import logging
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.data import CROSSNER_LABELS, Dataset, Example, load_dataset, natural_label
from glimodern.data.conll import tagged_spans
from glimodern.inputs.words import split_words


def write(path: Path, *rows: Any) -> Path:
    """JSON lines; a str row is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def gliner(words: str, *ner: Any, **more: Any) -> dict[str, Any]:
    return {"tokenized_text": words.split(), "ner": list(ner), **more}


# --- what a row means --------------------------------------------------------------------------------------------


def test_gliner_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "news.jsonl",
        gliner("Ada met Bob", [0, 0, "person"], [2, 2, "person"]),
        "",
        gliner("nobody here"),
        gliner("New York", [0, 1, ["city", "place"]], [1, 1, "city"], [1, 1, "city"]),
        {"tokenized_text": [], "ner": []},
        gliner("a", ner_labels=["b", "c", "b"]),
        gliner("a", label=["d"]),
        gliner("a", types=["e"]),
        gliner("a", [0, 0, "x"], ner_negatives=["y", "x"]),
    )
    data = load_dataset(path)
    assert data.name == "news" and len(data) == 8 and data.skipped == 0
    assert data[0] == Example(["Ada", "met", "Bob"], [(0, 0, "person"), (2, 2, "person")], f"{path}:1")
    assert data[1] == Example(["nobody", "here"], [], f"{path}:3")
    assert data[2].entities == [(0, 1, "city"), (0, 1, "place"), (1, 1, "city"), (1, 1, "city")]
    assert data[3].words == []
    assert [example.types for example in data] == [None] * 4 + [("b", "c"), ("d",), ("e",), ("x", "y")]
    assert data.types == ["b", "c", "city", "d", "e", "person", "place", "x", "y"]


def test_json_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([gliner("a b", [0, 1, "x"]), gliner("c")], indent=2), "utf-8-sig")
    data = load_dataset(path)
    assert [(example.id, example.words) for example in data] == [(f"{path}[0]", ["a", "b"]), (f"{path}[1]", ["c"])]


def test_character_spans(tmp_path: Path) -> None:
    text = "Zoë lives in  New York. 😀 Bob"
    path = write(
        tmp_path / "s.jsonl",
        {
            "text": text,
            "entities": [
                {"start": 0, "end": 3, "label": "person", "text": "Zoë", "score": 0.5},
                [14, 22, "city"],
                [12, 22, "city"],
                {"start": 26, "end": 29, "label": "person"},
            ],
            "types": ["person", "city", "animal"],
        },
        {"text": "", "spans": []},
        {"text": "Bob", "label": [[0, 3, "person"]]},
    )
    data = load_dataset(path)
    assert data[0].entities == [(0, 0, "person"), (3, 4, "city"), (3, 4, "city"), (7, 7, "person")]
    assert data[0].text == text and data[0].offsets is not None
    assert [text[start:end] for start, end in data[0].offsets] == data[0].words
    assert data[0].types == ("person", "city", "animal")
    assert data[1] == Example([], [], f"{path}:2", "", [])
    assert data[2].entities == [(0, 0, "person")]


words = st.lists(st.text("abcé-_東", min_size=1, max_size=6), max_size=8)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.text("ab é東-.,'\n", max_size=30), st.lists(st.tuples(*[st.integers(0, 40)] * 2))), min_size=1
    )
)
def test_character_spans_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    written, expected = [], []
    for text, pairs in rows:
        split = split_words(text)
        entities = [
            (min(pair) % len(split), max(min(pair) % len(split), max(pair) % len(split)), f"type {pair}")
            for pair in pairs
            if split
        ]
        spans = [{"start": split[s].start, "end": split[e].end, "label": label} for s, e, label in entities]
        written.append({"text": text, "entities": spans})
        expected.append((text, [word.text for word in split], entities))
    data = load_dataset(write(tmp_path_factory.getbasetemp() / "round.jsonl", *written))
    assert [(example.text, example.words, example.entities) for example in data] == expected


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(words, st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.text(min_size=1))))))
def test_gliner_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    rows = [
        (w, [(s, e, f"x{label}") for s, e, label in ner if s <= e < len(w) and label.isprintable()]) for w, ner in rows
    ]
    rows = [*rows, (["a"], [])]
    path = tmp_path_factory.getbasetemp() / "gliner.jsonl"
    data = load_dataset(write(path, *({"tokenized_text": w, "ner": ner} for w, ner in rows)))
    assert [(example.words, example.entities) for example in data] == rows


def test_conll(tmp_path: Path) -> None:
    path = tmp_path / "c.conll"
    path.write_bytes(
        b"\xef\xbb\xbf-DOCSTART- -X- O O\r\n\r\n# id = 1\r\n"
        b"EU NNP B-NP B-ORG\r\nrejects VBZ B-VP O\r\n# SYM O O\r\n\r\n \r\n"
        b"-DOCSTART-\nNew York\tB-loc\nCity\tI-loc\n#tag\tI-programlang\nx\tB-programlang\ny\tI-loc"
    )
    data = load_dataset(path)
    assert [example.id for example in data] == [f"{path}:4", f"{path}:10"]
    assert data[0].words == ["EU", "rejects", "#"]
    assert data[0].entities == [(0, 0, "organization")]
    assert data[1].words == ["New York", "City", "#tag", "x", "y"]
    assert data[1].entities == [
        (0, 1, "location"),
        (2, 2, "programming language"),
        (3, 3, "programming language"),
        (4, 4, "location"),
    ]
    assert load_dataset(path, label_names={"ORG": "company"})[0].entities == [(0, 0, "company")]


def conlleval_chunks(tags: list[str]) -> list[tuple[int, int, str]]:
    """Chunks by conlleval's two rules, a boundary test between every two tags."""
    chunks, begin = [], 0
    previous_kind, previous_type = "O", ""
    for index, tag in enumerate([*tags, "O"]):
        kind, _, name = tag.partition("-")
        ends = previous_kind != "O" and (kind in "BO" or name != previous_type)
        starts = kind == "B" or (kind == "I" and (previous_kind == "O" or name != previous_type))
        if ends:
            chunks.append((begin, index - 1, previous_type))
        if starts:
            begin = index
        previous_kind, previous_type = kind, name
    return chunks


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])))
def test_bio_is_read_as_conlleval_does(tags: list[str]) -> None:
    assert tagged_spans(tags) == conlleval_chunks(tags)


def test_tokens_and_tags_as_json(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"tokens": ["Bob", "ran"], "ner_tags": ["B-PER", "O"]})
    assert load_dataset(path)[0].entities == [(0, 0, "person")]


def pile(text: str, **answers: list[str]) -> dict[str, Any]:
    said = [f"Text: {text}", "I've read this text."]
    for label, answer in answers.items():
        said += [f"What describes {label.replace('_', ' ')} in the text?", json.dumps(answer)]
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(said)]}


def test_pile_ner(tmp_path: Path) -> None:
    row = pile(
        "Ann met Anna. Ann-Marie saw Ann in New York, New York.",
        person=["Ann", "Anna", "Ann"],
        city_of_birth=["New York"],
        animal=[],
        plant=["rose"],
        tool=["saw", "hammer", ""],
    )
    data = load_dataset(write(tmp_path / "p.json", row))
    # Ann met Anna . Ann-Marie saw Ann in New York , New York .
    assert data[0].entities == [
        (0, 0, "person"),
        (6, 6, "person"),
        (2, 2, "person"),
        (8, 9, "city of birth"),
        (11, 12, "city of birth"),
        (5, 5, "tool"),
    ]
    assert data[0].types == ("person", "city of birth", "animal", "tool")  # where the rose is, nobody knows
    assert data[0].text == "Ann met Anna. Ann-Marie saw Ann in New York, New York."
    assert data.unmatched == 3
    assert data.types == ["animal", "city of birth", "person", "tool"]


def test_a_huge_word(tmp_path: Path) -> None:
    huge = "x" * 100_000
    path = write(tmp_path / "h.jsonl", gliner(huge, [0, 0, "a"]), {"text": huge, "entities": [[0, 100_000, "a"]]})
    assert [example.entities for example in load_dataset(path)] == [[(0, 0, "a")]] * 2


# --- bad rows ----------------------------------------------------------------------------------------------------

BAD_JSON = [
    ('{"tokenized_text": ["a"]', "expected one JSON object a line"),
    ('["a"]', "expected a JSON object"),
    ({"sentence": "a"}, 'expected the keys "tokenized_text"'),
    ({"tokenized_text": "a b", "ner": []}, '"tokenized_text": expected a list of words'),
    ({"tokenized_text": ["a", 1], "ner": []}, 'a word of "tokenized_text": expected a string, got 1'),
    ({"tokenized_text": ["a"]}, '"ner": expected a list'),
    (gliner("a", [0, 1, "x"]), r'"ner": expected 0 <= first word <= last word < 1 .*got \[0, 1, '),
    (gliner("a b", [1, 0, "x"]), "expected 0 <= first word"),
    (gliner("a b", [-1, 0, "x"]), "expected 0 <= first word"),
    (gliner("a b", [0, 0]), r"expected \[first word, last word, label\], got \[0, 0\]"),
    (gliner("a b", [0.0, 1, "x"]), "expected two whole word indices"),
    (gliner("a b", [False, 1, "x"]), "expected two whole word indices"),
    (gliner("a b", [0, 1, " "]), "label: expected a string that is not blank"),
    (gliner("a b", [0, 1, None]), "label: expected a string that is not blank"),
    (gliner("a b", [0, 1, []]), r"label: expected a string that is not blank, got \[\]"),
    (gliner("a b", ner_labels="x"), '"ner_labels": expected a list of entity types'),
    (gliner("a b", label=[""]), "label: expected a string that is not blank"),
    ('{"tokenized_text": ["\\ud83d"], "ner": []}', "half of a surrogate pair"),
    ({"text": 3, "entities": []}, '"text": expected a string, got 3'),
    ({"text": "a"}, '"entities": expected a list'),
    ({"text": "ab cd", "entities": [[0, 6, "x"]]}, "expected 0 <= start < end <= 5"),
    ({"text": "ab cd", "entities": [[3, 3, "x"]]}, "expected 0 <= start < end <= 5"),
    ({"text": "ab cd", "entities": [[2, 3, "x"]]}, "got only white space"),
    (
        {"text": "ab cde", "entities": [[0, 5, "x"]]},
        r"got characters 0 to 5, 'ab cd', which splits the word 'cde' \(characters 3 to 6\)",
    ),
    ({"text": "abc d", "entities": [[1, 5, "x"]]}, r"splits the word 'abc' \(characters 0 to 3\)"),
    (
        {"text": "é ab", "entities": [{"start": 0, "end": 1, "label": "x", "text": "a"}]},
        "expected the text at its offsets, 'é', got",
    ),
    ({"text": "ab", "entities": [{"start": 0, "label": "x"}]}, "expected two whole character offsets"),
    ({"text": "ab", "entities": ["x"]}, r'expected \{"start", "end", "label"\}'),
    ({"tokens": ["a"], "ner_tags": []}, "expected one tag for each of the 1 words, got 0"),
    (
        {"tokens": ["a"], "ner_tags": [3]},
        "expected O or a type with a prefix of BIO, BIOES, BILOU or BMES, such as B-PER, got 3",
    ),
    ({"conversations": "x"}, '"conversations": expected a list'),
    ({"conversations": [{"value": "Hello"}, {"value": "Yes"}]}, 'expected "Text: ..."'),
    ({"conversations": pile("a", b=[])["conversations"][:3]}, "pairs of question and answer"),
    (
        {"conversations": [*pile("a")["conversations"], {"value": "Why?"}, {"value": "[]"}]},
        "expected \"What describes TYPE in the text\\?\", got 'Why\\?'",
    ),
    (
        {"conversations": [*pile("a")["conversations"], {"value": "What describes b in the text?"}, {"value": "b"}]},
        "expected a JSON list of strings as answer, got 'b'",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD_JSON, ids=[reason for _, reason in BAD_JSON])
def test_bad_json_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture, row: Any, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", gliner("fine"), "", row, gliner("fine too"), row)
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{reason}") as caught:
        load_dataset(path)
    assert "skip_bad_rows" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        data = load_dataset(path, skip_bad_rows=True)
    assert [example.words for example in data] == [["fine"], ["fine", "too"]]
    assert data.skipped == 2
    assert data.skipped_out_of_range == (2 if "0 <= " in reason else 0)
    (record,) = caplog.records
    assert "skipped 2 bad rows of 4; the first: " in record.getMessage()
    assert "bad.jsonl:3: " in record.getMessage()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("word", "expected a word and its tag, got 'word'"),
        ("\tO", "expected a word and its tag"),
        ("word\tB", "expected O or a type with a prefix .*, in the last column, got 'B'"),
        ("word\tB-", "got 'B-'"),
        ("word\tX-x", "got 'X-x'"),
        ("word\tLOC-B", "got 'LOC-B'"),
        ("word\tB-x|B-y", "got 'B-x|B-y'"),
        ("#hashtag", "expected a word and its tag, got '#hashtag'"),
    ],
)
def test_bad_conll_lines(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "bad.txt", "a\tO", "", "b\tB-x", line, "c\tO", "", "d\tO")
    with pytest.raises(ValueError, match=rf"bad\.txt:4: .*{reason}"):
        load_dataset(path)
    data = load_dataset(path, skip_bad_rows=True)
    assert [example.words for example in data] == [["a"], ["d"]] and data.skipped == 1


def test_bad_array_element_is_named_by_its_index(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([gliner("a"), gliner("b", [0, 3, "x"])], indent=1))
    with pytest.raises(ValueError, match=r'a\.json\[1\]: "ner": expected 0 <= '):
        load_dataset(path)
    assert load_dataset(path, skip_bad_rows=True).skipped_out_of_range == 1


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('[{"tokenized_text": ["a"],\n "ner": [}]')
    with pytest.raises(ValueError, match=r"broken\.json:2: expected a JSON array"):
        load_dataset(broken, skip_bad_rows=True)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("a\tO\nZoë\tO\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt:2: expected UTF-8, got the byte 0xeb"):
        load_dataset(latin)
    with pytest.raises(ValueError, match=r"empty\.txt: expected at least one sentence"):
        load_dataset(write(tmp_path / "empty.txt", ""))
    with pytest.raises(ValueError, match=r"none of its 1 rows can be read; the first: .*all\.jsonl:1: "):
        load_dataset(write(tmp_path / "all.jsonl", gliner("a", [5, 5, "x"])), skip_bad_rows=True)


def test_format_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "g.jsonl", gliner("a"))
    assert len(load_dataset(path, format="gliner")) == 1
    with pytest.raises(ValueError, match=r"g\.jsonl:1: expected the keys \"text\" and \"entities\" \(format='spans'\)"):
        load_dataset(path, format="spans")
    with pytest.raises(ValueError, match=r"format: expected one of auto, gliner, .*, got 'xml'"):
        load_dataset(path, format="xml")
    with pytest.raises(ValueError, match=r"c\.txt:1: expected one JSON object a line"):
        load_dataset(write(tmp_path / "c.txt", "a\tO"), format="gliner")
    # The content decides, not the ending.
    assert load_dataset(write(tmp_path / "g.txt", gliner("a b")))[0].words == ["a", "b"]
    assert load_dataset(write(tmp_path / "brackets.txt", "[\tO", "{\tO"))[0].words == ["[", "{"]


# --- where data is found -----------------------------------------------------------------------------------------


def domains(root: Path) -> Path:
    for domain in ("ai", "music"):
        for split in ("train", "dev", "test"):
            write(root / domain / f"{split}.txt", f"{domain}-{split}\tB-{domain}")
    (root / "LICENSE").write_text("x")
    return root


def test_folder_of_domains(tmp_path: Path) -> None:
    root = domains(tmp_path / "bench")
    data = load_dataset(root, split="test")
    assert data.name == "bench-test"
    assert [(example.group, example.words) for example in data] == [("ai", ["ai-test"]), ("music", ["music-test"])]
    one = load_dataset(root / "ai", split="validation")
    assert one.name == "ai-validation" and one[0].words == ["ai-dev"] and one[0].group is None
    file = load_dataset(root / "ai" / "test.txt", split="test")
    assert file.name == "ai-test" and len(file) == 1
    with pytest.raises(
        ValueError, match=r"split: expected the name of one of its splits \(dev.txt, test.txt, train.txt\)"
    ):
        load_dataset(root)
    with pytest.raises(FileNotFoundError, match="no file for 'eval', got dev.txt, test.txt, train.txt"):
        load_dataset(root / "ai", split="eval")
    with pytest.raises(ValueError, match="split: expected .*, after which .* is named, got 'train'"):
        load_dataset(root / "ai" / "test.txt", split="train")


def test_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "mix"
    write(folder / "b.jsonl", gliner("x", [0, 0, "t"]))
    write(folder / "a.jsonl", gliner("y"))
    (folder / "README.md").write_text("x")
    write(folder / "readme.txt", "x")
    write(folder / ".hidden.jsonl", "x")
    data = load_dataset(str(folder) + "/")
    assert data.name == "mix" and [example.group for example in data] == ["a", "b"]
    assert load_dataset(folder, split="train").name == "mix"
    domains(folder)
    with pytest.raises(ValueError, match="expected data files or folders of data files, got both"):
        load_dataset(folder)


def test_folders_that_are_not_clear(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected a data file"):
        load_dataset(tmp_path / "empty")
    write(tmp_path / "two" / "train.txt", "a\tO")
    assert load_dataset(tmp_path / "two").name == "two"
    write(tmp_path / "two" / "train.jsonl", gliner("a"))
    with pytest.raises(ValueError, match="expected one file for split 'train', got train.jsonl, train.txt"):
        load_dataset(tmp_path / "two", split="train")
    write(tmp_path / "split" / "train" / "a.txt", "a\tO")
    with pytest.raises(ValueError, match=r"got folders of splits \(train\); name one of them"):
        load_dataset(tmp_path / "split")


@pytest.mark.parametrize("name", ["./a/b", "/no/such", "~/no-such", "a/b.jsonl", "a/b/c", "missing", "../a/b"])
def test_missing_paths_are_not_hub_names(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_dataset(name)


def test_a_slip_in_a_path_is_not_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match="data/crosner: no such"):
        load_dataset("data/crosner")


def test_wrong_sources() -> None:
    with pytest.raises(TypeError, match="source: expected a path or a hub name, got list"):
        load_dataset(["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source: .*empty"):
        load_dataset("")


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="owner/corpus: no such path.*pip install datasets"):
        load_dataset("owner/corpus")


class Table(list[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        super().__init__(rows)
        self.features = features


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package `datasets`, with integer tags as its ClassLabel columns have."""
    asked = []
    tags = types.SimpleNamespace(feature=types.SimpleNamespace(names=["O", "B-PER", "I-PER"]))
    tables = {
        "train": Table([{"tokens": ["Ada", "L", "."], "ner_tags": [1, 2, 0]}], {"ner_tags": tags}),
        "test": Table([pile("Ada", person=["Ada"])], {}),
        "validation": Table([pile("Ada", name=["Ada"])], {}),
    }

    def load(name: str, *, split: str) -> Table:
        asked.append((name, split))
        return tables[split]

    stand_in = types.SimpleNamespace(load_dataset=load, get_dataset_split_names=lambda name: list(tables))
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    data = load_dataset("owner/corpus")
    assert data[0] == Example(["Ada", "L", "."], [(0, 1, "person")], "owner/corpus/train[0]")
    assert load_dataset("owner/corpus", split="test")[0].types == ("person",)
    assert load_dataset("owner/corpus", split="dev")[0].types == ("name",)  # the hub says "validation"
    assert asked == [("owner/corpus", "train"), ("owner/corpus", "test"), ("owner/corpus", "validation")]
    tables["train"][0]["ner_tags"] = [1, 9, 0]
    with pytest.raises(ValueError, match=r"owner/corpus/train\[0\]: \"ner_tags\": expected O or a type .*, got 9"):
        load_dataset("owner/corpus")


# --- labels and real data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "label"),
    [
        ("programlang", "programming language"),
        ("politicalparty", "political party"),
        ("misc", "miscellaneous"),
        ("MISC", "miscellaneous"),
        ("organisation", "organisation"),
        ("PER", "person"),
        ("creative-work", "creative work"),
        ("CreativeWork", "creative work"),
        ("Work_Of_Art", "work of art"),
        ("DNA", "dna"),
        ("-", "-"),
    ],
)
def test_natural_labels(tag: str, label: str) -> None:
    assert natural_label(tag) == label
    assert natural_label(tag, {tag: "Mine"}) == "Mine"


def test_crossner(shared: Path) -> None:
    root = shared / "data" / "crossner"
    seen: set[str] = set()
    for split in ("train", "dev", "test"):
        data = load_dataset(root, split=split)
        assert {example.group for example in data} == {"ai", "literature", "music", "politics", "science"}
        seen.update(data.types)
    assert len(CROSSNER_LABELS) == 39 and seen == set(CROSSNER_LABELS.values())
    sizes = Counter(example.group for example in load_dataset(root, split="test"))
    assert sizes == {"ai": 431, "literature": 416, "music": 465, "politics": 651, "science": 543}  # Liu et al., table 1
    assert len(load_dataset(root / "ai", split="test").types) == 14


def test_mix(shared: Path) -> None:
    folder = shared / "data" / "mix"
    data = load_dataset(folder)
    rows = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    assert [example.words for example in data] == [row["tokenized_text"] for row in rows]
    assert [[list(entity) for entity in example.entities] for example in data] == [row["ner"] for row in rows]
    assert len(load_dataset(folder / "nuner-1k.jsonl").types) == 1528


def test_reading_needs_no_torch() -> None:
    code = "import sys, glimodern.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_types_are_found_or_given() -> None:
    examples = [Example(["a"], [(0, 0, "y")], types=("z", "x"))]
    assert Dataset("d", examples).types == ["x", "y", "z"]
    assert Dataset("d", examples, ["y"]).types == ["y"]
