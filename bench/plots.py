"""The plots of bench/report.py: time of each side against one size, and the roofline. Needs matplotlib."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator  # noqa: E402

Row = dict[str, Any]

SIZE = (7.5, 5.0)
DIRECTION_MARKERS = {"forward": "o", "backward": "v", "forward + backward": "s"}
plain_numbers = FuncFormatter(lambda value, _: f"{value:,.10g}")


def _colours(names: Sequence[str]) -> dict[str, Any]:
    return {name: plt.get_cmap("tab10")(n % 10) for n, name in enumerate(dict.fromkeys(names))}


def _save(axes: Axes, file: Path) -> Path:
    axes.grid(True, which="major", alpha=0.3)
    axes.figure.savefig(file, dpi=150, bbox_inches="tight")
    plt.close(axes.figure)
    return file


def sweep_plot(op: str, axis: str, rows: Sequence[Row], folder: Path) -> Path:
    """Plot milliseconds of each side against words, types or K, on logarithmic axes."""
    rows = sorted(rows, key=lambda row: row["sweep"][1])
    _, axes = plt.subplots(figsize=SIZE)
    names = [side["name"] for side in rows[0]["sides"]]
    for name, colour in _colours(names).items():
        points = [(row["sweep"][1], side) for row in rows for side in row["sides"] if side["name"] == name]
        milliseconds = [1e3 * side["median_seconds"] for _, side in points]
        line = 2.5 if points[0][1]["ours"] else 1.2
        axes.plot([at for at, _ in points], milliseconds, "o-", color=colour, linewidth=line, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row["sweep"][1] for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(plain_numbers)
    axes.yaxis.set_major_formatter(plain_numbers)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(axis)
    axes.set_ylabel("milliseconds (median)")
    first, last = rows[0]["case"], rows[-1]["case"]
    axes.set_title(f"{op} {rows[0]['direction']}, {rows[0]['dtype']}\nfrom {first}\nto {last}", fontsize=9)
    axes.legend()
    return _save(axes, folder / f"{op}-{axis}.png")


def roofline_plot(rows: Sequence[Row], folder: Path) -> Path:
    """Plot GFLOP/s of the minimum work against its FLOP/byte under the measured ceilings: ours filled, eager hollow."""
    _, axes = plt.subplots(figsize=(9.0, 5.5))
    intensities = [row["intensity"] for row in rows]
    left, right = min(*intensities, 1.0) / 2, max(*intensities, 10.0) * 2
    copy = rows[0]["ceilings"]["copy_gbs"]
    for gemm in sorted({row["ceilings"]["gemm_gflops"] for row in rows}):
        dtypes = ", ".join(sorted({row["dtype"] for row in rows if row["ceilings"]["gemm_gflops"] == gemm}))
        ridge = gemm / copy
        axes.plot([left, ridge, max(right, ridge)], [left * copy, gemm, gemm], color="black", linewidth=1)
        axes.text(right, gemm * 0.88, f"GEMM {gemm:,.0f} GFLOP/s ({dtypes})", ha="right", fontsize=8)
    if fma := rows[0]["ceilings"]["fma_gflops"]:
        axes.plot([fma / copy, max(right, fma / copy)], [fma, fma], color="black", linewidth=1, linestyle="--")
        axes.plot([left, fma / copy], [left * copy, fma], color="black", linewidth=1)
        axes.text(right, fma * 1.05, f"FMA {fma:,.0f} GFLOP/s", ha="right", fontsize=8)
    axes.text(left * 1.1, left * copy * 0.75, f"copy {copy:,.1f} GB/s", fontsize=8)
    colours = _colours([row["op"] for row in rows])
    labelled = set()
    for row in rows:
        for side in row["sides"]:
            if not side["ours"] and side["name"] != "eager":
                continue
            label = f"{row['op']} {row['direction']}"
            axes.plot(
                row["intensity"],
                side["gflops"],
                DIRECTION_MARKERS[row["direction"]],
                color=colours[row["op"]],
                markerfacecolor=None if side["ours"] else "none",
                label=label if side["ours"] and label not in labelled else None,
            )
            labelled.add(label)
    axes.plot([], [], "o", color="grey", markerfacecolor="none", label="the same in eager PyTorch")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.xaxis.set_major_formatter(plain_numbers)
    axes.yaxis.set_major_formatter(plain_numbers)
    axes.set_xlabel("FLOP/byte of the minimum work")
    axes.set_ylabel("GFLOP/s of the minimum work")
    axes.set_title(f"{rows[0]['machine']}, {rows[0]['threads']} threads", fontsize=9)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return _save(axes, folder / "roofline.png")


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write one plot per sweep, and the roofline of all other rows. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)

    def key(row: Row) -> tuple[str, str]:
        return row["op"], row["sweep"][0]

    swept = sorted((row for row in rows if row["sweep"]), key=key)
    files = [sweep_plot(*which, list(group), folder) for which, group in groupby(swept, key)]
    if others := [row for row in rows if not row["sweep"]]:
        files.append(roofline_plot(others, folder))
    return files
