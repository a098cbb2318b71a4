"""The fit of a `Calibration` to candidates, and the nested cross-validation that measures it.

1. Temperature and bias (Platt, 1999; Guo et al., 2017, https://arxiv.org/abs/1706.04599): maximum likelihood over all
   candidates, with a Gaussian prior around "no change", so that a few candidates, or candidates that a score separates
   perfectly, give finite values.
2. The common threshold maximises micro F1 of decoded entities. Greedy decoding visits candidates by decreasing score,
   so that the entities found above a threshold are those found above the floor with a score above the threshold: one
   decoding serves all thresholds.
3. The threshold of a label maximises micro F1 while all other labels keep the common threshold. (The label's own F1
   would let a label that is seldom right bring many wrong entities.) It is then moved
   towards the common one, between their logits, by the weight n / (n + k), with the label's n gold entities. k is
   chosen by cross-validation over sentences. All labels keep the common threshold unless another k gains clearly.

Steps 1 to 3 are repeated without each of `FOLDS` parts of the sentences, which the result is then measured on. So the
reported F1 and calibration error are of sentences that the fit, the choice of k included, had not seen.

Everything is linear or n log n in the number of candidates, but for the labels' decodings: those of a label meet only
the candidates of its own sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glimodern.inputs.words import Entity

from .calibration import Calibration, Floats, Measured, logit, logits, scaled, sigmoid

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

FOLDS = 5  # parts of the cross-validations, outer and inner
MIN_SENTENCES = 4  # so that each part of an inner cross-validation has a sentence to fit and one to measure
BINS = 15  # of equal width, as in Guo et al.
UNCALIBRATED = 0.5  # the threshold without a calibration; ties are decided in its favour
COMMON = 1e9  # a k that gives every label the common threshold
SHRINKAGES = (COMMON, 300.0, 100.0, 30.0, 10.0)  # values of k, that of the common threshold first
_SLOPES = (0.05, 20.0)  # least and most 1 / temperature
_PRIOR = (1.0, 0.25)  # precision of the Gaussian priors of 1 / temperature (around 1) and bias (around 0)
_STEPS = 100  # most Newton steps


class Decode(Protocol):
    """A greedy search for flat entities: (first words, last words, labels, scores) -> indices of those kept."""

    def __call__(self, starts: Any, ends: Any, types: Any, scores: Any) -> Ints: ...


@dataclass(frozen=True, eq=False)
class Candidates:
    """Scored candidates of some sentences, and the sentences' gold.

    sentence, start, end, label, score, is_gold: [candidates]. start, end: words of the sentence, both inclusive. label:
    an index into `labels`. Candidates are above some floor of the score and may overlap.
    gold_sentence, gold_label: [gold entities], those without a candidate included.
    lengths: the number of words of each sentence.
    """

    labels: tuple[str, ...]
    lengths: Ints
    sentence: Ints
    start: Ints
    end: Ints
    label: Ints
    score: Floats
    is_gold: Flags
    gold_sentence: Ints
    gold_label: Ints

    def __post_init__(self) -> None:
        columns = (self.sentence, self.start, self.end, self.label, self.score, self.is_gold)
        sizes = [len(column) for column in columns]
        if len(set(sizes)) != 1:
            raise ValueError(f"candidates: expected columns of one length, got {sizes}")
        if np.isnan(self.score).any():
            broken = int(np.isnan(self.score).sum())
            raise ValueError(
                f"scores: expected numbers, got NaN for {broken} of {len(self.score)} candidates; the model's weights "
                "or its input are broken"
            )
        if len(self.score) and not (self.score.min() >= 0 and self.score.max() <= 1):
            raise ValueError(
                f"scores: expected probabilities from 0 to 1, got {self.score.min():g} to {self.score.max():g}; "
                "apply the sigmoid to logits"
            )

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        gold: Sequence[Sequence[Entity]],
        scored: Sequence[Sequence[tuple[int, int, str, float]]],
    ) -> Candidates:
        """Build the columns from lists. gold, scored: (first word, last word, label) and (..., score) by sentence."""
        answers = [
            {(start, end, label) for start, end, label in entities} for entities in gold
        ]  # duplicates count once
        names = {label for entities in answers for _, _, label in entities}
        names |= {label for entities in scored for _, _, label, _ in entities}
        labels = tuple(sorted(names))
        index = {label: number for number, label in enumerate(labels)}
        rows = [(i, start, end, label, score) for i, row in enumerate(scored) for start, end, label, score in row]
        sentence, start, end, label, score = zip(*rows, strict=True) if rows else ((),) * 5
        golden = sorted((i, index[label]) for i, entities in enumerate(answers) for _, _, label in entities)
        return cls(
            labels,
            np.asarray(lengths, dtype=np.int64),
            np.asarray(sentence, dtype=np.int64),
            np.asarray(start, dtype=np.int64),
            np.asarray(end, dtype=np.int64),
            np.asarray([index[name] for name in label], dtype=np.int64),
            np.asarray(score, dtype=np.float64),
            np.asarray([(start, end, label) in answers[i] for i, start, end, label, _ in rows], dtype=np.bool_),
            np.asarray([i for i, _ in golden], dtype=np.int64),
            np.asarray([label for _, label in golden], dtype=np.int64),
        )

    @property
    def sentences(self) -> int:
        return len(self.lengths)

    def kept(self, rows: npt.NDArray[Any]) -> Candidates:
        """Return some candidates, by a mask or by indices; the gold stays."""
        columns = ("sentence", "start", "end", "label", "score", "is_gold")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def of_sentences(self, chosen: Flags) -> Candidates:
        """Return the candidates and the gold of some sentences, whose numbers stay. chosen: [sentences]."""
        golden = chosen[self.gold_sentence]
        return replace(
            self.kept(chosen[self.sentence]),
            gold_sentence=self.gold_sentence[golden],
            gold_label=self.gold_label[golden],
        )

    def gold_by_label(self) -> Ints:
        """Return the number of gold entities of each label."""
        return np.bincount(self.gold_label, minlength=len(self.labels)).astype(np.int64)


# Calibrated probabilities


def fit_scale(scores: npt.ArrayLike, hits: npt.ArrayLike) -> tuple[float, float]:
    """Return the temperature and bias of the most likely calibrated probabilities, under the prior.

    hits: whether each candidate is gold. Newton's method on a convex function of 1 / temperature and bias, with steps
    that are halved until they gain; 1 / temperature stays within `_SLOPES`. Without candidates: (1, 0).
    """
    x, y = logits(scores), np.asarray(hits, dtype=np.float64)
    precision, centre = np.array(_PRIOR), np.array([1.0, 0.0])

    def loss(at: Floats) -> float:
        z = at[0] * x + at[1]
        return float((np.logaddexp(0.0, z) - y * z).sum() + 0.5 * (precision * (at - centre) ** 2).sum())

    def minimise(at: Floats, free: Flags) -> Floats:
        """Newton's method over the parameters in `free`."""
        value = loss(at)
        for _ in range(_STEPS):
            p = sigmoid(at[0] * x + at[1])
            weight, error = p * (1 - p), p - y
            slope = np.array([error @ x, error.sum()]) + precision * (at - centre)
            mixed = weight @ x
            curve = np.array([[weight @ (x * x), mixed], [mixed, weight.sum()]]) + np.diag(precision)
            step = np.zeros(2)
            step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
            while np.abs(step).max() > 1e-10:
                tried = at - step
                if (trial := loss(tried)) <= value:
                    break
                step = step / 2
            else:
                return at
            at, value = tried, trial
        return at

    best = minimise(centre, np.array([True, True]))
    if not _SLOPES[0] <= best[0] <= _SLOPES[1]:  # of a convex function, the best point then lies on the bound
        bound = np.array([np.clip(best[0], *_SLOPES), best[1]])
        best = minimise(bound, np.array([False, True]))
    return float(1 / best[0]), float(best[1])


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: number, mean probability and share of gold of the candidates in each bin that has any."""

    count: Ints
    probability: Floats
    share: Floats

    @classmethod
    def of(cls, probabilities: npt.ArrayLike, hits: npt.ArrayLike) -> Reliability:
        """Sort candidates into `BINS` bins of equal width."""
        p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(hits, dtype=np.float64)
        bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        filled = count > 0
        sums = (np.bincount(bins, weights=values, minlength=BINS)[filled] for values in (p, y))
        probability, share = (values / count[filled] for values in sums)
        return cls(count[filled].astype(np.int64), probability, share)

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over the candidates of |mean probability - share of gold|."""
        total = int(self.count.sum())
        return float((self.count * np.abs(self.probability - self.share)).sum() / total) if total else 0.0


