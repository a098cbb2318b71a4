"""F1 and time against the number of labels: one prompt, groups of several sizes, and gliner.

    python bench/label_groups.py MODEL DATA --others MORE_DATA [--labels 10 50 200 500 1000] [--gliner MODEL]

The sentences of DATA are asked the types of DATA among the most frequent types of MORE_DATA, in random order. Entities
of other types than DATA's count as false in "F1" and are left out in "F1, own types". "one prompt" asks as many labels
at a time as half of the encoder's tokens hold; its groups say how many prompts that takes.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections import Counter
from typing import Any

from glimodern import GLiModern
from glimodern.data import Dataset, load_dataset, load_split

Found = set[tuple[int, int, int, str]]
_GROUPS = (50, 25, 15, 10, 5)


def frequent_types(dataset: Dataset) -> list[str]:
    counts = Counter(label for example in dataset for _, _, label in example.entities)
    return [label for label, _ in counts.most_common()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--others", required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 50, 200, 500, 1000])
    parser.add_argument("--sentences", type=int, default=100, help="the last ones")
    parser.add_argument("--rename", nargs="*", default=[], metavar="LABEL=NAME")
    parser.add_argument("--gliner", metavar="MODEL", help="run gliner too, with this checkpoint")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rename = dict(pair.split("=", 1) for pair in arguments.rename)
    dataset = load_split(arguments.data, arguments.split)
    examples = list(dataset)[-arguments.sentences :]
    own = [rename.get(label, label) for label in frequent_types(dataset)]
    others = [label for label in frequent_types(load_dataset(arguments.others)) if label not in own]
    gold = {(i, a, b, rename.get(x, x)) for i, example in enumerate(examples) for a, b, x in example.entities}
    model = GLiModern.from_pretrained(arguments.model)
    theirs: Any = None
    if arguments.gliner is not None:
        from gliner import GLiNER

        theirs = GLiNER.from_pretrained(arguments.gliner)

    def f1(found: Found) -> float:
        return 200 * len(found & gold) / max(len(found) + len(gold), 1)

    def row(labels: int, name: str, prompts: str, found: Found, seconds: float) -> None:
        only_own = {entity for entity in found if entity[3] in own}
        print(f"| {labels} | {name} | {prompts} | {f1(found):.1f} | {f1(only_own):.1f} | {seconds:.1f} |", flush=True)

    print(f"{len(examples)} sentences, {len(own)} own types, {len(gold)} entities")
    print("| labels | asked | prompts | F1 | F1, own types | seconds |\n|---|---|---|---|---|---|")
    words = [list(example.words) for example in examples]
    for count in arguments.labels:
        labels = [*own, *others[: count - len(own)]]
        random.Random(count).shuffle(labels)
        for size in (len(labels), *(group for group in _GROUPS if group < len(labels))):
            begin = time.perf_counter()
            results = model.predict_words(words, labels, labels_per_prompt=size)
            seconds = time.perf_counter() - begin
            found = {(i, a, b, label) for i, result in enumerate(results) for a, b, label, _ in result.entities}
            name = "one prompt" if size == len(labels) else f"groups of {size}"
            row(len(labels), name, str(results[0].label_groups), found, seconds)
        if theirs is not None:
            begin = time.perf_counter()
            found = set()
            for i, example in enumerate(words):
                text, ends = " ".join(example), {}
                position = 0
                for index, word in enumerate(example):
                    ends[position] = index
                    ends[-(position + len(word))] = index
                    position += len(word) + 1
                for entity in theirs.predict_entities(text, labels):
                    if entity["start"] in ends and -entity["end"] in ends:
                        found.add((i, ends[entity["start"]], ends[-entity["end"]], entity["label"]))
            row(len(labels), "gliner", "1", found, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
