"""glimodern.decode against the public gliner package's own greedy search, and against a quadratic one written here."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.decode import Candidates, find_candidates, greedy_decode

MODES = list(product((True, False), repeat=2))


def quadratic_greedy(spans, flat, multi_label):
    """spans: (start, end, type, score). The rules word for word, every pair compared."""

    def conflict(x, y):
        if x[:2] == y[:2]:
            return not multi_label
        apart = x[0] > y[1] or y[0] > x[1]
        inside = (x[0] <= y[0] and y[1] <= x[1]) or (y[0] <= x[0] and x[1] <= y[1])
        return not apart and (flat or not inside)

    kept = []
    for index in sorted(range(len(spans)), key=lambda index: -spans[index][3]):
        if not any(conflict(spans[index], spans[other]) for other in kept):
            kept.append(index)
    return sorted(kept, key=lambda index: spans[index][0])


def decode(spans, flat, multi_label):
    columns = [list(column) for column in zip(*spans, strict=True)] if spans else [[], [], [], []]
    return greedy_decode(*columns, flat=flat, multi_label=multi_label).tolist()


def random_spans(rng: random.Random) -> list[tuple[int, int, int, float]]:
    words, max_width, types = rng.randint(1, 14), rng.randint(1, 6), rng.randint(1, 4)
    every = [(i, i + k, t) for i in range(words) for k in range(max_width) if i + k < words for t in range(types)]
    levels = rng.choice((1, 2, 4, 1000))  # few levels: many ties
    chosen = [span for span in every if rng.random() < rng.choice((0.1, 0.5, 1.0))]
    return [(*span, float(np.float32(rng.randint(1, levels) / levels))) for span in chosen]


@pytest.mark.parametrize(("flat", "multi_label"), MODES)
def test_equal_to_the_public_greedy_search(flat, multi_label):
    decoder = pytest.importorskip("gliner.decoding.decoder", reason="needs the extra peers (the public gliner package)")
    public = decoder.SpanDecoder(config=None)
    rng = random.Random(17)
    for _ in range(1500):
        spans = random_spans(rng)
        theirs = public.greedy_search(
            [decoder.Span(start, end, str(label), score) for start, end, label, score in spans], flat, multi_label
        )
        ours = [spans[index] for index in decode(spans, flat, multi_label)]
        assert ours == [(span.start, span.end, int(span.entity_type), span.score) for span in theirs]


@pytest.mark.parametrize(("flat", "multi_label"), MODES)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_equal_to_the_public_decoder_from_logits(flat, multi_label, threshold):
    decoder = pytest.importorskip("gliner.decoding.decoder", reason="needs the extra peers (the public gliner package)")
    public = decoder.SpanDecoder(config=None)
    generator = torch.Generator().manual_seed(3)
    for words, max_width, types in [(1, 12, 1), (5, 12, 3), (30, 12, 7), (9, 1, 2)]:
        # halves tie often; sigmoid(0) is 0.5 exactly, which a strict threshold of 0.5 excludes
        logits = (torch.randn(words, max_width, types, generator=generator) * 4).round() / 2
        theirs = public.decode(
            tokens=[["w"] * words],
            id_to_classes={t + 1: str(t) for t in range(types)},
            model_output=logits[None],
            flat_ner=flat,
            threshold=threshold,
            multi_label=multi_label,
        )[0]
        found = find_candidates(logits, threshold)
        kept = greedy_decode(*found, flat=flat, multi_label=multi_label)
        ours = list(zip(*(column[kept].tolist() for column in found), strict=True))
        assert ours == [(span.start, span.end, int(span.entity_type), span.score) for span in theirs]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    spans=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2), st.sampled_from([0.5, 0.6, 1])))
)
def test_equal_to_the_quadratic_search(spans):
    """Any order, the same candidate twice, and spans of any width, which a model with max_width never gives."""
    spans = [(start, start + width, label, score) for start, width, label, score in spans]
    for flat, multi_label in MODES:
        assert decode(spans, flat, multi_label) == quadratic_greedy(spans, flat, multi_label)


def test_modes_on_one_example():
    inner, outer, crossing, other_label = (1, 1, 0, 0.9), (0, 2, 1, 0.8), (2, 3, 0, 0.7), (1, 1, 2, 0.6)
    spans = [outer, inner, other_label, crossing]
    assert decode(spans, flat=True, multi_label=False) == [1, 3]
    assert decode(spans, flat=True, multi_label=True) == [1, 2, 3]
    assert decode(spans, flat=False, multi_label=False) == [0, 1]
    assert decode(spans, flat=False, multi_label=True) == [0, 1, 2]


def test_first_of_equal_scores_wins():
    spans = [(0, 1, 1, 0.5), (0, 1, 0, 0.5), (1, 2, 0, 0.5)]
    assert decode(spans, flat=True, multi_label=False) == [0]
    assert decode(spans[::-1], flat=True, multi_label=False) == [0]


def test_candidates_are_those_of_torch_where():
    logits = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0))
    found = find_candidates(logits, 0.4)
    start, width, label = torch.where(logits.sigmoid() > 0.4)
    inside = start + width < 20
    assert found.start.tolist() == start[inside].tolist()
    assert found.end.tolist() == (start + width)[inside].tolist()
    assert found.type.tolist() == label[inside].tolist()
    assert found.score.tolist() == logits.sigmoid()[start, width, label][inside].tolist()
    assert found.score.dtype == np.float32


def test_threshold_is_strict_and_compared_in_float32():
    probability = torch.tensor(0.3, dtype=torch.float64)
    logits = torch.logit(probability).float().reshape(1, 1, 1)
    score = logits.sigmoid().item()
    assert len(find_candidates(logits, score).start) == 0
    assert len(find_candidates(logits, math.nextafter(score, 0)).start) == 0  # the same float32
    assert len(find_candidates(logits, float(np.nextafter(np.float32(score), np.float32(0)))).start) == 1


def test_threshold_for_each_type():
    logits = torch.zeros(2, 1, 3)
    found = find_candidates(logits, [0.4, 0.5, 0.2])
    assert found.type.tolist() == [0, 2, 0, 2]
    assert find_candidates(logits[:, :, :0], 0.5).start.size == 0
    assert find_candidates(logits[:0], [0.4, 0.5, 0.2]).start.size == 0


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    halves, singles = find_candidates(logits, 0.5), find_candidates(logits.float(), 0.5)
    for half, single in zip(halves, singles, strict=True):
        assert half.tolist() == single.tolist()


def test_entries_outside_the_text_are_ignored_and_inputs_unchanged():
    logits = torch.full((3, 4, 1), 5.0)
    logits[2, 1:] = math.nan
    logits[1, 2:] = math.inf
    before = logits.clone()
    found = find_candidates(logits, 0.5)
    assert isinstance(found, Candidates)
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2),
    ]  # fmt: skip
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())


def test_many_candidates_stay_near_linear():
    """100,000 candidates: the public search compares each with every kept span, this one with its own words."""
    words, max_width, types = 2000, 10, 5
    logits = torch.randn(words, max_width, types, generator=torch.Generator().manual_seed(2))
    found = find_candidates(logits, 0.0)
    for flat, multi_label in MODES:
        kept = greedy_decode(*found, flat=flat, multi_label=multi_label)
        assert len(kept) >= words / max_width
        assert (np.diff(found.start[kept]) >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [0, 1], [0], [0.5]), "one length"),
        ((0, 0, 0, 0.5), "one length"),
        (([2], [1], [0], [0.5]), "0 <= start <= end"),
        (([-1], [1], [0], [0.5]), "0 <= start <= end"),
        (([0], [1], [0], [math.nan]), "NaN"),
    ],
)
def test_bad_candidates(arguments, message):
    with pytest.raises(ValueError, match=message):
        greedy_decode(*arguments)


@pytest.mark.parametrize(
    ("logits", "threshold", "message"),
    [
        (torch.zeros(2, 3), 0.5, r"\[words, K, types\]"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), 0.5, "float tensor"),
        (torch.zeros(2, 3, 4), [0.5, 0.5], "each of the 4 types"),
        (torch.zeros(2, 3, 4), 1.5, r"in \[0, 1\]"),
        (torch.zeros(2, 3, 4), math.nan, r"in \[0, 1\]"),
        (torch.full((2, 3, 4), math.nan), 0.5, "NaN"),
    ],
)
def test_bad_logits_or_threshold(logits, threshold, message):
    with pytest.raises(ValueError, match=message):
        find_candidates(logits, threshold)