# Thresholds


def decoded(candidates: Candidates, decode: Decode) -> Candidates:
    """Return the entities that a flat search finds among the candidates of all sentences."""
    first_word = np.concatenate([[0], np.cumsum(candidates.lengths)])[candidates.sentence]
    start, end = candidates.start + first_word, candidates.end + first_word
    return candidates.kept(decode(start, end, candidates.label, candidates.score))


def found(candidates: Candidates, thresholds: Floats, decode: Decode) -> Candidates:
    """Return the entities that a flat search finds with a threshold for each label. thresholds: [labels]."""
    return decoded(candidates.kept(candidates.score > thresholds[candidates.label]), decode)


def f1(correct: npt.ArrayLike, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Any:
    """Return F1 by the numbers of correct, predicted and gold entities; 0 without predicted and gold ones."""
    total = np.asarray(predicted, dtype=np.float64) + np.asarray(gold, dtype=np.float64)
    return 2 * np.asarray(correct, dtype=np.float64) / np.maximum(total, 1.0)


def f1_curve(scores: Floats, hits: Flags, gold: int, rest: tuple[int, int] = (0, 0)) -> tuple[Floats, Floats]:
    """Return thresholds by decreasing value, and the micro F1 at each of them.

    scores, hits: of the found entities, scores > 0. The thresholds lie between neighbouring scores, halfway between
    their logits, and below the least score. gold: number of all gold entities. rest: (correct, predicted) of entities
    that are found at any threshold.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.empty(0, np.int64)
    correct, predicted = np.cumsum(hits[order])[last] + rest[0], last + 1 + rest[1]
    logit_scores = logits(ordered[last])
    between = sigmoid((logit_scores[1:] + logit_scores[:-1]) / 2)
    # scores that clipping or rounding makes equal to their threshold would not be above it
    between = np.where((between < ordered[last][:-1]) & (between >= ordered[last][1:]), between, ordered[last][1:])
    below = np.nextafter(ordered[last][-1:], -1.0)
    return np.concatenate([between, np.maximum(below, 0.0)]), np.asarray(f1(correct, predicted, gold))


def best_threshold(scores: Floats, hits: Flags, gold: int, prior: float, rest: tuple[int, int] = (0, 0)) -> float:
    """Return the threshold of the highest F1 (see `f1_curve`); of equally good ones, `prior` or the nearest to it."""
    above = scores > prior
    at_prior = float(f1(rest[0] + int(hits[above].sum()), rest[1] + int(above.sum()), gold))
    thresholds, values = f1_curve(scores, hits, gold, rest)
    if not len(values) or values.max() <= at_prior + 1e-12:
        return prior
    best = thresholds[values >= values.max() - 1e-12]
    return float(best[np.argmin(np.abs(logits(best) - logit(prior)))])


def fit_threshold(candidates: Candidates, decode: Decode) -> float:
    """Return the common threshold."""
    entities = decoded(candidates, decode)
    return best_threshold(entities.score, entities.is_gold, len(candidates.gold_label), UNCALIBRATED)


def label_thresholds(candidates: Candidates, common: float, decode: Decode) -> Floats:
    """Return the best threshold of each label while all others keep the common one, not shrunk, [labels].

    A label without gold has the common one.
    """
    labels, gold = len(candidates.labels), len(candidates.gold_label)
    at_common = found(candidates, np.full(labels, common), decode)
    predicted = np.bincount(at_common.label, minlength=labels)
    correct = np.bincount(at_common.label[at_common.is_gold], minlength=labels)
    thresholds = np.full(labels, common)
    apart, owner = _one_label_each(candidates, common)
    entities = decoded(apart, decode)
    own = entities.kept(entities.label == owner[entities.sentence])
    order = np.argsort(own.label, kind="stable")
    bounds = np.searchsorted(own.label[order], np.arange(labels + 1))
    for label in np.unique(own.label).tolist():
        rows = order[bounds[label] : bounds[label + 1]]
        rest = (int(correct.sum() - correct[label]), int(predicted.sum() - predicted[label]))
        thresholds[label] = best_threshold(own.score[rows], own.is_gold[rows], gold, common, rest)
    return thresholds


def _one_label_each(candidates: Candidates, common: float) -> tuple[Candidates, Ints]:
    """Return copies of sentences, one for each label that has candidates there, and the label of each copy.

    A copy holds the label's candidates, and those of other labels above the common threshold, which may block them.
    Labels without gold have no copies.
    """
    own = np.flatnonzero(candidates.gold_by_label()[candidates.label] > 0)
    count = candidates.sentences
    keys, copy_of_own = np.unique(candidates.label[own] * count + candidates.sentence[own], return_inverse=True)
    owner, sentence = keys // max(count, 1), keys % max(count, 1)
    strong = np.flatnonzero(candidates.score > common)
    strong = strong[np.argsort(candidates.sentence[strong], kind="stable")]
    first = np.searchsorted(candidates.sentence[strong], sentence, side="left")
    number = np.searchsorted(candidates.sentence[strong], sentence, side="right") - first
    copy = np.repeat(np.arange(len(keys)), number)
    within = np.arange(len(copy)) - np.repeat(np.cumsum(number) - number, number)
    rivals = strong[first[copy] + within]
    other = candidates.label[rivals] != owner[copy]
    rows = np.concatenate([own, rivals[other]])
    copies = np.concatenate([copy_of_own, copy[other]])
    return replace(candidates.kept(rows), sentence=copies, lengths=candidates.lengths[sentence]), owner


def shrunk(thresholds: Floats, common: float, gold: Ints, k: float) -> Floats:
    """Return the labels' thresholds moved towards the common one, between their logits. gold: entities by label."""
    if k == COMMON:
        return np.full(len(thresholds), common)
    weight = gold / (gold + k)
    moved = sigmoid(weight * logits(thresholds) + (1 - weight) * logit(common))
    return np.where((thresholds == common) | (gold == 0), common, moved)


# Cross-validation


@dataclass(frozen=True)
class _Counts:
    """Numbers of correct, predicted and gold entities, summed over parts."""

    correct: int = 0
    predicted: int = 0
    gold: int = 0

    def plus(self, candidates: Candidates, thresholds: Floats, decode: Decode) -> _Counts:
        """Add what a flat search finds."""
        entities = found(candidates, thresholds, decode)
        return _Counts(
            self.correct + int(entities.is_gold.sum()),
            self.predicted + len(entities.score),
            self.gold + len(candidates.gold_label),
        )

    @property
    def f1(self) -> float:
        return float(f1(self.correct, self.predicted, self.gold))


def folds(sentences: Ints, rng: np.random.Generator) -> list[Ints]:
    """Divide sentences into `FOLDS` random parts, or into one for each sentence if they are fewer."""
    return [np.sort(part) for part in np.array_split(rng.permutation(sentences), min(FOLDS, len(sentences)))]


def _splits(sentences: Ints, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints]]:
    """Yield (sentences to fit on, sentences to measure on) for each part."""
    for part in folds(sentences, rng):
        yield np.setdiff1d(sentences, part), part


