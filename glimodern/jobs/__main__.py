"""`python -m glimodern.jobs MODEL --input 'data/**/*.jsonl.gz' --output out --labels a,b`: a corpus job."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from glimodern import cli
from glimodern.cli.outputs import check_output_folder, write_report
from glimodern.display import cell, console
from glimodern.inference.request import check_thresholds

from .config import parse_job_config
from .inputs import find_inputs
from .output import SUMMARY, OutputFolder
from .progress import Progress
from .ray_pool import Remote, check_ray, describe_remotely, ray_cluster, run_ray_job
from .run import describe_job, open_sources, predictor, run_job


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    config = parse_job_config(sys.argv[1:] if arguments is None else arguments)
    labels = config.label_options.read()
    threshold = config.prediction.threshold_option.read()
    check_thresholds(threshold, labels)
    folder = check_output_folder("--output", config.output)
    files = find_inputs(config.input, folder)
    sources = open_sources(files, config)
    if config.ray:
        check_ray(config)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(OutputFolder(folder))
        # Nothing is loaded before this line, so that wrong arguments fail at once.
        remote = Remote(config, labels, threshold, os.getcwd())
        if config.ray:
            stack.enter_context(ray_cluster(config))
            job = describe_remotely(remote, files)
        else:
            from glimodern.model.glimodern import GLiModern

            model = GLiModern.from_pretrained(config.model, **config.prediction.loading())
            predict = predictor(model, labels, threshold, config.prediction.search())
            job = describe_job(config, labels, threshold, files, model)
        output.check_job(job)
        if output.job is not None and output.totals.next.file == len(files) and (folder / SUMMARY).is_file():
            console().print(f"{folder}: the job is finished, nothing to do")
            return
        output.begin(job)
        resumed, began = output.totals.rows, time.monotonic()
        done = sum(file.size for file in files[: output.totals.next.file])
        progress = stack.enter_context(Progress(done, sum(file.size for file in files)))
        if config.ray:
            run_ray_job(remote, sources, output, progress)
        else:
            run_job(predict, sources, output, config, progress)
        totals, seconds = output.totals, time.monotonic() - began
        summary: dict[str, Any] = {
            "rows": totals.rows,
            "errors": totals.errors,
            "words_cut": totals.words_cut,
            "entities": dict(sorted(totals.entities.items())),
            "shards": totals.shards,
            "rows_resumed": resumed,
            "seconds": round(seconds, 3),
            "rows_per_second": round((totals.rows - resumed) / seconds, 1),
            "inputs": [file.path for file in files],
        }
        write_report(folder / SUMMARY, summary)
    _show(summary)


def _show(summary: dict[str, Any]) -> None:
    """Print a summary, one line a figure."""
    out = console()
    found = ", ".join(f"{label} {number:,}" for label, number in summary["entities"].items()) or "none"
    for name in ("rows", "errors", "words_cut", "seconds", "rows_per_second"):
        out.print(cell(f"{name:<16} {summary[name]:,}"))
    out.print(cell(f"{'entities':<16} {found}"))


if __name__ == "__main__":
    cli.run(main)
