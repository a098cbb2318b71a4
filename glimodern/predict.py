"""Prediction on the command line: `python -m glimodern.predict MODEL --labels a,b "text" ...`.

Texts are given as arguments, or read from --input or standard input, one per line. A file named .jsonl or .json, or any
input with --jsonl, contains objects with a "text", as JSON lines or as an array. Their other fields are copied to the
output. Files may be compressed. The output is one JSON object per line, in the order of the input, in UTF-8. An empty
line of text has a result too.

Results are written after every CHUNK texts, and whenever the input has no more data at the moment. A bad row ends the
program after the results of all earlier rows. With --skip-bad-rows it has no result and is counted in a warning at the
end.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import tyro

from glimodern import cli
from glimodern.cli.prediction import TEXT_FIELD, PredictionOptions, json_head, json_line, row_fault
from glimodern.cli.reading import Threshold
from glimodern.data.formats import JSON_SUFFIXES
from glimodern.data.json_rows import Row, json_rows
from glimodern.data.lines import open_input, read_lines, stem_and_suffix
from glimodern.inference.request import check_thresholds

logger = logging.getLogger(__name__)

CHUNK = 1024  # maximum texts per call of the model
PATIENCE = 0.5  # maximum seconds that a text waits for others


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `python -m glimodern.predict`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to predict."""
    label_options: cli.LabelOptions = field(default_factory=cli.LabelOptions)
    input: str | None = None
    """File of texts, one per line, or of objects with a "text" (.jsonl, .json). "-": standard input, which is also the
    default without texts."""
    jsonl: bool = False
    """Read JSON objects from standard input or from the input file, whatever its name."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    prediction: PredictionOptions = field(default_factory=PredictionOptions)


def check_config(config: PredictConfig) -> None:
    """Raise ValueError for settings that contradict each other."""
    if config.texts and (config.input is not None or config.jsonl):
        option = "--input" if config.input is not None else "--jsonl"
        raise ValueError(f"{option}: expected texts as arguments or an input, got both; leave one out")
    if config.label_options.labels_file == "-" and not config.texts and config.input in (None, "-"):
        raise ValueError("--labels-file: expected a file, got - beside texts on standard input; name a file for one")
    config.prediction.check_fields()


class Request(NamedTuple):
    """A text, where it was read, and the JSON of its input row without the closing brace."""

    text: str
    place: str
    head: str


def read_requests(config: PredictConfig, stream: BinaryIO | None, on_idle: Callable[[], None]) -> Iterator[Row]:
    """Yield rows whose value is a Request, from the stream, or from the arguments if stream is None.

    on_idle: see `data.lines.read_lines`.
    """
    output_fields = (config.prediction.result_field, config.prediction.cut_field)
    for row in _rows(config, stream, on_idle):
        fault, head = row.fault, ""
        if fault is None:
            fault, head = _head(row.value, output_fields)
        yield Row(row.place, None if fault else Request(row.value["text"], row.place, head), fault)


def _rows(config: PredictConfig, stream: BinaryIO | None, on_idle: Callable[[], None]) -> Iterator[Row]:
    if stream is None:
        return (Row(f"text {i}", {"text": text}) for i, text in enumerate(config.texts, 1))
    name = "standard input" if config.input in (None, "-") else str(config.input)
    lines = read_lines(stream, name, on_idle)
    if config.jsonl or (config.input is not None and stem_and_suffix(Path(config.input))[1] in JSON_SUFFIXES):
        return json_rows(lines, name)
    return (Row(f"{name}:{line.number}", {"text": line.text}, line.fault) for line in lines)


def _head(row: Any, output_fields: tuple[str, ...]) -> tuple[str | None, str]:
    """Return (fault or None, the row's JSON without the closing brace). output_fields: names not allowed."""
    fault = row_fault(row, TEXT_FIELD, output_fields)
    return (fault, "") if fault is not None else json_head(row)


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[PredictConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.predict"
    )
    check_config(config)
    labels = config.label_options.read()
    threshold = config.prediction.threshold_option.read()
    check_thresholds(threshold, labels)
    if sys.stdout is None:
        raise OSError("standard output is closed")
    with contextlib.ExitStack() as stack:
        stream = None
        if not config.texts:
            stream = open_input(config.input)
            if config.input not in (None, "-"):
                stack.enter_context(stream)
        # Imported here, so that wrong arguments fail before this import, which takes seconds.
        from glimodern.model.glimodern import GLiModern

        model = GLiModern.from_pretrained(config.model, **config.prediction.loading())
        answer_all(model, config, labels, threshold, stream)


def answer_all(
    model: Any, config: PredictConfig, labels: dict[str, str], threshold: Threshold, stream: BinaryIO | None
) -> None:
    """Read all rows and write their results to standard output.

    Raises ValueError for a bad row, unless bad rows are skipped, and if no row can be read.
    """
    pending: list[Request] = []
    waiting_since = 0.0
    answered = skipped = 0
    first_fault = ""

    def leave_out(place: str, fault: str) -> None:
        nonlocal first_fault, skipped
        if not config.skip_bad_rows:
            raise ValueError(f"{place}: {fault}")
        first_fault = first_fault or f"{place}: {fault}"
        skipped += 1

    def answer() -> None:
        """Predict the pending requests and write their results; those before a bad text are written before its error.

        A text is bad if it is too long and --long-texts is error.
        """
        nonlocal answered
        while pending:
            requests = pending[:]
            pending.clear()
            texts = (request.text for request in requests)
            results = model.predict(texts, labels, threshold, **config.prediction.search())
            lines: list[str] = []
            fault = None
            try:
                for request, entities in zip(requests, results, strict=True):
                    lines.append(_line(request, entities, config.prediction))
            except ValueError as error:
                fault = str(error).removeprefix(f"texts[{len(lines)}]: ")
            finally:
                _write(lines)
                answered += len(lines)
            if fault is not None:
                leave_out(requests[len(lines)].place, fault)
                pending.extend(requests[len(lines) + 1 :])

    try:
        for place, request, fault in read_requests(config, stream, answer):
            if fault is not None:
                leave_out(place, fault)
                continue
            if not pending:
                waiting_since = time.monotonic()
            pending.append(request)
            if len(pending) == CHUNK or time.monotonic() - waiting_since > PATIENCE:
                answer()
    except (ValueError, OSError, ImportError):
        answer()  # rows before a bad row have results
        raise
    answer()
    if skipped and not answered:
        raise ValueError(f"input: expected at least one row that reads, got {skipped} bad, the first: {first_fault}")
    if skipped:
        logger.warning("left out %d bad rows of %d; the first: %s", skipped, skipped + answered, first_fault)


def _line(request: Request, entities: Any, options: PredictionOptions) -> str:
    """Return the output line of a request."""
    found = json.dumps(list(entities), ensure_ascii=False)
    return json_line(request.head, options.result_field, found, entities.words_cut, options.cut_field)


def _write(lines: Sequence[str]) -> None:
    sys.stdout.buffer.write("".join(lines).encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    cli.run(main)
