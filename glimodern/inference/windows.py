"""Overlapping windows of words for texts that are longer than the encoder takes.

A window has at most `max_words` words and `max_tokens` tokens. Consecutive windows share at least
max_width - 1 + 2 * context words. So every span of at most max_width words lies whole in a window that holds at least
`context` words on each side of it, or the text's end:

    Let a window end before word e and the next one start at word s <= e - (max_width - 1 + 2 * context). A span that
    has its context in the first window ends at most at word e - context - 1. Any other one ends later, so it starts at
    word e - context - max_width + 1 or later, and has at least `context` words after s.

The one exception is a place whose words have so many tokens that these words fill more than half of a window. There the
windows share half of their tokens only, so that the work stays linear in the text's tokens.

Each span is scored in one window only, the one where its narrower context is widest (`owners`). The candidates of all
windows then go through one search over the whole text, as if one forward pass had read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from glimodern.display import short
from glimodern.inputs.packer import Packer
from glimodern.inputs.tokens import TextTokens
from glimodern.inputs.words import Word

from .checks import check_count
from .request import Request

IntArray = npt.NDArray[np.int64]

SENTENCE = "sentence"
LONG_TEXTS = ("windows", "cut", "error")
DEFAULT_CONTEXT = 32  # words
_GROUP_LABELS = 10  # measured (docs/LOG.md): larger groups find less, smaller ones no more
_SLACK = 8  # a window starts up to 1 / _SLACK of its words earlier, at a sentence's start
_MAX_CLOSING = 8  # quotes and brackets that may stand between a full stop and the next sentence
_SENTENCE_ENDS = frozenset(".!?…。！？｡।॥؟۔։።፧៕၊။")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st no vs gen col lt sgt rev hon sen rep gov pres inc ltd co corp jr sr".split()
)
_OPENING = frozenset("\"'“‘«„‚([{「『（【《¿¡")
_LINE_ENDS = frozenset("\n\r\x85\u2028\u2029")
_CLOSING = frozenset("\"'”’»)]}」』）】》")


class WindowSizes(NamedTuple):
    """Sizes of the windows of one text, in words and tokens.

    max_words, max_tokens: most words and tokens of a window; None: any number of tokens.
    overlap: least number of words that two consecutive windows share, less than max_words.
    """

    max_words: int
    max_tokens: int | None
    overlap: int


class ReadingOptions(TypedDict, total=False):
    """Options of `Reading`, as keyword arguments."""

    long_texts: Literal["windows", "cut", "error"]
    window: int | Literal["sentence"] | None
    context: int | None
    labels_per_prompt: int | None


class Reading(NamedTuple):
    """How texts and label sets are read that do not fit the encoder.

    long_texts: "windows", "cut" (the words at the end are not read) or "error". window: most words of a window; None:
    as many as the encoder takes; "sentence": each sentence of every text is read alone. context: words on each side of
    a span, see the module's docstring; None: DEFAULT_CONTEXT, or fewer, so that windows share less than half of their
    words. labels_per_prompt: see `Packer.label_groups`; None: see `group_size`. max_types: the most labels of a prompt
    in the model's training.
    """

    long_texts: Literal["windows", "cut", "error"] = "windows"
    window: int | Literal["sentence"] | None = None
    context: int | None = None
    labels_per_prompt: int | None = None
    max_types: int = 1

    @classmethod
    def checked(cls, packer: Packer, max_types: int, **options: Unpack[ReadingOptions]) -> Reading:
        """Validate options for a model's packer. Raises TypeError or ValueError with the name of the option.

        max_types: see `Reading`.
        """
        reading = cls(**options)
        if not isinstance(reading.long_texts, str) or reading.long_texts not in LONG_TEXTS:
            raise ValueError(f"long_texts: expected one of {', '.join(LONG_TEXTS)}, got {short(reading.long_texts)}")
        window = reading.window
        context = per_prompt = None
        if reading.labels_per_prompt is not None:
            per_prompt = check_count("labels_per_prompt", reading.labels_per_prompt, "a number of labels")
        if reading.context is not None:
            context = check_count("context", reading.context, "a number of words", least=0)
        if window is not None and not (isinstance(window, str) and window == SENTENCE):
            window = check_count("window", window, f'a number of words or "{SENTENCE}"')
        for name, value in (("window", window if reading.long_texts == "cut" else None), ("context", context)):
            if reading.long_texts != "windows" and value is not None:
                raise ValueError(
                    f'{name}: expected None with long_texts="{reading.long_texts}", which reads no windows, got '
                    f"{short(value)}"
                )
        least, most = packer.max_width + 2 * (context or 0), packer.max_words
        rule = f"{least} words, max_width {packer.max_width} + 2 x context {context or 0}"
        if isinstance(window, int) and window < least:
            raise ValueError(
                f"window: expected at least {rule}, got {window}; give a larger window or a smaller context"
            )
        if context is not None and most < least:
            raise ValueError(f"context: expected windows of {rule}, to fit max_len {most}; give a smaller context")
        return cls(reading.long_texts, window, context, per_prompt, max_types)

    def group_size(self, labels: int) -> int:
        """Return how many of a text's labels to ask at a time.

        By default all of them, if a prompt in training may have had as many, else groups of _GROUP_LABELS.
        """
        if self.labels_per_prompt is not None:
            return self.labels_per_prompt
        return self.max_types if labels <= self.max_types else min(_GROUP_LABELS, self.max_types)

    @property
    def reads_whole(self) -> bool:
        """Whether all words of a text are read."""
        return self.long_texts != "cut"

    def windows(
        self, request: Request, text: TextTokens, packer: Packer, max_tokens: int | None, number: int
    ) -> tuple[list[tuple[int, int]], list[TextTokens]]:
        """Return a text's windows (first word, end word) and their sub-tokens.

        max_tokens: tokens beside the prompt; None: no limit. number: the text's in messages.
        Raises ValueError for a long text if `long_texts` is "error".
        """
        most = min(self.window, packer.max_words) if isinstance(self.window, int) else packer.max_words
        fits = text.words <= most and (max_tokens is None or len(text.ids) <= max_tokens)
        if self.long_texts == "cut" or (fits and self.window != SENTENCE):
            return [(0, text.words)], [text]
        if self.long_texts == "error" and not fits:
            limit = "" if max_tokens is None else f" and {max_tokens} tokens beside its labels"
            raise ValueError(
                f"texts[{number}]: expected at most {most} words{limit}, got {text.words} words and {len(text.ids)} "
                'tokens; split it, or pass long_texts="windows"'
            )
        # by default windows share less than half of their words
        context = min(DEFAULT_CONTEXT, (most // 2 - packer.max_width) // 2) if self.context is None else self.context
        sizes = WindowSizes(most, max_tokens, overlap_of(most, packer.max_width, max(context, 0)))
        bounds = text.bounds
        starts_sentence = sentence_starts(request.words, request.text, request.offsets)
        if self.window == SENTENCE:
            windows = plan_sentences(bounds, sizes, starts_sentence)
        else:
            windows = plan_windows(bounds, sizes, starts_sentence)
        return windows, [text.part(first, end, bounds) for first, end in windows]


def overlap_of(max_words: int, max_width: int, context: int) -> int:
    """Return how many words consecutive windows share; see the module's docstring."""
    return min(min(max_width, max_words) - 1 + 2 * context, max_words - 1)


