"""`python -m glimodern.data.figures`: its numbers on a corpus with known overlap, its files, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimodern.data import Dataset, Example
from glimodern.data.figures import __main__ as command
from glimodern.data.figures.counts import TrainingVocabulary, length_counts, overlap, parts, surface
from glimodern.data.figures.familiarity import NGRAMS, TOP, label_familiarity, ngram_similarities, zipf_mean

ROOT = Path(__file__).parents[1]


def row(words: str, *entities: tuple[int, int, str]) -> dict[str, Any]:
    return {"tokenized_text": words.split(), "ner": entities}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Training and evaluation data, of which half of the entities and one of four types are known."""
    write(
        tmp_path / "train.jsonl",
        row("Ada met TGF - beta", (0, 0, "person"), (2, 4, "protein")),
        row("Oslo is big", (0, 0, "City")),
        row("no entity at all here"),
    )
    write(
        tmp_path / "eval" / "one.jsonl",
        row("Ada sees TGF-beta", (0, 0, "person"), (2, 2, "gene")),  # both texts as written, one type
        row("OSLO or Rome", (0, 0, "city"), (2, 2, "city")),  # one text and the type by folding
    )
    write(tmp_path / "eval" / "two.jsonl", row("Charles is in Bergen", (0, 0, "person"), (3, 3, "fjord town")), row(""))
    return tmp_path


def run(folder: Path, *more: str) -> dict[str, Any]:
    given = ["--train", "train.jsonl", "--eval", "eval", "--output", "out"]
    command.main([*(str(folder / one) if not one.startswith("--") else one for one in given), *more])
    report: dict[str, Any] = json.loads((folder / "out" / "figures.json").read_text())
    return report


@pytest.fixture
def report(corpus: Path) -> dict[str, Any]:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    return run(corpus)


# numbers


def shares(counts: dict[str, Any]) -> tuple[float, ...]:
    return tuple(counts[key] for key in ("total", "exact", "folded", "share_exact", "share_folded"))


def test_overlap_of_a_corpus_made_for_it(report):
    (whole,) = report["eval"]
    assert whole["name"] == "eval"
    assert shares(whole["overlap"]["entities"]) == (6, 2, 3, round(2 / 6, 6), 0.5)
    assert shares(whole["overlap"]["entity_texts"]) == (6, 2, 3, round(2 / 6, 6), 0.5)
    assert shares(whole["overlap"]["types"]) == (4, 1, 2, 0.25, 0.5)
    assert whole["overlap"]["labels"] == ["city", "fjord town", "gene", "person"]
    one, two = whole["groups"]
    assert [one["name"], two["name"]] == ["one", "two"]
    assert shares(one["overlap"]["entities"]) == (4, 2, 3, 0.5, 0.75)
    assert shares(one["overlap"]["types"]) == (3, 1, 2, round(1 / 3, 6), round(2 / 3, 6))
    assert shares(two["overlap"]["entities"]) == (2, 0, 0, 0.0, 0.0)
    assert shares(two["overlap"]["types"]) == (2, 1, 1, 0.5, 0.5)
    assert (report["train_types"], report["train_entity_texts"]) == (3, 3)


def test_lengths_of_a_corpus_made_for_it(report):
    (train,) = report["train"]
    assert train["groups"] == [] and train["entities"] == 3 and train["types"] == 3 and train["entity_texts"] == 3
    assert train["lengths"] == {
        "sentences": 3, "empty": 0, "words": 13, "mean": 4.333333, "least": 3, "q05": 3, "q25": 3, "median": 5,
        "q75": 5, "q95": 5, "most": 5,
    }  # fmt: skip
    assert report["eval"][0]["groups"][1]["lengths"]["empty"] == 1
    assert report["eval"][0]["lengths"]["sentences"] == 4


def test_a_mention_counts_each_time_and_a_text_once():
    training = TrainingVocabulary([Dataset("t", [Example(["Ada"], [(0, 0, "x")])])])
    words = ["Ada", "Ada", "Bob"]
    counted = overlap([Example(words, [(i, i, "x") for i in range(3)])], training)
    assert (counted["entities"]["total"], counted["entities"]["exact"]) == (3, 2)
    assert (counted["entity_texts"]["total"], counted["entity_texts"]["exact"]) == (2, 1)


