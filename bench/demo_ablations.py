"""Is the demo corpus hard enough? Two runs of the demo's recipe on corpora that hide one half of what is needed.

    python bench/demo_ablations.py [--out runs/ablations] [--max-steps N]

"no prompt": every label is replaced by "type 1", "type 2", ... in an order drawn anew for each sentence, so that the
prompt says how many types are asked but not which. "no context": every word outside the gold entities is replaced by
"_", so that a span's own words are all there is to go by (and its borders are given away: an upper bound). The plain
corpus goes through the same files and flags, as the control. Prints micro F1 on the test groups.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from glimodern.config import parse_train_config
from glimodern.data import Dataset, Example
from glimodern.data.demo import build_demo_corpus
from glimodern.train import train

Row = dict[str, object]
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def plain(example: Example, types: list[str]) -> Row:
    return {"tokenized_text": example.words, "ner": [list(e) for e in example.entities], "ner_labels": types}


def no_prompt(example: Example, types: list[str]) -> Row:
    order = list(range(1, len(types) + 1))
    random.Random(f"{example.id} {example.words}").shuffle(order)
    name = {label: f"type {number}" for label, number in zip(types, order, strict=True)}
    entities = [[start, end, name[label]] for start, end, label in example.entities]
    return {"tokenized_text": example.words, "ner": entities, "ner_labels": sorted(name.values())}


def no_context(example: Example, types: list[str]) -> Row:
    inside = {i for start, end, _ in example.entities for i in range(start, end + 1)}
    words = [word if i in inside else "_" for i, word in enumerate(example.words)]
    return {**plain(example, types), "tokenized_text": words}


def write(dataset: Dataset, folder: Path, change: Callable[[Example, list[str]], Row]) -> None:
    """One file a group, so that the groups are reported apart."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    for example in dataset:
        types = list(example.types) if example.types is not None else dataset.types
        files.setdefault(example.group or dataset.name, []).append(json.dumps(change(example, types)))
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--max-steps", type=int)
    options = parser.parse_args()
    corpus = build_demo_corpus(0)
    for name, change in {"plain": plain, "no prompt": no_prompt, "no context": no_context}.items():
        folder = options.out / name.replace(" ", "-")
        for split, dataset in {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}.items():
            write(dataset, folder / f"data-{split}", change)
        arguments = [
            *("--config", str(CONFIG), "--output-dir", str(folder / "run"), "--checkpoint-steps", "0"),
            *("--train-data", str(folder / "data-train"), "--dev-data", str(folder / "data-dev")),
            *("--eval-data", str(folder / "data-test"), "--no-progress"),
            *(("--max-steps", str(options.max_steps)) if options.max_steps else ()),
        ]
        report = train(parse_train_config(arguments))
        (scores,) = report["evaluation"].values()
        groups = {group: round(100 * counts["f1"], 1) for group, counts in scores["per_group"].items()}
        print(f"{name}: micro F1 by group {groups}", flush=True)


if __name__ == "__main__":
    main()
