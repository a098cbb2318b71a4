"""`python -m glimodern.jobs`: what it reads and writes, what it refuses, and how it goes on."""

import csv
import gzip
import io
import itertools
import json
import os
import resource
import shutil
import sys

import numpy as np
import pytest

from glimodern import GLiModern
from glimodern.data.lines import read_lines
from glimodern.inference.compute import TextDoesNotFitError
from glimodern.inference.entities import Entities
from glimodern.jobs.__main__ import main
from glimodern.jobs.answers import answered
from glimodern.jobs.blocks import Block, Row, Shard
from glimodern.jobs.config import parse_job_config
from glimodern.jobs.csv_records import quoted, read_records
from glimodern.jobs.inputs import find_inputs
from glimodern.jobs.output import OutputFolder
from glimodern.jobs.progress import LOG_SECONDS, Progress
from glimodern.jobs.run import blocks_from, is_of_text, open_sources
from glimodern.jobs.text_files import Fields, entities_json, output_lines
from tests.conftest import WORDS

LABELS = ["person", "place"]
THRESHOLD = 0.4


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return GLiModern.from_pretrained(checkpoint, dtype="fp32")


@pytest.fixture
def job(loaded, tmp_path, monkeypatch, capsys):
    """job(*arguments) -> the output folder; the model is loaded once for all tests, and runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GLiModern, "from_pretrained", lambda *args, **kwargs: loaded)

    def job(*arguments, output="out"):
        given = map(str, arguments)
        main(["model", "--output", output, "--labels", ",".join(LABELS), "--threshold", str(THRESHOLD), *given])
        job.said = capsys.readouterr().out
        return tmp_path / output

    return job


def texts(count, first=0):
    return [" ".join(itertools.islice(itertools.cycle(WORDS), i % 7, i % 7 + 3 + i % 11)) for i in range(first, count)]


def files_of(folder):
    """The bytes of all files that a job writes, but for the summary, which has times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "summary.json"}


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def failed(folder):
    return {error["place"]: error["reason"] for error in json_lines(folder / "errors.jsonl")}


