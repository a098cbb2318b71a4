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
import numbers
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from glimodern.display import short, typed
from glimodern.inputs.labels import LabelSet
from glimodern.inputs.words import Word, WordSplitter

if TYPE_CHECKING:
    import numpy.typing as npt

T = TypeVar("T")

CALIBRATED = "calibrated"
OTHERS = "*"  # in a mapping of thresholds: the labels that it does not name
_END = object()
_THRESHOLD = 'a probability, a mapping label -> probability, one of these per text, or "calibrated"'
_SPANS = "one list per text of (start, end) in characters"
_TEXTS = "a string or an iterable of strings"
_LABELS = "an iterable of strings, or a mapping label -> description"


Threshold = float | tuple[float, ...]
"""A probability for all labels of a text, or one for each of its labels."""


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
        if scores not in ("found", "all"):
            raise ValueError(f"scores: expected 'found' or 'all', got {short(scores)}")
        flat, multi_label = check_flag("flat", flat), check_flag("multi_label", multi_label)
        return cls(flat, multi_label, most, scores == "all", check_flag("vectors", vectors))

    @property
    def greedy(self) -> dict[str, Any]:
        """The options of `decode_texts`."""
        return {"flat": self.flat, "multi_label": self.multi_label, "top_k": self.top_k}


CheckLabels = Callable[[LabelSet, str], LabelSet]
"""A model's check of a label set; it may return another one. The second argument is the label set's name in errors."""

# options


def _scalar(value: Any) -> Any:
    """Return the Python value of a NumPy scalar or a 0-d array or tensor; return other values unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_threshold(threshold: Any, where: str = "threshold") -> float:
    """Return a probability as a float. Accepts a real number in [0, 1], a NumPy scalar and a 0-d array or tensor."""
    value = _scalar(threshold)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: expected a probability in [0, 1], got {typed(threshold)}")
    probability = float(value)
    if not 0.0 <= probability <= 1.0:  # also true for NaN
        raise ValueError(f"{where}: expected a probability in [0, 1], got {probability!r}")
    return probability


def check_flag(name: str, value: Any) -> bool:
    """Return a bool; accepts NumPy's too."""
    flag = _scalar(value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name}: expected True or False, got {typed(value)}")
    return flag


def check_count(name: str, value: Any, what: str, least: int = 1) -> int:
    """Return a whole number; accepts NumPy's too. what: the quantity in errors, such as "a number of spans"."""
    count = _scalar(value)
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(f"{name}: expected {what}, got {typed(value)}")
    if count < least:
        raise ValueError(f"{name}: expected {what} of at least {least}, got {int(count)}")
    return int(count)


# strings


def _plain(value: Any) -> Any:
    """Return the Python value of a pyarrow scalar; return other values unchanged."""
    as_py = getattr(value, "as_py", None)
    return value if as_py is None else as_py()


def check_string(value: Any, where: str) -> str:
    """Return Unicode text as a plain str; accepts a subclass of str and a pyarrow scalar. where: its name in errors."""
    if type(value) is not str:
        value = _plain(value)
        if not isinstance(value, str):
            remedy = "; decode it" if isinstance(value, bytes | bytearray) else ""
            raise TypeError(f"{where}: expected a string, got {typed(value)}{remedy}")
        value = str.__str__(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: expected Unicode text, got a lone surrogate {value[error.start]!r} at character "
                f"{error.start}; decode the text again with errors='replace', or remove it"
            ) from None
    return value


def _items(values: Any, where: str, expected: str, dimensions: int = 1) -> Iterator[Any]:
    """Return an iterator over an ordered iterable with at most `dimensions` dimensions; TypeError for another value."""
    ndim = getattr(values, "ndim", 1)
    # looked up on the class, because index entries of a pandas Series are attributes of the instance
    table = hasattr(type(values), "columns") or not isinstance(ndim, int) or not 1 <= ndim <= dimensions
    if table or isinstance(values, str | bytes | bytearray | memoryview | Mapping | set | frozenset):
        remedy = "; give one column of it" if table else "; give its values()" if isinstance(values, Mapping) else ""
        if isinstance(values, set | frozenset):
            remedy = ", which has no order; give a list"
        raise TypeError(f"{where}: expected {expected}, got {typed(values)}{remedy}")
    try:
        return iter(values)
    except TypeError:
        raise TypeError(f"{where}: expected {expected}, got {typed(values)}") from None


def size_of(values: Any) -> int | None:
    """Return len(values), or None if it has no length."""
    try:
        return len(values)
    except (TypeError, NotImplementedError):  # tqdm over a generator has a __len__ that raises
        return None


# labels


