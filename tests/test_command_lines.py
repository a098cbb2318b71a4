"""`python -m glimodern.predict` and `python -m glimodern.evaluate`, as a user types them."""

import io
import json
import subprocess
import sys
import warnings

import pytest

from glimodern import GLiModern, cli, evaluate, predict
from glimodern.data import Dataset, Example, asked_types, with_asked_types
from glimodern.inputs.packer import PromptPacker
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny_model.save_pretrained(folder / "model")
    return folder


def run_predict(capsys, *arguments):
    predict.main([str(argument) for argument in arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_predict_texts(folder, capsys):
    texts = ["Ada met Charles .", ""]
    rows = run_predict(capsys, folder / "model", "--labels", "person, place", "--threshold", "0", *texts)
    assert [row["text"] for row in rows] == texts
    model = GLiModern.from_pretrained(folder / "model")  # computes in what the command computes in
    assert [row["entities"] for row in rows] == model.predict(texts, ["person", "place"], threshold=0.0)
    assert rows[0]["entities"] and rows[1]["entities"] == []


def test_predict_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Ada met Charles .\nLondon\n")))
    rows = run_predict(capsys, folder / "model", "--labels", "person")
    assert [row["text"] for row in rows] == ["Ada met Charles .", "London"]


def test_predict_jsonl_keeps_the_other_fields(folder, capsys):
    lines = [{"text": "Ada met Charles .", "id": 7}, {"text": "x" * 100_000 + " London", "id": 8}]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    given = [folder / "model", "--labels", "person", "--input", folder / "in.jsonl"]
    rows = run_predict(capsys, *given)
    assert [sorted(row) for row in rows] == [["entities", "id", "text"]] * 2
    with pytest.warns(UserWarning, match="words at their ends were not read"):
        rows = run_predict(capsys, *given, "--long-texts", "cut")
    assert [row["id"] for row in rows] == [7, 8]
    assert "words_cut" not in rows[0]
    assert rows[1]["words_cut"] == 1


@pytest.mark.parametrize("line", ["{", '{"txt": "a"}', "[1]"])
def test_predict_bad_line_names_file_and_line(folder, capsys, line):
    (folder / "bad.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: "):
        run_predict(capsys, folder / "model", "--labels", "person", "--input", folder / "bad.jsonl")
    assert json.loads(capsys.readouterr().out)["text"] == "a"  # the line before it is answered


def test_predict_wants_labels(folder, capsys):
    with pytest.raises(ValueError, match="--labels: expected at least one type"):
        run_predict(capsys, folder / "model", "text")


def test_predict_as_a_module(folder):
    """Through the interpreter once: standard output holds JSON lines and nothing else."""
    command = [
        sys.executable,
        "-m",
        "glimodern.predict",
        str(folder / "model"),
        "--labels",
        "person",
        "Ada met Charles .",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["text"] == "Ada met Charles ."


def test_evaluate_writes_json(folder, capsys):
    rows = [
        {"tokenized_text": WORDS, "ner": [[0, 1, "person"], [3, 4, "person"], [6, 6, "place"]]},
        {"tokenized_text": ["Nothing", "."], "ner": []},
    ]
    (folder / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    evaluate.main([str(folder / "model"), "--data", str(folder / "gold.jsonl"), "--json", str(folder / "scores.json")])
    assert "person" in capsys.readouterr().out
    report = json.loads((folder / "scores.json").read_text())
    (scores,) = report["data"].values()
    assert scores["micro"]["gold"] == 3
    assert scores["sentences"] == 2
    assert report["mean_micro_f1"] == scores["micro"]["f1"]


GOLD = {"tokenized_text": WORDS, "ner": [[0, 1, "[/b]"], [6, 6, "[red]place"]]}


def test_evaluate_makes_the_folder_of_its_scores(folder, tmp_path, capsys):
    """Names that rich would read as markup are shown as they are."""
    data = tmp_path / "a[i].jsonl"
    data.write_text(json.dumps(GOLD) + "\n")
    file = tmp_path / "new" / "deeper" / "s.json"
    evaluate.main([str(folder / "model"), "--data", str(data), "--json", str(file)])
    assert json.loads(file.read_text())["failed"] == {}
    said = capsys.readouterr().out
    assert "a[i]" in said and "[/b]" in said and "[red]place" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--json", "{folder}"], "--json: expected a file to write, got the folder"),
        (["--json", "{folder}/gold.jsonl/s.json"], "--json: .* is no folder"),
        (["--json", "{folder}/gold.jsonl"], "--json: .* is read by the same command"),
        (["--json", "{folder}/model/model.safetensors"], "--json: .* is read by the same command"),
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_evaluate_checks_before_it_computes(folder, monkeypatch, more, message):
    (folder / "gold.jsonl").write_text(json.dumps(GOLD) + "\n")
    before = (folder / "gold.jsonl").read_text()
    monkeypatch.setattr(GLiModern, "from_pretrained", lambda *_, **__: pytest.fail("computed first"))
    given = [str(folder / "model"), "--data", str(folder / "gold.jsonl")]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.main([*given, *(one.replace("{folder}", str(folder)) for one in more)])
    assert (folder / "gold.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--long-texts", "cut", "--window", "9"], "window: expected long_texts windows, got cut"),
        (["--max-sentences", "0"], "max_sentences: expected a whole number >= 1"),
        (["--batch-tokens", "-5"], "batch_tokens: expected a whole number >= 1 or 'auto', got -5"),
    ],
)
def test_evaluate_checks_its_numbers(folder, capsys, more, message):
    with pytest.raises(SystemExit):
        evaluate.main([str(folder / "model"), "--data", "x", *more])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_data_set_that_fails_does_not_take_the_others_along(folder, tmp_path, monkeypatch):
    paths = [tmp_path / f"{name}.jsonl" for name in ("good", "bad")]
    for path in paths:
        path.write_text(json.dumps(GOLD) + "\n")
    predict_gold_labels = evaluate.predict_gold_labels

    def broken(model, dataset, *more, **options):
        if dataset.name == "bad":
            raise RuntimeError("out of luck")
        return predict_gold_labels(model, dataset, *more, **options)

    monkeypatch.setattr(evaluate, "predict_gold_labels", broken)
    given = [str(folder / "model"), "--data", *map(str, reversed(paths)), "--json", str(tmp_path / "s.json")]
    with pytest.raises(SystemExit, match="1 of 2 data sets were not evaluated: RuntimeError: out of luck"):
        evaluate.main(given)
    report = json.loads((tmp_path / "s.json").read_text())
    assert list(report["data"]) == [str(paths[0])] and list(report["failed"]) == [str(paths[1])]


def test_a_text_that_is_too_long_is_named_without_a_traceback(folder, tmp_path, caplog):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"tokenized_text": ["Ada"] * 999, "ner": [[0, 0, "person"]]}) + "\n")
    with pytest.raises(SystemExit, match="1 of 1 data sets were not evaluated: ValueError: texts"):
        evaluate.main([str(folder / "model"), "--data", str(path), "--long-texts", "error"])
    assert [record.exc_info for record in caplog.records if "was not evaluated" in record.message] in ([None], [False])