def write_jsonl(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


# --- formats -----------------------------------------------------------------------------------------------------


def test_json_lines_are_copied_as_they_are(job, loaded, tmp_path):
    text = texts(1)[0]
    lines = [
        f'{{"id": {10**40}, "text": "{text}",  "f": 1.10, "e": 1e400, "s": "\\u00e9\\/ é NaN \u2028"}}',
        f' {{ "z" : [1, {{"text": 2}}], "text": "{text}" }} ',
        '{"text": "" }',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    out = job("--input", "a.jsonl")
    written = (out / "part-00000-000000.jsonl").read_text(encoding="utf-8").split("\n")
    assert written.pop() == ""
    entities = loaded.predict([text], LABELS, THRESHOLD)[0]
    assert entities
    for line, result, found in zip(lines, written, (entities, entities, []), strict=True):
        head = line.strip().removesuffix("}").rstrip().replace("\u2028", "\\u2028")
        assert result == head + ', "entities": ' + json.dumps(found, ensure_ascii=False) + "}"
    assert json.loads((out / "summary.json").read_text())["rows"] == 3


def test_csv_records_keep_their_bytes(job, loaded, tmp_path):
    header = '\ufeffid,"text",id'
    given = ['1,Ada met Charles,"q"', '2,"Ada\r\nmet ""Charles"", in London",', '"3",London,\n']
    (tmp_path / "a.csv").write_bytes((header + "\r\n" + "\r\n".join(given)).encode())
    out = job("--input", "a.csv")
    raw = (out / "part-00000-000000.csv").read_bytes().decode()
    assert raw.startswith('id,"text",id,entities\r\n')
    rows = list(csv.reader(io.StringIO(raw, newline="")))
    wanted = list(csv.reader(io.StringIO("\r\n".join(given), newline="")))
    assert [row[:-1] for row in rows[1:]] == wanted
    for record in given:
        assert record.rstrip("\n") + ',"[' in raw or record.rstrip("\n") + ",[]" in raw
    found = [json.loads(row[-1]) for row in rows[1:]]
    assert found == loaded.predict([row[1] for row in wanted], LABELS, THRESHOLD)


@pytest.mark.parametrize(
    ("name", "content", "options", "rows"),
    [
        ("a.txt", "Ada met\n\nLondon", [], [{"text": "Ada met"}, {"text": ""}, {"text": "London"}]),
        (
            "a.json",
            '[{"text": "Ada", "n": 1},\n {"text": "London"}]',
            [],
            [{"text": "Ada", "n": 1}, {"text": "London"}],
        ),
        ("a.tsv", 'n\tt\n1\t"Ada\tmet"\n', ["--text-field", "t", "--format", "jsonl"], [{"n": "1", "t": "Ada\tmet"}]),
        ("a.ndjson", '{"t": "Ada"}\n', ["--text-field", "t", "--result-field", "found"], [{"t": "Ada"}]),
    ],
)
def test_rows_as_json_lines(job, loaded, tmp_path, name, content, options, rows):
    (tmp_path / name).write_text(content)
    out = job("--input", name, *options)
    written = json_lines(out / "part-00000-000000.jsonl")
    result = "found" if "found" in options else "entities"
    asked = [row[options[1]] if options else row["text"] for row in rows]
    entities = loaded.predict(asked, LABELS, THRESHOLD)
    assert written == [{**row, result: found} for row, found in zip(rows, entities, strict=True)]


def test_csv_as_tsv_quotes_what_needs_it(job, tmp_path):
    (tmp_path / "a.csv").write_text('text,b\nAda,"x\ty"\n')
    raw = (job("--input", "a.csv", "--format", "tsv") / "part-00000-000000.tsv").read_text()
    assert raw.splitlines()[0] == "text\tb\tentities"
    assert next(csv.reader(raw.splitlines()[1:], delimiter="\t"))[:2] == ["Ada", "x\ty"]


@pytest.mark.parametrize("score", [1.0, 0.1, 1e-07, 5e-324, 0.30000001192092896, np.float64(0.7)])
@pytest.mark.parametrize("text", ["Ada", "", 'a "b" \\ c/d', "\0\x1f\x7f\t\r\n", "Zoë 😀 \x85\u2028\u2029"])
def test_entities_are_written_as_json_does(text, score):
    entities = [{"start": 0, "end": 10**6, "text": text, "label": f"l {text}", "score": score}] * 2
    for found in ([], entities):
        assert entities_json(found) == json.dumps(found, ensure_ascii=False)


@pytest.mark.parametrize("output", ["jsonl", "csv", "tsv"])
def test_output_lines_have_the_rows_that_did_not_fail(output):
    found = Entities([{"start": 0, "end": 1, "text": "\u2028", "label": 'a "b"', "score": 0.5}], words_cut=3)
    rows = [Row("a:1", head='{"z": "\u2029"', tail="\r\n"), Row("a:2", head="{"), Row("a:3", head='{"y": 1')]
    written = output_lines(rows, [found, None, Entities()], Fields("text", "é", "cut"), output)
    entity = json.dumps(found, ensure_ascii=False).replace("\u2028", "\\u2028")
    if output == "jsonl":
        assert written == f'{{"z": "\\u2029", "é": {entity}, "cut": 3}}\n{{"y": 1, "é": []}}\n'
    else:
        delimiter = {"csv": ",", "tsv": "\t"}[output]
        first = delimiter.join(['{"z": "\u2029"', quoted(entity, delimiter), "3"])
        assert written == first + "\r\n" + delimiter.join(['{"y": 1', "[]", "0"]) + "\n"


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_compressions(job, tmp_path, suffix):
    from tests.test_lines import COMPRESS

    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(20)).encode()
    (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](lines) if suffix else lines)
    first = files_of(job("--input", "a.jsonl*", "--shard-rows", 15))
    names = [f"part-00000-{i:06d}.jsonl{suffix}" for i in range(2)]
    assert sorted(first) == ["errors.jsonl", "manifest.jsonl", *names]
    plain = files_of(job("--input", "a.jsonl*", "--shard-rows", 15, "--compress", "none", output="plain"))
    for name in names:
        read = [line.text for line in read_lines(io.BytesIO(first[name]), name)]
        assert read == plain[name.removesuffix(suffix)].decode().splitlines()


