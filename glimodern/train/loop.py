"""The training loop: `python -m glimodern.train --config configs/demo.yaml` trains, evaluates and saves a model.

The loop runs on accelerate: `accelerate launch -m glimodern.train ...` starts it on several GPUs or nodes, which share
the output folder. All random numbers are a function of the seed and the position in the run, so a resumed run gives the
results of an uninterrupted one.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from glimodern.data import Dataset
from glimodern.inputs.batch import PackedBatch
from glimodern.layers.padded_linear import PaddedLinears

from .config import TrainConfig
from .final import finish
from .interrupts import Interrupts, Stopped
from .ranks import agree, together
from .schedule import rate
from .trainer import Trainer

Batches = Iterator[tuple[int, list[int], PackedBatch]]


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate and save a model. Returns the contents of report.json.

    On SIGINT or SIGTERM the current step ends, a checkpoint is written, and Stopped, a KeyboardInterrupt, is raised.
    """
    with Interrupts() as interrupts:
        try:
            trainer = Trainer(config, interrupts)
        except Stopped as stopped:
            raise Stopped(stopped.number, "stopped before the first step") from None
        # Ranks that a signal interrupts at different points would wait for each other. With several ranks, a signal is
        # therefore handled at the end of a step.
        several_ranks = trainer.accelerator.num_processes > 1
        try:
            with trainer.log.bar, interrupts.held() if several_ranks else nullcontext():
                run_steps(trainer)
            trainer.report_left_out()
            return finish(trainer)
        except Stopped as stopped:
            with interrupts.held():
                if trainer.done.step > trainer.saved:
                    trainer.save()
            raise Stopped(stopped.number, trainer.where()) from None
        finally:
            trainer.accelerator.end_training()


def run_steps(trainer: Trainer) -> None:
    """Run the training steps, with evaluations and checkpoints. Raises Stopped after a step with a signal."""
    trainer.prepared.train()
    batches = trainer.batches.starting_at(trainer.done.batches)
    while True:
        trainer.evaluate_if_due()
        trainer.save_if_due()
        if trainer.done.step >= trainer.total:
            return
        with trainer.interrupts.held():
            signal = run_step(trainer, batches)
        if signal:
            raise Stopped(signal)


def run_step(trainer: Trainer, batches: Batches) -> int:
    """Run one optimizer step. Returns the signal that a rank received during it, 0 if there was none.

    The host synchronises with the device once, to check the losses and the gradient's norm before the weights change.
    """
    run, optim, accelerator, optimizer = (
        trainer.config.run,
        trainer.config.optim,
        trainer.accelerator,
        trainer.optimizer,
    )
    began, number, words = time.perf_counter(), trainer.done.step + 1, 0
    factor = rate(trainer.done.step, trainer.total, optim.warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    losses, sentences_of_batches, mean_loss, signal = list[Tensor](), list[list[int]](), math.nan, 0
    for _ in range(run.accumulation):
        with accelerator.accumulate(trainer.prepared):
            # together: a rank that failed here would leave the others waiting in the forward pass, which may sync
            # buffers
            with together(accelerator, f"packing a batch of step {number}"):
                position, sentences, batch = next(batches)
            problem: Exception | None = None
            try:
                losses.append(compute_loss(trainer, batch, position))
            except Exception as error:
                problem = error
            signal = agree(accelerator, problem, f"training step {number}", trainer.interrupts.received)
            accelerator.backward(losses[-1])
            sentences_of_batches.append(sentences)
            trainer.record_left_out(batch)
            words += batch.word_index.numel() * accelerator.num_processes  # as many on each rank, about
            if accelerator.sync_gradients:
                norm = trainer.clip_gradient()
                with together(accelerator, f"training step {number}"):
                    mean_loss = checked_mean_loss(trainer, losses, norm, sentences_of_batches)
            optimizer.step()
            optimizer.zero_grad()
    trainer.finished_step(time.perf_counter() - began, mean_loss, optim.lr * factor, words)
    return signal or (trainer.interrupts.received if accelerator.num_processes == 1 else 0)


def compute_loss(trainer: Trainer, batch: PackedBatch, position: int) -> Tensor:
    """Compute the loss of a batch. Its dropout is a function of the seed, the position and the rank."""
    run, optim, accelerator = trainer.config.run, trainer.config.optim, trainer.accelerator
    torch.manual_seed(run.seed * 1_000_003 + position * accelerator.num_processes + trainer.batches.rank)
    device = accelerator.device
    outputs = None if trainer.cache is None else trainer.cache.outputs(batch).to(device)
    padded = device.type == "cpu" and run.dtype == "bf16"
    with PaddedLinears() if padded else nullcontext():
        loss: Tensor = trainer.prepared(
            batch.to(device),
            focal_gamma=optim.focal_gamma,
            focal_scale=optim.focal_scale,
            class_balance=optim.class_balance,
            reduction=optim.loss_reduction,
            fused=run.fused,
            outputs=outputs,
        )
    return loss


def checked_mean_loss(trainer: Trainer, losses: Sequence[Tensor], norm: Any, seen: Sequence[Sequence[int]]) -> float:
    """Compute the mean of a step's losses.

    losses: one scalar per batch. norm: the gradient's norm. seen: the sentence indices of each batch. Raises
    FloatingPointError, with the sentences, if a loss or the gradient is not finite.
    """
    norms = [torch.as_tensor(norm, device=losses[0].device, dtype=torch.float32)]
    *values, length = torch.stack([*(loss.detach().float() for loss in losses), *norms]).tolist()
    step = trainer.done.step + 1
    for value, sentences in zip(values, seen, strict=True):
        stop_unless_finite("loss", value, step, trainer.batches.dataset, sentences)
    if trainer.config.run.dtype != "fp16":  # fp16's gradient scaler skips such a step and lowers its scale
        numbers = [i for part in seen for i in part]
        stop_unless_finite("the gradient's norm", length, step, trainer.batches.dataset, numbers)
    return sum(values) / len(values)


def stop_unless_finite(what: str, value: float, step: int, dataset: Dataset, sentences: Sequence[int]) -> None:
    """Raise FloatingPointError, with the step's sentences, if a value is not finite. what: the value's name."""
    if not math.isfinite(value):
        ids = ", ".join(dataset[i].id or str(i) for i in sentences)
        raise FloatingPointError(
            f"{what}: expected a finite value at step {step}, got {value} with the sentences {ids}; the weights are "
            f"those after step {step - 1}"
        )
