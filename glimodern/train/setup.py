"""What a training run starts from: data that can be learned from, a model, an optimizer; all checked before a step."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glimodern.checkpoint.config import HeadOptions
from glimodern.cli.outputs import check_not_read, check_output_folder
from glimodern.data import Dataset, asked_types, load_split, with_asked_types
from glimodern.data.holdout import hold_out_types
from glimodern.files.atomic import user_path
from glimodern.inputs.packer import Packer
from glimodern.model.glimodern import GLiModern
from glimodern.model.loading import resolve_dtype

from .config import DataConfig, EncoderConfig, OptimConfig, TrainConfig, TrainingDtype
from .demo import DEMO_ENCODERS, encoder_config, train_tokenizer
from .resume import run_files

logger = logging.getLogger(__name__)

_OF_THE_CHECKPOINT = (
    *("hidden_size", "span_mode", "subtoken_pooling", "embed_ent_token", "max_width", "max_len"),
    "labels_encoder",
)


def check_paths(config: TrainConfig) -> Path:
    """The output folder. ValueError if it cannot be written, or if the run reads what it replaces there."""
    output = check_output_folder("output_dir", config.run.output_dir)
    sources = {name: getattr(config.data, name) for name in ("train_data", "dev_data", "eval_data")}
    models = {name: getattr(config.model, name) for name in ("init_from", "encoder", "labels_encoder")}
    reads = {**sources, **{name: (value,) if value else () for name, value in models.items()}}
    check_not_read("output_dir", run_files(output), {**reads, "config": config.run.config})
    for setting, names in sources.items():
        for name in names:
            folder = user_path(name, setting)
            if folder.is_dir() and folder.resolve() in (output.resolve(), output.resolve().parent):
                raise ValueError(
                    f"output_dir: {output} lies in {name}, whose files {setting} reads as data, so what the run writes "
                    "would be read the next time; choose a folder elsewhere"
                )
    for path in run_files(output):
        if path.exists() and path.is_dir() != (path.suffix == ""):
            kind = "a file" if path.suffix else "a folder"
            raise ValueError(f"output_dir: expected {path} to be {kind} or not to exist; choose another folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"output_dir: {path} cannot be written; choose another folder")
    return output


def load_data(config: DataConfig, seed: int) -> tuple[Dataset, Dataset | None, list[Dataset]]:
    """Training, dev and evaluation sets; with no train_data the embedded demo corpus."""
    if not config.train_data:
        from glimodern.data.demo import build_demo_corpus

        corpus = build_demo_corpus(0)
        return corpus.train, corpus.dev, [corpus.test]

    limit = config.max_types if config.ask_whole_set else 0

    def load(source: str, split: str | None, limit: int | None) -> Dataset:
        return with_asked_types(load_split(source, split, skip_bad_rows=config.skip_bad_rows), limit)

    train = join([load(source, "train", limit) for source in config.train_data])
    dev = None
    if config.dev_data:
        dev = join([load(source, "dev", None) for source in config.dev_data])
    elif config.held_out_types:
        train, dev = hold_out_types(train, config.held_out_types, seed=seed)
    return train, dev, [load(source, config.eval_split, None) for source in config.eval_data]


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one."""
    return Dataset(
        " + ".join(dict.fromkeys(dataset.name for dataset in datasets)),
        [example for dataset in datasets for example in dataset],
        skipped=sum(dataset.skipped for dataset in datasets),
        skipped_out_of_range=sum(dataset.skipped_out_of_range for dataset in datasets),
        unmatched=sum(dataset.unmatched for dataset in datasets),
    )


