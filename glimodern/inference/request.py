"""Validation of texts, labels and options, and their conversion to requests.

Texts: one string, or an ordered iterable of strings: a list, tuple, deque, dict view, array or column of NumPy, pandas,
pyarrow or datasets, a generator, a file. If the iterable has a length, all texts are checked before anything is
computed, and prediction returns a list. Otherwise texts are read lazily, and prediction returns an iterator. An error
for a bad text in a stream is raised after the results of all texts before it.

Labels: one label set for all texts, or an iterable with one label set per text. A label set is one of

- an ordered iterable of strings, as for texts;
- a set of strings, which is sorted because sets have no order;
- a mapping label -> description: the model reads the description, and the results have the label.

Duplicate labels count once.

Thresholds: a probability for all labels; or a mapping label -> probability, in which "*" stands for the labels that are
not named; or an iterable with one of these per text; or "calibrated", the thresholds of the model's calibration.

Spans: one list per text of (start, end) in characters, or of mappings with these keys; a list for one string. A span
that begins or ends inside a word is widened to the word, which a warning says.

Any other input raises TypeError or ValueError with the name of the argument and the index of the item.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from glimodern.display import short, typed
from glimodern.inputs.labels import LabelSet
from glimodern.inputs.words import Word, WordSplitter

from .checks import check_count, check_flag, check_string, is_collection, items, plain, size_of
from .label_sets import CheckLabels, read_label_sets
from .thresholds import CALIBRATED, Threshold, read_thresholds, thresholds_of

if TYPE_CHECKING:
    import numpy.typing as npt

T = TypeVar("T")

_END = object()
_SPANS = "one list per text of (start, end) in characters"
TEXTS = "a string or an iterable of strings"


class Request(NamedTuple):
    """The words of a text, its labels, and the probability that an entity must exceed.

    text, offsets: the source text, and its words with character offsets; empty for texts given as words.
    spans: first and last words of the spans to score; None: all spans. spans_widened: number of them that were widened
    to whole words.
    """

    words: Sequence[str]
    labels: LabelSet
    threshold: Threshold = 0.5
    text: str = ""
    offsets: Sequence[Word] = ()
    spans: Sequence[tuple[int, int]] | None = None
    spans_widened: int = 0


class Requests(NamedTuple):
    """Requests in order. total: their number, None for a stream."""

    stream: Iterator[Request]
    total: int | None


class Search(NamedTuple):
    """Decoding options.

    flat: allow no overlapping entities; otherwise allow nested ones.
    multi_label: allow several labels for one span.
    top_k: most entities of a text, those with the highest scores; None: all.
    all_scores: return the probabilities of all labels of each span found. vectors: return its vector. probability: maps
    the model's scores to those returned; None: they are returned themselves.
    """

    flat: bool = True
    multi_label: bool = False
    top_k: int | None = None
    all_scores: bool = False
    vectors: bool = False
    probability: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None

    @classmethod
    def checked(
        cls, flat: Any, multi_label: Any, top_k: Any = None, scores: Any = "found", vectors: Any = False
    ) -> Search:
        """Validate the options. Raises TypeError or ValueError with the name of the option."""
        most = None if top_k is None else check_count("top_k", top_k, "a number of entities")
        if not isinstance(scores, str) or scores not in ("found", "all"):
            raise ValueError(f"scores: expected 'found' or 'all', got {short(scores)}")
        flat, multi_label = check_flag("flat", flat), check_flag("multi_label", multi_label)
        return cls(flat, multi_label, most, scores == "all", check_flag("vectors", vectors))

    @property
    def greedy(self) -> dict[str, Any]:
        """The options of `decode_texts`."""
        return {"flat": self.flat, "multi_label": self.multi_label, "top_k": self.top_k}


# texts


def _read_texts(texts: Iterator[Any]) -> Iterator[str]:
    for i, text in enumerate(texts):
        if type(text) is not str or not text.isascii():
            text = check_string(text, f"texts[{i}]")
        yield text


def _read_words(texts: Iterator[Any]) -> Iterator[list[str]]:
    for i, text in enumerate(texts):
        text = plain(text)
        if isinstance(text, str):
            raise TypeError(f"texts[{i}]: expected a list of words, got {typed(text)}; predict takes texts as strings")
        words = list(items(text, f"texts[{i}]", "a list of words"))
        if not all(type(word) is str for word in words) or not "".join(words).isascii():
            words = [check_string(word, f"texts[{i}][{j}]") for j, word in enumerate(words)]
        yield words


# spans


def _read_spans(spans: Any, one_text: bool) -> _Column:
    """Return the spans of each text, lists of (start, end) in characters, read as they are reached."""
    if one_text:
        spans = list(items(spans, "spans", _SPANS))
        if (
            not spans
            or isinstance(spans[0], Mapping)
            or not any(map(is_collection, items(spans[0], "spans[0]", _SPANS)))
        ):
            spans = [spans]
    each = (_text_spans(plain(values), f"spans[{i}]") for i, values in enumerate(items(spans, "spans", _SPANS, 3)))
    return _Column("spans", "list of spans", each, False)


def _text_spans(values: Any, where: str) -> list[tuple[int, int]]:
    expected = "(start, end) in characters, or a mapping with these keys"
    spans = []
    for i, value in enumerate(items(values, where, f"a list of {expected}", 2)):
        try:
            start, end = (value["start"], value["end"]) if isinstance(value, Mapping) else value
        except (TypeError, ValueError, KeyError):
            raise TypeError(f"{where}[{i}]: expected {expected}, got {short(value)}") from None
        name = f"{where}[{i}]"
        spans.append(
            (check_count(name, start, "a character offset", 0), check_count(name, end, "a character offset", 0))
        )
    return spans


def _with_spans(request: Request, spans: list[tuple[int, int]], max_width: int | None, where: str) -> Request:
    """Return a request with the words of character spans."""
    starts, ends = [word.start for word in request.offsets], [word.end for word in request.offsets]
    found, widened = [], 0
    for i, (start, end) in enumerate(spans):
        if not start < end <= len(request.text):
            raise ValueError(
                f"{where}[{i}]: expected 0 <= start < end <= {len(request.text)}, the length of the text, got "
                f"({start}, {end})"
            )
        first, last = bisect_right(ends, start), bisect_left(starts, end) - 1
        if last < first:
            raise ValueError(f"{where}[{i}]: expected a span with a word, got {short(request.text[start:end])}")
        if max_width is not None and last - first >= max_width:
            raise ValueError(
                f"{where}[{i}]: expected at most {max_width} words, the model's max_width, got {last - first + 1}"
            )
        widened += starts[first] < start or end < ends[last]
        found.append((first, last))
    return request._replace(spans=found, spans_widened=widened)


# rows


class _Column(NamedTuple):
    """An argument of each text. what: a value's name in errors. values: one for all texts, or one each."""

    name: str
    what: str
    values: Any
    for_all: bool


