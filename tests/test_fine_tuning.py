"""Fine-tuning: adapters in a run, resumed runs, zero-shot F1 before and after, interpolated weights, replay."""

import json
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import make_tiny_model
from safetensors.torch import load_file
from test_train import arguments, losses, rows

from glimodern import GLiModern
from glimodern.train.canary import _GOLD, canary
from glimodern.train.config import parse_train_config
from glimodern.train.keeping import RATIOS
from glimodern.train.log import RunLog
from glimodern.train.loop import train
from glimodern.train.replay import replayed

SAFE = "model.safetensors"
TEXTS, ASKED = ["Ada Lovelace lives in London .", "Nothing to see here ."], ["person", "place"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A data file, another one with a type of its own, and a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows())) + "\n")
    other = [{**row, "ner": [[a, b, label.replace("place", "city")] for a, b, label in row["ner"]]} for row in rows()]
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, other)) + "\n")
    make_tiny_model(dropout=0.1, max_width=6).save_pretrained(folder / "start")
    return folder


def run(setup, output, *more):
    return train(parse_train_config(arguments(setup, output, *more)))


LORA = ("--lora-rank", "2", "--lora-lr", "1e-2")


@pytest.fixture(scope="module")
def lora(setup):
    pytest.importorskip("peft", reason="needs the extra lora")
    AcceleratorState._reset_state(reset_partial_state=True)
    return setup / "lora", run(setup, setup / "lora", *LORA)


def entities(model):
    found = model.predict(TEXTS, ASKED, 0.1, flat=False, multi_label=True)
    return [[(e["start"], e["end"], e["label"], pytest.approx(e["score"], abs=1e-5)) for e in text] for text in found]


def test_only_adapters_and_updates_of_the_head_are_trained(setup, lora):
    output, report = lora
    state, start = load_file(output / "checkpoints" / "step-10" / SAFE), load_file(setup / "start" / SAFE)
    prefix = "token_rep_layer.bert_layer."
    base = {
        name.replace("base_layer.", "").removeprefix("encoder."): x for name, x in state.items() if "lora_" not in name
    }
    for name, weight in start.items():
        if name.startswith(prefix):
            assert torch.equal(base[name.removeprefix(prefix)], weight), name
    assert any(bool(x.any()) for name, x in state.items() if "lora_B" in name)
    assert torch.equal(state["head.prompt.0.base_layer.weight"], start["prompt_rep_layer.0.weight"])
    assert bool(state["head.prompt.0.lora_B.weight"].any())
    merged = load_file(output / "model" / SAFE)
    assert not torch.equal(merged["prompt_rep_layer.0.weight"], start["prompt_rep_layer.0.weight"])
    assert torch.equal(merged["prompt_rep_layer.0.bias"], start["prompt_rep_layer.0.bias"])
    optimizer = torch.load(output / "checkpoints" / "step-10" / "optimizer.bin", weights_only=True)
    count = sum(len(group["params"]) for group in optimizer["param_groups"])
    assert count == sum("lora_" in name for name in state)
    assert {group["peak_lr"] for group in optimizer["param_groups"]} == {1e-2}
    assert losses(output)[10] < losses(output)[1]
    assert report["config"]["lora_rank"] == 2


def test_the_adapter_and_the_merged_model_are_one(setup, lora):
    output, _ = lora
    merged = GLiModern.from_pretrained(output / "model", dtype="fp32")
    adapted = GLiModern.from_pretrained(setup / "start", dtype="fp32", adapter=output / "adapter")
    assert entities(adapted) == entities(merged) != entities(GLiModern.from_pretrained(setup / "start", dtype="fp32"))
    assert json.loads((output / "adapter" / "adapter_base.json").read_text())["base"] == str(setup / "start")


def test_a_stopped_run_goes_on_with_the_same_losses(setup, lora, tmp_path, monkeypatch):
    step = RunLog.step

    def fail(self, number, **values):
        step(self, number, **values)
        if number == 7:
            raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is full"):
        patch.setattr(RunLog, "step", fail)
        run(setup, tmp_path / "run", *LORA)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert run(setup, tmp_path / "run", *LORA, "--resume")["steps"] == 10
    assert losses(tmp_path / "run") == pytest.approx(losses(lora[0]), rel=1e-6)
    one, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "run", lora[0]))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)


