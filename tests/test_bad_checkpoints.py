"""Whatever is wrong with a checkpoint's folder is one line: the file, the field, what was expected and what came."""

import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glimodern.model.glimodern import GLiModern

CONFIG, WEIGHTS, INT8, PICKLE = "gliner_config.json", "model.safetensors", "model.int8.safetensors", "pytorch_model.bin"
SPAN_BIAS = "span_rep_layer.span_rep_layer.out_project.0.bias"
EMBEDDING = "token_rep_layer.bert_layer.model.embeddings.tok_embeddings.weight"


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        GLiModern.from_pretrained(folder)
    message = str(caught.value)
    assert "weights_only" not in message  # torch advises to run the code
    assert "\n" not in message
    assert "expected" in message and "got" in message
    return message


def cut(name: str, size: int | float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: size if isinstance(size, int) else int(len(whole) * size)])

    return apply


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def fields(**changed: object) -> Callable[[Path], None]:
    """Other values in the config; a field of the value `...` goes."""

    def apply(folder: Path) -> None:
        stored = {**json.loads((folder / CONFIG).read_text()), **changed}
        (folder / CONFIG).write_text(json.dumps({name: value for name, value in stored.items() if value is not ...}))

    return apply


def encoder(**changed: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        stored = json.loads((folder / CONFIG).read_text())
        fields(encoder_config={**stored["encoder_config"], **changed})(folder)

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return apply


def as_pickle(content: Callable[[Path], object]) -> Callable[[Path], None]:
    """pytorch_model.bin in place of the safetensors file, with this content."""

    def apply(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(content(folder), folder / PICKLE)

    return apply


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def of_another_model(folder: Path) -> None:
    """A tokenizer without the prompt tokens."""
    from glimodern.train.demo import train_tokenizer

    train_tokenizer([["Ada"]], ["person"], vocab_size=280).save_pretrained(folder)


def with_code(folder: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "hacked"),))

    (folder / WEIGHTS).unlink()
    (folder / PICKLE).write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut": (cut(WEIGHTS, 0.5), rf"{WEIGHTS}: not a whole safetensors file: expected \d+ bytes .*, got \d+ "),
    "weights cut in the header": (cut(WEIGHTS, 90), rf"{WEIGHTS}: not a whole .*expected \d+ bytes .*got 90 "),
    "weights cut at once": (cut(WEIGHTS, 3), rf"{WEIGHTS}: not a whole safetensors file: expected \d+ bytes .*got 3 "),
    "weights are something else": (
        lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"oops" * 5),
        rf"{WEIGHTS}: .*expected a header of tensor names and offsets, got 28 bytes",
    ),
    "shape": (
        tensors(lambda state: state.update({SPAN_BIAS: torch.zeros(3)})),
        rf"{WEIGHTS}: tensor {SPAN_BIAS}: expected shape \(128,\) by the config, got \(3,\)",
    ),
    "tensor missing": (
        tensors(lambda state: state.pop(SPAN_BIAS)),
        rf"{WEIGHTS}: expected the \d+ tensors of the config, got 1 missing \['{SPAN_BIAS}'\] and 0 unknown",
    ),
    "tensor unknown": (
        tensors(lambda state: state.update(other=torch.zeros(3))),
        rf"{WEIGHTS}: expected the \d+ tensors .*got 0 missing \[\] and 1 unknown \['other'\]",
    ),
    "LSTM in the weights only": (
        tensors(lambda state: state.update({"rnn.lstm.weight_ih_l0": torch.zeros(3)})),
        rf"{WEIGHTS}: .*1 unknown \['rnn.lstm.weight_ih_l0'\].* num_rnn_layers in {CONFIG} sets",
    ),
    "many tensors missing": (
        tensors(lambda state: [state.pop(name) for name in list(state)[:9]]),
        rf"{WEIGHTS}: .*got 9 missing \['[^',]*'(, '[^',]*'){{3}}\] and 0 unknown",
    ),
    "LSTM in the config only": (
        fields(num_rnn_layers=1),
        rf"{WEIGHTS}: .*8 missing \['rnn.lstm.* num_rnn_layers in {CONFIG} sets",
    ),
    "tokenizer cut": (cut("tokenizer.json", 0.5), r"tokenizer.json: expected a tokenizer, .*may be incomplete"),
    "tokenizer is something else": (write("tokenizer.json", "{}"), r"tokenizer.json: expected a tokenizer, got files"),
    "tokenizer of another model": (of_another_model, r"tokenizer.json: ent_token: expected '<<ENT>>' in .*, got \d+ "),
    "config cut": (cut(CONFIG, 0.5), rf"{CONFIG}: not valid JSON: expected an object of fields, got \d+ bytes"),
    "config is no text": (
        lambda folder: (folder / CONFIG).write_bytes(b'{"name": "\xff"}'),
        rf"{CONFIG}: not valid JSON: expected an object of fields, got 13 bytes",
    ),
    "config is a list": (write(CONFIG, "[]"), rf"{CONFIG}: expected a JSON object, got list"),
    "config is empty": (write(CONFIG, "{}"), rf"{CONFIG}: encoder_config: expected the encoder's config, got none"),
    "no encoder": (fields(encoder_config=...), rf"{CONFIG}: encoder_config: expected the encoder's config, got none"),
    "no head width": (fields(hidden_size=...), rf"{WEIGHTS}: hidden_size: expected a head of width 512 .*got 32"),
    "encoder is a list": (fields(encoder_config=[1]), rf"{CONFIG}: encoder_config: expected an object .*, got \[1\]"),
    "unknown encoder": (encoder(model_type="nope"), rf"{CONFIG}: encoder_config: expected .* model_type 'nope' and"),
    "impossible encoder": (encoder(num_attention_heads=5), rf"{CONFIG}: encoder_config: .* expected a multiple of"),
    "width": (fields(max_width="12"), rf"{CONFIG}: max_width: expected a whole number >= 1, got '12'"),
    "huge width": (fields(max_width=10**30), rf"{CONFIG}: max_width: expected a whole number <= 2147483647, got 10"),
    "huge head": (fields(hidden_size=10**12), rf"{CONFIG}: hidden_size: expected .* >= 1 and <= 65536, got 1000"),
    "fewer layers than none": (fields(num_rnn_layers=-1), rf"{CONFIG}: num_rnn_layers: expected .* >= 0, got -1"),
    "a token's id for its text": (fields(ent_token=5), rf"{CONFIG}: ent_token: expected text, got 5"),
    "dropout": (fields(dropout="0.4"), rf"{CONFIG}: dropout: expected a number >= 0 and < 1, got '0.4'"),
    "vocabulary of the config too small": (
        fields(vocab_size=200),
        rf"{CONFIG}: vocab_size: expected at least the \d+ tokens of the tokenizer, got 200",
    ),
    "vocabulary of the config too large": (
        fields(vocab_size=5000),
        rf"{WEIGHTS}: vocab_size: expected 5000 rows of {EMBEDDING} \({CONFIG}\), got \d+",
    ),
    "rows of the embedding": (
        tensors(lambda state: state.update({EMBEDDING: state[EMBEDDING][:-3].clone()})),
        rf"{WEIGHTS}: vocab_size: expected \d+ rows of {EMBEDDING} \({CONFIG}\), got \d+",
    ),
    "vocabulary of the config one too small": (
        lambda folder: fields(vocab_size=json.loads((folder / CONFIG).read_text())["vocab_size"] - 1)(folder),
        rf"{CONFIG}: vocab_size: expected at least the \d+ tokens of the tokenizer, got \d+",
    ),
    "width of the embedding": (
        tensors(lambda state: state.update({EMBEDDING: state[EMBEDDING][:, :-1].clone()})),
        rf"{WEIGHTS}: tensor {EMBEDDING}: expected shape \(\d+, 32\) by the config, got \(\d+, 31\)",
    ),
    "separator": (fields(sep_token="<<NOPE>>"), r"tokenizer.json: sep_token: expected '<<NOPE>>' in .*, got \d+ "),
    "type token": (fields(class_token_index=7), rf"{CONFIG}: class_token_index: expected the id of '<<ENT>>' .*got 7"),
    "pickle with code": (with_code, rf"{PICKLE}: refused: expected tensors .*a pickle that runs code \(posix.mkdir\)"),
    "pickle of a list": (as_pickle(lambda folder: [1]), rf"{PICKLE}: expected a dictionary of tensors, got list"),
    "pickle of a number": (as_pickle(lambda _: {"a": 1}), rf"{PICKLE}: expected a dictionary of tensors, got dict"),
    "pickle is empty": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / PICKLE).write_bytes(b"")),
        rf"{PICKLE}: not a whole file: expected what torch.save writes, got 0 bytes",
    ),
    "pickle cut": (
        lambda folder: (as_pickle(lambda _: {"a": torch.zeros(99)})(folder), cut(PICKLE, 0.5)(folder)),
        rf"{PICKLE}: not a whole file: expected what torch.save writes, got \d+ bytes",
    ),
    "pickle is something else": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / PICKLE).write_bytes(b"oops")),
        rf"{PICKLE}: refused: expected tensors .*, got 4 bytes that torch refuses",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file(saved, name):
    spoil, message = BAD[name]
    spoil(saved)
    said = refusal(saved)
    assert str(saved) in said
    assert re.search(message, said), said
    assert not (saved / "hacked").exists()