def _rows(texts: Iterable[T], columns: Sequence[_Column]) -> Iterator[tuple[T, list[Any]]]:
    """Yield (text, its value of each column); raise ValueError at the end of the shortest if their numbers differ."""
    streams = [itertools.repeat(column.values) if column.for_all else iter(column.values) for column in columns]
    count = 0
    for count, text in enumerate(texts, 1):
        row = []
        for column, stream in zip(columns, streams, strict=True):
            value = next(stream, _END)
            if value is _END:
                raise ValueError(
                    f"{column.name}: expected one {column.what} per text, got {count - 1} of them and more texts"
                )
            row.append(value)
        yield text, row
    for column, stream in zip(columns, streams, strict=True):
        if not column.for_all and next(stream, _END) is not _END:
            raise ValueError(f"{column.name}: expected one {column.what} per text ({count}), got more")


def _accept(labels: LabelSet, where: str) -> LabelSet:
    return labels


class ReadOptions(NamedTuple):
    """What a model adds to the reading of its requests.

    check: its check of each label set. threshold: see the module's docstring. calibrated: the calibrated threshold of a
    label, if the model has been calibrated. spans: see the module's docstring. max_width: most words of a span.
    """

    check: CheckLabels = _accept
    threshold: Any = 0.5
    calibrated: Callable[[str], float] | None = None
    spans: Any = None
    max_width: int | None = None


_DEFAULT_OPTIONS = ReadOptions()


def _read(
    texts: Iterator[T], labels: Any, count: int | None, options: ReadOptions, spans: _Column | None = None
) -> Iterable[tuple[T, LabelSet, Threshold, Any]]:
    """Return texts with their labels, thresholds and spans; a list if they have a length, count, and are checked."""
    label_sets: Any = read_label_sets(labels, count, options.check)
    thresholds: Any = read_thresholds(options.threshold, count, options.calibrated)
    one_set, one_threshold = isinstance(label_sets, LabelSet), isinstance(thresholds, float | dict | Callable)
    threshold_of = thresholds_of(thresholds, label_sets)
    if one_set and one_threshold:
        threshold_of(thresholds, label_sets, "threshold")  # an error is raised even without texts
    columns = [
        _Column("labels", "label set", label_sets, one_set),
        _Column("threshold", "threshold", thresholds, one_threshold),
        spans or _Column("spans", "list of spans", None, True),
    ]
    rows = (
        (
            text,
            label_set,
            threshold_of(threshold, label_set, "threshold" if one_threshold else f"threshold[{i}]"),
            given,
        )
        for i, (text, (label_set, threshold, given)) in enumerate(_rows(texts, columns))
    )
    return rows if count is None else list(rows)


def read_requests(texts: Any, labels: Any, splitter: WordSplitter, options: ReadOptions = _DEFAULT_OPTIONS) -> Requests:
    """Read texts given as strings, with their labels, thresholds and spans, as requests; see the module's docstring.

    Raises TypeError or ValueError with the name of the argument: immediately for an argument with a length, otherwise
    when the bad item is reached. A span is compared with its text when the text is reached.
    """
    spans = None if options.spans is None else _read_spans(options.spans, isinstance(texts, str))
    if isinstance(texts, str):
        texts = [texts]
    count = size_of(texts)
    rows = _read(_read_texts(items(texts, "texts", TEXTS)), labels, count, options, spans)

    def requests() -> Iterator[Request]:
        for number, (text, label_set, threshold, given) in enumerate(rows):
            words = splitter(text)
            request = Request([word.text for word in words], label_set, threshold, text, words)
            if given is not None:
                request = _with_spans(request, given, options.max_width, f"spans[{number}]")
            yield request

    return Requests(requests(), len(rows) if isinstance(rows, list) else None)


def read_word_requests(texts: Any, labels: Any, options: ReadOptions = _DEFAULT_OPTIONS) -> Requests:
    """Read texts given as iterables of words, and their labels, as `read_requests` does."""
    count = size_of(texts)
    texts = _read_words(items(texts, "texts", "an iterable of texts, each a list of words"))
    rows = _read(texts, labels, count, options)
    requests = (Request(words, label_set, threshold) for words, label_set, threshold, _ in rows)
    return Requests(requests, len(rows) if isinstance(rows, list) else None)


def check_thresholds(threshold: Any, labels: Mapping[str, str]) -> None:
    """Raise ValueError for thresholds that name a label that is not asked, or that lack one."""
    if threshold != CALIBRATED:
        read_word_requests([], labels, ReadOptions(threshold=threshold))