def _of(candidates: Candidates, sentences: Ints) -> Candidates:
    chosen = np.zeros(candidates.sentences, dtype=np.bool_)
    chosen[sentences] = True
    return candidates.of_sentences(chosen)


def choose_shrinkage(correct: Floats, predicted: Floats, gold: Ints) -> float:
    """Return the k whose gain in F1 over the common threshold, less one standard error, is highest, if that is > 0.

    correct, predicted: numbers of entities with each of `SHRINKAGES`, by sentence, [k, sentences]. gold: [sentences].
    The standard error is of the sum over sentences of each one's share in the difference of the two F1 (the delta
    method). Without it, thresholds of labels that do not differ would be fitted to the noise of a few sentences.
    """
    total = np.maximum(predicted.sum(axis=1) + gold.sum(), 1.0)
    values = 2 * correct.sum(axis=1) / total
    shares = (2 * correct - values[:, None] * (predicted + gold)) / total[:, None]
    differences = shares - shares[0]
    error = np.sqrt(len(gold) * differences.var(axis=1))
    return SHRINKAGES[int(np.argmax(values - values[0] - error))]


def fit_thresholds(
    candidates: Candidates, sentences: Ints, decode: Decode, rng: np.random.Generator
) -> tuple[float, Floats]:
    """Return the common threshold and those of the labels, shrunk with the best k of an inner cross-validation."""
    correct, predicted = np.zeros((2, len(SHRINKAGES), candidates.sentences))
    for fit_on, rest in _splits(sentences, rng):
        train, test = _of(candidates, fit_on), _of(candidates, rest)
        common = fit_threshold(train, decode)
        best, gold = label_thresholds(train, common, decode), train.gold_by_label()
        for row, k in enumerate(SHRINKAGES):
            entities = found(test, shrunk(best, common, gold, k), decode)
            correct[row] += np.bincount(entities.sentence, weights=entities.is_gold, minlength=candidates.sentences)
            predicted[row] += np.bincount(entities.sentence, minlength=candidates.sentences)
    gold = np.bincount(_of(candidates, sentences).gold_sentence, minlength=candidates.sentences)
    k = choose_shrinkage(correct[:, sentences], predicted[:, sentences], gold[sentences])
    whole = _of(candidates, sentences)
    common = fit_threshold(whole, decode)
    return common, shrunk(label_thresholds(whole, common, decode), common, whole.gold_by_label(), k)


