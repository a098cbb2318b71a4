"""The settings of a training run: frozen dataclasses, validated once; the command line is made from them.

A YAML file given by `--config` holds the same names as the flags (with `-` or `_`), flat; flags override it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class DataConfig:
    """What to train and evaluate on."""

    train_data: tuple[str, ...] = ()
    """Files, folders or hub data sets to train on; none: the embedded demo corpus."""
    dev_data: tuple[str, ...] = ()
    """Data sets that choose the best checkpoint."""
    eval_data: tuple[str, ...] = ()
    """Data sets to report on at the end."""
    eval_split: str | None = "test"
    """Split to read from evaluation folders that have splits."""
    held_out_types: int = 0
    """Choose the checkpoint on this many types that are taken out of the training data (with no dev_data)."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    max_types: int = 25
    """Most types asked of a sentence."""
    negative_ratio: float = 1.0
    """Types of other sentences asked of a sentence, at most this many times its own types (at least one)."""
    type_drop: float = 0.0
    """Probability with which a type of a sentence is not asked."""
    shuffle_types: bool = True
    """Ask the types in random order."""
    ask_whole_set: bool = True
    """Ask a sentence all types of its data set (or group), if these are at most max_types: its annotators looked for
    them all, so what is not marked is a true negative."""


@dataclass(frozen=True)
class EncoderConfig:
    """The model to build, or to go on from."""

    encoder: str = "demo"
    """Folder or hub name of a pretrained encoder; "demo": a tiny ModernBERT from scratch with its own tokenizer (other
    architectures of its size: glimodern.demo.DEMO_ENCODERS)."""
    labels_encoder: str | None = None
    """Folder or hub name of a sentence encoder for the labels (a bi-encoder); none: the labels stand in the text."""
    init_from: str | None = None
    """Checkpoint of a whole model to fine-tune (instead of a fresh head on an encoder)."""
    hidden_size: int | None = None
    """Width d of the span head; none: the encoder's."""
    span_mode: Literal["markerV0", "marker", "ffn"] = "markerV0"
    """The head: public checkpoints' markers, those of the oldest checkpoints, or the paper's plain FFN."""
    subtoken_pooling: Literal["first", "last", "mean", "max"] = "first"
    """Which sub-tokens make a word's vector."""
    embed_ent_token: bool = True
    """A type's vector is that of the <<ENT>> token before its label; else of the label's first token, which a small
    encoder learns to use sooner."""
    max_width: int = 12
    """Longest span, in words (K)."""
    max_len: int | None = None
    """Words of a text that are read; none: what the encoder takes."""
    dropout: float = 0.4
    """Dropout of the head; left at its default, that of the checkpoint in init_from."""
    freeze_encoder: bool = False
    """Run the encoder once per text without gradients."""


