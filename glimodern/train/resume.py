"""Checkpoints of a training run: atomic writing, search, loading, and removal of earlier runs."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimodern.checkpoint.adapter import remove_adapter
from glimodern.checkpoint.folder import remove_checkpoint
from glimodern.files.atomic import atomic_folder, remove_if_empty

from .ranks import together

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FILE = "trainer.json"
FINE_TUNED = "fine_tuned"
"""Folder of the fine-tuned model and adapter of a run with keep_zero_shot, before the interpolation."""
CACHE_FOLDER = "encoder_cache"
"""Folder of the outputs of a frozen encoder, by their fingerprint (`glimodern.train.encoder_cache`)."""
PER_LAUNCH = (
    *("resume", "overwrite", "progress", "output_dir", "config", "checkpoint_steps", "max_steps", "epochs"),
    "cache_dir",
)
"""Settings that may differ when a run is resumed. max_steps and epochs extend the run."""
_PATHS = ("train_data", "dev_data", "eval_data", "canary_data", "replay_data", "init_from", "encoder", "labels_encoder")

_LEFTOVER = re.compile(r"\.(model|step-\d+)\.(old\.)?\w{8}")  # temporary folders of atomic_folder after a crash

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")  # folders and files of the cache of a frozen encoder's outputs
_PARTIAL_OUTPUTS = re.compile(r"\.[0-9a-f]{32}\.\w{8}")


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    step, batches, words: optimizer steps, batches and words done. best_f1, best_step: the best dev score so far, and
    its step. evaluated: the last step whose weights were evaluated on the dev data. seconds: time of all launches.
    """

    step: int = 0
    batches: int = 0
    best_f1: float | None = None
    best_step: int = 0
    evaluated: int = 0
    words: int = 0
    seconds: float = 0.0


def save_progress(accelerator: "Accelerator", folder: Path, progress: Progress, settings: dict[str, Any]) -> None:
    """Write the checkpoint folder/step-N with model, optimizer and random states, then remove earlier checkpoints."""
    target = folder / f"step-{progress.step}"
    with together(accelerator, "writing a checkpoint"):
        if accelerator.is_main_process:
            with atomic_folder(target) as staged:
                accelerator.save_state(str(staged))
                text = json.dumps({"progress": vars(progress), "settings": settings}, indent=1, default=str)
                (staged / STATE_FILE).write_text(text, encoding="utf-8")
            for old in _saved(folder):
                if old != target:
                    shutil.rmtree(old)


def newest(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps, or None. A half-written checkpoint has another name."""
    return max(_saved(folder), key=lambda path: int(path.name.removeprefix("step-")), default=None)


def _saved(folder: Path) -> Iterator[Path]:
    """Iterate over the checkpoints in a folder."""
    return (
        path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and (path / STATE_FILE).is_file()
    )


def load_progress(accelerator: "Accelerator", path: Path, settings: dict[str, Any]) -> Progress:
    """Load a checkpoint written by `save_progress`.

    Raises ValueError if the checkpoint belongs to a run with other settings, which the message lists, or is damaged.
    """
    with _readable(path):
        stored = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or not {"settings", "progress"} <= stored.keys():
        raise ValueError(f"--resume: {path}: {STATE_FILE}: expected the settings of a run, got none; {_WITHOUT}")
    current = json.loads(json.dumps(settings, default=str))
    before = stored["settings"]
    changed = sorted(key for key in current if _as_path(key, current[key]) != _as_path(key, before.get(key)))
    if changed:
        pairs = ", ".join(f"{key}: was {before.get(key)!r}, is {current[key]!r}" for key in changed)
        raise ValueError(
            f"--resume: expected a run with the same settings, got {path} with other settings ({pairs}); use another "
            "--output-dir"
        )
    with _readable(path):
        accelerator.load_state(str(path))
        return Progress(**stored["progress"])


def _as_path(key: str, value: Any) -> Any:
    """Return the value of a setting, with file and folder names as absolute paths, so that "./a" equals "a"."""
    if key not in _PATHS or value is None:
        return value
    names = [value] if isinstance(value, str) else value
    return [os.path.abspath(os.path.expanduser(name)) for name in names]


_WITHOUT = "start again with --overwrite, or train on from the saved model with --init-from"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A context that turns any error of the libraries that read a checkpoint into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # each library raises its own errors for damaged files
        message = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(
            f"--resume: expected a checkpoint, got {path}, which cannot be read ({type(error).__name__}: {message}); "
            f"{_WITHOUT}"
        ) from error


def run_files(output: Path) -> list[Path]:
    """List the files and folders that a run writes in its output folder, whether they exist or not."""
    folders = ("checkpoints", "model", "adapter", FINE_TUNED, "tensorboard", CACHE_FOLDER)
    return [output / name for name in (*folders, "metrics.jsonl", "report.json")]


def check_earlier_run(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise ValueError if the output folder holds an earlier run that is neither resumed nor overwritten.

    Also if it should be resumed, but is finished and has no checkpoint.
    """
    no_run = ("tensorboard", CACHE_FOLDER)  # which a run may leave that ended before its first step
    earlier = [path.name for path in run_files(output) if path.exists() and path.name not in no_run]
    if overwrite or not earlier:
        return
    if not resume:
        raise ValueError(
            f"output_dir: expected a folder without an earlier run, got {output} with {', '.join(earlier)}; continue "
            "the run with --resume, replace it with --overwrite, or choose another folder"
        )
    if "report.json" in earlier and newest(output / "checkpoints") is None:
        raise ValueError(
            f"--resume: expected a checkpoint to continue from, got none in {output}, which holds a finished run "
            "(checkpoint_steps was 0); train on from its model with --init-from and another --output-dir, or replace "
            "the run with --overwrite"
        )


def remove_fine_tuned(output: Path) -> None:
    """Delete what an earlier run with keep_zero_shot left in its folder FINE_TUNED. Files that no run wrote stay."""
    remove_checkpoint(output / FINE_TUNED / "model")
    remove_adapter(output / FINE_TUNED / "adapter")
    remove_if_empty(output / FINE_TUNED)


def clear_output(output: Path, *, overwrite: bool, cache: Path | None = None) -> None:
    """Remove half-written files of a crashed run and, with `overwrite`, an earlier run's checkpoints, logs and report.

    An earlier model, its adapter and FINE_TUNED stay until a new model replaces it. Files that no run wrote stay.
    cache: the folder of this run's outputs of a frozen encoder, which stays; those of other encoders are removed.
    """
    for partial in (output / CACHE_FOLDER).glob("*/*/.*"):
        if _PARTIAL_OUTPUTS.fullmatch(partial.name):
            partial.unlink()
    for partial in [*output.glob(".*"), *output.glob("checkpoints/.*")]:
        if _LEFTOVER.fullmatch(partial.name) and partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
    if not overwrite:
        return
    for folder in (output / CACHE_FOLDER).glob("*"):
        if _FINGERPRINT.fullmatch(folder.name) and folder != cache:
            shutil.rmtree(folder)
    for path in _saved(output / "checkpoints"):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    for path in [output / "metrics.jsonl", output / "report.json", *output.glob("tensorboard/events.out.tfevents.*")]:
        path.unlink(missing_ok=True)
