"""Calibration of a model on annotated text: `python -m glimodern.calibrate MODEL --data SOURCE ...`.

Writes `calibration.json` into the model's folder, or into --output. Several data sets are joined; each sentence is
asked the labels that `glimodern.evaluate` asks of it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from glimodern import cli
from glimodern.checkpoint.calibration_file import write_calibration
from glimodern.cli.outputs import check_output_folder
from glimodern.data import Dataset, load_split, with_asked_types
from glimodern.data.calibration import Calibration
from glimodern.data.calibration_fit import UNCALIBRATED, Fit
from glimodern.display import cell, console, printable
from glimodern.files.atomic import atomic_file, user_path
from glimodern.settings import AT_LEAST_ONE, NOT_NEGATIVE, check_settings, refuse_repeated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

RELIABILITY_FILE, F1_FILE = "reliability.png", "f1.png"


@dataclass(frozen=True)
class CalibrateConfig:
    """Settings of `python -m glimodern.calibrate`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    data: tuple[str, ...]
    """Files, folders or hub data sets with gold entities, which the model was not trained on."""
    split: str | None = "dev"
    """Split to read from folders that have splits."""
    output: str | None = None
    """Folder to write calibration.json to; by default the model's own. It is created."""
    plots: str | None = None
    """Folder to write the plots reliability.png and f1.png to. It is created."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the parts of the cross-validation."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Dtype of the model; auto: bf16 on hardware that multiplies it natively, else fp32."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:N, auto, or another of PyTorch's names."""
    batch_tokens: Annotated[int, AT_LEAST_ONE] | Literal["auto"] = "auto"
    """Maximum tokens in a batch; auto: chosen for the device."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""

    def __post_init__(self) -> None:
        check_settings(self)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Return one data set with the sentences of all, each of which keeps the labels asked of it."""
    examples = [example for dataset in datasets for example in with_asked_types(dataset)]
    return Dataset(" + ".join(dataset.name for dataset in datasets), examples)


def table(calibration: Calibration, title: str) -> "Table":
    """Return a rich table of what was measured: calibration error and F1, before and after."""
    from rich.table import Table

    measured = calibration.measured
    by_label = list(calibration.thresholds.values())
    spread = f"{min(by_label):.3f} to {max(by_label):.3f}"
    rows = Table(title=cell(title))
    for name, justify in (("", "left"), ("threshold", "right"), ("F1", "right")):
        rows.add_column(name, justify=justify)  # type: ignore[arg-type]
    rows.add_row("uncalibrated", f"{UNCALIBRATED}", f"{100 * measured.f1_before:.1f}")
    rows.add_row("common threshold", f"{calibration.threshold:.3f}", f"{100 * measured.f1_common:.1f}")
    rows.add_row(f"by label ({len(by_label)})", spread, f"{100 * measured.f1_labels:.1f}")
    rows.add_section()
    rows.add_row("calibration error", "before", f"{100 * measured.ece_before:.1f}")
    rows.add_row("", "after", f"{100 * measured.ece_after:.1f}")
    rows.add_section()
    rows.add_row("temperature", "", f"{calibration.temperature:.3f}")
    rows.add_row("bias", "", f"{calibration.bias:.3f}")
    return rows


def check_matplotlib() -> None:
    """Raise ImportError unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "--plots: expected matplotlib to draw with, got none; pip install 'glimodern[plots]', or leave --plots out"
        ) from error


def _finish(axis: "Axes", title: str, file: Path) -> None:
    """Add legend and title to a figure's only axis, write it as PNG, and close it."""
    from matplotlib import pyplot

    axis.legend(frameon=False)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure: Any = axis.figure
    with atomic_file(file) as partial:
        figure.savefig(partial, dpi=120, format="png", metadata={"Software": None})
    pyplot.close(figure)


def draw(fit: Fit, folder: Path) -> None:
    """Draw the reliability diagram and F1 against the threshold, as PNG files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    measured = fit.calibration.measured
    _, axis = pyplot.subplots(figsize=(5, 4.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="tab:grey", linewidth=1, linestyle="--")
    sides = (
        (fit.before, f"scores, error {100 * measured.ece_before:.1f} %", "tab:orange"),
        (fit.after, f"calibrated, error {100 * measured.ece_after:.1f} %", "tab:blue"),
    )
    for side, name, colour in sides:
        axis.plot(side.probability, side.share, color=colour, linewidth=1, alpha=0.6)
        sizes = 12 + 120 * (side.count / side.count.max()) ** 0.5
        axis.scatter(side.probability, side.share, s=sizes, color=colour, label=name)
    axis.set(xlabel="probability, mean of a bin", ylabel="share of gold", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _finish(axis, f"{measured.candidates:,} candidates", folder / RELIABILITY_FILE)

    _, axis = pyplot.subplots(figsize=(5.6, 4), layout="constrained")
    thresholds, values = fit.curve
    axis.plot(thresholds, 100 * values, color="tab:blue")
    for threshold, name, style in ((UNCALIBRATED, "0.5", ":"), (fit.calibration.threshold, "common", "-")):
        axis.axvline(threshold, color="tab:grey", linewidth=1, linestyle=style, label=f"{name} ({threshold:.2f})")
    for number, threshold in enumerate(fit.calibration.thresholds.values()):
        label = "by label" if number == 0 else None
        axis.axvline(threshold, ymax=0.03, color="tab:orange", linewidth=1.2, label=label)
    axis.set(xlabel="threshold", ylabel="micro F1", xlim=(0, 1), ylim=(0, None))
    _finish(axis, f"{measured.sentences:,} sentences, {measured.gold:,} gold entities", folder / F1_FILE)


def output_folder(config: CalibrateConfig) -> Path:
    """Return the folder to write to. Raises ValueError for a model of the hub without --output."""
    if config.output is not None:
        return check_output_folder("--output", config.output)
    folder = user_path(config.model, "model")
    if not folder.is_dir():
        raise ValueError(
            f"--output: expected a folder for calibration.json, because {config.model} is not a local folder, got "
            "none; name one"
        )
    return check_output_folder("model", folder)


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    refuse_repeated(given, ["--data"])
    config = tyro.cli(
        Annotated[CalibrateConfig, tyro.conf.OmitArgPrefixes], args=given, prog="python -m glimodern.calibrate"
    )
    if not config.data:
        raise ValueError("--data: expected at least one file, folder or hub data set, got none")
    output = output_folder(config)
    plots = None if config.plots is None else check_output_folder("--plots", config.plots)
    if plots is not None:
        check_matplotlib()
    datasets = [load_split(source, config.split, skip_bad_rows=config.skip_bad_rows) for source in config.data]
    dataset = join(datasets)
    # Imported here, so that wrong arguments fail before this import, which takes seconds.
    from glimodern.model.calibrating import calibrate
    from glimodern.model.glimodern import GLiModern

    model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device)
    fit = calibrate(model, dataset, seed=config.seed, batch_tokens=config.batch_tokens)
    file = write_calibration(output, fit.calibration)
    shown = console()
    title = f"{dataset.name}: {len(dataset)} sentences, in percent, by nested cross-validation"
    shown.print(table(fit.calibration, title))
    shown.print(printable(f"written to {file}"))
    if plots is not None:
        draw(fit, plots)
        shown.print(printable(f"plots in {plots}"))


if __name__ == "__main__":
    cli.run(main)
