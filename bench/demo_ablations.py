"""Ablations of the demo corpus: the demo's recipe on two corpora that each hide half of the necessary information.

    python bench/demo_ablations.py [--out runs/ablations] [--max-steps N] [--only plain "no prompt" "no context"]

"no prompt": every label is replaced by a number, "type 1" to "type 8", drawn for each sentence, so that the prompt
contains the number of types but not their names. "no context": every word outside the gold entities is replaced by "_",
so that only a span's words are known. This is an upper bound, because the borders of entities become visible. "plain":
the unchanged corpus with the same files and flags, as the control. Prints micro F1 on the test groups.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from glimodern.data import Dataset, Example
from glimodern.data.demo import build_demo_corpus
from glimodern.inputs.words import Entity
from glimodern.train.config import parse_train_config
from glimodern.train.loop import train

Row = dict[str, object]
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def row(words: list[str], entities: list[Entity], types: list[str] | None) -> Row:
    """Build a row of GLiNER's format. types: the types to ask; None: the trainer samples them."""
    line: Row = {"tokenized_text": words, "ner": [list(entity) for entity in entities]}
    return line if types is None else {**line, "ner_labels": types}


def plain(example: Example) -> Row:
    return row(example.words, example.entities, None if example.types is None else list(example.types))


def no_prompt(example: Example) -> Row:
    labels = list(example.types or dict.fromkeys(label for _, _, label in example.entities))
    numbers = random.Random(f"{example.id} {example.words}").sample(range(1, 1 + max(8, len(labels))), len(labels))
    name = {label: f"type {number}" for label, number in zip(labels, numbers, strict=True)}
    entities = [(start, end, name[label]) for start, end, label in example.entities]
    return row(example.words, entities, None if example.types is None else sorted(name.values()))


def no_context(example: Example) -> Row:
    inside = {i for start, end, _ in example.entities for i in range(start, end + 1)}
    words = [word if i in inside else "_" for i, word in enumerate(example.words)]
    return row(words, example.entities, None if example.types is None else list(example.types))


VARIANTS = {"plain": plain, "no prompt": no_prompt, "no context": no_context}


def write(dataset: Dataset, folder: Path, change: Callable[[Example], Row]) -> None:
    """Write one file per group, so that the groups are reported separately."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    for example in dataset:
        files.setdefault(example.group or dataset.name, []).append(json.dumps(change(example)))
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--only", choices=list(VARIANTS), nargs="+", default=list(VARIANTS))
    options = parser.parse_args()
    corpus = build_demo_corpus(0)
    for name in options.only:
        change = VARIANTS[name]
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
