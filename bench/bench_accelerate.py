"""gliner's models, plain and under `accelerate_gliner`: both in one process, in turns, at the same batch size.

    python bench/bench_accelerate.py [--models modernbert,minilm] [--batches 8,1] [--rounds 3] [--texts FILE]
        [--checkpoint FOLDER] [--json FILE]

Models, texts, labels and threshold are those of bench_peers.py. The entities are compared first: those of a trained
checkpoint (shared: gliner-minilm-mix) on all texts at 0.5, and those of each model on the first texts. If they differ,
the script stops with status 1. Then `GLiNER.inference` of the accelerated copy and of the plain model is timed in
turns, in reversed order in every other round. Needs the extras peers and minilm. pytest collects no benchmark from this
file.
"""

import argparse
import copy
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench_peers import DISTURBED_CORES, QUICKLY_CHECKED, SENTENCES, THRESHOLD, read_texts
from measure import others_seconds, seconds_of, session_info
from peer_report import agreement
from peer_rows import ROOT, checkpoint_folder
from rich.console import Console
from rich.table import Table

GOAL = 2.5  # minimum ratio of gliner's seconds to the accelerated ones


def both(folder: Path) -> tuple[Any, Any]:
    """Load a checkpoint in gliner, plain and accelerated."""
    from gliner import GLiNER

    from glimodern import accelerate_gliner

    plain = GLiNER.from_pretrained(str(folder)).eval()
    fast = copy.deepcopy(plain)
    print(f"{folder.name}: {accelerate_gliner(fast)}", file=sys.stderr)
    return plain, fast


def differ(plain: Any, fast: Any, texts: list[str], labels: list[str]) -> dict[str, Any]:
    """Compare the entities at 0.5 (peer_report.agreement), flat and nested."""
    found = [
        [*model.inference(texts, labels, batch_size=8), *model.inference(texts, labels, flat_ner=False, batch_size=1)]
        for model in (plain, fast)
    ]
    return agreement(*found)


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of every call, one call of each per round, in reversed order in every other round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(seconds_of(calls[name]))
    return seconds


def measure(plain: Any, fast: Any, texts: list[str], labels: list[str], batch: int, rounds: int) -> dict[str, Any]:
    def call(model: Any) -> Callable[[], object]:
        return lambda: model.inference(texts, labels, threshold=THRESHOLD, batch_size=batch)

    before = others_seconds()
    seconds = in_turns({"gliner": call(plain), "accelerated": call(fast)}, rounds)
    busy = (others_seconds() - before) / sum(map(sum, seconds.values()))
    medians = {name: median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "ratio": medians["gliner"] / medians["accelerated"], "cores_of_others": busy}


def report(results: dict[str, Any]) -> None:
    table = Table("model", "batch", "gliner, s", "accelerated, s", "ratio", "", title=results["texts"])
    for name, batches in results["models"].items():
        for batch, row in batches.items():
            cells = [f"{median(row['seconds'][side]):.2f}" for side in ("gliner", "accelerated")]
            verdict = "reached" if row["ratio"] >= GOAL else f"short of {GOAL}"
            if row["cores_of_others"] > DISTURBED_CORES:
                verdict += f", DISTURBED: other processes kept {row['cores_of_others']:.1f} cores busy"
            table.add_row(name, batch, *cells, f"{row['ratio']:.2f}", verdict)
    console = Console(width=120)
    console.print(table)
    console.print(f"agreement: {results['agreement']}", f"machine: {results['session']}", sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="modernbert,minilm", help="names or checkpoint folders, comma-separated")
    parser.add_argument("--batches", default="8,1", help="sentences per batch, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=Path, help="file with one text per line, instead of CrossNER")
    labels_help = "labels for --texts, separated by commas"
    parser.add_argument("--labels", default="person,organisation,location,country,event", help=labels_help)
    shared = Path(os.environ.get("GLIMODERN_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--shared", type=Path, default=shared, help="folder with data and checkpoints")
    checkpoint_help = "trained checkpoint to compare entities with (default: shared, gliner-minilm-mix)"
    parser.add_argument("--checkpoint", type=Path, help=checkpoint_help)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    corpus, labels, source = read_texts(options)
    texts = corpus[:SENTENCES]
    described = f"{len(texts)} texts of {source}, {sum(len(t.split()) for t in texts):,} words, {len(labels)} labels"
    results: dict[str, Any] = {"session": session_info(), "texts": described, "agreement": {}, "models": {}}
    trained = options.checkpoint or options.shared / "checkpoints" / "gliner-minilm-mix"
    folders = [(str(trained), trained, texts)] if trained.is_dir() else []
    folders += [
        (name, checkpoint_folder(name, texts, labels), texts[:QUICKLY_CHECKED]) for name in options.models.split(",")
    ]
    for name, folder, checked in folders:
        plain, fast = both(folder)
        agreed = results["agreement"][name] = differ(plain, fast, checked, labels)
        if not agreed["same"]:
            print(f"{name}: expected the same entities, got {agreed}; nothing was timed", file=sys.stderr)
            return 1
        if folder != trained:
            results["models"][name] = {
                batch: measure(plain, fast, texts, labels, int(batch), options.rounds)
                for batch in options.batches.split(",")
            }
    report(results)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
