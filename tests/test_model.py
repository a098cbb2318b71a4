"""Loading, saving and predicting: bad input is a clear error or a defined result; nothing half-written survives."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from glimodern.model.glimodern import GLiModern
from tests.conftest import WORDS, make_tiny_model

TEXT = "Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine ."
LABELS = ["person", "place"]


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def low_threshold(model, text=TEXT):
    """A threshold that a few spans of a random model pass."""
    logits = model.scores(model.packer.pack([text.split()], [LABELS]))[0].detach()
    return float(torch.sigmoid(logits[torch.isfinite(logits)]).quantile(0.9))


# predicting


def test_entities_carry_character_offsets(tiny_model):
    text = "  Ada   Lovelace, of London.\n"
    result = tiny_model.predict(text, LABELS, threshold=0.0)
    assert len(result) == 1
    assert result[0]
    for entity in result[0]:
        assert set(entity) == {"start", "end", "text", "label", "score"}
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert entity["label"] in LABELS
    assert not result[0].truncated


def test_flat_entities_do_not_overlap_and_nested_may(tiny_model):
    threshold = low_threshold(tiny_model)
    flat = tiny_model.predict(TEXT, LABELS, threshold)[0]
    assert all(x["end"] <= y["start"] for x, y in zip(flat, flat[1:], strict=False))
    nested = tiny_model.predict(TEXT, LABELS, threshold, flat=False)[0]
    assert len(nested) >= len(flat)


def test_empty_texts_and_no_labels_have_no_entities(tiny_model):
    assert tiny_model.predict(["", "   \n", TEXT], LABELS, threshold=0.0)[:2] == [[], []]
    assert tiny_model.predict([], LABELS) == []
    assert tiny_model.predict([TEXT], [], threshold=0.0) == [[]]


def test_duplicate_labels_count_once(tiny_model):
    once = tiny_model.predict(TEXT, LABELS, low_threshold(tiny_model))
    twice = tiny_model.predict(TEXT, [*LABELS, *LABELS], low_threshold(tiny_model))
    assert once == twice


def test_results_do_not_depend_on_the_batch(tiny_model):
    texts = [TEXT, "Ada met Charles .", "London", TEXT * 2]
    threshold = low_threshold(tiny_model)
    together = tiny_model.predict(texts, LABELS, threshold)
    alone = [tiny_model.predict(text, LABELS, threshold, batch_tokens=1)[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in one] == other


def test_huge_word(tiny_model):
    """It fills the encoder alone: of windows it is one, and what is cut is all after it."""
    text = "x" * 100_000 + " London"
    with pytest.warns(UserWarning, match="words at their ends were not read"):
        (result,) = tiny_model.predict(text, LABELS, threshold=0.0, long_texts="cut")
    assert result.truncated
    assert result[0]["end"] == 100_000
    with pytest.warns(UserWarning, match="1 words alone have more tokens than the encoder takes"):
        (result,) = tiny_model.predict(text, LABELS, threshold=0.0)
    assert (result.truncated, result.windows) == (False, 2)
    assert [(e["start"], e["end"]) for e in result] == [(0, 100_000), (100_001, 100_007)]


def test_too_long_text_warns_and_is_flagged(tiny_model):
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer.*\d+ words at their ends were not read"):
        long, short = tiny_model.predict([TEXT * 30, "London"], LABELS, threshold=0.0, long_texts="cut")
    assert long.truncated and long.words_cut > 0
    assert not short.truncated


@pytest.mark.parametrize(
    ("texts", "labels", "error", "message"),
    [
        (TEXT, "person", TypeError, r"labels: expected an iterable of strings"),
        (TEXT, ["person", 3], TypeError, r"labels\[1\]: expected a string, got int"),
        (TEXT, [" "], ValueError, r"labels\[0\]: expected a name"),
        ([TEXT, None], LABELS, TypeError, r"texts\[1\]: expected a string, got NoneType"),
        (TEXT, ["person", "x" * 5000], ValueError, "labels do not fit the prompt.*shorten it"),
    ],
)
def test_bad_arguments(tiny_model, texts, labels, error, message):
    with pytest.raises(error, match=message):
        tiny_model.predict(texts, labels)


@pytest.mark.parametrize("options", [{"flat": False}, {"multi_label": True}, {"flat": False, "multi_label": True}, {}])
def test_options_of_the_search(tiny_model, options):
    """Each finds what its rules allow, and predict_words the same."""
    threshold = low_threshold(tiny_model)
    (found,), (words,) = (
        tiny_model.predict([TEXT], LABELS, threshold, **options),
        tiny_model.predict_words([TEXT.split()], LABELS, threshold=threshold, **options),
    )
    assert [(e["label"], e["score"]) for e in found] == [(label, score) for *_, label, score in words.entities]
    spans = [(e["start"], e["end"]) for e in found]
    pairs = [(x, y) for i, x in enumerate(spans) for y in spans[:i]]
    equal = any(x == y for x, y in pairs)
    overlapping = any(x != y and x[0] < y[1] and y[0] < x[1] for x, y in pairs)
    assert equal is options.get("multi_label", False)
    assert overlapping is not options.get("flat", True)


def test_bad_threshold(tiny_model):
    with pytest.raises(ValueError, match="threshold: expected a probability"):
        tiny_model.predict(TEXT, LABELS, threshold=1.5)


# checkpoints


def test_round_trip(tiny_model, saved):
    again = GLiModern.from_pretrained(saved, trainable=True)
    threshold = low_threshold(tiny_model)
    assert again.predict(TEXT, LABELS, threshold) == tiny_model.predict(TEXT, LABELS, threshold)
    assert not [name for name in os.listdir(saved.parent) if name != "model"]


@pytest.mark.parametrize("dtype", ["bf16", "auto", torch.float32])
def test_dtypes(saved, dtype):
    model = GLiModern.from_pretrained(saved, dtype=dtype)
    batch = model.packer.pack([WORDS], [LABELS])
    (wanted,), (got,) = GLiModern.from_pretrained(saved, dtype="fp32").scores(batch), model.scores(batch)
    inside = torch.isfinite(wanted)
    assert torch.equal(inside, torch.isfinite(got))
    assert (got.float() - wanted)[inside].abs().max() < 0.05 * wanted[inside].abs().max()


def test_unknown_dtype(saved):
    with pytest.raises(ValueError, match=r"dtype: expected one of .* got 'int3'"):
        GLiModern.from_pretrained(saved, dtype="int3")


def test_ffn_mode_and_lstm_round_trip(tmp_path):
    from dataclasses import replace

    model = make_tiny_model(dropout=0.0, span_mode="ffn")
    with pytest.warns(UserWarning, match="not known to the public gliner package"):
        model.save_pretrained(tmp_path / "ffn")
    assert GLiModern.from_pretrained(tmp_path / "ffn").config.span_mode == "ffn"
    with_lstm = GLiModern(replace(model.config, num_rnn_layers=1), model.encoder, model.tokenizer).eval()
    with pytest.warns(UserWarning, match="not known to the public gliner package"):
        with_lstm.save_pretrained(tmp_path / "rnn")
    batch = with_lstm.packer.pack([WORDS, [], WORDS[:2]], [LABELS] * 3)
    wanted, got = with_lstm.scores(batch), GLiModern.from_pretrained(tmp_path / "rnn", trainable=True).scores(batch)
    for one, other in zip(wanted, got, strict=True):
        assert torch.equal(one, other)


def test_missing_folder():
    with pytest.raises(FileNotFoundError, match="no such folder"):
        GLiModern.from_pretrained("./no/such/folder")


def test_plain_bin_loads(tiny_model, saved):
    state = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(state, saved / "pytorch_model.bin")
    threshold = low_threshold(tiny_model)
    assert GLiModern.from_pretrained(saved, trainable=True).predict(TEXT, LABELS, threshold) == tiny_model.predict(
        TEXT, LABELS, threshold
    )


def test_tied_tensors_are_stored_once(tmp_path):
    from transformers import T5Config

    from glimodern.train.demo import train_tokenizer

    tokenizer = train_tokenizer([WORDS], ["person"], vocab_size=300)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = GLiModern.from_encoder_config(config, tokenizer, dropout=0.0).eval()
    model.save_pretrained(tmp_path / "t5")
    batch = model.packer.pack([WORDS], [LABELS])
    (wanted,), (got,) = model.scores(batch), GLiModern.from_pretrained(tmp_path / "t5", trainable=True).scores(batch)
    assert torch.equal(wanted, got)


def test_saved_folder_is_complete(saved, tmp_path):
    """Moved elsewhere, a checkpoint still loads: it points at nothing outside itself."""
    shutil.move(saved, tmp_path / "moved")
    assert GLiModern.from_pretrained(tmp_path / "moved").config.max_width == 6


def test_a_fresh_model_on_a_pretrained_encoder(minilm):
    model = GLiModern.from_encoder(minilm)
    assert model.config.model_name == model.source_name == str(minilm)
    assert model.config.max_len == 512 and model.config.hidden_size == 384
    assert model.config.class_token_index == model.tokenizer.convert_tokens_to_ids("<<ENT>>")
    assert model.config.vocab_size == len(model.tokenizer) == model.encoder.config.vocab_size


def test_words_a_fresh_model_takes():
    """As many as its encoder takes tokens, at most 8,192."""
    from transformers import T5Config

    from glimodern.train.demo import train_tokenizer

    assert make_tiny_model().config.max_len == 128 and make_tiny_model(max_len=7).config.max_len == 7
    tokenizer = train_tokenizer([WORDS], ["person"], vocab_size=300)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    assert GLiModern.from_encoder_config(config, tokenizer).config.max_len == 8192


def test_what_is_loaded_for_inference_is_frozen_and_in_eval_mode(saved):
    model, trainable = (GLiModern.from_pretrained(saved, trainable=trainable) for trainable in (False, True))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in trainable.parameters())
    assert {parameter.dtype for parameter in trainable.parameters()} == {torch.float32}
    assert not any(module.training for each in (model, trainable) for module in each.modules())
    batch = model.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])
    assert torch.isfinite(trainable(batch))
    if model.packed_dtype is not None:
        with pytest.raises(ValueError, match="expected a trainable model, got one that was loaded for inference"):
            model(batch)


# the two forms of the head


@pytest.mark.parametrize("span_mode", ["markerV0", "marker", "ffn"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fold_equals_textbook(span_mode, dropout):
    """Loss and gradients of the fused path are those of the textbook head, with the same dropout mask."""
    model = make_tiny_model(dropout=dropout, span_mode=span_mode, max_width=4)
    model.train()
    batch = model.packer.pack(
        [WORDS, [], WORDS[:2]], [LABELS, ["person"], ["machine"]], [[(0, 1, "person"), (6, 6, "place")], [], []]
    )
    results = {}
    for fused in (True, False):
        torch.manual_seed(3)
        model.zero_grad()
        loss = model(batch, class_balance=0.75, focal_gamma=1.0, fused=fused)
        loss.backward()
        results[fused] = loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(results[True][0], results[False][0], rtol=1e-5, atol=1e-6)
    assert results[True][1].keys() == results[False][1].keys()
    for name, grad in results[True][1].items():
        scale = results[False][1][name].abs().max().item()
        torch.testing.assert_close(grad, results[False][1][name], rtol=1e-3, atol=2e-5 * max(scale, 1e-3), msg=name)


@pytest.mark.parametrize(("span_mode", "drops"), [("markerV0", True), ("marker", False), ("ffn", True)])
def test_dropout_of_spans(span_mode, drops):
    """The public `marker` head has dropout in its projections alone, not in its spans' hidden layer."""
    model = make_tiny_model(dropout=0.5, span_mode=span_mode).train()
    for module in model.head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = model.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])
    torch.manual_seed(0)
    trained = model(batch)
    assert torch.allclose(trained, model.eval()(batch), rtol=1e-5) is not drops


def test_frozen_encoder_gets_no_gradient():
    model = make_tiny_model(dropout=0.0)
    model.freeze_encoder()
    model.train()
    assert not model.encoder.training
    batch = model.packer.pack([WORDS], [LABELS], [[(0, 1, "person")]])
    model(batch).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
