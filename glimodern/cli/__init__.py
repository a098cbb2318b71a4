"""What the command lines share: how a user names labels, and how a program ends."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from glimodern.data.json_rows import parse_json, show
from glimodern.data.lines import open_input, read_lines

ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit statuses; the last two are a shell's for SIGINT and SIGPIPE

Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class LabelOptions:
    """The entity types asked on a command line."""

    labels: Annotated[Repeated, tyro.conf.arg(metavar="A,B")] = ()
    """Types to find, separated by commas; double quotes keep a comma: 'person,"city, town or village"'. May be given
    several times."""
    label: Annotated[Repeated, tyro.conf.arg(metavar="TYPE")] = ()
    """One type to find, taken as it is, with its commas. May be given several times."""
    labels_file: str | None = None
    """File of types to find: one a line, or JSON: a list, or an object {"type": "description"}, where the description
    is asked and the type answered."""

    def read(self) -> dict[str, str]:
        """Each type with what is asked for it (mostly itself), in the order given. ValueError if there is none."""
        found: dict[str, str] = {}
        for value in self.labels:
            found.update(dict.fromkeys(_split(value)))  # type: ignore[arg-type]
        names = [name.strip() for name in (*found, *self.label) if name.strip()]
        found = {name: name for name in names}
        if self.labels_file is not None:
            found.update(_read_labels(self.labels_file))
        for name in found:
            check_unicode(name, "--labels")
        if not found:
            raise ValueError('--labels: expected at least one type, such as --labels "person,city", got none')
        return found


def _split(value: str) -> Iterable[str]:
    try:
        return next(csv.reader([value], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ValueError(
            f"--labels: expected types separated by commas, got {show(value)} ({error}); --label takes a type as it is"
        ) from error


def _read_labels(name: str) -> dict[str, str]:
    shown = "standard input" if name == "-" else name
    with contextlib.ExitStack() as stack:
        stream = open_input(name)
        if name != "-":  # standard input is not ours to close
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
    for label, asked in labels:
        if not isinstance(asked, str) or not label.strip() or not asked.strip():
            raise ValueError(f"{shown}: expected types, or types with descriptions, as strings, got {show(asked)}")
        check_unicode(label + asked, shown)
    return dict(labels)


def check_unicode(text: str, where: str) -> None:
    """ValueError for an argument that is no UTF-8, which Python gives as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: expected UTF-8, got {show(text)}") from error


def run(main: Callable[[], object]) -> None:
    """Run a command line, and end the process as other Unix tools do: `if __name__ == "__main__": cli.run(main)`.

    An error that this package raises, or of the operating system, is one line on standard error and exit status 2; the
    environment variable GLIMODERN_TRACEBACK=1 shows where it was raised. Ctrl-C ends with 130, a reader that has gone
    away (`| head -1`) with 141, both without a word. Any other error is a fault of ours and keeps its traceback.
    """
    status = 0
    try:
        try:
            main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if os.environ.get("GLIMODERN_TRACEBACK") or not _is_told(error):
            raise
        status = ERROR
        print(f"error: {_one_line(error)}", file=sys.stderr)
    if status:
        _drop_output()
        sys.exit(status)


def _is_told(error: Exception) -> bool:
    """Whether an error's message is meant for users: the system's, or raised by a line of this package."""
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
    """Send what is left in standard output's buffer nowhere: at its end the interpreter would fail on it again."""
    try:
        sys.stdout.flush()
    except (AttributeError, OSError, ValueError):
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        except (AttributeError, OSError, ValueError):  # closed, or no file at all
            pass
