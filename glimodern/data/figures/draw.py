"""Figures of the numbers of `figures.json`. They need matplotlib (extra plots), which drawing imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimodern.display import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From https://jfly.uni-koeln.de/color/, a palette for colour-blind readers.
_EXACT, _FOLDED, _FAMILIAR, _OTHER = "#0072B2", "#56B4E9", "#009E73", "#999999"
_DPI = 120
# Equal numbers give equal files: SVG has ids from this salt in place of random ones, and no date.
_STYLE: Any = {"svg.hashsalt": "glimodern", "font.size": 9, "axes.titlesize": 9}

Row = tuple[str, bool, Mapping[str, Any]]
"""Name, whether it is a whole set (else a group of one), and its numbers."""


def check_matplotlib() -> None:
    """Raise ImportError, with the remedy, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "figures: expected the package matplotlib, got none; pip install 'glimodern[plots]'"
        ) from error


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """Draw lengths.png, lengths.svg, overlap.png and overlap.svg into a folder. report: see `make_report`."""
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.style import context

    with context("default"), rc_context(_STYLE):
        for name, figure in (("lengths", draw_lengths(report)), ("overlap", draw_overlap(report))):
            figure.savefig(folder / f"{name}.png", dpi=_DPI)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _rows(sets: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the rows of sets, each followed by those of its groups."""
    return [
        row
        for one in sets
        for row in ((one["name"], True, one), *((group["name"], False, group) for group in one["groups"]))
    ]


def _panels(rows: Sequence[Row], count: int) -> tuple[Figure, list[Axes]]:
    """Build a figure of `count` panels side by side with one line a row, named at the left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 1.1 + 0.27 * len(rows)), layout="constrained")
    axes = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    axes[0].set_yticks(range(len(rows)), [printable(name) for name, _, _ in rows], parse_math=False)
    for text, (_, whole, _) in zip(axes[0].get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if whole else "normal")
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    return figure, axes


def draw_lengths(report: Mapping[str, Any]) -> Figure:
    """Draw the distribution of sentence lengths of every data set: middle half, 5 % to 95 %, median and maximum."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = _rows([*report["train"], *report["eval"]])
    trained = len(_rows(report["train"]))
    figure, (axis,) = _panels(rows, 1)
    axis.set_xscale("log")
    for y, (_, whole, numbers) in enumerate(rows):
        lengths = numbers["lengths"]
        if "median" not in lengths:
            continue
        colour = _EXACT if y < trained else _FAMILIAR
        axis.hlines(y, lengths["q05"], lengths["q95"], color=colour, linewidth=1.2)
        width = lengths["q75"] - lengths["q25"]
        axis.barh(y, width, left=lengths["q25"], height=0.55, color=colour, alpha=1.0 if whole else 0.55)
        axis.plot([lengths["median"]] * 2, [y - 0.33, y + 0.33], color="black", linewidth=1.5)
        axis.plot(lengths["most"], y, marker="o", markersize=3, color=_OTHER)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    axis.set_axisbelow(True)
    axis.set_xlabel("words of a sentence: line 5 % to 95 %, box the middle half, stroke the median, dot the longest")
    axis.set_title("blue: training, green: evaluation; bold: a whole data set")
    return figure


def draw_overlap(report: Mapping[str, Any]) -> Figure:
    """Draw what of each evaluation set occurs in training: entities, types, and the familiarity of its labels."""
    rows = _rows(report["eval"])
    figure, (entities, types, familiar) = _panels(rows, 3)
    for axis, key, title in (
        (entities, "entities", "entities in training, %"),
        (types, "types", "types in training, %"),
    ):
        for shift, name, colour in ((-0.19, "exact", _EXACT), (0.19, "folded", _FOLDED)):
            shares = [numbers["overlap"][key][f"share_{name}"] for _, _, numbers in rows]
            drawn = [(y + shift, 100 * share) for y, share in enumerate(shares) if share is not None]
            label = "as written" if name == "exact" else "case-folded"
            bars = axis.barh([y for y, _ in drawn], [share for _, share in drawn], 0.36, color=colour, label=label)
            axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axis.set_title(title)
        axis.set_xlim(0, 112)
        axis.set_xticks(range(0, 101, 25))
    drawn = [
        (y, numbers["familiarity"]) for y, (_, _, numbers) in enumerate(rows) if numbers["familiarity"] is not None
    ]
    bars = familiar.barh([y for y, _ in drawn], [value for _, value in drawn], 0.6, color=_FAMILIAR)
    familiar.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    familiar.set_title("familiarity of labels")
    familiar.set_xlabel(f"by {printable(report['similarity'])}", fontsize=7, parse_math=False)
    familiar.set_xlim(0, 1.12)
    familiar.set_xticks((0, 0.25, 0.5, 0.75, 1))
    figure.legend(*entities.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
