"""The slowdown on a busy machine: seconds of a training step and of a prediction beside single-threaded processes.

    python bench/peer_training.py prepare --shared ../shared --out runs/peer/data
    python bench/busy_neighbours.py [--shared ../shared] [--data runs/peer/data] [--neighbours 0 1 2] [--seconds 20]
        [--sides "train ours,train gliner,predict ours,predict gliner"] [--json FILE]

A neighbour is a Python loop that never sleeps. Each side runs in a separate process that computes only on request, so
the sides run in turns. The result is a side's median with k neighbours divided by its median without any. If the kernel
gave every thread the same share, two threads on two cores would take 1.5 times as long with one neighbour and 2 times
with two.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

CHECKPOINT = "checkpoints/gliner-minilm-mix"
SENTENCES, BATCH = 64, 8
SIDES = ("train ours", "train gliner", "predict ours", "predict gliner")


def training_step(name: str, data: Path) -> Callable[[], object]:
    """Return a MiniLM training step of 8 sentences. Both sides get the same sentences and types."""
    from peer_training import RUNNERS, minilm_folder, step_rows

    if name == "ours":
        from glimodern.train.memory import keep_freed_memory

        keep_freed_memory()  # as `python -m glimodern.train` does
    step = RUNNERS["ours fp32" if name == "ours" else name](minilm_folder(), False)
    rows = step_rows(data, random.Random(0))
    return lambda: step(next(rows))


def prediction(name: str, shared: Path) -> Callable[[], object]:
    """Return the prediction of 64 CrossNER politics sentences with 9 labels in fp32 by the MiniLM checkpoint."""
    from glimodern.data import load_dataset

    dataset = load_dataset(shared / "data" / "crossner" / "politics", split="test")
    texts = [" ".join(example.words) for example in dataset.examples[:SENTENCES]]
    folder = str(shared / CHECKPOINT)
    if name == "ours":
        from glimodern import GLiModern

        ours = GLiModern.from_pretrained(folder, dtype="fp32")
        return lambda: ours.predict(texts, dataset.types)
    from gliner import GLiNER

    theirs = GLiNER.from_pretrained(folder)
    return lambda: theirs.inference(texts, list(dataset.types), batch_size=BATCH)


def serve(side: str, shared: Path, data: Path) -> None:
    """Time one call for each line of standard input, and write its seconds to standard output."""
    task, name = side.split()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print to standard error
    call = training_step(name, data) if task == "train" else prediction(name, shared)
    for _ in range(2):
        call()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        call()
        print(time.perf_counter() - began, file=answers, flush=True)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """A context with `count` processes that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2 * bool(count))
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(options: argparse.Namespace) -> dict[str, dict[int, list[float]]]:
    """Measure the seconds of every call, by side and number of neighbours."""
    sides = options.sides.split(",")
    workers = {}
    for side in sides:
        command = [sys.executable, __file__, "--serve", side, "--shared", options.shared, "--data", options.data]
        workers[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert workers[side].stdout.readline() == "ready\n", f"{side} did not start"
    seconds: dict[str, dict[int, list[float]]] = {side: {k: [] for k in options.neighbours} for side in sides}
    for _ in range(2):  # every number of neighbours twice, so that a drift of the machine is visible
        for count in options.neighbours:
            with neighbours(count):
                for side in sides:
                    until = time.perf_counter() + options.seconds / 2
                    while time.perf_counter() < until:
                        workers[side].stdin.write("go\n")
                        workers[side].stdin.flush()
                        seconds[side][count].append(float(workers[side].stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--data", default="runs/peer/data")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="per side and number of neighbours")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.serve:
        serve(options.serve, Path(options.shared), Path(options.data))
        return
    seconds = measure(options)
    for side, by_count in seconds.items():
        idle = median(by_count[options.neighbours[0]])
        cells = [f"{k}: {median(s):.3f} s ({median(s) / idle:.2f})" for k, s in by_count.items()]
        print(f"{side:16s}", "   ".join(cells))
    if options.json is not None:
        options.json.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
