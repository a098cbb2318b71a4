"""Rows per second of a corpus job, beside one call of `predict` with the same texts in a list.

    python bench/corpus_job.py --model runs/demo/model --rows 20000 [--data DATA] [--rounds 3] [--ray]

The texts are those of the demo corpus, or of DATA (any of the training formats), again and again until there are
enough. Both sides run in turns, in reversed order in every other round. The job reads JSON lines and writes them.
The entities of both sides must be equal. `--ray` times two workers of one thread too, without the start of the
cluster and of the workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from glimodern import GLiModern
from glimodern.data import load_dataset
from glimodern.data.demo.build import build_demo_corpus
from glimodern.jobs.config import JobConfig, parse_job_config
from glimodern.jobs.inputs import find_inputs
from glimodern.jobs.output import OutputFolder
from glimodern.jobs.progress import Progress
from glimodern.jobs.ray_pool import Remote, describe_remotely, ray_cluster, run_ray_job
from glimodern.jobs.run import describe_job, open_sources, predictor, run_job

LABELS = ["person", "organization", "location", "date", "disease"]


def texts_of(data: str | None, rows: int) -> list[str]:
    examples = build_demo_corpus(train_size=min(rows, 4000)).train if data is None else load_dataset(data)
    return list(itertools.islice(itertools.cycle(" ".join(example.words) for example in examples), rows))


class Watch(Progress):
    """Progress that keeps the time of each count of rows."""

    def __init__(self) -> None:
        super().__init__(0, 1)
        self.times: list[float] = []

    def add(self, rows: int, words: int, done: int) -> None:
        super().add(rows, words, done)
        self.times.append(time.perf_counter())


def run(config: JobConfig, model: Any, remote: Remote | None = None) -> float:
    """Run a job into a new folder; return its seconds without those in which a model is loaded.

    Of a job on Ray they are the seconds from its first shard on, in which all but one a worker are computed, for all.
    """
    shutil.rmtree(config.output, ignore_errors=True)
    labels, threshold = config.label_options.read(), config.prediction.threshold_option.read()
    files = find_inputs(config.input, Path(config.output))
    sources = open_sources(files, config)
    with OutputFolder(Path(config.output)) as output, Watch() as progress:
        if remote is not None:
            output.begin(describe_remotely(remote, files))
            run_ray_job(remote, sources, output, progress)
            shards = len(progress.times)
            return (progress.times[-1] - progress.times[0]) * shards / (shards - config.ray_workers)
        begin = time.perf_counter()
        output.begin(describe_job(config, labels, threshold, files, model))
        run_job(predictor(model, labels, threshold, config.prediction.search()), sources, output, config, progress)
    return time.perf_counter() - begin


def written(folder: str) -> list[Any]:
    parts = sorted(Path(folder).glob("part-*"))
    return [json.loads(line)["entities"] for part in parts for line in part.open(encoding="utf-8")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ray", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = texts_of(arguments.data, arguments.rows)
    model = GLiModern.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "in.jsonl"
        source.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
        given = [arguments.model, "--input", str(source), "--output", f"{scratch}/out", "--labels", ",".join(LABELS)]
        given += ["--shard-rows", str(max(arguments.rows // 16, 1))]
        config = parse_job_config(given)
        found: list[Any] = []

        def predict() -> float:
            begin = time.perf_counter()
            found[:] = model.predict(texts, LABELS, progress=False)
            return time.perf_counter() - begin

        sides = {"predict(list)": predict, "job": lambda: run(config, model)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        model.predict(texts[:500], LABELS)
        for number in range(arguments.rounds):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                seconds[name].append(sides[name]())
        if written(config.output) != found:
            raise SystemExit("the job's entities are not those of predict")
        if arguments.ray:
            spread = parse_job_config([*given, "--ray", "--ray-workers", "2", "--ray-threads", "1"])
            with ray_cluster(spread):
                remote = Remote(spread, spread.label_options.read(), 0.5, os.getcwd())
                seconds["Ray, 2 workers of 1 thread"] = [run(spread, model, remote)]
    print(f"{arguments.rows} rows, {sum(len(text.split()) for text in texts)} words, {arguments.threads} threads")
    print("| side | seconds, median | all | rows/s | of predict |\n|---|---|---|---|---|")
    base = statistics.median(seconds["predict(list)"])
    for name, values in seconds.items():
        median = statistics.median(values)
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {median:.2f} | {each} | {arguments.rows / median:.0f} | {100 * base / median:.1f} % |")


if __name__ == "__main__":
    main()
