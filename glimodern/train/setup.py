"""Setup of a training run: paths, data, model and optimizer, all checked before the first step."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern.checkpoint.config import HeadOptions
from glimodern.cli.outputs import check_not_read, check_output_folder
from glimodern.data import Dataset, asked_types, load_split, with_asked_types
from glimodern.data.holdout import hold_out_types
from glimodern.files.atomic import user_path
from glimodern.inputs.packer import Packer
from glimodern.inputs.words import DEFAULT_SPLITTER
from glimodern.model.glimodern import GLiModern
from glimodern.model.loading import resolve_dtype

from .config import DataConfig, EncoderConfig, OptimConfig, TrainConfig, TrainingDtype
from .demo import DEMO_ENCODERS, encoder_config, train_tokenizer
from .limits import count_lost, findable, group_budgets, read_parts, tokenize_whole
from .lora import in_adapter
from .resume import run_files

logger = logging.getLogger(__name__)

# Settings of the model that a checkpoint fixes. They may be given with init_from only if they are the checkpoint's.
_FIXED_BY_CHECKPOINT = (
    *("hidden_size", "span_mode", "subtoken_pooling", "embed_ent_token", "max_width", "max_len"),
    "labels_encoder",
)
_OF_MODEL = (*_FIXED_BY_CHECKPOINT, "dropout", "words_splitter_type")


def check_paths(config: TrainConfig) -> Path:
    """Return the output folder. Raises ValueError if it cannot be written, or if the run would replace its inputs."""
    output = check_output_folder("output_dir", config.run.output_dir)
    if config.model.cache_dir is not None:
        check_output_folder("cache_dir", config.model.cache_dir)
    sources = {name: getattr(config.data, name) for name in ("train_data", "dev_data", "eval_data")}
    sources |= {name: getattr(config.tuning, name) for name in ("canary_data", "replay_data")}
    models = {name: getattr(config.model, name) for name in ("init_from", "encoder", "labels_encoder")}
    reads = {**sources, **{name: (value,) if value else () for name, value in models.items()}}
    check_not_read("output_dir", run_files(output), {**reads, "config": config.run.config})
    for setting, names in sources.items():
        for name in names:
            folder = user_path(name, setting)
            if folder.is_dir() and folder.resolve() in (output.resolve(), output.resolve().parent):
                raise ValueError(
                    f"output_dir: expected a folder outside {name}, whose files {setting} reads as data, got {output}, "
                    "whose files would be read by the next run; choose a folder elsewhere"
                )
    for path in run_files(output):
        if path.exists() and path.is_dir() != (path.suffix == ""):
            expected, got = ("a file", "a folder") if path.suffix else ("a folder", "a file")
            raise ValueError(
                f"output_dir: expected {path} to be {expected} or not to exist, got {got}; choose another folder"
            )
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"output_dir: expected a writable {path}, got a read-only one; choose another folder")
    return output


class Data(NamedTuple):
    """The data sets of a run. dev: to choose the checkpoint by. held_out: with held_out_types; may be dev too."""

    train: Dataset
    dev: Dataset | None
    tests: list[Dataset]
    held_out: Dataset | None = None


def load_data(config: DataConfig, seed: int, splitter: str) -> Data:
    """Load the data sets of a run.

    Without train_data these are the embedded demo corpus. seed: chooses held-out types. splitter: the model's.
    """
    if not config.train_data:
        from glimodern.data.demo import build_demo_corpus

        if splitter != DEFAULT_SPLITTER:
            raise ValueError(
                f"words_splitter_type: expected {DEFAULT_SPLITTER!r}, which splits the embedded demo corpus, got "
                f"{splitter!r}; give train_data"
            )

        corpus = build_demo_corpus(0)
        return Data(corpus.train, corpus.dev, [corpus.test])

    limit = config.max_types if config.ask_whole_set else 0

    def load(source: str, split: str | None, limit: int | None) -> Dataset:
        return with_asked_types(load_split(source, split, skip_bad_rows=config.skip_bad_rows, splitter=splitter), limit)

    train = join([load(source, "train", limit) for source in config.train_data])
    dev = held_out = None
    if config.held_out_types:
        train, dev = hold_out_types(train, config.held_out_types, seed=seed)
        held_out = dev
    if config.dev_data:
        dev = join([load(source, "dev", None) for source in config.dev_data])
    return Data(train, dev, [load(source, config.eval_split, None) for source in config.eval_data], held_out)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Concatenate data sets."""
    return Dataset(
        " + ".join(dict.fromkeys(dataset.name for dataset in datasets)),
        [example for dataset in datasets for example in dataset],
        skipped=sum(dataset.skipped for dataset in datasets),
        skipped_out_of_range=sum(dataset.skipped_out_of_range for dataset in datasets),
        unmatched=sum(dataset.unmatched for dataset in datasets),
    )


