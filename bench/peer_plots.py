"""The PNGs of bench_peers.py: seconds of every row as bars, time against length. Needs matplotlib (extra plots)."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402
from peer_report import fit_lengths  # noqa: E402
from plots import plain_numbers  # noqa: E402

TITLES = {"modernbert": "ModernBERT-base, d 768", "minilm": "MiniLM-L6, d 512"}
OURS, PEER = "tab:blue", "tab:gray"


def bar_chart(results: Mapping[str, Any], file: Path) -> None:
    """Median seconds of every row, its best batch size, a panel a model; ours coloured, logarithmic."""
    models = {name: model for name, model in results["models"].items() if model["rows"]}
    figure, panels = plt.subplots(1, len(models), figsize=(6.5 * len(models), 4.5), squeeze=False, layout="constrained")
    for axes, (name, model) in zip(panels[0], models.items(), strict=True):
        bars = []
        for row, timed in model["rows"].items():
            batch, seconds = min(timed["batches"].items(), key=lambda item: median(item[1]))
            label = row if batch == "0" else f"{row}, batch {batch}"
            bars.append((label if row != "ours auto" else f"ours auto ({timed['dtype']})", median(seconds)))
        bars.sort(key=lambda bar: -bar[1])
        colours = [OURS if label.startswith("ours") else PEER for label, _ in bars]
        drawn = axes.barh([label for label, _ in bars], [value for _, value in bars], color=colours)
        axes.bar_label(drawn, [f" {value:.3g} s" for _, value in bars], fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.xaxis.set_major_formatter(plain_numbers)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("seconds (median)")
        axes.set_title(TITLES.get(name, name), fontsize=10)
    figure.suptitle(f"{results['texts']}\n{results['session']['machine']}", fontsize=9)
    _save(figure, file)


def length_plot(results: Mapping[str, Any], file: Path) -> None:
    """Seconds against tokens, with the fitted line and the global layers' square above it."""
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
    for row, values in results.get("long", {}).items():
        if not row.startswith("ours"):
            axes.plot(
                [results["long_tokens"]], [median(values)], "s", color=PEER, label=f"{row}, {median(values):.3g} s"
            )
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