def test_evaluate_refuses_calibrated_thresholds_of_a_model_without_any(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("computed first"))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOLD) + "\n")
    with pytest.raises(ValueError, match="^threshold: expected a calibrated model"):
        evaluate.main([str(folder / "model"), "--data", str(path), "--threshold", "calibrated"])


def test_a_warning_is_one_line(capsys):
    def main():
        warnings.warn_explicit("labels: a warning", UserWarning, predict.__file__, 1)
        warnings.warn_explicit("of another package", UserWarning, "/other.py", 1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.run(main)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "warning: labels: a warning"
    assert rest[0] == "/other.py:1: UserWarning: of another package"


def test_evaluate_checks_its_thresholds_before_it_computes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(GLiModern, "from_pretrained", lambda *_, **__: pytest.fail("computed first"))
    for name, label in (("one", "x"), ("two", "y")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"tokenized_text": ["a"], "ner": [[0, 0, label]]}) + "\n")
    data = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    for given, message in (
        ("nan", r"expected a probability in \[0, 1\], got 'nan'"),
        ("x=0.5,z=0.5,*=1", r"expected types that the data are asked, or '\*', got \['z'\]"),
        ("x=0.5", r"expected a probability for each type of two, got none for \['y'\]; add '\*' for the others"),
    ):
        with pytest.raises(ValueError, match=f"--threshold: {message}"):
            evaluate.main([str(folder / "model"), "--data", *data, "--threshold", given])


