"""Terminal output and values in messages: external text (names, paths, labels, messages) is never read as markup.

rich reads `[...]` in strings as markup and `:name:` as emoji, and colours numbers and paths; a label such as "[/b]"
raises an error there. Every console of this package comes from `console`, every cell with external text from `cell`.
"""

from __future__ import annotations

import io
import numbers
import sys
import unicodedata
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class _EscapingStream:
    """Text stream that escapes characters its encoding cannot represent; a UnicodeEncodeError could end a long run."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console on standard output (or standard error) without markup, emoji codes or automatic colours.

    If the stream is closed (`>&-`; sys.stdout is None), the console prints nothing and raises nothing.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    file = io.StringIO() if stream is None else cast("IO[str]", _EscapingStream(stream))
    return Console(file=file, quiet=quiet or stream is None, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """Return the text on one line, with control characters and lone surrogates escaped; zero-width joiners stay."""
    if text.isprintable():
        return text
    return "".join(char.encode("unicode_escape").decode("ascii") if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    """Return whether a character is a control character, a line end, a surrogate or a bidirectional control."""
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _BIDI_CONTROLS


def cell(text: object, style: str = "") -> Text:
    """Return a table cell or title that shows the text literally."""
    from rich.text import Text

    return Text(printable(str(text)), style=style)


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, at most 200 characters."""
    return next(iter(str(error).splitlines()), "")[:200]


def short(value: Any) -> str:
    """Return the repr of a value for a message, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def typed(value: Any) -> str:
    """Return the type's name of a value for a message, followed by `short(value)` for a string or a number."""
    name = type(value).__name__
    return f"{name} {short(value)}" if isinstance(value, str | numbers.Number) else name
