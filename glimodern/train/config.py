"""The settings of a training run: frozen dataclasses, validated once; the command line is made from them.

A YAML file given by `--config` holds the same names as the flags (with `-` or `_`), flat; flags override it. A setting
whose default is None was not given; `glimodern.train.setup` says what it then is.
"""

import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import tyro

from glimodern.checkpoint.config import Pooling, SpanMode
from glimodern.files.atomic import user_path
from glimodern.settings import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SHARE,
    WIDTH,
    Range,
    SettingError,
    check_settings,
    check_value,
    default_of,
    field_hints,
    plain_types,
    refuse_repeated,
)

TrainingDtype = Literal["auto", "fp32", "bf16", "fp16"]

_BALANCE = Range(
    0, 1, open_least=True, open_most=True,
    remedy="1 would silence every negative, 0 every positive; for a plain factor use focal_scale",
)  # fmt: skip
_RATE = Range(0, 1, open_least=True, remedy="AdamW changes each weight by up to the rate at every step")
_SEED = Range(0, 2**32 - 1)  # the trainer multiplies it into PyTorch's 64 bits


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
    held_out_types: Annotated[int, NOT_NEGATIVE] = 0
    """Choose the checkpoint on this many types that are taken out of the training data; not beside dev_data."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    max_types: Annotated[int, AT_LEAST_ONE] = 25
    """Most types asked of a sentence."""
    negative_ratio: Annotated[float, NOT_NEGATIVE] = 1.0
    """Types of other sentences asked of a sentence, at most this many times its own types (at least one)."""
    type_drop: Annotated[float, SHARE] = 0.0
    """Probability with which a type of a sentence is not asked."""
    shuffle_types: bool = True
    """Ask the types in random order."""
    ask_whole_set: bool = True
    """Ask a sentence all types of its data set (or group), if these are at most max_types: its annotators looked for
    them all, so what is not marked is a true negative."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class EncoderConfig:
    """The model to build, or to go on from."""

    encoder: str | None = None
    """Folder or hub name of a pretrained encoder; "demo": a tiny ModernBERT from scratch with its own tokenizer (others
    of its size: glimodern.train.demo.DEMO_ENCODERS). Default: demo, or that of the checkpoint in init_from."""
    labels_encoder: str | None = None
    """Folder or hub name of a sentence encoder for the labels (a bi-encoder); none: the labels stand in the text."""
    init_from: str | None = None
    """Checkpoint of a whole model to fine-tune (instead of a fresh head on an encoder)."""
    hidden_size: Annotated[int | None, WIDTH] = None
    """Width d of the span head. Default: the encoder's, or that of the checkpoint in init_from."""
    span_mode: SpanMode | None = None
    """The head: public checkpoints' markers, those of the oldest checkpoints, or the paper's plain FFN. Default:
    markerV0, or that of the checkpoint in init_from."""
    subtoken_pooling: Pooling | None = None
    """Which sub-tokens make a word's vector. Default: first, or that of the checkpoint in init_from."""
    embed_ent_token: bool | None = None
    """A type's vector is that of the <<ENT>> token before its label; else of the label's first token, which a small
    encoder learns to use sooner. Default: true, or as the checkpoint in init_from."""
    max_width: Annotated[int | None, AT_LEAST_ONE] = None
    """Longest span, in words (K). Default: 12, or that of the checkpoint in init_from."""
    max_len: Annotated[int | None, AT_LEAST_ONE] = None
    """Words of a text that are read. Default: what the encoder takes, or that of the checkpoint in init_from."""
    dropout: Annotated[float | None, SHARE] = None
    """Dropout of the head. Default: 0.4, or that of the checkpoint in init_from."""
    freeze_encoder: bool = False
    """Run the encoder once per text without gradients."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class OptimConfig:
    """Loss, optimizer and schedule."""

    lr: Annotated[float, _RATE] = 1e-5
    """Peak learning rate of the encoder."""
    head_lr: Annotated[float, _RATE] = 5e-5
    """Peak learning rate of everything else."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """AdamW's decay, not on biases and norms."""
    warmup: Annotated[float, SHARE] = 0.1
    """Share of the steps with a linearly rising rate; a cosine falls to zero after it."""
    max_grad_norm: Annotated[float, NOT_NEGATIVE] = 1.0
    """Clip the gradient's norm to this; 0 for no clipping."""
    focal_gamma: Annotated[float, NOT_NEGATIVE] = 0.0
    """Focusing exponent of the focal loss."""
    focal_scale: Annotated[float, POSITIVE] = 1.0
    """Plain factor on the loss (the paper's alpha)."""
    class_balance: Annotated[float | None, _BALANCE] = None
    """Weight of positives, negatives get one minus it (the public code's alpha); none: both 1."""
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Sum over spans and types, or their mean."""

    def __post_init__(self) -> None:
        check_settings(self)
        rate = max(self.lr, self.head_lr)
        if self.weight_decay * rate > 1:
            raise SettingError(
                f"weight_decay: expected at most 1 / the peak learning rate ({1 / rate:g}), got {self.weight_decay!r}; "
                "AdamW multiplies the weights by 1 - rate x decay at every step"
            )


@dataclass(frozen=True)
class RunConfig:
    """How long, how much at a time, where to, and how."""

    output_dir: str = "runs/demo"
    """Folder for the model, checkpoints, logs and report.json."""
    max_steps: Annotated[int | None, AT_LEAST_ONE] = None
    """Optimizer steps; none: by epochs. With resume, more steps than before extend a finished run."""
    epochs: Annotated[float, POSITIVE] = 1.0
    """Passes over the training data, when max_steps is not given."""
    batch_tokens: Annotated[int | None, AT_LEAST_ONE] = None
    """Tokens in a batch, prompts by their mean length."""
    batch_size: Annotated[int | None, AT_LEAST_ONE] = 8
    """Most sentences in a batch."""
    accumulation: Annotated[int, AT_LEAST_ONE] = 1
    """Batches per optimizer step."""
    eval_steps: Annotated[int, NOT_NEGATIVE] = 500
    """Evaluate on the dev data after so many steps; 0: only at the end."""
    checkpoint_steps: Annotated[int, NOT_NEGATIVE] = 500
    """Write a checkpoint to resume from after so many steps and at the end; 0: only when the run is interrupted."""
    threshold: Annotated[float, PROBABILITY] = 0.5
    """Least probability of a predicted entity."""
    dtype: TrainingDtype = "auto"
    """Arithmetic of training and evaluation (mixed precision for bf16 and fp16; the weights stay fp32); auto: bf16 on a
    GPU that multiplies it natively, else fp32."""
    fused: bool = True
    """Use the fused operators (Triton on a GPU, C++ on a CPU), or the textbook head in plain PyTorch."""
    seed: Annotated[int, _SEED] = 0
    """Seed of everything random."""
    resume: bool = False
    """Go on from the newest checkpoint in output_dir, with the same settings (but max_steps and epochs)."""
    overwrite: bool = False
    """Replace what an earlier run left in output_dir: its checkpoints and logs once all inputs have been read, its
    model when there is a new one."""
    progress: bool = True
    """Show a progress bar."""
    config: tuple[str, ...] = ()
    """YAML files of settings, by the names of these flags; flags win."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `python -m glimodern.train`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: EncoderConfig = field(default_factory=EncoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself; the parts have checked their own fields."""
        run, data, model = self.run, self.data, self.model
        if not data.train_data and (data.dev_data or data.eval_data or data.held_out_types):
            raise SettingError(
                "train_data: expected at least one data set beside dev_data, eval_data or held_out_types, got none "
                "(with none of them all, the embedded demo corpus is used)"
            )
        if data.dev_data and data.held_out_types:
            raise SettingError(
                "dev_data, held_out_types: expected one of them to choose the checkpoint, got both; leave out dev_data "
                f"or set held_out_types to 0 (it is {data.held_out_types})"
            )
        if run.resume and run.overwrite:
            raise SettingError("resume, overwrite: expected one of them, got both")
        if run.batch_size is None and run.batch_tokens is None:
            raise SettingError("batch_size, batch_tokens: expected at least one of them, got none")
        if model.init_from is not None and model.encoder is not None:
            raise SettingError(
                f"encoder, init_from: expected one of them, got both; the checkpoint {model.init_from} has its own "
                f"encoder, so leave out encoder {model.encoder!r}"
            )

    def flat(self) -> dict[str, Any]:
        """Every setting by its flag's name, as report.json keeps it."""
        return {f.name: getattr(part, f.name) for part in self._parts() for f in fields(part)}

    def _parts(self) -> tuple[Any, ...]:
        return self.data, self.model, self.optim, self.run