def test_a_cut_file_says_how_long_it_should_be(saved):
    whole = (saved / WEIGHTS).stat().st_size
    cut(WEIGHTS, whole - 5)(saved)
    assert f"expected {whole} bytes by its header, got {whole - 5} (" in refusal(saved)


def test_tensors_without_effect_may_be_there_or_not(saved):
    prefix = EMBEDDING.partition("embeddings.")[0]
    extra = {f"{prefix}embeddings.position_ids": torch.arange(3), f"{prefix}rotary.inv_freq": torch.ones(3)}
    wanted = GLiModern.from_pretrained(saved).predict("Ada met Charles", ["person"], 0.0)
    assert wanted[0]
    tensors(lambda state: state.update(extra))(saved)
    assert GLiModern.from_pretrained(saved).predict("Ada met Charles", ["person"], 0.0) == wanted


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / CONFIG).unlink(), f"no {CONFIG}"),
        (
            lambda folder: (folder / WEIGHTS).unlink(),
            f"no weights: expected {WEIGHTS}, {INT8} or {PICKLE}, or an index of shards",
        ),
        (without_tokenizer, "no tokenizer: expected tokenizer.json and tokenizer_config.json, got neither"),
    ],
    ids=["config", "weights", "tokenizer"],
)
def test_missing_file(saved, spoil, message):
    spoil(saved)
    assert message in refusal(saved, FileNotFoundError)


def test_words_of_another_splitter(saved):
    """Such a model loads, for texts given as words; only strings cannot be split."""
    fields(words_splitter_type="words")(saved)
    model = GLiModern.from_pretrained(saved)
    assert len(list(model.predict_words([["Ada", "met"]], [["person"]], threshold=0.0))) == 1
    with pytest.raises(
        ValueError, match=r"words_splitter_type: expected one of 'whitespace', .*, got 'words'.*predict_words"
    ):
        model.predict("Ada met", ["person"])
