"""A user's files stay: one file, some files of a folder, or a whole folder are replaced whole or not at all."""

import contextlib
import json
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glimodern import LabelVectors
from glimodern.files import atomic as files
from glimodern.files.atomic import (
    atomic_file,
    atomic_folder,
    current_files,
    expand_user,
    replace_files,
    user_path,
    write_json,
)
from glimodern.model.glimodern import GLiModern
from tests.conftest import WORDS, make_tiny_model

MINE = {
    ".git/HEAD": "ref", ".gitattributes": "*.bin lfs", "README.md": "years", "onnx/model.onnx": "x", "data.bin": "y",
    "labels_tokenizer/notes.txt": "z", "model-backup.safetensors": "old",
}  # fmt: skip


@pytest.fixture(scope="module")
def old():
    return make_tiny_model(dropout=0.0, max_width=5)


def scores(model):
    with torch.no_grad():
        return model.scores(model.packer.pack([WORDS], [["person"]]))[0]


def loads(folder, *models):
    """Which of the models a folder holds, by its width and scores; it must be one of them as a whole."""
    model = GLiModern.from_pretrained(folder, dtype="fp32", trainable=True)
    matching = [one for one in models if one.config.max_width == model.config.max_width]
    assert len(matching) == 1 and torch.equal(scores(model), scores(matching[0]))
    return matching[0]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def all_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder, contents):
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# checkpoints in folders that hold other things


@pytest.mark.parametrize("first", ["others", "checkpoint"])
def test_saving_keeps_what_is_not_ours(tmp_path, tiny_model, old, first):
    if first == "checkpoint":
        old.save_pretrained(tmp_path / "repository")
    kept = {name: text for name, text in MINE.items() if first == "checkpoint" or not name.startswith("labels_tok")}
    put(tmp_path / "repository", kept)
    tiny_model.save_pretrained(tmp_path / "repository")
    held = all_files(tmp_path / "repository")
    assert {name: held[name].decode() for name in kept} == kept
    assert set(held) - set(kept) == {
        "fingerprint.json",
        "gliner_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    loads(tmp_path / "repository", tiny_model)


def test_what_an_older_checkpoint_leaves_goes(tmp_path, tiny_model, old):
    """Weights in another form would be read in place of the new ones, a tokenizer's other files beside them."""
    folder = tmp_path / "model"
    old.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    names = list(state)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, part in shards.items():
        save_file({name: state[name] for name in part}, folder / shard)
    where = {name: shard for shard, part in shards.items() for name in part}
    where["mine"] = "data.bin"  # a name that no shard of transformers has
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "pytorch_model.bin.index.json").write_text("half")
    put(folder, {"added_tokens.json": '{"person": 3}', "special_tokens_map.json": "{}", "data.bin": "mine"})
    put(folder, {"labels_tokenizer/tokenizer.json": "{}", "labels_tokenizer/tokenizer_config.json": "{}"})
    tiny_model.save_pretrained(folder)
    ours = {"fingerprint.json", "gliner_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(all_files(folder)) == ours | {"data.bin"}
    assert not (folder / "labels_tokenizer").exists()
    loads(folder, tiny_model)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "tokenizer.json", "pytorch_model.bin", "added_tokens.json", "labels_tokenizer/vocab.txt"],
)
def test_another_models_files_are_not_replaced(tmp_path, tiny_model, name):
    put(tmp_path / "bert", {name: "years", "config.json": "{}"})
    with pytest.raises(
        ValueError,
        match=rf"bert: expected no model or an older .*, got files of another model \({name.split('/')[0]}\)",
    ):
        tiny_model.save_pretrained(tmp_path / "bert")
    assert all_files(tmp_path / "bert") == {name: b"years", "config.json": b"{}"}


