"""The trainer: same losses with and without the fused operators, resuming after kill -9, and what stops it."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from glimodern import GLiModern
from glimodern.data import Dataset, Example, load_dataset, with_asked_types
from glimodern.data.holdout import hold_out_types
from glimodern.evaluate import evaluate
from glimodern.ops import attention_varlen
from glimodern.train import __main__ as train_command
from glimodern.train import final as final_module
from glimodern.train import setup as starting
from glimodern.train import trainer as trainer_module
from glimodern.train.batches import TrainingBatches
from glimodern.train.config import OptimConfig, parse_train_config
from glimodern.train.log import RunLog
from glimodern.train.loop import train
from glimodern.train.schedule import rate
from glimodern.train.setup import build_model, join, training_dtype
from tests.conftest import make_tiny_model

SAFE = "model.safetensors"
NAMES = ["Ada Lovelace", "Charles Babbage", "Alan Turing", "Grace Hopper"]
PLACES = ["London", "Paris", "New York"]


def rows():
    made = []
    for i in range(40):
        name, place = NAMES[i % 4].split(), PLACES[i % 3].split()
        words = [*name, "lives", "in", *place, "."]
        last = len(name) + 1 + len(place)
        made.append(
            {"tokenized_text": words, "ner": [[0, len(name) - 1, "person"], [len(name) + 2, last, "place"]]}
            if i % 5
            else {"tokenized_text": ["Nothing", "to", "see", "here", "."], "ner": []}
        )
    return made


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps one process-wide state; runs of other precision in one process need a new one."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A data file and a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows())) + "\n")
    make_tiny_model(dropout=0.1, max_width=6).save_pretrained(folder / "start")
    return folder


def arguments(setup, output, *more):
    """Flags of a short run; `more` come after them, data flags in their place."""
    data = str(setup / "data.jsonl")
    kept = [flag for flag in ("--train-data", "--dev-data", "--eval-data") if flag not in more]
    files = [part for flag in kept for part in (flag, data)]
    return [
        *(*files, "--init-from", str(setup / "start"), "--output-dir", str(output), "--max-steps", "10"),
        *("--batch-size", "4", "--lr", "1e-3", "--head-lr", "2e-3"),
        *("--no-progress", "--checkpoint-steps", "4", "--eval-steps", "5", *more),
    ]


def without_dev(given):
    at = given.index("--dev-data")
    return given[:at] + given[at + 2 :]


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def finished(setup):
    report = train(parse_train_config(arguments(setup, setup / "whole")))
    return setup / "whole", report


def test_report_and_files(finished):
    output, report = finished
    stored = json.loads((output / "report.json").read_text())
    assert stored["steps"] == 10
    assert stored["seed"] == 0
    assert stored["config"]["lr"] == 1e-3
    assert set(stored) >= {
        "evaluation", "seconds", "median_step_seconds", "words_per_second", "backends", "versions", "git_commit",
    }  # fmt: skip
    assert {"person", "place"} <= set(stored["evaluation"]["data"]["per_type"])
    assert report["evaluation"] == stored["evaluation"]
    assert list(losses(output)) == list(range(1, 11))
    assert any(output.rglob("events.out.tfevents*"))
    assert not list(output.rglob("*.partial"))
    model = GLiModern.from_pretrained(output / "model", dtype="fp32", verify=True)
    assert model.predict("Ada lives in London .", ["person"], threshold=0.0)[0]


def test_it_learns(setup, tmp_path):
    more = [
        "--batch-size",
        "8",
        "--max-steps",
        "120",
        "--eval-steps",
        "0",
        "--checkpoint-steps",
        "0",
        "--lr",
        "5e-3",
        "--head-lr",
        "5e-3",
    ]
    report = train(parse_train_config(arguments(setup, tmp_path / "run", *more)))
    assert report["evaluation"]["data"]["micro"]["f1"] > 0.9


def test_resume_after_kill_repeats_the_losses(setup, finished, tmp_path):
    """The process kills itself (SIGKILL) at step 7; resumed from step 4, the losses are those of the whole run."""
    script = (
        "import os, signal, sys\n"
        "import glimodern.train.__main__ as t\n"
        "from glimodern.train.log import RunLog\n"
        "write = RunLog.step\n"
        "def step(self, step, **values):\n"
        "    write(self, step, **values)\n"
        "    if step == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "RunLog.step = step\n"
        "t.main(sys.argv[1:])\n"
    )
    given = arguments(setup, tmp_path / "killed")
    killed = subprocess.run([sys.executable, "-c", script, *given], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(losses(tmp_path / "killed")) == list(range(1, 8))
    report = train(parse_train_config([*given, "--resume"]))
    assert report["steps"] == 10
    assert losses(tmp_path / "killed") == pytest.approx(losses(finished[0]), rel=1e-6)
    assert list(losses(tmp_path / "killed")) == list(range(1, 11))


def test_resume_refuses_other_settings(setup, finished):
    with pytest.raises(ValueError, match=r"--resume: .* other settings \(lr: was 0.001, is 0.5\)"):
        train(parse_train_config([*arguments(setup, finished[0]), "--resume", "--lr", "0.5"]))


def test_resume_takes_another_name_of_a_file_for_the_same(setup, tmp_path, monkeypatch):
    usual = arguments(setup, tmp_path / "run", "--max-steps", "1")
    train(parse_train_config(usual))
    monkeypatch.chdir(setup)
    renamed = ["./data.jsonl" if part == str(setup / "data.jsonl") else part for part in usual]
    renamed = ["start" if part == str(setup / "start") else part for part in renamed]
    assert train(parse_train_config([*renamed, "--max-steps", "2", "--resume"]))["steps"] == 2


def test_earlier_run_is_not_overwritten(setup, finished):
    with pytest.raises(ValueError, match=r"got .* with checkpoints, model, .*continue the run with --resume"):
        train(parse_train_config(arguments(setup, finished[0])))


def test_overwrite_replaces_an_earlier_run_and_sweeps_leftovers(setup, tmp_path):
    output = tmp_path / "run"
    (output / ".model.abcdefgh").mkdir(parents=True)
    (output / ".model.mine").mkdir()
    (output / "checkpoints" / ".step-9.abcdefgh").mkdir(parents=True)
    (output / "checkpoints" / "step-9").mkdir()
    (output / "checkpoints" / "step-9" / "trainer.json").write_text("{}")
    (output / "checkpoints" / "step-mine").mkdir()
    (output / "report.json").write_text("{}")
    (output / "mine.txt").write_text("kept")
    train(parse_train_config(arguments(setup, output, "--max-steps", "1", "--overwrite")))
    assert not list(output.rglob("*.abcdefgh"))
    assert (output / ".model.mine").is_dir() and (output / "checkpoints" / "step-mine").is_dir()
    assert not (output / "checkpoints" / "step-9").exists()
    assert json.loads((output / "report.json").read_text())["steps"] == 1
    assert (output / "mine.txt").read_text() == "kept"


def test_fused_and_textbook_losses_agree(setup, tmp_path):
    make_tiny_model(dropout=0.0, max_width=6).save_pretrained(tmp_path / "start")
    more = ["--init-from", str(tmp_path / "start"), "--max-steps", "20", "--eval-steps", "0", "--checkpoint-steps", "0"]
    for flag in ("--fused", "--no-fused"):
        train(parse_train_config(arguments(setup, tmp_path / flag, *more, flag)))
    assert losses(tmp_path / "--fused") == pytest.approx(losses(tmp_path / "--no-fused"), rel=1e-4)


def test_non_finite_loss_names_the_sentences(setup, tmp_path):
    model = make_tiny_model(dropout=0.0, max_width=6)
    with torch.no_grad():
        model.head.prompt[3].bias.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(FloatingPointError, match=r"loss: expected a finite value at step 1, got nan .*data\.jsonl:\d+"):
        train(parse_train_config(arguments(setup, tmp_path / "run", "--init-from", str(tmp_path / "nan"))))
    assert not (tmp_path / "run" / "model").exists()


def test_non_finite_gradient_stops_before_the_weights_change(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "total_norm", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match=r"the gradient's norm: .* at step 1, got inf .*data\.jsonl:\d+"):
        train(parse_train_config(arguments(setup, tmp_path / "run")))


def test_weights_that_a_step_made_infinite_are_not_saved(setup, tmp_path, monkeypatch):
    """The last step's too, whose weights no loss is computed with; what an earlier run saved stays."""
    usual = [*without_dev(arguments(setup, tmp_path / "run")), "--checkpoint-steps", "0"]
    train(parse_train_config([*usual, "--max-steps", "1"]))
    before = (tmp_path / "run" / "model" / SAFE).read_bytes()
    step = torch.optim.AdamW.step

    def overflow(optimizer, *args, **options):
        step(optimizer, *args, **options)
        with torch.no_grad():
            optimizer.param_groups[-1]["params"][-1].fill_(torch.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(FloatingPointError, match=r"^\S+: expected finite weights after step 1, .* which are not saved"):
        train(parse_train_config([*usual, "--max-steps", "1", "--overwrite"]))
    assert (tmp_path / "run" / "model" / SAFE).read_bytes() == before
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SAFE, b"x", "cannot be read"),
        ("trainer.json", b"{", "cannot be read"),
        ("trainer.json", b"{}", "expected the settings of a run, got none"),
        ("optimizer.bin", b"", "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_of_one_line(setup, tmp_path, name, content, message):
    usual = [*arguments(setup, tmp_path / "run"), "--max-steps", "1"]
    train(parse_train_config(usual))
    (tmp_path / "run" / "checkpoints" / "step-1" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^--resume: .*step-1\W.*{message}"):
        train(parse_train_config([*usual, "--resume"]))


def test_a_log_that_a_crash_damaged_does_not_keep_a_run_from_going_on(setup, tmp_path, caplog):
    """A power failure may leave zeros where lines were."""
    usual = arguments(setup, tmp_path / "run")
    train(parse_train_config([*usual, "--max-steps", "2"]))
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + b"\xff\n[1]\n{}\n\0\0\n\0\0")
    train(parse_train_config([*usual, "--max-steps", "3", "--resume"]))
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    assert "left out 5 damaged lines" in caplog.text


def test_numbers_too_large_for_a_float():
    with pytest.raises(ValueError, match="lr: expected a number > 0 and <= 1, got 1000"):
        OptimConfig(lr=10**400)


def test_settings_that_contradict_the_checkpoint(setup, tmp_path):
    with pytest.raises(ValueError, match="max_width: expected 6, as in the checkpoint of init_from, got 9"):
        train(parse_train_config(arguments(setup, tmp_path / "run", "--max-width", "9")))


def test_dropout_of_a_checkpoint_can_be_changed(setup):
    config = parse_train_config(["--init-from", str(setup / "start"), "--dropout", "0.25"])
    model = build_model(config.model, Dataset("", []), max_types=25, seed=0)
    assert model.config.dropout == 0.25
    assert {module.p for module in model.head.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize("limit", [1.0, 1e6, 0.0])
def test_the_gradient_is_clipped_in_the_optimizer_step(setup, tmp_path, monkeypatch, limit):
    """The weights after a few steps are those of clip_grad_norm_ and AdamW, whatever was accumulated."""
    more = ["--max-steps", "3", "--accumulation", "2", "--max-grad-norm", str(limit)]
    train(parse_train_config(arguments(setup, tmp_path / "run", *more)))
    norms = []

    def plain(trainer):
        norms.append(trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), limit or float("inf")))
        return norms[-1]

    monkeypatch.setattr(trainer_module.Trainer, "clip_gradient", plain)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(parse_train_config(arguments(setup, tmp_path / "plain", *more)))
    assert all(1.0 < norm < 1e6 for norm in norms)  # clipped to 1, not to 1e6
    one, other = (load_file(tmp_path / run / "model" / SAFE) for run in ("run", "plain"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-4, atol=1e-5)


def test_report_knows_the_width_of_the_checkpoint(finished, setup, tmp_path, capsys):
    train(parse_train_config(arguments(setup, tmp_path / "run", "--max-steps", "1")))
    assert "wider than 6 words" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [["--freeze-encoder"], ["--accumulation", "2"], ["--batch-tokens", "60"], ["--dtype", "bf16"]]
)
def test_options_run(setup, tmp_path, more):
    train(parse_train_config(arguments(setup, tmp_path / "run", "--max-steps", "3", *more)))
    before, after = load_file(setup / "start" / SAFE), load_file(tmp_path / "run" / "model" / SAFE)
    encoder = [name for name in before if name.startswith("token_rep_layer.") and "attn" in name]
    moved = any(not torch.equal(before[name], after[name]) for name in encoder)
    assert moved == ("--freeze-encoder" not in more)


