"""Speed of a corpus job, beside one call of `predict` with the same texts in a list.

    python bench/corpus_job.py --model runs/demo/model --rows 200000 [--data DATA...] [--width 32] [--threads 2] [--ray]

The texts are those of the demo corpus, or of DATA (any of the training formats), again and again until there are
enough; a repeated text has its words rotated, so that few rows are equal. The job reads JSON lines and writes them.
--width: instead of the model, one with its tokenizer, two layers of this width and random weights.

Each side is a process. They run in turns of random length, 0.2 to 1 s, the other one stopped (SIGSTOP), so that other
work on the machine slows both alike. The seconds of a side are those of its turns. Imports, loading the model and the
first batches come before, on both sides; reading the texts comes before on the side of `predict`, which has them in a
list. CPU seconds are those of all threads: they count what the job does beside the computation as if nothing of it
were hidden. The entities of both sides must be equal. `--ray` times two workers of one thread too, alone, without the
start of the cluster and of the workers.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
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
TURNS = (0.2, 1.0)  # seconds
WARM_UP = 500  # texts
DEMO_SENTENCES = 40_000


def texts_of(data: list[str] | None, rows: int) -> Iterator[str]:
    """Yield texts of the corpora, in random order; a repeated one begins at another word."""
    sources = (
        [build_demo_corpus(train_size=min(rows, DEMO_SENTENCES)).train] if data is None else map(load_dataset, data)
    )
    sentences = [example.words for source in sources for example in source]
    random.Random(0).shuffle(sentences)
    for i in range(rows):
        repetition, number = divmod(i, len(sentences))
        words = sentences[number]
        first = repetition % len(words)
        yield " ".join(words[first:] + words[:first])


def save_narrow_model(model: str, width: int, folder: Path) -> None:
    """Save a model of two layers with random weights, and the tokenizer of another model."""
    from transformers import AutoTokenizer, ModernBertConfig

    tokenizer = AutoTokenizer.from_pretrained(model)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, global_attn_every_n_layers=2, local_attention=16, max_position_embeddings=1024,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    GLiModern.from_encoder_config(config, tokenizer, max_width=6).eval().save_pretrained(folder)


class Watch(Progress):
    """Progress that keeps the time of each count of rows."""

    def __init__(self) -> None:
        super().__init__(0, 1)
        self.times: list[float] = []

    def add(self, rows: int, words: int, done: int) -> None:
        super().add(rows, words, done)
        self.times.append(time.perf_counter())


def run(config: JobConfig, model: Any) -> None:
    """Run a job into a new folder."""
    labels, threshold = config.label_options.read(), config.prediction.threshold_option.read()
    files = find_inputs(config.input, Path(config.output))
    sources = open_sources(files, config)
    with OutputFolder(Path(config.output)) as output, Progress(0, sum(file.size for file in files)) as progress:
        output.begin(describe_job(config, labels, threshold, files, model))
        run_job(predictor(model, labels, threshold, config.prediction.search()), sources, output, config, progress)


def ray_seconds(config: JobConfig) -> float:
    """Run a job on Ray; return its seconds from the first shard on, in which all but one a worker are computed."""
    labels = config.label_options.read()
    files = find_inputs(config.input, Path(config.output))
    sources = open_sources(files, config)
    with ray_cluster(config), OutputFolder(Path(config.output)) as output, Watch() as progress:
        remote = Remote(config, labels, config.prediction.threshold_option.read(), os.getcwd())
        output.begin(describe_remotely(remote, files))
        run_ray_job(remote, sources, output, progress)
        shards = len(progress.times)
        return (progress.times[-1] - progress.times[0]) * shards / (shards - config.ray_workers)


def digest(found: Iterable[Any]) -> str:
    """Return a hash of the entities of all texts."""
    total = hashlib.blake2b(digest_size=16)
    for entities in found:
        total.update(json.dumps(entities, ensure_ascii=False).encode())
    return total.hexdigest()


def serve(side: str, given: list[str], threads: int) -> None:
    """Do the work of a side once a line comes, and say its CPU seconds; then hash what it found."""
    torch.set_num_threads(threads)
    config = parse_job_config(given)
    model = GLiModern.from_pretrained(config.model, **config.prediction.loading())
    lines = (json.loads(line)["text"] for line in open(config.input[0], encoding="utf-8"))
    texts = list(itertools.islice(lines, None if side == "predict(list)" else WARM_UP))
    model.predict(texts[:WARM_UP], LABELS)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.process_time()
    if side == "job":
        run(config, model)
        print(time.process_time() - began, flush=True)
        parts = sorted(Path(config.output).glob("part-*"))
        print(digest(json.loads(line)["entities"] for part in parts for line in part.open(encoding="utf-8")))
    else:
        found = model.predict(texts, LABELS, progress=False)
        print(time.process_time() - began, flush=True)
        print(digest(found))


class Side:
    """A process that runs in turns. seconds: of its turns so far. cpu: its own, None before its end."""

    def __init__(self, name: str, given: list[str], threads: int) -> None:
        command = [sys.executable, __file__, "--threads", str(threads), "--serve", name, *given]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.seconds, self.cpu = 0.0, None if self._line() == "ready" else -1.0
        self.process.send_signal(signal.SIGSTOP)
        self.process.stdin.write(b"go\n")  # type: ignore[union-attr]

    def _line(self) -> str:
        """Read a line. The pipe has no buffer here, so that `select` sees what is in it."""
        return self.process.stdout.readline().decode().strip()  # type: ignore[union-attr]

    def turn(self, seconds: float) -> None:
        """Run for some seconds, or to the end of the work."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        ended = bool(select.select([self.process.stdout], [], [], seconds)[0])
        self.seconds += time.perf_counter() - began
        if ended:
            self.cpu = float(self._line())
        self.process.send_signal(signal.SIGSTOP)

    def end(self) -> str:
        """Return the hash of what the side found."""
        self.process.send_signal(signal.SIGCONT)
        answer = self._line()
        self.process.communicate()
        return answer


