"""Names of the hub: loading from its cache with no network, and a real upload and download against a fake hub."""

import re
import shutil

import pytest
import torch
import yaml

from glimodern.files.hub import HubAccess, is_hub_name, resolve_folder
from glimodern.model.glimodern import GLiModern
from tests.conftest import WORDS, make_tiny_model
from tests.fake_hub import in_place_of_the_hub

TEXT = "Ada Lovelace met Charles Babbage in London ."
LABELS = ["person", "place"]
FIRST, SECOND = "1" * 40, "2" * 40


def scores(model):
    with torch.no_grad():
        return model.scores(model.packer.pack([WORDS], [LABELS]))[0]


@pytest.fixture(scope="module")
def cached(tmp_path_factory, tiny_model):
    """A hub cache as huggingface_hub lays it out: two commits of me/tiny, branch main, tag v1, and one encoder."""
    cache = tmp_path_factory.mktemp("cache")
    repository = cache / "models--me--tiny"
    other = make_tiny_model(dropout=0.0, max_width=4)
    for sha, model in ((FIRST, tiny_model), (SECOND, other)):
        model.save_pretrained(repository / "snapshots" / sha)
    for ref, sha in {"main": SECOND, "v1": FIRST, "refs/pr/3": FIRST}.items():
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(sha)
    encoder = cache / "models--me--encoder"
    (encoder / "refs").mkdir(parents=True)
    (encoder / "refs" / "main").write_text(FIRST)
    snapshot = encoder / "snapshots" / FIRST
    tiny_model.encoder.config.save_pretrained(snapshot)
    tiny_model.tokenizer.save_pretrained(snapshot)
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in tiny_model.encoder.model.state_dict().items()}
    save_file(state, snapshot / "model.safetensors", metadata={"format": "pt"})
    return cache


@pytest.mark.parametrize(
    ("revision", "width"), [(None, 4), ("main", 4), ("v1", 6), ("refs/pr/3", 6), (FIRST, 6), (SECOND, 4)]
)
@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
def test_offline_by_revision(cached, monkeypatch, revision, width, how):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    model = GLiModern.from_pretrained(
        "me/tiny", revision=revision, cache_dir=cached, local_files_only=how == "local_files_only", dtype="fp32"
    )
    assert model.config.max_width == width
    assert model.source == ("me/tiny", cached / "models--me--tiny" / "snapshots" / (FIRST if width == 6 else SECOND))


def test_the_cache_of_the_environment(cached, monkeypatch, tiny_model):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cached))
    model = GLiModern.from_pretrained("me/tiny", revision="v1", dtype="fp32")
    torch.testing.assert_close(scores(model), scores(tiny_model))
    assert model.check_precision([TEXT], LABELS).agreement == 1.0  # from the same snapshot, whatever main is by then


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("me/other", {}, r"checkpoint 'me/other': no such folder here.*'main' \(the cache .* has no revision of it\)"),
        ("me/tiny", {"revision": "v2"}, r"at revision 'v2' .* has its revisions main, refs/pr/3, v1\)"),
        ("me/tiny", {"revision": "3" * 40}, r"at revision '3{40}' .* has its revisions main"),
        ("./me/tiny", {}, r"'\./me/tiny': no such folder \(and not a hub name"),
        ("tiny", {}, r"'tiny': no such folder \(and not a hub name of the form owner/name\)"),
    ],
)
def test_what_is_not_there(cached, name, options, message):
    with pytest.raises(FileNotFoundError, match=message):
        GLiModern.from_pretrained(name, cache_dir=cached, local_files_only=True, **options)


def test_a_folder_has_no_revisions(cached):
    folder = cached / "models--me--tiny" / "snapshots" / FIRST
    with pytest.raises(ValueError, match="revision: expected None for the local folder .*, got 'v1'"):
        GLiModern.from_pretrained(folder, revision="v1")
    with pytest.raises(ValueError, match="revision: expected None for the local folder .*, got 'v1'"):
        GLiModern.from_encoder(cached / "models--me--encoder" / "snapshots" / FIRST, revision="v1")
    with pytest.raises(TypeError, match="unexpected keyword argument 'revison'"):
        GLiModern.from_pretrained(folder, revison="v1")


