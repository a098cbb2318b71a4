"""Loading without transformers: stored configs and tokenizers are read as transformers reads them, or left to it."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from encoder_rows import TEXTS, make_tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast

from glimodern.encoder import build_encoder
from glimodern.encoder.modernbert_settings import completed_settings
from glimodern.files.stored_tokenizer import StoredTokenizer, read_stored_tokenizer, whole_tokenizer
from glimodern.files.tokenizer import load_tokenizer
from glimodern.model.glimodern import GLiModern

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SMALL = {
    "model_type": "modernbert", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A byte-level tokenizer with prompt tokens, stored as a GLiModern checkpoint stores it."""
    backend = make_tokenizer("byte-level").backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, **SPECIAL)
    tokenizer.add_tokens(["<<ENT>>", "<<SEP>>"], special_tokens=True)
    path = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tokenizer"))


def edit(folder: Path, name: str = "tokenizer_config.json", drop: str | None = None, **fields: Any) -> None:
    content = json.loads((folder / name).read_text()) | fields
    content.pop(drop, None)
    (folder / name).write_text(json.dumps(content))


def list_tokens(folder: Path, **changed: Any) -> None:
    """List the added tokens in the config as transformers 4 did. changed: flags of the first."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    listed = {str(token.pop("id")): token for token in added}
    listed["0"] |= changed
    edit(folder, added_tokens_decoder=listed)


PADDING = {
    "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[PAD]",
}  # fmt: skip
READ = {
    "as stored": lambda folder: None,
    "as transformers 4 stored it": lambda folder: (
        list_tokens(folder), edit(folder, tokenizer_class="PreTrainedTokenizerFast")),
    "more special tokens": lambda folder: edit(folder, additional_special_tokens=["<<ENT>>", "<<SEP>>"]),
    "a token of the model's own": lambda folder: edit(folder, entity_token="<<ENT>>"),
    "no limit": lambda folder: edit(folder, drop="model_max_length"),
    "no unknown token": lambda folder: edit(folder, drop="unk_token"),
    "a padding token of the file's": lambda folder: (
        edit(folder, drop="pad_token"), edit(folder, "tokenizer.json", padding=PADDING)),
    "named tokens that the file has": lambda folder: edit(folder, model_specific_special_tokens={"entity": "<<ENT>>"}),
    "a padding side": lambda folder: edit(folder, padding_side="left", clean_up_tokenization_spaces=True),
}  # fmt: skip


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_plain_tokenizers_are_read_as_transformers_reads_them(folder, change):
    change(folder)
    ours, theirs = read_stored_tokenizer(folder), load_tokenizer(str(folder))
    assert isinstance(ours, StoredTokenizer)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert (len(ours), ours.model_max_length, ours.unk_token_id) == (
        len(theirs), theirs.model_max_length, theirs.unk_token_id)  # fmt: skip
    for token in ("<<ENT>>", "[CLS]", "nowhere"):
        assert ours.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)


LEFT = {
    "another class": lambda folder: edit(folder, tokenizer_class="BertTokenizer"),
    "no class": lambda folder: edit(folder, drop="tokenizer_class"),
    "a bos token": lambda folder: edit(folder, bos_token="[CLS]"),
    "an empty bos token": lambda folder: edit(folder, bos_token=""),
    "an eos token": lambda folder: edit(folder, eos_token={"content": "[SEP]", "special": True}),
    "bos refused": lambda folder: edit(folder, add_bos_token=False),
    "special tokens split": lambda folder: edit(folder, split_special_tokens=True),
    "code": lambda folder: edit(folder, auto_map={"AutoTokenizer": ["a.B", None]}),
    "another limit": lambda folder: edit(folder, model_max_length=1e3),
    "a limit under its old name": lambda folder: edit(folder, drop="model_max_length", max_len=64),
    "another file": lambda folder: edit(folder, tokenizer_file="other.json"),
    "an unknown side": lambda folder: edit(folder, padding_side="up"),
    "a padding token that the file lacks": lambda folder: (
        edit(folder, drop="pad_token"),
        edit(folder, "tokenizer.json", padding=PADDING | {"pad_token": "<pad>"}),
    ),
    "a token of another type": lambda folder: edit(folder, cls_token=["[CLS]"]),
    "a token without content": lambda folder: edit(folder, image_token={"lstrip": True}),
    "a text in place of a list": lambda folder: edit(folder, extra_special_tokens="[CLS]"),
    "model-specific tokens that the file lacks": lambda folder: edit(
        folder, model_specific_special_tokens={"image_token": "<img>"}
    ),
    "a special token that the file lacks": lambda folder: edit(folder, mask_token="[MASK]"),
    "a token of the model's own that the file lacks": lambda folder: edit(folder, image_token="<img>"),
    "more special tokens than the file has": lambda folder: edit(folder, additional_special_tokens=["<a>"]),
    "named special tokens": lambda folder: edit(folder, extra_special_tokens={"image_token": "<img>"}),
    "another flag": lambda folder: list_tokens(folder, lstrip=True),
    "a token that is listed but not there": lambda folder: list_tokens(folder, content="[NIL]"),
    "special tokens that are not listed": lambda folder: edit(folder, added_tokens_decoder={}),
    "files of old": lambda folder: (folder / "special_tokens_map.json").write_text("{}"),
    "added tokens of old": lambda folder: (folder / "added_tokens.json").write_text("{}"),
    "a model's config": lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
    "a chat's template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    "more templates of chats": lambda folder: (folder / "additional_chat_templates").mkdir(),
    "no post-processor": lambda folder: edit(folder, "tokenizer.json", post_processor=None),
    "one file": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "a list": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
}


@pytest.mark.parametrize("change", LEFT.values(), ids=LEFT)
def test_other_tokenizers_are_left_to_transformers(folder, change):
    change(folder)
    assert read_stored_tokenizer(folder) is None


def test_transformers_tokenizer_is_there_when_asked_for(folder, tmp_path):
    theirs, ours = load_tokenizer(str(folder)), read_stored_tokenizer(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.rmtree(folder)
    whole = whole_tokenizer(ours)
    assert isinstance(whole, PreTrainedTokenizerFast) and whole.name_or_path == str(folder)
    assert [whole(" ".join(words)).input_ids for words in TEXTS] == [
        theirs(" ".join(words)).input_ids for words in TEXTS
    ]
    whole.save_pretrained(tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    assert whole_tokenizer(whole) is whole


def test_all_who_hold_a_stored_tokenizer_get_the_same_one(folder):
    ours = read_stored_tokenizer(folder)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(whole_tokenizer, [ours] * 4))
    assert all(tokenizer is whole_tokenizer(ours) for tokenizer in found)
    copied = pickle.loads(pickle.dumps(ours))
    assert copied.whole() is not ours.whole() and copied.whole().get_vocab() == ours.whole().get_vocab()


def test_a_checkpoint_predicts_and_is_saved_again(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "first")
    program = f"""
