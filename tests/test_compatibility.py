"""Every row of docs/COMPATIBILITY.md holds, and the document lists just these rows."""

import itertools

import pytest

from tests.checkpoint_rows import FACTORS
from tests.checkpoint_rows import ROWS as CHECKPOINT_ROWS
from tests.compatibility import DOCUMENT, listed_rows, sections

CASES = [
    pytest.param(section, row, id="-".join(cell for cell in row.cells if cell).replace(" ", "_"))
    for section in sections()
    for row in section.rows
]


@pytest.mark.parametrize(("section", "row"), CASES)
def test_row(section, row, tmp_path):
    if section.needs:
        pytest.importorskip(section.needs, reason=f"needs the extra peers ({section.needs})")
    assert len(section.measure(row, tmp_path)) == len(section.measured)


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.title)
def test_document_lists_just_these_rows(section):
    assert all(len(row.cells) == len(section.columns) for row in section.rows)
    listed = listed_rows(DOCUMENT.read_text(encoding="utf-8"), section)
    assert listed == [row.cells for row in section.rows], "run python tests/compatibility.py"


def test_checkpoint_rows_cover_all_pairs_of_options():
    for (one, its), (other, others) in itertools.combinations(FACTORS.items(), 2):
        covered = {(row.options[one], row.options[other]) for row in CHECKPOINT_ROWS}
        assert covered >= set(itertools.product(its, others))


def test_known_difference_of_empty_words(minilm, tmp_path, monkeypatch):
    """gliner moves the words after an empty one to the left; if it no longer does, the notes are to be changed."""
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    import torch
    from transformers import AutoTokenizer

    from glimodern import GLiModern
    from tests import checkpoint_rows

    monkeypatch.setattr(checkpoint_rows, "_tokenizer", lambda: AutoTokenizer.from_pretrained(minilm))
    public = checkpoint_rows.public_model(tmp_path, next(row for row in CHECKPOINT_ROWS if row.cells[0] == "bert"))
    ours = GLiModern.from_pretrained(tmp_path / "public", dtype="fp32")
    words = ["London", "\u200b", "Paris", "Rome"]
    with torch.no_grad():
        got = ours.scores(ours.packer.pack([words], [checkpoint_rows.LABELS]))[0][:, 0]  # spans of one word
    wanted = checkpoint_rows.public_logits(public, [words])[0][:, 0]
    torch.testing.assert_close(got[[0, 2, 3, 1]], wanted, rtol=0.0, atol=1e-4)
    assert (got[2] - wanted[2]).abs().max() > 1e-2
