"""`python -m glimodern.predict` on hostile input, and how every command line ends (glimodern.cli)."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from glimodern import GLiModern, cli, predict
from glimodern.inference.entities import Entities


class Echo:
    """In place of a model: finds each label that stands in a text. `calls`: the texts of each call."""

    def __init__(self):
        self.calls = []
        self.asked = self.threshold = self.options = None

    def predict(self, texts, labels, threshold, flat, multi_label, **options):
        texts = list(texts)
        self.calls.append(texts)
        self.asked, self.threshold, self.options = labels, threshold, options
        return self.answers(texts, labels, options.get("long_texts"))

    def answers(self, texts, labels, long_texts):
        for i, text in enumerate(texts):
            if "long" in text and long_texts == "error":
                raise ValueError(f"texts[{i}]: expected at most 3 words")
            yield Entities([{"label": label} for label in labels if label in text], 3 if "long" in text else 0)


@pytest.fixture
def echo(monkeypatch):
    model = Echo()
    monkeypatch.setattr(GLiModern, "from_pretrained", lambda *args, **kwargs: model)
    return model


@pytest.fixture
def run(echo, capsysbinary, monkeypatch):
    """run(*arguments, stdin=b"") -> the rows that come out."""

    def run(*arguments, stdin=b"", labels=("--labels", "Ada")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            predict.main(["model", *labels, *map(str, arguments)])
        finally:
            run.rows = [json.loads(line) for line in capsysbinary.readouterr().out.decode("utf-8").splitlines()]
        return run.rows

    return run


def texts(rows):
    return [row["text"] for row in rows]


# --- labels ------------------------------------------------------------------------------------------------------

NORP = "nationality, religious or political group"


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [
        (["--labels", "a, b ,,c,a"], ["a", "b", "c"]),
        (["--labels", "a", "--labels", "b,c"], ["a", "b", "c"]),
        (["--labels", f'a, "{NORP}",b'], ["a", NORP, "b"]),
        (["--label", NORP, "--labels", "a", "--label", "b"], ["a", NORP, "b"]),
        (["--labels", 'a 5" gun,say ""hi""'], ['a 5" gun', 'say ""hi""']),
        (["--label", '"a"'], ['"a"']),
    ],
)
def test_labels(run, echo, arguments, labels):
    run("text", labels=arguments)
    assert list(echo.asked.items()) == [(label, label) for label in labels]


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        (f"person\r\n\n {NORP}\n".encode("utf-16"), {"person": "person", NORP: NORP}),
        (gzip.compress(b'["person", "a, b"]', mtime=0), {"person": "person", "a, b": "a, b"}),
        (b'{"person": "a human being",\n "city": "city"}', {"person": "a human being", "city": "city"}),
    ],
)
def test_labels_file(run, echo, tmp_path, content, asked):
    (tmp_path / "labels").write_bytes(content)
    run("text", labels=["--labels", "x", "--labels-file", str(tmp_path / "labels")])
    assert echo.asked == {"x": "x", **asked}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xff\n", "labels:2: expected UTF-8"),
        (b'["a", 1]', "labels: expected types, .* got 1"),
        (b'["a", " "]', "expected types, .* got ' '"),
        (b'{"a": null}', "expected types, or types with descriptions, as strings, got None"),
        (b'["a",', "labels: expected a JSON list or object of types, got broken JSON"),
        (b"\n", "--labels: expected at least one type"),
    ],
)
def test_bad_labels_file(run, tmp_path, content, message):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run("text", labels=["--labels-file", str(tmp_path / "labels")])


def test_standard_input_holds_labels_or_texts(run, echo, monkeypatch):
    for more in ((), ("--input", "-")):
        with pytest.raises(ValueError, match="--labels-file: expected a file, got - beside texts on standard input"):
            run(*more, labels=["--labels-file", "-"])
    stdin = io.TextIOWrapper(io.BytesIO(b"person\ncity\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    predict.main(["model", "text", "--labels-file", "-"])
    assert list(echo.asked) == ["person", "city"] and not stdin.buffer.closed


def test_bad_labels(run):
    for labels in ([], ["--labels", " , "], ["--label", ""]):
        with pytest.raises(ValueError, match="--labels: expected at least one type"):
            run("text", labels=labels)
    with pytest.raises(ValueError, match="--labels: expected types separated by commas, got"):
        run("text", labels=["--labels", 'a,"b'])
    with pytest.raises(ValueError, match="--labels: expected UTF-8, got '\\\\udcff'"):
        run("text", labels=["--label", "\udcff"])


def test_a_described_label_is_answered_by_its_name(tiny_model, capsys, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "labels.json").write_text('{"who": "person"}')
    text = "Ada met Charles ."
    predict.main([str(tmp_path / "model"), "--labels-file", str(tmp_path / "labels.json"), "--threshold", "0", text])
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    expected = GLiModern.from_pretrained(tmp_path / "model").predict(text, ["person"], 0.0)[0]
    assert expected and row["entities"] == [{**entity, "label": "who"} for entity in expected]


# --- thresholds and long texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "threshold"),
    [
        ([], 0.5),
        (["0.4"], 0.4),
        (["1"], 1.0),
        (["calibrated"], "calibrated"),
        (["Ada=0.5"], {"Ada": 0.5}),
        ([" Ada = 0.5 , *=0.25,"], {"Ada": 0.5, "*": 0.25}),
        (["Ada=0.5", "*=0.25"], {"Ada": 0.5, "*": 0.25}),
        (["a=b=0.5,*=1"], {"a=b": 0.5, "*": 1.0}),
        ([f'"{NORP}=0.5",*=0'], {NORP: 0.5, "*": 0.0}),
    ],
)
def test_thresholds(run, echo, given, threshold):
    labels = ["--labels", "Ada,a=b", "--label", NORP]
    if threshold == {"Ada": 0.5}:
        labels = ["--labels", "Ada"]
    run(*(part for value in given for part in ("--threshold", value)), "text", labels=labels)
    assert echo.threshold == threshold


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["high"], r'expected a probability, TYPE=PROBABILITY pairs .* or "calibrated", got .high.'),
        (["0.4,0.5"], r"pairs separated by commas, or .calibrated., got .0\.4"),
        (["calibrated,Ada=0.5"], "got 'calibrated'"),
        (["Ada=0.5,0.4"], "got '0.4'"),
        (["2"], r"expected a probability in \[0, 1\], got '2'"),
        (["nan"], r"expected a probability in \[0, 1\], got 'nan'"),
        (["Ada=-1"], r"expected a probability in \[0, 1\] for 'Ada', got '-1'"),
        (["Ada=x"], r"expected a probability in \[0, 1\] for 'Ada', got 'x'"),
        (["Ada=0.5", "Ada=0.6"], "expected each type once, got 'Ada' twice"),
        (["=0.5"], "got '=0.5'"),
        ([" "], "got none"),
        (['"Ada=0.5'], "got '\"Ada=0.5' .unexpected end of data"),
        (["city=0.5"], r"expected labels that are asked, or '\*' for the others, got \['city'\]"),
        (["*=0.5,city=0.5"], r"got \['city'\]"),
    ],
)
def test_bad_thresholds(run, monkeypatch, given, message):
    monkeypatch.setattr(GLiModern, "from_pretrained", None)  # before the model is loaded
    with pytest.raises(ValueError, match=f"threshold: .*{message}"):
        run(*(part for value in given for part in ("--threshold", value)), "text")


def test_a_type_without_a_threshold(run):
    with pytest.raises(ValueError, match=r"threshold: .* got none for \['Bo'\]; add '\*' for the others"):
        run("--threshold", "Ada=0.5", "text", labels=["--labels", "Ada,Bo"])


def test_options_of_reading(run, echo):
    run("text")
    assert echo.options == {"top_k": None}  # all others are the model's
    run("text", "--long-texts", "windows", "--window", "30", "--context", "0", "--labels-per-prompt", "4")
    assert echo.options == {
        **{"top_k": None, "long_texts": "windows", "window": 30, "context": 0, "labels_per_prompt": 4}
    }
    run("text", "--window", "sentence", "--top-k", "2")
    assert echo.options == {"top_k": 2, "window": "sentence"}
    run("text", "--window", "sentence", "--long-texts", "error")
    assert echo.options == {"top_k": None, "window": "sentence", "long_texts": "error"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--long-texts", "some"], "invalid choice"),
        (["--window", "0"], "window: expected a whole number >= 1 or 'sentence' or nothing, got 0"),
        (["--context", "-1"], "context: expected a whole number >= 0"),
        (["--labels-per-prompt", "0"], "labels_per_prompt: expected a whole number >= 1"),
        (["--top-k", "0"], "top_k: expected a whole number >= 1"),
        (
            ["--long-texts", "cut", "--window", "9", "--context", "1"],
            "window, context: expected long_texts windows, got",
        ),
        (["--long-texts", "error", "--context", "3"], "windows, and context 3; leave one of them out"),
    ],
)
def test_bad_options_of_reading(monkeypatch, capsys, given, message):
    monkeypatch.setattr(GLiModern, "from_pretrained", None)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        predict.main(["model", "--labels", "Ada", "text", *given])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_long_text_that_is_an_error(run, caplog):
    """It is a bad row: the texts before it are answered, and only --skip-bad-rows goes on after it."""
    given = ["one", "a long one", "three", "a long one", "five", "--long-texts", "error"]
    with pytest.raises(ValueError, match="^text 2: expected at most 3 words$"):
        run(*given)
    assert texts(run.rows) == ["one"]
    assert texts(run(*given, "--skip-bad-rows")) == ["one", "three", "five"]
    assert "left out 2 bad rows of 5; the first: text 2: expected at most 3 words" in caplog.text
    with pytest.raises(ValueError, match="input: expected at least one row that reads, got 1 bad, the first: text 1:"):
        run("a long one", "--long-texts", "error", "--skip-bad-rows")


def test_options_reach_the_model(tiny_model, capsys, tmp_path):
    """Each option gives what `predict` gives with it."""
    tiny_model.save_pretrained(tmp_path / "model")
    model = GLiModern.from_pretrained(tmp_path / "model")
    text = " ".join(f"Ada met Charles number {i} in London ." for i in range(40))
    for given, options in (
        ([], {}),
        (["--window", "20", "--context", "2"], {"window": 20, "context": 2}),
        (["--window", "sentence"], {"window": "sentence"}),
        (["--labels-per-prompt", "1"], {"labels_per_prompt": 1}),
        (["--top-k", "3"], {"top_k": 3}),
        (["--threshold", "person=0.2,*=0.3"], {"threshold": {"person": 0.2, "*": 0.3}}),
    ):
        given = [str(tmp_path / "model"), text, "--labels", "person,place", "--threshold", "0.3", *given]
        if "threshold" in options:
            del given[4:6]
        predict.main(given)
        (row,) = map(json.loads, capsys.readouterr().out.splitlines())
        (wanted,) = model.predict(text, ["person", "place"], **{"threshold": 0.3, **options})
        assert row == {"text": text, "entities": wanted} and wanted
    with pytest.warns(UserWarning, match="words at their ends were not read"):
        predict.main([str(tmp_path / "model"), text, "--labels", "person", "--long-texts", "cut"])
    assert json.loads(capsys.readouterr().out)["words_cut"] > 100


# --- rows --------------------------------------------------------------------------------------------------------


def test_lines_of_text(run, tmp_path):
    data = "\ufeffAda met\u2028Bob\r\n\r\nZoë\rlast".encode()
    lines = ["Ada met\u2028Bob", "", "Zoë", "last"]
    assert texts(run(stdin=data)) == texts(run("--input", "-", stdin=data)) == lines
    for name, content in (
        ("a.txt", data),
        ("a.gz", gzip.compress(data, mtime=0)),
        ("b", data.decode("utf-8-sig").encode("utf-16")),
    ):
        (tmp_path / name).write_bytes(content)
        rows = run("--input", tmp_path / name)
        assert texts(rows) == lines
        assert [row["entities"] for row in rows] == [[{"label": "Ada"}], [], [], []]
    assert run(stdin=b"") == []


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL", "x.json", "x.Json", "x.jsonl.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_rows_keep_their_fields(run, tmp_path, name, indent):
    rows = [{"id": 7, "text": "Ada", "score": 1.5, "é": [None, {"a": "東"}]}, {"text": "a long one", "n": 10**30}]
    answers = [{**rows[0], "entities": [{"label": "Ada"}]}, {**rows[1], "entities": [], "words_cut": 3}]
    for content in ("\n\n".join(json.dumps(row, indent=indent) for row in rows), json.dumps(rows, indent=indent)):
        data = content.encode("utf-8-sig")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        assert run("--input", tmp_path / name) == answers
        assert run("--jsonl", stdin=data) == answers


def test_a_rows_own_results_stay(run):
    row = {"text": "a long Ada", "entities": ["gold"], "words_cut": 9}
    data = json.dumps(row).encode()
    with pytest.raises(ValueError, match=r'expected .* without the output field "entities", .*--result-fi'):
        run("--jsonl", stdin=data)
    with pytest.raises(ValueError, match='expected a row without the output field "words_cut"'):
        run("--jsonl", stdin=b'{"text": "a", "words_cut": 9}')
    assert run("--jsonl", "--result-field", "found", stdin=data) == [
        {**row, "found": [{"label": "Ada"}], "found_words_cut": 3}
    ]
    with pytest.raises(ValueError, match="--result-field: expected a name other than text"):
        run("--jsonl", "--result-field", "text", stdin=data)


BAD = [
    (b"{", "expected one JSON object a line"),
    (b'{"txt": "a"}', 'expected an object with a string "text"'),
    (b'{"text": NaN}', 'expected an object with a string "text"'),
    (b'["a"]', 'expected an object with a string "text"'),
    (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    (b'{"text": "a", "id": "\\udc00"}', "half of a surrogate pair"),
    (b'{"text": "a\xff"}', "expected UTF-8, got the byte 0xff"),
    (b'{"text": "a", "x": NaN}', "expected JSON, got NaN or Infinity"),
    (b'{"text": "a", "x": 1e999}', "expected JSON, got NaN or Infinity"),
    (b'{"text": "a", "text": "b"}', "the key 'text' occurs twice"),
    (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", "expected one JSON object a line"),
    (b'{"text": "a\0"}', "got a NUL byte"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_row_is_named_and_takes_no_other_along(run, caplog, line, reason):
    data = b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n'
    with pytest.raises(ValueError, match=rf"standard input:3: .*{reason}"):
        run("--jsonl", stdin=data)
    assert texts(run.rows) == ["one"]
    assert texts(run("--jsonl", "--skip-bad-rows", stdin=data)) == ["one", "two"]
    assert "left out 1 bad rows of 3; the first: standard input:3: " in caplog.text
    with pytest.raises(ValueError, match=r"input: expected at least one row .*got 1 bad, .*: standard input[:\[]"):
        run("--jsonl", "--skip-bad-rows", stdin=line)


def test_a_bad_line_of_text(run, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\xff\nthree\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: expected UTF-8, got the byte 0xff"):
        run("--input", tmp_path / "a.txt")
    assert texts(run.rows) == ["one"]
    assert texts(run("--input", tmp_path / "a.txt", "--skip-bad-rows")) == ["one", "three"]
    with pytest.raises(ValueError, match="text 2: expected Unicode text"):
        run("one", "\udcff", "three")
    assert texts(run.rows) == ["one"]
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"one\n" * 3)[:-4])
    with pytest.raises(ValueError, match=r"cut\.gz: the gzip data end early"):
        run("--input", tmp_path / "cut.gz")
    assert texts(run.rows) == ["one"] * 3


def test_inputs_are_checked_before_the_model_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.setattr(GLiModern, "from_pretrained", None)
    with pytest.raises(FileNotFoundError):
        run("--input", tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        run("--input", tmp_path)
    with pytest.raises(ValueError, match="--input: expected texts as arguments or an input, got both"):
        run("text", "--input", tmp_path)
    with pytest.raises(ValueError, match="--jsonl: expected texts as arguments or an input, got both"):
        run("text", "--jsonl")
    with pytest.raises(ValueError, match="threshold"):
        run("text", "--threshold", "2")
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(OSError, match="standard output is closed"):
        predict.main(["model", "--labels", "a", "text"])


def test_batches(run, echo, monkeypatch):
    """A file is read in full chunks, whose size changes no answer."""
    monkeypatch.setattr(predict, "CHUNK", 4)
    monkeypatch.setattr(predict, "PATIENCE", 60.0)
    lines = [f"line {i}" for i in range(10)]
    assert texts(run(stdin="\n".join(lines).encode())) == lines
    assert [len(call) for call in echo.calls] == [4, 4, 2]


def test_a_slow_pipe_is_answered_as_it_comes(echo, monkeypatch):
    """Each answer comes out before the next line goes in."""
    source, sink = os.pipe()
    read_back, out = os.pipe()
    monkeypatch.setattr("sys.stdin", open(source))
    monkeypatch.setattr("sys.stdout", open(out, "w"))
    program = threading.Thread(target=predict.main, args=(["model", "--labels", "Ada"],))
    program.start()
    with open(sink, "wb", buffering=0) as writer, open(read_back) as answers:
        for piece, lines in ((b"one\n", ["one"]), (b"two\rthree\nfo", ["two", "three"]), (b"ur\r\n", ["four"])):
            writer.write(piece)
            assert [json.loads(answers.readline())["text"] for _ in lines] == lines
        writer.close()
        program.join()
    assert [text for call in echo.calls for text in call] == ["one", "two", "three", "four"]


# --- how a command line ends -------------------------------------------------------------------------------------


def raising(error, module):
    """A command line that fails in a line of that module."""
    scope = {"__name__": module, "error": error}
    exec("def main(): raise error", scope)
    return scope["main"]


TOLD = [
    (ValueError("one\ntwo"), "error: one two\n"),
    (FileNotFoundError("x: no such file"), "error: x: no such file\n"),
    (FileNotFoundError(2, "No such file or directory", "a.txt"), "error: a.txt: No such file or directory\n"),
    (OSError(28, "No space left on device"), "error: No space left on device\n"),
    (ImportError("pip install x"), "error: pip install x\n"),
    (FloatingPointError("the loss is nan"), "error: the loss is nan\n"),
    (RuntimeError("does not fit the memory"), "error: does not fit the memory\n"),
]


@pytest.mark.parametrize(("error", "line"), TOLD)
def test_errors_are_one_line(capsys, monkeypatch, error, line):
    with pytest.raises(SystemExit) as ended:
        cli.run(raising(error, "glimodern.train.loop"))
    assert (ended.value.code, capsys.readouterr().err) == (2, line)
    monkeypatch.setenv("GLIMODERN_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.run(raising(error, "glimodern.train.loop"))


def test_faults_of_ours_keep_their_traceback():
    for error, module in ((KeyError("x"), "glimodern.train.loop"), (ValueError("shape"), "torch.nn")):
        with pytest.raises(type(error)):
            cli.run(raising(error, module))


def test_other_endings(capsys):
    assert cli.run(lambda: None) is None
    with pytest.raises(SystemExit) as ended:
        cli.run(raising(KeyboardInterrupt(), "torch"))
    assert ended.value.code == 130
    with pytest.raises(SystemExit) as ended:
        cli.run(raising(SystemExit(1), "glimodern.doctor"))
    assert ended.value.code == 1
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_gone(echo, monkeypatch, capsys):
    """`| head -1`: quiet, with a shell's status for SIGPIPE; the interpreter can flush at its end."""
    source, sink = os.pipe()
    os.close(source)
    monkeypatch.setattr("sys.stdout", open(sink, "w"))
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: predict.main(["model", "--labels", "Ada", *["text"] * 2000]))
    assert ended.value.code == 141
    assert len(echo.calls) == 1
    sys.stdout.close()  # flushes
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(echo, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", open("/dev/full", "w"))
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: predict.main(["model", "--labels", "Ada", "text"]))
    assert ended.value.code == 2
    sys.stdout.close()
    assert capsys.readouterr().err == "error: No space left on device\n"


PROGRAM = """
import sys, types

class Model:
    def from_pretrained(*arguments, **options):
        return Model()

    def predict(self, texts, labels, *values, **options):
        return [Answer() for text in texts]

class Answer(list):
    words_cut = 0

sys.modules["glimodern.model.glimodern"] = types.SimpleNamespace(GLiModern=Model)
from glimodern import cli, predict
cli.run(predict.main)
"""


@pytest.mark.usefixtures("default_signals")
def test_as_a_process():
    """With real pipes and signals: a slow pipe, then Ctrl-C. A stand-in for the model spares the import of torch."""
    command = [sys.executable, "-c", PROGRAM, "model", "--labels", "Ada"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write("Ada 東\n".encode())
        process.stdin.flush()
        answer = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert (process.wait(timeout=60), process.stderr.read()) == (130, b"")
    assert json.loads(answer) == {"text": "Ada 東", "entities": []}