def plan_windows(
    bounds: IntArray, sizes: WindowSizes, starts_sentence: Callable[[int], bool] = lambda word: False
) -> list[tuple[int, int]]:
    """Cut a text into windows (first word, end word exclusive), ascending, that cover it.

    bounds: int64 [words + 1], the number of tokens before each word, and of the text.
    starts_sentence: whether a sentence starts at a word. A window starts there, if one is near.

    A text that fits has one window. A word with more tokens than a window takes stands in a window nonetheless.
    """
    words = len(bounds) - 1
    windows = [(0, _reach(bounds, 0, sizes))]
    while windows[-1][1] < words:
        start, end = windows[-1]
        latest = max(start + 1, end - sizes.overlap)
        if sizes.max_tokens is not None:
            half = int(np.searchsorted(bounds, bounds[end] - sizes.max_tokens // 2))
            for_next_word = int(np.searchsorted(bounds, bounds[end + 1] - sizes.max_tokens))
            latest = min(max(latest, half, for_next_word), end)
        start = _sentence_start(bounds, start, latest, end, sizes, starts_sentence)
        windows.append((start, _reach(bounds, start, sizes)))
    return windows


def plan_sentences(
    bounds: IntArray, sizes: WindowSizes, starts_sentence: Callable[[int], bool]
) -> list[tuple[int, int]]:
    """Cut a text into its sentences, and a sentence that is too long into windows; see `plan_windows`."""
    words = len(bounds) - 1
    firsts = [0, *(word for word in range(1, words) if starts_sentence(word)), words]
    return [
        (first + start, first + stop)
        for first, end in pairwise(firsts)
        for start, stop in plan_windows(bounds[first : end + 1], sizes)
    ]


def _reach(bounds: IntArray, start: int, sizes: WindowSizes) -> int:
    """Return the end of the longest window from word `start` on; at least one word long if the text goes on there."""
    end = min(start + sizes.max_words, len(bounds) - 1)
    if sizes.max_tokens is not None:
        fitting = int(np.searchsorted(bounds, bounds[start] + sizes.max_tokens, side="right")) - 1
        end = min(end, max(fitting, start + 1))
    return end


def _sentence_start(
    bounds: IntArray,
    previous: int,
    latest: int,
    end: int,
    sizes: WindowSizes,
    starts_sentence: Callable[[int], bool],
) -> int:
    """Return the last start of a sentence near and before `latest`, or `latest`.

    previous, end: the bounds of the window before. The window from the sentence's start on must read at least half as
    many new words as the one from `latest` on.
    """
    gain = _reach(bounds, latest, sizes) - end
    for word in range(latest, max(previous, latest - 1 - (end - previous) // _SLACK), -1):
        if starts_sentence(word):
            new = _reach(bounds, word, sizes) - end
            return word if new >= 1 and 2 * new >= gain else latest
    return latest


def sentence_starts(words: Sequence[str], text: str = "", offsets: Sequence[Word] = ()) -> Callable[[int], bool]:
    """Return a function that tells whether a sentence or a line starts at a word.

    A sentence ends at a full stop, a question or exclamation mark of any script, and the closing quotes and brackets
    after it; not at a full stop after an initial or an abbreviation or inside a number or a name (3.5), and not before
    a word in lower case. A line ends at a line break in `text` between two words. text, offsets: see
    `request.Request`; without them a straight quote closes.
    """

    def opens(word: int) -> bool:
        """Whether a straight quote opens: after a space and before none."""
        if not offsets or words[word] not in _OPENING or not 0 < word < len(words) - 1:
            return False
        return offsets[word - 1].end < offsets[word].start and offsets[word].end == offsets[word + 1].start

    def starts(word: int) -> bool:
        if word <= 0:
            return True
        if offsets and not _LINE_ENDS.isdisjoint(text[offsets[word - 1].end : offsets[word].start]):
            return True
        last = word - 1
        while last > max(0, word - 1 - _MAX_CLOSING) and words[last] in _CLOSING:
            if opens(last):
                return False  # the sentence starts at the quote
            last -= 1
        first = words[word][:1]
        if not _SENTENCE_ENDS.issuperset(words[last] or " ") or first.islower():
            return False
        if not first.isalnum() and (not opens(word) if words[word] in _CLOSING else first not in _OPENING):
            return False
        if words[last] != ".":
            return True
        if offsets and offsets[last].end == offsets[word].start:
            return False
        before = words[last - 1] if last else ""
        return not ((len(before) == 1 and before.isupper()) or before.lower() in _ABBREVIATIONS)

    return starts


def owners(starts: IntArray, ends: IntArray, windows: Sequence[tuple[int, int]]) -> IntArray:
    """Return the window of each span: the one where the narrower of its two contexts is widest, the first of equals.

    starts, ends: int64 [spans], first and last words (inclusive) of spans. windows: those of `plan_windows`. Were
    the text's ends context without limit, the windows would be the same, because of two windows with a span the first
    has more context on its left and the last on its right. Returns -1 for a span that lies whole in no window.
    """
    first_words, end_words = (np.array(column, dtype=np.int64) for column in zip(*windows, strict=True))
    first = np.searchsorted(end_words, ends, side="right")  # the first window that holds the last word
    last = np.searchsorted(first_words, starts, side="right") - 1  # the last window that holds the first word
    best = np.full(len(starts), -1, dtype=np.int64)
    widest = np.full(len(starts), -1, dtype=np.int64)
    for step in range(int((last - first).max(initial=-1)) + 1):
        window = np.minimum(first + step, len(windows) - 1)
        context = np.minimum(starts - first_words[window], end_words[window] - 1 - ends)
        better = (first + step <= last) & (context > widest)
        best[better], widest[better] = window[better], context[better]
    return best
