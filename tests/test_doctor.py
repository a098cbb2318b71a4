"""glimodern.doctor: each way in which a checkpoint or a machine can be broken fails its own check, with a remedy."""

import json
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from glimodern import reference
from glimodern.doctor import Report, examine, machine
from glimodern.doctor import __main__ as command
from glimodern.doctor.base import Check, CheckError, Checks
from glimodern.doctor.checkpoint import _compare
from glimodern.model.glimodern import GLiModern
from glimodern.ops import dispatch

CONFIG, WEIGHTS, TOKENIZER = "gliner_config.json", "model.safetensors", "tokenizer.json"
BIAS = "span_rep_layer.span_rep_layer.out_project.0.bias"


@pytest.fixture
def healthy(monkeypatch):
    """The machine's own checks are left out: what is found is the checkpoint's."""
    monkeypatch.setattr(machine, "check_machine", lambda checks: None)


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def failures(report):
    return {check.name: check for check in report.checks if check.ok is False}


def halve(file):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def edit_json(file, **fields):
    content = json.loads(file.read_text())
    content.update(fields)
    file.write_text(json.dumps(content))


def edit_state(folder, **tensors):
    state = {**load_file(folder / WEIGHTS), **tensors}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / WEIGHTS)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("hacked",))


def put_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def without_tokenizer(folder):
    for name in (TOKENIZER, "tokenizer_config.json"):
        (folder / name).unlink()


def add_token(folder):
    tokenizer = GLiModern.from_pretrained(folder).tokenizer
    tokenizer.add_tokens(["<<new>>"])
    tokenizer.save_pretrained(folder)


def without_prompt_tokens(folder):
    content = json.loads((folder / TOKENIZER).read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<<SEP>>"]
    (folder / TOKENIZER).write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in config.items() if "<<SEP>>" not in json.dumps(value)}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))