import sys
from glimodern import GLiModern
model = GLiModern.from_pretrained({str(tmp_path / "first")!r})
model.predict("Ada Lovelace met Charles Babbage in London.", ["person", "city"])
heavy = [name for name in ("transformers", "torch._dynamo", "sympy", "huggingface_hub") if name in sys.modules]
assert not heavy, heavy
model.save_pretrained({str(tmp_path / "second")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    for name in ("gliner_config.json", "tokenizer.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name


def test_tokens_that_a_user_adds_are_saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "first")
    model = GLiModern.from_pretrained(tmp_path / "first")
    assert model.tokenizer is model.tokenizer
    model.tokenizer.model_max_length = 77
    model.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "tokenizer_config.json").read_text())["model_max_length"] == 77


WHOLE = AutoConfig.for_model(**SMALL).to_dict()


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in WHOLE.items() if name not in names}


def test_a_whole_config_is_read_without_transformers(monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("transformers was asked")

    monkeypatch.setattr(AutoConfig, "for_model", fail)
    settings = completed_settings(WHOLE | {"vocab_size": 44, "of_mine": 1})
    assert settings.to_dict() == WHOLE | {"vocab_size": 44, "of_mine": 1}
    assert (settings.layer_types, settings.norm_eps) == (WHOLE["layer_types"], 1e-5)
    assert settings.rope_parameters["full_attention"]["rope_theta"] == 160_000


OLD_TYPES = {
    "full_attention": {"type": "default", "rope_theta": 3e4},
    "sliding_attention": {"type": "linear", "rope_theta": 3e4, "factor": 2.0},
}
OTHER = {
    "few fields": SMALL,
    "old names": without("rope_parameters", "layer_types")
    | {"global_rope_theta": 8e4, "local_rope_theta": 5e3, "global_attn_every_n_layers": 2},
    "one rotary base": without() | {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 3e4}}},
    "no rotary bases": without() | {"rope_parameters": None},
    "rotary types under their old name": without() | {"rope_parameters": OLD_TYPES},
    "a window in place of local_attention": without() | {"sliding_window": 8},
    "no layer types": without("layer_types"),
    **{f"no {name}": without(name) for name in ("norm_eps", "local_attention", "mlp_bias", "pad_token_id")},
}


