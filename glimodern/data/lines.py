"""Bytes of a file, a pipe or standard input become numbered lines of text.

Every reader of the package takes its lines from `read_lines`, so that all agree on the following.

Compression (gzip, bzip2, xz, zstd) is told by the first bytes, not by the name. Pipes are read once and never sought.
Encoding: UTF-8, or UTF-16 or UTF-32 with a byte order mark. Byte order marks are removed, also between joined files.
Line ends: "\\n", "\\r\\n" and "\\r". No other character ends a line: U+2028, U+0085, "\\x0b" and "\\x0c" may stand in
a word.
"""

from __future__ import annotations

import bz2
import codecs
import itertools
import lzma
import os
import re
import select
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

_CHUNK = 1 << 16  # bytes: what a Linux pipe holds
_IDLE_MS = 20  # a pipe that is silent for so long has nothing more at the moment

_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC |= {bytes([0x50 + i]) + b"\x2a\x4d\x18": "zstd" for i in range(16)}  # skippable frames, as pzstd writes first
_MAGIC |= {b"BZh%d" % level + block: "bzip2" for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")}
_MAGIC |= {b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"7z\xbc\xaf\x27\x1c": "a 7z archive"}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_LINE_END = re.compile(r"\r\n?|\n")


class Line(NamedTuple):
    """One line without its end, counted from 1. `fault` says why it is no text, None for a good line."""

    number: int
    text: str
    fault: str | None = None


def stem_and_suffix(path: Path) -> tuple[str, str]:
    """("train", ".jsonl") of "train.JSONL.gz": the name and the ending, in lower case, of what is compressed."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return inner.stem, inner.suffix.lower()


def open_input(source: str | os.PathLike[str] | None) -> BinaryIO:
    """A binary stream of a file or a pipe; None or "-": standard input. OSError if it cannot be opened."""
    if source is not None and os.fspath(source) != "-":
        return open(Path(os.path.expanduser(source)), "rb", buffering=0)
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer


def read_lines(stream: BinaryIO, name: str, on_idle: Callable[[], None] | None = None) -> Iterator[Line]:
    """The lines of a binary stream; `name` stands in errors.

    A line with bytes of another encoding, or with a NUL, has a `fault`; the lines after it are read. ValueError for
    compressed data that are damaged or end early, and for an archive. ImportError for zstd without a package for it.
    on_idle: called when lines have been given out and the stream has nothing more at the moment.
    """
    chunks = _decompressed(_chunks(stream, on_idle), name)
    head, chunks = _head(chunks, _MARKS)
    encoding = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), "utf-8")
    # Bytes that are no UTF-8, and halves of surrogate pairs, become lone surrogates, which no good line holds.
    errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    number, pending, after_cr = 1, [""], False
    for chunk in itertools.chain(chunks, [None]):
        try:
            text = decoder.decode(chunk or b"", final=chunk is None)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}:{number}: expected {encoding.upper()}, got broken bytes ({error})") from error
        if after_cr and text:
            text = text.removeprefix("\n")
            after_cr = False
        if not text:
            continue
        after_cr = text.endswith("\r")
        first, *rest = text.split("\n") if "\r" not in text else _LINE_END.split(text)
        pending.append(first)
        for following in rest:
            yield _line(number, "".join(pending), encoding)
            number, pending = number + 1, [following]
    last = "".join(pending)
    if last.removeprefix("\ufeff"):
        yield _line(number, last, encoding)


def _line(number: int, text: str, encoding: str) -> Line:
    text = text.removeprefix("\ufeff")
    fault = None
    if "\0" in text:
        fault = "expected text, got a NUL byte; the file is binary, damaged, or UTF-16 without a byte order mark"
    elif not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if encoding == "utf-8":
                byte = ord(text[error.start]) - 0xDC00
                fault = f"expected UTF-8, got the byte 0x{byte:02x}; convert the file to UTF-8"
            else:
                fault = f"expected {encoding[:6].upper()}, got half of a surrogate pair"
    return Line(number, text, fault)


def _chunks(stream: Any, on_idle: Callable[[], None] | None) -> Iterator[bytes]:
    """What a stream holds, as it arrives."""
    read = getattr(stream, "read1", stream.read)  # of a buffered stream: at most one system call
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLIN)
    except (OSError, ValueError):  # a stream in memory: always ready
        poll = None
    while True:
        if on_idle is not None and poll is not None and not poll.poll(_IDLE_MS):
            on_idle()
        chunk = read(_CHUNK)
        if chunk is None:  # a pipe that another program has set to non-blocking
            if poll is not None:
                poll.poll()
            continue
        if not chunk:
            return
        yield chunk


def _head(chunks: Iterator[bytes], signs: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """As many first bytes as tell which of the signs the data begin with; and all the data. Waits for no byte more."""
    head = b""
    for chunk in chunks:
        head += chunk
        if not any(len(head) < len(sign) and sign.startswith(head) for sign in signs):
            break
    return head, itertools.chain([head], chunks)


def _decompressed(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    head, chunks = _head(chunks, _MAGIC)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        yield from chunks
        return
    if kind.startswith("a "):
        raise ValueError(f"{name}: expected text, got {kind}; unpack it, or convert it to JSON lines")
    new, broken = _decompressor(kind, name)
    running: Any = None  # the decompressor of the current member: joined compressed files are one stream
    for chunk in chunks:
        while chunk:
            try:
                if running is None:
                    chunk = chunk.lstrip(b"\0")  # padding between members, as tapes and xz have it
                    if not chunk:
                        break
                    running = new()
                data = running.decompress(chunk)
            except broken as error:
                raise ValueError(f"{name}: damaged {kind} data ({error}); make the file again") from error
            if data:
                yield data
            chunk = running.unused_data if running.eof else b""
            if running.eof:
                running = None
    if running is not None:
        raise ValueError(f"{name}: the {kind} data end early; the file is cut, make it again")


def _decompressor(kind: str, name: str) -> tuple[Callable[[], Any], type[Exception] | tuple[type[Exception], ...]]:
    """(what makes a decompressor, the errors it raises)."""
    if kind == "gzip":
        return (lambda: zlib.decompressobj(wbits=31)), zlib.error
    if kind == "bzip2":
        return bz2.BZ2Decompressor, (OSError, ValueError)
    if kind == "xz":
        return lzma.LZMADecompressor, lzma.LZMAError
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdDecompressor, zstd.ZstdError
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(
            f"{name}: is compressed by zstd, which needs the package `zstandard`: pip install 'glimodern[zstd]'"
        ) from error
    return (lambda: zstandard.ZstdDecompressor().decompressobj()), zstandard.ZstdError