def test_evaluate_passes_its_options_on(folder, tmp_path, monkeypatch, capsys):
    """Each data set gets the thresholds of its own types."""
    asked = []
    empty = evaluate.evaluate

    def watched(model, dataset, **options):
        asked.append(options)
        return empty(model, dataset, **options)

    monkeypatch.setattr(evaluate, "evaluate", watched)
    for name, label in (("one", "x"), ("two", "y")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"tokenized_text": ["a"], "ner": [[0, 0, label]]}) + "\n")
    given = [str(folder / "model"), "--data", str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    more = ["--threshold", "x=0.25,*=0.5", "--window", "12", "--context", "0", "--json", str(tmp_path / "s.json")]
    evaluate.main([*given, *more])
    options = {"batch_tokens": "auto", "descriptions": {}, "window": 12, "context": 0}
    assert asked == [{"threshold": {"x": 0.25, "*": 0.5}, **options}, {"threshold": {"*": 0.5}, **options}]
    assert "threshold x=0.25, *=0.5" in capsys.readouterr().out
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["threshold"], report["window"], report["failed"]) == ({"x": 0.25, "*": 0.5}, 12, {})


def test_gold_beyond_the_first_window_is_scored(tiny_model):
    """A document's entities are all found in windows; cut, those that are not read count as missed."""
    words, labels = WORDS * 12, ("person", "place")
    (found,) = tiny_model.predict_words([words], [labels], threshold=0.0)
    assert found.windows > 1
    own = Dataset("own", [Example(words, [entity[:3] for entity in found.entities], types=labels)])
    assert evaluate.evaluate(tiny_model, own, threshold=0.0).micro.f1 == 1.0
    with pytest.warns(UserWarning, match="were not read"):
        cut = evaluate.evaluate(tiny_model, own, threshold=0.0, long_texts="cut").micro
    assert cut.gold == len(found.entities) and 0 < cut.recall < 0.8


def test_many_labels_are_evaluated_in_groups(tiny_model):
    labels = tuple(f"{'very ' * 8}long label {number}" for number in range(20))
    assert tiny_model.packer.prompt_problem(labels)
    dataset = Dataset("many", [Example(WORDS, [(0, 0, label) for label in labels])])
    evaluate.check_evaluation("--data", dataset, tiny_model.packer)
    assert evaluate.evaluate(tiny_model, dataset).micro.gold == 20


def test_labels_that_do_not_fit_are_named_before_anything_is_evaluated(folder, tmp_path, monkeypatch):
    wide = {"tokenized_text": ["Ada"], "ner": [[0, 0, "short"], [0, 0, "very " * 130 + "long"]]}
    (tmp_path / "two.jsonl").write_text(json.dumps(wide) + "\n")
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("evaluated first"))
    with pytest.raises(ValueError, match=r"--data: two, sentence .*two.jsonl:1: .*do not fit .*alone has"):
        evaluate.main([str(folder / "model"), "--data", str(tmp_path / "two.jsonl")])


def test_no_gold_is_said(folder, tmp_path, caplog):
    (tmp_path / "none.jsonl").write_text(json.dumps({"tokenized_text": ["a"], "ner": [], "ner_labels": ["x"]}) + "\n")
    evaluate.main([str(folder / "model"), "--data", str(tmp_path / "none.jsonl")])
    assert "none has no gold entity, so F1 is 0" in caplog.text


def test_a_list_in_two_flags_is_refused(capsys):
    from glimodern.compare import loop as compare

    with pytest.raises(ValueError, match=r"^--data: expected one flag with all its values \(--data A B\), got several"):
        evaluate.main(["model", "--data", "a.jsonl", "--data=b.jsonl"])
    with pytest.raises(ValueError, match=r"^--encoders: expected one flag with all its values \(--encoders A,B\)"):
        compare.main(["--encoders", "a", "--encoders", "b"])