def test_words_cut(job, tmp_path):
    long = " ".join(WORDS * 30)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "Ada"}, {"text": long}])
    (tmp_path / "b.csv").write_text(f"text\nAda\n{long}\n")
    with pytest.warns(UserWarning, match="words at their ends were not read"):
        out = job("--input", "*.*", "--long-texts", "cut")
    first, second = json_lines(out / "part-00000-000000.jsonl")
    assert "words_cut" not in first and second["words_cut"] > 0
    rows = list(csv.DictReader((out / "part-00001-000000.csv").open(newline="")))
    assert [row["words_cut"] for row in rows] == ["0", str(second["words_cut"])]
    assert json.loads((out / "summary.json").read_text())["words_cut"] == 2 * second["words_cut"]


# --- Parquet -----------------------------------------------------------------------------------------------------


def parquet_table(kind="string", count=50):
    import pyarrow as pa

    values = [None if i % 10 == 9 else text for i, text in enumerate(texts(count))]
    types = {
        "string": pa.string(), "large_string": pa.large_string(), "binary": pa.binary(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
    }  # fmt: skip
    columns = {
        "n": pa.array(range(count), pa.int16()),
        "text": pa.array(values, pa.string()).cast(types[kind]),
        "when": pa.array(range(count), pa.timestamp("ns", "UTC")),
        "nested": pa.array([[{"a": i, "b": None}] for i in range(count)]),
        "kind": pa.array(["x", "y", None, "z", "x"] * (count // 5)).dictionary_encode(),
    }
    fields = [pa.field(name, column.type, metadata={"of": name}) for name, column in columns.items()]
    schema = pa.schema(fields, metadata={"whose": "ours"})
    return pa.table(list(columns.values()), schema=schema)


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_parquet_keeps_types_and_metadata(job, loaded, tmp_path, kind):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    import pyarrow as pa

    table = parquet_table(kind)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=13, compression="gzip")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.metadata == {b"whose": b"ours"} and schema.field("n").metadata[b"of"] == b"n"
    out = job("--input", "a.parquet", "--shard-rows", 20)
    written = [pq.read_table(out / f"part-00000-{i:06d}.parquet") for i in range(3)]
    assert [part.num_rows for part in written] == [18, 18, 9]  # every tenth has no text
    whole = pa.concat_tables(written)
    kept = table.filter(table["text"].is_valid())
    assert whole.schema.names == [*table.schema.names, "entities"]
    for part in written:
        assert part.select(schema.names).schema.equals(schema, check_metadata=True)
    assert whole.select(table.schema.names).to_pylist() == kept.to_pylist()
    asked = [value.decode() if isinstance(value, bytes) else value for value in kept["text"].to_pylist()]
    assert whole["entities"].to_pylist() == loaded.predict(asked, LABELS, THRESHOLD)
    assert failed(out).keys() == {f"a.parquet[{i}]" for i in range(9, 50, 10)}
    assert pq.ParquetFile(out / "part-00000-000000.parquet").metadata.row_group(0).column(0).compression == "GZIP"


def test_parquet_as_json_lines(job, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    table = parquet_table(count=5).drop_columns(["when"])
    pq.write_table(table, tmp_path / "a.parquet")
    written = json_lines(job("--input", "a.parquet", "--format", "jsonl") / "part-00000-000000.jsonl")
    assert [{k: v for k, v in row.items() if k != "entities"} for row in written] == table.to_pylist()


def test_csv_and_text_as_parquet(job, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    (tmp_path / "a.csv").write_text("n,text\n1,Ada\n2\n3,London\n")
    (tmp_path / "b.txt").write_text("Ada\n")
    out = job("--input", "a.csv", "b.txt", "--format", "parquet")
    rows = pq.read_table(out / "part-00000-000000.parquet").to_pylist()
    assert [(row["n"], row["text"]) for row in rows] == [("1", "Ada"), ("3", "London")]
    assert failed(out) == {"a.csv:3": "expected 2 fields, as the header has, got 1"}
    assert pq.read_table(out / "part-00001-000000.parquet").schema.names == ["text", "entities"]


def test_bad_parquet_files(job, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    import pyarrow as pa

    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="a.parquet: expected a Parquet file, got another or a damaged one"):
        job("--input", "a.parquet")
    for columns, message in (
        ({"txt": ["a"]}, 'expected one column "text"'),
        ({"text": [1]}, 'expected strings in the column "text", got int64'),
        ({"text": [["a"]]}, "expected strings in the column"),
        ({"text": ["a"], "entities": [1]}, 'expected no column "entities"'),
    ):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=message):
            job("--input", "a.parquet")
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"])}), tmp_path / "a.parquet")
    assert "got the byte 0xff" in failed(job("--input", "a.parquet"))["a.parquet[1]"]

    values = [f"Ada met {i} in London" for i in range(4000)]
    pq.write_table(pa.table({"text": values}), tmp_path / "b.parquet", row_group_size=1000, use_dictionary=False)
    data = (tmp_path / "b.parquet").read_bytes()
    middle = len(data) // 2
    (tmp_path / "b.parquet").write_bytes(data[:middle] + b"x" * 2000 + data[middle + 2000 :])
    out = job("--input", "b.parquet", "--shard-rows", 500, output="damaged")
    (reason,) = failed(out).values()
    assert "the rest of the file was not read: b.parquet: expected a whole Parquet file, got damaged data" in reason
    kept = [row["text"] for part in sorted(out.glob("part-*")) for row in pq.read_table(part).to_pylist()]
    assert kept == values[: len(kept)] and len(kept) % 1000 == 0


# --- CSV records -------------------------------------------------------------------------------------------------


def records(text, delimiter=","):
    return list(read_records(read_lines(io.BytesIO(text.encode()), "x", keep_ends=True), delimiter))


@pytest.mark.parametrize(
    "text",
    [
        'a,b\n"1\n2",3\n', 'a"b,c\n', ',\n"",""\n', '"a""b"\r\n"c\r\rd",\r\n', 'x\n\n"\n"\n', '"a,b","c\n","d""\n""",e',
    ],
)  # fmt: skip
def test_records_as_the_standard_library_reads_them(text):
    found = records(text)
    assert [record.fields for record in found] == [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    assert "".join(record.text + record.end for record in found) == text.replace("x\n\n", "x\n")


def test_a_quote_that_is_not_closed_is_one_bad_record():
    found = records('a,"b\nc,d\n"e",f\n')
    assert [(record.number, record.fields) for record in found[1:]] == [(2, ["c", "d"]), (3, ["e", "f"])]
    assert "expected a quote that closes" in found[0].fault
    (bad,) = records('"a"b,c\n')
    assert bad.fault == "expected ',' or the line's end after a closing quote, got 'b,c'"


def test_quoted():
    for value in ("a", "a,b", 'a"b', "a\nb", "", "a\rb"):
        assert next(csv.reader(io.StringIO(quoted(value, ",") + ",", newline="")))[0] == value


# --- rows that fail ----------------------------------------------------------------------------------------------

BAD = [
    b'{"text": "Ada"}', b"{", b'{"text": null}', b'{"txt": "a"}', b'{"text": "\\ud800"}', b'{"text": "a", "v": NaN}',
    b'{"text": "\xff"}', b'{"text": "a\0"}', b"[1]", b'{"text": "a", "entities": []}', b'{"text": "London"}',
    b'{"text": "a", "text": "b"}',
]  # fmt: skip


def test_bad_rows_are_listed_with_their_places(job, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(BAD))
    out = job("--input", "a.jsonl", "--shard-rows", 4)
    reasons = failed(out)
    assert list(reasons) == [f"a.jsonl:{i}" for i in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12)]
    for line, reason in (
        (2, "expected one JSON object a line"), (3, 'a string "text"'), (5, "half of a surrogate pair"),
        (6, "got NaN or Infinity"), (7, "got the byte 0xff"), (8, "NUL byte"), (10, 'the output field "entities"'),
        (12, "occurs twice"),
    ):  # fmt: skip
        assert reason in reasons[f"a.jsonl:{line}"]
    kept = [row["text"] for part in sorted(out.glob("part-*")) for row in json_lines(part)]
    assert kept == ["Ada", "London"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["errors"], summary["shards"]) == (12, 10, 3)


def test_max_errors_stops_a_job_that_can_go_on(job, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(BAD * 200))
    whole = job("--input", "a.jsonl", "--shard-rows", 1000, "--max-errors", 5000, output="whole")
    with pytest.raises(
        ValueError, match=r"--max-errors: expected at most 30 .* got \d+; the last: a\.jsonl:\d+: .*see"
    ):
        job("--input", "a.jsonl", "--shard-rows", 1000, "--max-errors", 30)
    out = tmp_path / "out"
    assert len(failed(out)) > 30 and not list(out.glob("part-*")) and not list(out.glob("*.partial"))
    assert (whole / "errors.jsonl").read_bytes().startswith((out / "errors.jsonl").read_bytes())
    job("--input", "a.jsonl", "--shard-rows", 1000, "--max-errors", 5000)
    assert files_of(out) == files_of(whole)
    with pytest.raises(ValueError, match="--max-errors: expected at most 30"):
        (tmp_path / "b").mkdir()
        job("--input", "a.jsonl", "--shard-rows", 10, "--max-errors", 30, output="b")
    job("--input", "a.jsonl", "--shard-rows", 10, "--max-errors", 2000, output="b")


def test_texts_that_are_too_long_fail_alone(job, loaded, tmp_path):
    long = " ".join(WORDS * 30)
    values = [long if i in (0, 3, 4, 300, 599) else text for i, text in enumerate(texts(600))]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in values])
    out = job("--input", "a.jsonl", "--long-texts", "error", "--shard-rows", 250)
    assert list(failed(out)) == [f"a.jsonl:{i}" for i in (1, 4, 5, 301, 600)]
    assert all(reason.startswith("expected at most") for reason in failed(out).values())
    rows = [row for part in sorted(out.glob("part-*")) for row in json_lines(part)]
    kept = [text for text in values if text != long]
    assert [row["text"] for row in rows] == kept
    assert [row["entities"] for row in rows] == loaded.predict(kept, LABELS, THRESHOLD)


def test_a_text_that_does_not_fit_the_memory_fails_alone():
    def predict(stream):
        for text in stream:
            if text == "huge":
                raise TextDoesNotFitError("a text does not fit the memory")
            if text == "bug":
                raise RuntimeError("a bug")
            yield Entities([{"label": text}])

    def blocks(*values):
        for i, text in enumerate(values):
            row = Row(f"x:{i}", text) if text is not None else Row(f"x:{i}", fault="no text")
            yield Block(Shard(0, i // 2), [row], 0, i % 2 == 1, False)

    found = [done.answers[0] for done in answered(predict, blocks("a", None, "huge", "huge", "b"), is_of_text)]
    assert found == [[{"label": "a"}], "no text", *["a text does not fit the memory"] * 2, [{"label": "b"}]]
    with pytest.raises(RuntimeError, match="a bug"):
        list(answered(predict, blocks("a", "bug"), is_of_text))


def test_one_prediction_runs_over_all_shards_and_files(job, loaded, tmp_path, monkeypatch):
    calls = []
    predict = type(loaded).predict
    monkeypatch.setattr(
        type(loaded), "predict", lambda self, *args, **kwargs: calls.append(1) or predict(self, *args, **kwargs)
    )
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts(50)])
    job("--input", "*.jsonl", "--shard-rows", 7)
    assert len(calls) == 2  # one without texts, which checks the labels


def test_damaged_compressed_files_end_early_and_the_job_goes_on(job, tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(3000)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0)[:-300])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "Ada"}])
    out = job("--input", "a.jsonl.gz", "b.jsonl")
    (reason,) = failed(out).values()
    assert "the rest of the file was not read" in reason and "the gzip data end early" in reason
    assert json.loads((out / "summary.json").read_text())["rows"] > 1000
    assert len(json_lines(out / "part-00001-000000.jsonl")) == 1
    (tmp_path / "c.jsonl").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="c.jsonl: expected text, got a zip archive"):
        job("--input", "c.jsonl", output="other")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_line_of_megabytes(job, tmp_path, name):
    long = "x" * (1_000_000 if name == "a.txt" else 10_000_000)  # the tokenizer takes half a minute for ten million
    content = {"a.jsonl": json.dumps({"text": "Ada", "more": long}), "a.csv": f'text,more\nAda,"{long}"', "a.txt": long}
    (tmp_path / name).write_text(content[name] + "\n")
    out = job("--input", name)
    (part,) = out.glob("part-*")
    assert part.stat().st_size > len(long) and failed(out) == {}


