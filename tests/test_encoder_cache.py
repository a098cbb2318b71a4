"""The cache of a frozen encoder's outputs: what it returns, what it leaves on disk, and runs that train by it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from backends import skip_unless_runs

from glimodern.data import Example, load_dataset, sample_types
from glimodern.layers.packed_linear import can_pack
from glimodern.ops import Chain
from glimodern.train import encoder_cache as cache_module
from glimodern.train.batches import TrainingBatches
from glimodern.train.config import parse_train_config
from glimodern.train.encoder_cache import EncoderCache, check_room
from glimodern.train.interrupts import Stopped
from glimodern.train.log import RunLog
from glimodern.train.loop import train
from glimodern.train.resume import clear_output
from tests.conftest import make_tiny_model
from tests.test_bi_encoder import make_bi, save_encoder
from tests.test_train import arguments, losses, rows

TEXTS = ["Ada Lovelace met Charles Babbage in London".split(), ["Taylor", "", "wrote"], [], "about 1843 .".split()]
TYPES = [["person", "place"], ["machine"], ["person"], ["place", "machine", "person"]]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows())) + "\n")
    make_tiny_model(dropout=0.1, max_width=6).save_pretrained(folder / "start")
    save_encoder(folder / "labels", "bert", 24, 200)
    return folder


def frozen(model):
    model.freeze_encoder()
    return model


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max", "bi-encoder"])
def test_outputs_are_the_encoders(setup, tmp_path, pooling, dtype):
    if pooling == "bi-encoder":
        model = frozen(make_bi(setup / "labels"))
    else:
        model = frozen(make_tiny_model(subtoken_pooling=pooling))
    batch = model.packer.pack(TEXTS, TYPES)
    cache = EncoderCache(model, tmp_path, dtype)
    with torch.no_grad():
        expected = model.encode(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            found = model.encode(batch, outputs=cache.outputs(batch))
    tolerance = 1e-5 if dtype == "fp32" else 5e-2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance)
    assert cache.computed == len(files(tmp_path)) == len(TEXTS)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    again = EncoderCache(model, tmp_path, dtype)
    parts = [again.outputs(model.packer.pack(TEXTS[i:], TYPES[i:])) for i in (2, 0)]  # other batches, other order
    assert again.computed == 0
    first = cache.outputs(batch)
    assert torch.equal(parts[1].words, first.words) and torch.equal(parts[1].types, first.types)
    assert torch.equal(parts[0].words, first.words[-len(parts[0].words) :])
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not model.encoder.training and all(p.dtype == torch.float32 for p in model.parameters())


def test_a_text_alone_has_the_bits_of_a_batch(tmp_path):
    model = frozen(make_tiny_model())
    whole = EncoderCache(model, tmp_path / "a", "fp32").outputs(model.packer.pack(TEXTS, TYPES))
    cache, at = EncoderCache(model, tmp_path / "b", "fp32"), 0
    for text, types in zip(TEXTS, TYPES, strict=True):
        one = cache.outputs(model.packer.pack([text], [types])).words
        assert torch.equal(one, whole.words[at : at + len(one)])
        at += len(one)


def test_other_weights_dtypes_and_tokens_are_other_entries(tmp_path):
    model = frozen(make_tiny_model())
    batch = model.packer.pack(TEXTS[:1], TYPES[:1])
    caches = [EncoderCache(model, tmp_path, dtype) for dtype in ("fp32", "bf16")]
    with torch.no_grad():
        model.encoder.get_parameter("model.final_norm.weight")[3] += 1e-6  # less than bf16 can tell
    caches.append(EncoderCache(model, tmp_path, "fp32"))
    for cache in caches:
        cache.outputs(batch)
    assert len({cache.folder for cache in caches}) == len(files(tmp_path)) == 3
    caches[0].outputs(model.packer.pack(TEXTS[:1], TYPES[:1][::-1]))
    caches[0].outputs(model.packer.pack(TEXTS[:1], [["place", "person"]]))
    assert caches[0].computed == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b"", lambda b: b"\xff" + b[1:]])
def test_a_damaged_file_is_computed_again(tmp_path, caplog, damage):
    model = frozen(make_tiny_model())
    batch = model.packer.pack(TEXTS[:1], TYPES[:1])
    expected = EncoderCache(model, tmp_path, "fp32").outputs(batch)
    (file,) = files(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    cache = EncoderCache(model, tmp_path, "fp32")
    assert torch.equal(cache.outputs(batch).words, expected.words)
    assert "damaged file; they are computed again" in caplog.text and cache.computed == 1
    assert EncoderCache(model, tmp_path, "fp32").outputs(batch).types.equal(expected.types)


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    model = frozen(make_tiny_model())
    batch = model.packer.pack(TEXTS[:1], TYPES[:1])
    cache = EncoderCache(model, tmp_path, "fp32")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache.outputs(batch)
    assert not files(tmp_path)


def test_room(tmp_path):
    assert "about 0.00 GB when full" in check_room(tmp_path / "new", 1000)
    with pytest.raises(ValueError, match=r"cache_encoder: expected room for about 1000000000\.0 GB in .*, got"):
        check_room(tmp_path, 10**18)


def test_room_where_another_run_renames_a_file(tmp_path, monkeypatch):
    (tmp_path / "partial").write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda path: (path.unlink(), False)[1])
        assert cache_module._size(tmp_path / "partial") == 0


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_layers_run_as_a_chain(setup, tmp_path, monkeypatch, dtype):
    skip_unless_runs("cpp-scalar")
    if not can_pack():
        pytest.skip("nothing packs on this CPU")
    models = frozen(make_tiny_model()), frozen(make_bi(setup / "labels"))
    runs, run = [], Chain.run
    monkeypatch.setattr(
        Chain, "run", lambda chain, x, *more, **named: (runs.append(1), run(chain, x, *more, **named))[1]
    )
    for model, expected in zip(models, (1, 2), strict=True):
        runs.clear()
        EncoderCache(model, tmp_path, dtype).outputs(model.packer.pack(TEXTS, TYPES))
        assert len(runs) == expected


def test_what_is_left_over_is_swept(tmp_path):
    cache = tmp_path / "encoder_cache"
    mine, other = cache / ("a" * 32), cache / ("b" * 32)
    for folder in (mine, other):
        (folder / "cc").mkdir(parents=True)
        (folder / "cc" / ("c" * 32)).write_bytes(b"1")
    (mine / "cc" / f".{'d' * 32}.01234567").write_bytes(b"1")
    (cache / "notes.txt").write_text("not ours")
    clear_output(tmp_path, overwrite=False, cache=mine)
    assert [path.name for path in files(cache)] == ["c" * 32, "c" * 32, "notes.txt"]
    clear_output(tmp_path, overwrite=True, cache=mine)
    assert files(cache) == [mine / "cc" / ("c" * 32), cache / "notes.txt"]


# types


def test_types_of_the_first_examples_only():
    examples = [Example(["a"], [(0, 0, label)]) for label in "pqrst"]
    whole = sample_types(examples, negative_ratio=2.0, rng=random.Random(3))
    assert sample_types(examples, negative_ratio=2.0, count=2, rng=random.Random(3)) == whole[:2]


def test_a_sentence_is_asked_the_same_types_every_few_epochs(tiny_model, tmp_path):
    many = [{"tokenized_text": ["w"], "ner": [[0, 0, str(i)]]} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, many)) + "\n")
    dataset = load_dataset(tmp_path / "data.jsonl")
    given = arguments(tmp_path, "unused", "--freeze-encoder", "--cache-encoder", "--cache-variants", "3")
    config = parse_train_config([*given, "--negative-ratio", "4"])

    def asked(epoch, rank=0, world=1):
        batches = TrainingBatches(dataset, tiny_model.packer, config, rank, world)
        groups = batches.epoch(epoch)[rank::world]
        packed = [(group, batches.pack(group, 7 * epoch + i, epoch)) for i, group in enumerate(groups)]
        return {
            number: (int(batch.cu_types.diff()[i]), *batch.input_ids[slice(*batch.token_offsets[i : i + 2])].tolist())
            for group, batch in packed
            for i, number in enumerate(group)
        }

    first, *later = [asked(epoch) for epoch in range(4)]
    assert later[2] == first
    assert sum(first[i] == later[0][i] for i in range(40)) < 5 > sum(later[0][i] == later[1][i] for i in range(40))
    parts = [asked(3, rank, 2) for rank in range(2)]
    assert {**parts[0], **parts[1]} == first
    assert {types for types, *_ in first.values()} == {4}  # its own, and those of the others of a batch of 4


# runs

CACHED = ("--freeze-encoder", "--cache-encoder")


def test_a_run_by_the_cache_learns_what_a_run_without_does(setup, tmp_path, monkeypatch, capsys):
    more = [*CACHED, "--max-steps", "25", "--cache-dir", str(tmp_path / "shared")]
    report = train(parse_train_config(arguments(setup, tmp_path / "run", *more)))
    printed = " ".join(capsys.readouterr().out.split())
    assert "encoder cache: about 0.00 GB when full" in printed
    assert not (tmp_path / "run" / "encoder_cache").exists()
    kept = files(tmp_path / "shared")
    assert 10 < len(kept) <= 40  # some of the 40 sentences are equal, and so are their types
    assert report["config"]["cache_encoder"]
    monkeypatch.setattr(EncoderCache, "outputs", lambda cache, batch: SimpleNamespace(to=lambda device: None))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(parse_train_config(arguments(setup, tmp_path / "plain", *more)))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=2e-3)
    assert files(tmp_path / "shared") == kept


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("encoder", ["one", "two"])
def test_a_stopped_run_goes_on_with_the_same_losses(setup, tmp_path, monkeypatch, encoder):
    def given(output, *more):
        flags = arguments(setup, output, *CACHED, "--max-steps", "14", *more)
        if encoder == "two":
            at = flags.index("--init-from")
            flags[at : at + 2] = ["--encoder", "demo", "--labels-encoder", str(setup / "labels"), "--hidden-size", "32"]
        return parse_train_config(flags)

    train(given(tmp_path / "whole"))
    write = RunLog.step

    def stop(log, step, **values):
        write(log, step, **values)
        if step == 6:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(RunLog, "step", stop)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(Stopped):
        train(given(tmp_path / "run"))
    monkeypatch.setattr(RunLog, "step", write)
    for number, file in enumerate(files(tmp_path / "run" / "encoder_cache")):
        if number % 2:
            file.unlink()  # computed again, in other batches
    AcceleratorState._reset_state(reset_partial_state=True)
    train(given(tmp_path / "run", "--resume", "--cache-dir", str(tmp_path / "run" / "encoder_cache")))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_share_a_cache(setup, tmp_path):
    given = arguments(setup, tmp_path / "run", *CACHED, "--max-steps", "12", "--cache-variants", "2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [*command, "-m", "glimodern.train", *given]
    answer = subprocess.run(started, capture_output=True, text=True, env=environment, timeout=300)
    assert answer.returncode == 0, answer.stderr
    model = frozen(make_tiny_model(dropout=0.1, max_width=6))
    config = parse_train_config(given)
    batches = TrainingBatches(load_dataset(setup / "data.jsonl"), model.packer, config)
    assert 0 < len(files(tmp_path / "run" / "encoder_cache")) <= 2 * len(batches.dataset)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 12 and not report["failed"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cache-encoder"], "cache_encoder: expected freeze_encoder with it, got none"),
        (["--cache-variants", "2"], "cache_variants: expected cache_encoder with it, got none"),
        (["--cache-dir", "x", "--freeze-encoder"], "cache_dir: expected cache_encoder with it, got none"),
        ([*CACHED, "--cache-variants", "0"], "cache_variants: expected a whole number >= 1"),
    ],
)
def test_settings_that_do_not_go_together(setup, capsys, more, message):
    with pytest.raises(SystemExit):
        parse_train_config(arguments(setup, "unused", *more))
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_bi_encoder_has_no_variants(setup, tmp_path):
    make_bi(setup / "labels").save_pretrained(tmp_path / "bi")
    given = arguments(setup, tmp_path / "run", *CACHED, "--cache-variants", "2", "--init-from", str(tmp_path / "bi"))
    with pytest.raises(ValueError, match="cache_variants: expected 1 with a bi-encoder, got 2"):
        train(parse_train_config(given))
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cache_dir: expected a folder, got .*file"):
        train(parse_train_config(arguments(setup, tmp_path / "run", *CACHED, "--cache-dir", str(tmp_path / "file"))))


def test_another_place_of_the_cache_is_no_other_setting(setup, tmp_path):
    train(parse_train_config(arguments(setup, tmp_path / "run", *CACHED, "--max-steps", "4")))
    AcceleratorState._reset_state(reset_partial_state=True)
    more = ["--max-steps", "5", "--resume", "--cache-dir", str(tmp_path / "elsewhere")]
    assert train(parse_train_config(arguments(setup, tmp_path / "run", *CACHED, *more)))["steps"] == 5
    AcceleratorState._reset_state(reset_partial_state=True)
    more = ["--max-steps", "6", "--resume", "--cache-variants", "2"]
    with pytest.raises(ValueError, match="cache_variants: was 1, is 2"):
        train(parse_train_config(arguments(setup, tmp_path / "run", *CACHED, *more)))


def test_a_resumed_run_caches_under_the_weights_that_it_resumes(setup, tmp_path):
    """Also where the checkpoint of init_from has other weights by now."""
    start, shared, first = tmp_path / "start", tmp_path / "shared", make_tiny_model(dropout=0.1, max_width=6)
    first.save_pretrained(start)
    given = ["--init-from", str(start), "--cache-dir", str(shared), *CACHED]
    train(parse_train_config(arguments(setup, tmp_path / "run", *given, "--max-steps", "4")))
    folders = sorted(shared.iterdir())
    with torch.no_grad():
        first.encoder.get_parameter("model.final_norm.weight").mul_(2.0)
    first.save_pretrained(start)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(parse_train_config(arguments(setup, tmp_path / "run", *given, "--max-steps", "12", "--resume")))
    assert sorted(shared.iterdir()) == folders