BROKEN = {
    "half a config": (lambda f: halve(f / CONFIG), {"config": "not valid JSON"}),
    "no config": (lambda f: (f / CONFIG).unlink(), {"config": f"no {CONFIG}"}),
    "another kind": (lambda f: edit_json(f / CONFIG, span_mode="markerV1"), {"config": "not supported"}),
    "a bad field": (
        lambda f: edit_json(f / CONFIG, max_width=-3),
        {"config": "max_width: expected a whole number >= 1"},
    ),
    "half the weights": (lambda f: halve(f / WEIGHTS), {"weights": "not a whole safetensors file"}),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), {"weights": "no weights"}),
    "a pickle with code": (put_pickle, {"weights": "refused"}),
    "a wrong shape": (lambda f: edit_state(f, **{BIAS: torch.zeros(3)}), {"shapes": r"expected shape \(128,\)"}),
    "a missing tensor": (lambda f: edit_state(f, **{BIAS: None}), {"shapes": "missing"}),
    "a strange tensor": (lambda f: edit_state(f, strange=torch.zeros(3)), {"shapes": "strange"}),
    "a width of another model": (lambda f: edit_json(f / CONFIG, hidden_size=16), {"shapes": "expected"}),
    "half a tokenizer": (lambda f: halve(f / TOKENIZER), {"tokenizer": "cannot be read"}),
    "no tokenizer": (without_tokenizer, {"tokenizer": "got neither"}),
    "a tokenizer of another model": (
        lambda f: edit_json(f / CONFIG, class_token_index=5),
        {"vocabulary": "class_token_index: expected the id"},
    ),
    "a token without a row": (add_token, {"vocabulary": "vocab_size: expected an embedding row"}),
    "no prompt token": (without_prompt_tokens, {"vocabulary": "prompt tokens"}),
    "a NaN": (
        lambda f: edit_state(f, **{BIAS: torch.full((128,), torch.nan)}),
        {"finite weights": BIAS, "canary": "finite"},
    ),
    "an infinity": (
        lambda f: edit_state(f, **{BIAS: torch.full((128,), torch.inf)}),
        {"finite weights": BIAS, "canary": "finite"},
    ),
    "two faults at once": (
        lambda f: (halve(f / CONFIG), halve(f / WEIGHTS)),
        {"config": "not valid JSON", "weights": "not a whole"},
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_checkpoint(saved, healthy, monkeypatch, fault):
    monkeypatch.chdir(saved)
    break_it, wanted = BROKEN[fault]
    break_it(saved)
    report = examine(str(saved))
    failed = failures(report)
    assert set(failed) == set(wanted)
    for name, message in wanted.items():
        pytest.raises(ValueError, _raise, failed[name].detail).match(message)
        assert failed[name].remedy
    assert not report.ok
    assert not (saved / "hacked").exists()
    assert {check.name for check in report.checks if check.ok} >= {"folder"}


def _raise(message):
    raise ValueError(message)


def test_a_fault_hides_no_other_part(saved, healthy):
    """What does not hang on the broken part is examined all the same."""
    halve(saved / WEIGHTS)
    states = {check.name: check.ok for check in examine(str(saved)).checks}
    assert states == {
        "folder": True, "config": True, "splitter": True, "weights": False, "finite weights": None, "shapes": None,
        "tokenizer": True, "vocabulary": True, "loads": None, "canary": None, "deterministic": None, "batching": None,
        "packed": None, "fingerprint": None,
    }  # fmt: skip


@pytest.mark.parametrize("path", ["no/such/folder", "./nowhere"])
def test_no_folder(healthy, path):
    report = examine(path)
    assert set(failures(report)) == {"folder"}
    assert [check.ok for check in report.checks[1:]] == [None] * 13


def test_whole_checkpoint(saved, healthy, capsys):
    (saved / "[red]notes.txt").write_text("not read as markup")
    command.main([str(saved), "--json", str(saved.parent / "report.json")])  # no SystemExit: status 0
    printed = capsys.readouterr().out
    assert "no check failed" in printed and "[red]notes.txt" in printed
    data = json.loads((saved.parent / "report.json").read_text())
    assert data["ok"] and len(data["checks"]) == 14
    assert data["machine"]["versions"]["torch"] == torch.__version__
    assert data["machine"]["backends"]["cpu"]["span_scores"]["why"]


def test_exit_status_of_a_failure(saved, healthy, capsys):
    halve(saved / WEIGHTS)
    with pytest.raises(SystemExit) as stopped:
        command.main([str(saved)])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "FAILED weights" in printed and "remedy: " in printed and "1 of 14 checks failed" in printed


def test_a_failure_is_reported_as_json_too(saved, healthy):
    halve(saved / WEIGHTS)
    with pytest.raises(SystemExit):
        command.main([str(saved), "--json", str(saved.parent / "report.json")])
    data = json.loads((saved.parent / "report.json").read_text())
    assert not data["ok"] and [check["name"] for check in data["checks"] if check["ok"] is False] == ["weights"]


def test_a_report_replaces_no_file_of_the_checkpoint(saved, healthy):
    before = (saved / CONFIG).read_bytes()
    with pytest.raises(ValueError, match="--json: .* is read by the same command"):
        command.main([str(saved), "--json", str(saved / CONFIG)])
    assert (saved / CONFIG).read_bytes() == before


def test_the_terminal_shows_the_facts(healthy, capsys):
    command.main([])
    printed = capsys.readouterr().out
    facts = machine.describe_machine()
    assert f"torch {torch.__version__}" in printed and facts["processor"] in printed
    for name, info in facts["backends"]["cpu"].items():
        assert any(name in line and info["backend"] in line for line in printed.splitlines()), name


def test_a_checkpoint_whose_saving_was_broken_off_is_read_as_it_loads(saved, healthy):
    """The files that replace the older ones lie in their own folder until each is in its place."""
    (saved / ".glimodern-new").mkdir()
    for file in [file for file in saved.iterdir() if file.is_file()]:
        (saved / ".glimodern-new" / file.name).write_bytes(file.read_bytes())
    halve(saved / CONFIG)
    report = examine(str(saved))
    assert report.ok, failures(report)


# the checks


def test_what_a_check_raises():
    """A message of this package is complete; another error's needs its type. A check that was not run is no pass."""

    def fail(error):
        raise error

    checks = Checks()
    for number, error in enumerate((ValueError("a:\n b"), KeyError("c"), CheckError("d", "own"))):
        checks.run(str(number), lambda error=error: fail(error), "of all")
    checks.run("needs", lambda *_: fail(RuntimeError("run")), "of all", needs=("0", "1"))
    checks.run("last", lambda: (3, "found"), "of all")
    checks.run("after", lambda value: (None, f"got {value}"), "of all", needs=("last",))
    assert checks.done == [
        Check("0", False, "a: b", "of all"), Check("1", False, "KeyError: 'c'", "of all"),
        Check("2", False, "d", "own"), Check("needs", None, "not run: it needs 0 and 1"),
        Check("last", True, "found"), Check("after", True, "got 3"),
    ]  # fmt: skip
    assert Report({}, checks.done[4:]).ok
    assert not Report({}, checks.done[3:]).ok and not Report({}, checks.done[:1]).ok


@pytest.mark.parametrize(("largest", "within", "beyond"), [(50.0, 0.004, 0.006), (0.1, 5e-5, 2e-4)])
def test_how_far_logits_may_differ(largest, within, beyond):
    expected = torch.tensor([0.0, largest, -largest], dtype=torch.float64)
    assert "logits differ by" in _compare(expected + within, expected)
    for difference in (beyond, -beyond, torch.nan):
        with pytest.raises(CheckError, match="logits: expected equal values up to rounding"):
            _compare(expected + difference, expected)


def test_lstm_and_projection(tmp_path, healthy):
    """The shapes that a config asks for are those of every part that a model can have."""
    from dataclasses import replace

    from tests.conftest import make_tiny_model

    model = make_tiny_model(dropout=0.0, hidden_size=16)
    GLiModern(replace(model.config, num_rnn_layers=1), model.encoder, model.tokenizer).save_pretrained(tmp_path / "rnn")
    assert examine(str(tmp_path / "rnn")).ok
    edit_json(tmp_path / "rnn" / CONFIG, num_rnn_layers=0)
    assert set(failures(examine(str(tmp_path / "rnn")))) == {"shapes"}


def test_trained_checkpoint(shared, healthy):
    report = examine(str(shared / "checkpoints" / "gliner-minilm-mix"))
    assert report.ok, failures(report)


@pytest.mark.parametrize(
    ("failing", "skew"),
    [
        ("batching", lambda words, texts, calls: words + 0.1 * texts),
        ("deterministic", lambda words, texts, calls: words + 0.1 * (calls == 2)),
        ("packed", lambda words, texts, calls: words + 0.1 * (calls > 6)),
    ],
)
def test_canary_sees_a_model_that_is_not_itself(saved, healthy, monkeypatch, failing, skew):
    """Word vectors that hang on the batch, on the call, or on the packing: one check each. Calls: 1 canary, 2 again,
    3 to 6 the sentences alone, 7 packed."""
    encode, calls = GLiModern.encode, []

    def skewed(model, batch):
        calls.append(batch)
        words, prompts = encode(model, batch)
        return skew(words, len(batch.cu_words) - 1, len(calls)), prompts

    monkeypatch.setattr(GLiModern, "encode", skewed)
    assert set(failures(examine(str(saved)))) == {failing}


# the machine


def test_machine_without_extension(monkeypatch):
    monkeypatch.setattr(dispatch, "extension", None)
    monkeypatch.setattr(dispatch, "EXTENSION_ERROR", "the C++ extension is not there (for a test)")
    report = examine()
    failed = failures(report)
    assert "for a test" in failed["extension"].detail
    assert "compiler" in failed["extension"].remedy
    assert report.machine["instruction sets"] == []
    assert "for a test" in report.machine["backends"]["cpu"]["span_scores"]["why"]


def test_machine_whose_kernels_are_wrong(monkeypatch):
    span_scores = reference.span_scores
    monkeypatch.setattr(reference, "span_scores", lambda *arguments: 1.0001 * span_scores(*arguments))
    assert "expected plain PyTorch's values" in failures(examine())["operators"].detail


def test_machine_with_too_many_threads(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: torch.get_num_threads() - 1)
    assert "threads" in failures(examine())
    monkeypatch.setattr(machine, "cores", torch.get_num_threads)
    assert "threads" not in failures(examine())


def test_machine_with_an_old_package(monkeypatch):
    version_of = machine.version_of
    monkeypatch.setattr(machine, "version_of", lambda name: {"rich": "1.0", "tyro": ""}.get(name, version_of(name)))
    failure = failures(examine())["packages"]
    assert "rich: expected >=13, got 1.0" in failure.detail
    assert "tyro: expected >=1.0, got none" in failure.detail
    assert failure.remedy == 'pip install "rich>=13" "tyro>=1.0"'


def test_machine_without_packages_of_extras(monkeypatch):
    """And with a release candidate of one that it needs."""
    required = ["rich>=13", 'not-installed>=1; extra == "x"', 'old>=1; python_version < "3"']
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: required)
    monkeypatch.setattr(machine, "version_of", {"rich": "14.0rc1"}.get)
    assert machine._packages()[1].startswith("1 requirements are met, Python ")


