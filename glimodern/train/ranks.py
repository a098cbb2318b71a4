"""Coordination of ranks: an error or a signal on one rank ends the run on all, so that none waits for another."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from glimodern.data import Dataset, asked_types
from glimodern.data.metrics import Scores
from glimodern.evaluate import predict_gold_labels, score_dataset

from .interrupts import Stopped
from .limits import LongTexts

if TYPE_CHECKING:
    from accelerate import Accelerator

    from glimodern.model.glimodern import GLiModern


class RankError(RuntimeError):
    """Raised when another rank failed. The message names the rank and its error."""


def this_device() -> torch.device:
    """The device that this process will train on, determined as an Accelerator does, before one is created."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    device: torch.device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    return device


@contextmanager
def together(accelerator: "Accelerator", doing: str) -> Iterator[None]:
    """A context that all ranks run at the same time. They wait at its end; if one rank raises, all ranks raise.

    doing: description of the work, for the message of RankError.
    """
    if accelerator.num_processes == 1:
        yield
        return
    problem: BaseException | None = None
    try:
        yield
    except (Exception, Stopped) as error:
        problem = error
    stop = agree(accelerator, problem, doing)
    if stop:
        raise Stopped(stop)


def agree(accelerator: "Accelerator", problem: BaseException | None, doing: str, stop: int = 0) -> int:
    """Share this rank's error and signal (stop; 0: none) with all ranks. Returns the signal of any rank.

    An error is raised on its own rank, and RankError on all other ranks. Stopped counts as a signal, not as an error.
    """
    if isinstance(problem, Stopped):
        stop, problem = problem.number, None
    if accelerator.num_processes == 1:
        if problem is not None:
            raise problem
        return stop
    mine = torch.tensor([[stop, problem is not None]], dtype=torch.int64, device=accelerator.device)
    stops, failures = accelerator.gather(mine).max(0).values.tolist()
    if failures:
        messages = _gather_object(None if problem is None else f"{type(problem).__name__}: {problem}")
        if problem is not None:
            raise problem
        rank, message = next((rank, message) for rank, message in enumerate(messages) if message is not None)
        raise RankError(f"{doing}: rank {rank} failed with {message}")
    return int(stops)


def _gather_object(item: Any) -> list[Any]:
    """Gather one object of each rank on all ranks, in rank order."""
    from accelerate.utils import gather_object

    return list(gather_object([item]))


def evaluate_together(
    accelerator: "Accelerator",
    model: "GLiModern",
    dataset: Dataset,
    threshold: float,
    *,
    autocast: bool,
    long_texts: LongTexts,
) -> Scores:
    """Run `evaluate` with the sentences split among the ranks. Returns the scores of all sentences on each rank.

    autocast: compute in the run's mixed precision, for a model with fp32 weights.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    label_sets = asked_types(dataset)
    with together(accelerator, f"evaluating {dataset.name}"):
        share = replace(dataset, examples=dataset.examples[rank::world])
        with accelerator.autocast() if autocast else nullcontext():
            predicted = predict_gold_labels(
                model, share, label_sets[rank::world], threshold=threshold, long_texts=long_texts
            )
    if world > 1:
        parts = _gather_object(predicted)
        predicted = [[] for _ in dataset]
        for number, part in enumerate(parts):
            predicted[number::world] = part
    return score_dataset(dataset, predicted)
