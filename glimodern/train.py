"""The main job: `python -m glimodern.train --config configs/demo.yaml` trains, evaluates and saves a model.

A thin loop on accelerate: `accelerate launch -m glimodern.train ...` runs it on several GPUs or nodes. Everything
random is a function of the seed and the position in the run, so that a resumed run repeats the one that was killed.
"""

import json
import logging
import math
import os
import platform
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from glimodern import __version__, ops
from glimodern.config import DataConfig, EncoderConfig, OptimConfig, TrainConfig, parse_train_config
from glimodern.data import Dataset, load_dataset, sample_types, token_batches, validate
from glimodern.data.holdout import hold_out_types
from glimodern.evaluate import evaluate
from glimodern.metrics import Scores
from glimodern.model import GLiModern, HeadOptions
from glimodern.prompt import PackedBatch, PromptPacker
from glimodern.resume import Progress, load_progress, newest, save_progress

logger = logging.getLogger(__name__)

LOG_STEPS = 50  # a line so often where the output is no terminal and cannot show a bar


def load_data(config: DataConfig, seed: int) -> tuple[Dataset, Dataset | None, list[Dataset]]:
    """Training, dev and evaluation sets; with no train_data the embedded demo corpus."""
    if not config.train_data:
        from glimodern.data.demo import build_demo_corpus

        corpus = build_demo_corpus(0)
        return corpus.train, corpus.dev, [corpus.test]

    def load(source: str, split: str | None) -> Dataset:
        named = None if Path(source).is_file() else split  # a file is taken as it is, whatever its name
        return load_dataset(source, split=named, skip_bad_rows=config.skip_bad_rows)

    train = join([load(source, "train") for source in config.train_data])
    dev = None
    if config.dev_data:
        dev = join([load(source, "dev") for source in config.dev_data])
    elif config.held_out_types:
        train, dev = hold_out_types(train, config.held_out_types, seed=seed)
    return train, dev, [load(source, config.eval_split) for source in config.eval_data]


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one; their sentences keep the types they are asked for."""
    if len(datasets) == 1:
        return datasets[0]
    examples = [
        replace(example, types=example.types or tuple(dataset.types)) if len(dataset.types) <= 100 else example
        for dataset in datasets
        for example in dataset
    ]
    return Dataset(
        " + ".join(dict.fromkeys(dataset.name for dataset in datasets)),
        examples,
        skipped=sum(dataset.skipped for dataset in datasets),
        skipped_out_of_range=sum(dataset.skipped_out_of_range for dataset in datasets),
        unmatched=sum(dataset.unmatched for dataset in datasets),
    )


def build_model(config: EncoderConfig, train: Dataset, max_types: int, seed: int) -> GLiModern:
    """A model to train: a checkpoint to go on from, a fresh head on a pretrained encoder, or the demo's own."""
    torch.manual_seed(seed)
    if config.init_from is not None:
        return GLiModern.from_pretrained(config.init_from)
    head: HeadOptions = {
        "hidden_size": config.hidden_size,
        "span_mode": config.span_mode,
        "max_width": config.max_width,
        "max_len": config.max_len,
        "max_types": max_types,
        "dropout": config.dropout,
    }
    if config.encoder == "demo":
        from glimodern.demo import encoder_config, train_tokenizer

        tokenizer = train_tokenizer((example.words for example in train), train.types)
        return GLiModern.from_encoder_config(encoder_config(len(tokenizer)), tokenizer, **head)
    return GLiModern.from_encoder(config.encoder, **head)


def optimizer_groups(model: GLiModern, config: OptimConfig) -> list[dict[str, Any]]:
    """Four groups: encoder and the rest, each with and without weight decay (none on biases and other vectors)."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("encoder."), parameter.dim() >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr if encoder else config.head_lr,
            "peak_lr": config.lr if encoder else config.head_lr,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (encoder, decay), parameters in groups.items()
    ]


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at a step (0-based): linear rise over warmup x total, then a cosine to 0."""
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))


