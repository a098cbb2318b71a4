"""What users ask, read and checked in one place: texts, labels and options in, requests out.

Texts: a string is one text; else any iterable of strings that has an order of its own: a list, tuple, deque, dict view,
array or column of NumPy, pandas, pyarrow or datasets, a generator, a file. Texts that have a length give a list of
results, and all of them are checked before anything is computed; others are read as results are asked for, and give
an iterator. A bad text in a stream is raised after the results of all texts before it.

Labels: one label set for all texts, or one per text. A label set is an iterable of strings, of any of these kinds, or
a set, which is sorted, as sets have no order; or a mapping label -> description: the model reads the description, and
the results have the label. Duplicates count once. Label sets per text come in an iterable of their own, as many as
there are texts.

Whatever else comes is a TypeError or ValueError that names the argument and the item.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from glimodern.inputs.labels import LabelSet
from glimodern.inputs.words import Word, WordSplitter

T = TypeVar("T")

_TEXTS = "a string or an iterable of strings"
_LABELS = "an iterable of strings, or a mapping label -> description"


class Request(NamedTuple):
    """A text as words, and the labels asked of it; with the text itself and the places of its words, if it has one."""

    words: Sequence[str]
    labels: LabelSet
    text: str = ""
    places: Sequence[Word] = ()


class Requests(NamedTuple):
    """Requests in order; total: how many, None for a stream."""

    stream: Iterator[Request]
    total: int | None


class Search(NamedTuple):
    """What counts as an entity: least probability, exclusive; no overlaps (flat), or only nesting; several labels for
    one span (multi_label)."""

    threshold: float
    flat: bool
    multi_label: bool

    @classmethod
    def checked(cls, threshold: Any, flat: Any, multi_label: Any) -> Search:
        """TypeError or ValueError for what is no probability or no bool."""
        return cls(check_threshold(threshold), check_flag("flat", flat), check_flag("multi_label", multi_label))


CheckLabels = Callable[[LabelSet, str], LabelSet]  # a model's own check; the second argument names the label set

# options


def _scalar(value: Any) -> Any:
    """The Python value of a NumPy scalar, or of an array or tensor without dimensions; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _got(value: Any) -> str:
    """A value in an error message: its type, and what it is where that is short."""
    name = type(value).__name__
    if isinstance(value, str) or isinstance(value, numbers.Number):
        shown = repr(value)
        return f"{name} {shown if len(shown) <= 40 else shown[:37] + '...'}"
    return name


def check_threshold(threshold: Any) -> float:
    """A probability: a real number in [0, 1], also of NumPy or a tensor without dimensions."""
    value = _scalar(threshold)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"threshold: expected a probability in [0, 1], got {_got(threshold)}")
    probability = float(value)
    if not 0.0 <= probability <= 1.0:  # NaN is not
        raise ValueError(f"threshold: expected a probability in [0, 1], got {probability!r}")
    return probability


def check_flag(name: str, value: Any) -> bool:
    """True or False, also NumPy's."""
    flag = _scalar(value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name}: expected True or False, got {_got(value)}")
    return flag


def check_count(name: str, value: Any, what: str) -> int:
    """A whole number of at least 1, also NumPy's. what: of what, such as "a number of spans"."""
    count = _scalar(value)
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(f"{name}: expected {what}, got {_got(value)}")
    if count < 1:
        raise ValueError(f"{name}: expected {what} of at least 1, got {int(count)}")
    return int(count)


# strings


def _plain(value: Any) -> Any:
    """The Python value of a pyarrow scalar; all else as it is."""
    as_py = getattr(value, "as_py", None)
    return value if as_py is None else as_py()


def check_string(value: Any, where: str) -> str:
    """A str of Unicode text, of a subclass or a pyarrow scalar too. where: names it in errors."""
    if type(value) is not str:
        value = _plain(value)
        if not isinstance(value, str):
            remedy = "; decode it" if isinstance(value, bytes | bytearray) else ""
            raise TypeError(f"{where}: expected a string, got {_got(value)}{remedy}")
        value = str.__str__(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: expected Unicode text, got a lone surrogate {value[error.start]!r} at character "
                f"{error.start}; decode the text anew with errors='replace', or take it out"
            ) from None
    return value


def _items(values: Any, where: str, expected: str, dimensions: int = 1) -> Iterator[Any]:
    """The items of an iterable that has an order of its own; TypeError for other things."""
    ndim = getattr(values, "ndim", 1)
    # of the class: a Series has its own index entries as attributes
    table = hasattr(type(values), "columns") or not isinstance(ndim, int) or not 1 <= ndim <= dimensions
    if table or isinstance(values, str | bytes | bytearray | memoryview | Mapping | set | frozenset):
        remedy = "; give one column of it" if table else "; give its values()" if isinstance(values, Mapping) else ""
        if isinstance(values, set | frozenset):
            remedy = ", which has no order; give a list"
        raise TypeError(f"{where}: expected {expected}, got {_got(values)}{remedy}")
    try:
        return iter(values)
    except TypeError:
        raise TypeError(f"{where}: expected {expected}, got {_got(values)}") from None