def yaml_arguments(path: str) -> list[str]:
    """The settings of a YAML file, types checked, as command-line arguments. SettingError names file and setting."""
    import yaml

    file = user_path(path, "--config")
    if not file.is_file():
        raise FileNotFoundError(f"--config {path}: no such file")
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        settings = {} if tree is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"--config {path}: expected YAML, got a file that does not read: {error}") from error
    if not isinstance(settings, dict):
        raise SettingError(f"--config {path}: expected a mapping of settings, got {type(settings).__name__}")
    keys = [] if tree is None else [str(key.value).replace("-", "_") for key, _ in tree.value]
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    if twice:
        raise SettingError(f"--config {path}: expected each setting once, got {', '.join(twice)} several times")
    return [argument for key, value in settings.items() for argument in _yaml_argument(path, key, value)]


def _yaml_argument(path: str, key: Hashable, value: Any) -> list[str]:
    name = str(key).replace("-", "_")
    part = next((part for part in _PARTS if name in field_hints(part)), None)
    if part is None or name == "config":
        known = [name for part in _PARTS for name in field_hints(part) if name != "config"]
        raise SettingError(f"--config {path}: unknown setting {key!r}; known are {', '.join(known)}")
    hint = field_hints(part)[name]
    several = isinstance(default_of(part, name), tuple)
    if several:
        value = tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value
    elif isinstance(value, str):
        value = _number(value, hint)
    try:
        check_value(name, hint, value)
    except SettingError as error:
        quote = (
            ""
            if isinstance(value, (str, tuple)) or value is None
            else "; text that YAML takes for something else needs quotes"
        )
        raise SettingError(f"--config {path}: {error}{quote}") from None
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool) and default_of(part, name) is not None:  # else the flag takes True or False
        return [flag if value else "--no-" + flag[2:]]
    return [flag, *value] if several else [f"{flag}={value}"]


