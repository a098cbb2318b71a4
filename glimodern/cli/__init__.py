"""Shared parts of the command lines: label options, error output and exit statuses."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from glimodern.data.json_rows import parse_json
from glimodern.data.lines import open_input, read_lines
from glimodern.display import short

ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit statuses; the last two are 128 + SIGINT and 128 + SIGPIPE

_LABELS = "--labels: expected types separated by commas"
_PACKAGE = Path(__file__).resolve().parents[1]
_QUOTED = "; use --label for a type with commas or quotes"

Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class LabelOptions:
    """Entity types given on a command line."""

    labels: Annotated[Repeated, tyro.conf.arg(metavar="A,B")] = ()
    """Types to find, separated by commas; put double quotes around a type that contains a comma:
    'person,"city, town or village"'. May be given several times."""
    label: Annotated[Repeated, tyro.conf.arg(metavar="TYPE")] = ()
    """One type to find; commas are part of it. May be given several times."""
    labels_file: str | None = None
    """File of types to find: one type per line, a JSON list, or a JSON object {"type": "description"}: the model reads
    the description, the output shows the type."""

    def read(self) -> dict[str, str]:
        """Return {type: description}, in the order given; a type without a description maps to itself.

        Raises ValueError if there is no type.
        """
        split = dict.fromkeys(name for value in self.labels for name in split_values(value, _LABELS, _QUOTED))
        labels = {name.strip(): name.strip() for name in (*split, *self.label) if name.strip()}
        if self.labels_file is not None:
            labels.update(read_labels_file(self.labels_file))
        for name in labels:
            check_unicode(name, "--labels")
        if not labels:
            raise ValueError('--labels: expected at least one type, such as --labels "person,city", got none')
        return labels


def split_values(value: str, expected: str, remedy: str = "") -> list[str]:
    """Split an argument at its commas; a value in double quotes may contain commas.

    expected, remedy: the beginning and the end of the ValueError for broken quotes.
    """
    try:
        return next(csv.reader([value], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ValueError(f"{expected}, got {short(value)} ({error}){remedy}") from error


def read_labels_file(name: str) -> dict[str, str]:
    """Return {type: description} of a file: a type per line, a JSON list, or a JSON object; "-": standard input."""
    shown = "standard input" if name == "-" else name
    with contextlib.ExitStack() as stack:
        stream = open_input(name)
        if name != "-":  # sys.stdin stays open for other readers
            stack.enter_context(stream)
        lines = list(read_lines(stream, shown))
    for line in lines:
        if line.fault is not None:
            raise ValueError(f"{shown}:{line.number}: {line.fault}")
    text = "\n".join(line.text for line in lines)
    if text.lstrip()[:1] not in ("[", "{"):
        return {line.text.strip(): line.text.strip() for line in lines if line.text.strip()}
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{shown}: expected a JSON list or object of types, got broken JSON ({error})") from error
    labels = list(value.items()) if isinstance(value, dict) else [(label, label) for label in value]
    for label, description in labels:
        if not isinstance(description, str) or not label.strip() or not description.strip():
            raise ValueError(
                f"{shown}: expected types, or types with descriptions, as strings, got {short(description)}"
            )
        check_unicode(label + description, shown)
    return dict(labels)


def check_unicode(text: str, where: str) -> None:
    """Raise ValueError for an argument that is not UTF-8; Python decodes such bytes to lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: expected UTF-8, got {short(text)}") from error


def run(main: Callable[[], object]) -> None:
    """Run a command line and exit with a Unix status: `if __name__ == "__main__": cli.run(main)`.

    An error raised by this package or by the operating system prints one line on standard error and exits with
    status 2; the environment variable GLIMODERN_TRACEBACK=1 prints the traceback. A warning of this package is one
    line, too. Ctrl-C exits with 130 and a closed output pipe (`| head -1`) with 141, both silently. Any other error is
    a bug in this package and keeps its traceback.
    """
    status = 0
    others, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        try:
            main()
        finally:
            warnings.showwarning = others
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if os.environ.get("GLIMODERN_TRACEBACK") or not is_user_error(error):
            raise
        status = ERROR
        print(f"error: {_one_line(error)}", file=sys.stderr)
    if status:
        _drop_output()
        sys.exit(status)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print a warning of this package as one line, and others as Python does."""
    own = category is UserWarning and Path(filename).resolve().is_relative_to(_PACKAGE)
    text = f"warning: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno, line)
    stream = sys.stderr if file is None else file
    if stream is not None:
        stream.write(text)


def is_user_error(error: Exception) -> bool:
    """Return whether an error's message is meant for users: an OSError, or raised by a line of this package."""
    if isinstance(error, OSError):
        return True
    if not isinstance(error, (ValueError, ImportError, RuntimeError, ArithmeticError)):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module: Any = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return module == "__main__" or module.partition(".")[0] == "glimodern"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(str(error).splitlines()) or type(error).__name__


def _drop_output() -> None:
    """Redirect standard output to /dev/null if it cannot be flushed; the interpreter would fail on it again at exit."""
    try:
        sys.stdout.flush()
    except (AttributeError, OSError, ValueError):
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        except (AttributeError, OSError, ValueError):  # stdout is closed or has no file descriptor
            pass
