"""Encoders side by side: `python -m glimodern.compare --encoders a,b,c` trains each under one budget and measures it.

All get the same data in the same order, the same recipe and as many steps, or as many seconds. Each is trained, and
then predicts, in a process of its own, so that its memory is its own and its failure nobody else's. What is done stays:
the command called again goes on where it was stopped (but with --overwrite, which configs/demo.yaml sets, from the
start), and encoders named later join the table. `compare.json`, the plot
`compare.png` (extra `plots`) and a folder with log and model for each are in the output folder.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from glimodern.config import RunConfig, TrainConfig, with_yaml
from glimodern.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

_NOT_COMPARED = ("encoder", "output_dir", "resume", "overwrite", "progress")
PHASES = ("steps", "train", "predict")
TRAINING_FIELDS = (  # of report.json, and what they are in a row
    ("steps", "steps"), ("seconds", "train_seconds"), ("median_step_seconds", "step_seconds"),
    ("peak_memory_bytes", "train_memory_bytes"),
)  # fmt: skip


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `python -m glimodern.compare`; those of training are the ones of `python -m glimodern.train`."""

    encoders: str
    """Encoders to compare, separated by commas: folders, hub names, or tiny ones from scratch (demo, demo-bert,
    demo-deberta-v3, ...: glimodern.demo.DEMO_ENCODERS)."""
    seconds: float | None = None
    """Train each for about so long, in place of max_steps: a first measurement turns it into steps."""
    predict_sentences: int = 500
    """Time prediction on the first so many sentences of each evaluation set."""
    predict_dtype: Literal["fp32", "bf16", "int8", "auto"] = "auto"
    """Arithmetic of the prediction that is timed (F1 is that of fp32)."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(run=RunConfig(output_dir="runs/compare")))

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"encoders: wanted distinct names separated by commas, got {self.encoders!r}")
        model, run, data = self.train.model, self.train.run, self.train.data
        if model.encoder != "demo" or model.init_from is not None:
            raise ValueError("encoder, init_from: wanted neither beside encoders, which names what is trained")
        if data.train_data and not data.eval_data:
            raise ValueError("eval_data: wanted at least one data set to compare F1 on, got none")
        if self.seconds is not None and (self.seconds <= 0 or run.max_steps is not None):
            raise ValueError(f"seconds: wanted a positive number and no max_steps, got {self.seconds}, {run.max_steps}")
        if self.predict_sentences < 1:
            raise ValueError(f"predict_sentences: wanted a positive number, got {self.predict_sentences}")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.encoders.split(",") if name.strip()]

    def settings(self) -> dict[str, Any]:
        """What all rows of a table have in common, as JSON holds it."""
        flat = {key: value for key, value in self.train.flat().items() if key not in _NOT_COMPARED}
        own = {name: getattr(self, name) for name in ("seconds", "predict_sentences", "predict_dtype")}
        return dict(json.loads(json.dumps({**flat, **own})))


def folder_of(output: Path, encoder: str) -> Path:
    """Of an encoder: its name, and for a path or hub name, whose signs cannot all stand in a file's name, a digest."""
    readable = re.sub(r"[^\w.-]+", "-", encoder).strip("-.")
    return output / (
        readable if readable == encoder else f"{readable}-{hashlib.sha1(encoder.encode()).hexdigest()[:6]}"
    )


def check_settings(config: CompareConfig, output: Path) -> None:
    """Remember the settings in output; ValueError where it holds a comparison with others."""
    path, settings = output / "settings.json", config.settings()
    if path.is_file() and not config.train.run.overwrite:
        stored = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{key}: was {stored.get(key)!r}, is {settings[key]!r}"
            for key in settings
            if stored.get(key) != settings[key]
        ]
        if changed:
            raise ValueError(
                f"output_dir: {output} holds a comparison with other settings ({', '.join(changed)}); choose another "
                "folder, or replace it with --overwrite"
            )
    write_json(path, settings)


def measure(config: CompareConfig, encoder: str, output: Path) -> dict[str, Any]:
    """One encoder's row: what is not done yet is run, each phase in its own process; a failure is the row's "error"."""
    folder = folder_of(output, encoder)
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"encoder": encoder}
    results = {phase: folder / f"{phase}.json" for phase in PHASES}
    if config.train.run.overwrite:
        for result in results.values():
            result.unlink(missing_ok=True)
    for phase, result in results.items():
        if phase == "steps" and config.seconds is None:
            continue
        if not result.is_file():
            error = run_phase(config, encoder, phase, row.get("steps"), folder)
            if error is not None:
                return {**row, "error": f"{phase}: {error}"}
        row.update(json.loads(result.read_text(encoding="utf-8")))
    return row


