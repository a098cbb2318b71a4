"""What a dispatcher remembers; the choice of backends is tested with the operators."""

import pytest

from glimodern.ops import dispatch


@pytest.fixture
def warnings_forgotten():
    dispatch.warn_once.cache_clear()
    yield
    dispatch.warn_once.cache_clear()


def test_a_warning_is_logged_once(warnings_forgotten, caplog):
    with caplog.at_level("WARNING", logger="glimodern"):
        for message in ("slow: a", "slow: b", "slow: a"):
            dispatch.warn_once(message)
    assert [record.message for record in caplog.records] == ["slow: a", "slow: b"]


def test_warnings_are_remembered_in_bounded_memory(warnings_forgotten, caplog):
    """A message that names a shape or an error differs from call to call."""
    with caplog.at_level("WARNING", logger="glimodern"):
        for number in range(2000):
            dispatch.warn_once(f"slow: got head_dim {number}")
    assert len(caplog.records) == 2000
    assert dispatch.warn_once.cache_info().currsize == dispatch.warn_once.cache_info().maxsize == 256
