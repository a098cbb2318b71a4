"""What calibration gains: `python bench/calibration.py MODEL FOLDER ...`, each folder with a dev and a test split.

A model is calibrated on the first 50, the first 200 and all sentences of dev, for each folder by itself, and judged on
test: expected calibration error before and after, and micro F1 at the threshold 0.5, at the common threshold, and with
thresholds by label. Prints a table in Markdown.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from glimodern import GLiModern
from glimodern.data import load_dataset
from glimodern.data.calibration_fit import UNCALIBRATED, Candidates, Reliability, f1, fit, found
from glimodern.inference.decode import greedy_decode
from glimodern.model.calibrating import collect

SIZES = (50, 200, None)
HIGH = 0.3  # most candidates have low scores and are not gold, so that they rule the error of all
decode = partial(greedy_decode, flat=True)


class Row(NamedTuple):
    """Sentences of dev; on test, calibration errors (of all candidates, of those scored above HIGH) and micro F1."""

    sentences: int
    ece_before: float
    ece_after: float
    high_before: float
    high_after: float
    f1_before: float
    f1_common: float
    f1_labels: float


def first(candidates: Candidates, count: int | None) -> Candidates:
    """The candidates of the first sentences; None: of all."""
    count = candidates.sentences if count is None else min(count, candidates.sentences)
    chosen = np.arange(candidates.sentences) < count
    return replace(candidates.of_sentences(chosen), lengths=candidates.lengths[:count])


def judge(dev: Candidates, test: Candidates, count: int | None) -> Row:
    part = first(dev, count)
    made = fit(part, decode, fingerprint="-").calibration

    def f1_at(thresholds: list[float]) -> float:
        entities = found(test, np.array(thresholds), decode)
        return float(f1(entities.is_gold.sum(), len(entities.score), len(test.gold_label)))

    def errors(rows: Candidates) -> list[float]:
        return [Reliability.of(p, rows.is_gold).error for p in (rows.score, made.probability(rows.score))]

    by_label = [made.threshold_of(label) for label in test.labels]
    high = test.kept(test.score > HIGH)
    return Row(
        part.sentences,
        *(error for rows in (test, high) for error in errors(rows)),
        f1_at([UNCALIBRATED] * len(by_label)),
        f1_at([made.threshold] * len(by_label)),
        f1_at(by_label),
    )


def lines(results: dict[str, list[Row]]) -> Iterator[str]:
    """The table, in percent, with the mean of all folders."""
    errors = f"ECE | calibrated | ECE above {HIGH} | calibrated"
    yield f"| | sentences | {errors} | F1 at {UNCALIBRATED} | common threshold | by label |"
    yield f"|{'---|' * 9}"
    for name, rows in results.items():
        for row in rows:
            yield f"| {name} | {row.sentences} | {' | '.join(f'{100 * value:.1f}' for value in row[1:])} |"
    for size, rows in zip(SIZES, zip(*results.values(), strict=True), strict=True):
        means = np.mean([row[1:] for row in rows], axis=0)
        yield f"| mean | {size or 'all'} | {' | '.join(f'{100 * value:.1f}' for value in means)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with; 0: PyTorch's choice")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model = GLiModern.from_pretrained(given.model, dtype=given.dtype)
    results: dict[str, list[Row]] = {}
    for folder in given.folders:
        splits = [load_dataset(folder, split=split) for split in ("dev", "test")]
        dev, test = (collect(model, split) for split in splits)
        results[folder.rstrip("/").rsplit("/", 1)[-1]] = [judge(dev, test, size) for size in SIZES]
    print("\n".join(lines(results)))


if __name__ == "__main__":
    main()