def in_turns(sides: list[Side]) -> None:
    """Run all sides to their ends; in each round every one has a turn of the same length, in random order."""
    rng = random.Random(0)
    while any(side.cpu is None for side in sides):
        seconds = rng.uniform(*TURNS)
        for side in rng.sample(sides, len(sides)):
            if side.cpu is None:
                side.turn(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--width", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--keep", help="folder for the input and the output of the job, which are deleted otherwise")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], arguments.serve[1:], arguments.threads)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        model = arguments.model
        if arguments.width is not None:
            model = str(folder / "model")
            save_narrow_model(arguments.model, arguments.width, Path(model))
        words = 0
        with (folder / "in.jsonl").open("w", encoding="utf-8") as file:
            for i, text in enumerate(texts_of(arguments.data, arguments.rows)):
                words += len(text.split())
                file.write(json.dumps({"id": i, "text": text}) + "\n")
        given = [model, "--input", str(folder / "in.jsonl"), "--output", str(folder / "out")]
        given += ["--labels", ",".join(LABELS), "--dtype", arguments.dtype]
        sides = {name: Side(name, given, arguments.threads) for name in ("predict(list)", "job")}
        in_turns(list(sides.values()))
        found = {name: side.end() for name, side in sides.items()}
        if len(set(found.values())) > 1:
            raise SystemExit(f"the job's entities are not those of predict: {found}")
        seconds = {name: (side.seconds, side.cpu or 0.0) for name, side in sides.items()}
        if arguments.ray:
            shutil.rmtree(folder / "out")
            spread = [*given, "--ray", "--ray-workers", "2", "--ray-threads", "1"]
            spread += ["--shard-rows", str(max(arguments.rows // 16, 1))]
            seconds["Ray, 2 workers of 1 thread"] = (ray_seconds(parse_job_config(spread)), float("nan"))
    print(f"{arguments.rows} rows, {words} words, {arguments.threads} threads")
    print("| side | seconds | rows/s | of predict | CPU seconds | of predict |\n|---|---|---|---|---|---|")
    wall, cpu = seconds["predict(list)"]
    for name, (own, used) in seconds.items():
        speeds = f"{own:.1f} | {arguments.rows / own:.0f} | {100 * wall / own:.1f} %"
        print(f"| {name} | {speeds} | {used:.1f} | {100 * cpu / used:.1f} % |")


if __name__ == "__main__":
    main()
