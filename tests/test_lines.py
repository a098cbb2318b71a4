"""Bytes to lines and JSON rows: compression, encodings, line ends, pipes, and where a fault is said to be."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from glimodern.data import load_dataset, load_split
from glimodern.data.json_rows import json_rows
from glimodern.data.lines import Line, read_lines


def zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression.zstd import compress

        return compress(data)
    return pytest.importorskip("zstandard", reason="needs the extra zstd").compress(data)  # type: ignore[no-any-return]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd
}  # fmt: skip


class Dribble(io.BytesIO):
    """Gives its bytes one at a time."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(1)


def lines(data: bytes) -> list[str]:
    found = list(read_lines(io.BytesIO(data), "x"))
    assert list(read_lines(Dribble(data), "x")) == found
    with_ends = [line.text for line in read_lines(io.BytesIO(data), "x", keep_ends=True)]
    assert [line.text for line in read_lines(Dribble(data), "x", keep_ends=True)] == with_ends
    assert [re.sub(r"(\r\n|\r|\n)\Z", "", text) for text in with_ends] == [line.text for line in found]
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    assert all(line.fault is None for line in found)
    return [line.text for line in found]


def test_line_ends() -> None:
    assert lines(b"a\nb\r\nc\rd\r\re\n\rf") == ["a", "b", "c", "d", "", "e", "", "f"]
    kept = read_lines(io.BytesIO(b"a\nb\r\nc\rd\r\re\n\rf"), "x", keep_ends=True)
    assert [line.text for line in kept] == ["a\n", "b\r\n", "c\r", "d\r", "\r", "e\n", "\r", "f"]
    assert lines(b"") == [] and lines(b"\n") == [""] and lines(b"a") == lines(b"a\r\n") == ["a"]
    text = "a\u2028b\x0bc\x0cd\x85e\x1cf"
    assert lines(f"{text}\ng".encode()) == [text, "g"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark(encoding: str) -> None:
    assert lines("Zoë 😀\r\n東京\n".encode(encoding)) == ["Zoë 😀", "東京"]
    assert lines(b"") == lines("".encode(encoding)) == []


def test_utf_16_big_endian_and_joined_files() -> None:
    assert lines(b"\xfe\xff" + "é\nb".encode("utf-16-be")) == ["é", "b"]
    assert lines(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n") == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"a\nb\xff\nc", "expected UTF-8, got the byte 0xff; convert"),
        (b"a\n\xed\xa0\x80\nc", "expected UTF-8, got the byte 0xed"),
        (b"a\nb\0\nc", "expected text, got a NUL byte"),
        ("\ufeffa\n\ud83d\nc".encode("utf-16-le", "surrogatepass"), "expected UTF-16, got half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_one_line(data: bytes, fault: str) -> None:
    first, bad, last = read_lines(io.BytesIO(data), "x")
    assert (first, last) == (Line(1, "a"), Line(3, "c"))
    assert bad.number == 2 and bad.fault is not None and bad.fault.startswith(fault)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed(suffix: str) -> None:
    pack = COMPRESS[suffix]
    data = pack("é\n".encode()) + pack(b"") + pack(b"b\n" * 100_000)
    assert lines(pack(b"")) == [] and lines(pack(b"a\n")) == ["a"]
    assert [line.text for line in read_lines(io.BytesIO(data), "x")] == ["é"] + ["b"] * 100_000
    with pytest.raises(ValueError, match="x: the .* data end early"):
        list(read_lines(io.BytesIO(data[:-3]), "x"))
    with pytest.raises(ValueError, match="x: damaged .* data"):
        list(read_lines(io.BytesIO(pack(b"a\n") + b"more, and no header of a member"), "x"))


def test_archives_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="x: expected text, got a zip archive; unpack it"):
        list(read_lines(io.BytesIO(b"PK\x03\x04..."), "x"))
    if sys.version_info < (3, 14):
        monkeypatch.setitem(sys.modules, "zstandard", None)
        with pytest.raises(ImportError, match=r"x: is compressed with zstd.*pip install 'glimodern\[zstd\]'"):
            list(read_lines(io.BytesIO(b"\x28\xb5\x2f\xfd..."), "x"))


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("train.jsonl", '{"tokenized_text": ["a"], "ner": []}\n', ["a"]),
        ("train.JSON", '[{"text": "a b", "entities": []}]', ["a", "b"]),
        ("train.conll", "a\tO\nb\tB-x\n", ["a", "b"]),
        ("train.Json", '{"conversations": [{"value": "Text: a"}, {"value": "ok"}]}', ["a"]),
    ],
)
def test_compressed_data_sets(tmp_path: Path, suffix: str, name: str, text: str, words: list[str]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / (name + suffix.upper())).write_bytes(COMPRESS[suffix](text.encode()))
    data = load_dataset(folder)
    assert data.name == "set" and [example.words for example in data] == [words]
    assert load_dataset(folder, split="train").name == "set-train"
    assert load_dataset(folder / (name + suffix.upper())).name == "set-train"
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"expected each file once, got train\..* and train\..*; remove one"):
        load_dataset(folder)


