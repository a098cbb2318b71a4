"""A small bench through the harness, and the report of its JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="needs the extra bench")

ROOT = Path(__file__).parents[1]


def run(*command: object) -> str:
    # pytest-benchmark times nothing where it sees a worker of pytest-xdist
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    started = [sys.executable, *map(str, command)]
    answer = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The JSON of one point of a sweep."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    limits = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=3")
    bench = ("bench/bench_span_scores.py::bench_sweep[words-64]", "--benchmark-only", *limits)
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *bench, f"--benchmark-json={file}")
    return file


def test_rows_carry_every_side(results):
    (bench,) = json.loads(results.read_text())["benchmarks"]
    row = bench["extra_info"]
    sides = {side["name"]: side for side in row["sides"]}
    (ours,) = (side for side in row["sides"] if side["ours"])
    assert {ours["name"], "eager", "stored hidden"} == sides.keys()
    assert row["skipped"].keys() == {"compiled"}
    assert row["op"] == "span_scores" and row["sweep"] == ["words", 64]
    assert bench["stats"]["median"] == pytest.approx(ours["median_seconds"]) and bench["stats"]["rounds"] >= 3
    for side in sides.values():
        assert side["rounds"] == ours["rounds"]
        assert side["gflops"] > 0 and side["gbs"] > 0 and 0 < side["share"]
    assert sides["eager"]["peak_mib"] is None or sides["eager"]["peak_mib"] > 5  # x [64, 12, 3072] in fp32 is 9 MiB
    assert row.keys() >= {"shape", "dtype", "threads", "machine", "versions", "commit", "ceilings"}


def test_report(results, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    text, other = tmp_path / "PERFORMANCE.md", "## Another machine, 8 cores, family 6, avx2\n\n- of long ago\n"
    text.write_text(f"# Performance\n\nAn older preface.\n\n{other}")
    printed = run("bench/report.py", results, "--plots", tmp_path / "plots", "--markdown", text)
    assert "span_scores against words" in printed and "stored hidden" in printed
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["span_scores-words.png"]
    (line,) = (line for line in text.read_text().splitlines() if line.startswith("| 64 |"))
    assert line.count("|") == 6
    run("bench/report.py", results, "--plots", tmp_path / "plots", "--markdown", text)  # replaces the chapter
    first, *chapters = text.read_text().split("\n## ")
    assert first.startswith("# Performance") and "older" not in first
    assert [c.splitlines()[0] for c in chapters].count(
        json.loads(results.read_text())["benchmarks"][0]["extra_info"]["kind"]
    ) == 1
    assert [f"## {c}".rstrip() for c in chapters if c.startswith("Another")] == [other.rstrip()] and len(chapters) == 2
