"""The main job: `python -m glimodern.train --config configs/demo.yaml` trains, evaluates and saves a model.

A thin loop on accelerate: `accelerate launch -m glimodern.train ...` runs it on several GPUs or nodes, which share the
output folder. Everything random is a function of the seed and the position in the run, so that a resumed run repeats
the one that was killed. Nothing of an earlier run is replaced before all inputs have been read and checked.
"""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from glimodern.data import Dataset, validate
from glimodern.data.metrics import Scores
from glimodern.display import console
from glimodern.evaluate import check_evaluation
from glimodern.files.atomic import write_json
from glimodern.model.glimodern import GLiModern

from .batches import TrainingBatches
from .config import TrainConfig
from .interrupts import Interrupts, Stopped
from .log import RunLog, git_commit, make_report
from .memory import peak_memory
from .ranks import agree, evaluate_together, this_device, together
from .resume import (
    PER_LAUNCH,
    Progress,
    check_earlier_run,
    clear_output,
    load_progress,
    newest,
    save_progress,
)
from .setup import (
    build_model,
    check_gold,
    check_paths,
    load_data,
    optimizer_groups,
    resolved,
    training_dtype,
)

logger = logging.getLogger(__name__)


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at a step (0-based): linear rise over warmup x total, then a cosine to 0.

    A run that is extended goes on with the schedule of its new length: the rate jumps up to where a run of that length
    would be, and the result is not that of a run which had that length from the start.
    """
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))


class Trainer:
    """A run: what it starts from, and where it stands."""

    def __init__(self, config: TrainConfig, interrupts: Interrupts) -> None:
        self.interrupts = interrupts
        dtype = training_dtype(config.run.dtype, this_device())
        self.output = check_paths(config)
        self.checkpoints = self.output / "checkpoints"
        self.accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(dtype, dtype),
            gradient_accumulation_steps=config.run.accumulation,
            log_with="tensorboard",
            project_config=ProjectConfiguration(project_dir=str(self.output), logging_dir=str(self.output)),
        )
        accelerator, run = self.accelerator, config.run
        self.console = console(quiet=not accelerator.is_main_process)
        self.commit = git_commit()
        with together(accelerator, "reading the inputs"):
            check_earlier_run(self.output, resume=run.resume, overwrite=run.overwrite)
            self.train_set, self.dev_set, self.test_sets = load_data(config.data, run.seed)
            if not len(self.train_set):
                raise ValueError(f"train_data: expected at least one sentence, got none from {config.data.train_data}")
            self.model = build_model(config.model, self.train_set, config.data.max_types, run.seed)
            self._check_data()
            self.config = resolved(config, self.model, dtype)
            if config.model.freeze_encoder:
                self.model.freeze_encoder()
            rank, world = accelerator.process_index, accelerator.num_processes
            self.batches = TrainingBatches(self.train_set, self.model.packer, self.config, rank, world)
            self.total = self.batches.steps()
        optimizer = torch.optim.AdamW(optimizer_groups(self.model, config.optim), fused=True)
        self.prepared, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.settings = {key: value for key, value in self.config.flat().items() if key not in PER_LAUNCH}
        self.settings["num_processes"] = world
        self.done = self._find_progress()
        self.saved = self.done.step  # of the newest checkpoint
        self.first_word, self.seconds_before = self.done.words, self.done.seconds
        self.durations: list[float] = []
        self.words_cut = self.entities_lost = 0
        with together(accelerator, "making room in output_dir"), interrupts.held():
            if accelerator.is_main_process:
                self.output.mkdir(parents=True, exist_ok=True)
                clear_output(self.output, overwrite=run.overwrite)
        accelerator.init_trackers("tensorboard")
        self.log = RunLog(accelerator, self.output, self.total, self.done, run.progress)
        self.started = time.perf_counter()

    def _check_data(self) -> None:
        """Refuse data that a model cannot learn from or be chosen by, and evaluation that would fail at the end."""
        packer = self.model.packer
        check_gold("train_data", self.train_set, packer, alone=True)
        if self.dev_set:
            check_evaluation("dev_data", self.dev_set, packer)
            check_gold("dev_data", self.dev_set, packer, alone=False)
        for dataset in self.test_sets:
            check_evaluation("eval_data", dataset, packer)
        if self.accelerator.is_main_process:
            for dataset in [self.train_set, *([self.dev_set] if self.dev_set else []), *self.test_sets]:
                self.console.print(validate(dataset, self.model.config.max_width).table())

    def _find_progress(self) -> Progress:
        """Where the run goes on. ValueError for a checkpoint of other settings, or of more steps than are wanted."""
        if not self.config.run.resume:
            return Progress()
        saved = newest(self.checkpoints)
        if saved is None:
            self.console.print(f"no checkpoint under {self.checkpoints}: starting at step 0")
            return Progress()
        done = load_progress(self.accelerator, saved, self.settings)
        if done.step > self.total:
            raise ValueError(
                f"max_steps, epochs: expected at least the {done.step} steps that {saved} has done, got {self.total}"
            )
        factor = rate(done.step, self.total, self.config.optim.warmup)
        now = "training is done" if done.step == self.total else f"learning rate {factor:.2f} of its peak"
        self.console.print(f"resumed from {saved} at step {done.step} of {self.total}, {now}")
        return done

    def run(self) -> dict[str, Any]:
        """Train to the end, evaluate, and write model and report.json; returns what that holds."""
        # ranks that a signal reaches at different places would wait for each other, so there it waits for the next step
        several = self.accelerator.num_processes > 1
        try:
            with self.log.bar, self.interrupts.held() if several else nullcontext():
                self.prepared.train()
                stream = self.batches.starting_at(self.done.batches)
                while True:
                    self._evaluate_if_due()
                    self._save_if_due()
                    if self.done.step >= self.total:
                        break
                    with self.interrupts.held():
                        stop = self._step(stream)
                    if stop:
                        raise Stopped(stop)
            self._say_what_was_left_out()
            return self._finish()
        except Stopped as stopped:
            with self.interrupts.held():
                if self.done.step > self.saved:
                    self._save()
            raise Stopped(stopped.number, self._where()) from None
        finally:
            self.accelerator.end_training()

    def _where(self) -> str:
        done = self.done.step
        if done == 0:
            return "stopped before the first step"
        again = "the same command with --resume" + (" in place of --overwrite" if self.config.run.overwrite else "")
        return f"stopped at step {done} of {self.total}; go on with {again}"

    def _save(self) -> None:
        self._check_weights()
        save_progress(self.accelerator, self.checkpoints, self.done, self.settings)
        self.saved = self.done.step

    def _save_if_due(self) -> None:
        """Every checkpoint_steps, and at the end, from which a run can be extended."""
        every, step = self.config.run.checkpoint_steps, self.done.step
        if every and step > self.saved and (step % every == 0 or step == self.total):
            with self.interrupts.held():
                self._save()

    def _step(self, stream: Any) -> int:
        """One optimizer step; returns the signal that a rank received meanwhile, 0 if none did."""
        run, optim, accelerator = self.config.run, self.config.optim, self.accelerator
        began, number = time.perf_counter(), self.done.step + 1
        factor = rate(self.done.step, self.total, optim.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        step_loss, step_words, stop, seen = 0.0, 0, 0, list[int]()
        for _ in range(run.accumulation):
            with accelerator.accumulate(self.prepared):
                with together(accelerator, f"packing a batch of step {number}"):  # the forward pass may sync buffers
                    position, sentences, batch = next(stream)
                    seen += sentences
                problem: Exception | None = None
                try:
                    torch.manual_seed(run.seed * 1_000_003 + position * accelerator.num_processes + self.batches.rank)
                    loss = self.prepared(
                        batch.to(accelerator.device),
                        focal_gamma=optim.focal_gamma,
                        focal_scale=optim.focal_scale,
                        class_balance=optim.class_balance,
                        reduction=optim.loss_reduction,
                        fused=run.fused,
                    )
                    value = loss.item()
                    stop_unless_finite("loss", value, number, self.train_set, sentences)
                except Exception as error:
                    problem = error
                stop = agree(accelerator, problem, f"training step {number}", self.interrupts.received)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), optim.max_grad_norm or math.inf)
                    if run.dtype != "fp16":  # whose scaler leaves such a step out and lowers its scale
                        stop_unless_finite("the gradient's norm", float(norm), number, self.train_set, seen)
                self.optimizer.step()
                self.optimizer.zero_grad()
            step_loss += value / run.accumulation
            step_words += batch.word_index.numel() * accelerator.num_processes
            self.words_cut += sum(batch.words_cut)
            self.entities_lost += batch.entities_lost
        seconds = time.perf_counter() - began
        self.durations.append(seconds)
        self.done = replace(
            self.done,
            step=number,
            batches=self.done.batches + run.accumulation,
            words=self.done.words + step_words,
            seconds=self.seconds_before + time.perf_counter() - self.started,
        )
        self.log.step(
            number, loss=step_loss, lr=optim.lr * factor, seconds=seconds, words_per_second=step_words / seconds
        )
        return stop or (self.interrupts.received if accelerator.num_processes == 1 else 0)

    def _evaluate_if_due(self) -> None:
        """On the dev set, every eval_steps and at the end; the model with the best micro F1 so far is kept."""
        run, step = self.config.run, self.done.step
        due = step == self.total or (run.eval_steps and step % run.eval_steps == 0)
        if not self.dev_set or step == 0 or step == self.done.evaluated or not due:
            return
        f1 = evaluate_together(self.accelerator, self.model, self.dev_set, run.threshold, autocast=True).micro.f1
        with self.interrupts.held():
            best = self.done.best_f1 is None or f1 > self.done.best_f1
            if best:
                self._save_model()
            self.done = replace(self.done, evaluated=step)
            if best:
                self.done = replace(self.done, best_f1=f1, best_step=step)
            self.log.write(step, dev_micro_f1=f1)
            self.log.bar.console.print(f"step {step}: dev micro F1 {100 * f1:.2f}")
        self.prepared.train()

    def _check_weights(self) -> None:
        """FloatingPointError unless all weights are finite: what is saved already is not replaced by others.

        The loss and the gradient of a step are checked before it, so this catches what the last step made of them.
        """
        with together(self.accelerator, "checking the weights"):
            for name, weight in self.model.named_parameters():
                if not torch.isfinite(weight).all():
                    raise FloatingPointError(
                        f"after step {self.done.step} {name} is not finite, so the weights are not saved; lower lr, "
                        "head_lr or weight_decay"
                    )

    def _save_model(self) -> None:
        self._check_weights()
        with together(self.accelerator, "saving the model"):
            if self.accelerator.is_main_process:
                self.model.save_pretrained(self.output / "model")

    def _say_what_was_left_out(self) -> None:
        if self.words_cut or self.entities_lost or self.batches.types_left_out:
            logger.warning(
                "training left out %d words of texts that are too long, %d gold entities that are wider than %d words "
                "or were cut off, and %d types of other sentences that the prompt had no room for",
                self.words_cut, self.entities_lost, self.model.config.max_width, self.batches.types_left_out,
            )  # fmt: skip

    def _finish(self) -> dict[str, Any]:
        """Save the model where no dev set chose it, write report.json, and again after each evaluation set.

        A set whose evaluation fails is named in the report's "failed", and RuntimeError is raised once all others have
        been evaluated.
        """
        accelerator, run = self.accelerator, self.config.run
        if self.dev_set is None:
            with self.interrupts.held():
                self._save_model()
        report = make_report(self.config, self.done, self.durations, self.first_word)
        report["git_commit"] = self.commit
        report["peak_memory_bytes"] = peak_memory(accelerator.device)  # before a second model is loaded
        named = _named(self.test_sets)
        report["failed"] = dict.fromkeys(named, "not evaluated yet")
        self._write(report)
        tables: dict[str, Scores] = {}
        with together(accelerator, "loading the saved model"):
            best = GLiModern.from_pretrained(self.output / "model", dtype=run.dtype, device=accelerator.device)
        for name, dataset in named.items():
            try:
                tables[name] = evaluate_together(accelerator, best, dataset, run.threshold, autocast=False)
            except Exception as error:  # the others are still worth their scores
                logger.exception("%s was not evaluated", name)
                report["failed"][name] = f"{type(error).__name__}: {error}"
            else:
                report["evaluation"][name] = tables[name].to_dict()
                del report["failed"][name]
            self._write(report)
        if not self.config.data.train_data:
            from .tour import take_tour, tour_table

            with together(accelerator, "taking the tour"):
                if accelerator.is_main_process:
                    report["tour"] = take_tour(best, run.threshold)
                    self.console.print(tour_table(report["tour"]))
            self._write(report)
        for name, scores in tables.items():
            self.console.print(scores.table(f"{name}: {len(named[name])} sentences"))
        self.console.print(f"model: {self.output / 'model'}   report: {self.output / 'report.json'}")
        if report["failed"]:
            said = "; ".join(f"{name}: {message}" for name, message in report["failed"].items())
            raise RuntimeError(f"the model is trained and saved, but {len(report['failed'])} sets failed: {said}")
        return report

    def _write(self, report: dict[str, Any]) -> None:
        with together(self.accelerator, "writing report.json"):
            if self.accelerator.is_main_process:
                write_json(self.output / "report.json", report)


def _named(datasets: Sequence[Dataset]) -> dict[str, Dataset]:
    """Data sets by their names, those of one name numbered."""
    named: dict[str, Dataset] = {}
    for dataset in datasets:
        name, number = dataset.name, 1
        while name in named:
            number += 1
            name = f"{dataset.name} ({number})"
        named[name] = dataset
    return named


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate and save as the config says; returns what report.json holds.

    On SIGINT or SIGTERM the step at hand ends, a checkpoint is written, and Stopped, a KeyboardInterrupt, is raised.
    """
    with Interrupts() as interrupts:
        try:
            trainer = Trainer(config, interrupts)
        except Stopped as stopped:
            raise Stopped(stopped.number, "stopped before the first step") from None
        return trainer.run()


def stop_unless_finite(what: str, value: float, step: int, dataset: Dataset, sentences: Sequence[int]) -> None:
    """FloatingPointError that names the sentences of a step whose loss or gradient is no number."""
    if not math.isfinite(value):
        ids = ", ".join(dataset[i].id or str(i) for i in sentences)
        raise FloatingPointError(
            f"{what} is {value} at step {step}, with the sentences {ids}; the weights are as step {step - 1} left them"
        )
