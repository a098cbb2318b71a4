"""Exported models in ONNX Runtime: gliner's own export against the folded graph, in turns, on one thread.

    python bench/onnx_export.py [--models modernbert,minilm] [--rounds 5] [--texts FILE] [--shared FOLDER]

Models and texts are bench_peers.py's: 64 sentences of CrossNER politics with 9 labels. The sides:

- gliner's export in gliner's loader, at batch sizes 1 and 8;
- our export in the layout "padded" in the same loader, at the same batch sizes: the same reader, so the graph alone
  makes the difference;
- our export in the layout "packed" in OnnxPredictor, which forms its own batches, in fp32 and in int8.

All sides in fp32 must find the same entities at 0.5 before anything is timed; how far int8 agrees is printed. Times
are CPU seconds of this process, so that other processes on the machine count less; medians of the rounds. Exports are
made once, into runs/peers. Needs the extras peers and minilm.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench_peers import SENTENCES, THRESHOLD, read_texts
from measure import session_info
from peer_report import agreement
from peer_rows import ROOT, RUNS, checkpoint_folder, onnx_folder

BATCHES = (1, 8)
Entities = list[list[dict[str, Any]]]


def exported(checkpoint: Path, layout: str, dtype: str = "fp32") -> Path:
    """Our export of a checkpoint, made once."""
    from glimodern.export.write import export_model

    folder = RUNS / f"{checkpoint.name}-{layout}-{dtype}"
    if not (folder / "model.onnx").exists():
        export_model(checkpoint, folder, layout=layout, dtype=dtype)  # type: ignore[arg-type]
    return folder


def in_gliner(folder: Path) -> Any:
    """A folder in gliner's loader, on one thread."""
    import onnxruntime
    from gliner import GLiNER

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return GLiNER.from_pretrained(str(folder), load_onnx_model=True, session_options=options)


def sides(checkpoint: Path, texts: list[str], labels: list[str]) -> dict[str, Callable[[], Entities]]:
    """The calls to time, by name."""
    from glimodern import OnnxPredictor

    found: dict[str, Callable[[], Entities]] = {}
    for name, folder in (
        ("gliner's export", onnx_folder(checkpoint)),
        ("ours, padded", exported(checkpoint, "padded")),
    ):
        model = in_gliner(folder)
        for batch in BATCHES:
            found[f"{name}, batch {batch}"] = lambda model=model, batch=batch: model.inference(  # type: ignore[misc]
                texts, labels, threshold=THRESHOLD, batch_size=batch
            )
    for dtype in ("fp32", "int8"):
        packed = OnnxPredictor.from_pretrained(exported(checkpoint, "packed", dtype), threads=1)
        found[f"ours, packed, {dtype}"] = lambda model=packed: [  # type: ignore[misc]
            list(one) for one in model.predict(texts, labels, THRESHOLD)
        ]
    return found


def measure(model: str, texts: list[str], labels: list[str], rounds: int) -> None:
    calls = sides(checkpoint_folder(model, texts, labels), texts, labels)
    reference = next(iter(calls.values()))()
    for name, call in calls.items():
        agreed = agreement(reference, call())
        if name.endswith("int8"):
            print(f"{model}: {name}: {agreed['f1']:.1%} agreement with fp32 on {sum(map(len, reference))} entities")
        elif not agreed["same"]:
            raise SystemExit(f"{model}: {name}: finds other entities than gliner's export: {agreed}")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else list(calls)[::-1]:
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
    medians = {name: median(values) for name, values in seconds.items()}
    theirs = {batch: medians[f"gliner's export, batch {batch}"] for batch in BATCHES}
    print(f"{model}: {len(texts)} texts, {len(labels)} labels, {sum(map(len, reference))} entities, {rounds} rounds")
    for name, value in medians.items():
        ratios = ", ".join(f"{theirs[batch] / value:.2f} x gliner's at batch {batch}" for batch in BATCHES)
        print(f"  {name}: {value:.2f} s ({min(seconds[name]):.2f} to {max(seconds[name]):.2f}); {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="modernbert,minilm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--labels", default="person,organization,location")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    options = parser.parse_args()
    texts, labels, source = read_texts(options)
    print(f"{source}; one thread; {session_info()['machine']}")
    for model in options.models.split(","):
        measure(model, texts[:SENTENCES], labels, options.rounds)


if __name__ == "__main__":
    main()
