"""Comparison of encoders: `python -m glimodern.compare --encoders a,b,c` trains each under one budget and measures it.

All encoders get the same data in the same order, the same recipe, and the same number of steps or seconds. Each is
trained in one process and predicts in another, so that memory is measured separately and one failure does not affect
the others. Finished results are kept: the same command continues where it stopped, and encoders that are added later
join the table. With --overwrite, which configs/demo.yaml sets, it starts again. On SIGINT and SIGTERM the current run
writes its checkpoint. The output folder contains `compare.json`, the plot `compare.png` (extra `plots`), and a folder
with log and model for each encoder.
"""

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from glimodern.cli.outputs import check_not_read, check_output_file, check_output_folder
from glimodern.data import load_split
from glimodern.display import cell, console, printable
from glimodern.files.atomic import write_json
from glimodern.settings import refuse_repeated
from glimodern.train.config import with_yaml
from glimodern.train.interrupts import Interrupts, Stopped

from .config import PHASES, CompareConfig

if TYPE_CHECKING:
    from rich.table import Table


def folder_of(output: Path, encoder: str) -> Path:
    """Return an encoder's folder in the output folder.

    A path or hub name, whose characters cannot all stand in a file name, is replaced by a readable part and a digest.
    """
    readable = re.sub(r"[^\w.-]+", "-", encoder).strip("-.")
    return output / (
        readable if readable == encoder else f"{readable}-{hashlib.sha1(encoder.encode()).hexdigest()[:6]}"
    )


def check_inputs(config: CompareConfig) -> Path:
    """Check the inputs and return the output folder. Nothing is written or deleted before this check has passed.

    Raises ValueError for data that cannot be read, an output folder that cannot be written, and inputs that the
    comparison would replace.
    """
    data, model, run = config.train.data, config.train.model, config.train.run
    output = check_output_folder("output_dir", run.output_dir)
    if config.predict_dtype == "int8":
        import torch

        if torch.cuda.is_available():
            raise ValueError(
                "predict_dtype: expected fp32, bf16 or auto on this machine, which predicts on its GPU, got int8, "
                "which is for CPUs; choose another"
            )
    splits = {"train_data": "train", "dev_data": "dev", "eval_data": data.eval_split}
    writes = [output / name for name in ("settings.json", "compare.json", "compare.png")]
    writes += [folder_of(output, encoder) for encoder in config.names]
    reads = {name: getattr(data, name) for name in splits}
    labels = () if model.labels_encoder is None else (model.labels_encoder,)
    models = {"encoders": config.names, "labels_encoder": labels}
    check_not_read("output_dir", writes, {**reads, **models, "config": run.config})
    for path in writes[:3]:
        check_output_file("output_dir", path)
    for name, split in splits.items():
        for source in reads[name]:
            load_split(source, split, skip_bad_rows=data.skip_bad_rows, splitter=model.splitter())
    return output


def remember_settings(config: CompareConfig, output: Path) -> None:
    """Write the settings to the output folder. Raises ValueError if it holds a comparison with other settings."""
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
                f"output_dir: expected a comparison with the same settings, got {output} with other settings "
                f"({', '.join(changed)}); choose another folder, or replace it with --overwrite"
            )
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def measure(config: CompareConfig, encoder: str, output: Path) -> dict[str, Any]:
    """Run the unfinished phases of one encoder, each in its own process, and return its row.

    A failure is the row's "error". A result is finished only if it has the same settings, so files that --overwrite
    replaces may stay until then.
    """
    folder = folder_of(output, encoder)
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"encoder": encoder}
    fresh = config.train.run.overwrite
    for phase in PHASES:
        if phase == "steps" and config.seconds is None:
            continue
        result = None if fresh else read_result(folder / f"{phase}.json", config)
        if result is None:
            fresh = True  # later phases have to use the new result
            error = run_phase(config, encoder, phase, row.get("steps"), folder)
            if error is not None:
                return {**row, "error": f"{phase}: {error}"}
            result = read_result(folder / f"{phase}.json", config) or {}
        row.update(result)
    return row


def read_result(path: Path, config: CompareConfig) -> dict[str, Any] | None:
    """Read a phase's part of the row; None if there is no result with these settings."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return dict(stored["row"]) if stored.get("settings") == config.settings() else None


def run_phase(config: CompareConfig, encoder: str, phase: str, steps: int | None, folder: Path) -> str | None:
    """Run a phase in a new process, which writes {phase}.json. Returns an error message, or None."""
    run = replace(config.train.run, output_dir=str(folder / "run"))
    if steps is not None:
        run = replace(run, max_steps=steps)
    train = replace(config.train, run=run, model=replace(config.train.model, encoder=encoder))
    job, log, result = (folder / f"{phase}.{suffix}" for suffix in ("job.json", "log", "json"))
    fields = {**asdict(config), "train": asdict(train)}
    # A checkpoint in the folder belongs to the last job, whose settings may differ if it was to be overwritten.
    same = job.is_file() and json.loads(job.read_text(encoding="utf-8")).get("settings") == config.settings()
    resume = same and not config.train.run.overwrite
    write_json(job, {**fields, "settings": config.settings(), "phase": phase, "result": str(result), "resume": resume})
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "glimodern.compare.job", str(job)], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except Stopped:  # the process ignores SIGINT
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if code == 0:
        return None
    if code < 0:
        return f"ended by signal {-code}{' (out of memory?)' if code == -9 else ''}; see {log}"
    errors = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*", log.read_text("utf-8", "replace"), re.MULTILINE)
    return f"{errors[-1] if errors else f'exit status {code}'}; see {log}"


def _heading(name: str) -> Any:
    """Build a column heading of one or two lines. The second line may be a data set's name."""
    from rich.text import Text

    first, second = name.split("\n", 1) if "\n" in name else (name, "")
    return Text("\n").join([cell(first), cell(second)]) if second else cell(first)