def check_gold(setting: str, dataset: Dataset, packer: Packer, config: DataConfig, *, alone: bool) -> None:
    """Raise ValueError, with the reason, unless the model can find at least one gold entity of the data set.

    setting: the data set's name in errors. alone: check with one label per prompt, which leaves the most room for the
    text; if False, with the labels of `asked_types`, in groups.
    """
    if not any(example.words for example in dataset):
        raise ValueError(f"{setting}: expected sentences with words, got {len(dataset)} sentences without one")
    if not dataset.types:
        raise ValueError(
            f"{setting}: expected an entity type to ask for, got none in the {len(dataset)} sentences of "
            f"{dataset.name}; mark entities, or give a row its `types`"
        )
    gold = too_wide = 0
    for example, types in zip(dataset, asked_types(dataset), strict=True):
        entities = example.entities if example.words else []
        prompts = [[label] for label in dict.fromkeys(label for _, _, label in entities)] if alone else [types]
        for labels in prompts if entities else ():
            spans = findable(example, labels, packer.widest_entity)
            (text,), (budget,) = tokenize_whole([example], packer), group_budgets([labels], packer, config.max_types)
            if count_lost(spans, read_parts(example, text, packer, budget, config.long_texts)) < len(spans):
                return
        gold += len(entities)
        widest = packer.widest_entity
        too_wide += sum(widest is not None and end - start >= widest for start, end, _ in entities)
    if not gold:
        raise ValueError(
            f"{setting}: expected gold entities, got none in the {len(dataset)} sentences of {dataset.name}; annotate "
            "entities, without which nothing can be learned or scored"
        )
    tokens = "" if packer.max_tokens is None else f" and {packer.max_tokens} tokens with its labels"
    where, remedy = f"fit no window ({packer.max_words} words{tokens})", "raise max_width or max_len"
    if config.long_texts == "cut":
        where = f"lie beyond the part of a text that is read ({packer.max_words} words{tokens})"
        remedy += ", or set long_texts to windows"
    raise ValueError(
        f"{setting}: expected entities that the model can find, got {gold} in {dataset.name} of which {too_wide} are "
        f"wider than max_width ({packer.max_width} words) and {gold - too_wide} {where}; {remedy}"
    )


def build_model(config: EncoderConfig, train: Dataset, max_types: int, seed: int) -> GLiModern:
    """Build the model to train: a checkpoint, a fresh head on a pretrained encoder, or the demo's model.

    A setting that is None was not given: a checkpoint keeps its own, and a fresh head has the default of HeadConfig.
    The config's max_types is set to this run's. seed: of the initial weights.

    Raises ValueError for a setting that differs from the checkpoint's.
    """
    torch.manual_seed(seed)
    if config.init_from is not None:
        model = GLiModern.from_pretrained(config.init_from, trainable=True, splitter=config.words_splitter_type)
        model.calibration = None  # training changes the weights that it was made on
        for name in _FIXED_BY_CHECKPOINT:
            given, stored = getattr(config, name), getattr(model.config, name)
            if given not in (None, stored):
                raise ValueError(
                    f"{name}: expected {stored!r}, as in the checkpoint of init_from, got {given!r}; leave it out"
                )
        if config.dropout is not None:
            model.set_dropout(config.dropout)
        model.config = replace(model.config, max_types=max_types)
        return model
    settings = {name: getattr(config, name) for name in _OF_MODEL}
    head: HeadOptions = {"max_types": max_types}
    head.update({name: value for name, value in settings.items() if value is not None})  # type: ignore[typeddict-item]
    encoder = config.encoder or "demo"
    if encoder in DEMO_ENCODERS:
        tokenizer = train_tokenizer((example.words for example in train), train.types)
        return GLiModern.from_encoder_config(encoder_config(len(tokenizer), encoder), tokenizer, **head)
    return GLiModern.from_encoder(encoder, **head)


def resolved(config: TrainConfig, model: GLiModern, dtype: TrainingDtype) -> TrainConfig:
    """Fill in the model's values for settings that were not given, and the dtype of computation."""
    settings = {name: getattr(model.config, name) for name in _OF_MODEL}
    encoder = None if config.model.init_from is not None else config.model.encoder or "demo"
    model_config = replace(config.model, encoder=encoder, **settings)
    return replace(config, model=model_config, run=replace(config.run, dtype=dtype))


def training_dtype(dtype: TrainingDtype, device: torch.device) -> TrainingDtype:
    """Resolve the dtype of training to "fp32", "bf16" or "fp16".

    "auto" is bf16 on a GPU that multiplies it natively, else fp32. It is fp32 on all CPUs, because bf16 training has
    been measured only on a CPU that emulates it, where it is 20 times slower (docs/LOG.md). Warns for emulated bf16.
    """
    native = resolve_dtype("auto", device) == torch.bfloat16
    if dtype == "auto":
        return "bf16" if device.type == "cuda" and native else "fp32"
    if dtype == "bf16" and not native:
        logger.warning("dtype: bf16 is emulated on %s without bf16 arithmetic, and slow; fp32 is faster", device)
    return dtype


def optimizer_groups(model: GLiModern, config: OptimConfig, lora_lr: float = 0.0) -> list[dict[str, Any]]:
    """Build AdamW's parameter groups: encoders, adapters and all other modules, each with and without weight decay.

    Parameters without gradients are left out. Biases and other one-dimensional parameters have no weight decay.
    lora_lr: peak learning rate of adapters.
    """
    rates = {"adapter": lora_lr, "encoder": config.lr, "other": config.head_lr}
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            encoder = name.startswith(("encoder.", "label_encoder.encoder."))
            kind = "adapter" if in_adapter(name) else "encoder" if encoder else "other"
            groups.setdefault((kind, parameter.dim() >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[kind],
            "peak_lr": rates[kind],
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (kind, decay), parameters in groups.items()
    ]


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the norm of the gradients of all parameters that have one, as one vector."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