def test_folding_is_that_of_unicode_and_exact_is_not():
    training = TrainingVocabulary([Dataset("t", [Example(["Straße"], [(0, 0, " Ort ")])])])
    counted = overlap([Example(["STRASSE"], [(0, 0, "ort")])], training)
    for key in ("entities", "types"):
        assert (counted[key]["exact"], counted[key]["folded"]) == (0, 1)


def test_a_text_does_not_depend_on_how_its_words_are_split():
    texts = [["U.S."], ["U", ".", "S", "."], ["U.\u00a0S."], ["U. ", " S."]]
    assert {surface(Example(words, []), 0, len(words) - 1) for words in texts} == {"U.S."}
    with pytest.raises(ValueError, match=r"entities: expected 0 <= first word <= last word < 1, got 0 and 1 in f:3; "):
        surface(Example(["a"], [], id="f:3"), 0, 1)


def test_quantiles_by_brute_force():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 237).tolist()
    counts = length_counts(Example(["w"] * length, []) for length in [*lengths, 0])
    for name, share in (("q05", 0.05), ("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("q95", 0.95)):
        expected = next(k for k in range(1, 60) if sum(length <= k for length in lengths) >= share * len(lengths))
        assert counts[name] == expected
    assert (counts["sentences"], counts["empty"], counts["words"]) == (238, 1, sum(lengths))
    assert (counts["least"], counts["most"]) == (min(lengths), max(lengths))
    assert length_counts([Example([], [])]) == {"sentences": 1, "empty": 1, "words": 0}


def test_groups_are_shown_if_there_are_two():
    examples = [Example(["a"], [], group=group) for group in ("b", "a", "b", None)]
    assert [(name, len(some)) for name, some in parts(Dataset("d", examples))] == [(None, 4), ("a", 1), ("b", 2)]
    assert [name for name, _ in parts(Dataset("d", examples[2:]))] == [None]


# familiarity


def test_zipf_mean_by_brute_force():
    rng = np.random.default_rng(1)
    similarities, counts = rng.random(7), rng.integers(1, 9, 7)
    repeated = sorted(np.repeat(similarities, counts), reverse=True)
    for top in (1, 5, len(repeated), 50):
        weights = [1 / rank for rank in range(1, top + 1)]
        expected = sum(w * s for w, s in zip(weights, repeated, strict=False)) / sum(weights)
        assert zipf_mean(similarities, counts, top) == pytest.approx(expected, abs=1e-12)


def dense_similarity(label: str, training: list[str]) -> list[float]:
    """The formula of `ngram_similarities` with dense vectors."""

    def grams(text: str) -> list[str]:
        words = [f" {word} " for word in text.casefold().replace("-", " ").split()]
        return [word[i : i + n] for word in words for n in NGRAMS for i in range(len(word) - n + 1)]

    names = sorted({gram for text in [label, *training] for gram in grams(text)})
    df = [sum(gram in grams(text) for text in training) for gram in names]
    idf = 1 + np.log((1 + len(training)) / (1 + np.array(df)))
    rows = np.array([[grams(text).count(gram) for gram in names] for text in [label, *training]]) * idf
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows[1:] @ rows[0]).tolist()


@pytest.mark.parametrize("label", ["Organisation", "musical-artist", "art", "zzz"])
def test_ngram_similarity_by_dense_vectors(label):
    training = ["organization", "organism", "artist", "music", "Musical Artist", "x"]
    (found,) = ngram_similarities([label], training)
    assert found == pytest.approx(dense_similarity(label, training), abs=1e-12)
    assert ((found >= 0) & (found <= 1)).all()


def test_familiarity_of_labels():
    training = {"organization": 500, "person": TOP, "organism": 3}
    found = label_familiarity(["Person", "organisation", "qqq"], training)
    assert found["Person"] == {"familiarity": 1.0, "nearest": "person", "similarity": 1.0, "nearest_entities": TOP}
    assert found["organisation"]["nearest"] == "organization" and 0.3 < found["organisation"]["familiarity"] < 1
    assert found["qqq"]["familiarity"] == 0.0 and found["qqq"]["nearest"] == "person"  # the most frequent of equals
    rare = label_familiarity(["person"], {"person": 1})["person"]["familiarity"]
    assert rare == pytest.approx(1 / sum(1 / rank for rank in range(1, TOP + 1)), abs=1e-6)
    assert label_familiarity(["..."], {"...": TOP})["..."]["familiarity"] == 1.0  # a label without a letter


def test_familiarity_of_a_set_is_the_mean_over_its_types(report):
    (whole,) = report["eval"]
    for one in (whole, *whole["groups"]):
        values = [report["labels"][label]["familiarity"] for label in one["overlap"]["labels"]]
        assert one["familiarity"] == pytest.approx(np.mean(values), abs=1e-6)


def test_familiarity_by_an_encoder(tiny_encoder, corpus):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    report = run(corpus, "--encoder", str(tiny_encoder))
    assert report["similarity"] == f"encoder {tiny_encoder.name}"
    assert report["labels"]["person"]["nearest"] == "person"
    assert report["labels"]["person"]["similarity"] == pytest.approx(1.0, abs=1e-6)
    # padding beside a longer label changes nothing
    alone = label_familiarity(["fjord town"], {"person": TOP}, tiny_encoder)["fjord town"]["similarity"]
    beside = label_familiarity(["fjord town", "a " * 20], {"person": TOP}, tiny_encoder)["fjord town"]["similarity"]
    assert alone == pytest.approx(beside, abs=1e-5)
    with pytest.raises(ValueError, match=r"encoder: expected labels of at most 64 tokens, got \d+ for 'a a .*leave"):
        label_familiarity(["a " * 80], {"person": 1}, tiny_encoder)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    from glimodern.train.demo import train_tokenizer

    folder = Path(tmp_path_factory.mktemp("encoder") / "tiny")
    tokenizer = train_tokenizer([["person", "protein", "city", "a"]] * 4, ["person"], vocab_size=300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


# files


def test_files_are_whole_and_the_others_stay(report, corpus):
    out = corpus / "out"
    assert {path.name for path in out.iterdir()} == set(command.NAMES)
    for name in ("lengths", "overlap"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        svg = (out / f"{name}.svg").read_text()
        assert svg.rstrip().endswith("</svg>") and "<dc:date>" not in svg
    (out / "notes.txt").write_text("mine")
    run(corpus)
    assert (out / "notes.txt").read_text() == "mine"


def test_two_runs_write_the_same_bytes(report, corpus):
    out = corpus / "out"
    first = {name: (out / name).read_bytes() for name in command.NAMES}
    given = ["--train", str(corpus / "train.jsonl"), "--eval", str(corpus / "eval"), "--output", str(corpus / "again")]
    environment = {"PYTHONHASHSEED": "7", "PATH": "", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "glimodern.data.figures", *given], check=True, cwd=ROOT, env=environment)
    assert {name: (corpus / "again" / name).read_bytes() for name in command.NAMES} == first


def test_nothing_is_written_when_drawing_fails(corpus, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the extra plots")

    def fail(report: object, folder: Path) -> None:
        (folder / "lengths.png").write_text("half")
        raise RuntimeError("no space")

    monkeypatch.setattr(command, "draw", fail)
    with pytest.raises(RuntimeError, match="no space"):
        run(corpus)
    assert not (corpus / "out").exists()


def test_names_are_drawn_as_they_are(tmp_path):
    """A name with dollar signs is no formula, and one with control characters does not break SVG."""
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    sentence = Example(["a"], [(0, 0, "x")])
    report = command.make_report([Dataset("$x_{", [sentence])], [Dataset("a\x07\ud800", [sentence])])
    command.write_figures(report, tmp_path / "out")
    json.loads((tmp_path / "out" / "figures.json").read_text())
    pytest.importorskip("xml.etree.ElementTree").parse(tmp_path / "out" / "overlap.svg")


def test_the_table(report, capsys, corpus):
    run(corpus)
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("eval 6 33.3 50.0 4 25.0 50.0 0.") for line in lines)
    assert any(line.startswith("two 2 0.0 0.0 2 50.0 50.0 0.") for line in lines)


def test_a_set_without_a_sentence_in_words_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    train = Dataset("t", [Example(["a"], [(0, 0, "x")])])
    groups = [Example(["a"], [(0, 0, "x")], group="one"), Example([], [], group="two")]
    report = command.make_report([train], [Dataset("e", groups)])
    assert report["eval"][0]["groups"][1]["familiarity"] is None
    command.write_figures(report, tmp_path)


# what it refuses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--train": []}, "train: expected at least one file, folder or hub data set, got none"),
        ({"--eval": []}, "eval: expected at least one file, folder or hub data set, got none"),
        ({"--train": ["missing.jsonl"]}, "no such file or folder"),
        ({"--eval": ["missing.jsonl"]}, "no such file or folder"),
        ({"--train": ["train.jsonl", "./eval/../train.jsonl"]}, "train: expected each data set once, got .*leave one"),
        ({"--eval": ["eval", "eval"]}, "eval: expected each data set once, got .*leave one"),
        ({"--eval": ["train.jsonl"]}, "eval: expected data that train does not read, got .*train.jsonl in both"),
        ({"--train": ["empty.jsonl"]}, "empty.jsonl: expected at least one sentence, got none"),
        ({"--train": ["bare.jsonl"]}, "train: expected gold entities, got none in bare; name annotated data"),
        ({"--eval": ["bare.jsonl"]}, "eval: expected gold entities, got none in the 1 sentences of bare; leave it out"),
        ({"--output": ["train.jsonl"]}, "output: expected a folder, got .*train.jsonl, which is no folder"),
        ({"--output": ["eval"]}, "output: expected a folder outside .*eval, which eval reads"),
        ({"--output": ["eval/figures"]}, "output: expected a folder outside .*eval, which eval reads"),
        ({"--output": ["taken"]}, "output: expected .*lengths.svg to be a file or not to exist, got a folder"),
        ({"--encoder": ["eval"]}, "encoder: expected a folder of an encoder of transformers, with config.json, got"),
    ],
)
def test_bad_inputs(corpus, changes, message):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    write(corpus / "empty.jsonl")
    write(corpus / "bare.jsonl", row("no entity"))
    (corpus / "taken" / "lengths.svg").mkdir(parents=True)
    flags = {"--train": ["train.jsonl"], "--eval": ["eval"], "--output": ["out"]} | changes
    given = [one for flag, paths in flags.items() for one in (flag, *(f"{corpus}/{path}" for path in paths))]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        command.main(given)
    assert "\n" not in str(raised.value)
    assert not (corpus / "out").exists()