def test_machine_with_a_gpu_and_no_triton(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckError, match="triton: expected it beside a GPU, got none installed") as caught:
        machine._gpu()
    assert caught.value.remedy == "pip install triton"


@pytest.mark.skipif(dispatch.extension is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("openmp", [True, False])
def test_extension_with_and_without_openmp(monkeypatch, openmp):
    monkeypatch.setattr(
        dispatch, "extension",
        SimpleNamespace(openmp=lambda: openmp, available_isas=lambda: ["scalar", "avx2"], current_isa=lambda: "avx2"),
    )  # fmt: skip
    how = "with OpenMP" if openmp else "without OpenMP, so on one core"
    assert machine._extension()[1] == f"built {how}; this CPU runs scalar, avx2; avx2 is used"


def test_machine_whose_gpu_is_not_seen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "shutil", SimpleNamespace(which=lambda name: "/usr/bin/" + name))
    assert "PyTorch" in failures(examine())["gpu"].remedy


def test_facts_of_this_machine(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("GLIMODERN_ISA", raising=False)
    facts = examine().machine
    assert facts["threads"] == torch.get_num_threads()
    assert set(facts["versions"]) == set(machine.PACKAGES)
    assert facts["cores"] >= 1 and facts["python"] and facts["processor"]
    assert set(facts["backends"]["cpu"]) == set(dispatch.OPERATORS)
    assert facts["environment"]["OMP_NUM_THREADS"] == "2" and "GLIMODERN_ISA" not in facts["environment"]