def test_evaluate_wants_data(folder):
    with pytest.raises(ValueError, match="--data: expected at least one"):
        evaluate.main([str(folder / "model"), "--data"])


def test_each_group_is_asked_its_own_types():
    examples = [
        Example(["a"], [(0, 0, "x")], group="one"),
        Example(["b"], [(0, 0, "y")], group="two"),
        Example(["c"], [], types=("z",), group="two"),
        Example(["d"], []),
    ]
    assert asked_types(Dataset("d", examples)) == [["x"], ["y"], ["z"], ["x", "y", "z"]]
    first = evaluate.first_sentences(with_asked_types(Dataset("d", examples)), 1)
    assert [(example.words, example.types) for example in first] == [
        (["a"], ("x",)),
        (["b"], ("y",)),
        (["d"], ("x", "y", "z")),
    ]


def test_gold_that_is_not_asked_for_is_asked_too(tiny_model):
    """Nothing of the gold vanishes because a row's own types leave it out."""
    dataset = Dataset("d", [Example(["a", "b"], [(0, 0, "x"), (1, 1, "y")], types=("x",))])
    assert asked_types(dataset) == [["x", "y"]]
    assert evaluate.evaluate(tiny_model, dataset).micro.gold == 2


def test_evaluate_scores_what_predict_finds(tiny_model):
    """Gold made of the model's own predictions scores 1, and of nothing else."""
    (found,) = tiny_model.predict_words([WORDS], [["person", "place"]], threshold=0.0)
    entities = [entity[:3] for entity in found.entities]
    perfect = Dataset("own", [Example(WORDS, entities, types=("person", "place"))])
    assert evaluate.evaluate(tiny_model, perfect, threshold=0.0).micro.f1 == 1.0
    half = Dataset("half", [Example(WORDS, entities[::2], types=("person", "place"))])
    scores = evaluate.evaluate(tiny_model, half, threshold=0.0).micro
    assert (scores.recall, scores.correct, scores.predicted) == (1.0, len(entities[::2]), len(entities))


def test_importing_the_package_is_light():
    script = "import sys, glimodern; print(sorted(m for m in ('torch', 'transformers', 'triton') if m in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_evaluate_reads_descriptions_of_types(folder, tmp_path, monkeypatch, capsys):
    """The model reads the descriptions; gold and scores keep the types."""
    rows = [{"tokenized_text": WORDS, "ner": [[0, 1, "person"], [3, 4, "person"], [6, 6, "place"]]}]
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps(rows[0]))
    types = {"person", "place"}
    renamed = [{**row, "ner": [[start, end, f"{label}-tag"] for start, end, label in row["ner"]]} for row in rows]
    data, file = tmp_path / "tags.jsonl", tmp_path / "descriptions.json"
    data.write_text("\n".join(map(json.dumps, renamed)))
    file.write_text(json.dumps({f"{label}-tag": label for label in types}))
    scores, read = [], []
    pack = PromptPacker.pack_tokens

    def record(packer, texts, types, *arguments, **options):
        read.append(set(types[0]))
        return pack(packer, texts, types, *arguments, **options)

    monkeypatch.setattr(PromptPacker, "pack_tokens", record)
    for source, more in ((plain, []), (data, ["--descriptions-file", str(file)]), (data, [])):
        out = tmp_path / "scores.json"
        evaluate.main([str(folder / "model"), "--data", str(source), "--threshold", "0.0", "--json", str(out), *more])
        (found,) = json.loads(out.read_text())["data"].values()
        scores.append((found["micro"], set(found["per_type"])))
    assert read == [types, types, {f"{label}-tag" for label in types}]
    assert scores[0][0] == scores[1][0]
    assert scores[1][1] == {f"{label}-tag" for label in types}
    file.write_text(json.dumps({"dragon": "a large lizard"}))
    with pytest.raises(
        ValueError, match=r"--descriptions-file: expected types that the data are asked, got \['dragon'\]"
    ):
        evaluate.main([str(folder / "model"), "--data", str(data), "--descriptions-file", str(file)])