def check_gold(setting: str, dataset: Dataset, packer: Packer, *, alone: bool) -> None:
    """ValueError, with the reason, unless the model can give at least one gold entity of the data set.

    alone: each label is asked by itself, which leaves a text the most room; else as asked_types says.
    """
    if not any(example.words for example in dataset):
        raise ValueError(f"{setting}: expected sentences with words, got {len(dataset)} sentences without one")
    if not dataset.types:
        raise ValueError(
            f"{setting}: expected an entity type to ask for, got none in the {len(dataset)} sentences of "
            f"{dataset.name}; mark entities, or give a row its `types`"
        )
    gold = wide = 0
    for example, asked in zip(dataset, asked_types(dataset), strict=True):
        entities = example.entities if example.words else []
        questions = [[label] for label in dict.fromkeys(label for _, _, label in entities)] if alone else [asked]
        for labels in questions if entities else ():
            if len(packer.pack([example.words], [labels], [entities]).positives):
                return
        gold += len(entities)
        wide += sum(end - start >= packer.max_width for start, end, _ in entities)
    if not gold:
        raise ValueError(
            f"{setting}: expected gold entities, got none in the {len(dataset)} sentences of {dataset.name}, so there "
            "is nothing to learn or to score"
        )
    limit = "" if packer.max_tokens is None else f" and {packer.max_tokens} tokens with its labels"
    raise ValueError(
        f"{setting}: expected entities that the model can give, got {gold} in {dataset.name} of which {wide} are wider "
        f"than max_width ({packer.max_width} words) and {gold - wide} lie beyond what is read of a text "
        f"({packer.max_words} words{limit}); raise max_width or max_len, or split the texts"
    )


def build_model(config: EncoderConfig, train: Dataset, max_types: int, seed: int) -> GLiModern:
    """A model to train: a checkpoint to go on from, a fresh head on a pretrained encoder, or the demo's own.

    Settings that are None were not given: a checkpoint keeps its own, and a fresh head has the defaults of HeadConfig.
    The model's config says how many types this run asks of a sentence (max_types), not what an earlier run asked.
    """
    torch.manual_seed(seed)
    if config.init_from is not None:
        model = GLiModern.from_pretrained(config.init_from, trainable=True)
        for name in _OF_THE_CHECKPOINT:
            asked, has = getattr(config, name), getattr(model.config, name)
            if asked not in (None, has):
                raise ValueError(f"{name}: the checkpoint of init_from has {has!r}, got {asked!r}; leave it out")
        if config.dropout is not None:
            model.set_dropout(config.dropout)
        model.config = replace(model.config, max_types=max_types)
        return model
    given = {name: getattr(config, name) for name in (*_OF_THE_CHECKPOINT, "dropout")}
    head: HeadOptions = {"max_types": max_types}
    head.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    encoder = config.encoder or "demo"
    if encoder in DEMO_ENCODERS:
        tokenizer = train_tokenizer((example.words for example in train), train.types)
        return GLiModern.from_encoder_config(encoder_config(len(tokenizer), encoder), tokenizer, **head)
    return GLiModern.from_encoder(encoder, **head)


def resolved(config: TrainConfig, model: GLiModern, dtype: TrainingDtype) -> TrainConfig:
    """The settings with what was not given as the model has it, and the dtype that is computed in."""
    has = {name: getattr(model.config, name) for name in (*_OF_THE_CHECKPOINT, "dropout")}
    encoder = None if config.model.init_from is not None else config.model.encoder or "demo"
    return replace(config, model=replace(config.model, encoder=encoder, **has), run=replace(config.run, dtype=dtype))


def training_dtype(dtype: TrainingDtype, device: torch.device) -> TrainingDtype:
    """ "fp32", "bf16" or "fp16" on this device; "auto" is bf16 on a GPU that multiplies it natively, else fp32.

    CPUs default to fp32: bf16 training on them has been measured only where it is emulated, 20 times slower
    (docs/LOG.md).
    """
    native = resolve_dtype("auto", device) == torch.bfloat16
    if dtype == "auto":
        return "bf16" if device.type == "cuda" and native else "fp32"
    if dtype == "bf16" and not native:
        logger.warning("dtype: bf16 is emulated on %s without bf16 arithmetic, and slow; fp32 is faster", device)
    return dtype


def optimizer_groups(model: GLiModern, config: OptimConfig) -> list[dict[str, Any]]:
    """Four groups: encoders and the rest, each with and without weight decay (none on biases and other vectors)."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            encoder = name.startswith(("encoder.", "label_encoder.encoder."))
            groups.setdefault((encoder, parameter.dim() >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr if encoder else config.head_lr,
            "peak_lr": config.lr if encoder else config.head_lr,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (encoder, decay), parameters in groups.items()
    ]
