"""The file `fingerprint.json`: what a model computed for a dozen sentences when it was saved, stage by stage.

The stages are tokens, hidden states (vectors of words and types) and scores. Tokens are stored exactly. Of a tensor x
[n, d] a sketch is stored, k numbers s_j = sum(v_j * x) / sqrt(n d) with fixed random signs v_j in {-1, 1}. The mean of
(s_j - s'_j)^2 over j estimates the mean square of x - x' (https://doi.org/10.1016/S0022-0000(03)00025-4), so that two
tensors can be compared within a bound without storing either. `model.fingerprinting` computes a fingerprint.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from glimodern.data.fields import read_document
from glimodern.data.json_rows import read_utf8
from glimodern.settings import NOT_NEGATIVE, PROBABILITY, Range

FINGERPRINT_FILE = "fingerprint.json"
FORMAT = "glimodern fingerprint 1"
SKETCH = 8  # numbers of a sketch
_REMEDY = "save the model again with save_pretrained"
_TOKEN_OF_WORD = Range(-1)


@dataclass(frozen=True)
class Versions:
    """Versions of the packages that computed a fingerprint."""

    glimodern: str
    torch: str
    transformers: str
    tokenizers: str


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text with its prompt.

    count: number of tokens. digest: hash of their ids. first: the first ids. word_index: the token of each word, -1 for
    a word without one.
    """

    count: Annotated[int, NOT_NEGATIVE]
    digest: str
    first: tuple[Annotated[int, NOT_NEGATIVE], ...]
    word_index: tuple[Annotated[int, _TOKEN_OF_WORD], ...]


@dataclass(frozen=True)
class Sketch:
    """A tensor's root mean square, and its projections on SKETCH vectors of fixed random signs."""

    rms: Annotated[float, NOT_NEGATIVE]
    projections: tuple[float, ...]


@dataclass(frozen=True)
class ScoredSpan:
    """The probability of a label for the span of the words first .. last (inclusive)."""

    first: Annotated[int, NOT_NEGATIVE]
    last: Annotated[int, NOT_NEGATIVE]
    label: str
    probability: Annotated[float, PROBABILITY]


@dataclass(frozen=True)
class Computed:
    """What the network computed for a text: vectors of its words and of its types, logits, and the best spans.

    logits: of all spans inside the text and all labels.
    """

    words: Sketch
    types: Sketch
    logits: Sketch
    spans: tuple[ScoredSpan, ...]


@dataclass(frozen=True)
class TextPrint:
    """The stages of one text, given as words. tokens, computed: None if the model could not be run (`problem`)."""

    words: tuple[str, ...]
    tokens: Tokens | None
    computed: Computed | None


@dataclass(frozen=True)
class Fingerprint:
    """What a model computes for some texts and labels.

    dtype: of the computation. weights: `weights_fingerprint` of the weights. label_tokens: the token ids of each label
    of a bi-encoder, which reads labels apart from texts; else None. problem: why stages are missing; empty if none are.
    """

    versions: Versions
    dtype: str
    weights: str
    labels: tuple[str, ...]
    label_tokens: tuple[tuple[Annotated[int, NOT_NEGATIVE], ...], ...] | None
    texts: tuple[TextPrint, ...]
    problem: str = ""

    def to_json(self) -> str:
        """Return the text of `fingerprint.json`, one line a text of the fingerprint. Values must be finite."""
        head = {"format": FORMAT, **asdict(self)}
        texts = [json.dumps(text, ensure_ascii=False, allow_nan=False) for text in head.pop("texts")]
        lines = [f' "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in head.items()]
        rows = ",\n  ".join(texts)
        return "{\n" + ",\n".join([*lines, f' "texts": [\n  {rows}\n ]']) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Fingerprint:
        """Read a text of `to_json`. name: the file's name in messages.

        Raises ValueError, with the file and the field, for broken JSON, a missing or unknown field, and a wrong value.
        """
        fingerprint = read_document(cls, text, name, FORMAT, _REMEDY)
        known = fingerprint.label_tokens
        if known is not None and len(known) != len(fingerprint.labels):
            got = f"expected the tokens of {len(fingerprint.labels)} labels, got those of {len(known)}"
            raise ValueError(f"{name}: label_tokens: {got}; {_REMEDY}")
        for index, row in enumerate(fingerprint.texts):
            if problem := _problem(row, fingerprint.labels):
                raise ValueError(f"{name}: texts[{index}].{problem}; {_REMEDY}")
        return fingerprint


def _problem(text: TextPrint, labels: tuple[str, ...]) -> str:
    """Return the field of a text that contradicts the others, what was expected and got; empty if none does."""
    if text.tokens is not None and len(text.tokens.word_index) > len(text.words):
        return f"tokens.word_index: expected at most {len(text.words)} words, got {len(text.tokens.word_index)}"
    if text.computed is None:
        return ""
    if text.tokens is None:
        return "tokens: expected a value beside what was computed of them, got none"
    for name in ("words", "types", "logits"):
        count = len(getattr(text.computed, name).projections)
        if count != SKETCH:
            return f"computed.{name}.projections: expected {SKETCH} numbers, got {count}"
    for index, span in enumerate(text.computed.spans):
        if not span.first <= span.last < len(text.tokens.word_index):
            return (
                f"computed.spans[{index}]: expected a span of the text's {len(text.tokens.word_index)} words, got "
                f"{span.first} to {span.last}"
            )
        if span.label not in labels:
            return f"computed.spans[{index}].label: expected one of the labels, got {span.label!r}"
    return ""


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """Read `fingerprint.json` of a folder; None if there is none. Raises ValueError for a damaged file."""
    file = folder / FINGERPRINT_FILE
    return Fingerprint.from_json(read_utf8(file, _REMEDY), os.fspath(file)) if file.is_file() else None
