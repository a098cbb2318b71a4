"""The pages' examples find what they show, with the demo model that `make train` made on this machine."""

import importlib
import os
import shlex
import sys

import pytest

from tests.test_readme import BLOCKS, ROOT, said, skip_without_extras

MODEL = ROOT / "runs" / "demo" / "model"
EXAMPLES = [
    block
    for block in BLOCKS
    if block.output
    and "runs/demo/model" in block.source
    and not any(other in block.source for other in ("push_to_hub", "dev.jsonl"))  # a hub, or data of the reader's own
]

needs_model = pytest.mark.skipif(
    not (MODEL / "gliner_config.json").is_file(), reason="runs/demo/model does not exist; `make train` makes it"
)


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's command, `echo TEXT |` before it or not, in this process."""
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


def test_the_examples_of_every_page():
    assert {(block.page, block.language) for block in EXAMPLES} == {
        ("README.md", "python"),
        ("docs/find-entities.md", "python"),
        ("docs/find-entities.md", "bash"),
        ("docs/gliner.md", "python"),
        ("docs/integrations.md", "python"),
        ("docs/jobs.md", "python"),
    }


@needs_model
@pytest.mark.parametrize("block", EXAMPLES, ids=str)
def test_example(block, monkeypatch, capsys):
    skip_without_extras(block.source)
    monkeypatch.chdir(ROOT)
    if block.language == "python":
        exec(block.source, {"__name__": "__main__"})
    else:
        for command in block.commands:
            run_command(command, monkeypatch)
    assert said(capsys.readouterr().out) == said(block.output)