def mean_f1(row: dict[str, Any]) -> float:
    """Mean of the F1 of all evaluation sets."""
    return fmean(row["f1"].values())


def make_table(rows: Sequence[dict[str, Any]], title: str) -> "Table":
    """Build a rich table of the rows. Rows that failed have the name only."""
    from rich.table import Table

    table = Table(title=cell(title))
    table.add_column("encoder", no_wrap=True)
    sets = list(dict.fromkeys(name for row in rows for name in row.get("f1", ())))
    scores = [*(f"F1\n{name}" for name in sets), *(["F1\nmean"] if len(sets) > 1 else [])]
    training = ("steps", "train\ns/step", "train\ns", "train\nMiB")
    for name in (*scores, *training, "predict\ntexts/s", "predict\nMiB", "param.\nM"):
        table.add_column(_heading(name), justify="right")
    table.add_column("runs")
    for row in rows:
        if "error" in row:
            table.add_row(cell(row["encoder"]), "failed")
            continue
        f1 = [f"{100 * row['f1'][name]:.1f}" if name in row["f1"] else "" for name in sets]
        table.add_row(
            cell(row["encoder"]),
            *f1,
            *([f"{100 * mean_f1(row):.1f}"] if len(sets) > 1 else []),
            str(row["steps"]),
            "-" if row["step_seconds"] is None else f"{row['step_seconds']:.3f}",
            f"{row['train_seconds']:.0f}",
            f"{row['train_memory_bytes'] / 2**20:.0f}",
            f"{row['sentences_per_second']:.1f}",
            f"{row['predict_memory_bytes'] / 2**20:.0f}",
            f"{row['parameters'] / 1e6:.1f}",
            "packed" if row["packed"] else "padded",
        )
    return table


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot four bars per encoder: mean F1, seconds per training step, sentences per second, training memory."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = {
        "mean F1 (higher is better)": [100 * mean_f1(row) for row in rows],
        "seconds per training step (lower)": [row["step_seconds"] or 0.0 for row in rows],
        "sentences per second (higher)": [row["sentences_per_second"] for row in rows],
        "training memory, MiB (lower)": [row["train_memory_bytes"] / 2**20 for row in rows],
    }
    size = (14, 1.4 + 0.4 * len(rows))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    colours = ["tab:blue" if row["packed"] else "tab:grey" for row in rows]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bars = axis.barh(range(len(rows)), values, color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rows)), [printable(row["encoder"]) for row in rows], parse_math=False)
    axes[0].invert_yaxis()
    figure.suptitle("blue: packed, grey: padded", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Measure every encoder and write compare.json and compare.png.

    Returns one row per encoder, with the key "error" if it failed. On SIGINT or SIGTERM the current run writes its
    checkpoint, and Stopped, a KeyboardInterrupt, is raised.
    """
    from rich.text import Text

    shown = console()
    output = check_inputs(config)
    remember_settings(config, output)
    rows: list[dict[str, Any]] = []
    with Interrupts():
        try:
            for number, encoder in enumerate(config.names, 1):
                where = folder_of(output, encoder)
                name = printable(encoder)
                with shown.status(Text(f"{name}, {number} of {len(config.names)}; logs in {printable(str(where))}")):
                    rows.append(measure(config, encoder, output))
                outcome = rows[-1].get("error") or f"mean F1 {100 * mean_f1(rows[-1]):.1f}"
                shown.print(printable(f"{encoder}: {outcome}"))
        except Stopped as stopped:
            command = "the same command" + (" without --overwrite" if config.train.run.overwrite else "")
            message = f"stopped after {len(rows)} of {len(config.names)} encoders; go on with {command}"
            raise Stopped(stopped.number, message) from None
    write_json(output / "compare.json", {"settings": config.settings(), "rows": rows})
    shown.print(make_table(rows, f"{len(rows)} encoders, one budget"))
    done = [row for row in rows if "error" not in row]
    if done:
        try:
            draw(done, output / "compare.png")
        except ImportError:
            shown.print("no plot: matplotlib is not installed (extra `plots`)")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    refuse_repeated(given, ["--encoders"], "A,B")
    config = tyro.cli(
        Annotated[CompareConfig, tyro.conf.OmitArgPrefixes],
        args=with_yaml(given),
        prog="python -m glimodern.compare",
        description="Train several encoders under one budget and compare them.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        rows = compare(config)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    if any("error" in row for row in rows):
        sys.exit(1)
