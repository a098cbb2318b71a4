"""What fine-tuning on one corpus does to the others: plain, by adapters, interpolated, with replay.

    python bench/peer_training.py prepare --shared ../shared --out runs/peer/data
    python bench/fine_tuning.py prepare --data runs/peer/data --out runs/tuning/data [--shared ../shared]
    python -m glimodern.train --init-from CHECKPOINT $(python bench/fine_tuning.py arguments) --output-dir runs/tuning/a
    python bench/fine_tuning.py blend CHECKPOINT runs/tuning/a/fine_tuned/model runs/tuning/half --ratio 0.5
    python bench/fine_tuning.py score CHECKPOINT runs/tuning/a/model ... [--shared ../shared] [--json FILE]

`prepare` takes training rows of one corpus, and dev rows that `peer_training.py` leaves out. It makes two sets of types
that no row of the corpora names: types of the held-out rows of NuNER, and of made-up sentences of the demo corpus. They
choose the ratio of `--keep-zero-shot` together with dev, and never meet training. `score` prints F1 on the target's
held-out tail, the mean F1 on the tails of the other corpora, and the mean F1 on the first test sentences of the
CrossNER domains, on which nothing is chosen. Each set is asked all of its types.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

from glimodern.data.demo import build_demo_corpus

TARGET, TRAIN, DEV, CROSSNER = "bionlp13cg", 2280, 100, 100
OPEN, DEMO, ASKED = "nuner-1k", 120, 14
THRESHOLD, THRESHOLDS = 0.3, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
DOMAINS = ("ai", "literature", "music", "politics", "science")


def prepare(shared: Path, data: Path, out: Path) -> None:
    """Write train.jsonl, dev.jsonl and the sets of unseen types from the files of `peer_training.py prepare`."""
    out.mkdir(parents=True, exist_ok=True)
    corpora = {file.stem: _rows(file) for file in sorted((data / "train").glob("*.jsonl"))}
    known = {label.lower() for rows in corpora.values() for row in rows for label in _types(row)}
    mix = {
        name: [row for row in _rows(shared / "data" / "mix" / f"{name}.jsonl") if row["ner"]] for name in (TARGET, OPEN)
    }
    used = len(corpora[TARGET]) + len(_rows(data / "tails" / f"{TARGET}.jsonl"))
    held = mix[OPEN][len(corpora[OPEN]) :]
    demo = [
        {"tokenized_text": list(example.words), "ner": [[*entity] for entity in example.entities]}
        for example in build_demo_corpus(0).test
    ]
    sets = {"train": corpora[TARGET][:TRAIN], "dev": mix[TARGET][used : used + DEV]}
    sets |= {"unseen_nuner": unseen(held, known), "unseen_demo": unseen(demo, known)[:DEMO]}
    for name, chosen in sets.items():
        (out / f"{name}.jsonl").write_text("\n".join(map(json.dumps, chosen)) + "\n", encoding="utf-8")
        print(f"{name}: {len(chosen)} rows, {len({label for row in chosen for label in _types(row)})} types")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _types(row: dict[str, Any]) -> list[str]:
    return [label for _, _, label in row["ner"]]


def unseen(rows: list[dict[str, Any]], known: set[str]) -> list[dict[str, Any]]:
    """Return the rows with entities of types that are not known, with these entities alone.

    A row is asked its own of these types, and others up to ASKED.
    """
    rng = random.Random(0)
    kept = [{**row, "ner": [entity for entity in row["ner"] if entity[2].lower() not in known]} for row in rows]
    kept = [row for row in kept if row["ner"]]
    everything = sorted({label for row in kept for label in _types(row)})
    for row in kept:
        own = sorted(set(_types(row)))
        others = [label for label in everything if label not in own]
        row["types"] = own + rng.sample(others, min(len(others), max(ASKED - len(own), 0)))
    return kept


def arguments(out: Path) -> str:
    """Return the flags that all runs share."""
    paths = {f"--{name}-data": out / f"{name}.jsonl" for name in ("train", "dev")}
    paths["--canary-data"] = f"{out / 'unseen_nuner.jsonl'} {out / 'unseen_demo.jsonl'}"
    settings = {
        **paths, "--max-steps": 100, "--eval-steps": 0, "--checkpoint-steps": 0, "--batch-size": 8, "--lr": 1e-4,
        "--head-lr": 5e-4, "--threshold": THRESHOLD,
    }  # fmt: skip
    return " ".join(f"{name} {value}" for name, value in settings.items()) + " --keep-zero-shot"


def blend(base: str, tuned: str, out: Path, ratio: float) -> None:
    """Save the model of the weights (1 - ratio) base + ratio tuned."""
    import torch

    from glimodern import GLiModern

    before, model = (GLiModern.from_pretrained(name, trainable=True).eval() for name in (base, tuned))
    with torch.no_grad():
        for mine, others in zip(model.parameters(), before.parameters(), strict=True):
            mine.copy_(torch.lerp(others, mine, ratio))
    model.save_pretrained(out)


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
    parser.add_argument("command", choices=["prepare", "arguments", "blend", "score"])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--data", type=Path, default=Path("runs/peer/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/tuning/data"))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.shared, options.data, options.out)
    elif options.command == "arguments":
        print(arguments(options.out))
    elif options.command == "blend":
        base, tuned, out = options.models
        blend(base, tuned, Path(out), options.ratio)
    else:
        results = score(options.models, options.shared, options.data)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
