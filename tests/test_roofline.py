"""bench/roofline.py: formulas against counting by hand, and docs/ROOFLINE.md against the formulas."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from shapes import SMALL_SPAN_CASES, SpanCase, case_id

ROOT = Path(__file__).parents[1]


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("roofline")


@pytest.mark.parametrize("case", SMALL_SPAN_CASES, ids=case_id)
def test_spans_and_pairs_are_those_inside_their_texts(roofline: ModuleType, case: SpanCase) -> None:
    shape = roofline.Spans(case.words, case.types, case.hidden, case.max_width)
    counted = [sum(min(case.max_width, words - i) for i in range(words)) for words in case.words]
    assert shape.spans == sum(counted)
    assert shape.pairs == sum(spans * types for spans, types in zip(counted, case.types, strict=True))
    batch = case.build()
    assert shape.parameters == sum(x.numel() for x in batch.floats)


@pytest.mark.parametrize("window", (None, 0, 1, 3, 64))
def test_attention_pairs_are_those_in_the_window(roofline: ModuleType, window: int | None) -> None:
    lengths = (0, 1, 2, 5, 130)
    wide = 1000 if window is None else window
    counted = sum(abs(i - j) <= wide for length in lengths for i in range(length) for j in range(length))
    assert roofline.Attention(lengths, window=window).pairs == counted


def test_pieces_counts_the_texts_of_each_tile(roofline: ModuleType) -> None:
    lengths = (3, 0, 16, 40, 1)
    texts = [text for text, length in enumerate(lengths) for _ in range(length)]
    assert roofline.pieces(lengths, 16) == sum(len(set(texts[i : i + 16])) for i in range(0, len(texts), 16))


def test_costs_by_hand(roofline: ModuleType) -> None:
    """Two words and one type, H = 4, K = 2: three spans; fp32."""
    shape = roofline.Spans((2,), (1,), hidden=4, max_width=2, itemsize=4)
    assert roofline.cost("span_scores", shape) == (2 * 4 * 3, 2 * 4 * 3 + 3, 4 * (8 + 8 + 4 + 1 + 4))
    assert roofline.bytes_moved("span_scores", shape, backward=True) == 4 * (3 + 20 + 21)  # g; a, b, u; four gradients
    assert roofline.flops("geglu", roofline.Tokens(3, 5)) == 5 * 15
    assert roofline.bytes_moved("geglu", roofline.Tokens(3, 5), backward=True) == 2 * 5 * 15


def test_unknown_operators_and_directions_are_refused(roofline: ModuleType) -> None:
    with pytest.raises(ValueError, match="got 'softmax'"):
        roofline.cost("softmax", roofline.Tokens(1, 1))
    with pytest.raises(ValueError, match="span_entities has no backward pass"):
        roofline.cost("span_entities", roofline.Spans((1,), (1,)), backward=True)


def test_the_document_has_the_computed_tables(roofline: ModuleType) -> None:
    text = (ROOT / "docs" / "ROOFLINE.md").read_text()
    for table in roofline.tables():
        assert table in text, "docs/ROOFLINE.md is not what `python bench/roofline.py` prints"