def test_files_without_rows(job, tmp_path):
    for name, content in (("a.jsonl", ""), ("b.csv", "text,n\n"), ("c.csv", ""), ("d.json", "[]"), ("e.txt", "")):
        (tmp_path / name).write_text(content)
    out = job("--input", "*.*")
    assert json.loads((out / "summary.json").read_text())["rows"] == 0
    assert [path.read_text() for path in sorted(out.glob("part-*"))] == ["", "text,n,entities\n", "", "", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("txt,n\na,1\n", 'a.csv:1: expected a header with one column "text"'),
        ("text,text\na,1\n", "expected a header with one column"),
        ("text,entities\na,1\n", 'expected a header without the output column "entities"'),
        ('text,"n\na,1\n', "a.csv:1: expected a quote that closes"),
    ],
)
def test_bad_headers(job, tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        job("--input", "a.csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.jsonl", ["--format", "csv"], "--format: expected jsonl for a.jsonl, got csv"),
        ("a.jsonl", ["--format", "parquet"], "--format: expected jsonl for a.jsonl, got parquet"),
        ("a.xlsx", [], "--input: expected a name ending with one of .jsonl"),
        ("a.jsonl", ["--result-field", "text"], "--result-field: expected a name other than text"),
        ("a.jsonl", ["--text-field", " "], "--text-field: expected text, got an empty string"),
        ("a.jsonl", ["--input", "b.jsonl"], "--input: expected one flag with all its values"),
        ("a.jsonl", ["--threshold", "nobody=0.5"], "threshold"),
    ],
)
def test_bad_settings(job, tmp_path, name, options, message):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=message):
        job("--input", name, *options)
    assert not (tmp_path / "out").exists()