@pytest.mark.parametrize("config", OTHER.values(), ids=OTHER)
def test_other_configs_are_completed_by_transformers(config):
    before = json.dumps(config)
    settings, theirs = completed_settings(config), AutoConfig.for_model(**json.loads(before)).to_dict()
    assert settings.to_dict() == theirs and json.dumps(config) == before
    assert settings.rope_parameters == theirs["rope_parameters"] and settings.layer_types == theirs["layer_types"]


BAD = {
    "hidden_size": 0, "vocab_size": -3, "num_attention_heads": True, "attention_dropout": 2.0, "norm_eps": "small",
    "layer_types": "full_attention", "rope_parameters": 3, "hidden_activation": 1, "local_attention": 1.5,
    "mlp_bias": "no", "num_hidden_layers": 0, "pad_token_id": 40,
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused(name):
    with pytest.raises((ValueError, TypeError), match=name):
        build_encoder(WHOLE | {name: BAD[name]})


def test_a_rotary_scaling_under_its_old_name_is_refused():
    with pytest.raises(ValueError, match="rope_parameters.*got 'linear'"):
        build_encoder(WHOLE | {"rope_parameters": OLD_TYPES})


@pytest.mark.parametrize("base", [3, "rope_theta", ["rope_theta"]])
def test_rotary_bases_of_another_type_are_refused(base):
    bases = {"full_attention": base, "sliding_attention": base}
    with pytest.raises(ValueError, match="rope_parameters"):
        build_encoder(WHOLE | {"rope_parameters": bases})


@pytest.mark.parametrize("theta", [None, 0, -1e4, "1e4", True, float("nan")])
def test_rotary_bases_are_positive_numbers(theta):
    bases = {**WHOLE["rope_parameters"], "full_attention": {"rope_type": "default", "rope_theta": theta}}
    with pytest.raises(ValueError, match="rope_theta: expected a number > 0"):
        build_encoder(WHOLE | {"rope_parameters": bases})


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="hidden_activation: .*got 'nope'"):
        build_encoder(WHOLE | {"hidden_activation": "nope"})


def test_the_config_of_an_encoder_is_transformers_own():
    encoder = build_encoder(WHOLE | {"vocab_size": 44})
    encoder.resize_token_embeddings(47)
    assert encoder.config.to_dict() == WHOLE | {"vocab_size": 47} and encoder.model_type == "modernbert"
    assert build_encoder(encoder.config).config.to_dict() == encoder.config.to_dict()
