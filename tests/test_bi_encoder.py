"""Bi-encoders: gliner's scores, labels that do not know of each other, vectors that are kept, saved and refused."""

import pytest

from tests.bi_encoder_rows import ROWS, check


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_public_checkpoint(row):
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    difference, entities_equal = check(row)
    assert difference <= 1e-4
    assert entities_equal