@pytest.mark.parametrize("place", ["gliner_config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_in_the_place_of_a_file(tmp_path, tiny_model, old, place):
    old.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / place).unlink()
    put(tmp_path / "model", {f"{place}/thesis.txt": "years"})
    before = all_files(tmp_path / "model")
    with pytest.raises((IsADirectoryError, ValueError), match="expected"):
        tiny_model.save_pretrained(tmp_path / "model")
    assert all_files(tmp_path / "model") == before


def test_a_file_in_the_place_of_the_folder(tmp_path, tiny_model):
    (tmp_path / "thesis.txt").write_text("years")
    for path in (tmp_path / "thesis.txt", tmp_path / "thesis.txt" / "model"):
        with pytest.raises(NotADirectoryError):
            tiny_model.save_pretrained(path)
    assert (tmp_path / "thesis.txt").read_text() == "years"


# paths of every kind


def test_the_working_directory_and_links(tmp_path, tiny_model, old, monkeypatch):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("not/yet")
    tiny_model.save_pretrained(f"{tmp_path}/link/")
    tiny_model.save_pretrained(tmp_path / "dangling")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    assert mode(tmp_path / "real") == 0o700
    for path in (tmp_path / "real", tmp_path / "not" / "yet"):
        loads(path, tiny_model)
    monkeypatch.chdir(tmp_path / "real")
    old.save_pretrained(".")
    loads(".", old)
    (tmp_path / "real" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "real" / "sub")
    tiny_model.save_pretrained("..")
    loads(Path(".."), tiny_model)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "not", "real"]


