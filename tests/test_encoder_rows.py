"""Every architecture of the compatibility table: trained, saved, loaded, packed as padded."""

import pytest

from tests.encoder_rows import ROWS, check


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_encoder(row):
    columns = check(row)
    assert columns["encoder"] == row.name
    print(columns)
