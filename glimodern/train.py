"""The main job: `python -m glimodern.train --config configs/demo.yaml` trains, evaluates and saves a model.

A thin loop on accelerate: `accelerate launch -m glimodern.train ...` runs it on several GPUs or nodes. Everything
random is a function of the seed and the position in the run, so that a resumed run repeats the one that was killed.
"""

import ctypes
import logging
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from glimodern.batches import TrainingBatches
from glimodern.config import DataConfig, EncoderConfig, OptimConfig, TrainConfig, parse_train_config
from glimodern.data import Dataset, load_split, validate, with_asked_types
from glimodern.data.holdout import hold_out_types
from glimodern.demo import DEMO_ENCODERS, encoder_config, train_tokenizer
from glimodern.evaluate import evaluate
from glimodern.files import write_json
from glimodern.metrics import Scores
from glimodern.model import GLiModern, HeadOptions
from glimodern.resume import Progress, load_progress, newest, save_progress
from glimodern.runlog import RunLog, git_commit, make_report, peak_memory

logger = logging.getLogger(__name__)

PER_LAUNCH = ("resume", "overwrite", "progress", "output_dir")  # settings that may differ when a run is resumed


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


def build_model(config: EncoderConfig, train: Dataset, max_types: int, seed: int) -> GLiModern:
    """A model to train: a checkpoint to go on from, a fresh head on a pretrained encoder, or the demo's own."""
    torch.manual_seed(seed)
    if config.init_from is not None:
        model = GLiModern.from_pretrained(config.init_from, trainable=True)
        default = EncoderConfig()
        for name in (
            *("hidden_size", "span_mode", "subtoken_pooling", "embed_ent_token", "max_width", "max_len"),
            "labels_encoder",
        ):
            asked, has = getattr(config, name), getattr(model.config, name)
            if asked not in (getattr(default, name), has):
                raise ValueError(f"{name}: the checkpoint of init_from has {has!r}, got {asked!r}; leave it out")
        if config.dropout != default.dropout:
            model.set_dropout(config.dropout)
        return model
    head: HeadOptions = {
        "hidden_size": config.hidden_size,
        "span_mode": config.span_mode,
        "subtoken_pooling": config.subtoken_pooling,
        "embed_ent_token": config.embed_ent_token,
        "max_width": config.max_width,
        "max_len": config.max_len,
        "max_types": max_types,
        "dropout": config.dropout,
        "labels_encoder": config.labels_encoder,
    }
    if config.encoder in DEMO_ENCODERS:
        tokenizer = train_tokenizer((example.words for example in train), train.types)
        return GLiModern.from_encoder_config(encoder_config(len(tokenizer), config.encoder), tokenizer, **head)
    return GLiModern.from_encoder(config.encoder, **head)


def optimizer_groups(model: GLiModern, config: OptimConfig) -> list[dict[str, Any]]:
    """Four groups: encoders and the rest, each with and without weight decay (none on biases and other vectors)."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            encoder = name.startswith(("encoder.", "labels.encoder."))
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


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at a step (0-based): linear rise over warmup x total, then a cosine to 0."""
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))


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
    if accelerator.is_main_process:
        clear_output(output, keep=run.resume, overwrite=run.overwrite)
    accelerator.wait_for_everyone()
    commit = git_commit()

    train_set, dev_set, test_sets = load_data(config.data, run.seed)
    if not len(train_set):
        raise ValueError(f"train_data: wanted at least one sentence, got none from {config.data.train_data}")
    model = build_model(config.model, train_set, config.data.max_types, run.seed)
    for dataset in [train_set, *([dev_set] if dev_set else []), *test_sets]:
        console.print(validate(dataset, model.config.max_width).table())
    if config.model.freeze_encoder:
        model.freeze_encoder()
    batches = TrainingBatches(train_set, model.packer, config, accelerator.process_index, accelerator.num_processes)
    total = batches.steps()
    optimizer = torch.optim.AdamW(optimizer_groups(model, optim), fused=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.init_trackers("tensorboard")

    settings = {key: value for key, value in config.flat().items() if key not in PER_LAUNCH}
    settings["num_processes"] = accelerator.num_processes
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
            step_loss, step_words, seen = 0.0, 0, list[int]()
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
                    seen += sentences
                    stop_unless_finite("loss", value, done.step + 1, train_set, sentences)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf)
                        if run.dtype != "fp16":  # whose scaler leaves such a step out and lowers its scale
                            stop_unless_finite("the gradient's norm", float(norm), done.step + 1, train_set, seen)
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
    most_memory = peak_memory(accelerator.device)  # before a second model is loaded
    if words_cut or entities_lost:
        logger.warning(
            "training left out %d words of texts that are too long and %d gold entities that are wider than %d words "
            "or were cut off", words_cut, entities_lost, model.config.max_width,
        )  # fmt: skip

    report: dict[str, Any] = {}
    if accelerator.is_main_process:
        if dev_set is None:
            model.save_pretrained(output / "model")
        best = GLiModern.from_pretrained(output / "model", dtype="fp32", device=accelerator.device)
        seconds = done.seconds
        scores: dict[str, Scores] = {}
        for dataset in test_sets:
            name = dataset.name
            if name in scores:
                name = f"{name} ({sum(key.startswith(name) for key in scores) + 1})"
            scores[name] = evaluate(best, dataset, threshold=run.threshold)
            console.print(scores[name].table(f"{name}: {len(dataset)} sentences"))
        report = make_report(config, done, total, seconds, durations, scores)
        report["git_commit"] = commit
        report["peak_memory_bytes"] = most_memory
        report["words_per_second"] = (done.words - words_before) / max(sum(durations), 1e-9)
        if not config.data.train_data:
            from glimodern.data.demo.tour import take_tour, tour_table

            report["tour"] = take_tour(best, run.threshold)
            console.print(tour_table(report["tour"]))
        write_json(output / "report.json", report)
        console.print(f"model: {output / 'model'}   report: {output / 'report.json'}")
    accelerator.end_training()
    return report


def clear_output(output: Path, *, keep: bool, overwrite: bool) -> None:
    """Make room for a run: what a crash left half written goes, an earlier run only with overwrite."""
    for partial in [*output.glob(".*"), *output.glob("checkpoints/.*")]:
        if partial.name.startswith((".model.", ".step-")):
            shutil.rmtree(partial)
    earlier = [p for n in ("checkpoints", "model", "metrics.jsonl", "report.json") if (p := output / n).exists()]
    if keep or not earlier:
        return
    if not overwrite:
        raise ValueError(
            f"output_dir: {output} holds an earlier run ({', '.join(p.name for p in earlier)}); go on with --resume, "
            "replace it with --overwrite, or choose another folder"
        )
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def stop_unless_finite(what: str, value: float, step: int, dataset: Dataset, sentences: Sequence[int]) -> None:
    """FloatingPointError that names the sentences of a step whose loss or gradient is no number."""
    if not math.isfinite(value):
        ids = ", ".join(dataset[i].id or str(i) for i in sentences)
        raise FloatingPointError(f"{what} is {value} at step {step}, with the sentences {ids}; no weight was changed")


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


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, in place of giving it back and faulting it in again.

    A MiniLM step faults in 12,600 pages otherwise (28 ms of 500, one core of AMD Milan; 300 pages after this). Other
    systems and C libraries are left as they are. See mallopt(3).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    keep_freed_memory()
    train(parse_train_config(arguments))


if __name__ == "__main__":
    main()
