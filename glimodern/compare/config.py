"""The settings of a comparison."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from glimodern.settings import AT_LEAST_ONE, POSITIVE, SettingError, check_settings
from glimodern.train.config import RunConfig, TrainConfig

_NOT_COMPARED = ("encoder", "output_dir", "resume", "overwrite", "progress", "config")
PHASES = ("steps", "train", "predict")
TRAINING_FIELDS = (  # (key in report.json, key in a row of the comparison)
    ("steps", "steps"), ("seconds", "train_seconds"), ("median_step_seconds", "step_seconds"),
    ("peak_memory_bytes", "train_memory_bytes"),
)  # fmt: skip


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `python -m glimodern.compare`, and those of `python -m glimodern.train` for the training runs."""

    encoders: str
    """Encoders to compare, separated by commas: folders, hub names, or tiny ones from scratch (demo, demo-bert,
    demo-deberta-v3, ...: glimodern.train.demo.DEMO_ENCODERS)."""
    seconds: Annotated[float | None, POSITIVE] = None
    """Approximate training time of each encoder in seconds, instead of max_steps; a measurement gives the steps."""
    predict_sentences: Annotated[int, AT_LEAST_ONE] = 500
    """Number of sentences of each evaluation set on which prediction is timed."""
    predict_dtype: Literal["fp32", "bf16", "int8", "auto"] = "auto"
    """Dtype of the timed prediction. F1 is measured in the dtype of training."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(run=RunConfig(output_dir="runs/compare")))

    def __post_init__(self) -> None:
        check_settings(self)
        names = self.names
        if not names or len(set(names)) < len(names):
            raise SettingError(f"encoders: expected distinct names separated by commas, got {self.encoders!r}")
        model, run, data = self.train.model, self.train.run, self.train.data
        if model.encoder not in (None, "demo") or model.init_from is not None:  # configs/demo.yaml names demo
            raise SettingError(
                f"encoder, init_from: expected neither with encoders, got {model.encoder!r} and {model.init_from!r}; "
                "leave them out"
            )
        if data.train_data and not data.eval_data:
            raise SettingError("eval_data: expected at least one data set to compare F1 on, got none")
        if self.seconds is not None and run.max_steps is not None:
            raise SettingError(f"seconds, max_steps: expected one budget, got {self.seconds} and {run.max_steps}")
        if run.resume:
            raise SettingError("resume: expected False, a comparison always continues where it stopped; leave it out")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.encoders.split(",") if name.strip()]

    def settings(self) -> dict[str, Any]:
        """Return the settings that all rows of a comparison share, with JSON's types."""
        flat = {key: value for key, value in self.train.flat().items() if key not in _NOT_COMPARED}
        own = {name: getattr(self, name) for name in ("seconds", "predict_sentences", "predict_dtype")}
        return dict(json.loads(json.dumps({**flat, **own})))
