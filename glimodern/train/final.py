"""The end of a run: evaluation of the saved model, and report.json."""

import logging
from collections.abc import Sequence
from typing import Any

from glimodern.data import Dataset
from glimodern.data.metrics import Scores
from glimodern.files.atomic import write_json
from glimodern.model.glimodern import GLiModern

from .log import make_report
from .memory import peak_memory
from .ranks import evaluate_together, together
from .trainer import Trainer

logger = logging.getLogger(__name__)


def finish(trainer: Trainer) -> dict[str, Any]:
    """Evaluate the saved model on each evaluation set and write report.json. Returns the report.

    Without a dev set the model is saved first. report.json is written before the evaluation and after each set. A set
    whose evaluation fails is listed in the report's "failed". RuntimeError is then raised after all other sets have
    been evaluated.
    """
    accelerator, run = trainer.accelerator, trainer.config.run
    if trainer.dev_set is None:
        with trainer.interrupts.held():
            trainer.save_model()
    report = make_report(trainer.config, trainer.done, trainer.durations, trainer.first_word)
    report["git_commit"] = trainer.commit
    report["peak_memory_bytes"] = peak_memory(accelerator.device)  # before the saved model is loaded too
    named = _named(trainer.test_sets)
    report["failed"] = dict.fromkeys(named, "not evaluated yet")
    _write(trainer, report)
    tables: dict[str, Scores] = {}
    with together(accelerator, "loading the saved model"):
        best = GLiModern.from_pretrained(trainer.output / "model", dtype=run.dtype, device=accelerator.device)
    for name, dataset in named.items():
        try:
            tables[name] = evaluate_together(
                accelerator, best, dataset, run.threshold, autocast=False, long_texts=trainer.config.data.long_texts
            )
        except Exception as error:  # the other sets are still evaluated
            logger.exception("%s was not evaluated", name)
            report["failed"][name] = f"{type(error).__name__}: {error}"
        else:
            report["evaluation"][name] = tables[name].to_dict()
            del report["failed"][name]
        _write(trainer, report)
    if not trainer.config.data.train_data:
        from .tour import take_tour, tour_table

        with together(accelerator, "taking the tour"):
            if accelerator.is_main_process:
                report["tour"] = take_tour(best, run.threshold)
                trainer.console.print(tour_table(report["tour"]))
        _write(trainer, report)
    for name, scores in tables.items():
        trainer.console.print(scores.table(f"{name}: {len(named[name])} sentences"))
    trainer.console.print(f"model: {trainer.output / 'model'}   report: {trainer.output / 'report.json'}")
    if report["failed"]:
        failures = "; ".join(f"{name}: {message}" for name, message in report["failed"].items())
        raise RuntimeError(f"the model is trained and saved, but {len(report['failed'])} sets failed: {failures}")
    return report


def _write(trainer: Trainer, report: dict[str, Any]) -> None:
    with together(trainer.accelerator, "writing report.json"):
        if trainer.accelerator.is_main_process:
            write_json(trainer.output / "report.json", report)


def _named(datasets: Sequence[Dataset]) -> dict[str, Dataset]:
    """Map names to data sets. A repeated name gets a number."""
    named: dict[str, Dataset] = {}
    for dataset in datasets:
        name, number = dataset.name, 1
        while name in named:
            number += 1
            name = f"{dataset.name} ({number})"
        named[name] = dataset
    return named
