"""`python -m glimodern.compare`: two tiny encoders side by side, one that fails, and going on from what is done."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from glimodern.compare import loop as compare
from glimodern.compare.config import CompareConfig
from glimodern.compare.job import count_steps, read_config
from glimodern.compare.loop import folder_of
from glimodern.train.config import DataConfig, EncoderConfig, RunConfig, TrainConfig
from glimodern.train.demo import DEMO_ENCODERS, encoder_config
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare") / "data.jsonl"
    rows = [{"tokenized_text": WORDS, "ner": [[0, 1, "person"], [6, 6, "place"]]}] * 8
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture(scope="module")
def compared(data):
    """The output folder and the finished process of a comparison with one encoder that does not exist."""
    output = data.parent / "out"
    return output, run(data, output, "demo-deberta-v3,nowhere/nothing,demo-bert")


def run(data, output, encoders, *more):
    files = ("--train-data", str(data), "--eval-data", str(data), "--output-dir", str(output))
    budget = ("--max-steps", "4", "--batch-size", "4", "--no-progress", "--checkpoint-steps", "0")
    command = [sys.executable, "-m", "glimodern.compare", "--encoders", encoders, *files, *budget, *more]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_rows_table_and_plot(compared):
    output, answer = compared
    assert answer.returncode == 1, answer.stderr  # one of them failed
    rows = {row["encoder"]: row for row in json.loads((output / "compare.json").read_text())["rows"]}
    assert list(rows) == ["demo-deberta-v3", "nowhere/nothing", "demo-bert"]
    assert "train: " in rows["nowhere/nothing"]["error"] and "train.log" in rows["nowhere/nothing"]["error"]
    for name in ("demo-deberta-v3", "demo-bert"):
        row = rows[name]
        assert row["steps"] == 4 and row["packed"] and "our own pass" in row["packed_reason"]
        assert 0.0 <= row["f1"]["data"] <= 1.0 and row["parameters"] > 100_000 and row["sentences"] == 8
        assert min(row["step_seconds"], row["train_seconds"], row["predict_seconds"]) > 0
        assert 2**26 < row["predict_memory_bytes"] < 2**33 and 2**26 < row["train_memory_bytes"] < 2**33
        line = next(line for line in answer.stdout.splitlines() if name in line and "packed" in line)
        assert f"{row['parameters'] / 1e6:.1f}" in line
    assert any("nowhere/nothing" in line and "failed" in line for line in answer.stdout.splitlines())


def test_the_plot(compared):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    assert (compared[0] / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_stays(compared, data):
    """A second call runs nothing that is done, and leaves out what is not asked for."""
    output, _ = compared
    results = [folder_of(output, "demo-bert") / f"{phase}.json" for phase in ("train", "predict")]
    before = [(path.stat().st_mtime_ns, path.read_text()) for path in results]
    config = CompareConfig("demo-bert", train=training(data, output))
    (row,) = compare.compare(config)
    assert [(path.stat().st_mtime_ns, path.read_text()) for path in results] == before
    assert row == json.loads((output / "compare.json").read_text())["rows"][0] and "error" not in row


def test_other_settings_are_refused(compared, data):
    output, _ = compared
    with pytest.raises(ValueError, match=r"output_dir: .*other settings \(lr: was 1e-05, is 0.5\); choose another"):
        compare.main(["--encoders", "demo-bert", "--lr", "0.5", "--output-dir", str(output), *budget(data)])


def budget(data):
    files = ["--train-data", str(data), "--eval-data", str(data), "--max-steps", "4", "--batch-size", "4"]
    return [*files, "--checkpoint-steps", "0"]


def training(data, output, **model):
    return TrainConfig(
        DataConfig(train_data=(str(data),), eval_data=(str(data),)),
        EncoderConfig(**model),
        run=RunConfig(str(output), max_steps=4, batch_size=4, checkpoint_steps=0),
    )


def test_seconds_become_steps(data, tmp_path, monkeypatch):
    """The steps that fit are counted first, and are what is trained."""
    train = TrainConfig(training(data, tmp_path).data, run=RunConfig(str(tmp_path), batch_size=4))
    job = {"seconds": 2.0}
    assert count_steps(job, replace(train, model=EncoderConfig("demo-bert")))["steps"] > 1

    asked = []

    def run_phase(config, encoder, phase, steps, folder):
        asked.append((phase, steps))
        write_result(config, folder / f"{phase}.json", {"steps": 7} if phase == "steps" else {})

    monkeypatch.setattr(compare, "run_phase", run_phase)
    assert compare.measure(CompareConfig("demo-bert", seconds=2.0, train=train), "demo-bert", tmp_path)["steps"] == 7
    assert asked == [("steps", None), ("train", 7), ("predict", 7)]


def write_result(config, path, row):
    path.write_text(json.dumps({"settings": config.settings(), "row": row}))


def test_results_of_other_settings_are_not_done(data, tmp_path, monkeypatch):
    """What --overwrite was to replace stays until it is replaced, but is never taken for a result."""
    config, other = (CompareConfig("demo", train=training(data, tmp_path), predict_sentences=n) for n in (5, 6))
    folder = folder_of(tmp_path, "demo")
    folder.mkdir()
    for phase in ("train", "predict"):
        write_result(other, folder / f"{phase}.json", {"old": phase})
    monkeypatch.setattr(compare, "run_phase", lambda *_: "no such encoder")
    assert compare.measure(config, "demo", tmp_path) == {"encoder": "demo", "error": "train: no such encoder"}
    assert json.loads((folder / "train.json").read_text())["row"] == {"old": "train"}
    assert compare.measure(other, "demo", tmp_path) == {"encoder": "demo", "old": "predict"}


def test_a_checkpoint_of_other_settings_is_not_resumed(data, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(compare.subprocess, "Popen", lambda command, **_: jobs.append(command[-1]) or Done())
    config, other = (CompareConfig("demo", train=training(data, tmp_path), predict_sentences=n) for n in (5, 6))
    resumed = []
    for one in (config, config, other):
        assert compare.run_phase(one, "demo", "train", None, tmp_path) is None
        resumed.append(json.loads(Path(jobs[-1]).read_text())["resume"])
    assert resumed == [False, True, False]


class Done:
    """A process that has ended well."""

    def wait(self):
        return 0


def test_nothing_is_touched_before_the_inputs_are_read(data, tmp_path):
    output = tmp_path / "out"
    model = output / "demo-bert" / "run" / "model"
    model.mkdir(parents=True)
    (output / "settings.json").write_text("{}")
    (output / "demo-bert" / "train.json").write_text("{}")
    given = ["--encoders", "demo-bert", "--output-dir", str(output), "--overwrite", *budget(data)]
    for more, message in [
        (["--train-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--eval-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--encoders", f"demo-bert,{model}"], "output_dir: encoders reads"),
        (["--labels-encoder", str(model)], "output_dir: labels_encoder reads"),
        (["--output-dir", str(data)], "is no folder"),
    ]:
        once = [one for one in given if not more[0].endswith("-data") or one not in (more[0], str(data))]
        if more[0].endswith("-data"):
            other = {"--train-data": "--eval-data", "--eval-data": "--train-data"}[more[0]]
            once = [one for part in once for one in ([part, str(data)] if part == other else [part])]
        if more[0] == "--encoders":
            once = once[2:]  # a list is given once
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            compare.main([*once, *more])
    assert (output / "settings.json").read_text() == (output / "demo-bert" / "train.json").read_text() == "{}"


@pytest.mark.usefixtures("default_signals")
def test_ctrl_c_lets_the_run_write_its_checkpoint(data, tmp_path, monkeypatch, capsys):
    """The run gets SIGTERM once, is waited for, and the command says how to go on."""
    got = []

    class Running:
        def wait(self):
            if not got:
                got.append("waited")
                signal.raise_signal(signal.SIGINT)
            return 143

        def send_signal(self, number):
            got.append(number)

    monkeypatch.setattr(compare.subprocess, "Popen", lambda *_, **__: Running())
    with pytest.raises(SystemExit) as ended:
        compare.main(["--encoders", "demo", "--output-dir", str(tmp_path / "out"), *budget(data)])
    assert ended.value.code == 130 and got == ["waited", signal.SIGTERM]
    assert "stopped after 0 of 1 encoders; go on with the same command" in capsys.readouterr().err


FINISHED = dict(
    steps=4, step_seconds=None, train_seconds=1.0, train_memory_bytes=2**27, parameters=2e6, f1={"[/i]": 0.5, "b": 0.2},
    sentences_per_second=9.0, predict_memory_bytes=2**27, packed=True,
)  # fmt: skip


def test_names_are_shown_as_they_are(data, tmp_path, monkeypatch, capsys):
    """Brackets are no markup, dollars no formula; a run that was done already has no seconds a step."""
    rows = {"[/b]x": FINISHED, "a$b$c_{": FINISHED, "[red]": {"error": "train: [/oops] $x$"}}
    monkeypatch.setattr(compare, "measure", lambda config, encoder, output: {"encoder": encoder, **rows[encoder]})
    monkeypatch.setenv("COLUMNS", "160")
    compare.compare(CompareConfig(",".join(rows), train=training(data, tmp_path / "[/out]")))
    said = capsys.readouterr().out
    for name in (*rows, "train: [/oops] $x$", "[/i]"):
        assert name in said
    assert json.loads((tmp_path / "[/out]" / "compare.json").read_text())["rows"][0]["encoder"] == "[/b]x"


def test_wrong_use(data):
    train = training(data, "out")
    for arguments, message in [
        (dict(encoders=" , "), "encoders: expected distinct names"),
        (dict(encoders="demo,demo"), "encoders: expected distinct names"),
        (dict(encoders="demo", train=training(data, "out", init_from="x")), "encoder, init_from: expected neither"),
        (dict(encoders="demo", seconds=3.0, train=train), "seconds, max_steps: expected one budget"),
        (dict(encoders="demo", train=TrainConfig(DataConfig(train_data=("x",)))), "eval_data: expected at least one"),
        (dict(encoders="demo", predict_sentences=0), "predict_sentences: expected a whole number >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            CompareConfig(**arguments)


def test_the_job_is_the_config(data):
    train = training(data, "out", dropout=0.1)
    assert read_config(json.loads(json.dumps(asdict(train)))) == train


def test_folders_differ(tmp_path):
    names = ["demo", "a/b", "a-b", "./a/b", "a b"]
    folders = {folder_of(tmp_path, name) for name in names}
    assert len(folders) == len(names) and all(folder.parent == tmp_path for folder in folders)


@pytest.mark.parametrize("name", sorted(DEMO_ENCODERS))
def test_demo_encoders_are_of_one_size(name):
    from glimodern.encoder import build_encoder

    encoder = build_encoder(encoder_config(3000, name))
    assert encoder.packed and encoder.hidden_size == 160
    beside = sum(p.numel() for n, p in encoder.named_parameters() if "embed" not in n and p.requires_grad)
    assert 0.7e6 < beside < 1.4e6
