"""Entities of texts on the command line: `python -m glimodern.predict MODEL --labels a,b "text" ...`.

Texts come as arguments, else from standard input or --input, one a line; lines of a .jsonl file (or of standard input
with --jsonl) are objects with a "text", which come back with their "entities". Output is one JSON object a line.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from glimodern.model import GLiModern
from glimodern.request import check_labels

CHUNK = 1024  # texts per call; a person at a terminal is answered line by line


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `python -m glimodern.predict`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to read."""
    labels: str = ""
    """Types to find, separated by commas."""
    input: str | None = None
    """File of texts, one a line; .jsonl: objects with a "text"."""
    jsonl: bool = False
    """Standard input (or the input file) holds JSON objects, whatever its name."""
    threshold: float = 0.5
    """Least probability of an entity."""
    flat: bool = True
    """No overlapping entities (else nested ones are allowed)."""
    multi_label: bool = False
    """Allow several labels for one span."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Arithmetic of the model."""
    device: str = "cpu"
    """Device to run on."""


def read_rows(config: PredictConfig) -> Iterator[dict[str, Any]]:
    """Objects with a "text", from the arguments, a file or standard input."""
    if config.texts:
        yield from ({"text": text} for text in config.texts)
        return
    as_json = config.jsonl or (config.input is not None and config.input.endswith(".jsonl"))
    name = config.input or "standard input"
    lines = sys.stdin if config.input is None else Path(config.input).open(encoding="utf-8")
    with lines:
        for number, line in enumerate(lines, start=1):
            line = line.rstrip("\n")
            if not as_json:
                yield {"text": line}
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{name}:{number}: not valid JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise ValueError(f'{name}:{number}: wanted an object with a string "text"')
            yield row


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[PredictConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.predict"
    )
    labels = check_labels([label.strip() for label in config.labels.split(",") if label.strip()])
    if not labels:
        raise ValueError('--labels: wanted at least one type, such as --labels "person,city", got none')
    model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device)
    chunk: list[dict[str, Any]] = []

    def answer() -> None:
        results = model.predict(
            [row["text"] for row in chunk], labels, config.threshold, config.flat, config.multi_label
        )
        for row, entities in zip(chunk, results, strict=True):
            line = {**row, "entities": list(entities)}
            if entities.truncated:
                line["words_cut"] = entities.words_cut
            print(json.dumps(line, ensure_ascii=False), flush=True)
        chunk.clear()

    size = 1 if not config.texts and config.input is None and sys.stdin.isatty() else CHUNK
    rows = read_rows(config)
    while True:
        try:
            row = next(rows, None)
        except ValueError:
            if chunk:  # a bad line does not take the good ones before it along
                answer()
            raise
        if row is None:
            break
        chunk.append(row)
        if len(chunk) == size:
            answer()
    if chunk:
        answer()


if __name__ == "__main__":
    main()
