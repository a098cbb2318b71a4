"""Entities of texts on the command line: `python -m glimodern.predict MODEL --labels a,b "text" ...`.

Texts come as arguments, else from --input or standard input, one a line. A file named .jsonl or .json (or any input
with --jsonl) holds objects with a "text", as JSON lines or as an array; their other fields come back as they are.
Files may be compressed. Output is one JSON object a line, in order, UTF-8: an empty line of text has a result too.

An answer is written when CHUNK texts are read, or when the input has nothing more at the moment. A bad row ends the
program, after the answers to the rows before it; with --skip-bad-rows it has no answer, and is counted at the end.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import tyro

from glimodern import cli
from glimodern.data.formats import JSON_SUFFIXES
from glimodern.data.json_rows import Row, json_rows, show
from glimodern.data.lines import open_input, read_lines, stem_and_suffix
from glimodern.inference.request import check_threshold

logger = logging.getLogger(__name__)

CHUNK = 1024  # texts per call
LINE_ENDS = "\x85\u2028\u2029"  # to some readers; written as escapes
PATIENCE = 0.5  # seconds after which a text that waits for others is answered


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `python -m glimodern.predict`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to read."""
    asked: cli.LabelOptions = field(default_factory=cli.LabelOptions)
    input: str | None = None
    """File of texts, one a line; .jsonl, .json: objects with a "text". "-": standard input, as without texts."""
    jsonl: bool = False
    """Standard input (or the input file) holds JSON objects, whatever its name."""
    result_field: str = "entities"
    """Name of the field with the entities. (A text that is too long for the model has a field "words_cut" too, or
    "NAME_words_cut" for another name.)"""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
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

    @property
    def cut_field(self) -> str:
        return "words_cut" if self.result_field == "entities" else f"{self.result_field}_words_cut"


def check_config(config: PredictConfig) -> None:
    """ValueError for settings that contradict each other."""
    if config.texts and (config.input is not None or config.jsonl):
        option = "--input" if config.input is not None else "--jsonl"
        raise ValueError(f"{option}: expected texts as arguments or an input, got both; leave one out")
    if config.asked.labels_file == "-" and not config.texts and config.input in (None, "-"):
        raise ValueError("--labels-file: expected a file, got - beside texts on standard input; name a file for one")
    name = config.result_field
    if name in ("", "text", "words_cut"):
        raise ValueError(f"--result-field: expected a name other than text and words_cut, got {name!r}")
    cli.check_unicode(name, "--result-field")


class Request(NamedTuple):
    """A text, and the JSON of the row it came in, without its closing brace."""

    text: str
    head: bytes


def read_requests(config: PredictConfig, stream: BinaryIO | None, on_idle: Callable[[], None]) -> Iterator[Row]:
    """Rows whose value is a Request; of the arguments, if there is no stream. on_idle: see read_lines."""
    own = (config.result_field, config.cut_field)
    for row in _rows(config, stream, on_idle):
        fault, head = row.fault, b""
        if fault is None:
            fault, head = _head(row.value, own)
        yield Row(row.place, None if fault else Request(row.value["text"], head), fault)


def _rows(config: PredictConfig, stream: BinaryIO | None, on_idle: Callable[[], None]) -> Iterator[Row]:
    if stream is None:
        return (Row(f"text {i}", {"text": text}) for i, text in enumerate(config.texts, 1))
    name = "standard input" if config.input in (None, "-") else str(config.input)
    lines = read_lines(stream, name, on_idle)
    if config.jsonl or (config.input is not None and stem_and_suffix(Path(config.input))[1] in JSON_SUFFIXES):
        return json_rows(lines, name)
    return (Row(f"{name}:{line.number}", {"text": line.text}, line.fault) for line in lines)


def _head(row: Any, own: tuple[str, ...]) -> tuple[str | None, bytes]:
    """(what is wrong with a row, or None; its JSON without the closing brace)."""
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        return f'expected an object with a string "text", got {show(row)}', b""
    for name in own:
        if name in row:
            return f'the row has a field "{name}" of its own; give the results another name by --result-field', b""
    try:
        return None, json.dumps(row, ensure_ascii=False, allow_nan=False)[:-1].encode()
    except UnicodeEncodeError:
        return f"expected Unicode text, got half of a surrogate pair in {show(row)}", b""
    except ValueError:
        return f"expected JSON, got NaN or Infinity, which JSON does not have, in {show(row)}; write null", b""


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[PredictConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.predict"
    )
    check_config(config)
    labels = config.asked.read()
    check_threshold(config.threshold)
    if sys.stdout is None:
        raise OSError("standard output is closed")
    with contextlib.ExitStack() as stack:
        stream = None
        if not config.texts:
            stream = open_input(config.input)
            if config.input not in (None, "-"):
                stack.enter_context(stream)
        # Here, so that a slip in the arguments costs neither the seconds of this import nor a model.
        from glimodern.model.glimodern import GLiModern

        model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device)
        answer_all(model, config, labels, stream)


def answer_all(model: Any, config: PredictConfig, labels: dict[str, str], stream: BinaryIO | None) -> None:
    """Read every row and write its answer to standard output."""
    pending: list[Request] = []
    since = 0.0
    answered = skipped = 0
    first_fault = ""

    def answer() -> None:
        nonlocal answered
        if not pending:
            return
        requests = pending[:]
        pending.clear()
        texts = [request.text for request in requests]
        results = model.predict(texts, labels, config.threshold, config.flat, config.multi_label)
        lines = []
        for request, entities in zip(requests, results, strict=True):
            own = {config.result_field: list(entities)}
            if entities.truncated:
                own[config.cut_field] = entities.words_cut
            lines.append(request.head + b", " + json.dumps(own, ensure_ascii=False)[1:].encode() + b"\n")
        output = b"".join(lines)
        for character in LINE_ENDS:
            output = output.replace(character.encode(), b"\\u%04x" % ord(character))
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()
        answered += len(lines)

    try:
        for place, request, fault in read_requests(config, stream, answer):
            if fault is not None:
                if not config.skip_bad_rows:
                    raise ValueError(f"{place}: {fault}")
                first_fault = first_fault or f"{place}: {fault}"
                skipped += 1
                continue
            if not pending:
                since = time.monotonic()
            pending.append(request)
            if len(pending) == CHUNK or time.monotonic() - since > PATIENCE:
                answer()
    except (ValueError, OSError, ImportError):
        answer()  # a bad row does not take the good ones before it along
        raise
    answer()
    if skipped and not answered:
        raise ValueError(f"none of the {skipped} rows can be read; the first: {first_fault}")
    if skipped:
        logger.warning("left out %d bad rows of %d; the first: %s", skipped, skipped + answered, first_fault)


if __name__ == "__main__":
    cli.run(main)
