"""Time against the number of labels: a bi-encoder with label vectors, a uni-encoder, and gliner's bi-encoder.

    python bench/bench_labels.py [--model edge] [--counts 1,10,100,1000,5000] [--texts 1,16] [--seconds 20]
        [--most-seconds 5] [--json FILE] [--plot FILE.png]

Models have random weights and the shapes of public bi-encoders: `edge` (Ettin-32M for texts, MiniLM-L6 for labels, head
384) and `base` (ModernBERT-base for texts, BGE-small for labels, head 512, both projected). The uni-encoder has the
same text encoder. Both bi-encoders load one checkpoint and get precomputed label vectors; that they find the same
entities is checked first. All sides run in fp32 in one process, in turns, on CrossNER politics sentences (else on the
demo corpus) of about 25 words, gliner in batches of 8. A call of more than --most-seconds is timed once. The
uni-encoder is left out if its last time predicts more than four times --most-seconds, or if its encoder does not take
so many labels. The threshold lets few candidates pass, because the scores of random weights would give too many to
decode.

Needs the extras peers and plots. Without gliner its side is left out. pytest collects no benchmark from this file.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from measure import ROOT, in_turns, peak_mib, session_info

from glimodern import GLiModern
from glimodern.data import load_dataset
from glimodern.train.demo import train_tokenizer

OURS, UNI, PEER = "ours, label vectors", "ours, uni-encoder", "gliner, label vectors"
AGREED_LABELS, ENCODED_LABELS = 20, 16  # gliner pads each label to the tokenizer's 512 tokens


class Shape(NamedTuple):
    """(width, layers, heads, intermediate size) of the two encoders, and the head's width."""

    text: tuple[int, int, int, int]
    labels: tuple[int, int, int, int]
    head: int


SHAPES = {
    "edge": Shape((384, 10, 6, 576), (384, 6, 12, 1536), 384),
    "base": Shape((768, 22, 12, 1152), (384, 12, 12, 1536), 512),
    "tiny": Shape((32, 2, 2, 48), (48, 2, 4, 64), 32),
}


def sentences(count: int) -> list[list[str]]:
    """Return `count` sentences of about 25 words, split into words."""
    folder = ROOT.parent / "shared" / "data" / "crossner" / "politics"
    if folder.is_dir():
        found = load_dataset(folder, split="test").examples
    else:
        from glimodern.data.demo import build_demo_corpus

        found = build_demo_corpus(0).test.examples
    return [example.words for example in sorted(found, key=lambda example: abs(len(example.words) - 25))[:count]]


def label_names(count: int) -> list[str]:
    """Make distinct labels of two to four tokens."""
    kinds = ("person", "place", "party", "event", "law", "award", "book", "city", "club", "drug")
    return [f"{kinds[i % 10]} {i}" if i >= 10 else kinds[i] for i in range(count)]


