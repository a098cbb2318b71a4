"""bench/bench_peers.py: its arithmetic by hand, its tables, and a run with a tiny checkpoint and ours alone."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import WORDS, make_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def peers(monkeypatch):
    """Imports a module of bench/."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


def entity(start, end, label, score):
    return {"start": start, "end": end, "label": label, "score": score}


def test_agreement(peers):
    report = peers("peer_report")
    wanted = [[entity(0, 3, "a", 0.9), entity(5, 8, "b", 0.7)], [], [entity(0, 1, "a", 0.6)]]
    assert report.agreement(wanted, wanted) == {"f1": 1.0, "drift": 0.0, "entities": 3, "same": True}
    nearly = [[entity(0, 3, "a", 0.9005), entity(5, 8, "b", 0.7)], [], [entity(0, 1, "a", 0.6)]]
    assert report.agreement(wanted, nearly)["same"] and report.agreement(wanted, nearly)["drift"] > 4e-4
    drifted = [[entity(0, 3, "a", 0.91), entity(5, 8, "b", 0.7)], [], [entity(0, 1, "a", 0.6)]]
    assert report.agreement(wanted, drifted)["f1"] == 1.0 and not report.agreement(wanted, drifted)["same"]
    # the second text's entity is another one though its offsets are those of the third's; two of four are shared
    moved = [[entity(0, 3, "a", 0.9)], [entity(0, 1, "a", 0.6)], []]
    assert report.agreement(wanted, moved)["f1"] == pytest.approx(2 * 1 / (3 + 2))
    relabelled = [[entity(0, 3, "b", 0.9), entity(5, 8, "b", 0.7)], [], [entity(0, 1, "a", 0.6)]]
    assert report.agreement(wanted, relabelled)["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert report.agreement([[]], [[]])["same"]


@pytest.mark.parametrize(
    ("dtype", "f1", "same", "short"),
    [
        ("fp32", 1.0, True, False), ("fp32", 1.0, False, True), ("bf16", 0.99, False, False),
        ("bf16", 0.985, False, True), ("int8", 0.97, False, False), ("int8", 0.96, False, True),
    ],
)  # fmt: skip
def test_falls_short(peers, dtype, f1, same, short):
    assert peers("peer_report").falls_short(dtype, {"f1": f1, "same": same}) is short


def test_flops_by_hand(peers):
    report = peers("peer_report")
    modernbert = {"model_type": "modernbert", "hidden_size": 6, "intermediate_size": 10, "num_hidden_layers": 2}
    # a layer's token: Wqkv 6 x 18, Wo 6 x 6, Wi 6 x 20, Wo 10 x 6; the last layer has 7 tokens and 4 rows
    first, last = 7 * (108 + 36 + 120 + 60), 7 * 108 + 4 * (36 + 120 + 60)
    assert report.encoder_flops(modernbert, tokens=7, rows=4) == 2 * (first + last)
    bert = {**modernbert, "model_type": "bert"}
    first, last = 7 * (3 * 36 + 36 + 60 + 60), 7 * 3 * 36 + 4 * (36 + 60 + 60)
    assert report.encoder_flops(bert, tokens=7, rows=4) == 2 * (first + last)
    # d 4: marker MLPs 4 x 16 and 16 x 4 twice, W1's halves 4 x 16 twice; a type's MLP the same pair, and u 4 x 16
    head = 3 * (2 * (64 + 64) + 2 * 64) + 2 * (64 + 64 + 64)
    assert report.head_flops(4, 4, words=3, types=2) == 2 * head
    assert report.head_flops(6, 4, words=3, types=2) == 2 * (head + (3 + 2) * 6 * 4)


def test_flops_of_a_real_run(peers, tiny_model):
    """The linear layers that a prediction really runs, by PyTorch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    report, words = peers("peer_report"), ["Ada", "met", "Charles", "in", "London", "."]
    batch = tiny_model.packer.pack([words, words[:3]], [["person", "place"]] * 2)
    counter = FlopCounterMode(display=False)
    import torch

    with torch.no_grad(), counter:
        tiny_model.head.fold(*tiny_model.encode(batch))
    products = sum(
        flops for op, flops in counter.get_flop_counts()["Global"].items() if op.__name__ in ("mm", "addmm", "bmm")
    )
    config = tiny_model.config.encoder_config
    n, m = len(batch.word_index), len(batch.type_index)
    d = tiny_model.config.hidden_size
    counted = report.encoder_flops(config, len(batch.input_ids), n + m) + report.head_flops(d, d, n, m)
    bias_product = 2 * m * d  # c = q b2, a product with a vector, is not counted
    assert products in (counted, counted + bias_product)


def test_rms_difference(peers):
    assert peers("peer_report").rms_difference([[3.0, 4.0]], [[3.0, 4.5]]) == pytest.approx(0.1)


def test_fit_of_exact_points(peers):
    report = peers("peer_report")
    seconds = {n: 1e-4 * n + 2e-9 * n * n for n in (128, 512, 2048, 8192)}
    fit = report.fit_lengths(seconds)
    assert fit.linear == pytest.approx(1e-4) and fit.quadratic == pytest.approx(2e-9) and fit.misfit < 1e-9
    assert fit.share(8192) == pytest.approx(2e-9 * 8192**2 / seconds[8192])


def timed(dtype, **batches):
    return {"dtype": dtype, "batches": {name.strip("b"): seconds for name, seconds in batches.items()}}


@pytest.fixture
def results():
    """A finished run in round numbers."""
    modernbert = {
        "flops": 600e9,
        "work": {"words": 1000},
        "rows": {
            "gliner fp32": timed("fp32", b1=[12.0, 13.0, 12.5], b8=[16.0]),
            "gliner bf16": timed("bf16", b1=[4.0], b8=[8.0]),
            "gliner onnx fp32": timed("fp32", b1=[6.0], b8=[9.0]),
            "gliner onnx int8": timed("int8", b1=[3.0], b8=[5.0]),
            "fast_gliner int8": timed("int8", b1=[2.4]),
            "ours fp32": timed("fp32", b0=[4.0]),
            "ours bf16": timed("bf16", b0=[1.0, 2.0, 1.5]),
            "ours auto": timed("bf16", b0=[1.6]),
        },
        "requests": {"gliner int8": [0.04] * 4, "gliner onnx int8": [0.03] * 4, "ours bf16": [0.01] * 4},
    }
    deberta = {
        "rows": {
            "gliner fp32": timed("fp32", b1=[4.0], b8=[3.0]),
            "gliner onnx int8": timed("int8", b1=[1.0]),
            "ours fp32": timed("fp32", b0=[1.0]),
            "ours int8": timed("int8", b0=[0.5]),
        }
    }
    return {
        "models": {"modernbert": modernbert, "deberta-small": deberta},
        "limits": {"fp32": 200.0, "bf16": 800.0, "int8": 1500.0},
        "long": {
            "modernbert": {
                "tokens": 8192, "mib": {},
                "seconds": {"transformers encoder bf16": [40.0], "ours encoder bf16": [8.0]},
            },
            "deberta-base": {
                "tokens": 4096, "mib": {"transformers encoder fp32": 3000.0, "ours encoder fp32": 100.0},
                "seconds": {"transformers encoder fp32": [9.0], "ours encoder fp32": [1.0, 2.0, 1.5]},
            },
        },
        "request_labels": 5, "texts": "texts", "notes": ["a note"],
        "session": {"machine": "a machine", "threads": 2, "commit": "c0ffee", "versions": {"torch": "2.13.0"}},
        "peer_versions": {"transformers": "5.16.0"},
    }  # fmt: skip


def test_goals(peers, results):
    values = {what: value for what, _, value in peers("peer_report").goals(results)}
    assert values == {
        "ModernBERT-base bf16 / gliner's best bf16": pytest.approx(4.0 / 1.5),
        "ModernBERT-base int8 / any peer's best int8": None,
        "ModernBERT-base auto / gliner's default (fp32, batch 8)": pytest.approx(16.0 / 1.6),
        "MiniLM, our best / any peer's best": None,
        "ModernBERT-base fp32, share of the limit": pytest.approx(600 / 200 / 4.0),
        "ModernBERT-base bf16, share of the limit": pytest.approx(600 / 800 / 1.5),
        "ModernBERT-base int8, share of the limit": None,
        "ModernBERT-base's encoder, 8,192 tokens, bf16 / transformers": pytest.approx(5.0),
        "DeBERTa-base's encoder, 4,096 tokens, fp32 / transformers": pytest.approx(6.0),
        "DeBERTa-base's encoder, 4,096 tokens, memory / transformers": pytest.approx(30.0),
        "DeBERTa-v3-small fp32 / gliner's best fp32": pytest.approx(3.0),
        "DeBERTa-v3-small int8 / gliner's best int8": pytest.approx(2.0),
        "DeBERTa-v3-small bf16 / gliner's best bf16": None,
        "DeBERTa-v3-base fp32 / gliner's best fp32": None,
        "DeBERTa-v3-base int8 / gliner's best int8": None,
        "DeBERTa-v3-base bf16 / gliner's best bf16": None,
        "ModernBERT-base fp32 / gliner's fp32": pytest.approx(12.5 / 4.0),
        "ModernBERT-base fp32 / any peer's best fp32": pytest.approx(6.0 / 4.0),
        "one sentence, ModernBERT-base bf16, p50 / gliner's best": pytest.approx(3.0),
    }
    verdicts = {line[0]: line[-1] for line in peers("peer_report").goal_cells(results)}
    assert verdicts["ModernBERT-base fp32 / any peer's best fp32"] == "short"
    assert verdicts["ModernBERT-base fp32 / gliner's fp32"] == "reached"
    assert verdicts["MiniLM, our best / any peer's best"] == "not measured"


def test_report_prints_every_table(peers, results, capsys):
    peers("peer_report").report(results)
    printed = capsys.readouterr().out
    assert (
        "fast_gliner int8" in printed and "ours auto (bf16)" in printed and "a note" in printed and "c0ffee" in printed
    )
    assert "One text of 8,192 tokens" in printed and "One text of 4,096 tokens" in printed and "3,000" in printed
    assert "share of the limit" in printed


def test_bar_chart_starts_at_zero(peers, results, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    plots = peers("peer_plots")
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, file: drawn.append(figure))
    del results["models"]["deberta-small"]
    plots.bar_chart(results, tmp_path / "peers.png")
    (figure,) = drawn
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        f"ModernBERT-base, d 768: {dtype}" for dtype in ("fp32", "bf16", "int8")
    ]
    for axes in figure.axes:
        assert axes.get_xscale() == "linear" and axes.get_xlim() == (0.0, pytest.approx(1.6 * 12.5))
        assert {bar.get_x() for bar in axes.patches} == {0.0}
    texts = [[text.get_text().strip() for text in axes.texts] for axes in figure.axes]
    assert texts == [
        ["4.00 s", "12.5 s (3.1 ×)", "6.00 s (1.5 ×)", "not run"],
        ["1.50 s", "4.00 s (2.7 ×)", "not run", "not run"],
        ["3.00 s", "2.40 s", "not run", "not run"],
    ]
    plots.plt.close(figure)


def test_rows_by_name(peers):
    rows = peers("peer_rows")
    assert [row.name for row in rows.chosen(rows.ROWS, ["gliner onnx", " ours fp32"])] == [
        "gliner onnx fp32",
        "gliner onnx int8",
        "ours fp32",
    ]
    with pytest.raises(ValueError, match="gliner fp64"):
        rows.chosen(rows.ROWS, ["gliner fp64"])
    assert [rows.rounds_for(seconds, 5) for seconds in (0.1, 6.0, 31.0)] == [5, 3, 0]


def test_all_rows_decode_at_the_threshold_of_the_one_that_has_no_other(peers):
    worker = peers("peer_worker")
    row = worker.FastGliner.__new__(worker.FastGliner)
    assert peers("bench_peers").THRESHOLD == worker.FastGliner.THRESHOLD
    with pytest.raises(ValueError, match=r"threshold: expected 0\.5, .* got 0\.95"):
        row.predict(["a text"], ["person"], 0.95, 8)


def test_random_weights_score_as_a_trained_model(peers):
    """As many pairs above 0.5: no side decodes floods, and none finds nothing."""
    import torch

    rows, model = peers("peer_rows"), make_tiny_model(dropout=0.0)
    texts = [" ".join(WORDS[i:]) for i in range(12)]
    rows.score_like_a_trained_model(model, texts, ["person", "place"])
    words = [WORDS[i:] for i in range(12)]
    with torch.no_grad():
        parts = model.scores(model.packer.pack(words, [["person", "place"]] * 12))
    logits = torch.cat([part[part.isfinite()] for part in parts])
    assert float(logits.std()) == pytest.approx(rows.SPREAD, rel=0.01)
    assert 0 < int((logits > 0).sum()) <= rows.PASSING * len(logits) + 1


def test_run_with_ours_alone(tmp_path):
    make_tiny_model(dropout=0.0, max_width=6).save_pretrained(tmp_path / "tiny")
    texts, out = tmp_path / "texts.txt", tmp_path / "peers.json"
    texts.write_text("Ada Lovelace met Charles Babbage in London .\nTaylor wrote about the Engine .\n")
    command = [sys.executable, str(ROOT / "bench" / "bench_peers.py"), "--models", str(tmp_path / "tiny")]
    command += ["--rows", "ours fp32", "--parts", "agreement,predict,request", "--rounds", "2", "--texts", str(texts)]
    command += ["--checkpoint", str(tmp_path / "tiny"), "--request-seconds", "0.05", "--json", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Goals, ratios of medians" in answer.stdout
    results = json.loads(out.read_text())
    assert results["agreement"]["ours fp32"]["same"] and results["agreement"]["ours fp32"]["reference"] == "ours fp32"
    (model,) = results["models"].values()
    assert len(model["rows"]["ours fp32"]["batches"]["0"]) == 2 and model["flops"] > 0
    assert model["work"]["words"] == 14 and model["work"]["types"] == 10
    assert len(model["requests"]["ours fp32"]) >= 10
    assert results["limits"]["fp32"] > 0


def test_disagreement_stops_the_run(peers, results):
    report = peers("peer_report")
    agreed = {"ours fp32": {"dtype": "fp32", **report.agreement([[entity(0, 3, "a", 0.9)]], [[]])}}
    (cells,) = report.judged_cells(agreed)
    assert cells[-1] == "SHORT" and cells[1] == "0.00%"
