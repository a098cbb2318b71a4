"""Rows of docs/COMPATIBILITY.md: encoders."""

from pathlib import Path

from compatibility import Row, Section, decade

from tests.encoder_rows import ROWS as ENCODERS
from tests.encoder_rows import check


def measure(row: Row, folder: Path) -> tuple[str, ...]:
    columns = check(row.options["encoder"])
    return columns["why"], decade(columns["difference"]), "yes", str(columns["linears"])


SECTION = Section(
    title="Encoders",
    text="""A tiny config of each architecture with random weights: 20 steps of training halve the loss at least, and
the saved model finds the same entities once loaded, packed and plain. The difference is that of hidden states from the
padded run of transformers. Linear layers of the tiny config are packed for inference in fp32 and int8.""",
    columns=("encoder", "model_type"),
    measured=("runs", "packed and padded differ by", "trained, saved, loaded", "linear layers packed"),
    rows=tuple(Row((encoder.name, f"`{encoder.model_type}`"), {"encoder": encoder}) for encoder in ENCODERS),
    measure=measure,
    needs="",
)