def test_one_folder_with_a_split_for_each_is_read_for_both(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    write(tmp_path / "d" / "train.jsonl", row("Ada", (0, 0, "person")))
    write(tmp_path / "d" / "test.jsonl", row("Bob", (0, 0, "person")))
    given = ["--train", str(tmp_path / "d"), "--eval", str(tmp_path / "d"), "--output", str(tmp_path / "out")]
    command.main(given)
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["eval"][0]["name"] == "d-test"
    with pytest.raises(ValueError, match="eval: expected data that train does not read"):
        command.main([*given, "--eval-split", "train"])


def test_matplotlib_is_missing(corpus):
    """One line that says so, with the remedy."""
    (corpus / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")")
    given = ["--train", str(corpus / "train.jsonl"), "--eval", str(corpus / "eval"), "--output", str(corpus / "out")]
    answer = subprocess.run(
        [sys.executable, "-m", "glimodern.data.figures", *given],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{corpus}:{ROOT}", "PATH": ""},
        cwd=corpus,
    )
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        "error: figures: expected the package matplotlib, got none; pip install 'glimodern[plots]'"
    ]


def test_no_torch_is_loaded(corpus):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    given = ["--train", str(corpus / "train.jsonl"), "--eval", str(corpus / "eval"), "--output", str(corpus / "out")]
    script = (
        f"import sys; from glimodern.data.figures.__main__ import main; main({given!r}); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.splitlines()[-1] == "False"


def test_the_mix_against_crossner(shared):
    """The numbers of docs/train.md."""
    from glimodern.data import load_dataset

    data = shared / "data"
    report = command.make_report([load_dataset(data / "mix")], [load_dataset(data / "crossner", split="test")])
    (mix,), (crossner,) = report["train"], report["eval"]
    assert (mix["lengths"]["sentences"], mix["entities"], mix["types"]) == (32220, 53162, 1545)
    assert shares(crossner["overlap"]["entities"])[:1] == (14709,)
    page = (ROOT / "docs" / "train.md").read_text()
    for one in (crossner, *crossner["groups"]):
        name = "all five" if one is crossner else one["name"]
        seen = one["overlap"]
        numbers = [
            seen["entities"]["share_exact"],
            seen["entities"]["share_folded"],
            seen["entity_texts"]["share_exact"],
        ]
        cells = [f"{100 * number:.1f}" for number in (*numbers, seen["types"]["share_exact"])]
        line = [name, f"{one['entities']:,}", *cells, f"{one['familiarity']:.2f}"]
        assert f"| {' | '.join(line)} |" in page
        assert seen["types"]["exact"] == seen["types"]["folded"]
