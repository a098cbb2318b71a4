"""The output folder of a job: its lock, its manifest, and the list of rows that failed.

manifest.jsonl has the job's settings and inputs in its first line, and one line for each finished shard, in order. A
line is written after what it records is on the disk. So after a crash everything recorded is there, and what is beyond
it is deleted or replaced: the end of errors.jsonl, unfinished files, and a shard that was not recorded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glimodern.display import short
from glimodern.files.atomic import flush

from .blocks import Shard

MANIFEST, ERRORS, SUMMARY = "manifest.jsonl", "errors.jsonl", "summary.json"
_SHARD = re.compile(r"part-\d{5,}-\d{6,}\.[a-z.0-9]+")
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")
_FORMAT = 1  # of the manifest
_BEGINNING = b'{"glimodern_job": '

logger = logging.getLogger(__name__)


class FailedRow(NamedTuple):
    """A row without a result: where it stands, and why."""

    place: str
    reason: str

    @property
    def line(self) -> bytes:
        """Its line of errors.jsonl; a name of bytes that are not UTF-8 has escapes."""
        return json.dumps(self._asdict()).encode() + b"\n"


class Record(NamedTuple):
    """What the manifest holds of a finished shard.

    name, size: of its file. rows: those that were read. entities: {label: number}. failed: rows without a result, in
    order. ends_file: whether it is the last one of its input file.
    """

    file: int
    shard: int
    name: str
    size: int
    rows: int
    words_cut: int
    entities: Mapping[str, int]
    failed: Sequence[FailedRow]
    ends_file: bool


class Totals:
    """Sums over the shards of a job. next: the first shard that is not finished."""

    def __init__(self) -> None:
        self.shards = self.rows = self.errors = self.words_cut = 0
        self.entities: dict[str, int] = {}
        self.next = Shard(0, 0)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a line of the manifest."""
        self.shards += 1
        self.rows += record["rows"]
        self.errors += record["errors"]
        self.words_cut += record["words_cut"]
        for label, number in record["entities"].items():
            self.entities[label] = self.entities.get(label, 0) + number
        shard = Shard(record["file"], record["shard"])
        self.next = Shard(shard.file + 1, 0) if record["ends_file"] else Shard(shard.file, shard.number + 1)


def shard_name(shard: Shard, suffix: str) -> str:
    """Return the name of a shard's file; sorted names are in the order of the input."""
    return f"part-{shard.file:05d}-{shard.number:06d}{suffix}"


def partial_name(name: str) -> str:
    """Return a new name for an unfinished file."""
    return f".{name}.{secrets.token_hex(4)}.partial"


def is_own(path: Path, folder: Path) -> bool:
    """Return whether a path has a name in an output folder that a job writes, under any name of the folder."""
    if not _is_job_name(path.name):
        return False
    return folder.is_dir() and path.parent.is_dir() and os.path.samefile(path.parent, folder)


def is_list_of_job(path: Path) -> bool:
    """Return whether a file is a manifest, a list of errors or a summary in the output folder of a job."""
    manifest = path.parent / MANIFEST
    if path.name not in (MANIFEST, ERRORS, SUMMARY) or not manifest.is_file():
        return False
    with manifest.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def _is_job_name(name: str) -> bool:
    partial = _PARTIAL.fullmatch(name)
    return name in (MANIFEST, ERRORS, SUMMARY) or _SHARD.fullmatch(name if partial is None else partial[1]) is not None


