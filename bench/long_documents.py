"""Long documents: what windows find of what a model finds sentence by sentence, how fast, and in how much memory.

    python bench/long_documents.py MODEL DATA [DATA ...] [--words 100000] [--rename musicgenre="music genre" ...]
    python bench/long_documents.py MODEL DATA --memory 10000 100000 1000000

The document consists of the annotated sentences of the data sets (their split "test"), one after the other, joined by
blanks or by line ends; they are repeated until it has enough words. An entity counts as found if span and label are
equal. Gold is the data's. Peers: gliner, which cuts the text, and the rule of gliner2 2.1's long-text call (384 words,
64 of them shared, every window decoded alone, equal spans kept once: https://github.com/fastino-ai/GLiNER2) with this
model. --memory runs each size in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, NamedTuple

from glimodern import GLiModern
from glimodern.data import load_split
from glimodern.inference.decode import greedy_decode
from glimodern.inputs.words import split_words

Found = set[tuple[int, int, str]]
_CHUNK, _SHARED = 384, 64  # words, of gliner2's rule


class Document(NamedTuple):
    """sentences, and the text made of them. gold: (start, end, label) in characters of the text."""

    sentences: list[str]
    starts: list[int]
    text: str
    gold: Found
    labels: dict[str, str]


def make_document(sources: Iterable[str], words: int, rename: dict[str, str], joint: str) -> Document:
    sentences: list[str] = []
    gold: list[list[tuple[int, int, str]]] = []
    labels: dict[str, str] = {}
    for source in sources:
        for example in load_split(source, "test"):
            starts = [0, *accumulate(len(word) + 1 for word in example.words)]
            sentences.append(" ".join(example.words))
            gold.append([(starts[a], starts[b + 1] - 1, label) for a, b, label in example.entities])
            labels.update((label, rename.get(label, label)) for _, _, label in example.entities)
    count, chosen = 0, []
    while count < words:
        for index, sentence in enumerate(sentences):
            if count >= words:
                break
            chosen.append(index)
            count += len(split_words(sentence))
    picked = [sentences[index] for index in chosen]
    starts = [0, *accumulate(len(sentence) + len(joint) for sentence in picked)][:-1]
    moved = {
        (offset + start, offset + end, label)
        for offset, index in zip(starts, chosen, strict=True)
        for start, end, label in gold[index]
    }
    return Document(picked, starts, joint.join(picked), moved, labels)


def by_gliner2_rule(model: GLiModern, text: str, labels: dict[str, str]) -> Found:
    words = split_words(text)
    firsts = range(0, max(len(words) - _SHARED, 1), _CHUNK - _SHARED)
    bounds = [(words[first].start, words[min(first + _CHUNK, len(words)) - 1].end) for first in firsts]
    best: dict[tuple[int, int, str], float] = {}
    for (start, _), found in zip(bounds, model.predict([text[a:b] for a, b in bounds], labels), strict=True):
        for entity in found:
            key = start + entity["start"], start + entity["end"], entity["label"]
            best[key] = max(best.get(key, 0.0), entity["score"])
    starts, ends, names = zip(*best, strict=True) if best else ((), (), ())
    kept = greedy_decode(starts, [end - 1 for end in ends], [0] * len(names), list(best.values()))
    return {list(best)[index] for index in kept}


def spans(entities: Iterable[dict[str, Any]], offset: int = 0) -> Found:
    return {(offset + entity["start"], offset + entity["end"], entity["label"]) for entity in entities}


def timed(function: Callable[[], Found]) -> tuple[Found, float]:
    begin = time.perf_counter()
    found = function()
    return found, time.perf_counter() - begin


def compare(model: GLiModern, document: Document, with_gliner: str | None) -> None:
    labels, text = document.labels, document.text

    def alone() -> Found:
        results = model.predict(document.sentences, labels)
        return {span for start, found in zip(document.starts, results, strict=True) for span in spans(found, start)}

    def windows(**options: Any) -> Callable[[], Found]:
        return lambda: spans(model.predict(text, labels, **options)[0])

    sides: dict[str, Callable[[], Found]] = {
        "windows (default)": windows(),
        "windows of 128, context 16": windows(window=128, context=16),
        "windows of 48, context 8": windows(window=48, context=8),
        'window="sentence"': windows(window="sentence"),
        "gliner2's rule": lambda: by_gliner2_rule(model, text, labels),
        'long_texts="cut"': windows(long_texts="cut"),
    }
    if with_gliner is not None:
        from gliner import GLiNER

        theirs = GLiNER.from_pretrained(with_gliner)
        back = {prompt: label for label, prompt in labels.items()}

        def cut_by_gliner() -> Found:
            found = theirs.inference([text], list(labels.values()))[0]
            return {(entity["start"], entity["end"], back[entity["label"]]) for entity in found}

        sides["gliner"] = cut_by_gliner
    words = len(split_words(text))
    wanted, seconds = timed(alone)
    print(
        f"{words:,} words, {len(document.sentences):,} sentences, {len(labels)} labels, {len(document.gold):,} entities"
    )
    print("| read | found | of those found alone, % | F1 | words/s | times the speed of sentences |")
    print("|---|---|---|---|---|---|")

    def row(name: str, found: Found, took: float) -> str:
        f1 = 200 * len(found & document.gold) / max(len(found) + len(document.gold), 1)
        recall = 100 * len(found & wanted) / max(len(wanted), 1)
        speed = f"{words / took:,.0f} | {seconds / took:.2f}" if "cut" not in name and name != "gliner" else "- | -"
        return f"| {name} | {len(found):,} | {recall:.1f} | {f1:.1f} | {speed} |"

    print(row("sentence by sentence", wanted, seconds), flush=True)
    for name, side in sides.items():
        print(row(name, *timed(side)), flush=True)


def memory(arguments: argparse.Namespace) -> None:
    print("| words | peak MiB | above the loaded model | MiB above, a million words |\n|---|---|---|---|")
    for words in arguments.memory:
        command = [sys.executable, __file__, arguments.model, *arguments.data, "--one-size", str(words)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before, peak = json.loads(output.splitlines()[-1])
        print(f"| {words:,} | {peak:,.0f} | {peak - before:,.0f} | {(peak - before) / words * 1e6:,.0f} |", flush=True)


def one_size(model: GLiModern, document: Document) -> None:
    model.predict(document.sentences[:200], document.labels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model.predict(document.text, document.labels)
    print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--joint", choices=("blank", "line"), default="blank")
    parser.add_argument("--rename", nargs="*", default=[], metavar="LABEL=NAME")
    parser.add_argument("--gliner", metavar="MODEL", help="run gliner too, with this checkpoint")
    parser.add_argument("--memory", type=int, nargs="+", metavar="WORDS")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments)
        return
    warnings.simplefilter("ignore")
    rename = dict(pair.split("=", 1) for pair in arguments.rename)
    joint = {"blank": " ", "line": "\n"}[arguments.joint]
    document = make_document(arguments.data, arguments.one_size or arguments.words, rename, joint)
    model = GLiModern.from_pretrained(arguments.model, dtype=arguments.dtype)
    if arguments.one_size:
        one_size(model, document)
    else:
        compare(model, document, arguments.gliner)


if __name__ == "__main__":
    main()