@dataclass(frozen=True, eq=False)
class Fit:
    """A calibration, with the data of its plots.

    before, after: of the scores, and of calibrated probabilities of sentences that the fit had not seen. curve:
    thresholds and the micro F1 at each, of all sentences.
    """

    calibration: Calibration
    before: Reliability
    after: Reliability
    curve: tuple[Floats, Floats]


def fit(candidates: Candidates, decode: Decode, *, fingerprint: str, seed: int = 0, name: str = "dataset") -> Fit:
    """Fit a calibration and measure it by nested cross-validation.

    decode: a flat greedy search (`inference.decode.greedy_decode`). fingerprint: of the model's weights. seed: of the
    parts of the cross-validations. name: of the data in messages.

    Raises ValueError for fewer than `MIN_SENTENCES` sentences, without gold entities, and without candidates that are
    gold or candidates that are not.
    """
    _check(candidates, name)
    rng = np.random.default_rng(seed)
    everything = np.arange(candidates.sentences)
    half = np.full(len(candidates.labels), UNCALIBRATED)
    before, at_common, by_label = _Counts(), _Counts(), _Counts()
    unseen = np.zeros(len(candidates.score))
    for fit_on, rest in _splits(everything, rng):
        train, test = _of(candidates, fit_on), _of(candidates, rest)
        common, thresholds = fit_thresholds(candidates, fit_on, decode, rng)
        before = before.plus(test, half, decode)
        at_common = at_common.plus(test, np.full(len(half), common), decode)
        by_label = by_label.plus(test, thresholds, decode)
        unseen[np.isin(candidates.sentence, rest)] = scaled(test.score, *fit_scale(train.score, train.is_gold))
    temperature, bias = fit_scale(candidates.score, candidates.is_gold)
    common, thresholds = fit_thresholds(candidates, everything, decode, rng)
    reliability = Reliability.of(candidates.score, candidates.is_gold), Reliability.of(unseen, candidates.is_gold)
    measured = Measured(
        sentences=candidates.sentences,
        gold=len(candidates.gold_label),
        candidates=len(candidates.score),
        correct=int(candidates.is_gold.sum()),
        ece_before=reliability[0].error,
        ece_after=reliability[1].error,
        f1_before=before.f1,
        f1_common=at_common.f1,
        f1_labels=by_label.f1,
    )
    by_name = zip(candidates.labels, thresholds.tolist(), candidates.gold_by_label().tolist(), strict=True)
    calibration = Calibration(
        temperature=temperature,
        bias=bias,
        threshold=common,
        thresholds={label: threshold for label, threshold, gold in by_name if gold},
        fingerprint=fingerprint,
        measured=measured,
    )
    entities = decoded(candidates, decode)
    curve = f1_curve(entities.score, entities.is_gold, len(candidates.gold_label))
    return Fit(calibration, *reliability, curve)


def _check(candidates: Candidates, name: str) -> None:
    """Raise ValueError for candidates that nothing can be fitted to."""
    positives, total = int(candidates.is_gold.sum()), len(candidates.score)
    if candidates.sentences < MIN_SENTENCES:
        raise ValueError(
            f"{name}: expected at least {MIN_SENTENCES} sentences to calibrate on, got {candidates.sentences}; add "
            "sentences, fifty or more for thresholds that hold"
        )
    if not len(candidates.gold_label):
        raise ValueError(
            f"{name}: expected gold entities to calibrate on, got none in {candidates.sentences} sentences; annotate "
            "them"
        )
    if not positives:
        raise ValueError(
            f"{name}: expected candidates that are gold, got {total} candidates and {len(candidates.gold_label)} gold "
            "entities that are not among them; check the labels, or train the model"
        )
    if positives == total:
        raise ValueError(
            f"{name}: expected candidates that are not gold, got {total} that all are; add sentences or labels"
        )