def test_token_budget_and_accumulation(setup, tiny_model):
    dataset = load_dataset(setup / "data.jsonl")
    config = parse_train_config(arguments(setup, "unused", "--batch-tokens", "120", "--batch-size", "None"))
    batches = TrainingBatches(dataset, tiny_model.packer, config)
    for _, (_, group, batch) in zip(range(8), batches.starting_at(0), strict=False):
        assert len(group) > 1
        assert batch.input_ids.numel() <= 150  # the prompt counts by its mean length
    doubled = parse_train_config(
        arguments(setup, "unused", "--accumulation", "2", "--epochs", "2", "--max-steps", "None")
    )
    assert TrainingBatches(dataset, tiny_model.packer, doubled).steps() == 10


def test_two_processes(setup, tmp_path):
    """torchrun with two ranks on the CPU: every rank takes its share, one writes; resumed, the losses repeat."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = arguments(setup, tmp_path / "run", "--max-steps", "4", "--eval-steps", "2", "--checkpoint-steps", "2")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def launch(*more: str) -> dict[int, float]:
        started = [*command, "-m", "glimodern.train", *given, *more]
        answer = subprocess.run(started, capture_output=True, text=True, env=environment, timeout=300)
        assert answer.returncode == 0, answer.stderr
        return losses(tmp_path / "run")

    whole = launch()
    assert list(whole) == [1, 2, 3, 4]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    model = GLiModern.from_pretrained(tmp_path / "run" / "model", dtype="fp32")
    alone = evaluate(model, with_asked_types(load_dataset(setup / "data.jsonl")))
    assert report["evaluation"]["data"] == alone.to_dict()  # each rank predicted half
    (tmp_path / "script.py").write_text(
        "import signal, sys, glimodern.train.__main__ as t\n"
        "from glimodern.train.log import RunLog\n"
        "write = RunLog.step\n"
        "def step(self, step, **values):\n"
        "    write(self, step, **values)\n"
        "    if step == 2 and not self.accelerator.is_main_process: signal.raise_signal(signal.SIGTERM)\n"
        "RunLog.step = step\n"
        "t.main(sys.argv[1:])\n"
    )
    given[given.index("--output-dir") + 1] = str(tmp_path / "stopped")
    started = [*command, str(tmp_path / "script.py"), *given]
    stopped = subprocess.run(started, capture_output=True, text=True, env=environment, timeout=300)
    assert stopped.returncode != 0 and "stopped at step 3 of 4; go on with the same command" in stopped.stderr
    assert (tmp_path / "stopped" / "checkpoints" / "step-3" / "trainer.json").exists()
    launch("--resume")
    assert losses(tmp_path / "stopped") == pytest.approx(whole, rel=1e-6)


def test_what_fails_or_stops_on_one_rank_does_on_all(setup, tmp_path):
    """Neither rank waits for the other: each writes down what it was told."""
    script = (
        "import json, sys\n"
        "from accelerate import Accelerator\n"
        "from glimodern.train.batches import TrainingBatches\n"
        "from glimodern.train.config import OptimConfig, parse_train_config\n"
        "from glimodern.train.interrupts import Stopped\n"
        "from glimodern.train.loop import train\n"
        "from glimodern.train.ranks import together\n"
        "rank, told = Accelerator().process_index, []\n"
        "def attempt(run):\n"
        "    try: run()\n"
        "    except BaseException as error: told.append(f'{type(error).__name__}: {error}')\n"
        "def part(failing, error):\n"
        "    with together(Accelerator(), 'work'):\n"
        "        if rank == failing: raise error\n"
        "attempt(lambda: part(1, ValueError('one')))\n"
        "attempt(lambda: part(0, Stopped(2)))\n"
        "pack = TrainingBatches.pack\n"
        "def broken(self, group, position, epoch):\n"
        "    if rank == 1 and position == 2: raise ValueError('bad row')\n"
        "    return pack(self, group, position, epoch)\n"
        "TrainingBatches.pack = broken\n"
        "attempt(lambda: train(parse_train_config(sys.argv[2:])))\n"
        "open(f'{sys.argv[1]}.{rank}', 'w').write(json.dumps(told))\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = arguments(setup, tmp_path / "run", "--max-steps", "4")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [*command, str(tmp_path / "script.py"), str(tmp_path / "told"), *given]
    answer = subprocess.run(started, capture_output=True, text=True, env=environment, timeout=300)
    told = [json.loads((tmp_path / f"told.{rank}").read_text()) for rank in range(2)]
    assert told[0] == [
        "RankError: work: rank 1 failed with ValueError: one",
        "Stopped: ",
        "RankError: packing a batch of step 3: rank 1 failed with ValueError: bad row",
    ], answer.stderr
    assert told[1] == ["ValueError: one", "Stopped: ", "ValueError: bad row"]


def test_held_out_types(setup, tmp_path):
    apart = [{**row, "ner": row["ner"][number % 2 : number % 2 + 1]} for number, row in enumerate(rows())]
    (tmp_path / "apart.jsonl").write_text("\n".join(map(json.dumps, apart)) + "\n")
    more = ["--max-steps", "2", "--held-out-types", "1"]
    given = without_dev(arguments(setup, tmp_path / "run", *more, "--train-data", str(tmp_path / "apart.jsonl")))
    assert train(parse_train_config(given))["dev_micro_f1"] is not None
    given = without_dev(arguments(setup, tmp_path / "none", *more))  # every sentence that has a type has both
    with pytest.raises(ValueError, match="train_data: expected gold entities, got none in the 8 sentences"):
        train(parse_train_config(given))


def test_held_out_types_never_reach_training():
    examples = [
        Example(["a", "b"], [(0, 0, "Person"), (1, 1, "place")], types=("person", "place")),
        Example(["c"], [(0, 0, "place")], types=("person", "place")),
        Example(["d"], [(0, 0, "person")], group="g"),
    ]
    for seed in range(4):
        kept, dev = hold_out_types(Dataset("d", examples, skipped=3), 1, seed=seed)
        (held,) = dev.examples[0].types
        assert held.casefold() not in {label.casefold() for label in kept.types}
        assert {e[2] for example in dev for e in example.entities} == {held}
        assert kept.skipped == 3


# a user's files


@pytest.fixture
def earlier(setup, finished, tmp_path):
    """A copy of a finished run, to be threatened."""
    output = tmp_path / "earlier"
    shutil.copytree(finished[0], output)
    return output


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--dev-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--eval-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--init-from", "/nowhere"], "nowhere"),
        (["--max-width", "9"], "max_width: expected 6, as in the checkpoint"),
        (["--init-from", "{output}/model"], "output_dir: init_from reads .*/model, which lies in .*/model"),
        (["--init-from", "{output}/link"], "output_dir: init_from reads"),
        (["--init-from", "{output}/../earlier/model"], "output_dir: init_from reads"),
        (["--train-data", "{output}/model/train.jsonl"], "output_dir: train_data reads"),
        (["--eval-data", "{output}/report.json"], "output_dir: eval_data reads"),
        (["--train-data", "{output}"], "output_dir: expected a folder outside .*, whose files train_data reads"),
    ],
)
def test_overwrite_deletes_nothing_before_its_inputs_are_read(setup, earlier, more, message):
    (earlier / "model" / "train.jsonl").write_text((setup / "data.jsonl").read_text())
    (earlier / "link").symlink_to(earlier / "model")
    before = everything(earlier)
    given = [one.replace("{output}", str(earlier)) for one in more]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(parse_train_config(arguments(setup, earlier, "--overwrite", *given)))
    assert everything(earlier) == before


def test_a_relative_output_is_the_same_folder(setup, earlier, monkeypatch):
    monkeypatch.chdir(earlier.parent)
    given = arguments(setup, "earlier", "--overwrite", "--init-from", str(earlier / "model"))
    with pytest.raises(ValueError, match="output_dir: init_from reads"):
        train(parse_train_config(given))


def test_settings_files_are_inputs_too(setup, earlier):
    (earlier / "model" / "c.yaml").write_text("lr: 0.1\n")
    given = arguments(setup, earlier, "--overwrite", "--config", str(earlier / "model" / "c.yaml"))
    with pytest.raises(ValueError, match="output_dir: config reads"):
        train(parse_train_config(given))


def test_resume_never_trains_a_finished_run_again(setup, earlier):
    """Without a checkpoint there is nothing to go on from, but a model to lose."""
    shutil.rmtree(earlier / "checkpoints")
    before = everything(earlier)
    with pytest.raises(ValueError, match="expected a checkpoint to continue from, got none in .* a finished run"):
        train(parse_train_config(arguments(setup, earlier, "--resume")))
    assert everything(earlier) == before


def test_output_that_cannot_be_written(setup, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").mkdir()
    for output, message in (("file", "is no folder"), ("file/run", "is no folder"), ("run", "to be a file")):
        with pytest.raises(ValueError, match=f"output_dir: .*{message}"):
            train(parse_train_config(arguments(setup, tmp_path / output)))


def test_a_finished_run_is_extended(setup, earlier):
    """The rate goes on as in a run of the new length, and nothing done is done again."""
    whole = losses(earlier)
    report = train(parse_train_config([*arguments(setup, earlier, "--resume"), "--max-steps", "14"]))
    assert report["steps"] == 14 and list(losses(earlier)) == list(range(1, 15))
    assert {step: loss for step, loss in losses(earlier).items() if step <= 10} == whole
    lines = [json.loads(line) for line in (earlier / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    assert rates[11] == pytest.approx(1e-3 * rate(10, 14, 0.1)) and rates[11] > rates[10]
    with pytest.raises(ValueError, match="expected at least the 14 steps that .*step-14 has done, got 12"):
        train(parse_train_config([*arguments(setup, earlier, "--resume"), "--max-steps", "12"]))
    again = train(parse_train_config([*arguments(setup, earlier, "--resume"), "--max-steps", "14"]))
    assert again["steps"] == 14 and again["median_step_seconds"] is None and again["words_per_second"] is None
    assert again["evaluation"] == report["evaluation"]


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("name", "when"), [("SIGINT", "step"), ("SIGTERM", "step"), ("SIGINT", "evaluation")])
def test_interrupted_run_keeps_its_steps(setup, finished, tmp_path, monkeypatch, capsys, name, when):
    """A checkpoint, one line that says how to go on, no traceback; resumed, the losses are those of the whole run."""
    number, handler = getattr(signal, name), signal.getsignal(getattr(signal, name))
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        if when == "step":
            write = RunLog.step

            def step(self, step, **values):
                write(self, step, **values)
                if step == 6:
                    signal.raise_signal(number)

            patch.setattr(RunLog, "step", step)
        else:
            patch.setattr(trainer_module, "evaluate_together", lambda *_, **__: signal.raise_signal(number))
        with pytest.raises(SystemExit) as ended:
            train_command.main(arguments(setup, output))
    assert ended.value.code == 128 + number
    at = 6 if when == "step" else 5
    assert f"stopped at step {at} of 10; go on with the same command with --resume" in capsys.readouterr().err
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{at}"]
    assert signal.getsignal(number) == handler
    report = train(parse_train_config(arguments(setup, output, "--resume")))
    assert losses(output) == pytest.approx(losses(finished[0]), rel=1e-6)
    assert report["dev_micro_f1"] == finished[1]["dev_micro_f1"] and report["best_step"] == finished[1]["best_step"]


@pytest.mark.usefixtures("default_signals")
def test_interrupted_before_the_first_step(setup, earlier, monkeypatch, capsys):
    before = everything(earlier)
    monkeypatch.setattr(trainer_module, "load_data", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        train_command.main(arguments(setup, earlier, "--overwrite"))
    assert ended.value.code == 130 and "stopped before the first step" in capsys.readouterr().err
    assert everything(earlier) == before


def test_names_with_brackets(setup, tmp_path, capsys):
    """Labels, data sets and folders that rich would read as markup."""
    labels = {"person": "[/b]", "place": "[red]x :smile:"}
    made = [{**row, "ner": [[start, end, labels[label]] for start, end, label in row["ner"]]} for row in rows()]
    data = tmp_path / "a[i]b.jsonl"
    data.write_text("\n".join(map(json.dumps, made)) + "\n")
    more = ["--train-data", str(data), "--dev-data", str(data), "--eval-data", str(data), "--max-steps", "1"]
    report = train(parse_train_config(arguments(setup, tmp_path / "run [" / "bold]", *more)))
    assert set(report["evaluation"]) == {"a[i]b"}
    said = capsys.readouterr().out.replace("\n", "")
    assert "[/b]" in said and "[red]x :smile:" in said and "a[i]b" in said and "run [/bold]/model" in said


# late errors


def test_evaluation_that_cannot_run_stops_before_training(setup, tmp_path):
    row = {"tokenized_text": ["Ada"], "ner": [[0, 0, "short"], [0, 0, "very " * 130 + "long"]]}
    (tmp_path / "wide.jsonl").write_text(json.dumps(row) + "\n")
    for flag, setting in (("--eval-data", "eval_data"), ("--dev-data", "dev_data")):
        given = arguments(setup, tmp_path / "run", flag, str(tmp_path / "wide.jsonl"))
        with pytest.raises(ValueError, match=rf"{setting}: wide, sentence .*wide.jsonl:1: .*do not fit .*alone has"):
            train(parse_train_config(given))
    assert not (tmp_path / "run").exists()


def test_many_labels_are_evaluated_in_groups(setup, tmp_path):
    """Twenty labels that do not fit one prompt: neither the dev set nor the evaluation set is refused."""
    labels = [f"{'very ' * 8}long label {number}" for number in range(20)]
    row = {"tokenized_text": ["Ada"], "ner": [[0, 0, label] for label in labels]}
    (tmp_path / "wide.jsonl").write_text(json.dumps(row) + "\n")
    more = ["--dev-data", str(tmp_path / "wide.jsonl"), "--eval-data", str(tmp_path / "wide.jsonl")]
    report = train(parse_train_config(arguments(setup, tmp_path / "run", *more, "--max-steps", "1")))
    assert report["evaluation"]["wide"]["micro"]["gold"] == 20 and report["failed"] == {}


def test_a_failed_evaluation_set_is_named_in_the_report(setup, tmp_path, monkeypatch):
    (tmp_path / "other.jsonl").write_text((setup / "data.jsonl").read_text())
    evaluate_together = final_module.evaluate_together

    def broken(accelerator, model, dataset, *more, **options):
        if dataset.name == "data" and not options["autocast"]:  # not on the dev set
            raise RuntimeError("out of luck")
        return evaluate_together(accelerator, model, dataset, *more, **options)

    monkeypatch.setattr(final_module, "evaluate_together", broken)
    more = ["--eval-data", str(setup / "data.jsonl"), str(tmp_path / "other.jsonl"), "--max-steps", "1"]
    with pytest.raises(RuntimeError, match="the model is trained and saved, but 1 sets failed: data: .*out of luck"):
        train(parse_train_config(arguments(setup, tmp_path / "run", *more)))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["failed"] == {"data": "RuntimeError: out of luck"} and set(report["evaluation"]) == {"other"}
    assert (tmp_path / "run" / "model" / SAFE).is_file()


# data that nothing can be learned from


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokenized_text": ["Nothing", "here"], "ner": []}, "expected an entity type to ask for, got none"),
        ({"tokenized_text": ["Nothing"], "ner": [], "ner_labels": ["person"]}, "expected gold entities, got none"),
        ({"tokenized_text": ["a"] * 9, "ner": [[0, 8, "x"]]}, "got 1 in bad of which 1 are wider than max_width"),
        ({"tokenized_text": ["a" * 300] * 2, "ner": [[0, 1, "x"]]}, "of which 0 are wider .* and 1 fit no window"),
        ({"tokenized_text": [], "ner": []}, "expected sentences with words, got 1 sentences without one"),
    ],
)
@pytest.mark.parametrize("setting", ["train_data", "dev_data"])
def test_nothing_to_learn(setup, tmp_path, row, message, setting):
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
    flag = "--" + setting.replace("_", "-")
    given = arguments(setup, tmp_path / "run", flag, str(tmp_path / "bad.jsonl"))
    with pytest.raises(ValueError, match=f"{setting}: .*{message}"):
        train(parse_train_config(given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["train_data", "dev_data"])
def test_gold_in_the_part_that_is_cut(setup, tmp_path, setting):
    """Nothing can be learned from it, unless the text is read in windows."""
    row = {"tokenized_text": ["a"] * 300, "ner": [[299, 299, "x"]]}
    (tmp_path / "far.jsonl").write_text(json.dumps(row) + "\n")
    given = arguments(setup, tmp_path / "run", "--" + setting.replace("_", "-"), str(tmp_path / "far.jsonl"))
    message = rf"{setting}: .*of which 0 are wider .* and 1 lie beyond .*set long_texts to windows"
    with pytest.raises(ValueError, match=message):
        train(parse_train_config([*given, "--long-texts", "cut"]))
    train(parse_train_config([*given, "--max-steps", "1"]))


@pytest.fixture(scope="module")
def documents(setup):
    """Two documents of all sentences of the data, each about ten times as long as the model takes."""
    words, entities = [], []
    for row in rows() * 4:
        entities += [[start + len(words), end + len(words), label] for start, end, label in row["ner"]]
        words += row["tokenized_text"]
    path = setup / "documents.jsonl"
    path.write_text((json.dumps({"tokenized_text": words, "ner": entities}) + "\n") * 2)
    return str(path)


def test_documents_are_trained_in_windows(setup, documents, tmp_path, capsys, caplog):
    data = ["--train-data", documents, "--dev-data", documents, "--eval-data", documents]
    more = [*data, "--max-steps", "6", "--checkpoint-steps", "3", "--eval-steps", "3", "--epochs", "1"]
    whole = train(parse_train_config(arguments(setup, tmp_path / "whole", *more)))
    shown = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    gold = 2 * 4 * 64
    assert whole["evaluation"]["documents"]["micro"]["gold"] == gold and whole["config"]["long_texts"] == "windows"
    assert "training left out" not in caplog.text and not caplog.records
    (lost,) = {line for line in shown if line.startswith("entities cut")}
    assert lost.startswith("entities cut 0 ") and gold * 0.8 < int(lost.split()[3]) < gold

    stopped = arguments(setup, tmp_path / "stopped", *more)
    train(parse_train_config([*stopped, "--max-steps", "3"]))
    with pytest.raises(ValueError, match=r"other settings \(long_texts: was 'windows', is 'cut'\)"):
        train(parse_train_config([*stopped, "--resume", "--long-texts", "cut"]))
    train(parse_train_config([*stopped, "--resume"]))
    assert list(losses(tmp_path / "stopped")) == list(losses(tmp_path / "whole"))

    capsys.readouterr()
    with pytest.warns(UserWarning, match="words at their ends were not read"):
        train(parse_train_config(arguments(setup, tmp_path / "cut", *more, "--long-texts", "cut", "--max-steps", "2")))
    assert "training left out" in caplog.text
    shown = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    (lost,) = {line for line in shown if line.startswith("entities cut")}
    assert int(lost.split()[2]) > gold * 0.8 and lost.split()[3] == "0"


def test_an_epoch_of_documents_is_an_epoch_of_windows(documents, tiny_model):
    dataset = load_dataset(documents)
    config = parse_train_config(["--batch-size", "4", "--batch-tokens", "400"])
    batches = TrainingBatches(dataset, tiny_model.packer, config)
    assert len(dataset) == 2 and len(batches.dataset) > 20 and batches.steps() > 5
    for _, _, batch in itertools.islice(batches.starting_at(0), 10):
        assert not any(batch.words_cut) and batch.entities_lost == 0 and len(batch.positives)
    assert TrainingBatches(dataset, tiny_model.packer, parse_train_config(["--long-texts", "cut"])).steps() == 1


def test_held_out_types_that_leave_nothing(setup, tmp_path):
    one = [{"tokenized_text": ["Ada", "and", "Bo"], "ner": [[0, 0, "x"]]}, {"tokenized_text": ["Bo"], "ner": []}]
    other = [{"tokenized_text": ["a"] * 9, "ner": [[0, 8, "y"]]}]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, one + other)) + "\n")
    more = ["--held-out-types", "1", "--train-data", str(tmp_path / "two.jsonl")]
    given = without_dev(arguments(setup, tmp_path / "run", *more))
    with pytest.raises(ValueError, match="(train|dev)_data: expected entities that the model can find"):
        train(parse_train_config(given))


def test_negatives_beyond_the_prompt_are_left_out(tiny_model):
    """The tiny model takes 128 tokens; own types stay, others go as the room goes, and are counted."""
    examples = [Example(["Ada"], [(0, 0, f"person number {number}")]) for number in range(24)]
    (ada,) = tiny_model.packer.tokenize([["Ada"]])
    for long_texts, room in (("cut", 1), ("windows", len(ada.ids))):  # room for the first token, or for the text
        config = parse_train_config(["--batch-size", "24", "--negative-ratio", "24", "--long-texts", long_texts])
        batches = TrainingBatches(Dataset("d", examples), tiny_model.packer, config)
        _, group, batch = next(batches.starting_at(0))
        prompts = batch.word_index - batch.cu_seqlens[:-1]
        assert batches.types_left_out > 0 and 128 - room - 8 < max(prompts) + room <= 127
        assert len(batch.positives) == 24 and batch.words_cut == (0,) * 24
    long = [Example(["Ada"], [(0, 0, f"{'very ' * 9}long {number}") for number in range(24)], id="d:1")]
    with pytest.raises(ValueError, match=r"max_types: expected .* tokens, .* got up to \d+ for the 24 types of d:1"):
        TrainingBatches(Dataset("d", long), tiny_model.packer, config)


# what is computed in


@pytest.mark.parametrize(
    ("device", "native", "auto"), [("cuda", True, "bf16"), ("cuda", False, "fp32"), ("cpu", True, "fp32")]
)
def test_auto_dtype(monkeypatch, device, native, auto):
    asked = []
    wide = torch.bfloat16 if native else torch.float32
    monkeypatch.setattr(starting, "resolve_dtype", lambda dtype, where: asked.append((dtype, where)) or wide)
    assert training_dtype("auto", torch.device(device)) == auto
    assert asked == [("auto", torch.device(device))]
    for given in ("fp32", "bf16", "fp16"):
        assert training_dtype(given, torch.device(device)) == given


def test_a_bf16_run_is_bf16_throughout(setup, tmp_path, monkeypatch):
    """Training and evaluation on the dev set alike: on a GPU all of it then takes FlashAttention."""
    seen = []

    def watched(q, k, v, *more, **options):
        seen.append({x.dtype for x in (q, k, v)})
        return attention_varlen(q, k, v, *more, **options)

    monkeypatch.setattr("glimodern.layers.attention.attention_varlen", watched)
    monkeypatch.setattr("glimodern.model.glimodern.saved_fingerprint", lambda *given: None)  # of the weights, in fp32
    train(parse_train_config(arguments(setup, tmp_path / "run", "--max-steps", "1", "--dtype", "bf16")))
    assert len(seen) > 2 and all(dtypes == {torch.bfloat16} for dtypes in seen)


def test_report_names_what_was_not_given(finished):
    config = finished[1]["config"]
    assert (config["max_width"], config["dropout"], config["span_mode"]) == (6, 0.1, "markerV0")
    assert (config["dtype"], config["encoder"], config["hidden_size"]) == ("fp32", None, 32)


def test_a_given_setting_is_never_ignored(setup):
    """12 and 0.4 are defaults of a fresh head; given beside a checkpoint they mean what they say."""
    with pytest.raises(ValueError, match="max_width: expected 6, .* checkpoint of init_from, got 12; leave it out"):
        config = parse_train_config(["--init-from", str(setup / "start"), "--max-width", "12"])
        build_model(config.model, Dataset("", []), max_types=25, seed=0)
    config = parse_train_config(["--init-from", str(setup / "start"), "--dropout", "0.4"])
    assert build_model(config.model, Dataset("", []), max_types=25, seed=0).config.dropout == 0.4
    assert build_model(config.model, Dataset("", []), max_types=40, seed=0).config.max_types == 40
    config = parse_train_config(["--init-from", str(setup / "start"), "--span-mode", "markerV0"])
    assert build_model(config.model, Dataset("", []), max_types=25, seed=0).config.dropout == 0.1


# the pieces


def test_rate():
    values = [rate(step, 100, 0.1) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[9] == values[10] == 1.0
    assert values[99] < 0.001
    assert rate(0, 1, 0.0) == 1.0


def test_batches_cover_an_epoch_once_and_skip_exactly(setup, tiny_model):
    dataset = join([load_dataset(setup / "data.jsonl")])
    config = parse_train_config(arguments(setup, "unused"))
    whole = TrainingBatches(dataset, tiny_model.packer, config)
    epoch = whole.epoch(0)
    assert sorted(i for group in epoch for i in group) == list(range(40))
    assert whole.epoch(1) != epoch
    one, other = whole.starting_at(0), whole.starting_at(13)
    for _ in range(13):
        next(one)
    for _ in range(3):
        (place, group, batch), (place2, group2, batch2) = next(one), next(other)
        assert (place, group) == (place2, group2)
        assert torch.equal(batch.input_ids, batch2.input_ids)
    few = TrainingBatches(join([Dataset("one", dataset.examples[:4])]), tiny_model.packer, config, 0, 4)
    assert len(few.epoch(0)) == 4
    halves = [TrainingBatches(dataset, tiny_model.packer, config, rank, 2) for rank in range(2)]
    seen = [group for half in halves for group in half.epoch(0)[half.rank :: 2]]
    assert sorted(i for group in seen for i in group) == list(range(40))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class-balance", "1.0"], "gives negatives no weight"),
        (["--batch-size", "None"], "batch_size, batch_tokens"),
        (["--max-steps", "0"], "max_steps: expected a whole number >= 1"),
        (["--max-len", "0"], "max_len: expected a whole number >= 1"),
        (["--lr", "-1"], "lr: expected a number > 0 and <= 1, got -1.0"),
        (["--lr", "nan"], "lr: expected a number > 0 and <= 1, got nan"),
        (["--head-lr", "inf"], "head_lr: expected a number > 0 and <= 1, got inf"),
        (["--lr", "1e30"], "lr: expected a number > 0 and <= 1, got 1e+30; AdamW changes each"),
        (["--weight-decay", "1e30"], "weight_decay: expected at most 1 / the peak learning rate"),
        (["--max-grad-norm", "-1"], "max_grad_norm: expected a number >= 0, got -1.0"),
        (["--weight-decay", "-1"], "weight_decay: expected a number >= 0, got -1.0"),
        (["--focal-gamma", "-0.1"], "focal_gamma: expected a number >= 0"),
        (["--focal-scale", "0"], "focal_scale: expected a number > 0"),
        (["--negative-ratio", "nan"], "negative_ratio: expected a number >= 0, got nan"),
        (["--dropout", "1"], "dropout: expected a number >= 0 and < 1"),
        (["--threshold", "nan"], "threshold: expected a number >= 0 and <= 1"),
        (["--epochs", "inf"], "epochs: expected a number > 0, got inf"),
        (["--eval-steps", "-1"], "eval_steps: expected a whole number >= 0"),
        (["--checkpoint-steps", "-1"], "checkpoint_steps: expected a whole number >= 0"),
        (["--seed", "-1"], "seed: expected a whole number >= 0 and <= 4294967295, got -1"),
        (["--output-dir", ""], "output_dir: expected text, got an empty string"),
        (["--held-out-types", "2", "--init-from", "None"], "dev_data, held_out_types: expected one of them"),
        (["--encoder", "demo"], "encoder, init_from: expected one of them, got both"),
        (["--train-data"], "train_data: expected at least one data set with dev_data"),
        (["--resume", "--overwrite"], "resume, overwrite"),
        (["--warmup", "1.5"], "warmup"),
        (["--hidden-size", "1000000"], "hidden_size: expected a whole number >= 1 and <= 65536"),
        (["--max-width", "9" * 30], "max_width: expected a whole number <= 2147483647"),
        (["--accumulation", "9" * 30], "accumulation: expected a whole number <= 2147483647"),
    ],
)
def test_bad_settings(setup, capsys, more, message):
    with pytest.raises(SystemExit):
        parse_train_config(arguments(setup, "unused", *more))
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in said


def test_yaml_settings(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1.0e-3\ntrain-data: [a, b]\nfused: false\nmax_len: null\n")
    config = parse_train_config(["--config", str(file), "--lr", "2e-3"])
    assert (config.optim.lr, config.data.train_data, config.run.fused) == (2e-3, ("a", "b"), False)
    assert config.run.config == (str(file),)
    with pytest.raises(ValueError, match=r"--train-data: expected one flag with all its values"):
        parse_train_config(["--train-data", "a", "--train_data", "b"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        parse_train_config(["--config", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning-rate: 1", "unknown setting 'learning-rate'"),
        ("lr: [1.0e-3, 2.0e-3]", r"lr: expected a number > 0 and <= 1, got \[0.001, 0.002\] \(list\)"),
        ("lr: fast", "lr: expected a number > 0 and <= 1, got 'fast'"),
        ("lr: .nan", "lr: expected a number > 0 and <= 1, got nan"),
        ("max_steps: 1e3", "max_steps: expected a whole number >= 1 or nothing, got '1e3'"),
        ("fused: 'yes'", "fused: expected true or false, got 'yes'"),
        ("encoder: no", r"encoder: expected text or nothing, got False \(bool\); quote text that YAML reads"),
        ("output-dir: 2024", "output_dir: expected text, got 2024"),
        ("output-dir: [a, b]", r"output_dir: expected text, got \['a', 'b'\]"),
        ("train-data:", "train_data: expected a list of texts, got nothing"),
        ("train-data: [a, 3]", "train_data: expected a list of texts"),
        ("span-mode: markerV1", "span_mode: expected one of 'markerV0', 'marker', 'ffn', 'token_level' or nothing"),
        ("lr: 1.0\nlr: 2.0", "expected each setting once, got lr several times"),
        ("head-lr: 1.0\nhead_lr: 2.0", "expected each setting once, got head_lr several times"),
        ("- lr", "expected a mapping of settings, got list"),
        ("config: b.yaml", "unknown setting 'config'"),
        ("lr: [", "expected YAML, got a file that does not read"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        parse_train_config([f"--config={file}"])


def test_yaml_takes_what_it_writes_without_a_dot(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 1e-3\ntrain-data: one.jsonl\nresume: false\n")
    config = parse_train_config(["--config", str(tmp_path / "c.yaml")])
    assert (config.optim.lr, config.data.train_data, config.run.resume) == (1e-3, ("one.jsonl",), False)


def test_shipped_recipes():
    from pathlib import Path

    folder = Path(__file__).parents[1] / "configs"
    paper = parse_train_config(["--config", str(folder / "paper.yaml")])
    assert (paper.optim.lr, paper.optim.head_lr, paper.optim.weight_decay) == (5e-5, 1e-4, 0.01)
    assert (paper.optim.focal_gamma, paper.optim.focal_scale, paper.optim.class_balance) == (2.0, 1.0, None)
    assert (paper.run.epochs, paper.run.batch_size, paper.model.freeze_encoder) == (3, 4, True)
    published = parse_train_config(["--config", str(folder / "gliner.yaml")])
    assert (published.optim.lr, published.optim.head_lr, published.model.dropout) == (1e-5, 5e-5, 0.4)
    assert (published.model.max_width, published.data.max_types, published.run.max_steps) == (12, 25, 30000)
    assert published.data.held_out_types > 0
    demo = ["--config", str(folder / "demo.yaml")]
    assert (parse_train_config(demo).model.encoder, parse_train_config(demo).model.embed_ent_token) == ("demo", False)
    assert parse_train_config([*demo, "--embed-ent-token", "True"]).model.embed_ent_token is True