def test_a_head_that_is_trained_whole(setup, tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    output = tmp_path / "run"
    run(setup, output, *LORA, "--lora-head", "full", "--max-steps", "4", "--checkpoint-steps", "4")
    optimizer = torch.load(output / "checkpoints" / "step-4" / "optimizer.bin", weights_only=True)
    assert {group["peak_lr"] for group in optimizer["param_groups"]} == {1e-2, 2e-3}
    head, start = load_file(output / "adapter" / "head.safetensors"), load_file(setup / "start" / SAFE)
    assert head.keys() == {name for name in start if not name.startswith("token_rep_layer.bert_layer.")}
    assert not any(torch.equal(head[name], start[name]) for name in head)
    adapted = GLiModern.from_pretrained(setup / "start", dtype="fp32", adapter=output / "adapter")
    assert entities(adapted) == entities(GLiModern.from_pretrained(output / "model", dtype="fp32"))


def test_targets_and_a_frozen_head(setup, tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    more = ("--lora-targets", "Wqkv", "--lora-head", "frozen", "--lora-alpha", "8", "--max-steps", "2")
    run(setup, tmp_path / "run", *LORA, *more)
    names = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"Wqkv"} and len(names) == 4
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 8
    assert not (tmp_path / "run" / "adapter" / "head.safetensors").exists()
    start, merged = load_file(setup / "start" / SAFE), load_file(tmp_path / "run" / "model" / SAFE)
    changed = {name for name in start if not torch.equal(start[name], merged[name])}
    assert len(changed) == 2 and all(name.endswith("attn.Wqkv.weight") for name in changed)


def test_an_unknown_target_stops_before_training(setup, tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    with pytest.raises(ValueError, match=r"lora_targets: .* \(Wi, Wo, Wqkv\), got 'query'"):
        run(setup, tmp_path / "run", *LORA, "--lora-targets", "query")
    assert not (tmp_path / "run").exists()


def test_a_rank_above_a_layers_size_stops_before_training(setup, tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    message = r"lora_rank: expected at most 32, as layers\.0\.attn\.Wqkv has 32 inputs and 96 outputs, got 33; lower it"
    with pytest.raises(ValueError, match=message):
        run(setup, tmp_path / "run", "--lora-rank", "33")
    assert not (tmp_path / "run").exists()


def test_without_peft(setup, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"lora_rank: needs the package peft; pip install 'glimodern\[lora\]'"):
        run(setup, tmp_path / "run", *LORA)


@pytest.mark.parametrize(
    "more", [(), LORA, (*LORA, "--lora-head", "full")], ids=["all weights", "adapters", "adapters and head"]
)
def test_interpolation(setup, tmp_path, more):
    if more:
        pytest.importorskip("peft", reason="needs the extra lora")
    output = tmp_path / "run"
    given = ("--keep-zero-shot", "--canary-data", str(setup / "other.jsonl"), "--threshold", "0.2", *more)
    report = run(setup, output, *given)
    kept = report["kept_zero_shot"]
    assert set(kept["by_ratio"]) == {f"{ratio:g}" for ratio in RATIOS}
    best = max(kept["by_ratio"].values(), key=lambda f1: f1["mean"])
    assert kept["by_ratio"][f"{kept['ratio']:g}"]["mean"] == best["mean"]
    name = f"canary: {setup / 'other.jsonl'}"
    for f1 in kept["by_ratio"].values():
        assert f1["mean"] == pytest.approx((f1["dev_data"] + f1[name]) / 2)
    assert set(report["zero_shot"]) == {"before", "after"} and set(report["zero_shot"]["after"]) == {name}
    folders = (setup / "start", output / "fine_tuned" / "model", output / "model")
    start, tuned, saved = (load_file(folder / SAFE) for folder in folders)
    for tensor, value in saved.items():
        torch.testing.assert_close(value, torch.lerp(start[tensor], tuned[tensor], kept["ratio"]), rtol=0, atol=1e-6)
    if more:
        adapted = GLiModern.from_pretrained(setup / "start", dtype="fp32", adapter=output / "adapter")
        assert entities(adapted) == entities(GLiModern.from_pretrained(output / "model", dtype="fp32"))
    AcceleratorState._reset_state(reset_partial_state=True)
    before = (output / "model" / SAFE).read_bytes()
    run(setup, output, *given, "--resume")  # a run that is done interpolates the same weights again
    assert (output / "model" / SAFE).read_bytes() == before


def folders(output):
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.name in ("model", "adapter")}


def test_overwrite_leaves_no_model_or_adapter_of_an_earlier_run(setup, tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    output, keep = tmp_path / "run", ("--keep-zero-shot", "--canary-data", str(setup / "other.jsonl"))
    all_at_once = ("--max-steps", "1", "--checkpoint-steps", "0", "--overwrite")
    expected = [
        ((*keep, *LORA), {"model", "adapter", "fine_tuned/model", "fine_tuned/adapter"}),
        (keep, {"model", "fine_tuned/model"}),
        ((*keep, *LORA), {"model", "adapter", "fine_tuned/model", "fine_tuned/adapter"}),
        (LORA, {"model", "adapter"}),
        ((), {"model"}),
    ]
    for more, left in expected:
        AcceleratorState._reset_state(reset_partial_state=True)
        run(setup, output, *more, *all_at_once)
        assert folders(output) == left


def test_overwrite_keeps_what_no_run_wrote(setup, tmp_path):
    keep = ("--keep-zero-shot", "--canary-data", str(setup / "other.jsonl"))
    once = ("--max-steps", "1", "--checkpoint-steps", "0", "--overwrite")
    run(setup, tmp_path / "run", *keep, *once)
    (tmp_path / "run" / "fine_tuned" / "model" / "notes.txt").write_text("mine")
    AcceleratorState._reset_state(reset_partial_state=True)
    run(setup, tmp_path / "run", *once)
    assert [path.name for path in (tmp_path / "run" / "fine_tuned" / "model").iterdir()] == ["notes.txt"]


def test_zero_shot_f1_is_reported_with_held_out_types(setup, tmp_path):
    apart = [{**row, "ner": row["ner"][number % 2 : number % 2 + 1]} for number, row in enumerate(rows())]
    (tmp_path / "apart.jsonl").write_text("\n".join(map(json.dumps, apart)) + "\n")
    more = ("--held-out-types", "1", "--max-steps", "2", "--train-data", str(tmp_path / "apart.jsonl"))
    report = run(setup, tmp_path / "run", *more)  # dev_data beside it chooses the checkpoint
    assert report["dev_micro_f1"] is not None
    for when in ("before", "after"):
        assert set(report["zero_shot"][when]) == {"held-out types", "canary"}


def test_replay_has_the_checkpoints_own_entities(setup):
    config = parse_train_config(
        [*arguments(setup, "unused"), "--replay-data", str(setup / "other.jsonl"), "--replay-ratio", "0.25",
         "--threshold", "0.3"]
    )  # fmt: skip
    base = GLiModern.from_pretrained(setup / "start", dtype="fp32")
    dataset, again = replayed(config, base, 40), replayed(config, base, 40)
    assert len(dataset) == 10 and dataset.examples == again.examples
    assert all(set(example.types) == {"person", "city"} for example in dataset)
    found = base.predict_words([e.words for e in dataset], [list(e.types) for e in dataset], threshold=0.3)
    assert [[(a, b, label) for a, b, label, _ in text.entities] for text in found] == [e.entities for e in dataset]
    assert any(e.entities for e in dataset)


def test_replay_is_trained_on(setup, tmp_path, caplog):
    caplog.set_level("INFO", "glimodern.train.replay")
    more = (
        "--replay-data",
        str(setup / "other.jsonl"),
        "--replay-ratio",
        "0.5",
        "--epochs",
        "1",
        "--max-steps",
        "None",
    )
    report = run(setup, tmp_path / "run", *more)
    assert report["steps"] == 15  # 40 sentences and 20 of replay, in batches of 4
    assert "replay: 20 sentences" in caplog.text


def test_replay_needs_types(setup, tmp_path):
    (tmp_path / "bare.jsonl").write_text(json.dumps({"tokenized_text": ["no", "types"], "ner": []}) + "\n")
    with pytest.raises(ValueError, match="replay_data: expected types to ask the model for, got none in"):
        run(setup, tmp_path / "run", "--replay-data", str(tmp_path / "bare.jsonl"))


def test_every_entity_of_the_canary_is_words():
    dataset = canary("whitespace")
    assert [len(example.entities) for example in dataset] == [sum(map(len, gold.values())) for gold in _GOLD]
    for example, gold in zip(dataset, _GOLD, strict=True):
        read = {("".join(example.words[a : b + 1]), label) for a, b, label in example.entities}
        assert read == {(text.replace(" ", ""), label) for label, texts in gold.items() for text in texts}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *((["--lora-rank", rank], "lora_rank: expected a whole number >= 1") for rank in ("0", "-8")),
        *(
            (["--lora-rank", "2", "--lora-alpha", alpha], "lora_alpha: expected a whole number >= 1")
            for alpha in ("0", "-4")
        ),
        (["--lora-rank", "2", "--lora-lr", "nan"], "lora_lr: expected a number > 0"),
        (["--lora-alpha", "4"], "lora_alpha: expected lora_rank with it, got none"),
        (["--lora-head", "frozen"], "lora_head: expected lora_rank with it, got none"),
        (["--lora-rank", "2", "--freeze-encoder"], "lora_rank, freeze_encoder: expected one of them, got both"),
        (["--lora-rank", "2", "--init-from", "None"], "lora_rank: expected init_from, the checkpoint to fine-tune"),
        (["--keep-zero-shot"], "keep_zero_shot: expected held_out_types or canary_data"),
        (["--replay-ratio", "0.1"], "replay_ratio: expected replay_data with it, got none"),
        (["--lora-lr", "0"], "lora_lr: expected a number > 0"),
    ],
)
def test_bad_settings(setup, capsys, more, message):
    with pytest.raises(SystemExit):
        parse_train_config(arguments(setup, "unused", *more))
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
