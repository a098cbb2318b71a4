"""Reading of numbered text lines from a file, a pipe or standard input.

All readers of the package use `read_lines`, with these rules:

Compression (gzip, bzip2, xz, zstd) is detected by the first bytes, not by the name. Pipes are read once, without seek.
Encoding: UTF-8, or UTF-16 or UTF-32 with a byte order mark. Byte order marks are removed, also between joined files.
Line ends: "\\n", "\\r\\n" and "\\r". No other character ends a line: U+2028, U+0085, "\\x0b" and "\\x0c" may occur in
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

_CHUNK = 1 << 16  # bytes; the capacity of a Linux pipe
_IDLE_MS = 20  # a pipe without data for this long is idle

_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC |= {bytes([0x50 + i]) + b"\x2a\x4d\x18": "zstd" for i in range(16)}  # skippable frames, as pzstd writes first
_MAGIC |= {b"BZh%d" % level + block: "bzip2" for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")}
_MAGIC |= {b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"7z\xbc\xaf\x27\x1c": "a 7z archive"}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, which is a prefix of it
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_LINE_END = re.compile(r"\r\n?|\n")
_AFTER_LINE_END = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")


class Line(NamedTuple):
    """One line without its line end, numbered from 1. fault: the error if it is not valid text, else None."""

    number: int
    text: str
    fault: str | None = None


def stem_and_suffix(path: Path) -> tuple[str, str]:
    """Return stem and lower-case suffix without a compression suffix: ("train", ".jsonl") for "train.JSONL.gz"."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return inner.stem, inner.suffix.lower()


def open_input(source: str | os.PathLike[str] | None) -> BinaryIO:
    """Open a file or a pipe as a binary stream; None or "-": standard input. Raises OSError."""
    if source is not None and os.fspath(source) != "-":
        return open(Path(os.path.expanduser(source)), "rb", buffering=0)
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer


def read_lines(
    stream: BinaryIO, name: str, on_idle: Callable[[], None] | None = None, *, keep_ends: bool = False
) -> Iterator[Line]:
    """Yield the lines of a binary stream. name: the stream's name in errors. keep_ends: leave line ends in the text.

    A line with bytes of another encoding, or with a NUL, has a `fault`; the lines after it are still read.
    on_idle: called when all lines received so far have been yielded and the stream has no data at the moment.
    Raises ValueError for compressed data that are damaged or truncated and for an archive, and ImportError for zstd
    without a package for it.
    """
    chunks = _decompressed(_chunks(stream, on_idle), name)
    head, chunks = _head(chunks, _BYTE_ORDER_MARKS)
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")
    # invalid UTF-8 bytes and halves of surrogate pairs become lone surrogates, which `_line` reports as a fault
    errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    splitter = _LineSplitter(keep_ends)
    number, pending = 1, [""]
    for chunk in itertools.chain(chunks, [None]):
        try:
            text = decoder.decode(chunk or b"", final=chunk is None)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}:{number}: expected {encoding.upper()}, got broken bytes ({error})") from error
        first, *rest = splitter.split(text, final=chunk is None)
        pending.append(first)
        for following in rest:
            yield _line(number, "".join(pending), encoding)
            number, pending = number + 1, [following]
    last = "".join(pending)
    if last.removeprefix("\ufeff"):
        yield _line(number, last, encoding)


class _LineSplitter:
    """Splits a text that arrives in pieces into lines. keep_ends: leave line ends in them."""

    def __init__(self, keep_ends: bool) -> None:
        self.keep_ends = keep_ends
        self._after_cr = False  # the last piece ended with "\r", to which a "\n" may still belong

    def split(self, text: str, final: bool) -> list[str]:
        """Return the parts of a piece of text: every one but the last ends a line. final: it is the last piece."""
        if self.keep_ends:
            text = "\r" + text if self._after_cr else text
            self._after_cr = text.endswith("\r") and not final
            return _AFTER_LINE_END.split(text[:-1] if self._after_cr else text)
        if not text:
            return [text]
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        return text.split("\n") if "\r" not in text else _LINE_END.split(text)


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
    """Yield a stream's bytes as they arrive. on_idle: see `read_lines`."""
    read = getattr(stream, "read1", stream.read)  # read1 of a buffered stream makes at most one system call
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLIN)
    except (OSError, ValueError):  # an in-memory stream, which is always ready
        poll = None
    while True:
        if on_idle is not None and poll is not None and not poll.poll(_IDLE_MS):
            on_idle()
        chunk = read(_CHUNK)
        if chunk is None:  # a pipe that another program set to non-blocking
            if poll is not None:
                poll.poll()
            continue
        if not chunk:
            return
        yield chunk


def _head(chunks: Iterator[bytes], prefixes: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return (the first bytes, all chunks); reads no more than it needs to decide with which prefix the data begin."""
    head = b""
    for chunk in chunks:
        head += chunk
        if not any(len(head) < len(prefix) and prefix.startswith(head) for prefix in prefixes):
            break
    return head, itertools.chain([head], chunks)


def _decompressed(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Yield the decompressed data of gzip, bzip2, xz or zstd, and other data unchanged."""
    head, chunks = _head(chunks, _MAGIC)
    format = next((format for magic, format in _MAGIC.items() if head.startswith(magic)), None)
    if format is None:
        yield from chunks
        return
    if format.startswith("a "):
        raise ValueError(f"{name}: expected text, got {format}; unpack it, or convert it to JSON lines")
    create, errors = _decompressor(format, name)
    decompressor: Any = None  # of the current member: concatenated compressed files are one stream
    for chunk in chunks:
        while chunk:
            try:
                if decompressor is None:
                    chunk = chunk.lstrip(b"\0")  # padding between members, as written by tape drives and xz
                    if not chunk:
                        break
                    decompressor = create()
                data = decompressor.decompress(chunk)
            except errors as error:
                raise ValueError(f"{name}: damaged {format} data ({error}); create the file again") from error
            if data:
                yield data
            chunk = decompressor.unused_data if decompressor.eof else b""
            if decompressor.eof:
                decompressor = None
    if decompressor is not None:
        raise ValueError(f"{name}: the {format} data end early; the file is truncated, create it again")


def _decompressor(format: str, name: str) -> tuple[Callable[[], Any], type[Exception] | tuple[type[Exception], ...]]:
    """Return (a function that creates a decompressor, the errors that it raises)."""
    if format == "gzip":
        return (lambda: zlib.decompressobj(wbits=31)), zlib.error
    if format == "bzip2":
        return bz2.BZ2Decompressor, (OSError, ValueError)
    if format == "xz":
        return lzma.LZMADecompressor, lzma.LZMAError
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdDecompressor, zstd.ZstdError
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(
            f"{name}: is compressed with zstd, which needs the package `zstandard`; pip install 'glimodern[zstd]'"
        ) from error
    return (lambda: zstandard.ZstdDecompressor().decompressobj()), zstandard.ZstdError
