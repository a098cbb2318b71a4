"""The settings of a training run: frozen dataclasses, validated once, from which the command line is built.

A YAML file given by `--config` contains a flat mapping with the names of the flags, with `-` or `_`. Flags override the
file. A setting that is None was not given; `glimodern.train.setup` resolves it.
"""

import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import tyro

from glimodern.checkpoint.config import Pooling, SpanMode, stored_splitter
from glimodern.files.atomic import user_path
from glimodern.inputs.words import DEFAULT_SPLITTER, SplitterName
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

from .tuning import TuningConfig

TrainingDtype = Literal["auto", "fp32", "bf16", "fp16"]

_BALANCE = Range(
    0, 1, open_least=True, open_most=True,
    remedy="1 gives negatives no weight, 0 positives; for a constant factor use focal_scale",
)  # fmt: skip
_RATE = Range(0, 1, open_least=True, remedy="AdamW changes each weight by up to the rate at every step")
_SEED = Range(0, 2**32 - 1)  # so that products of the seed fit PyTorch's 64-bit seed


@dataclass(frozen=True)
class DataConfig:
    """Data to train and evaluate on."""

    train_data: tuple[str, ...] = ()
    """Files, folders or hub data sets to train on. Default: the embedded demo corpus."""
    dev_data: tuple[str, ...] = ()
    """Data sets on which the best checkpoint is chosen."""
    eval_data: tuple[str, ...] = ()
    """Data sets to evaluate on at the end."""
    eval_split: str | None = "test"
    """Split to read from evaluation folders that have splits."""
    held_out_types: Annotated[int, NOT_NEGATIVE] = 0
    """Remove this many types from the training data, and choose the best checkpoint on them. With dev_data, which is
    possible with init_from only, the checkpoint is chosen on that, and these types show what zero-shot F1 is kept."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    long_texts: Literal["windows", "cut"] = "windows"
    """A text longer than the model takes is replaced by overlapping windows in training and read in windows in
    evaluation, or is cut at its end in both."""
    max_types: Annotated[int, AT_LEAST_ONE] = 25
    """Maximum number of entity types asked of a sentence."""
    negative_ratio: Annotated[float, NOT_NEGATIVE] = 1.0
    """Maximum ratio of negative types (types of other sentences) to the sentence's own types, which count as at least
    one."""
    type_drop: Annotated[float, SHARE] = 0.0
    """Probability of not asking a type of the sentence."""
    shuffle_types: bool = True
    """Ask the types in random order."""
    ask_whole_set: bool = True
    """Ask a sentence all types of its data set (or group), if there are at most max_types. Its annotators looked for
    all of these types, so spans that are not annotated are true negatives."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class EncoderConfig:
    """The model to build, or to continue from."""

    encoder: str | None = None
    """Folder or hub name of a pretrained encoder, or "demo": a tiny ModernBERT from scratch with its own tokenizer
    (others of its size: glimodern.train.demo.DEMO_ENCODERS). Default: demo, or that of the checkpoint in init_from."""
    labels_encoder: str | None = None
    """Folder or hub name of a sentence encoder for the labels, which makes a bi-encoder. Default: none, the labels
    stand in the text, or that of the checkpoint in init_from."""
    init_from: str | None = None
    """Checkpoint of a whole model to fine-tune, instead of a fresh head on an encoder."""
    hidden_size: Annotated[int | None, WIDTH] = None
    """Width d of the span head. Default: the encoder's, or that of the checkpoint in init_from."""
    span_mode: SpanMode | None = None
    """Head. It scores spans: markerV0 of public checkpoints, marker of the oldest ones, ffn of the paper's equation 3.
    Or words, as start, end and inside of entities of any length: token_level. Default: markerV0, or that of the
    checkpoint in init_from."""
    subtoken_pooling: Pooling | None = None
    """Sub-tokens that make a word's vector. Default: first, or that of the checkpoint in init_from."""
    embed_ent_token: bool | None = None
    """Read a type's vector at the <<ENT>> token before its label, instead of at the label's first token, which a small
    encoder learns to use sooner. Default: true, or as in the checkpoint in init_from."""
    max_width: Annotated[int | None, AT_LEAST_ONE] = None
    """Longest span, in words (K); token_level finds longer ones too. Default: 12, or that of the checkpoint in
    init_from."""
    max_len: Annotated[int | None, AT_LEAST_ONE] = None
    """Maximum words read of a text. Default: as many as the encoder takes tokens, at most 8,192, or that of the
    checkpoint in init_from."""
    dropout: Annotated[float | None, SHARE] = None
    """Dropout probability of the head. Default: 0.4, or that of the checkpoint in init_from."""
    words_splitter_type: SplitterName | None = None
    """How texts are split into words, in the data and by the model; "unicode" for scripts without spaces. Default:
    whitespace, or that of the checkpoint in init_from."""
    freeze_encoder: bool = False
    """Run the encoder without gradients and without dropout."""
    cache_encoder: bool = False
    """With freeze_encoder: keep what the encoder computes on disk, and read it from there in later epochs. A sentence
    is then asked the same types in every epoch, unless a labels_encoder reads them."""
    cache_variants: Annotated[int, AT_LEAST_ONE] = 1
    """Different draws of a sentence's types, taken in turns from epoch to epoch, each with outputs of its own in the
    cache."""
    cache_dir: str | None = None
    """Folder of the cache, which several runs may share. Default: encoder_cache in output_dir."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.cache_encoder and not self.freeze_encoder:
            raise SettingError(
                "cache_encoder: expected freeze_encoder with it, got none; an encoder that is trained computes other "
                "outputs at every step"
            )
        names = ("cache_variants", "cache_dir")
        given = [name for name in names if getattr(self, name) != default_of(EncoderConfig, name)]
        if given and not self.cache_encoder:
            raise SettingError(f"{', '.join(given)}: expected cache_encoder with it, got none; give cache_encoder")

    def splitter(self) -> str:
        """Return the splitter of the model to be built, by which its data are read."""
        if self.words_splitter_type is not None:
            return self.words_splitter_type
        return DEFAULT_SPLITTER if self.init_from is None else stored_splitter(self.init_from)


@dataclass(frozen=True)
class OptimConfig:
    """Loss, optimizer and schedule."""

    lr: Annotated[float, _RATE] = 1e-5
    """Peak learning rate of the encoder."""
    head_lr: Annotated[float, _RATE] = 5e-5
    """Peak learning rate of everything else."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """AdamW's weight decay, not applied to biases and norms."""
    warmup: Annotated[float, SHARE] = 0.1
    """Fraction of the steps with a linearly rising learning rate, followed by a cosine decay to zero."""
    max_grad_norm: Annotated[float, NOT_NEGATIVE] = 1.0
    """Maximum norm of the gradient, which is clipped to it; 0: no clipping."""
    focal_gamma: Annotated[float, NOT_NEGATIVE] = 0.0
    """Focusing exponent of the focal loss."""
    focal_scale: Annotated[float, POSITIVE] = 1.0
    """Constant factor on the loss (the paper's alpha)."""
    class_balance: Annotated[float | None, _BALANCE] = None
    """Weight of positives; negatives have one minus it (the public code's alpha). Default: both have the weight 1."""
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Sum or mean of the loss over spans and types."""

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
    """Length of the run, batch size, output and arithmetic."""

    output_dir: str = "runs/demo"
    """Folder for the model, checkpoints, logs and report.json."""
    max_steps: Annotated[int | None, AT_LEAST_ONE] = None
    """Optimizer steps. Default: by epochs. With resume, more steps than before extend a finished run."""
    epochs: Annotated[float, POSITIVE] = 1.0
    """Passes over the training data, if max_steps is not given."""
    batch_tokens: Annotated[int | None, AT_LEAST_ONE] = None
    """Maximum tokens in a batch, with prompts counted by their mean length."""
    batch_size: Annotated[int | None, AT_LEAST_ONE] = 8
    """Maximum sentences in a batch."""
    accumulation: Annotated[int, AT_LEAST_ONE] = 1
    """Batches per optimizer step."""
    eval_steps: Annotated[int, NOT_NEGATIVE] = 500
    """Steps between evaluations on the dev data; 0: evaluate at the end only."""
    checkpoint_steps: Annotated[int, NOT_NEGATIVE] = 500
    """Steps between checkpoints to resume from; one is written at the end, too. 0: only when the run is interrupted."""
    threshold: Annotated[float, PROBABILITY] = 0.5
    """Minimum probability of a predicted entity, exclusive."""
    dtype: TrainingDtype = "auto"
    """Dtype of training and evaluation: mixed precision for bf16 and fp16, with weights in fp32. auto: bf16 on a GPU
    that multiplies it natively, else fp32."""
    fused: bool = True
    """Use the fused operators (Triton on a GPU, C++ on a CPU), instead of the textbook head in plain PyTorch."""
    seed: Annotated[int, _SEED] = 0
    """Seed of all random numbers."""
    resume: bool = False
    """Continue from the newest checkpoint in output_dir, with the same settings except max_steps and epochs."""
    overwrite: bool = False
    """Replace an earlier run in output_dir: its checkpoints and logs after all inputs have been read, its model when a
    new one is saved."""
    progress: bool = True
    """Show a progress bar."""
    config: tuple[str, ...] = ()
    """YAML files of settings, with the names of these flags. Flags override them."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `python -m glimodern.train`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: EncoderConfig = field(default_factory=EncoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        """Check the settings against each other. Each part has checked its own fields."""
        run, data, model = self.run, self.data, self.model
        self.tuning.check(
            init_from=model.init_from,
            freeze_encoder=model.freeze_encoder,
            measured=bool(data.held_out_types or self.tuning.canary_data),
        )
        if not data.train_data and (data.dev_data or data.eval_data or data.held_out_types):
            raise SettingError(
                "train_data: expected at least one data set with dev_data, eval_data or held_out_types, got none; give "
                "train_data, or none of them to use the embedded demo corpus"
            )
        if data.dev_data and data.held_out_types and model.init_from is None:
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
        """All settings by the names of their flags, as in report.json."""
        return {f.name: getattr(part, f.name) for part in self._parts() for f in fields(part)}

    def _parts(self) -> tuple[Any, ...]:
        return self.data, self.model, self.optim, self.run, self.tuning


def yaml_arguments(path: str) -> list[str]:
    """Read the settings of a YAML file, check their types, and return them as command-line arguments.

    Raises SettingError, which names the file and the setting, and FileNotFoundError.
    """
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
    repeated = sorted(key for key, count in Counter(keys).items() if count > 1)
    if repeated:
        raise SettingError(f"--config {path}: expected each setting once, got {', '.join(repeated)} several times")
    return [argument for key, value in settings.items() for argument in _yaml_argument(path, key, value)]


def _yaml_argument(path: str, key: Hashable, value: Any) -> list[str]:
    name = str(key).replace("-", "_")
    part = next((part for part in _PARTS if name in field_hints(part)), None)
    if part is None or name == "config":
        known = [name for part in _PARTS for name in field_hints(part) if name != "config"]
        raise SettingError(f"--config {path}: expected one of {', '.join(known)}, got the unknown setting {key!r}")
    hint = field_hints(part)[name]
    is_list = isinstance(default_of(part, name), tuple)
    if is_list:
        value = tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value
    elif isinstance(value, str):
        value = _number(value, hint)
    try:
        check_value(name, hint, value)
    except SettingError as error:
        is_text = isinstance(value, (str, tuple)) or value is None
        remedy = "" if is_text else "; quote text that YAML reads as another type"
        raise SettingError(f"--config {path}: {error}{remedy}") from None
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool) and default_of(part, name) is not None:  # with the default None the flag takes a value
        return [flag if value else "--no-" + flag[2:]]
    return [flag, *value] if is_list else [f"{flag}={value}"]


def _number(text: str, hint: Any) -> Any:
    """Convert text to a number if the setting may be a float: YAML 1.1 reads 1e-3, without a dot, as text."""
    if float not in plain_types(hint):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def with_yaml(given: Sequence[str]) -> list[str]:
    """Put the settings of the YAML files of `--config` before the other arguments, so that flags override them.

    Raises SettingError for a list setting that is given by two flags, of which a parser would keep the last.
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


_PARTS = (DataConfig, EncoderConfig, OptimConfig, RunConfig, TuningConfig)


def parse_train_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Build a TrainConfig from flags and an optional `--config FILE.yaml`."""
    return tyro.cli(
        Annotated[TrainConfig, tyro.conf.OmitArgPrefixes],
        args=with_yaml(sys.argv[1:] if arguments is None else arguments),
        prog="python -m glimodern.train",
        description="Train, evaluate and save a GLiNER span model. `--config FILE.yaml` reads settings from a file.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
