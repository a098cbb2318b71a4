"""Defaults of configs, and configs of old versions of the public package, with a warning if there is a choice."""

import ast
import inspect
import json
import re
import warnings
from dataclasses import fields

import pytest
import torch

from glimodern import GLiModern
from glimodern.checkpoint.config import PUBLIC_DEFAULTS, HeadConfig, HeadOptions, read_config
from glimodern.checkpoint.legacy import upgrade_fields
from glimodern.model.glimodern import MAX_LEN
from glimodern.train.config import DataConfig, EncoderConfig
from tests.conftest import WORDS, make_tiny_model

LABELS = ["person", "place"]


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, **fields):
    """Other values in the config; a field of the value `...` goes."""
    file = folder / "gliner_config.json"
    stored = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({name: value for name, value in stored.items() if value is not ...}))


def quietly(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_config(folder)


def help_texts(settings):
    """The text under each field of a settings class."""
    (definition,) = ast.parse(inspect.getsource(settings)).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def test_the_help_of_training_states_the_defaults_of_a_fresh_head():
    texts = help_texts(EncoderConfig)
    shared = {field.name: field.default for field in fields(HeadConfig) if field.name in texts}
    assert shared.keys() == {field.name for field in fields(HeadConfig)} - {"max_types"}
    for name, default in shared.items():
        (stated,) = re.findall(r"Default: ([^\s,]+)", texts[name])
        if default is None:
            assert not stated[0].isdigit(), name
        else:
            assert stated.lower() == str(default).lower(), name
    for settings in (EncoderConfig, HeadConfig):
        assert f"at most {MAX_LEN:,}" in help_texts(settings)["max_len"]
    assert DataConfig().max_types == HeadConfig().max_types


def test_head_options_are_the_fields_of_a_head_config():
    assert list(HeadOptions.__annotations__) == [field.name for field in fields(HeadConfig)]


def test_public_defaults_are_those_of_the_public_package():
    public = pytest.importorskip("gliner.config").BiEncoderSpanConfig()
    theirs = {name: default for name, default in PUBLIC_DEFAULTS.items() if name != "precision"}
    assert {name: getattr(public, name) for name in theirs} == theirs


def test_what_is_saved_here_warns_of_nothing(saved):
    quietly(saved)


def test_missing_fields_have_the_defaults_of_every_version(saved):
    # num_rnn_layers, has_rnn: the first versions always had an LSTM, the later ones had it by default
    names = "num_rnn_layers embed_ent_token ent_token sep_token subtoken_pooling words_splitter_type max_types dropout"
    change(saved, **dict.fromkeys([*names.split(), "max_width", "max_len", "span_mode", "model_type"], ...))
    config = quietly(saved)
    assert (config.num_rnn_layers, config.embed_ent_token, config.dropout) == (1, True, 0.4)
    assert (config.ent_token, config.sep_token, config.words_splitter_type) == ("<<ENT>>", "<<SEP>>", "whitespace")
    assert (config.max_width, config.max_len, config.max_types) == (12, 384, 25)
    assert (config.span_mode, config.subtoken_pooling) == ("markerV0", "first")


def test_null_is_missing(saved):
    change(saved, subtoken_pooling=None, words_splitter_type=None, span_mode=None)
    config = quietly(saved)
    assert (config.span_mode, config.subtoken_pooling, config.words_splitter_type) == (
        "markerV0",
        "first",
        "whitespace",
    )


@pytest.mark.parametrize(("has_rnn", "layers"), [(True, 1), (False, 0)])
def test_has_rnn(saved, has_rnn, layers):
    change(saved, num_rnn_layers=..., has_rnn=has_rnn)
    if has_rnn:
        assert quietly(saved).num_rnn_layers == layers
    else:
        with pytest.warns(UserWarning, match=r"has_rnn = false means num_rnn_layers = 0 here; gliner 0.2.29 adds"):
            assert read_config(saved).num_rnn_layers == layers
        with pytest.warns(UserWarning, match="has_rnn"):
            GLiModern.from_pretrained(saved)  # its weights have no LSTM


def test_num_rnn_layers_goes_before_has_rnn(saved):
    change(saved, num_rnn_layers=2, has_rnn=False)
    assert quietly(saved).num_rnn_layers == 2


def test_token_splitter(saved):
    change(saved, words_splitter_type=..., token_splitter="spacy")
    with pytest.warns(UserWarning, match=r"token_splitter = 'spacy' splits the words here; gliner 0.2.29 splits"):
        assert read_config(saved).words_splitter_type == "spacy"
    change(saved, token_splitter="mecab-ko")
    with pytest.warns(UserWarning, match="token_splitter"):
        assert read_config(saved).words_splitter_type == "mecab"


def test_pooling_of_before_it_was_read(saved):
    change(saved, subtoken_pooling="mean", span_encoder_config=...)
    with pytest.warns(UserWarning, match=r"subtoken_pooling = 'mean' is applied, .*before 0.2.28.*the first"):
        assert read_config(saved).subtoken_pooling == "mean"
    change(saved, span_encoder_config=None)
    assert quietly(saved).subtoken_pooling == "mean"


def test_an_encoder_without_a_name_is_deberta(saved, tmp_path):
    stored = json.loads((saved / "gliner_config.json").read_text())["encoder_config"]
    fields = upgrade_fields(saved, {"encoder_config": {k: v for k, v in stored.items() if k != "model_type"}})
    assert fields["encoder_config"]["model_type"] == "deberta-v2"


def test_prompt_tokens_are_added_where_the_config_asks(tmp_path):
    """class_token_index or vocab_size -1: the tokenizer is still the encoder's, the embedding has the new rows."""
    from glimodern.train.demo import train_tokenizer

    model = make_tiny_model(dropout=0.0)
    tokenizer = train_tokenizer([WORDS] * 4, ["person", "place", "machine"], vocab_size=320)
    tokenizer.model_max_length = 128
    bare = len(tokenizer)
    model.encoder.resize_token_embeddings(bare + 3)  # [FLERT], <<ENT>>, <<SEP>>, in gliner's order
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    change(tmp_path / "model", class_token_index=-1, vocab_size=-1)
    loaded = GLiModern.from_pretrained(tmp_path / "model", trainable=True)
    assert (loaded.config.class_token_index, loaded.config.vocab_size) == (bare + 1, bare + 3)
    batch = loaded.packer.pack([WORDS], [LABELS])
    assert batch.input_ids[batch.type_index].tolist() == [bare + 1] * 2
    with torch.no_grad():
        assert all(torch.isfinite(logits[0]).any() for logits in loaded.scores(batch))
