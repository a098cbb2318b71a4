"""glimodern.inference.decode against the public gliner package's own greedy search, and a quadratic one here.

What is a candidate, tests/test_span_entities.py tests.
"""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.inference.decode import decode_texts, greedy_decode, text_spans
from glimodern.ops import SpanEntities

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


def entities_of(logits: list[torch.Tensor], threshold: float) -> tuple[SpanEntities, torch.Tensor, torch.Tensor]:
    """The candidates of texts' logits [words, K, types], plainly, with cu_words and cu_types."""
    columns, words, types = [], 0, 0
    for part in logits:
        word, width, kind = torch.where(part.sigmoid() > threshold)
        inside = word + width < len(part)
        word, width, kind = word[inside], width[inside], kind[inside]
        columns.append((word + words, width, kind + types, part.sigmoid()[word, width, kind]))
        words, types = words + len(part), types + part.shape[2]
    found = SpanEntities(*(torch.cat(column) for column in zip(*columns, strict=True)))
    lengths = torch.tensor([[len(part), part.shape[2]] for part in logits])
    cu_words, cu_types = torch.nn.functional.pad(lengths.cumsum(0), (0, 0, 1, 0)).to(torch.int32).unbind(1)
    return found, cu_words, cu_types


def decode_batch(found, cu_words, cu_types, **options):
    return decode_texts([text_spans(found, cu_words, cu_types)], cu_words.diff().tolist(), **options)


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
    # halves tie often; sigmoid(0) is 0.5 exactly, which a strict threshold of 0.5 excludes
    logits = [
        (torch.randn(words, max_width, types, generator=generator) * 4).round() / 2
        for words, max_width, types in [(1, 12, 1), (5, 12, 3), (0, 12, 2), (30, 12, 7), (9, 1, 2)]
    ]
    ours = decode_batch(*entities_of(logits, threshold), flat=flat, multi_label=multi_label)
    assert list(ours) == sorted(ours)
    for text, part in enumerate(logits):
        words, _, types = part.shape
        theirs = public.decode(
            tokens=[["w"] * words],
            id_to_classes={t + 1: str(t) for t in range(types)},
            model_output=part[None],
            flat_ner=flat,
            threshold=threshold,
            multi_label=multi_label,
        )[0]
        wanted = [(span.start, span.end, int(span.entity_type), span.score) for span in theirs]
        assert ours.get(text, []) == wanted


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
    assert greedy_decode(*(list(column) for column in zip(*spans, strict=True))).tolist() == [1, 3]  # the defaults


def test_flat_and_one_label_a_span_by_default():
    logits = torch.full((2, 2, 2), -9.0)
    logits[0, 0], logits[0, 1, 0] = torch.tensor([3.0, 2.0]), 1.0
    found, *bounds = entities_of([logits], 0.5)
    for options, wanted in (
        ({}, [(0, 0, 0)]),
        ({"flat": False}, [(0, 0, 0), (0, 1, 0)]),
        ({"multi_label": True}, [(0, 0, 0), (0, 0, 1)]),
    ):
        assert [entity[:3] for entity in decode_batch(found, *bounds, **options)[0]] == wanted


def test_first_of_equal_scores_wins():
    spans = [(0, 1, 1, 0.5), (0, 1, 0, 0.5), (1, 2, 0, 0.5)]
    assert decode(spans, flat=True, multi_label=False) == [0]
    assert decode(spans[::-1], flat=True, multi_label=False) == [0]


def test_texts_without_candidates_are_left_out():
    logits = [torch.full((2, 1, 1), -9.0), torch.full((1, 1, 2), 9.0), torch.zeros(0, 1, 1)]
    entities = decode_batch(*entities_of(logits, 0.5), multi_label=True)
    assert [(text, [entity[:3] for entity in found]) for text, found in entities.items()] == [
        (1, [(0, 0, 0), (0, 0, 1)])
    ]
    assert decode_batch(*entities_of(logits[:1], 0.5)) == {}


def test_nan_scores_are_an_error():
    found, *bounds = entities_of([torch.zeros(2, 1, 1)], 0.4)
    with pytest.raises(ValueError, match="the model's weights or its input are broken"):
        decode_batch(found._replace(score=found.score * math.nan), *bounds)


def test_many_candidates_stay_near_linear():
    """100,000 candidates: the public search compares each with every kept span, this one with its own words."""
    words, max_width, types = 2000, 10, 5
    logits = torch.randn(words, max_width, types, generator=torch.Generator().manual_seed(2))
    found, *bounds = entities_of([logits], 0.0)
    for flat, multi_label in MODES:
        kept = decode_batch(found, *bounds, flat=flat, multi_label=multi_label)[0]
        assert len(kept) >= words / max_width
        assert (np.diff([entity[0] for entity in kept]) >= 0).all()


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
