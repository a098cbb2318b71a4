"""Familiarity of evaluation labels: how near they are to the labels of training, and how often those occur there.

The idea and the weights are those of Familiarity (Golde et al. 2025, https://arxiv.org/abs/2412.10121): all entities of
training are ranked by the similarity of their label to the evaluation label, and the similarities of the first 1,000
are averaged with Zipf weights, 1 / rank. A label that training has 1,000 times has a familiarity of 1. The familiarity
of a label set is the mean over its distinct labels.

Our number differs from the paper's in the similarity. The paper has the cosine of sentence embeddings. Here it is one
of strings by default (`ngram_similarities`), which needs no model. It sees that "organisation" is near "organization";
it does not see that "physician" is near "doctor". `encoder_similarities` has the cosine of mean-pooled embeddings of a
local encoder. Numbers of different similarities cannot be compared. Also, where training has fewer than 1,000 entities,
the missing ranks count as similarity 0 here, so that a small training set is less familiar.

Time is linear in entities, and in the number of labels of evaluation times that of training.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glimodern.display import short
from glimodern.files.atomic import user_path

FloatArray = npt.NDArray[np.float64]

TOP = 1000  # entities of training that are averaged, the paper's K
NGRAMS = (2, 3)  # characters

_BETWEEN_WORDS = re.compile(r"[\W_]+")
_BATCH = 64  # labels that an encoder embeds at a time


def label_familiarity(
    labels: Iterable[str], training: Mapping[str, int], encoder: str | os.PathLike[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the familiarity of each label, with the nearest label of training.

    training: {label: number of its entities}. encoder: folder of the encoder whose embeddings are compared; None:
    character n-grams. Of equally near labels the most frequent one is named. All values lie in [0, 1].
    """
    names = sorted(training, key=lambda label: (-training[label], label))
    counts = np.array([training[name] for name in names], dtype=np.int64)
    asked = sorted(set(labels))
    rows = ngram_similarities(asked, names) if encoder is None else encoder_similarities(encoder, asked, names)
    found = {}
    for label, similarities in zip(asked, rows, strict=True):
        nearest = int(similarities.argmax())
        found[label] = {
            "familiarity": round(zipf_mean(similarities, counts), 6),
            "nearest": names[nearest],
            "similarity": round(float(similarities[nearest]), 6),
            "nearest_entities": training[names[nearest]],
        }
    return found


def zipf_mean(similarities: FloatArray, counts: npt.NDArray[np.int64], top: int = TOP) -> float:
    """Return the mean similarity of the `top` most similar entities, the one at rank r weighted by 1 / r.

    similarities, counts [labels]: similarity to a label of training, and the number of its entities. Missing ranks
    count as similarity 0.
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, top + 1))])  # sum of the weights of the first ranks
    order = np.argsort(-similarities, kind="stable")
    ends = np.minimum(np.cumsum(counts[order]), top)
    weights = np.diff(harmonic[np.concatenate([[0], ends])])
    return float((weights * similarities[order]).sum() / harmonic[top])


def ngram_similarities(labels: Iterable[str], training: Sequence[str]) -> Iterator[FloatArray]:
    """Yield for each label its similarity to every label of training: float64 [training labels], in [0, 1].

    It is the cosine of TF-IDF vectors of character n-grams (n = 2, 3). Labels are case-folded and split into words.
    Each word has a blank at both ends, and no n-gram reaches over it. The inverse document frequency of an n-gram that
    occurs in df of the N labels of training is 1 + ln((1 + N) / (1 + df)).
    """
    grams = [_ngrams(label) for label in training]
    frequency = Counter(gram for one in grams for gram in one)
    idf = {gram: 1 + float(np.log((1 + len(grams)) / (1 + df))) for gram, df in frequency.items()}
    unseen = 1 + float(np.log(1 + len(grams)))
    lists: dict[str, tuple[list[int], list[float]]] = {gram: ([], []) for gram in frequency}
    for index, one in enumerate(grams):
        for gram, weight in _unit(one, idf, unseen).items():
            lists[gram][0].append(index)
            lists[gram][1].append(weight)
    postings = {gram: (np.array(where), np.array(weights)) for gram, (where, weights) in lists.items()}
    for label in labels:
        scores = np.zeros(len(grams))
        for gram, weight in _unit(_ngrams(label), idf, unseen).items():
            if gram in postings:
                where, weights = postings[gram]
                scores[where] += weight * weights
        yield np.minimum(scores, 1.0)


def _ngrams(label: str) -> Counter[str]:
    folded = label.casefold()
    words = [word for word in _BETWEEN_WORDS.split(folded) if word] or [folded]
    padded = [f" {word} " for word in words]
    return Counter(word[i : i + n] for word in padded for n in NGRAMS for i in range(len(word) - n + 1))


def _unit(grams: Counter[str], idf: Mapping[str, float], unseen: float) -> dict[str, float]:
    """Return the TF-IDF weights of n-grams, scaled to length 1."""
    weights = {gram: count * idf.get(gram, unseen) for gram, count in grams.items()}
    length = sum(weight * weight for weight in weights.values()) ** 0.5
    return {gram: weight / length for gram, weight in weights.items()}


def check_encoder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of an encoder's folder. Raises ValueError if it is no folder with a config.json."""
    path = user_path(folder, "encoder")
    if not (path / "config.json").is_file():
        raise ValueError(
            f"encoder: expected a folder of an encoder of transformers, with config.json, got {path}; name such a "
            "folder, or leave it out to compare labels by their characters"
        )
    return path


def encoder_similarities(
    encoder: str | os.PathLike[str], labels: Sequence[str], training: Sequence[str]
) -> Iterator[FloatArray]:
    """Yield for each label the cosine, negative ones as 0, of its embedding and those of all labels of training.

    The embedding of a label is the mean of the encoder's last hidden states over the label's tokens, special ones
    included. float64 [training labels], in [0, 1].
    """
    vectors = _embed(check_encoder(encoder), [*labels, *training])
    own, others = vectors[: len(labels)], vectors[len(labels) :]
    for vector in own:
        yield np.clip(others @ vector, 0.0, 1.0)


def _embed(folder: Path, labels: Sequence[str]) -> FloatArray:
    """Return the mean-pooled embeddings of labels, scaled to length 1: float64 [labels, d]."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval().float().requires_grad_(False)
    limit = getattr(model.config, "max_position_embeddings", None)
    parts = []
    for first in range(0, len(labels), _BATCH):
        batch = list(labels[first : first + _BATCH])
        tokens = tokenizer(batch, padding=True, return_tensors="pt")
        width = tokens["input_ids"].shape[1]
        if limit is not None and width > limit:
            longest = max(batch, key=len)
            raise ValueError(
                f"encoder: expected labels of at most {limit} tokens, got {width} for {short(longest)}; leave encoder "
                "out to compare labels by their characters"
            )
        hidden = model(**tokens).last_hidden_state.numpy().astype(np.float64)
        mask = tokens["attention_mask"].numpy()[:, :, None]
        means = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        parts.append(means / np.linalg.norm(means, axis=1, keepdims=True))
    return np.concatenate(parts)
