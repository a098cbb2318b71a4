"""The plots of bench_peers.py: bars of all sides' seconds, and time against length. Needs matplotlib (extra plots)."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402
from peer_report import fit_lengths  # noqa: E402
from plots import plain_numbers  # noqa: E402

TITLES = {
    "modernbert": "ModernBERT-base, d 768",
    "minilm": "MiniLM-L6, d 512",
    "deberta-small": "DeBERTa-v3-small, d 512",
    "deberta-base": "DeBERTa-v3-base, d 512",
}
SIDES = {"ours": "glimodern", "gliner": "gliner", "gliner onnx": "gliner, ONNX", "fast_gliner": "fast_gliner"}
DTYPES = ("fp32", "bf16", "int8")
# The blue of https://jfly.uni-koeln.de/color/, a palette for colour-blind readers, and a grey.
OURS, PEER = "#0072B2", "#999999"


class Bar(NamedTuple):
    """Median seconds of a side in one dtype, at its fastest batch size. ratio: to ours; None if ours did not run."""

    side: str
    seconds: float
    ratio: float | None

    @property
    def label(self) -> str:
        seconds = f"{self.seconds:.2f} s" if self.seconds < 10 else f"{self.seconds:.1f} s"
        return seconds if self.side == "ours" or self.ratio is None else f"{seconds} ({self.ratio:.1f} ×)"


def bars(model: Mapping[str, Any], dtype: str) -> list[Bar]:
    """Build the bars of a model's panel, ours first."""
    timed = {side: model["rows"].get(f"{side} {dtype}") for side in SIDES}
    seconds = {side: min(map(median, row["batches"].values())) for side, row in timed.items() if row is not None}
    ours = seconds.get("ours")
    return [Bar(side, value, None if ours is None else value / ours) for side, value in seconds.items()]


def bar_chart(results: Mapping[str, Any], file: Path) -> None:
    """Plot the seconds of every side: a row of panels per model, on one scale from zero, and a column per dtype."""
    models = {name: model for name, model in results["models"].items() if model["rows"]}
    dtypes = [dtype for dtype in DTYPES if any(bars(model, dtype) for model in models.values())]
    panels = {(name, dtype): bars(model, dtype) for name, model in models.items() for dtype in dtypes}
    sides = [side for side in SIDES if any(bar.side == side for panel in panels.values() for bar in panel)]
    size = (1.2 + 2.6 * len(dtypes), 1.2 + (0.7 + 0.28 * len(sides)) * len(models))
    figure, grid = plt.subplots(
        len(models), len(dtypes), figsize=size, squeeze=False, sharex="row", sharey=True, layout="constrained",
        facecolor="white",
    )  # fmt: skip
    for row, name in zip(grid, models, strict=True):
        for axes, dtype in zip(row, dtypes, strict=True):
            panel = panels[name, dtype]
            places = [sides.index(bar.side) for bar in panel]
            colours = [OURS if bar.side == "ours" else PEER for bar in panel]
            drawn = axes.barh(places, [bar.seconds for bar in panel], color=colours, height=0.72)
            axes.bar_label(drawn, [bar.label for bar in panel], padding=3, fontsize=9)
            for place in set(range(len(sides))) - set(places):
                axes.text(0, place, "  not run", va="center", fontsize=9, color="#666666")
            axes.set_title(f"{TITLES.get(name, name)}: {dtype}", fontsize=10, loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(plain_numbers)
            axes.tick_params(labelsize=9)
            axes.tick_params(axis="y", length=0)
            axes.spines[["top", "right"]].set_visible(False)
        longest = max(bar.seconds for dtype in dtypes for bar in panels[name, dtype])
        row[0].set_xlim(0, 1.6 * longest)  # room for the longest bar's label
    grid[0][0].set_yticks(range(len(sides)), [SIDES[side] for side in sides])
    grid[0][0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("seconds, shorter is faster", fontsize=9)
    explained = "in brackets: times glimodern's seconds; peers at their faster batch size"
    figure.suptitle(f"{results['texts']}; {results['session']['machine']}\n{explained}", fontsize=9)
    _save(figure, file)


def length_plot(results: Mapping[str, Any], file: Path) -> None:
    """Plot seconds against tokens, with the fitted linear part and the quadratic part of the global layers above it."""
    seconds = {int(tokens): value for tokens, value in results["lengths"].items()}
    fit, longest = fit_lengths(seconds), max(seconds)
    figure, axes = plt.subplots(figsize=(7.5, 5.0))
    points = [longest * i / 100 for i in range(1, 101)]
    line = [fit.linear * n for n in points]
    whole = [fit.linear * n + fit.quadratic * n * n for n in points]
    axes.plot(points, line, "--", color="black", linewidth=1, label="linear part: products, window layers, norms")
    share = f"global layers' share: {fit.share(longest):.0%} at {longest:,}"
    axes.fill_between(points, line, whole, alpha=0.2, label=share)
    axes.plot(points, whole, color=OURS, linewidth=1)
    axes.plot(list(seconds), list(seconds.values()), "o", color=OURS, label=f"ours, {results['lengths_dtype']}")
    long = results.get("long", {}).get("modernbert", {"seconds": {}})
    peers = {row: median(values) for row, values in long["seconds"].items() if not row.startswith("ours")}
    for marker, (row, value) in zip("s^Dv", peers.items(), strict=False):
        axes.plot([long["tokens"]], [value], marker, color=PEER, label=f"{row}, {value:.3g} s")
    axes.xaxis.set_major_formatter(plain_numbers)
    axes.set_xlabel("tokens of one text")
    axes.set_ylabel("seconds (median)")
    axes.set_title(f"ModernBERT-base's encoder alone\n{results['session']['machine']}", fontsize=9)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, bbox_inches="tight")
    plt.close(figure)
