"""token_entities: candidates from start, end and inside logits, against the definition and gliner's decoder."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import bounds_of
from torch import Tensor

from glimodern import ops, reference
from glimodern.inference.decode import decode_texts, text_spans
from glimodern.tagging import LeastOfRange

TEXTS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 4)), min_size=1, max_size=4)


def drawn(texts: list[tuple[int, int]], seed: int, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [pairs, 3], and offsets. ties: of few values, so that many scores are equal."""
    words, types = zip(*texts, strict=True)
    pairs = sum(n * m for n, m in texts)
    logits = torch.randn(pairs, 3, generator=torch.Generator().manual_seed(seed)) + torch.tensor([0.2, 0.2, 1.0])
    return logits.round() if ties else logits, bounds_of(words), bounds_of(types)


def rows(found: ops.SpanEntities) -> list[tuple[int, int, int, float]]:
    return list(zip(*(column.tolist() for column in found), strict=True))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=TEXTS, seed=st.integers(0, 99), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.731, 1.0]), ties=st.booleans())
def test_candidates_are_those_of_the_definition(texts, seed, threshold, ties):
    logits, *bounds = drawn(texts, seed, ties)
    thresholds = torch.full((int(bounds[1][-1]),), threshold)
    wanted = list(reference.token_entities(ops.probabilities(logits.flatten()).view(-1, 3), *bounds, thresholds))
    assert rows(ops.token_entities(logits, *bounds, threshold)) == wanted
    assert rows(ops.token_entities(logits, *bounds, thresholds)) == wanted


def test_a_threshold_for_each_type():
    logits, *bounds = drawn([(12, 3), (9, 2)], 4)
    thresholds = torch.tensor([0.2, 0.5, 0.7, 0.4, 0.9])
    found = rows(ops.token_entities(logits, *bounds, thresholds))
    alone = [rows(ops.token_entities(logits, *bounds, float(t))) for t in thresholds]
    assert {row for row in found} == {row for t, each in enumerate(alone) for row in each if row[2] == t} and found
    assert found == sorted(found, key=lambda row: (row[0], row[2], row[1]))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("multi_label", [True, False])
def test_entities_are_those_of_gliners_decoder(flat, multi_label):
    """Equal scores too, of which the least of three makes many: logits of few values."""
    decoder = pytest.importorskip("gliner.decoding.decoder", reason="needs the extra peers (gliner)")
    for seed in range(12):
        logits, *bounds = drawn([(15, 3)], seed, ties=seed % 2 == 0)
        names = {1: "a", 2: "b", 3: "c"}
        for threshold in (0.0, 0.3, 0.5, 0.7):
            ((*theirs,),) = decoder.TokenDecoder(None).decode(
                [["w"] * 15], names, logits.view(1, 15, 3, 3), flat_ner=flat, threshold=threshold,
                multi_label=multi_label,
            )  # fmt: skip
            spans = text_spans(ops.token_entities(logits, *bounds, threshold), *bounds)
            ours = decode_texts([spans], [15], ties="type", flat=flat, multi_label=multi_label).get(0, [])
            assert [(s, e, names[t + 1]) for s, e, t, _ in ours] == [(x.start, x.end, x.entity_type) for x in theirs]
            np.testing.assert_allclose([x[3] for x in ours], [x.score for x in theirs], rtol=1e-6)


def test_a_nan_is_a_candidate():
    logits, *bounds = drawn([(6, 2)], 1)
    logits[5, 2] = math.nan
    found = ops.token_entities(logits, *bounds, 1.0)
    assert rows(found._replace(score=found.score.nan_to_num(-1.0))) == [(2, 0, 1, -1.0)]
    with pytest.raises(ValueError, match="scores: expected numbers, got NaN"):
        text_spans(found, *bounds)


@pytest.mark.parametrize(
    ("logits", "threshold", "message"),
    [
        (torch.zeros(5, 3), 0.5, r"logits: expected \[6, 3\], which cu_words and cu_types make, got \(5, 3\)"),
        (torch.zeros(6, 3), 1.5, r"threshold: expected a probability in \[0, 1\], got 1.5"),
        (torch.zeros(6, 3), torch.tensor([0.5, 2.0]), r"threshold: expected probabilities in \[0, 1\], got 2.0"),
        (torch.zeros(6, 3), torch.zeros(3), r"threshold: expected a number or a float tensor \[2\]"),
    ],
)
def test_bad_input_is_a_clear_error(logits, threshold, message):
    with pytest.raises(ValueError, match=message):
        ops.token_entities(logits, bounds_of((3,)), bounds_of((2,)), threshold)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(values=st.lists(st.integers(-9, 9), min_size=1, max_size=40), data=st.data())
def test_least_of_range(values, data):
    ranges = data.draw(st.lists(st.tuples(st.integers(0, len(values) - 1), st.integers(0, 39)), max_size=8))
    first = np.array([i for i, _ in ranges], dtype=np.int64)
    last = np.minimum(first + np.array([w for _, w in ranges], dtype=np.int64), len(values) - 1)
    array = np.array(values, dtype=np.float32)
    table = LeastOfRange(np.stack([array, -array], 1), int((last - first).max(initial=0)) + 1)
    wanted = [[min(values[i : j + 1]), -max(values[i : j + 1])] for i, j in zip(first, last, strict=True)]
    assert table(first, last).tolist() == wanted
