"""The end of a run: evaluation of the saved model, and report.json."""

import logging
from collections.abc import Sequence
from typing import Any

from glimodern.data import Dataset
from glimodern.data.metrics import Scores
from glimodern.files.atomic import write_json
from glimodern.model.glimodern import GLiModern

from .keeping import interpolate
from .log import make_report
from .memory import peak_memory
from .ranks import evaluate_together, together
from .trainer import Trainer
from .zero_shot import f1_of, f1_table

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
    kept = None
    if trainer.config.tuning.keep_zero_shot:
        kept = interpolate(trainer)
        title = f"F1 by the ratio of the fine-tuned weights: {kept['ratio']:g} is saved"
        trainer.console.print(f1_table(title, kept["by_ratio"]))
    report = make_report(trainer.config, trainer.done, trainer.durations, trainer.first_word)
    report["git_commit"] = trainer.commit
    report["peak_memory_bytes"] = peak_memory(accelerator.device)  # before the saved model is loaded too
    if kept is not None:
        report["kept_zero_shot"] = kept
    named = _named(trainer.test_sets)
    report["failed"] = dict.fromkeys(named, "not evaluated yet")
    _write(trainer, report)
    tables: dict[str, Scores] = {}
    with together(accelerator, "loading the saved model"):
        best = GLiModern.from_pretrained(trainer.output / "model", dtype=run.dtype, device=accelerator.device)
    if trainer.zero_shot:
        report["zero_shot"] = _zero_shot(trainer, best)
        _write(trainer, report)
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
    if trainer.zero_shot:
        trainer.console.print(f1_table("zero-shot F1 before and after fine-tuning", report["zero_shot"]))
    trainer.console.print(f"model: {trainer.output / 'model'}   report: {trainer.output / 'report.json'}")
    if report["failed"]:
        failures = "; ".join(f"{name}: {message}" for name, message in report["failed"].items())
        raise RuntimeError(f"the model is trained and saved, but {len(report['failed'])} sets failed: {failures}")
    return report


def _zero_shot(trainer: Trainer, model: GLiModern) -> dict[str, dict[str, float]]:
    """Measure the F1 that fine-tuning should keep: {"before": {set: F1}, "after": {set: F1}}."""
    with together(trainer.accelerator, "loading the checkpoint of init_from"):
        base = trainer.load_base()
    models = {"before": base, "after": model}
    return {when: f1_of(trainer.accelerator, trainer.config, m, trainer.zero_shot) for when, m in models.items()}


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