def read_labels(labels: Any, where: str = "labels") -> LabelSet:
    """Read one label set. where: its name in errors.

    Raises TypeError for a value that is no label set, such as a single string, and ValueError for an empty label or
    for two labels with the same description.
    """
    labels = _plain(labels)
    if isinstance(labels, str):
        raise TypeError(f"{where}: expected {_LABELS}, got the string {labels!r}; write [{labels!r}]")
    if isinstance(labels, Mapping):
        return _described(labels, where)
    if isinstance(labels, set | frozenset):
        labels = sorted(labels, key=str)
    return _label_set(_items(labels, where, _LABELS), where)


def check_labels(labels: Any) -> list[str]:
    """Read one label set with `read_labels` and return its names."""
    return list(read_labels(labels).names)


def _label_set(labels: Iterable[Any], where: str) -> LabelSet:
    names = tuple(dict.fromkeys(_label(label, f"{where}[{i}]") for i, label in enumerate(labels)))
    return LabelSet(names, names)


def _described(labels: Mapping[Any, Any], where: str) -> LabelSet:
    names = tuple(_label(name, f"{where}: key {i}") for i, name in enumerate(labels))
    prompts = tuple(_label(text, f"{where}[{name!r}]") for name, text in zip(names, labels.values(), strict=True))
    if len(set(prompts)) < len(names):
        duplicate = next(text for text in prompts if prompts.count(text) > 1)
        shared = [name for name, text in zip(names, prompts, strict=True) if text == duplicate]
        raise ValueError(
            f"{where}: expected a different description for each label, got {duplicate!r} for {shared}; change one"
        )
    return LabelSet(names, prompts)


def _label(value: Any, where: str) -> str:
    label = check_string(value, where)
    if not label.strip():
        raise ValueError(f"{where}: expected a name such as 'person', got an empty string")
    return label


def _read_label_sets(labels: Any, texts: int | None, check: CheckLabels) -> LabelSet | Iterable[LabelSet]:
    """Return the label set of all texts, or the label sets of each text.

    Label sets per text are checked immediately if their iterable has a length, and lazily otherwise.
    """
    if labels is None:
        raise TypeError(f"labels: expected {_LABELS}, got None")
    if isinstance(labels, str | Mapping):
        return check(read_labels(labels), "labels")
    if isinstance(labels, set | frozenset):
        if any(map(_is_collection, labels)):
            raise TypeError(
                f"labels: expected label sets in the texts' order, got {typed(labels)}, which has no order; give a list"
            )
        return check(read_labels(labels), "labels")
    rest = _items(labels, "labels", f"{_LABELS}, or one of these per text", dimensions=2)
    head = [_plain(label) for label in itertools.islice(rest, 1)]
    if not head or not _is_collection(head[0]):
        return check(_label_set(itertools.chain(head, rest), "labels"), "labels")
    count = size_of(labels)
    if count is not None and texts is not None and count != texts:
        raise ValueError(f"labels: expected one label set per text ({texts}), got {count}")
    sets = _each_label_set(itertools.chain(head, rest), check)
    return sets if count is None else list(sets)


def _is_collection(value: Any) -> bool:
    return not isinstance(value, str | bytes | bytearray) and (
        hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    )


def _each_label_set(labels: Iterator[Any], check: CheckLabels) -> Iterator[LabelSet]:
    last, label_set = object(), LabelSet((), ())
    for i, values in enumerate(labels):
        if values is not last or not isinstance(values, list | tuple):  # many texts usually share one list
            where = f"labels[{i}]"
            last, label_set = values, check(read_labels(values, where), where)
        yield label_set


# texts


def _read_texts(texts: Iterator[Any]) -> Iterator[str]:
    for i, text in enumerate(texts):
        if type(text) is not str or not text.isascii():
            text = check_string(text, f"texts[{i}]")
        yield text


def _read_words(texts: Iterator[Any]) -> Iterator[list[str]]:
    for i, text in enumerate(texts):
        text = _plain(text)
        if isinstance(text, str):
            raise TypeError(f"texts[{i}]: expected a list of words, got {typed(text)}; predict takes texts as strings")
        words = list(_items(text, f"texts[{i}]", "a list of words"))
        if not all(type(word) is str for word in words) or not "".join(words).isascii():
            words = [check_string(word, f"texts[{i}][{j}]") for j, word in enumerate(words)]
        yield words


# thresholds

ReadThreshold = float | dict[str, float] | Callable[[str], float]
"""A probability, one for each label that is named ("*": for the others), or a function of the label."""


def read_threshold(threshold: Any, where: str = "threshold") -> float | dict[str, float]:
    """Read the threshold of one text. where: its name in errors. Raises TypeError or ValueError."""
    if not isinstance(threshold, Mapping):
        return check_threshold(threshold, where)
    return {
        _label(label, f"{where}: key {i}"): check_threshold(value, f"{where}[{label!r}]")
        for i, (label, value) in enumerate(threshold.items())
    }


