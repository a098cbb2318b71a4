"""Checkpoints in shards: read from a folder and from the hub, and what is wrong with one is told in one line."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from glimodern.files.hub import resolve_folder
from glimodern.model.glimodern import GLiModern
from tests.conftest import WORDS
from tests.fake_hub import in_place_of_the_hub
from tests.test_bad_checkpoints import refusal, with_code

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def scores(model):
    with torch.no_grad():
        return model.scores(model.packer.pack([WORDS], [["person"]]))[0]


def shard(folder, pickled=False):
    """Put a checkpoint's tensors in two shards, some of them stored once and named a copy of one in the other."""
    state = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    names = sorted(state)
    where = {}
    for number, part in enumerate((names[::2], names[1::2])):
        name = (
            SHARDS[number].replace("model", "pytorch_model").replace(".safetensors", ".bin")
            if pickled
            else SHARDS[number]
        )
        tensors = {one: state[one] for one in part}
        torch.save(tensors, folder / name) if pickled else save_file(tensors, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / (PICKLE_INDEX if pickled else INDEX)).write_text(json.dumps(index))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("plain") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    shard(folder)
    return folder


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_shards_are_read(plain, tmp_path, tiny_model, pickled, trainable):
    folder = shutil.copytree(plain, tmp_path / "model")
    shard(folder, pickled)
    model = GLiModern.from_pretrained(folder, dtype="fp32", trainable=trainable)
    assert torch.equal(scores(model), scores(GLiModern.from_pretrained(plain, dtype="fp32", trainable=trainable)))
    model.save_pretrained(folder)
    assert {file.name for file in folder.iterdir()} == {file.name for file in plain.iterdir()}


def test_a_whole_file_is_read_before_shards_and_safetensors_before_pickles(plain, sharded):
    (sharded / PICKLE).write_bytes(b"broken")
    GLiModern.from_pretrained(sharded)
    shutil.copy(plain / WHOLE, sharded)
    (sharded / INDEX).write_text("broken")
    GLiModern.from_pretrained(sharded)


def test_copies_in_another_shard(sharded):
    """huggingface_hub writes the names of all copies into every shard."""
    first, second = (load_file(sharded / name) for name in SHARDS)
    name, kept = next((one, two) for one in second for two in first if second[one].shape == first[two].shape)
    second[name] = first[kept]
    save_file(second, sharded / SHARDS[1])
    wanted = scores(GLiModern.from_pretrained(sharded, trainable=True))
    del second[name]
    save_file(second, sharded / SHARDS[1], metadata={"format": "pt", name: kept})
    index(lambda where: where.pop(name))(sharded)
    model = GLiModern.from_pretrained(sharded, trainable=True)
    assert torch.equal(scores(model), wanted)


def index(change):
    def apply(folder):
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return apply


def move(where, name):
    where[next(iter(where))] = name


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda folder: (folder / SHARDS[1]).unlink(),
            FileNotFoundError,
            rf"{INDEX}: expected 2 shards .*, got 1, without {SHARDS[1]}",
        ),
        (
            lambda folder: (folder / SHARDS[0]).write_bytes(b"half"),
            ValueError,
            rf"{SHARDS[0]}: not a whole safetensors",
        ),
        (
            index(lambda where: where.update(other=SHARDS[0])),
            ValueError,
            rf"{INDEX}: expected \d+ tensors in {SHARDS[0]}, got 1 .*\['other'\]",
        ),
        (
            index(lambda where: where.pop(next(iter(where)))),
            ValueError,
            rf"{INDEX}: expected the \d+ tensors .*1 missing",
        ),
        (
            index(lambda where: move(where, "../x.safetensors")),
            ValueError,
            r"weight_map: expected the name of .*, got '\.\./x.safe",
        ),
        (
            index(lambda where: move(where, "/etc/x.bin")),
            ValueError,
            r"weight_map: expected the name of .*, got '/etc/x.bin'",
        ),
        (index(lambda where: move(where, "a\\x.bin")), ValueError, r"weight_map: expected the name of .*, got 'a"),
        (
            index(lambda where: move(where, "*.safetensors")),
            ValueError,
            r"weight_map: expected the name of .*, got '\*",
        ),
        (index(lambda where: move(where, INDEX)), ValueError, r"weight_map: expected the name of .*, got 'model"),
        (index(lambda where: move(where, 3)), ValueError, r"weight_map: expected the name of .*, got 3"),
        (index(lambda where: where.clear()), ValueError, r"weight_map: expected an object of .*, got {}"),
        (lambda folder: (folder / INDEX).write_text("[1]"), ValueError, r"weight_map: expected an object .*, got None"),
        (
            lambda folder: (folder / INDEX).write_text('{"weight'),
            ValueError,
            rf"{INDEX}: not valid JSON: expected an index",
        ),
        (
            lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe"),
            ValueError,
            rf"{INDEX}: not valid JSON: expected an",
        ),
    ],
)
def test_bad_shards_are_told_in_one_line(sharded, spoil, error, message):
    spoil(sharded)
    said = refusal(sharded, error)
    assert re.search(message, said), said


def test_a_pickled_shard_runs_no_code(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    with_code(folder)  # as pytorch_model.bin, without the whole file
    (folder / PICKLE).rename(folder / "pytorch_model-00001-of-00001.bin")
    (folder / PICKLE_INDEX).write_text(json.dumps({"weight_map": {"weight": "pytorch_model-00001-of-00001.bin"}}))
    assert "refused: expected tensors" in refusal(folder)
    assert not (folder / "hacked").exists()


@pytest.mark.parametrize("pickled", [False, True])
def test_shards_at_the_hub(plain, tmp_path, pickled):
    folder = shutil.copytree(plain, tmp_path / "model")
    shard(folder, pickled)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    more = {"model-00009-of-00009.safetensors": b"of no index", "onnx/model.onnx": b"x"}
    with in_place_of_the_hub(tmp_path / "cache") as hub:
        hub.commit("me/large", "main", files | more)
        model = GLiModern.from_pretrained("me/large", dtype="fp32")
        assert torch.equal(scores(model), scores(GLiModern.from_pretrained(plain, dtype="fp32")))
        assert {file.name for file in resolve_folder("me/large").iterdir()} == set(files)
        again = GLiModern.from_pretrained("me/large", dtype="fp32", local_files_only=True)
        assert torch.equal(scores(again), scores(model))
        missing = next(name for name in files if name.startswith(("model-0", "pytorch_model-0")))
        hub.commit("me/half", "main", {name: data for name, data in files.items() if name != missing})
        with pytest.raises(FileNotFoundError, match=rf"expected 2 shards beside it, got 1, without {missing}"):
            GLiModern.from_pretrained("me/half")
        bad = json.dumps({"weight_map": {"weight": "../../secret.bin"}}).encode()
        hub.commit("me/bad", "main", {**files, PICKLE_INDEX if pickled else INDEX: bad})
        with pytest.raises(ValueError, match="weight_map: expected the name of"):
            GLiModern.from_pretrained("me/bad")