class TrainingBatches:
    """The batches of a run, a function of seed and position: shuffled epochs, token budgets, sampled types."""

    def __init__(
        self, dataset: Dataset, packer: PromptPacker, config: TrainConfig, rank: int = 0, world: int = 1
    ) -> None:
        self.dataset = dataset
        self.packer = packer
        self.config = config
        self.rank = rank
        self.world = world
        lengths = packer.token_lengths([example.words for example in dataset])
        labels = [[packer.ent_token, label] for label in dataset.types]
        label_tokens = sum(packer.token_lengths(labels)) / max(len(labels), 1)
        asked = [1 + config.data.negative_ratio] * len(lengths)
        self.lengths = [
            length + 3 + round(label_tokens * min(factor * max(len({e[2] for e in example.entities}), 1), 25))
            for length, factor, example in zip(lengths, asked, dataset, strict=True)
        ]

    def epoch(self, number: int) -> list[list[int]]:
        """All batches of an epoch, on all ranks; their number is a multiple of the number of ranks."""
        run = self.config.run
        rng = random.Random(f"{run.seed} epoch {number}")
        groups = token_batches(self.lengths, batch_tokens=run.batch_tokens, batch_size=run.batch_size, rng=rng)
        return groups + groups[: -len(groups) % self.world]

    def steps(self) -> int:
        """Optimizer steps of the run."""
        run = self.config.run
        if run.max_steps is not None:
            return run.max_steps
        whole = sum(len(self.epoch(number)) for number in range(math.floor(run.epochs)))
        part = (run.epochs % 1) * len(self.epoch(math.floor(run.epochs))) if run.epochs % 1 else 0
        return max(1, math.floor((whole + part) / self.world / run.accumulation))

    def starting_at(self, first: int) -> Iterator[tuple[int, list[int], PackedBatch]]:
        """(position, sentence indices, batch) of this rank from a position on, without end."""
        position = number = 0
        while True:
            groups = self.epoch(number)[self.rank :: self.world]
            for place, group in enumerate(groups, start=position):
                if place >= first:
                    yield place, group, self.pack(group, place)
            position += len(groups)
            number += 1

    def pack(self, group: list[int], position: int) -> PackedBatch:
        data = self.config.data
        rng = random.Random(f"{self.config.run.seed} batch {position} of {self.rank}")
        examples = [self.dataset[i] for i in group]
        types = sample_types(
            examples,
            max_types=data.max_types,
            negative_ratio=data.negative_ratio,
            shuffle=data.shuffle_types,
            drop=data.type_drop,
            rng=rng,
        )
        return self.packer.pack([e.words for e in examples], types, [e.entities for e in examples])