@dataclass(frozen=True)
class OptimConfig:
    """Loss, optimizer and schedule."""

    lr: float = 1e-5
    """Peak learning rate of the encoder."""
    head_lr: float = 5e-5
    """Peak learning rate of everything else."""
    weight_decay: float = 0.01
    """AdamW's decay, not on biases and norms."""
    warmup: float = 0.1
    """Share of the steps with a linearly rising rate; a cosine falls to zero after it."""
    max_grad_norm: float = 1.0
    """Clip the gradient's norm to this; 0 for no clipping."""
    focal_gamma: float = 0.0
    """Focusing exponent of the focal loss."""
    focal_scale: float = 1.0
    """Plain factor on the loss (the paper's alpha)."""
    class_balance: float | None = None
    """Weight of positives, negatives get one minus it (the public code's alpha); none: both 1."""
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Sum over spans and types, or their mean."""


@dataclass(frozen=True)
class RunConfig:
    """How long, how much at a time, where to, and how."""

    output_dir: str = "runs/demo"
    """Folder for the model, checkpoints, logs and report.json."""
    max_steps: int | None = None
    """Optimizer steps; none: by epochs."""
    epochs: float = 1.0
    """Passes over the training data, when max_steps is not given."""
    batch_tokens: int | None = None
    """Tokens in a batch, prompts by their mean length."""
    batch_size: int | None = 8
    """Most sentences in a batch."""
    accumulation: int = 1
    """Batches per optimizer step."""
    eval_steps: int = 500
    """Evaluate on the dev data after so many steps; 0: only at the end."""
    checkpoint_steps: int = 500
    """Write a checkpoint to resume from after so many steps; 0: none."""
    threshold: float = 0.5
    """Least probability of a predicted entity."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the model (mixed precision for bf16 and fp16; the weights stay fp32)."""
    fused: bool = True
    """Use the fused operators (Triton on a GPU, C++ on a CPU), or the textbook head in plain PyTorch."""
    seed: int = 0
    """Seed of everything random."""
    resume: bool = False
    """Go on from the newest checkpoint in output_dir."""
    overwrite: bool = False
    """Replace what an earlier run left in output_dir."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `python -m glimodern.train`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: EncoderConfig = field(default_factory=EncoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        run, optim, data = self.run, self.optim, self.data
        positive = {
            "max_steps": run.max_steps,
            "batch_tokens": run.batch_tokens,
            "batch_size": run.batch_size,
            "accumulation": run.accumulation,
            "epochs": run.epochs,
            "max_types": data.max_types,
            "max_width": self.model.max_width,
            "max_len": self.model.max_len,
            "hidden_size": self.model.hidden_size,
            "lr": optim.lr,
            "head_lr": optim.head_lr,
        }
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}: wanted a positive number, got {value}")
        if not data.train_data and (data.dev_data or data.eval_data or data.held_out_types):
            raise ValueError(
                "train_data: wanted at least one data set beside dev_data, eval_data or held_out_types, got none "
                "(with none of them all, the embedded demo corpus is used)"
            )
        if run.resume and run.overwrite:
            raise ValueError("resume, overwrite: wanted one of them, got both")
        if run.batch_size is None and run.batch_tokens is None:
            raise ValueError("batch_size, batch_tokens: wanted at least one of them, got none")
        for name, value in {"warmup": optim.warmup, "type_drop": data.type_drop, "dropout": self.model.dropout}.items():
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}: wanted 0 <= {name} < 1, got {value}")
        if optim.class_balance is not None and not 0.0 < optim.class_balance < 1.0:
            raise ValueError(
                f"class_balance: wanted a weight between 0 and 1 (1.0 would silence every negative), got "
                f"{optim.class_balance}; for a plain factor use focal_scale"
            )
        if not 0.0 <= run.threshold <= 1.0:
            raise ValueError(f"threshold: wanted a probability, got {run.threshold}")

    def flat(self) -> dict[str, Any]:
        """Every setting by its flag's name, as report.json keeps it."""
        return {f.name: getattr(part, f.name) for part in self._parts() for f in fields(part)}

    def _parts(self) -> tuple[Any, ...]:
        return self.data, self.model, self.optim, self.run


def yaml_arguments(path: str) -> list[str]:
    """The settings of a YAML file as command-line arguments, so that one parser checks both."""
    import yaml

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--config {path}: no such file")
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: wanted a mapping of settings, got {type(settings).__name__}")
    known = TrainConfig().flat()
    arguments: list[str] = []
    for key, value in settings.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ValueError(f"--config {path}: unknown setting {key!r}; known are {', '.join(known)}")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list):
            arguments += [flag, *map(str, value)]
        else:
            arguments += [flag, str(value)]
    return arguments


def with_yaml(given: Sequence[str]) -> list[str]:
    """Arguments whose `--config FILE.yaml`, before or among them, is replaced by what the file holds; flags win."""
    merged: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(given):
        argument = given[position]
        if argument == "--config" or argument.startswith("--config="):
            if "=" in argument:
                path = argument.split("=", 1)[1]
            elif position + 1 < len(given):
                position += 1
                path = given[position]
            else:
                raise ValueError("--config: wanted a YAML file, got nothing")
            merged += yaml_arguments(path)
        else:
            rest.append(argument)
        position += 1
    return merged + rest


def parse_train_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """TrainConfig from flags and an optional `--config FILE.yaml`."""
    return tyro.cli(
        Annotated[TrainConfig, tyro.conf.OmitArgPrefixes],
        args=with_yaml(sys.argv[1:] if arguments is None else arguments),
        prog="python -m glimodern.train",
        description="Train, evaluate and save a GLiNER span model. `--config FILE.yaml` reads settings from a file.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