def build(shape: Shape, folder: Path, words: list[list[str]]) -> tuple[GLiModern, GLiModern]:
    """Build the bi-encoder and the uni-encoder, save them under folder and load them for inference in fp32."""
    from transformers import BertConfig, BertModel, ModernBertConfig

    tokenizer = train_tokenizer([*words] * 3, label_names(200), vocab_size=3000)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder / "labels")
    width, layers, heads, middle = shape.labels
    config = BertConfig(
        vocab_size=30522, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=middle,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "labels")
    width, layers, heads, middle = shape.text
    text: Callable[[], Any] = lambda: ModernBertConfig(  # noqa: E731
        vocab_size=50368, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=middle, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    models = []
    for name, labels_encoder in (("bi", str(folder / "labels")), ("uni", None)):
        own = train_tokenizer([*words] * 3, label_names(200), vocab_size=3000)
        own.model_max_length = 8192
        model = GLiModern.from_encoder_config(text(), own, hidden_size=shape.head, labels_encoder=labels_encoder)
        model.save_pretrained(folder / name)
        models.append(GLiModern.from_pretrained(folder / name, dtype="fp32"))
    return models[0], models[1]


def threshold_of(model: GLiModern, words: list[list[str]]) -> float:
    """Return a threshold that about one of 300,000 pairs of span and label passes."""
    with torch.no_grad():
        scores = model.scores(model.packer.pack(words[:4], [label_names(AGREED_LABELS)] * len(words[:4])))
    logits = torch.cat([text[text.isfinite()] for text in scores])
    return float(torch.sigmoid(logits.mean() + 4.5 * logits.std()))


def spans(results: Any) -> list[list[tuple[int, int, str]]]:
    return [[(e["start"], e["end"], e["label"]) for e in text] for text in results]


class Sides:
    """The models of all sides, and their calls by name."""

    def __init__(self, model: str, folder: Path) -> None:
        self.words = sentences(64)
        self.bi, self.uni = build(SHAPES[model], folder, self.words)
        self.texts = [" ".join(words) for words in self.words]
        self.threshold = threshold_of(self.bi, self.words)
        self.public: Any = None
        if find_spec("gliner") is not None:
            from gliner import GLiNER

            self.public = GLiNER.from_pretrained(str(folder / "bi")).eval()

    def calls(self, labels: list[str], vectors: Any, texts: list[str]) -> dict[str, Callable[[], Any]]:
        threshold = self.threshold
        calls: dict[str, Callable[[], Any]] = {
            OURS: lambda: self.bi.predict(texts, None, threshold, label_vectors=vectors),
            UNI: lambda: self.uni.predict(texts, labels, threshold),
        }
        if self.public is not None:
            calls[PEER] = lambda: self.public.batch_predict_with_embeds(
                texts, vectors.vectors, labels, threshold=threshold, batch_size=8
            )
        return calls

    def check(self) -> None:
        """Check that both bi-encoders find the same entities, with our label vectors and with gliner's."""
        labels, texts = label_names(AGREED_LABELS), self.texts[:8]
        vectors = self.bi.encode_labels(labels)
        low = self.threshold
        while not any(wanted := self.bi.predict(texts, None, low, label_vectors=vectors)):
            low *= 0.99
        if self.public is None:
            return
        for embeds in (vectors.vectors, self.public.encode_labels(labels)):
            found = self.public.batch_predict_with_embeds(texts, embeds, labels, threshold=low)
            if spans(found) != spans(wanted):
                raise SystemExit("entities: expected gliner's, got others; nothing was timed")

    def encoding(self) -> dict[str, float]:
        """Measure the seconds to encode ENCODED_LABELS labels, by side."""
        labels = label_names(ENCODED_LABELS)
        calls: dict[str, Callable[[], Any]] = {"ours": lambda: self.bi.encode_labels(labels)}
        if self.public is not None:
            calls["gliner"] = lambda: self.public.encode_labels(labels)
        self.bi.encode_labels(labels)
        return {name: median(taken) for name, taken in in_turns(calls, 0.0, 3).items()}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sides = Sides(options.model, folder)
    sides.check()
    results: dict[str, Any] = {"session": session_info(), "model": options.model, "rows": []}
    results["encoding"] = {"labels": ENCODED_LABELS, "seconds": sides.encoding()}
    points = [(texts, count) for texts in options.texts for count in options.counts]
    most = max(options.counts)
    all_vectors = sides.bi.encode_labels(label_names(most))
    last: dict[tuple[int, str], float] = {}  # seconds a label
    for texts, count in points:
        labels = label_names(count)
        vectors = all_vectors if count == most else sides.bi.encode_labels(labels)
        calls = sides.calls(labels, vectors, sides.texts[:texts])
        once: dict[str, list[float]] = {}
        for name in list(calls):
            if name == UNI and last.get((texts, name), 0.0) * count > 4 * options.most_seconds:
                del calls[name]
                continue
            started = time.perf_counter()
            try:
                calls[name]()
            except ValueError as error:  # more labels than the uni-encoder's positions
                print(f"{name}, {count} labels: {error}", file=sys.stderr)
                del calls[name]
                continue
            taken = time.perf_counter() - started
            last[texts, name] = taken / count if count > 1 else 0.0
            if taken > options.most_seconds:
                once[name] = [taken]
                del calls[name]
        seconds = {**in_turns(calls, options.seconds / len(points), 3), **once}
        memory = peak_mib(calls[OURS]) if OURS in calls else None
        row = {"texts": texts, "labels": count, "memory_mib": memory, "seconds": seconds}
        results["rows"].append(row)
        print(line(row), flush=True)
    return results


def line(row: dict[str, Any]) -> str:
    """Format a row of the table: milliseconds of each side, and their ratio to ours."""
    ours = median(row["seconds"][OURS])
    cells = [f"{row['texts']} x {row['labels']:,}", f"{1e3 * ours:,.1f}"]
    for name in (UNI, PEER):
        taken = row["seconds"].get(name)
        cells.append("" if taken is None else f"{1e3 * median(taken):,.1f} ({median(taken) / ours:.1f} x)")
    cells.append("" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}")
    return "| " + " | ".join(cells) + " |"


def plot(results: dict[str, Any], file: Path) -> None:
    """Plot milliseconds against labels, one panel per number of texts, ours coloured and peers grey."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from plots import plain_numbers

    counts = list(dict.fromkeys(row["texts"] for row in results["rows"]))
    figure, panels = plt.subplots(1, len(counts), figsize=(5.5 * len(counts), 4.2), squeeze=False, layout="constrained")
    styles = {OURS: ("tab:blue", 2.5), UNI: ("tab:cyan", 1.5), PEER: ("tab:gray", 1.5)}
    for axes, texts in zip(panels[0], counts, strict=True):
        for name, (colour, width) in styles.items():
            rows = [row for row in results["rows"] if row["texts"] == texts and name in row["seconds"]]
            milliseconds = [1e3 * median(row["seconds"][name]) for row in rows]
            axes.plot([row["labels"] for row in rows], milliseconds, "o-", color=colour, linewidth=width, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(plain_numbers)
        axes.yaxis.set_major_formatter(plain_numbers)
        axes.set_xlabel("labels")
        axes.set_ylabel("milliseconds (median)")
        axes.set_title(f"{texts} sentence{'s' if texts > 1 else ''} of about 25 words", fontsize=10)
        axes.grid(True, alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.suptitle(f"{results['model']}, fp32, {results['session']['machine']}", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="edge")
    parser.add_argument("--counts", type=numbers, default=[1, 10, 100, 1000, 5000])
    parser.add_argument("--texts", type=numbers, default=[1, 16])
    parser.add_argument("--seconds", type=float, default=20.0, help="approximate time of all points together")
    parser.add_argument("--most-seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Resizing embeddings")
    print(f"| texts x labels | {OURS}, ms | {UNI}, ms | {PEER}, ms | ours, MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        results = run(options, Path(folder))
    seconds = results["encoding"]["seconds"]
    told = ", ".join(f"{name} {1e3 * taken:,.0f} ms" for name, taken in seconds.items())
    print(f"encode_labels, {ENCODED_LABELS} labels: {told}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
