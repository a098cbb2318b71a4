"""Tables and plots of the benchmarks' JSON.

    pytest bench --benchmark-only --benchmark-json=runs/bench.json
    python bench/report.py runs/bench.json [MORE.json ...] [--plots DIR] [--markdown docs/PERFORMANCE.md]

Prints the goals, one table per operator, and the sides that did not run. Writes PNGs (extra plots) to --plots, by
default a folder with the JSON's name: span_scores-words.png, -types.png, -K.png (time of each side) and roofline.png
(GFLOP/s against FLOP/byte under the ceilings measured in the run). --markdown writes the same tables to a file that has
a chapter for each kind of machine, in place of this kind's earlier chapter. All figures are from the JSON; nothing is
measured here.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]  # extra_info of a bench (bench/conftest.py)
Cells = list[list[str]]

EXPLANATION = """\
Milliseconds are medians of one call, with all sides of a comparison timed in turns. "/ ours" is the ratio to our time.
GFLOP/s and GB/s are those of the operator's minimum work (bench/roofline.py: matrix products if it has any, each
operand moved once) for all sides. "ceiling" is the minimum time divided by the measured one, where the minimum follows
from the rates of FMAs on registers (on a GPU: of a GEMM) and of a large copy, measured in the same run; operands that
stay in caches can exceed 100 %. MiB: peak memory of a call beyond the memory in use before. error: RMS of the
difference from the fp64 reference divided by the reference's RMS, of the worst output or gradient. Sides: "compiled" is
torch.compile of the eager reference, "stored hidden" the fold in plain PyTorch with its hidden tensor in memory
(https://github.com/fastino-ai/GLiNER2/pull/143), "gliner" the public package's layers."""
SIDES = ("case", "direction", "dtype", "side", "ms", "/ ours", "GFLOP/s", "GB/s", "ceiling", "MiB", "error")
WANTED = ("case", "direction", "measure", "expected", "measured", "reached")
DISTURBED_CORES = 0.1
TEXT_COLUMNS = ("case", "direction", "dtype", "side", "measure", "reached")


def load(files: Iterable[Path]) -> tuple[list[Row], list[Row]]:
    """Read pytest-benchmark's JSON files. Returns (rows, whole documents)."""
    documents = [json.loads(file.read_text()) for file in files]
    rows = [bench["extra_info"] for document in documents for bench in document["benchmarks"] if bench["extra_info"]]
    if not rows:
        raise SystemExit("files: expected benchmarks of this repository's fixture `compare`, got none")
    return rows, documents


def our_side(row: Row) -> Row:
    return next(side for side in row["sides"] if side["ours"])


def by_op(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    for op, group in groupby(sorted(rows, key=lambda row: row["op"]), key=lambda row: row["op"]):
        yield op, list(group)


def milliseconds(side: Row) -> str:
    value = 1e3 * side["median_seconds"]
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def side_cells(rows: Iterable[Row]) -> Cells:
    cells = []
    for row in rows:
        ours = our_side(row)["median_seconds"]
        for n, side in enumerate(row["sides"]):
            cells.append(
                [
                    *((row["case"], row["direction"], row["dtype"]) if n == 0 else ("", "", "")),
                    side["name"],
                    milliseconds(side),
                    "" if side["ours"] else f"{side['median_seconds'] / ours:.2f}",
                    f"{side['gflops']:.1f}",
                    f"{side['gbs']:.1f}",
                    f"{100 * side['share']:.0f} %",
                    "-" if side["peak_mib"] is None else f"{side['peak_mib']:,.0f}",
                    f"{side['error']:.1e}",
                ]
            )
    return cells


def sweep_tables(rows: Iterable[Row]) -> Iterator[tuple[str, list[str], Cells]]:
    """Yield (title, columns, cells) of each sweep: milliseconds of every side, one line per point."""

    def key(row: Row) -> tuple[str, str]:
        return row["op"], row["sweep"][0]

    for (op, axis), group in groupby(sorted((row for row in rows if row["sweep"]), key=key), key):
        points = sorted(group, key=lambda row: row["sweep"][1])
        columns = [axis, *(f"{side['name']}, ms" for side in points[0]["sides"]), "case"]
        cells = [
            [f"{row['sweep'][1]:,}", *(milliseconds(side) for side in row["sides"]), row["case"]] for row in points
        ]
        yield f"{op} against {axis}", columns, cells


def measured(row: Row, measure: str, side_name: str) -> float | None:
    """Compute a goal's measure: another side's time or memory divided by ours, or our share of the ceiling."""
    ours = our_side(row)
    if measure == "share":
        return ours["share"]
    other = next((side for side in row["sides"] if side["name"] == side_name), None)
    field = {"time": "median_seconds", "memory": "peak_mib"}[measure]
    if other is None or not other[field] or not ours[field]:
        return None
    return other[field] / ours[field]


def wanted_cells(rows: Iterable[Row]) -> Cells:
    cells = []
    for row in rows:
        for goal in row["expected"]:
            value = measured(row, goal["measure"], goal["side"])
            share = goal["measure"] == "share"
            what = "share of the ceiling" if share else f"{goal['measure']} of {goal['side']} / ours"
            shown = [f"{100 * x:.0f} %" if share else f"{x:.1f}" for x in (goal["at_least"], value or 0.0)]
            verdict = "not measured" if value is None else "yes" if value >= goal["at_least"] else "short"
            cells.append([f"{row['op']}, {row['case']}", row["direction"], what, *shown, verdict])
    return cells


def skipped_lines(rows: Iterable[Row]) -> list[str]:
    reasons: dict[tuple[str, str, str], int] = {}
    for row in rows:
        for name, why in row["skipped"].items():
            reasons[row["op"], name, why] = reasons.get((row["op"], name, why), 0) + 1
    return [f"{op}: {name} did not run in {count}: {why}" for (op, name, why), count in reasons.items()]


def disturbed_lines(rows: Iterable[Row]) -> list[str]:
    """List comparisons during which other processes ran, so that their figures are invalid."""
    return [
        f"DISTURBED: other processes kept {row['others_cores']:.1f} cores busy during {row['op']}, {row['case']},"
        f" {row['direction']}"
        for row in rows
        if row["others_cores"] > DISTURBED_CORES
    ]


def header_lines(rows: Sequence[Row], documents: Sequence[Row]) -> list[str]:
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [
        f"machine: {first['machine']}, {first['threads']} threads, device {first['device']}",
        f"commit {first['commit']}; {versions}",
    ]
    for document, row in zip(documents, (d["benchmarks"][0]["extra_info"] for d in documents), strict=True):
        measured = row["ceilings"]
        ceilings = f"GEMM {measured['gemm_gflops']:.0f} GFLOP/s, copy {measured['copy_gbs']:.1f} GB/s"
        if measured["fma_gflops"]:
            ceilings = f"FMA {measured['fma_gflops']:.0f} GFLOP/s, {ceilings}"
        lines.append(f"{document['datetime'][:16]} UTC, `{document['command']}`: {ceilings}")
    return lines + disturbed_lines(rows)


def tables(rows: list[Row]) -> Iterator[tuple[str, Sequence[str], Cells]]:
    """Yield (title, columns, cells) of every table of the report."""
    if goals := wanted_cells(rows):
        yield "Goals", WANTED, goals
    for op, group in by_op(row for row in rows if not row["sweep"]):
        yield op, SIDES, side_cells(group)
    yield from sweep_tables(rows)


def print_report(rows: list[Row], documents: list[Row]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    console.print("\n".join(header_lines(rows, documents)), soft_wrap=True)
    for title, columns, cells in tables(rows):
        table = Table(title=title, title_justify="left")
        for name in columns:
            table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
        for line in cells:
            table.add_row(*line)
        console.print(table)
    console.print("\n".join(skipped_lines(rows)), soft_wrap=True)


PREFACE = f"""\
# Performance

A chapter for each kind of machine, written by bench/report.py from a run's JSON
(`make bench REPORT_ARGS="--markdown docs/PERFORMANCE.md"`). Chapters are as old as their dates say.

{EXPLANATION}
"""


def chapter(rows: list[Row], documents: list[Row]) -> str:
    """The chapter of the run's kind of machine."""
    parts = [f"## {rows[0]['kind']}", "\n".join(f"- {line}" for line in header_lines(rows, documents))]
    for title, columns, cells in tables(rows):
        rule = ["---" if name in TEXT_COLUMNS else "--:" for name in columns]
        parts += [f"### {title}", "\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *cells))]
    if skipped := skipped_lines(rows):
        parts += ["### Not run", "\n".join(f"- {line}" for line in skipped)]
    return "\n\n".join(parts) + "\n"


def with_chapter(text: str, new: str) -> str:
    """Return a report with one chapter replaced or added; chapters are ordered by their titles."""
    chapters = {part.splitlines()[0]: f"## {part.rstrip()}\n" for part in text.split("\n## ")[1:]}
    chapters[new.splitlines()[0].removeprefix("## ")] = new
    return "\n".join([PREFACE, *(chapters[title] for title in sorted(chapters))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows, documents = load(options.files)
    print_report(rows, documents)
    try:
        from plots import write_plots
    except ImportError as error:
        print(f"no plots: {error}; install the extra plots")
    else:
        print("plots:", *write_plots(rows, options.plots or options.files[0].with_suffix("")))
    if options.markdown:
        earlier = options.markdown.read_text(encoding="utf-8") if options.markdown.exists() else ""
        options.markdown.write_text(with_chapter(earlier, chapter(rows, documents)), encoding="utf-8")


if __name__ == "__main__":
    main()