def test_pipes_are_read_once(tmp_path: Path) -> None:
    fifo = tmp_path / "test.jsonl"
    os.mkfifo(fifo)
    data = gzip.compress(b'{"tokenized_text": ["a"], "ner": []}\n')
    writer = threading.Thread(target=lambda: fifo.write_bytes(data))
    writer.start()
    assert [example.words for example in load_split(str(fifo), "train")] == [["a"]]
    writer.join()
    source, sink = os.pipe()
    os.write(sink, b"a\tB-x\n")
    os.close(sink)
    assert load_split(f"/dev/fd/{source}", "test")[0].entities == [(0, 0, "x")]
    os.close(source)


def test_what_has_arrived_comes_out() -> None:
    """No byte more is waited for than tells a line from the next; on_idle is called when there is nothing more."""
    source, sink = os.pipe()
    seen: list[str] = []

    def on_idle() -> None:
        seen.append("idle")
        if seen.count("idle") == 1:
            os.write(sink, b"\xef\xbb\xbfa\rb\nhalf")
        elif seen.count("idle") == 2:
            os.write(sink, b" c\n")
            os.close(sink)

    with open(source, "rb", buffering=0) as stream:
        for line in read_lines(stream, "x", on_idle):
            seen.append(line.text)
    assert seen == ["idle", "a", "b", "idle", "half c"]


# --- JSON --------------------------------------------------------------------------------------------------------


def rows(text: str) -> list[tuple[str, object]]:
    return [(row.place, row.fault or row.value) for row in json_rows(read_lines(io.BytesIO(text.encode()), "x"), "x")]


def test_json_lines_arrays_and_pretty_printed_objects() -> None:
    one, two = {"a": [1, {"b": "\u2028"}]}, {"c": None}
    assert rows("") == rows("\n \n") == []
    assert rows('{"a": 1}\r\n\r\n{"a": 2}') == [("x:1", {"a": 1}), ("x:3", {"a": 2})]
    raw = json.dumps(one, ensure_ascii=False)
    assert rows(f"{raw}\n{raw}") == [("x:1", one), ("x:2", one)]
    assert rows(json.dumps([one, two])) == rows(json.dumps([one, two], indent=1)) == [("x[0]", one), ("x[1]", two)]
    assert rows("\n" + json.dumps(one, indent=2) + "\n" + json.dumps(two, indent=2)) == [("x:2", one), ("x:10", two)]
    assert rows('[{"a": 1}]\n[{"a": 2}]\n') == [("x[0]", {"a": 1}), ("x[1]", {"a": 2})]


def test_json_faults_name_their_line() -> None:
    (first, second, third) = rows('{"a": 1\n{"a": 2}\n{"a": 3, "b": {"k": 1, "k": 1}}')
    assert first[0] == "x:1" and "expected one JSON object a line, got '{\"a\": 1'" in str(first[1])
    assert second == ("x:2", {"a": 2})
    assert third[0] == "x:3" and "the key 'k' occurs twice" in str(third[1])
    for text, line in (("[\n{},\n}\n]", 3), ('{\n"a": 1,\n"a": 2}', 1), ("[" * 100_000, 1), ('{"a": 1}\n{', 0)):
        if line:
            with pytest.raises(ValueError, match=rf"x:{line}: expected a JSON array of rows, or JSON objects"):
                rows(text)
        else:
            assert "expected one JSON object a line, got '{'" in str(rows(text)[1][1])


def test_the_first_row_of_json_lines_does_not_wait_for_the_second() -> None:
    def endless() -> object:
        yield Line(1, '{"a": 1}')
        raise AssertionError("read on")

    assert next(json_rows(endless(), "x")).value == {"a": 1}  # type: ignore[arg-type]
