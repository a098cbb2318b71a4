"""The arithmetic and the tables of bench_peers.py: agreement, FLOPs of the work, goals, the fit against length.

A run's results (its JSON): "models": {name: {"work", "encoder", "flops", "rows": {row: {"dtype", "batches": {batch:
seconds}}}, "requests": {row: seconds}}}, "agreement": {row: ...}, "limits": GFLOP/s by dtype, "long": {model:
{"tokens", "seconds": {row: seconds}, "mib": {row: peak}}}, "lengths": {tokens: seconds}. Batch "0" means that the model
forms its batches itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

Results = dict[str, Any]
LEAST_AGREEMENT = {"fp32": 1.0, "bf16": 0.99, "int8": 0.97}
SCORE_TOLERANCE = 1e-3
LONG_TOKENS = {"modernbert": 8192, "deberta-base": 4096}  # of the one text that an encoder alone takes


def agreement(wanted: Sequence[Sequence[Mapping[str, Any]]], found: Sequence[Sequence[Mapping[str, Any]]]) -> Results:
    """Two runs' entities of the same texts: F1 of one against the other, the largest difference of a shared entity's
    score, and whether spans, labels and scores (to 1e-3) are the same."""

    def keyed(texts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[tuple[Any, ...], float]:
        return {(i, e["start"], e["end"], e["label"]): e["score"] for i, text in enumerate(texts) for e in text}

    a, b = keyed(wanted), keyed(found)
    shared = a.keys() & b.keys()
    drift = max((abs(a[key] - b[key]) for key in shared), default=0.0)
    f1 = 2 * len(shared) / (len(a) + len(b)) if a or b else 1.0
    return {"f1": f1, "drift": drift, "entities": len(b), "same": f1 == 1.0 and drift <= SCORE_TOLERANCE}


def falls_short(dtype: str, agreed: Results) -> bool:
    """Whether a row of this dtype agrees less with fp32 than it has to."""
    return not agreed["same"] if dtype == "fp32" else agreed["f1"] < LEAST_AGREEMENT[dtype]


def rms_difference(wanted: list[list[float]], found: list[list[float]]) -> float:
    """RMS of the difference over RMS of what was wanted."""
    pairs = [(a, b) for row, other in zip(wanted, found, strict=True) for a, b in zip(row, other, strict=True)]
    return (sum((a - b) ** 2 for a, b in pairs) / sum(a * a for a, _ in pairs)) ** 0.5


FEED_FORWARD_MATRICES = {"modernbert": 3, "bert": 2, "deberta-v2": 2}


def encoder_flops(config: Mapping[str, Any], tokens: int, rows: int) -> int:
    """FLOPs of an encoder's linear layers over packed tokens; what follows the last layer's attention counts for the
    `rows` alone that the head reads (first sub-tokens of words, and types).

    ModernBERT's feed-forward has three matrices (GeGLU), that of BERT and DeBERTa two.
    """
    d, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    qkv = 3 * d * d
    after = d * d + FEED_FORWARD_MATRICES[config["model_type"]] * d * wide
    return 2 * (layers * qkv * tokens + after * ((layers - 1) * tokens + rows))


def head_flops(encoder_width: int, width: int, words: int, types: int) -> int:
    """FLOPs of the folded span head's products and of a projection before it (docs/ARCHITECTURE.md, "The fold")."""
    projection = (words + types) * encoder_width * width if encoder_width != width else 0
    marker_mlps = words * 2 * 8 * width**2
    w1_halves = words * 2 * 4 * width**2
    prompts = types * 8 * width**2 + types * 4 * width**2  # their MLP, and u = q W2
    return 2 * (projection + marker_mlps + w1_halves + prompts)


class Fit(NamedTuple):
    """seconds = linear * tokens + quadratic * tokens^2; misfit: the largest relative error of a point."""

    linear: float
    quadratic: float
    misfit: float

    def share(self, tokens: int) -> float:
        """The part of the time that grows with the square of the length: the global layers' attention."""
        return self.quadratic * tokens / (self.linear + self.quadratic * tokens)


