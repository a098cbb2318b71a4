"""Every command and program of README.md runs as printed (a tiny model stands in, three steps stand for 5,000)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glimodern.train.demo import train_tokenizer
from tests.conftest import WORDS
from tests.fake_hub import in_place_of_the_hub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
    assert len(blocks("python")) >= 5
    assert len(commands()) >= 6


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """Where a reader would stand after `make train`, with data files and an encoder of his own."""
    folder = tmp_path_factory.mktemp("readme")
    tiny_model.save_pretrained(folder / "runs" / "demo" / "model")
    rows = [{"tokenized_text": WORDS, "ner": [[0, 1, "person"], [6, 6, "place"]]}] * 6
    for name in ("train", "dev", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    train_tokenizer([WORDS], ["person"], vocab_size=300).save_pretrained(folder / "encoder")
    encoder = tiny_model.encoder.model
    config = tiny_model.encoder.config.to_dict()
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, folder / "encoder" / "model.safetensors")
    (folder / "encoder" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_program(folder, number, monkeypatch, tmp_path):
    program = blocks("python")[number]
    if "import spacy" in program:
        pytest.importorskip("spacy", reason="needs the extra spacy")
    if "import GLiNER" in program:
        pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    monkeypatch.chdir(folder)
    with in_place_of_the_hub(tmp_path / "cache"):
        exec(program, {"__name__": "__main__"})


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_make_target(command):
    """The targets exist; CI runs them."""
    subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, check=True, capture_output=True)


def test_other_commands_in_order(folder):
    for command in commands():
        if command.startswith("make"):
            continue
        assert ".venv/bin/python -m glimodern." in command, f"untested command in README.md: {command}"
        command = command.replace(".venv/bin/python", sys.executable)
        command = command.replace("answerdotai/ModernBERT-base", "encoder").replace("--max-steps 5000", "--max-steps 3")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        answer = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert answer.returncode == 0, f"{command}\n{answer.stderr}"
    assert json.loads((folder / "scores.json").read_text())["data"]