def _number(text: str, hint: Any) -> Any:
    """The number that a text writes, where the setting may be one: YAML 1.1 reads 1e-3, without a dot, as text."""
    if float not in plain_types(hint):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def with_yaml(given: Sequence[str]) -> list[str]:
    """Arguments with what the YAML files of `--config` hold put before them, so that flags win.

    SettingError for a list setting that is given by two flags, of which a parser would keep the last.
    """
    lists = {"--" + name.replace("_", "-") for name in _list_settings()}
    refuse_repeated(given, lists - {"--config"})
    merged: list[str] = []
    rest: list[str] = []
    files: list[str] = []
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
                raise SettingError("--config: expected a YAML file, got nothing")
            merged += yaml_arguments(path)
            files.append(path)
        else:
            rest.append(argument)
        position += 1
    return [*merged, *rest, *(["--config", *files] if files else [])]


def _list_settings() -> Iterator[str]:
    return (name for part in _PARTS for name in field_hints(part) if isinstance(default_of(part, name), tuple))


_PARTS = (DataConfig, EncoderConfig, OptimConfig, RunConfig)


def parse_train_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """TrainConfig from flags and an optional `--config FILE.yaml`."""
    return tyro.cli(
        Annotated[TrainConfig, tyro.conf.OmitArgPrefixes],
        args=with_yaml(sys.argv[1:] if arguments is None else arguments),
        prog="python -m glimodern.train",
        description="Train, evaluate and save a GLiNER span model. `--config FILE.yaml` reads settings from a file.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
