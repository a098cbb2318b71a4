"""Logs and reports of a training run: progress bar, metrics.jsonl, TensorBoard, report.json."""

import json
import logging
import math
import platform
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator

from glimodern import ops
from glimodern.files.atomic import atomic_file
from glimodern.version import __version__

from .config import TrainConfig
from .resume import Progress

logger = logging.getLogger(__name__)

LOG_STEPS = 50  # steps between log lines if the output is not a terminal, which cannot show a progress bar


class RunLog:
    """The main process's metrics.jsonl, TensorBoard log and progress bar.

    folder: for metrics.jsonl, which is cut back to the step of `done`. total: steps of the run. show: whether to show
    the progress bar.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, total: int, done: Progress, show: bool) -> None:
        from rich import progress

        from glimodern.display import console

        self.accelerator = accelerator
        self.file = folder / "metrics.jsonl"
        if accelerator.is_main_process:
            self._cut_back(done.step)
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("loss {task.fields[loss]:.4g}  {task.fields[speed]:,.0f} words/s"),
            disable=not (show and accelerator.is_main_process),
            console=console(quiet=not accelerator.is_main_process),
        )
        self.task = self.bar.add_task("train", total=total, completed=done.step, loss=math.nan, speed=0.0)

    def _cut_back(self, step: int) -> None:
        """Remove the lines after a step from metrics.jsonl, and lines that a crash left incomplete."""
        text = self.file.read_text(encoding="utf-8", errors="replace") if self.file.exists() else ""
        lines = text.splitlines(keepends=True)
        steps = [_step_of(line) for line in lines]
        if damaged := steps.count(None):
            logger.warning("%s: left out %d damaged lines", self.file, damaged)
        kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
        with atomic_file(self.file) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def step(self, step: int, **values: float) -> None:
        """Log a training step. values: loss, words_per_second, seconds and others."""
        self.bar.update(self.task, completed=step, loss=values["loss"], speed=values["words_per_second"])
        if not self.bar.console.is_terminal and not self.bar.disable and step % LOG_STEPS == 0:
            remaining = (self.bar.tasks[self.task].total or step) - step
            logger.info(
                "step %d: loss %.4g, %.0f words/s, about %.0f s to go",
                step, values["loss"], values["words_per_second"], remaining * values["seconds"],
            )  # fmt: skip
        self.write(step, **values)

    def write(self, step: int, **values: float) -> None:
        """Write values of a step to metrics.jsonl and TensorBoard."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def _step_of(line: str) -> int | None:
    """Read the step from a line of metrics.jsonl; None for an incomplete or damaged line."""
    try:
        step = json.loads(line)["step"] if line.endswith("\n") else None
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None


def make_report(config: TrainConfig, done: Progress, durations: list[float], first_word: int) -> dict[str, Any]:
    """Build the report of a run whose training has ended and whose evaluation follows. F1 values lie in [0, 1].

    config: with all settings resolved. durations: seconds of each step of this launch. first_word: number of words
    trained on before this launch. The speeds are those of this launch, and None if it ran no step.
    """
    return {
        "evaluation": {},
        "failed": {},
        "dev_micro_f1": done.best_f1,
        "best_step": done.best_step if done.best_f1 is not None else done.step,
        "steps": done.step,
        "seconds": done.seconds,
        "median_step_seconds": median(durations) if durations else None,
        "words_per_second": (done.words - first_word) / sum(durations) if durations else None,
        "backends": ops.backend_info() if config.run.fused else "textbook head in plain PyTorch (--no-fused)",
        "versions": versions(),
        "machine": machine(),
        "seed": config.run.seed,
        "config": config.flat(),
    }


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages that affect measurements."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"glimodern": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "accelerate", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Description of the machine that the run took place on."""
    return {
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_commit() -> str | None:
    """Commit of the source tree that this package runs from; None if that is not a git checkout of its own."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
