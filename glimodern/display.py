"""What a terminal shows: text from outside (names, paths, labels, messages) is shown as it is, never read as markup.

rich reads `[...]` in strings as markup and `:name:` as emoji, and colours numbers and paths; a label such as "[/b]" is
an error there. Every console of this package comes from `console`, and every cell with text from outside from `cell`.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class _AnyText:
    """A text stream that escapes what its encoding lacks, in place of raising after hours of work."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console of standard output (or standard error) without markup, emoji codes and automatic colours.

    A closed stream (`>&-`; sys.stdout is None) shows nothing, and takes no result along.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    file = io.StringIO() if stream is None else cast("IO[str]", _AnyText(stream))
    return Console(file=file, quiet=quiet or stream is None, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """The text in one line; what steers a terminal, and lone surrogates, as escapes. Joiners of scripts stay."""
    if text.isprintable():
        return text
    return "".join(sign.encode("unicode_escape").decode("ascii") if _steers(sign) else sign for sign in text)


def _steers(sign: str) -> bool:
    """Control characters, line ends, surrogates, and what turns the direction of writing."""
    return unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(sign) in _TURNS


def cell(text: object, style: str = "") -> Text:
    """A table's cell or title that shows the text as it is."""
    from rich.text import Text

    return Text(printable(str(text)), style=style)


def first_line(error: Exception) -> str:
    """The first line of what a library says, 200 characters of it at most."""
    return next(iter(str(error).splitlines()), "")[:200]


def short(value: Any) -> str:
    """A value as it is written, 60 characters of it at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
