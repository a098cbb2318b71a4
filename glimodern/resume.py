"""Checkpoints of a run: written whole or not at all, found again after a crash."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimodern.files import atomic_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FILE = "trainer.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps and batches done, and the best dev score so far."""

    step: int = 0
    batches: int = 0
    best_f1: float | None = None
    best_step: int = 0
    words: int = 0
    seconds: float = 0.0


def save_progress(accelerator: "Accelerator", folder: Path, progress: Progress, settings: dict[str, Any]) -> None:
    """Write folder/step-N with model, optimizer and random states; the one before it is removed after."""
    target = folder / f"step-{progress.step}"
    if accelerator.is_main_process:
        with atomic_folder(target) as staged:
            accelerator.save_state(str(staged))
            text = json.dumps({"progress": vars(progress), "settings": settings}, indent=1, default=str)
            (staged / STATE_FILE).write_text(text, encoding="utf-8")
        for old in folder.glob("step-*"):
            if old != target:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None; half-written ones never carry this name."""
    found = [path for path in folder.glob("step-*") if (path / STATE_FILE).is_file()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def load_progress(accelerator: "Accelerator", path: Path, settings: dict[str, Any]) -> Progress:
    """Load what save_progress wrote; ValueError when it belongs to a run with other settings, naming them."""
    stored = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    current = json.loads(json.dumps(settings, default=str))
    changed = sorted(key for key in current if current[key] != stored["settings"].get(key))
    if changed:
        pairs = ", ".join(f"{key}: was {stored['settings'].get(key)!r}, is {current[key]!r}" for key in changed)
        raise ValueError(f"--resume: {path} belongs to a run with other settings ({pairs}); use another --output-dir")
    accelerator.load_state(str(path))
    return Progress(**stored["progress"])
