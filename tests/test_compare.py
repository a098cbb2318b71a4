"""`python -m glimodern.compare`: two tiny encoders side by side, one that fails, and going on from what is done."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from glimodern import compare
from glimodern.compare import CompareConfig, folder_of
from glimodern.compare_run import count_steps, read_config
from glimodern.config import DataConfig, EncoderConfig, RunConfig, TrainConfig
from glimodern.demo import DEMO_ENCODERS, encoder_config
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
        (folder / f"{phase}.json").write_text(json.dumps({"steps": 7} if phase == "steps" else {}))

    monkeypatch.setattr(compare, "run_phase", run_phase)
    assert compare.measure(CompareConfig("demo-bert", seconds=2.0, train=train), "demo-bert", tmp_path)["steps"] == 7
    assert asked == [("steps", None), ("train", 7), ("predict", 7)]


def test_wrong_use(data):
    train = training(data, "out")
    for arguments, message in [
        (dict(encoders=" , "), "encoders: wanted distinct names"),
        (dict(encoders="demo,demo"), "encoders: wanted distinct names"),
        (dict(encoders="demo", train=training(data, "out", init_from="x")), "encoder, init_from: wanted neither"),
        (dict(encoders="demo", seconds=3.0, train=train), "seconds: wanted a positive number and no max_steps"),
        (dict(encoders="demo", train=TrainConfig(DataConfig(train_data=("x",)))), "eval_data: wanted at least one"),
        (dict(encoders="demo", predict_sentences=0), "predict_sentences: wanted a positive number"),
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