def run_phase(config: CompareConfig, encoder: str, phase: str, steps: int | None, folder: Path) -> str | None:
    """Run a phase in a process of its own, which writes {phase}.json; what went wrong, or None."""
    run = replace(config.train.run, output_dir=str(folder / "run"), resume=not config.train.run.overwrite)
    if steps is not None:
        run = replace(run, max_steps=steps)
    train = replace(config.train, run=run, model=replace(config.train.model, encoder=encoder))
    job, log = folder / f"{phase}.job.json", folder / f"{phase}.log"
    write_json(job, {**asdict(config), "train": asdict(train), "phase": phase, "result": str(folder / f"{phase}.json")})
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "glimodern.compare_run", str(job)]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code == 0:
        return None
    if code < 0:
        return f"ended by signal {-code}{' (out of memory?)' if code == -9 else ''}; see {log}"
    said = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*", log.read_text("utf-8", "replace"), re.MULTILINE)
    return f"{said[-1] if said else f'exit status {code}'}; see {log}"


def mean_f1(row: dict[str, Any]) -> float:
    return fmean(row["f1"].values())


def make_table(rows: Sequence[dict[str, Any]], title: str) -> "Table":
    """The rows as a rich table; of failed ones the name only."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("encoder", no_wrap=True)
    sets = list(dict.fromkeys(name for row in rows for name in row.get("f1", ())))
    scores = [*(f"F1\n{name}" for name in sets), *(["F1\nmean"] if len(sets) > 1 else [])]
    training = ("steps", "train\ns/step", "train\ns", "train\nMiB")
    for name in (*scores, *training, "predict\ntexts/s", "predict\nMiB", "param.\nM"):
        table.add_column(name, justify="right")
    table.add_column("runs")
    for row in rows:
        if "error" in row:
            table.add_row(row["encoder"], "failed")
            continue
        f1 = [f"{100 * row['f1'][name]:.1f}" if name in row["f1"] else "" for name in sets]
        table.add_row(
            row["encoder"],
            *f1,
            *([f"{100 * mean_f1(row):.1f}"] if len(sets) > 1 else []),
            str(row["steps"]),
            f"{row['step_seconds']:.3f}",
            f"{row['train_seconds']:.0f}",
            f"{row['train_memory_bytes'] / 2**20:.0f}",
            f"{row['sentences_per_second']:.1f}",
            f"{row['predict_memory_bytes'] / 2**20:.0f}",
            f"{row['parameters'] / 1e6:.1f}",
            "packed" if row["packed"] else "padded",
        )
    return table


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Four bars an encoder: mean F1, seconds a training step, sentences a second, training memory."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = [row["encoder"] for row in rows]
    panels = {
        "mean F1 (higher is better)": [100 * mean_f1(row) for row in rows],
        "seconds a training step (lower)": [row["step_seconds"] for row in rows],
        "sentences a second (higher)": [row["sentences_per_second"] for row in rows],
        "training memory, MiB (lower)": [row["train_memory_bytes"] / 2**20 for row in rows],
    }
    size = (14, 1.4 + 0.4 * len(rows))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    colours = ["tab:blue" if row["packed"] else "tab:grey" for row in rows]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle("blue: packed, grey: padded", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Measure every encoder and write compare.json and compare.png; a row each, with "error" where it failed."""
    from rich.console import Console

    console = Console()
    output = Path(config.train.run.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    check_settings(config, output)
    rows: list[dict[str, Any]] = []
    for number, encoder in enumerate(config.names, 1):
        where = folder_of(output, encoder)
        with console.status(f"{encoder}, {number} of {len(config.names)}; logs in {where}"):
            rows.append(measure(config, encoder, output))
        answer = rows[-1].get("error") or f"mean F1 {100 * mean_f1(rows[-1]):.1f}"
        console.print(f"{encoder}: {answer}", markup=False, highlight=False)
    write_json(output / "compare.json", {"settings": config.settings(), "rows": rows})
    console.print(make_table(rows, f"{len(rows)} encoders, one budget"))
    done = [row for row in rows if "error" not in row]
    if done:
        try:
            draw(done, output / "compare.png")
        except ImportError:
            console.print("no plot: matplotlib is not installed (extra `plots`)")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[CompareConfig, tyro.conf.OmitArgPrefixes],
        args=with_yaml(sys.argv[1:] if arguments is None else arguments),
        prog="python -m glimodern.compare",
        description="Train several encoders under one budget and compare them.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if any("error" in row for row in compare(config)):
        sys.exit(1)


if __name__ == "__main__":
    main()