class OutputFolder:
    """A context in which this process alone writes to an output folder. Creates the folder.

    job: the settings and inputs in the manifest, None in a new folder. totals: of the finished shards.

    Raises BlockingIOError if another job is at work there, and ValueError for a folder with files of other programs
    under the names of a job's, and for a manifest that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job: dict[str, Any] | None = None
        self.totals = Totals()
        self._errors_end = 0
        self._manifest_end = 0
        self._names: list[tuple[str, int]] = []
        self._created = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self._manifest = os.open(folder / MANIFEST, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._errors = -1
        self._locked = False
        try:
            self._lock()
            self._read_manifest()
            if self.job is None:
                self._check_names()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free. A manifest without a line is deleted, and a new folder without anything else."""
        if self._manifest < 0:
            return
        path = self.folder / MANIFEST
        if os.fstat(self._manifest).st_size == 0 and path.exists() and self._locked:
            path.unlink()
            if self._created:
                with contextlib.suppress(OSError):  # not empty any more
                    self.folder.rmdir()
        for handle in (self._manifest, self._errors):
            if handle >= 0:
                os.close(handle)
        self._manifest = self._errors = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno,
                "another job is at work in this output folder; wait for it, or name another",
                str(self.folder),
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            logger.warning("%s: its file system has no locks; start no second job there", self.folder)
        self._locked = True

    def _read_manifest(self) -> None:
        """Read the manifest and the sums of its lines. What is torn at its end is not counted."""
        path = self.folder / MANIFEST
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    content = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    content = None
                if content is None:
                    if number > 1 and not file.read(1):  # the crash of a job that wrote its last line
                        break
                    if number == 1 and not line.endswith(b"\n") and line.startswith(_BEGINNING[: len(line)]):
                        break
                    raise ValueError(f"{path}:{number}: expected a line of a job, got {short(line)}; {_ELSEWHERE}")
                if number == 1:
                    if not isinstance(content, dict) or content.get("glimodern_job") != _FORMAT:
                        raise ValueError(f"{path}: expected the manifest of a job, got {short(line)}; {_ELSEWHERE}")
                    self.job = content["job"]
                else:
                    self.totals.add(content)
                    self._errors_end = content["errors_end"]
                    self._names.append((content["name"], content["size"]))
                self._manifest_end += len(line)

    def _check_names(self) -> None:
        """Raise ValueError if a new job would meet files under its own names."""
        for path in sorted(self.folder.iterdir()):
            if path.name != MANIFEST and _is_job_name(path.name):
                raise ValueError(
                    f"--output: expected a folder without {path.name}, which this job would write, got {self.folder}; "
                    f"{_ELSEWHERE}"
                )

    def check_job(self, job: Mapping[str, Any]) -> None:
        """Raise ValueError if the folder belongs to a job with other settings or inputs, or lacks files of its own."""
        if self.job is None:
            return
        now = json.loads(json.dumps(job))
        if difference := first_difference(self.job, now):
            raise ValueError(f"--output: {self.folder} belongs to another job: {difference}; {_ELSEWHERE}")
        for name, size in self._names:
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                got = "none" if found is None else f"one of {found} bytes"
                raise ValueError(
                    f"{path}: expected the finished shard of {size} bytes that the manifest lists, got {got}; put it "
                    "back, or begin anew in another --output"
                )
        errors = self.folder / ERRORS
        if self._errors_end and (not errors.is_file() or errors.stat().st_size < self._errors_end):
            raise ValueError(f"{errors}: expected {self._errors_end} bytes or more, got fewer; put the file back")

    def begin(self, job: Mapping[str, Any]) -> None:
        """Write the first line of a new job, or delete what a stopped one left behind."""
        os.ftruncate(self._manifest, self._manifest_end)
        if self.job is None:
            self._append(self._manifest, json.dumps({"glimodern_job": _FORMAT, "job": job}).encode() + b"\n", MANIFEST)
            self.job = dict(job)
        self.delete_unfinished()
        self._errors = os.open(self.folder / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._errors, self._errors_end)
        flush(self.folder)

    def delete_unfinished(self) -> None:
        """Delete the unfinished files of processes that have been killed."""
        for path in self.folder.iterdir():
            if _PARTIAL.fullmatch(path.name) and _is_job_name(path.name):
                path.unlink()

    def record(self, record: Record) -> None:
        """Add a finished shard, the next one in order, and its failed rows."""
        if (record.file, record.shard) != self.totals.next:
            raise RuntimeError(f"expected the shard {self.totals.next}, got {record.file}, {record.shard}")
        self.note(record.failed)
        content = {
            "file": record.file, "shard": record.shard, "name": record.name, "size": record.size, "rows": record.rows,
            "errors": len(record.failed), "words_cut": record.words_cut, "entities": record.entities,
            "errors_end": os.fstat(self._errors).st_size, "ends_file": record.ends_file,
        }  # fmt: skip
        self._append(self._manifest, json.dumps(content).encode() + b"\n", MANIFEST)
        self.totals.add(content)

    def note(self, failed: Iterable[FailedRow]) -> None:
        """Add rows to errors.jsonl; those that no shard records are dropped when the job goes on."""
        if lines := b"".join(row.line for row in failed):
            self._append(self._errors, lines, ERRORS)

    def _append(self, handle: int, data: bytes, name: str) -> None:
        """Write to the end of a file and to the disk, or not at all."""
        before = os.fstat(handle).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, before)
            raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(self.folder / name)) from error


_ELSEWHERE = "name another --output"


def first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words the first setting that differs, "" if none does."""
    for key in (*now, *(key for key in then if key not in now)):
        before, after = then.get(key), now.get(key)
        if before == after:
            continue
        if key == "inputs":
            return _input_difference(before or [], after or [])
        if isinstance(before, dict) and isinstance(after, dict) and list(before) != list(after):
            before, after = list(before), list(after)  # the names say more than what stands under them
        return f"its {key} was {short(before)}, and is {short(after)} now"
    return ""


def _input_difference(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    for before, after in zip(then, now, strict=False):
        if before["path"] != after["path"]:
            return f"an input was {before['path']}, and is {after['path']} now"
        if before != after:
            return f"the input {after['path']} has changed since"
    more = "more" if len(now) > len(then) else "fewer"
    rest = [*now[len(then) :], *then[len(now) :]]
    return f"it had {len(then)} input files, and has {more} now, {len(now)}: {rest[0]['path']}"
