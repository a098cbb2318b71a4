"""What fine-tuning on one corpus does to the others: plain, by adapters, interpolated, with replay.

    python bench/peer_training.py prepare --shared ../shared --out runs/peer/data
    python bench/fine_tuning.py prepare --data runs/peer/data --out runs/tuning/data
    python -m glimodern.train --init-from CHECKPOINT $(python bench/fine_tuning.py arguments) --output-dir runs/tuning/a
    python bench/fine_tuning.py score CHECKPOINT runs/tuning/a/model ... [--shared ../shared] [--json FILE]

`prepare` splits the training rows of one corpus into train and dev, and takes rows of each other corpus: those of
`canary` choose the ratio of `--keep-zero-shot`, and never meet training. `score` prints F1 on the target's held-out
tail, the mean F1 on the tails of the other corpora, and the mean F1 on the first test sentences of the CrossNER
domains, on which nothing is chosen. Each set is asked all of its types.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

TARGET, DEV, CANARY, CROSSNER = "bionlp13cg", 100, 20, 100
THRESHOLD, THRESHOLDS = 0.3, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
DOMAINS = ("ai", "literature", "music", "politics", "science")


def prepare(data: Path, out: Path) -> None:
    """Write train.jsonl, dev.jsonl and canary.jsonl from the files of `peer_training.py prepare`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = (data / "train" / f"{TARGET}.jsonl").read_text(encoding="utf-8").splitlines()
    canary = []
    for tail in sorted((data / "tails").glob("*.jsonl")):
        if tail.stem == TARGET:
            continue
        lines = (data / "train" / tail.name).read_text(encoding="utf-8").splitlines()
        parsed = [json.loads(line) for line in lines]
        types = sorted({label for row in parsed for _, _, label in row["ner"]})
        canary += [json.dumps({**row, "types": types}) for row in parsed[-CANARY:]]
    for name, lines in (("train", rows[:-DEV]), ("dev", rows[-DEV:]), ("canary", canary)):
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} rows")


def arguments(out: Path) -> str:
    """Return the flags that all runs share."""
    paths = {f"--{name}-data": out / f"{name}.jsonl" for name in ("train", "dev", "canary")}
    settings = {
        **paths, "--max-steps": 100, "--eval-steps": 0, "--checkpoint-steps": 0, "--batch-size": 8, "--lr": 1e-4,
        "--head-lr": 5e-4, "--threshold": THRESHOLD,
    }  # fmt: skip
    return " ".join(f"{name} {value}" for name, value in settings.items()) + " --keep-zero-shot"


def score(models: list[str], shared: Path, data: Path) -> dict[str, dict[str, float]]:
    """Return the F1 of each model in percent, at THRESHOLD and at the best of THRESHOLDS; print a row for each."""
    from glimodern import GLiModern
    from glimodern.data import Dataset, load_dataset, with_asked_types

    sets: dict[str, list[Dataset]] = {"target": [], "others": [], "crossner": []}
    for file in sorted((data / "tails").glob("*.jsonl")):
        tail = load_dataset(file)
        types = sorted({*tail.types, *load_dataset(data / "train" / file.name).types})
        sets["target" if file.stem == TARGET else "others"].append(Dataset(file.stem, tail.examples, types))
    for domain in DOMAINS:
        whole = load_dataset(shared / "data" / "crossner" / domain, split="test")
        sets["crossner"].append(Dataset(domain, with_asked_types(whole).examples[:CROSSNER], whole.types))
    results = {}
    for name in models:
        model = GLiModern.from_pretrained(name)
        by_threshold = {kind: f1_by_threshold(model, datasets) for kind, datasets in sets.items()}
        results[name] = {
            f"{kind}{suffix}": value
            for kind, f1 in by_threshold.items()
            for suffix, value in (("", f1[THRESHOLD]), (", best threshold", max(f1.values())))
        }
        print(name, {kind: round(value, 1) for kind, value in results[name].items()}, flush=True)
    return results


def f1_by_threshold(model: Any, datasets: list[Any]) -> dict[float, float]:
    """Return the mean F1 of data sets in percent at each threshold, from one prediction at the lowest."""
    from glimodern.data import asked_types
    from glimodern.data.metrics import score

    values: dict[float, list[float]] = {limit: [] for limit in THRESHOLDS}
    for dataset in datasets:
        words = [example.words for example in dataset]
        found = [x.entities for x in model.predict_words(words, asked_types(dataset), threshold=min(THRESHOLDS))]
        gold = [example.entities for example in dataset]
        for limit in THRESHOLDS:
            kept = [[entity[:3] for entity in entities if entity[3] > limit] for entities in found]
            values[limit].append(100 * score(gold, kept).micro.f1)
    return {limit: fmean(f1) for limit, f1 in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "arguments", "score"])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--data", type=Path, default=Path("runs/peer/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/tuning/data"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.data, options.out)
    elif options.command == "arguments":
        print(arguments(options.out))
    else:
        results = score(options.models, options.shared, options.data)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
