"""The process of one phase of one encoder in a comparison. `glimodern.compare.loop` writes its job file."""

import itertools
import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator

from glimodern.data import asked_types
from glimodern.files.atomic import write_json
from glimodern.model.glimodern import GLiModern
from glimodern.train.batches import TrainingBatches
from glimodern.train.config import DataConfig, EncoderConfig, OptimConfig, RunConfig, TrainConfig
from glimodern.train.interrupts import Stopped
from glimodern.train.log import machine, versions
from glimodern.train.loop import train
from glimodern.train.memory import keep_freed_memory, peak_memory
from glimodern.train.ranks import this_device
from glimodern.train.resume import newest
from glimodern.train.setup import build_model, load_data, optimizer_groups, training_dtype

from .config import TRAINING_FIELDS

_WARM_UP, _MEASURED = 2, 6  # training steps whose durations estimate the steps in a number of seconds
_PASSES = 3  # timed passes of prediction


def read_config(fields: dict[str, Any]) -> TrainConfig:
    """Build a TrainConfig from the result of `dataclasses.asdict`, after JSON."""

    def part(name: str) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in fields[name].items()}

    data, model = DataConfig(**part("data")), EncoderConfig(**part("model"))
    return TrainConfig(data, model, OptimConfig(**part("optim")), RunConfig(**part("run")))


def count_steps(job: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Estimate the training steps that fit into the time budget, by a few steps on a model that is then discarded."""
    dtype = training_dtype(config.run.dtype, this_device())
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(dtype, dtype))
    train_set = load_data(config.data, config.run.seed, config.model.splitter()).train
    model = build_model(config.model, train_set, config.data.max_types, config.run.seed)
    if config.model.freeze_encoder:
        model.freeze_encoder()
    optimizer = torch.optim.AdamW(optimizer_groups(model, config.optim), fused=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    prepared.train()
    stream = TrainingBatches(train_set, model.packer, config).starting_at(0)
    durations = []
    for _ in range(_WARM_UP + _MEASURED):
        began = time.perf_counter()
        for _, _, batch in itertools.islice(stream, config.run.accumulation):
            loss = prepared(batch.to(accelerator.device), fused=config.run.fused)
            accelerator.backward(loss)
            loss.item()
        optimizer.step()
        optimizer.zero_grad()
        durations.append(time.perf_counter() - began)
    return {"steps": max(1, int(job["seconds"] / median(durations[_WARM_UP:])))}


def run_training(job: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Train, or continue from the checkpoint of a stopped run with the same settings."""
    run = config.run
    resume = job["resume"] and newest(Path(run.output_dir) / "checkpoints") is not None
    # Overwriting is safe, because the folder belongs to the comparison.
    report = train(replace(config, run=replace(run, resume=resume, overwrite=not resume)))
    model = GLiModern.from_pretrained(Path(config.run.output_dir) / "model", trainable=True)
    return {
        **{ours: report[theirs] for theirs, ours in TRAINING_FIELDS},
        "f1": {name: scores["micro"]["f1"] for name, scores in report["evaluation"].items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "machine": machine(),
        "versions": versions(),
    }


def run_prediction(job: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Time prediction with the trained model, loaded for inference: the median of _PASSES passes after a warm-up."""
    test_sets = load_data(config.data, config.run.seed, config.model.splitter()).tests
    model = GLiModern.from_pretrained(Path(config.run.output_dir) / "model", dtype=job["predict_dtype"], device="auto")
    count = job["predict_sentences"]
    texts = [example.words for dataset in test_sets for example in dataset.examples[:count]]
    label_sets = [labels for dataset in test_sets for labels in asked_types(dataset)[:count]]
    seconds = []
    for _ in range(1 + _PASSES):
        began = time.perf_counter()
        for _ in model.predict_words(
            texts, label_sets, threshold=config.run.threshold, long_texts=config.data.long_texts
        ):
            pass
        seconds.append(time.perf_counter() - began)
    encoder = model.encoder
    return {
        "predict_seconds": median(seconds[1:]),
        "sentences": len(texts),
        "sentences_per_second": len(texts) / median(seconds[1:]),
        "predict_dtype": model.dtype_name,
        "predict_memory_bytes": peak_memory(model.device),
        "packed": encoder.packed,
        "packed_reason": encoder.packed_reason,
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    config = read_config(job["train"])
    keep_freed_memory()
    # A terminal sends SIGINT (Ctrl-C) to this process too. glimodern.compare.loop ends it by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = {"steps": count_steps, "train": run_training, "predict": run_prediction}[job["phase"]]
    try:
        write_json(Path(job["result"]), {"settings": job["settings"], "row": run(job, config)})
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main()
