"""Several processes as one: what fails or is stopped on one rank fails or stops on all, so that none waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from glimodern.data import Dataset, asked_types
from glimodern.data.metrics import Scores
from glimodern.evaluate import predict_gold_labels, score_dataset

from .interrupts import Stopped

if TYPE_CHECKING:
    from accelerate import Accelerator

    from glimodern.model.glimodern import GLiModern


class RankError(RuntimeError):
    """Another rank failed; the message names the rank and its error."""


def this_device() -> torch.device:
    """The device that this process will train on, known before an Accelerator is made (which starts as this does)."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    device: torch.device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    return device


@contextmanager
def together(accelerator: "Accelerator", doing: str) -> Iterator[None]:
    """A block that all ranks run, each its part. All wait at its end; if it raises on one rank, all raise."""
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
    """Tell all ranks this one's problem and the signal it received (0: none); returns the signal of any rank.

    Raises the problem on its own rank and RankError on the others; a Stopped counts as a signal, not as a problem.
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
        said = _gather_object(None if problem is None else f"{type(problem).__name__}: {problem}")
        if problem is not None:
            raise problem
        rank, message = next((rank, message) for rank, message in enumerate(said) if message is not None)
        raise RankError(f"{doing}: rank {rank} failed with {message}")
    return int(stops)


def _gather_object(item: Any) -> list[Any]:
    """The item of each rank, on all of them."""
    from accelerate.utils import gather_object

    return list(gather_object([item]))


def evaluate_together(
    accelerator: "Accelerator", model: "GLiModern", dataset: Dataset, threshold: float, *, autocast: bool
) -> Scores:
    """`evaluate`, each rank predicting its share of the sentences; all ranks get the scores of all.

    autocast: compute in the run's mixed precision (for a model whose weights are fp32).
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    asked = asked_types(dataset)
    with together(accelerator, f"evaluating {dataset.name}"):
        share = replace(dataset, examples=dataset.examples[rank::world])
        with accelerator.autocast() if autocast else nullcontext():
            predicted = predict_gold_labels(model, share, asked[rank::world], threshold=threshold)
    if world > 1:
        parts = _gather_object(predicted)
        predicted = [[] for _ in dataset]
        for number, part in enumerate(parts):
            predicted[number::world] = part
    return score_dataset(dataset, predicted)
