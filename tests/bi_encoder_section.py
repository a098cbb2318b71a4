"""Rows of docs/COMPATIBILITY.md: bi-encoders, a text encoder and a label encoder."""

from pathlib import Path

from compatibility import Row, Section, decade

from tests.bi_encoder_rows import ROWS as BI_ENCODERS
from tests.bi_encoder_rows import check

ROWS = tuple(
    Row((bi.name, f"{bi.text[0]}, {bi.text[1]}", f"{bi.labels[0]}, {bi.labels[1]}", str(bi.hidden_size)), {"bi": bi})
    for bi in BI_ENCODERS
)


def measure(row: Row, folder: Path) -> tuple[str, ...]:
    """gliner's random checkpoint read here, what is saved here read by gliner with strict=True."""
    difference, entities_equal = check(row.options["bi"])
    assert difference <= 1e-4
    assert entities_equal
    return decade(difference), "yes"


SECTION = Section(
    title="Bi-encoders",
    text="""Two encoders, as the public models on ModernBERT have: built, read, saved and compared as above, the
entities also from label vectors that were made before (`encode_labels` here and in gliner).""",
    columns=("what", "text encoder, width", "label encoder, width", "head's width"),
    measured=("logits differ by", "entities equal"),
    rows=ROWS,
    measure=measure,
    notes="""gliner stores an LSTM with such a model if `num_rnn_layers` says so, and does not run it; so does this
package.""",
)