def _read_thresholds(
    threshold: Any, texts: int | None, calibrated: Callable[[str], float] | None
) -> ReadThreshold | Iterable[ReadThreshold]:
    """Return the threshold of all texts, or the thresholds of each text. calibrated: the model's, if it has them."""
    if isinstance(threshold, str):
        if threshold != CALIBRATED:
            raise TypeError(f"threshold: expected {_THRESHOLD}, got the string {threshold!r}")
        if calibrated is None:
            raise ValueError(
                'threshold: expected a calibrated model for "calibrated", got one without a calibration; calibrate it '
                "with python -m glimodern.calibrate or model.calibrate"
            )
        return calibrated
    if isinstance(threshold, Mapping) or getattr(threshold, "ndim", None) == 0 or not hasattr(threshold, "__iter__"):
        return read_threshold(threshold)
    rest = _items(threshold, "threshold", _THRESHOLD)
    count = size_of(threshold)
    if count is not None and texts is not None and count != texts:
        raise ValueError(f"threshold: expected one threshold per text ({texts}), got {count}")
    each = (read_threshold(_plain(value), f"threshold[{i}]") for i, value in enumerate(rest))
    return each if count is None else list(each)


def _by_label(threshold: ReadThreshold, labels: LabelSet, asked: set[str] | None, where: str) -> Threshold:
    """Return the threshold of a text with these labels.

    asked: all labels a mapping may name; None: any. where: the threshold's name in errors.

    Raises ValueError for a mapping that names a label that is not asked, or that lacks a label.
    """
    if isinstance(threshold, float):
        return threshold
    if not isinstance(threshold, dict):
        return tuple(map(threshold, labels.names))
    unknown = [] if asked is None else [name for name in threshold if name not in asked and name != OTHERS]
    if unknown:
        raise ValueError(f"{where}: expected labels that are asked, or {OTHERS!r} for the others, got {unknown}")
    missing = [] if OTHERS in threshold else [name for name in labels.names if name not in threshold]
    if missing:
        raise ValueError(
            f"{where}: expected a probability for each label, got none for {missing}; add {OTHERS!r} for the others"
        )
    return tuple(threshold.get(name, threshold.get(OTHERS, 0.0)) for name in labels.names)


def _thresholds(
    thresholds: ReadThreshold | Iterable[ReadThreshold], labels: LabelSet | Iterable[LabelSet]
) -> Callable[[ReadThreshold, LabelSet, str], Threshold]:
    """Return a function of a text's threshold, its labels and the threshold's name; it remembers its last result."""
    asked: set[str] | None = None
    if isinstance(labels, LabelSet):
        asked = set(labels.names)
    elif isinstance(labels, list) and isinstance(thresholds, dict):
        asked = {name for label_set in labels for name in label_set.names}
    last: tuple[ReadThreshold, LabelSet, Threshold] | None = None

    def of(threshold: ReadThreshold, label_set: LabelSet, where: str) -> Threshold:
        nonlocal last
        if last is None or last[0] is not threshold or last[1] is not label_set:
            last = threshold, label_set, _by_label(threshold, label_set, asked, where)
        return last[2]

    return of


# spans


def _read_spans(spans: Any, one_text: bool) -> _Column:
    """Return the spans of each text, lists of (start, end) in characters, read as they are reached."""
    if one_text:
        spans = list(_items(spans, "spans", _SPANS))
        if (
            not spans
            or isinstance(spans[0], Mapping)
            or not any(map(_is_collection, _items(spans[0], "spans[0]", _SPANS)))
        ):
            spans = [spans]
    each = (_text_spans(_plain(values), f"spans[{i}]") for i, values in enumerate(_items(spans, "spans", _SPANS, 3)))
    return _Column("spans", "list of spans", each, False)


def _text_spans(values: Any, where: str) -> list[tuple[int, int]]:
    expected = "(start, end) in characters, or a mapping with these keys"
    spans = []
    for i, value in enumerate(_items(values, where, f"a list of {expected}", 2)):
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
    label_sets: Any = _read_label_sets(labels, count, options.check)
    thresholds: Any = _read_thresholds(options.threshold, count, options.calibrated)
    one_set, one_threshold = isinstance(label_sets, LabelSet), isinstance(thresholds, float | dict | Callable)
    threshold_of = _thresholds(thresholds, label_sets)
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
    rows = _read(_read_texts(_items(texts, "texts", _TEXTS)), labels, count, options, spans)

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
    texts = _read_words(_items(texts, "texts", "an iterable of texts, each a list of words"))
    rows = _read(texts, labels, count, options)
    requests = (Request(words, label_set, threshold) for words, label_set, threshold, _ in rows)
    return Requests(requests, len(rows) if isinstance(rows, list) else None)
