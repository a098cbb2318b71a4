"""Paths that a user gives, and files and folders that appear whole or not at all.

`atomic_file` replaces one file, `replace_files` some files of a folder that holds others too, `atomic_folder` a folder
that is ours alone.
"""

import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

_PARTIAL = ".glimodern-partial-"  # prefix of folders that are being filled; the next `replace_files` removes them
_COMMITTED = ".glimodern-new"  # folder of files that are whole and take the place of older ones
_CHUNK = 1 << 20  # bytes compared at a time

Stale = Callable[[Path, set[str]], Iterable[str]]
"""Of a folder and the names that are new in it: the names there that go."""


def expand_user(path: str | os.PathLike[str], argument: str = "path") -> str:
    """A path or hub name as the user meant it: `~` and `~name` are home folders.

    Raises TypeError for what is no path, and ValueError for an empty one, which would mean the working directory.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{argument}: expected a path (str or os.PathLike), got {type(path).__name__}")
    if not text.strip():
        raise ValueError(f"{argument}: expected a path, got {text!r}; write '.' for the working directory")
    return os.path.expanduser(text)


def user_path(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """`expand_user` as a Path."""
    return Path(expand_user(path, argument))


@contextmanager
def atomic_file(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write to, which takes the place of `file` when the block ends, and goes when the block raises.

    Missing parent folders are made. A file that stands there keeps its permissions; a symbolic link stays one, and the
    file it points to is replaced. A device or a pipe (/dev/stdout) is written to. Raises IsADirectoryError for a
    folder, and PermissionError for a file that may not be written.
    """
    given = user_path(file, "file")
    if given.is_dir():
        raise IsADirectoryError(f"file: expected a file to write to, got the folder {given}")
    if given.exists() and not given.is_file():
        with tempfile.TemporaryDirectory(prefix="glimodern-") as scratch:
            yield Path(scratch) / "file"
            with (Path(scratch) / "file").open("rb") as source, given.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    final = Path(os.path.realpath(given))
    final.parent.mkdir(parents=True, exist_ok=True)
    mode = _mode_to_keep(final)
    partial = final.with_name(f".glimodern-{secrets.token_hex(4)}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
    try:
        yield partial
        _flush(partial)
        if mode is not None:
            partial.chmod(mode)
        os.replace(partial, final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(file: str | os.PathLike[str], content: Any) -> None:
    """One JSON value, whole or not at all; what JSON has no form for, as text."""
    text = json.dumps(content, indent=1, default=str) + "\n"
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends, and vanishes when the block raises.

    For a folder that is ours alone: all that an older one holds goes, and for a moment, between two renames, neither
    stands there. Permissions are kept, and a symbolic link stays one. Raises NotADirectoryError for a file.
    """
    final = Path(os.path.realpath(user_path(folder, "folder")))
    if final.exists() and not final.is_dir():
        raise NotADirectoryError(f"folder: expected a folder to write, got the file {final}")
    final.parent.mkdir(parents=True, exist_ok=True)
    staged, old = (final.with_name(f".{final.name}.{part}{secrets.token_hex(4)}") for part in ("", "old."))
    staged.mkdir()
    if final.exists():
        staged.chmod(stat.S_IMODE(final.stat().st_mode))
    try:
        yield staged
        for part in [*staged.rglob("*"), staged]:
            _flush(part)  # else a power failure may leave the new name with empty files
        if not final.exists():
            os.replace(staged, final)
            return
        os.replace(final, old)
        try:
            os.replace(staged, final)
        except BaseException:
            os.replace(old, final)
            raise
        shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


@contextmanager
def replace_files(folder: str | os.PathLike[str], stale: Stale, last: str) -> Iterator[Path]:
    """A fresh folder to write to; when the block ends, its files take the place of those of the same names in `folder`.

    Nothing else in `folder` is touched, but that what `stale` names is removed. A file that is replaced hands on its
    permissions; a symbolic link to one is replaced, not followed. `folder` may be a mount point, the working directory
    or a symbolic link, and is made if it is not there. `last`: the name that appears after all others.

    A crash at any time leaves the old files or the new ones to whoever asks `current_files` where they are: the fresh
    folder lies in `folder`, is renamed when it is whole (the one moment that decides), and holds all files until each
    is in its place. The next call finishes or clears away what a crash left. Programs that do not ask may see some old
    and some new files until then. Two processes that write to one folder take turns, where its file system has locks.

    Raises NotADirectoryError or IsADirectoryError where a file stands in the place of a folder or the other way round,
    and PermissionError for a file that may not be written; then, or when the block raises, nothing is changed.
    """
    final = user_path(folder, "folder")
    made = _make_folder(final)
    try:
        with _locked(final):
            _finish(final, stale, last)
            for left in final.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left)
            staged = final / f"{_PARTIAL}{secrets.token_hex(4)}"
            staged.mkdir()
            try:
                yield staged
                _prepare(staged, final)
                os.rename(staged, final / _COMMITTED)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            _finish(final, stale, last)
    except BaseException:
        if made:
            with suppress(OSError):  # it holds something by now
                Path(os.path.realpath(final)).rmdir()
        raise


def current_files(folder: Path) -> Path:
    """Where the files are that `replace_files` wrote last: the folder, unless a crash kept it from their places."""
    committed = folder / _COMMITTED
    return committed if committed.is_dir() else folder


def _make_folder(folder: Path) -> bool:
    """Make a folder unless it is there; returns whether it was made."""
    if folder.is_dir():
        return False
    if folder.exists():
        raise NotADirectoryError(f"folder: expected a folder to write to, got the file {folder}")
    Path(os.path.realpath(folder)).mkdir(parents=True)  # a link whose target is missing gets it
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _files_of(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if not file.is_dir()]


def _prepare(staged: Path, final: Path) -> None:
    """Check that every staged file can take its place; give it its permissions and write it to the disk."""
    usual = stat.S_IMODE(staged.stat().st_mode) & 0o666
    for name in _files_of(staged):
        for parent in PurePath(name).parents[:-1]:
            if os.path.lexists(final / parent) and not (final / parent).is_dir():
                raise NotADirectoryError(f"{final / parent}: expected a folder or nothing, got a file; move it away")
        if (final / name).is_dir():
            raise IsADirectoryError(f"{final / name}: expected a file or nothing, got a folder; move it away")
        mode = _mode_to_keep(final / name)
        _flush(staged / name)
        (staged / name).chmod(usual if mode is None else mode)
    for part in [*staged.rglob("*"), staged]:
        if part.is_dir():
            _flush(part)


def _finish(folder: Path, stale: Stale, last: str) -> None:
    """Put the files that are committed in their places, and remove what is stale."""
    committed = folder / _COMMITTED
    if not committed.is_dir():
        return
    _flush(folder)
    names = _files_of(committed)
    for name in sorted(names, key=lambda name: name == last):
        _put(committed / name, folder / name)
    for name in stale(folder, set(names)):
        (folder / name).unlink(missing_ok=True)
        if (parent := (folder / name).parent) != folder:
            with suppress(OSError):  # it holds other files
                parent.rmdir()
    _flush(folder)
    done = folder / f"{_PARTIAL}{secrets.token_hex(4)}"
    os.rename(committed, done)
    shutil.rmtree(done)


def _put(source: Path, target: Path) -> None:
    """Replace target by a second name of source, or by a copy on a file system without hard links."""
    if _same(source, target):
        return
    if not target.parent.is_dir():
        target.parent.mkdir()
    beside = target.with_name(f".glimodern-put-{target.name}")
    beside.unlink(missing_ok=True)  # a crash left it
    try:
        os.link(source, beside)
    except OSError:
        shutil.copy2(source, beside)
        _flush(beside)
    os.replace(beside, target)


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; false where the second is none."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(_CHUNK):
            if chunk != b.read(_CHUNK):
                return False
    return True


def _mode_to_keep(file: Path) -> int | None:
    """The permissions of a file that is to be replaced, None if there is none. PermissionError if it is read-only."""
    if not file.exists():
        return None
    if not os.access(file, os.W_OK):
        raise PermissionError(f"{file}: expected a file that may be written, got a read-only one; change its mode")
    return stat.S_IMODE(file.stat().st_mode)


def _flush(path: Path) -> None:
    """Have a file's content, or a folder's names, written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot do it for a folder
            raise
    finally:
        os.close(handle)
