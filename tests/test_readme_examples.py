"""README.md's examples find what it shows, with the demo model that `make train` made on this machine."""

import ast
import importlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "runs" / "demo" / "model"
README = (ROOT / "README.md").read_text(encoding="utf-8")
# a program or a list of commands, and the block of output that stands right below it
EXAMPLES = re.findall(r"^```(python|bash)\n((?:(?!^```).*\n)*)```\n\n```\n((?:(?!^```).*\n)*)```", README, re.MULTILINE)

Found = list[tuple[str, str]]

needs_model = pytest.mark.skipif(
    not (MODEL / "gliner_config.json").is_file(), reason="runs/demo/model does not exist; `make train` makes it"
)


def entities(output: str) -> Found:
    """(text, label) of every entity that an example printed: scores differ by machine."""
    found: Found = []
    for line in output.strip().splitlines():
        value = json.loads(line) if line.startswith('{"') else ast.literal_eval(line)
        if isinstance(value, dict):
            rows = value["entities"] if "entities" in value else [value]
            found += [(row["text"], row["label"]) for row in rows]
        else:  # a list of (text, label, score)
            found += [(text, label) for text, label, _ in value]
    return found


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A README command, `echo TEXT |` before it or not, in this process."""
    words = shlex.split(command)
    if "|" in words:
        (echo, text), words = words[: words.index("|")], words[words.index("|") + 1 :]
        assert echo == "echo"
        reading, writing = os.pipe()
        os.write(writing, text.encode() + b"\n")
        os.close(writing)
        monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    assert words[:2] == [".venv/bin/python", "-m"]
    importlib.import_module(words[2]).main(words[3:])


def test_the_readme_shows_what_its_examples_find():
    assert [language for language, _, _ in EXAMPLES] == ["python", "bash", "python"]
    for _, _, output in EXAMPLES:
        assert entities(output)


@needs_model
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number, monkeypatch, capsys):
    language, source, output = EXAMPLES[number]
    if "import spacy" in source:
        pytest.importorskip("spacy", reason="needs the extra spacy")
    monkeypatch.chdir(ROOT)
    if language == "python":
        exec(source, {"__name__": "__main__"})
    else:
        for command in source.strip().splitlines():
            run_command(command, monkeypatch)
    assert entities(capsys.readouterr().out) == entities(output)