def size_of(values: Any) -> int | None:
    """len(values), None for what has none."""
    try:
        return len(values)
    except (TypeError, NotImplementedError):  # tqdm of a generator has a __len__, which raises
        return None


# labels


def read_labels(labels: Any, where: str = "labels") -> LabelSet:
    """One label set. Raises TypeError for what is none and for a single string, ValueError for an empty label."""
    labels = _plain(labels)
    if isinstance(labels, str):
        raise TypeError(f"{where}: expected {_LABELS}, got the string {labels!r}; write [{labels!r}]")
    if isinstance(labels, Mapping):
        return _described(labels, where)
    if isinstance(labels, set | frozenset):
        labels = sorted(labels, key=str)
    return _label_set(_items(labels, where, _LABELS), where)


def check_labels(labels: Any) -> list[str]:
    """The names of one label set (see `read_labels`)."""
    return list(read_labels(labels).names)


def _label_set(labels: Iterable[Any], where: str) -> LabelSet:
    names = tuple(dict.fromkeys(_label(label, f"{where}[{i}]") for i, label in enumerate(labels)))
    return LabelSet(names, names)


def _described(labels: Mapping[Any, Any], where: str) -> LabelSet:
    names = tuple(_label(name, f"{where}: key {i}") for i, name in enumerate(labels))
    prompts = tuple(_label(text, f"{where}[{name!r}]") for name, text in zip(names, labels.values(), strict=True))
    if len(set(prompts)) < len(names):
        twice = next(text for text in prompts if prompts.count(text) > 1)
        shared = [name for name, text in zip(names, prompts, strict=True) if text == twice]
        raise ValueError(
            f"{where}: expected a description of its own for each label, got {twice!r} for {shared}; tell them apart"
        )
    return LabelSet(names, prompts)


def _label(value: Any, where: str) -> str:
    label = check_string(value, where)
    if not label.strip():
        raise ValueError(f"{where}: expected a name such as 'person', got an empty string")
    return label


def _read_label_sets(labels: Any, texts: int | None, check: CheckLabels) -> LabelSet | Iterable[LabelSet]:
    """The label set of all texts, or those of each text: checked at once if they have a length, else as they come."""
    if labels is None:
        raise TypeError(f"labels: expected {_LABELS}, got None")
    if isinstance(labels, str | Mapping):
        return check(read_labels(labels), "labels")
    if isinstance(labels, set | frozenset):
        if any(map(_is_collection, labels)):
            raise TypeError(f"labels: expected label sets in the texts' order, got {_got(labels)}, which has none")
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
    last, found = object(), LabelSet((), ())
    for i, one in enumerate(labels):
        if one is not last or not isinstance(one, list | tuple):  # most often the same list for many texts
            where = f"labels[{i}]"
            last, found = one, check(read_labels(one, where), where)
        yield found


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
            raise TypeError(f"texts[{i}]: expected a list of words, got {_got(text)}; predict takes texts as strings")
        words = list(_items(text, f"texts[{i}]", "a list of words"))
        if not all(type(word) is str for word in words) or not "".join(words).isascii():
            words = [check_string(word, f"texts[{i}][{j}]") for j, word in enumerate(words)]
        yield words


def _pairs(texts: Iterator[T], labels: LabelSet | Iterable[LabelSet]) -> Iterator[tuple[T, LabelSet]]:
    """(text, its labels). ValueError, where one of the two ends, unless there are as many label sets as texts."""
    if isinstance(labels, LabelSet):
        for text in texts:
            yield text, labels
        return
    sets, count = iter(labels), 0
    for count, text in enumerate(texts, 1):
        one = next(sets, None)
        if one is None:
            raise ValueError(f"labels: expected one label set per text, got {count - 1} and more texts")
        yield text, one
    if next(sets, None) is not None:
        raise ValueError(f"labels: expected one label set per text ({count}), got more")


def _accept(labels: LabelSet, where: str) -> LabelSet:
    return labels


def read_requests(texts: Any, labels: Any, splitter: WordSplitter, check: CheckLabels = _accept) -> Requests:
    """Requests of texts given as strings (see the module's text).

    check: what a model has to say about each label set, which may change it. Raises TypeError and ValueError that name
    the argument: at once where it has a length, else where the bad item comes.
    """
    if isinstance(texts, str):
        texts = [texts]
    items = _items(texts, "texts", _TEXTS)
    count = size_of(texts)
    pairs = _pairs(_read_texts(items), _read_label_sets(labels, count, check))
    checked = pairs if count is None else list(pairs)

    def requests() -> Iterator[Request]:
        for text, asked in checked:
            places = splitter(text)
            yield Request([word.text for word in places], asked, text, places)

    return Requests(requests(), None if isinstance(checked, Iterator) else len(checked))


def read_word_requests(texts: Any, labels: Any, check: CheckLabels = _accept) -> Requests:
    """`read_requests` of texts given as iterables of words."""
    items = _items(texts, "texts", "an iterable of texts, each a list of words")
    count = size_of(texts)
    pairs = _pairs(_read_words(items), _read_label_sets(labels, count, check))
    checked = pairs if count is None else list(pairs)
    stream = (Request(words, asked) for words, asked in checked)
    return Requests(stream, None if isinstance(checked, Iterator) else len(checked))