def test_encoders_by_name(cached, tiny_model):
    model = GLiModern.from_encoder("me/encoder", cache_dir=cached, local_files_only=True, hidden_size=16)
    assert model.config.hidden_size == 16 and model.config.model_name == "me/encoder"
    for name, tensor in tiny_model.encoder.model.state_dict().items():
        if "tok_embeddings" not in name:
            torch.testing.assert_close(model.encoder.model.state_dict()[name], tensor)
    for revision in ("main", FIRST):
        again = GLiModern.from_encoder("me/encoder", cache_dir=cached, revision=revision)  # HF_HUB_OFFLINE is set
        assert again.config.model_name == "me/encoder"
    with pytest.raises(FileNotFoundError, match=r"encoder 'me/none': no such folder here.* has no revision of it"):
        GLiModern.from_encoder("me/none", cache_dir=cached, local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"encoder 'me/encoder'.* at revision 'v9'"):
        GLiModern.from_encoder("me/encoder", cache_dir=cached, local_files_only=True, revision="v9")


def test_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_name("me/tiny") and is_hub_name("bert-base-uncased")
    for name in ("", "./me/tiny", "/me/tiny", "~/tiny", "a/b/c", "runs", "runs/mine", "two words"):
        assert not is_hub_name(name)


def test_the_token_is_not_shown():
    assert "secret" not in repr(HubAccess(token="secret"))


# pushing


@pytest.fixture
def online(tmp_path):
    with in_place_of_the_hub(tmp_path / "cache") as hub:
        yield hub


def test_push_and_pull(online, tiny_model, monkeypatch, capsys):
    address = tiny_model.push_to_hub("me/new", labels=["ship", "captain"], metadata={"license": "mit"}, token="hf_mine")
    assert re.fullmatch(r"http://127.0.0.1:\d+/me/new/commit/[0-9a-f]{40}", address)
    assert online.tokens == {"Bearer hf_mine"}
    files = online.repositories["me/new"]["main"]
    assert {"gliner_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)

    loaded = GLiModern.from_pretrained("me/new", dtype="fp32", token=False)
    torch.testing.assert_close(scores(loaded), scores(tiny_model))

    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "glimodern" and metadata["license"] == "mit"
    assert {"gliner", "zero-shot"} <= set(metadata["tags"]) and "base_model" not in metadata
    assert "['ship', 'captain']" in card
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    exec(program.replace("captain']", "captain'], threshold=0.0"))
    assert "Lovelace" in capsys.readouterr().out

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.testing.assert_close(scores(GLiModern.from_pretrained("me/new", dtype="fp32")), scores(tiny_model))


def test_a_readme_is_never_overwritten(online, tiny_model, tmp_path):
    online.commit("me/mine", "main", {"README.md": b"years of work"})
    tiny_model.push_to_hub("me/mine", commit_message="Better")
    assert online.repositories["me/mine"]["main"]["README.md"] == b"years of work"
    assert online.commits[-1] == ("me/mine", "main", "Better")
    tiny_model.push_to_hub("me/new", labels=["ship"])
    first = online.repositories["me/new"]["main"]["README.md"]
    tiny_model.push_to_hub("me/new", labels=["captain"])
    assert online.repositories["me/new"]["main"]["README.md"] == first

    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    tiny_model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "mine"


def test_files_of_an_older_checkpoint_go(online, tiny_model, tmp_path):
    """Else a tokenizer's stale file would be read with the new one's; other files stay."""
    stale = dict.fromkeys(["added_tokens.json", "model-1-of-2.safetensors", "labels_tokenizer/tokenizer.json"], b"{}")
    theirs = {"data/vocab.txt": b"a", "onnx/model.onnx": b"b", "config.json": b"{}"}
    online.commit("me/first", "main", {**stale, **theirs})
    tiny_model.push_to_hub("me/first")  # no checkpoint of ours was there
    assert {*stale, *theirs} <= set(online.repositories["me/first"]["main"])
    tiny_model.push_to_hub("me/first")
    files = online.repositories["me/first"]["main"]
    assert not set(stale) & set(files) and set(theirs) <= set(files)
    tiny_model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} <= set(files)


def test_branches_and_pull_requests(online, tiny_model):
    tiny_model.push_to_hub("me/new", revision="next", private=True)
    assert "model.safetensors" in online.repositories["me/new"]["next"]
    assert "model.safetensors" not in online.repositories["me/new"]["main"]
    assert online.created[0]["visibility" if "visibility" in online.created[0] else "private"] in ("private", True)
    assert GLiModern.from_pretrained("me/new", revision="next").config.max_width == 6
    with pytest.raises(FileNotFoundError, match="no gliner_config.json"):
        GLiModern.from_pretrained("me/new")
    with pytest.raises(FileNotFoundError, match="at revision 'v7'"):
        GLiModern.from_pretrained("me/new", revision="v7")
    assert tiny_model.push_to_hub("me/new", create_pr=True).endswith("/me/new/discussions/1")
    assert "model.safetensors" in online.repositories["me/new"]["refs/pr/1"]
    with pytest.raises(ValueError, match="revision: expected None with create_pr, .* got 'next'"):
        tiny_model.push_to_hub("me/new", create_pr=True, revision="next")


