"""User paths, and atomic replacement of files and folders.

`atomic_file` replaces one file. `replace_files` replaces some files of a folder and leaves its other files alone.
`atomic_folder` replaces a whole folder.
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

_PARTIAL = ".glimodern-partial-"  # prefix of unfinished staging folders; the next `replace_files` removes them
_COMMITTED = ".glimodern-new"  # folder of complete files that replace older ones
_CHUNK = 1 << 20  # bytes compared at a time

Stale = Callable[[Path, set[str]], Iterable[str]]
"""Maps (folder, names of the new files in it) to the names of old files there to delete."""


def expand_user(path: str | os.PathLike[str], argument: str = "path") -> str:
    """Return a path or hub name as text, with `~` and `~name` expanded to home folders.

    Raises TypeError if `path` is neither str nor os.PathLike, and ValueError if it is empty (an empty path would mean
    the working directory). `argument` is the name that error messages use.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{argument}: expected a path (str or os.PathLike), got {type(path).__name__}")
    if not text.strip():
        raise ValueError(f"{argument}: expected a path, got {text!r}; write '.' for the working directory")
    return os.path.expanduser(text)


def user_path(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Return `expand_user(path)` as a Path."""
    return Path(expand_user(path, argument))


@contextmanager
def atomic_file(file: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `file` when the block ends and is deleted when the block raises.

    Creates missing parent folders. The permissions of an existing file are kept. A symbolic link stays a link, and the
    file it points to is replaced. A device or a pipe (/dev/stdout) is written to directly. Raises IsADirectoryError
    for a folder, and PermissionError for a read-only file.
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
        flush(partial)
        if mode is not None:
            partial.chmod(mode)
        os.replace(partial, final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(file: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON value atomically; values without a JSON form are written as `str(value)`."""
    text = json.dumps(content, indent=1, default=str) + "\n"
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` when the block ends and is deleted when the block raises.

    The whole content of an older folder is deleted, so use it only for a folder that this package owns. Between two
    renames neither folder exists for a moment. Permissions are kept, and a symbolic link stays a link. Raises
    NotADirectoryError if `folder` is a file.
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
            flush(part)  # without it, a power failure could leave empty files under the new name
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
    """Yield a staging folder; when the block ends, its files replace the files of the same names in `folder`.

    Deletes the files that `stale` names and touches nothing else in `folder`. A new file takes the permissions of the
    file it replaces. A symbolic link to a file is replaced, not followed. `folder` may be a mount point, the working
    directory or a symbolic link, and is created if it does not exist. `last`: the name that is replaced last.

    Crash safety: the staging folder lies inside `folder`. Renaming the complete staging folder commits the write. The
    renamed folder keeps all files until each is in its place. After a crash, `current_files` returns the folder with
    either all old or all new files. The next call finishes a committed write and deletes an uncommitted one. A program
    that does not use `current_files` may see some old and some new files until then. Concurrent writers of one folder
    take turns if its file system supports locks.

    Raises NotADirectoryError or IsADirectoryError if a file stands where a folder must go or the reverse, and
    PermissionError for a read-only file. Then, or if the block raises, nothing is changed.
    """
    final = user_path(folder, "folder")
    created = _create_folder(final)
    try:
        with _locked(final):
            _install_committed(final, stale, last)
            for leftover in final.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover)
            staged = final / f"{_PARTIAL}{secrets.token_hex(4)}"
            staged.mkdir()
            try:
                yield staged
                _prepare(staged, final)
                os.rename(staged, final / _COMMITTED)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            _install_committed(final, stale, last)
    except BaseException:
        if created:
            remove_if_empty(Path(os.path.realpath(final)))
        raise


def current_files(folder: Path) -> Path:
    """Return the folder with the files `replace_files` wrote last: `folder`, or after a crash its commit folder."""
    committed = folder / _COMMITTED
    return committed if committed.is_dir() else folder


def remove_if_empty(folder: Path) -> None:
    """Delete a folder if it exists and is empty. A symbolic link stays."""
    with suppress(OSError):
        folder.rmdir()


def _create_folder(folder: Path) -> bool:
    """Create a folder if it does not exist; return whether it was created."""
    if folder.is_dir():
        return False
    if folder.exists():
        raise NotADirectoryError(f"folder: expected a folder to write to, got the file {folder}")
    Path(os.path.realpath(folder)).mkdir(parents=True)  # for a dangling link, creates its target
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
    """Check that every staged file can be installed, set its permissions and flush it to disk."""
    default_mode = stat.S_IMODE(staged.stat().st_mode) & 0o666
    for name in _files_of(staged):
        for parent in PurePath(name).parents[:-1]:
            if os.path.lexists(final / parent) and not (final / parent).is_dir():
                raise NotADirectoryError(f"{final / parent}: expected a folder or nothing, got a file; move it away")
        if (final / name).is_dir():
            raise IsADirectoryError(f"{final / name}: expected a file or nothing, got a folder; move it away")
        mode = _mode_to_keep(final / name)
        flush(staged / name)
        (staged / name).chmod(default_mode if mode is None else mode)
    for part in [*staged.rglob("*"), staged]:
        if part.is_dir():
            flush(part)


def _install_committed(folder: Path, stale: Stale, last: str) -> None:
    """Move committed files, if any, to their final names and delete stale files."""
    committed = folder / _COMMITTED
    if not committed.is_dir():
        return
    flush(folder)
    names = _files_of(committed)
    for name in sorted(names, key=lambda name: name == last):
        _install(committed / name, folder / name)
    for name in stale(folder, set(names)):
        (folder / name).unlink(missing_ok=True)
        if (parent := (folder / name).parent) != folder:
            remove_if_empty(parent)
    flush(folder)
    done = folder / f"{_PARTIAL}{secrets.token_hex(4)}"
    os.rename(committed, done)
    shutil.rmtree(done)


def _install(source: Path, target: Path) -> None:
    """Replace `target` by a hard link to `source`, or by a copy if the file system has no hard links."""
    if _same_content(source, target):
        return
    if not target.parent.is_dir():
        target.parent.mkdir()
    temporary = target.with_name(f".glimodern-put-{target.name}")
    temporary.unlink(missing_ok=True)  # left by a crash
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
        flush(temporary)
    os.replace(temporary, target)


def _same_content(one: Path, other: Path) -> bool:
    """Return whether two files have the same bytes; False if `other` is not a file."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(_CHUNK):
            if chunk != b.read(_CHUNK):
                return False
    return True


def _mode_to_keep(file: Path) -> int | None:
    """Return the permissions of a file to replace, None if it does not exist; PermissionError if it is read-only."""
    if not file.exists():
        return None
    if not os.access(file, os.W_OK):
        raise PermissionError(f"{file}: expected a file that may be written, got a read-only one; change its mode")
    return stat.S_IMODE(file.stat().st_mode)


def flush(path: Path) -> None:
    """Flush a file's content or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder
            raise
    finally:
        os.close(handle)