def test_home(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("~/model")
    model = GLiModern.from_pretrained("~/model", trainable=True)
    assert torch.equal(scores(model), scores(tiny_model)) and model.source[1] == tmp_path / "model"
    LabelVectors(("a",), torch.ones(1, 2), "m", "f").save("~/new/vectors")
    assert LabelVectors.load("~/new/vectors").labels == ("a",)
    tiny_model.encoder.config.save_pretrained(tmp_path / "encoder")
    with pytest.raises(FileNotFoundError, match=rf"encoder '{tmp_path}/encoder': expected weights .*, got none"):
        GLiModern.from_encoder("~/encoder")
    assert sorted(os.listdir(tmp_path)) == ["encoder", "model", "new"]
    assert expand_user("~nobody-of-this-name/x") == "~nobody-of-this-name/x"


class PathOf(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


def test_what_is_no_path(tmp_path, tiny_model):
    tiny_model.save_pretrained(PathOf(str(tmp_path / "model")))
    loads(PathOf(str(tmp_path / "model")), tiny_model)
    for call in (tiny_model.save_pretrained, GLiModern.from_pretrained, GLiModern.from_encoder, user_path):
        for path, error in (
            (None, TypeError),
            (3, TypeError),
            (b"x", TypeError),
            (PathOf(b"x"), TypeError),
            ("", ValueError),
            ("  ", ValueError),
        ):
            with pytest.raises(error, match=r"(folder|path|path_or_hub_id): expected a path"):
                call(path)
    with pytest.raises(TypeError, match="labels_encoder: expected a path"):
        GLiModern.from_encoder_config(tiny_model.encoder.config, tiny_model.tokenizer, labels_encoder=3)


def test_permissions_are_kept(tmp_path, tiny_model, old):
    before = os.umask(0o027)
    try:
        old.save_pretrained(tmp_path / "model")
        assert {mode(file) for file in (tmp_path / "model").iterdir()} == {0o640} and mode(tmp_path / "model") == 0o750
        (tmp_path / "model" / "model.safetensors").chmod(0o604)
        tiny_model.save_pretrained(tmp_path / "model")
        assert mode(tmp_path / "model" / "model.safetensors") == 0o604
        write_json(tmp_path / "a.json", 1)
        assert mode(tmp_path / "a.json") == 0o640
        for kept in (0o600, 0o664):
            (tmp_path / "a.json").chmod(kept)
            with atomic_file(tmp_path / "a.json") as partial:
                assert mode(partial) == 0o600  # nobody else reads a private file's new content meanwhile
                partial.write_text("2")
            assert mode(tmp_path / "a.json") == kept
    finally:
        os.umask(before)


def test_a_linked_weights_file_is_replaced_not_followed(tmp_path, tiny_model, old):
    """As in the hub's cache, whose snapshots are links to files that other revisions share."""
    old.save_pretrained(tmp_path / "model")
    shutil.move(tmp_path / "model" / "model.safetensors", tmp_path / "blob")
    (tmp_path / "model" / "model.safetensors").symlink_to("../blob")
    blob = (tmp_path / "blob").read_bytes()
    tiny_model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "blob").read_bytes() == blob
    loads(tmp_path / "model", tiny_model)


def test_what_is_the_same_is_not_touched(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "model")
    before = {file: file.stat().st_ino for file in (tmp_path / "model").iterdir()}
    tiny_model.save_pretrained(tmp_path / "model")
    assert {file: file.stat().st_ino for file in (tmp_path / "model").iterdir()} == before


def test_no_hard_links(tmp_path, tiny_model, old, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    old.save_pretrained(tmp_path / "model")
    tiny_model.save_pretrained(tmp_path / "model")
    loads(tmp_path / "model", tiny_model)
    assert not list((tmp_path / "model").glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_read_only(tmp_path, tiny_model, old):
    old.save_pretrained(tmp_path / "parent" / "model")
    (tmp_path / "parent").chmod(0o500)  # as a mount point, whose parent is another's
    try:
        tiny_model.save_pretrained(tmp_path / "parent" / "model")
        loads(tmp_path / "parent" / "model", tiny_model)
        (tmp_path / "parent" / "model" / "tokenizer.json").chmod(0o400)
        with pytest.raises(PermissionError, match="tokenizer.json: expected a file that may be written"):
            old.save_pretrained(tmp_path / "parent" / "model")
        loads(tmp_path / "parent" / "model", tiny_model)
    finally:
        (tmp_path / "parent").chmod(0o700)


def test_the_parent_is_not_written_to(tmp_path, tiny_model, old, monkeypatch):
    """So that a mount point will do."""
    old.save_pretrained(tmp_path / "model")
    for name in ("replace", "rename", "mkdir", "link"):
        real = getattr(os, name)

        def inside(*paths, real=real, **options):
            assert all(tmp_path / "model" in Path(path).parents for path in paths if isinstance(path, (str, Path)))
            return real(*paths, **options)

        monkeypatch.setattr(os, name, inside)
    tiny_model.save_pretrained(tmp_path / "model")
    monkeypatch.undo()
    loads(tmp_path / "model", tiny_model)


# crashes


class Crash(BaseException):
    """What nobody catches, as a killed process."""


@pytest.fixture
def crashing(monkeypatch):
    """Has the n-th step that changes the disk, and all after it, fail; returns how many there were before."""

    def arm(step):
        done = [0]
        for module, name in (
            (os, "replace"),
            (os, "rename"),
            (os, "link"),
            (os, "unlink"),
            (shutil, "rmtree"),
            (os, "mkdir"),
        ):
            real = getattr(module, name)

            def count(*arguments, real=real, **options):
                done[0] += 1
                if done[0] > step:
                    raise Crash
                return real(*arguments, **options)

            monkeypatch.setattr(module, name, count)
        return done

    return arm


@pytest.mark.parametrize("links", [True, False])
def test_a_crash_at_any_step_leaves_a_whole_checkpoint(tmp_path, tiny_model, old, crashing, monkeypatch, links):
    """With stale files too, so that every kind of step is there; and the next save leaves nothing behind."""
    old.save_pretrained(tmp_path / "old")
    tiny_model.save_pretrained(tmp_path / "new")
    whole = {name: all_files(tmp_path / name) for name in ("old", "new")}
    put(tmp_path / "old", {"pytorch_model.bin": "x", "labels_tokenizer/tokenizer.json": "{}", "thesis.txt": "years"})
    seen = []
    for step in range(60):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(step))
        done = crashing(step)
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: os.stat("/no/such/file"))
        with contextlib.suppress(Crash):
            tiny_model.save_pretrained(folder)
        monkeypatch.undo()
        held = all_files(current_files(folder))
        seen.append("old" if whole["old"].items() <= held.items() else "new")
        assert whole[seen[-1]].items() <= held.items()
        if current_files(folder) != folder and seen.count("new") < 3:
            loads(folder, tiny_model)
        last = done[0] <= step
        if not last:
            old.save_pretrained(folder)
        assert all_files(folder) == whole["new" if last else "old"] | {"thesis.txt": b"years"}
        if last:
            break
    else:
        pytest.fail("more steps than expected")
    assert "old" in seen and seen == sorted(seen, reverse=True)  # one moment decides


def test_an_error_leaves_all_as_it_was(tmp_path, tiny_model, old, monkeypatch):
    old.save_pretrained(tmp_path / "model")
    before = all_files(tmp_path / "model")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(type(tiny_model.tokenizer), "save_pretrained", fail)
    for folder in ("model", "fresh"):
        with pytest.raises(OSError, match="disk full"):
            tiny_model.save_pretrained(tmp_path / folder)
    assert all_files(tmp_path / "model") == before and os.listdir(tmp_path) == ["model"]


def test_two_at_a_time_take_turns(tmp_path, tiny_model, old):
    with ThreadPoolExecutor(6) as threads:
        saves = [threads.submit(model.save_pretrained, tmp_path / "model") for model in (tiny_model, old) * 3]
    for save in saves:
        save.result()  # none failed
    loads(tmp_path / "model", tiny_model, old)
    assert not list((tmp_path / "model").glob(".*"))


def test_read_while_it_is_replaced(tmp_path, tiny_model, old, monkeypatch):
    """A reader that has the old config when the new files come reads again."""
    from glimodern.checkpoint import folder as checkpoint

    old.save_pretrained(tmp_path / "model")
    read = checkpoint.weights_file
    saves = [tiny_model]

    def meanwhile(folder):
        if saves:
            saves.pop().save_pretrained(tmp_path / "model")
        return read(folder)

    monkeypatch.setattr(checkpoint, "weights_file", meanwhile)
    assert loads(tmp_path / "model", tiny_model, old) is tiny_model


def test_read_again_after_an_error_of_old_and_new_files(tmp_path, tiny_model, old, monkeypatch):
    """And an error of files that did not change is raised."""
    from glimodern.checkpoint import folder as checkpoint

    old.save_pretrained(tmp_path / "model")
    read, saves = checkpoint.weights_file, [tiny_model]

    def meanwhile(folder):
        if saves:
            saves.pop().save_pretrained(tmp_path / "model")
            raise ValueError("config and weights are not of one model")
        return read(folder)

    monkeypatch.setattr(checkpoint, "weights_file", meanwhile)
    assert loads(tmp_path / "model", tiny_model, old) is tiny_model
    (tmp_path / "model" / "gliner_config.json").write_text("half")
    with pytest.raises(ValueError, match="not valid JSON"):
        GLiModern.from_pretrained(tmp_path / "model")


def test_a_checkpoint_that_keeps_changing_is_an_error(tmp_path, tiny_model, monkeypatch):
    from glimodern.checkpoint import folder as checkpoint

    tiny_model.save_pretrained(tmp_path / "model")
    stamps = iter(range(99))
    monkeypatch.setattr(checkpoint, "_stamp", lambda folder: next(stamps))
    with pytest.raises(OSError, match="model: expected a checkpoint that does not change during reading"):
        GLiModern.from_pretrained(tmp_path / "model")


def test_a_file_that_may_not_be_written_leaves_all_as_it_was(tmp_path, tiny_model, old, monkeypatch):
    """As root may write anything, the system's answer is replaced."""
    old.save_pretrained(tmp_path / "model")
    before, access = all_files(tmp_path / "model"), os.access
    monkeypatch.setattr(os, "access", lambda path, *mode: Path(path).name != "tokenizer.json" and access(path, *mode))
    with pytest.raises(PermissionError, match="tokenizer.json: expected a file that may be written, got a read-only"):
        tiny_model.save_pretrained(tmp_path / "model")
    assert all_files(tmp_path / "model") == before


# the parts


def test_a_file_in_the_place_of_a_folder_inside(tmp_path):
    put(tmp_path, {"sub": "mine"})
    with pytest.raises(NotADirectoryError, match="sub: expected a folder or nothing, got a file; move it away"):
        with replace_files(tmp_path, lambda *_: [], last="a") as staged:
            put(staged, {"a": "1", "sub/c": "3"})
    assert all_files(tmp_path) == {"sub": b"mine"}


def test_current_files(tmp_path):
    assert current_files(tmp_path) == tmp_path
    with replace_files(tmp_path, lambda *_: [], last="b") as staged:
        put(staged, {"a": "1", "b": "2", "sub/c": "3"})
        assert current_files(tmp_path) == tmp_path
    assert all_files(tmp_path) == {"a": b"1", "b": b"2", "sub/c": b"3"}


def test_the_last_file_is_replaced_last(tmp_path, monkeypatch):
    """By it a reader sees that the others are there: a checkpoint's config."""
    order, replace = [], os.replace

    def record(source, target):
        order.append(Path(target).name)
        replace(source, target)

    for content in ("old", "new"):
        with replace_files(tmp_path, lambda *_: [], last="b") as staged:
            put(staged, {"a": content, "b": content, "c": content, "sub/b": content})
            monkeypatch.setattr(os, "replace", record)
        monkeypatch.undo()
    assert len(order) == 8 and order[3] == order[7] == "b" and order[:2] == order[4:6] == ["a", "c"]


def test_files_that_differ_anywhere_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK", 4)
    for content in ("aaaabbbbcc", "aaaabbbbcx", "aaaaxbbbcx", "xaaaxbbbcx", "xaaaxbbb", "xaaaxbbbcxcc", ""):
        with replace_files(tmp_path, lambda *_: [], last="a") as staged:
            put(staged, {"a": content})
        assert all_files(tmp_path) == {"a": content.encode()}


def test_atomic_file(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    for content in ("first", "second"):
        with atomic_file(tmp_path / "link") as partial:
            partial.write_text(content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_text() == content
    with pytest.raises(RuntimeError, match="crash"), atomic_file(tmp_path / "link") as partial:
        partial.write_text("half")
        raise RuntimeError("crash")
    assert (tmp_path / "link").read_text() == "second" and os.listdir(tmp_path / "real") == ["file"]
    write_json(tmp_path / "new" / "folder" / "x.json", {"a": Path("b")})
    assert (tmp_path / "new" / "folder" / "x.json").read_text() == '{\n "a": "b"\n}\n'
    with pytest.raises(IsADirectoryError, match="file: expected a file to write to, got the folder"):
        write_json(tmp_path, 1)
    write_json(tmp_path / ("x" * 250 + ".json"), 1)  # the longest name that file systems take, or nearly


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_json(tmp_path / "pipe", [1])
    reader.join()
    assert json.loads(got[0]) == [1] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_atomic_folder(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("old")
    (tmp_path / "target").chmod(0o700)
    with pytest.raises(RuntimeError, match="crash"), atomic_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError("crash")
    assert (tmp_path / "link" / "a").read_text() == "old"
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "b").write_text("new")
    assert os.listdir(tmp_path / "target") == ["b"] and mode(tmp_path / "target") == 0o700
    assert sorted(os.listdir(tmp_path)) == ["link", "target"] and (tmp_path / "link").is_symlink()
    with pytest.raises(NotADirectoryError, match="folder: expected a folder to write, got the file"):
        with atomic_folder(tmp_path / "target" / "b"):
            pass


def test_a_folder_comes_back_if_its_successor_does_not_come(tmp_path, monkeypatch):
    put(tmp_path / "target", {"a": "old"})
    replace = os.replace

    def fail(source, target):
        if (Path(source) / "b").exists():
            raise OSError("no room")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no room"), atomic_folder(tmp_path / "target") as folder:
        (folder / "b").write_text("new")
    assert all_files(tmp_path) == {"target/a": b"old"} and os.listdir(tmp_path) == ["target"]


def test_what_is_written_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    """Else a power failure leaves an empty file under the name."""
    flushed, fsync = set(), os.fsync

    def record(handle):
        flushed.add(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    names = {}
    for module, name in ((os, "replace"), (os, "rename")):
        real = getattr(module, name)

        def move(source, target, real=real):
            places = [Path(source), *Path(source).rglob("*")]
            names[Path(target).name] = all(place.stat().st_ino in flushed for place in places)
            real(source, target)

        monkeypatch.setattr(module, name, move)
    write_json(tmp_path / "file.json", 1)
    with atomic_folder(tmp_path / "folder") as folder:
        put(folder, {"a": "1", "sub/b": "2"})
    with replace_files(tmp_path / "files", lambda *_: [], last="b") as staged:
        put(staged, {"a": "1", "sub/b": "2"})
    assert {name for name, whole in names.items() if whole} >= {"file.json", "folder", ".glimodern-new", "a", "b"}


def test_labels_vectors_through_a_link(tmp_path):
    vectors = LabelVectors(("a", "b"), torch.ones(2, 3), "m", "f")
    (tmp_path / "link").symlink_to("vectors")
    vectors.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    loaded = LabelVectors.load(tmp_path / "link")
    (tmp_path / "vectors").write_bytes(b"")  # what was read is no map of the file
    assert torch.equal(loaded.vectors, vectors.vectors) and files.user_path("~x/") == Path("~x")