class RunLog:
    """metrics.jsonl, TensorBoard and the progress bar of the main process."""

    def __init__(self, accelerator: Accelerator, folder: Path, total: int, done: Progress, show: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.accelerator = accelerator
        self.file = folder / "metrics.jsonl"
        if accelerator.is_main_process:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= done.step]
            self.file.write_text("".join(kept), encoding="utf-8")
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4g}  {task.fields[speed]:,.0f} words/s"),
            disable=not (show and accelerator.is_main_process),
        )
        self.task = self.bar.add_task("train", total=total, completed=done.step, loss=math.nan, speed=0.0)

    def _lines(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines(keepends=True) if self.file.exists() else []

    def step(self, step: int, **values: float) -> None:
        self.bar.update(self.task, completed=step, loss=values["loss"], speed=values["words_per_second"])
        if not self.bar.console.is_terminal and not self.bar.disable and step % LOG_STEPS == 0:
            left = (self.bar.tasks[self.task].total or step) - step
            logger.info(
                "step %d: loss %.4g, %.0f words/s, about %.0f s to go",
                step, values["loss"], values["words_per_second"], left * values["seconds"],
            )  # fmt: skip
        self.write(step, **values)

    def write(self, step: int, **values: float) -> None:
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate and save as the config says; returns what report.json holds."""
    from rich.console import Console

    run, optim = config.run, config.optim
    output = Path(run.output_dir)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(run.dtype, run.dtype),
        gradient_accumulation_steps=run.accumulation,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
    )
    console = Console(quiet=not accelerator.is_main_process)
    output.mkdir(parents=True, exist_ok=True)
    checkpoints = output / "checkpoints"
    if not run.resume and newest(checkpoints) is not None:
        raise ValueError(
            f"output_dir: {output} holds checkpoints of an earlier run; go on with --resume, or choose another folder"
        )

    train_set, dev_set, test_sets = load_data(config.data, run.seed)
    for dataset in [train_set, *([dev_set] if dev_set else []), *test_sets]:
        console.print(validate(dataset, config.model.max_width).table())
    if not len(train_set):
        raise ValueError(f"train_data: wanted at least one sentence, got none from {config.data.train_data}")

    model = build_model(config.model, train_set, config.data.max_types, run.seed)
    if config.model.freeze_encoder:
        model.freeze_encoder()
    batches = TrainingBatches(train_set, model.packer, config, accelerator.process_index, accelerator.num_processes)
    total = batches.steps()
    optimizer = torch.optim.AdamW(optimizer_groups(model, optim), fused=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.init_trackers("tensorboard")

    settings = {key: value for key, value in config.flat().items() if key not in ("resume", "progress", "output_dir")}
    done = Progress()
    saved = newest(checkpoints) if run.resume else None
    if saved is not None:
        done = load_progress(accelerator, saved, settings)
        console.print(f"resumed from {saved} at step {done.step} of {total}")
    elif run.resume:
        console.print(f"no checkpoint under {checkpoints}: starting at step 0")

    log = RunLog(accelerator, output, total, done, run.progress)
    durations: list[float] = []
    started, words_before, seconds_before = time.perf_counter(), done.words, done.seconds
    words_cut = entities_lost = 0
    prepared.train()
    stream = batches.starting_at(done.batches)
    with log.bar:
        while done.step < total:
            began = time.perf_counter()
            factor = rate(done.step, total, optim.warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            step_loss, step_words = 0.0, 0
            for _ in range(run.accumulation):
                position, sentences, batch = next(stream)
                words_cut += sum(batch.words_cut)
                entities_lost += batch.entities_lost
                torch.manual_seed(run.seed * 1_000_003 + position * accelerator.num_processes + batches.rank)
                with accelerator.accumulate(prepared):
                    loss = prepared(
                        batch.to(accelerator.device),
                        focal_gamma=optim.focal_gamma,
                        focal_scale=optim.focal_scale,
                        class_balance=optim.class_balance,
                        reduction=optim.loss_reduction,
                        fused=run.fused,
                    )
                    value = loss.item()
                    if not math.isfinite(value):
                        ids = ", ".join(train_set[i].id or str(i) for i in sentences)
                        raise FloatingPointError(
                            f"loss is {value} at step {done.step + 1}; the batch holds the sentences {ids}"
                        )
                    accelerator.backward(loss)
                    if accelerator.sync_gradients and optim.max_grad_norm > 0:
                        accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                step_loss += value / run.accumulation
                step_words += batch.word_index.numel() * accelerator.num_processes
            durations.append(time.perf_counter() - began)
            done = replace(
                done,
                step=done.step + 1,
                batches=done.batches + run.accumulation,
                words=done.words + step_words,
                seconds=seconds_before + time.perf_counter() - started,
            )
            log.step(
                done.step, loss=step_loss, lr=optim.lr * factor, seconds=durations[-1],
                words_per_second=step_words / durations[-1],
            )  # fmt: skip
            last = done.step == total
            if dev_set and (last or (run.eval_steps and done.step % run.eval_steps == 0)):
                done = choose_best(accelerator, model, dev_set, config, done, log)
                prepared.train()
            if not last and run.checkpoint_steps and done.step % run.checkpoint_steps == 0:
                save_progress(accelerator, checkpoints, done, settings)
    if words_cut or entities_lost:
        logger.warning(
            "training left out %d words of texts that are too long and %d gold entities that are wider than %d words "
            "or were cut off", words_cut, entities_lost, config.model.max_width,
        )  # fmt: skip

    report: dict[str, Any] = {}
    if accelerator.is_main_process:
        if dev_set is None:
            model.save_pretrained(output / "model")
        best = GLiModern.from_pretrained(output / "model", device=accelerator.device)
        seconds = done.seconds
        scores = {}
        for dataset in test_sets:
            scores[dataset.name] = evaluate(best, dataset, threshold=run.threshold)
            console.print(scores[dataset.name].table(f"{dataset.name}: {len(dataset)} sentences"))
        report = make_report(config, done, total, seconds, durations, scores)
        report["words_per_second"] = (done.words - words_before) / max(sum(durations), 1e-9)
        write_report(output / "report.json", report)
        console.print(f"model: {output / 'model'}   report: {output / 'report.json'}")
    accelerator.end_training()
    return report


def choose_best(
    accelerator: Accelerator, model: GLiModern, dev_set: Dataset, config: TrainConfig, done: Progress, log: RunLog
) -> Progress:
    """Evaluate on the dev set; the model with the best micro F1 so far is the one that is kept."""
    if accelerator.is_main_process:
        f1 = evaluate(model, dev_set, threshold=config.run.threshold).micro.f1
        log.write(done.step, dev_micro_f1=f1)
        log.bar.console.print(f"step {done.step}: dev micro F1 {100 * f1:.2f}")
        if done.best_f1 is None or f1 > done.best_f1:
            done = replace(done, best_f1=f1, best_step=done.step)
            model.save_pretrained(Path(config.run.output_dir) / "model")
    accelerator.wait_for_everyone()
    return done


def make_report(
    config: TrainConfig, done: Progress, total: int, seconds: float, durations: list[float], scores: dict[str, Scores]
) -> dict[str, Any]:
    """The facts of a finished run; F1 values lie in [0, 1]."""
    return {
        "evaluation": {name: score.to_dict() for name, score in scores.items()},
        "dev_micro_f1": done.best_f1,
        "best_step": done.best_step if done.best_f1 is not None else total,
        "steps": total,
        "seconds": seconds,
        "median_step_seconds": median(durations) if durations else None,
        "backends": ops.backend_info() if config.run.fused else "textbook head in plain PyTorch (--no-fused)",
        "versions": versions(),
        "machine": machine(),
        "seed": config.run.seed,
        "config": config.flat(),
        "git_commit": git_commit(),
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write JSON that appears whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)


def versions() -> dict[str, str]:
    """Versions of this package and of what the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"glimodern": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "accelerate", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Where the run took place."""
    return {
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_commit() -> str | None:
    """The commit of the source tree this package runs from; None when it is not a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    train(parse_train_config(arguments))


if __name__ == "__main__":
    main()
