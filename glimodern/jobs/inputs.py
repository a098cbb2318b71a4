"""The input files of a job: found by patterns, in a fixed order, each once, and recognised when they have changed."""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from glimodern.data.lines import stem_and_suffix
from glimodern.files.atomic import user_path

from .output import is_list_of_job, is_own

Format = Literal["jsonl", "csv", "tsv", "parquet"]
"""Formats of the output."""

Compression = Literal["gzip", "bzip2", "xz", "zstd", "none"]

FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
SUFFIXES: dict[str, str] = {"none": "", **{name: suffix for suffix, name in COMPRESSIONS.items()}}
TO_FORMATS = {
    "jsonl": ("jsonl",), "json": ("jsonl",), "txt": ("jsonl", "parquet"), "csv": ("csv", "tsv", "jsonl", "parquet"),
    "tsv": ("tsv", "csv", "jsonl", "parquet"), "parquet": ("parquet", "jsonl"),
}  # fmt: skip
"""Output formats of each input format, the default first. JSON rows become no columns: what columns there are is not
known before the last row."""

logger = logging.getLogger(__name__)


class InputFile(NamedTuple):
    """An input file as it was when the job began.

    path: as given. mtime_ns: time of its last change. format: a value of FORMATS. compression: after its name.
    """

    path: str
    size: int
    mtime_ns: int
    format: str
    compression: Compression

    @property
    def identity(self) -> dict[str, Any]:
        """What the manifest holds of the file."""
        return {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns}

    def check_unchanged(self, handle: int | None = None) -> None:
        """Raise ValueError if the file, or an open handle of it, is not the one that the job began with."""
        now = os.stat(self.path if handle is None else handle)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ValueError(
                f"{self.path}: expected the file that the job began with ({self.size} bytes), got another or a changed "
                f"one ({now.st_size} bytes); restore it, or begin a new job in another --output"
            )


def find_inputs(patterns: Sequence[str], output: Path) -> list[InputFile]:
    """Return the files that the patterns name: in their order, each pattern's sorted, a file under two names once.

    A pattern matches no hidden names unless it spells the dot. What this job itself wrote to its output folder is no
    input. Raises FileNotFoundError if there is no file, and ValueError or OSError for one that cannot be read.
    """
    files: list[InputFile] = []
    seen: set[tuple[int, int]] = set()
    repeated = own = 0
    for pattern in patterns:
        for path in _matches(pattern):
            if is_own(Path(path), output):
                own += 1
                continue
            if is_list_of_job(Path(path)):
                raise ValueError(
                    f"--input: expected texts, got {path}, which another job wrote; narrow the pattern, for example to "
                    f"{os.path.join(os.path.dirname(path), 'part-*')}"
                )
            file, key = _input_file(path)
            if key in seen:
                repeated += 1
                continue
            seen.add(key)
            files.append(file)
    if not files:
        but = f" but {own} files of the job's own output" if own else ""
        raise FileNotFoundError(f"--input: expected at least one file, got none{but} for {' '.join(patterns)}")
    if repeated:
        logger.warning("--input: left out %d names of files that have another name in it", repeated)
    return files


def _matches(pattern: str) -> Iterable[str]:
    """Return the sorted files of a pattern, or the one file of that name."""
    given = str(user_path(pattern, "--input"))
    if given == "-":
        raise ValueError("--input: expected files, which a job can read again, got -; use `glimodern.predict`")
    if os.path.lexists(given) or not glob.has_magic(given):
        if os.path.isdir(given):
            raise ValueError(f"--input: expected files, got the folder {given}; write {os.path.join(given, '**', '*')}")
        return [given]
    found = glob.glob(given, recursive=True)
    return sorted(path for path in found if not os.path.isdir(path))


def _input_file(path: str) -> tuple[InputFile, tuple[int, int]]:
    """Return a file and what tells it from others. Raises ValueError and OSError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as handle:
        status = os.fstat(handle.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"--input: expected files, which a job can read again, got {path}, a pipe or a device")
    suffix = stem_and_suffix(Path(path))[1]
    if suffix not in FORMATS:
        raise ValueError(f"--input: expected a name ending with one of {', '.join(FORMATS)}, got {path}")
    compression = COMPRESSIONS.get(Path(path).suffix.lower(), "none")
    if FORMATS[suffix] == "parquet" and compression != "none":
        raise ValueError(f"--input: expected an uncompressed Parquet file, got {path}; unpack it")
    file = InputFile(path, status.st_size, status.st_mtime_ns, FORMATS[suffix], compression)
    return file, (status.st_dev, status.st_ino)


def output_format(file: InputFile, asked: str) -> str:
    """Return the output format of a file. Raises ValueError for one that it cannot be converted to."""
    formats = TO_FORMATS[file.format]
    if asked == "same":
        return formats[0]
    if asked not in formats:
        raise ValueError(
            f"--format: expected {' or '.join(formats)} for {file.path}, got {asked}; leave it out, or give this file "
            "a job of its own"
        )
    return asked
