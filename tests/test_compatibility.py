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
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
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