# --- inputs ------------------------------------------------------------------------------------------------------


def test_inputs_are_found_once_and_in_order(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("b/z.jsonl", "b/a.jsonl", "a.jsonl", ".hidden.jsonl", "b/.h/x.jsonl", "x[1].jsonl", "out/own.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.link("a.jsonl", "b/same.jsonl")
    os.symlink("../a.jsonl", "b/link.jsonl")
    os.symlink("b", "linked")
    for name in ("part-00000-000000.jsonl", "manifest.jsonl", "errors.jsonl"):
        (tmp_path / "out" / name).write_text("{}")
    found = [file.path for file in find_inputs(["x[1].jsonl", "**/*.jsonl"], tmp_path / "out")]
    assert found == ["x[1].jsonl", "a.jsonl", "b/a.jsonl", "b/z.jsonl", "out/own.jsonl"]
    assert "left out" in caplog.text
    assert [file.path for file in find_inputs(["b/.h/*", ".hidden.jsonl"], tmp_path)] == [
        "b/.h/x.jsonl",
        ".hidden.jsonl",
    ]


def test_inputs_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-00000-000000.jsonl").write_text("{}")
    os.mkfifo("pipe.jsonl")
    os.symlink("nowhere", "broken.jsonl")
    for pattern, kind, message in (
        ("*.csv", FileNotFoundError, r"at least one file, got none for \*\.csv"),
        ("out/*", FileNotFoundError, "got none but 1 files of the job's own output"),
        ("out", ValueError, "expected files, got the folder out; write out/"),
        ("pipe.jsonl", ValueError, "a pipe or a device"),
        ("-", ValueError, "expected files, which a job can read again, got -"),
        ("nowhere.jsonl", FileNotFoundError, "nowhere.jsonl"),
        ("broken.jsonl", FileNotFoundError, "broken.jsonl"),
        (" ", ValueError, "--input: expected a path"),
    ):
        with pytest.raises(kind, match=message):
            find_inputs([pattern], out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_refused_at_once(job, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(PermissionError):
        job("--input", "a.jsonl")


def test_a_file_that_changes_during_the_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "Ada"}] * 10)
    config = parse_job_config(["m", "--input", "a.jsonl", "--output", "out"])
    sources = open_sources(find_inputs(config.input, tmp_path / "out"), config)
    blocks = blocks_from(sources, Shard(0, 0), 5)
    next(blocks)
    write_jsonl(tmp_path / "new.jsonl", [{"text": "other"}] * 10)
    os.replace("new.jsonl", "a.jsonl")
    with pytest.raises(ValueError, match="a.jsonl: expected the file that the job began with"):
        next(blocks)
    with pytest.raises(ValueError, match="expected the file that the job began with"):
        next(blocks_from(sources, Shard(0, 0), 5))


# --- going on ----------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    """Three files, with a bad row in each shard of the first."""
    lines = [json.dumps({"text": text, "i": i}) if i % 9 else "{" for i, text in enumerate(texts(60))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.csv").write_text("text\n" + "\n".join(texts(25)) + "\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("\n".join(texts(30)).encode(), mtime=0))
    return ["--input", "a.jsonl", "b.csv", "c.txt.gz", "--shard-rows", 10]


def test_a_finished_job_is_left_alone(job, corpus):
    out = job(*corpus)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    job(*corpus, "--max-errors", "7")
    assert "the job is finished, nothing to do" in job.said
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_it_goes_on_from_any_state_of_the_manifest(job, corpus, tmp_path):
    """Whatever part of the manifest reached the disk, the same files come out."""
    whole = files_of(job(*corpus, output="whole"))
    manifest = whole["manifest.jsonl"]
    ends = [i + 1 for i, byte in enumerate(manifest) if byte == 10]
    for cut in (0, 1, 40, ends[0] - 1, ends[0], ends[0] + 5, ends[2], ends[5] - 1, ends[-2], len(manifest) - 1):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", out)
        (out / "manifest.jsonl").write_bytes(manifest[:cut])
        (out / "summary.json").unlink()
        if cut < ends[0]:  # nothing was written then
            for path in out.glob("[!m]*"):
                path.unlink()
        (out / ".part-00001-000000.csv.0123abcd.partial").write_bytes(b"half")
        if cut < ends[0]:
            (out / ".part-00001-000000.csv.0123abcd.partial").unlink()
        job(*corpus)
        assert files_of(out) == whole, cut


def test_an_error_leaves_finished_shards_and_nothing_else(job, corpus, loaded, tmp_path, monkeypatch):
    whole = files_of(job(*corpus, output="whole"))
    predict = type(loaded).predict

    def breaks(self, stream, *args, **kwargs):
        def some():
            for i, text in enumerate(stream):
                if i == 70:
                    raise MemoryError("at the 70th text")
                yield text

        return predict(self, some(), *args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(type(loaded), "predict", breaks)
        with pytest.raises(MemoryError):
            job(*corpus)
    out = tmp_path / "out"
    assert not list(out.glob(".*")) and len(list(out.glob("part-*"))) >= 6
    assert all(
        whole[name].startswith(data) if name[0] in "em" else whole[name] == data for name, data in files_of(out).items()
    )
    job(*corpus)
    assert files_of(out) == whole


def test_a_file_that_may_not_grow_stops_the_job_with_one_line(job, corpus, tmp_path):
    """In place of a full disk: no file may be longer than 3,000 bytes."""
    whole = files_of(job(*corpus, output="whole"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            job(*corpus)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "out" in str(raised.value.filename)
    job(*corpus)
    assert files_of(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--labels", "city"], "its labels was"),
        (["--threshold", "0.6", "--threshold", "person=0.3"], "threshold"),
        (["--no-flat"], "its flat was True, and is False now"),
        (["--top-k", "1"], "its top_k was None, and is 1 now"),
        (["--window", "9"], "its window was None, and is 9 now"),
        (["--result-field", "x"], "its result_field was 'entities', and is 'x' now"),
        (["--compress", "gzip"], "its compress was 'same', and is 'gzip' now"),
    ],
)
def test_another_command_is_refused(job, corpus, tmp_path, options, difference):
    out = job(*corpus)
    before = files_of(out)
    with pytest.raises(ValueError, match=difference):
        job(*corpus, *options)
    assert files_of(out) == before


def test_other_inputs_or_another_model_are_refused(job, corpus, loaded, tmp_path, monkeypatch):
    out = job(*corpus)
    before = files_of(out)
    for arguments, difference in (
        (["--input", "a.jsonl", "b.csv", *corpus[4:]], "it had 3 input files, and has fewer now, 2: c.txt.gz"),
        (["--input", "b.csv", "a.jsonl", *corpus[3:]], "an input was a.jsonl, and is b.csv now"),
        ([*corpus[:-1], 11], "its shard_rows was 10, and is 11 now"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another job: {difference}; name another --output"):
            job(*arguments)
    os.utime("b.csv", ns=(1, 1))
    with pytest.raises(ValueError, match="the input b.csv has changed since"):
        job(*corpus)
    monkeypatch.setattr(type(loaded), "weights_fingerprint", "of other weights")
    with pytest.raises(ValueError, match="its weights was"):
        job(*corpus)
    assert files_of(out) == before


def test_one_job_at_a_time(job, corpus, tmp_path):
    with OutputFolder(tmp_path / "out"):
        with pytest.raises(BlockingIOError, match="another job is at work in this output folder"):
            job(*corpus)
    assert not (tmp_path / "out").exists()
    job(*corpus)


def test_files_of_others_stay(job, corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mine = {"notes.txt": b"mine", "part-1.jsonl": b"mine", ".part-x.partial": b"mine"}
    for name, content in mine.items():
        (out / name).write_bytes(content)
    job(*corpus)
    assert all((out / name).read_bytes() == content for name, content in mine.items())
    other = tmp_path / "other"
    other.mkdir()
    for name in ("errors.jsonl", "part-00007-000000.csv"):
        (other / name).write_text("mine")
        with pytest.raises(ValueError, match=f"--output: expected a folder without {name}"):
            job(*corpus, output="other")
        assert [path.name for path in other.iterdir()] == [name]
        (other / name).unlink()
    (other / "manifest.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(ValueError, match="manifest.jsonl: expected the manifest of a job"):
        job(*corpus, output="other")
    assert (other / "manifest.jsonl").read_text() == '{"mine": 1}\n'


def test_what_the_manifest_lists_must_be_there(job, corpus, tmp_path):
    out = job(*corpus)
    (out / "part-00000-000001.jsonl").write_text("short")
    with pytest.raises(
        ValueError, match=r"000001.jsonl: expected the finished shard of \d+ bytes .* got one of 5 bytes"
    ):
        job(*corpus)
    (out / "part-00000-000001.jsonl").unlink()
    with pytest.raises(ValueError, match="got none; put it back"):
        job(*corpus)
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(b"".join([*lines[:2], b"{half\n", *lines[2:]]))
    with pytest.raises(ValueError, match="manifest.jsonl:3: expected a line of a job"):
        job(*corpus)


def test_the_output_may_lie_among_the_inputs(job, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "Ada"}] * 5)
    arguments = ["--input", "**/*.jsonl", "--shard-rows", 2]
    out = job(*arguments, output="./out")
    (out / "summary.json").unlink()
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(b"".join(lines[:2]))
    job(*arguments, output="./out")
    assert json.loads((out / "summary.json").read_text())["inputs"] == ["a.jsonl"]


def test_lists_of_another_job_are_no_inputs(job, corpus, tmp_path):
    job(*corpus)
    with pytest.raises(ValueError, match=r"--input: expected texts, got out/errors.jsonl, which another job wrote"):
        job("--input", "out/*.jsonl", output="other")
    job("--input", "out/part-*.jsonl", "--result-field", "again", output="other")


# --- progress ----------------------------------------------------------------------------------------------------


def test_progress_in_the_log(caplog):
    now = [0.0]
    caplog.set_level("INFO")
    with Progress(100, 1100, lambda: now[0]) as progress:
        progress.add(10, 100, 110)
        assert caplog.messages == []
        now[0] = LOG_SECONDS
        progress.add(20, 200, 200)
        now[0] += 1
        progress.add(1, 1, 201)
    assert caplog.messages == ["18.2 %, 30 rows, 0.5 rows/s, 5 words/s, 0:09:00 left"]


def test_progress_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(0, 1000, itertools.count().__next__) as progress:
        progress.add(500, 5000, 500)
    assert "500 rows" in screen.getvalue() and "left" in screen.getvalue()


@pytest.mark.parametrize("option", ["--shard-rows", "--ray-workers", "--ray-threads"])
def test_numbers_of_the_command_line(capsys, option):
    with pytest.raises(SystemExit):
        parse_job_config(["m", "--input", "a", "--output", "b", option, "0"])
    name = option.strip("-").replace("-", "_")
    assert f"{name}: expected a whole number >= 1, got 0" in capsys.readouterr().err


def test_command_line_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--shard-rows" in capsys.readouterr().out
