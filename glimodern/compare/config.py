"""The settings of a comparison."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from glimodern.settings import AT_LEAST_ONE, POSITIVE, SettingError, check_settings
from glimodern.train.config import RunConfig, TrainConfig

_NOT_COMPARED = ("encoder", "output_dir", "resume", "overwrite", "progress", "config")
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
    demo-deberta-v3, ...: glimodern.train.demo.DEMO_ENCODERS)."""
    seconds: Annotated[float | None, POSITIVE] = None
    """Train each for about so long, in place of max_steps: a first measurement turns it into steps."""
    predict_sentences: Annotated[int, AT_LEAST_ONE] = 500
    """Time prediction on the first so many sentences of each evaluation set."""
    predict_dtype: Literal["fp32", "bf16", "int8", "auto"] = "auto"
    """Arithmetic of the prediction that is timed (F1 is that of the training's dtype)."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(run=RunConfig(output_dir="runs/compare")))

    def __post_init__(self) -> None:
        check_settings(self)
        names = self.names
        if not names or len(set(names)) < len(names):
            raise SettingError(f"encoders: expected distinct names separated by commas, got {self.encoders!r}")
        model, run, data = self.train.model, self.train.run, self.train.data
        if model.encoder not in (None, "demo") or model.init_from is not None:  # configs/demo.yaml names demo
            raise SettingError("encoder, init_from: expected neither beside encoders, which names what is trained")
        if data.train_data and not data.eval_data:
            raise SettingError("eval_data: expected at least one data set to compare F1 on, got none")
        if self.seconds is not None and run.max_steps is not None:
            raise SettingError(f"seconds, max_steps: expected one budget, got {self.seconds} and {run.max_steps}")
        if run.resume:
            raise SettingError("resume: a comparison always goes on where it was stopped; leave it out")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.encoders.split(",") if name.strip()]

    def settings(self) -> dict[str, Any]:
        """What all rows of a table have in common, as JSON holds it."""
        flat = {key: value for key, value in self.train.flat().items() if key not in _NOT_COMPARED}
        own = {name: getattr(self, name) for name in ("seconds", "predict_sentences", "predict_dtype")}
        return dict(json.loads(json.dumps({**flat, **own})))