def test_wrong_labels_reach_no_hub(online, tiny_model):
    with pytest.raises(TypeError, match="labels: expected an iterable of strings.*, got the string 'ship'"):
        tiny_model.push_to_hub("me/new", labels="ship")
    assert online.repositories == {}


def test_the_public_package_loads_what_is_pushed(online, tiny_model):
    gliner = pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    tiny_model.push_to_hub("me/new")
    public = gliner.GLiNER.from_pretrained("me/new")
    wanted = tiny_model.predict(TEXT, LABELS, 0.0)[0]
    got = public.predict_entities(TEXT, LABELS, threshold=0.0)
    assert [(e["start"], e["label"]) for e in got] == [(e["start"], e["label"]) for e in wanted] != []


def test_base_model(online, tiny_model, cached):
    encoder = cached / "models--me--encoder"
    files = {path.name: path.read_bytes() for path in (encoder / "snapshots" / FIRST).iterdir()}
    online.commit("me/encoder", "main", files)
    GLiModern.from_encoder("me/encoder", revision="main").push_to_hub("me/fresh", metadata={"tags": ["law"]})
    metadata = yaml.safe_load(online.repositories["me/fresh"]["main"]["README.md"].decode().split("---")[1])
    assert metadata["base_model"] == "me/encoder" and {"gliner", "law"} <= set(metadata["tags"])
    tiny_model.push_to_hub("me/new")
    again = GLiModern.from_pretrained("me/new", trainable=True)
    again.push_to_hub("me/finer")
    assert "base_model: me/new" in online.repositories["me/finer"]["main"]["README.md"].decode()
    del online.repositories["me/new"]
    again.push_to_hub("me/new")  # not a model of itself
    assert "base_model" not in online.repositories["me/new"]["main"]["README.md"].decode()


@pytest.mark.filterwarnings("ignore:.*texts are longer", "ignore:.*int8 against fp32")
def test_int8_leaves_no_empty_repository(online, tiny_model, tmp_path):
    from glimodern import ops

    if ops.backend_info("cpu")["linear_packed"]["isa"] in ("", "scalar"):
        pytest.skip("int8 needs the C++ extension on a CPU with AVX2")
    tiny_model.save_pretrained(tmp_path / "model")
    model = GLiModern.from_pretrained(tmp_path / "model", dtype="int8")
    with pytest.raises(ValueError, match="dtype: expected at least 97 % agreement on some entities, got int8"):
        model.push_to_hub("me/new")
    with pytest.raises(ValueError, match="dtype: expected at least 97 % agreement on some entities, got int8"):
        tiny_model.push_to_hub("me/new", dtype="int8")
    assert online.repositories == {}
    with pytest.warns(UserWarning, match="saved because of force=True"):
        tiny_model.push_to_hub("me/new", dtype="int8", force=True)
    files = online.repositories["me/new"]["main"]
    assert "model.int8.safetensors" in files and "model.safetensors" not in files
    card = files["README.md"].decode()
    assert "Only glimodern reads its weights" in card and "| weights | int8 against fp32, 12 texts" in card
    again = GLiModern.from_pretrained("me/new")
    assert again.dtype_name == "int8"
    assert again.predict("Ada met Charles", ["person"], 0.0) == model.predict("Ada met Charles", ["person"], 0.0)


def test_only_what_is_needed_is_fetched(online, tiny_model, tmp_path):
    tiny_model.push_to_hub("me/new")
    online.commit("me/new", "main", {"onnx/model.onnx": b"x", "pytorch_model.bin": b"x", "onnx/config.json": b"{}"})
    names = {path.name for path in resolve_folder("me/new").rglob("*")}
    assert "model.safetensors" in names and not names & {"model.onnx", "pytorch_model.bin", "onnx"}

    tiny_model.save_pretrained(tmp_path / "old")
    state = tmp_path / "old" / "pytorch_model.bin"
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "old" / "model.safetensors"), state)
    (tmp_path / "old" / "model.safetensors").unlink()
    online.commit("me/old", "main", {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()})
    shutil.rmtree(tmp_path / "old")
    torch.testing.assert_close(scores(GLiModern.from_pretrained("me/old", dtype="fp32")), scores(tiny_model))
