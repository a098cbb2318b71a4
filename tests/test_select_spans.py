"""select_spans: C++ against the plain search, which tests/test_decode.py holds to the public package."""

import pytest
import torch
from backends import extension
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern import ops, reference

needs_extension = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")


@needs_extension
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=120), st.booleans(), st.booleans())
def test_equal_to_the_plain_search(spans, flat, multi_label):
    start = torch.tensor([first for first, _ in spans], dtype=torch.int64)
    end = start + torch.tensor([width for _, width in spans], dtype=torch.int64)
    wanted = reference.select_spans(start, end, flat=flat, multi_label=multi_label)
    with ops.use_backend("cpp"):
        assert torch.equal(ops.select_spans(start, end, flat=flat, multi_label=multi_label), wanted)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_extension)])
def test_modes(backend):
    start, end = torch.tensor([2, 2, 3, 0, 4, 6]), torch.tensor([5, 5, 4, 2, 4, 6])
    with ops.use_backend(backend):
        kept = {
            (flat, multi_label): ops.select_spans(start, end, flat=flat, multi_label=multi_label).tolist()
            for flat in (True, False)
            for multi_label in (True, False)
        }
    assert kept == {
        (True, False): [0, 5],
        (True, True): [0, 1, 5],
        (False, False): [0, 2, 4, 5],
        (False, True): [0, 1, 2, 4, 5],
    }


def test_strided_inputs_are_left_alone():
    pairs = torch.tensor([[0, 1], [1, 2], [3, 3]])
    before = pairs.clone()
    assert ops.select_spans(pairs[:, 0], pairs[:, 1]).tolist() == [0, 2]
    assert torch.equal(pairs, before)


@pytest.mark.parametrize(
    ("start", "end", "error", "message"),
    [
        (torch.tensor([0.0]), torch.tensor([1]), TypeError, "start: expected int64 on the CPU, got torch.float32"),
        (torch.tensor([0]), torch.tensor([1, 2]), ValueError, r"expected one shape \[n\], got \(1,\) and \(2,\)"),
        (torch.tensor([-1]), torch.tensor([1]), ValueError, "expected 0 <= start <= end"),
        (torch.tensor([2]), torch.tensor([1]), ValueError, "expected 0 <= start <= end"),
    ],
)
def test_bad_arguments(start, end, error, message):
    with pytest.raises(error, match=message):
        ops.select_spans(start, end)