def fit_lengths(seconds: Mapping[int, float]) -> Fit:
    """Least squares of the relative errors, by the normal equations of seconds / tokens = linear + quadratic * tokens,
    each weighted with tokens / seconds."""
    rows = [(tokens / s, tokens**2 / s) for tokens, s in seconds.items()]
    aa, ab, bb = (sum(x[i] * x[j] for x in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(x[i] for x in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    linear, quadratic = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    misfit = max(abs(linear * x + quadratic * y - 1) for x, y in rows)
    return Fit(linear, quadratic, misfit)


def best(
    model: Mapping[str, Any] | None, begins: Iterable[str], dtypes: Iterable[str], batch: str = ""
) -> float | None:
    """The least median of a model's rows of these names' beginnings and dtypes ("auto" counts by its row's name)."""
    if model is None:
        return None
    medians = [
        median(seconds)
        for name, row in model["rows"].items()
        if any(name.startswith(begin) for begin in begins) and any(name.endswith(dtype) for dtype in dtypes)
        for size, seconds in row["batches"].items()
        if batch in ("", size)
    ]
    return min(medians, default=None)


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def share_of_limit(results: Results, model: Mapping[str, Any], row: str) -> float | None:
    """The seconds that the work's products take at the measured GEMM rate over the row's seconds."""
    took, dtype = best(model, [row], [""]), model["rows"].get(row, {}).get("dtype")
    if took is None or "flops" not in model or dtype is None:
        return None
    return model["flops"] / results["limits"][dtype] / 1e9 / took


def percentile(seconds: Sequence[float], part: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(seconds)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


PEERS, GLINER_TORCH = ("gliner", "fast_gliner"), ("gliner fp32", "gliner bf16", "gliner int8")
ALL = ("fp32", "bf16", "int8", "auto")


def goals(results: Results) -> list[tuple[str, float, float | None]]:
    """The goals: measure, least ratio (or share), and what was measured; None: a side did not run."""
    models = results["models"]
    base, small = models.get("modernbert"), models.get("minilm")
    requests = {name: median(seconds) for name, seconds in (base or {}).get("requests", {}).items()}
    gliner_request = min((s for name, s in requests.items() if name.startswith("gliner")), default=None)

    def against(
        begins: Iterable[str], dtype: str, ours: str, batch: str = "", name: str = "modernbert"
    ) -> float | None:
        model = models.get(name)
        return ratio(best(model, begins, [dtype], batch), best(model, [ours], [""]))

    def share(dtype: str) -> float | None:
        return base and share_of_limit(results, base, f"ours {dtype}")

    def long(name: str, measure: str, dtype: str) -> float | None:
        found = results.get("long", {}).get(name)
        if found is None or found["tokens"] != LONG_TOKENS[name]:
            return None
        values = found["mib"] if measure == "mib" else {row: median(s) for row, s in found["seconds"].items()}
        return ratio(values.get(f"transformers encoder {dtype}"), values.get(f"ours encoder {dtype}"))

    return [
        ("ModernBERT-base bf16 / gliner's best bf16", 2.3, against(["gliner"], "bf16", "ours bf16")),
        ("ModernBERT-base int8 / any peer's best int8", 3.0, against(PEERS, "int8", "ours int8")),
        (
            "ModernBERT-base auto / gliner's default (fp32, batch 8)", 8.0,
            against(["gliner fp32"], "", "ours auto", batch="8"),
        ),
        ("MiniLM, our best / any peer's best", 3.0, ratio(best(small, PEERS, ALL), best(small, ["ours"], ALL))),
        *(
            (f"ModernBERT-base {dtype}, share of the limit", least, share(dtype))
            for dtype, least in (("fp32", 0.85), ("bf16", 0.65), ("int8", 0.75))
        ),
        ("ModernBERT-base's encoder, 8,192 tokens, bf16 / transformers", 4.0, long("modernbert", "seconds", "bf16")),
        ("DeBERTa-base's encoder, 4,096 tokens, fp32 / transformers", 5.0, long("deberta-base", "seconds", "fp32")),
        ("DeBERTa-base's encoder, 4,096 tokens, memory / transformers", 10.0, long("deberta-base", "mib", "fp32")),
        ("ModernBERT-base fp32 / gliner's fp32", 3.0, against(["gliner fp32"], "", "ours fp32")),
        ("ModernBERT-base fp32 / any peer's best fp32", 1.6, against(PEERS, "fp32", "ours fp32")),
        *(
            (f"{title} {dtype} / gliner's best {dtype}", least, against(["gliner"], dtype, f"ours {dtype}", name=name))
            for name, title in (("deberta-small", "DeBERTa-v3-small"), ("deberta-base", "DeBERTa-v3-base"))
            for dtype, least in (("fp32", 3.0), ("int8", 4.0), ("bf16", 4.0))
        ),
        (
            "one sentence, ModernBERT-base bf16, p50 / gliner's best", 2.0,
            ratio(gliner_request, requests.get("ours bf16")),
        ),
    ]  # fmt: skip


Cells = list[list[str]]
AGREEMENT = ("row", "F1", "score drift", "entities", "same")
PREDICTION = ("row", "batch", "s", "min-max", "rounds", "words/s", "gliner fp32 8 / this", "this / ours", "limit")


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def goal_cells(results: Results) -> Cells:
    cells = []
    for what, least, value in goals(results):
        form = "{:.0%}" if least < 1 else "{:.2f}"
        verdict = "not measured" if value is None else "reached" if value >= least else "short"
        cells.append([what, form.format(least), _shown(value, form), verdict])
    return cells


def prediction_cells(results: Results, model: Mapping[str, Any]) -> Cells:
    """A line a row and batch size; ratios of medians: gliner's default over it, and it over ours of its dtype."""
    default, words = best(model, ["gliner fp32"], [""], "8"), model.get("work", {}).get("words")
    cells = []
    for name, row in model["rows"].items():
        rival = None if name.startswith("ours") else best(model, [f"ours {row['dtype']}"], [""])
        for batch, seconds in row["batches"].items():
            took = median(seconds)
            share = share_of_limit(results, model, name) if name.startswith("ours") else None
            cells.append(
                [
                    name if name != "ours auto" else f"ours auto ({row['dtype']})",
                    batch if batch != "0" else "own",
                    _seconds(took),
                    f"{_seconds(min(seconds))}-{_seconds(max(seconds))}",
                    str(len(seconds)),
                    _shown(words and words / took, "{:,.0f}"),
                    _shown(ratio(default, took), "{:.2f}"),
                    _shown(ratio(took, rival), "{:.2f}"),
                    _shown(share, "{:.0%}"),
                ]
            )
    return cells


def request_cells(requests: Mapping[str, Sequence[float]]) -> Cells:
    return [
        [name, f"{1e3 * median(s):.2f}", f"{1e3 * percentile(s, 0.99):.2f}", str(len(s))]
        for name, s in requests.items()
    ]


def agreement_cells(agreed: Mapping[str, Results]) -> Cells:
    return [
        [name, f"{row['f1']:.2%}", f"{row['drift']:.1e}", str(row["entities"]), "yes" if row["same"] else "no"]
        for name, row in agreed.items()
    ]


def judged_cells(agreed: Mapping[str, Results]) -> Cells:
    verdicts = ["SHORT" if falls_short(row["dtype"], row) else "enough" for row in agreed.values()]
    return [[*cells, verdict] for cells, verdict in zip(agreement_cells(agreed), verdicts, strict=True)]


def tables(results: Results) -> Iterable[tuple[str, Sequence[str], Cells]]:
    """(title, columns, cells) of the whole report."""
    if results.get("agreement"):
        where = f"{results['checkpoint']}, {results['checked']} texts, threshold 0.5"
        reference = next(iter(results["agreement"].values()))["reference"]
        title = f"Entities against {reference}: {where}"
        yield title, (*AGREEMENT, "agreement"), judged_cells(results["agreement"])
    for name, model in results["models"].items():
        if model.get("agreement"):
            title = f"{name}: entities of {results['quickly_checked']} texts, random weights (not judged)"
            yield title, AGREEMENT, agreement_cells(model["agreement"])
        if model["rows"]:
            yield f"{name}: {results['texts']}", PREDICTION, prediction_cells(results, model)
        if model.get("requests"):
            columns = ("row", "p50, ms", "p99, ms", "calls")
            yield f"{name}: one sentence, {results['request_labels']} labels", columns, request_cells(model["requests"])
    for name, found in results.get("long", {}).items():
        tokens, mib = found["tokens"], found["mib"]
        cells = [
            [row, _seconds(median(s)), str(len(s)), f"{1e6 * median(s) / tokens:.0f}", _shown(mib.get(row), "{:,.0f}")]
            for row, s in found["seconds"].items()
        ]
        title = f"One text of {tokens:,} tokens, {name}'s encoder alone"
        yield title, ("row", "s", "rounds", "us a token", "peak MiB"), cells
    if results.get("lengths"):
        seconds = {int(tokens): s for tokens, s in results["lengths"].items()}
        cells = [[f"{n:,}", _seconds(s), f"{1e6 * s / n:.0f}"] for n, s in seconds.items()]
        yield f"Our encoder against length, {results['lengths_dtype']}", ("tokens", "s", "us a token"), cells
    yield "Goals, ratios of medians", ("measure", "at least", "measured", ""), goal_cells(results)


def report(results: Results) -> None:
    console, session = Console(width=150, highlight=False), results["session"]
    versions = ", ".join(
        f"{name} {number}" for name, number in {**session["versions"], **results["peer_versions"]}.items()
    )
    console.print(
        f"machine: {session['machine']}, {session['threads']} threads; commit {session['commit']}; {versions}"
    )
    for title, columns, cells in tables(results):
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(columns):
            table.add_column(name, justify="left" if i == 0 else "right")
        for line in cells:
            table.add_row(*line)
        console.print(table)
    for line in results["notes"]:
        console.print(line, soft_wrap=True)
