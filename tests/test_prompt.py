"""Packed batches: tokens, word and type positions, positives, and what is cut."""

import pytest
import torch

from glimodern.files.tokenizer import add_prompt_tokens, load_tokenizer
from tests.conftest import WORDS
from tests.encoder_rows import make_tokenizer


def test_layout_against_the_tokenizer(tiny_model):
    packer, tokenizer = tiny_model.packer, tiny_model.tokenizer
    texts, types = [WORDS, [], WORDS[:3]], [["person", "place"], ["person"], ["machine", "person", "place"]]
    batch = packer.pack(texts, types)
    assert batch.cu_words.tolist() == [0, len(WORDS), len(WORDS), len(WORDS) + 3]
    assert batch.cu_types.tolist() == [0, 2, 3, 6]
    ent = tokenizer.convert_tokens_to_ids("<<ENT>>")
    assert batch.input_ids[batch.type_index].tolist() == [ent] * 6
    for i, (words, labels) in enumerate(zip(texts, types, strict=True)):
        prompt = [part for label in labels for part in ("<<ENT>>", label)] + ["<<SEP>>"]
        wanted = tokenizer(prompt + words, is_split_into_words=True)
        start, end = batch.cu_seqlens[i], batch.cu_seqlens[i + 1]
        assert batch.input_ids[start:end].tolist() == wanted["input_ids"]
        first = {}
        for position, word in enumerate(wanted.word_ids()):
            if word is not None and word not in first:
                first[word] = position
        expected = [int(start) + first[len(prompt) + j] for j in range(len(words))]
        assert batch.word_index[batch.cu_words[i] : batch.cu_words[i + 1]].tolist() == expected


def test_words_are_separated(tiny_model):
    """A byte-level tokenizer must see "Ada Lovelace", not "AdaLovelace"."""
    tokenizer = tiny_model.tokenizer
    assert tokenizer(["Ada", "met"], is_split_into_words=True)["input_ids"] == tokenizer(" Ada met")["input_ids"]


@pytest.mark.parametrize("kind", ["byte-level", "llama", "gemma", "sentencepiece", "t5"])
def test_words_are_separated_by_every_kind_of_tokenizer(kind, tmp_path):
    """As in running text, once: also after saving and loading, and where the prompt's tokens stand before."""
    tokenizer = make_tokenizer(kind)
    text = "Ada Lovelace met Alan Turing"
    in_text = tokenizer(" " + text if kind in ("byte-level", "llama", "gemma") else text, add_special_tokens=False)
    add_prompt_tokens(tokenizer, ["<<ENT>>", "<<SEP>>"])
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, load_tokenizer(str(tmp_path))):
        words = each(text.split(), is_split_into_words=True, add_special_tokens=False)
        assert words["input_ids"] == in_text["input_ids"]
        prompt = each(
            ["<<ENT>>", "place", "<<SEP>>", *text.split()], is_split_into_words=True, add_special_tokens=False
        )
        assert prompt["input_ids"][-len(words["input_ids"]) - 1 :] == [len(each) - 1, *in_text["input_ids"]]


def test_positives(tiny_model):
    entities = [[(0, 1, "person"), (0, 1, "person"), (6, 6, "place"), (0, 9, "machine")], [(2, 2, "person")]]
    batch = tiny_model.packer.pack([WORDS, WORDS[:3]], [["place", "person"], ["person"]], entities)
    assert batch.positives.tolist() == [[0, 1, 1], [6, 0, 0], [len(WORDS) + 2, 0, 2]]
    assert batch.positives.dtype == torch.int32
    assert batch.entities_lost == 0  # "machine" was not asked
    wide = tiny_model.packer.pack([WORDS], [["machine"]], [[(0, 9, "machine")]])
    assert (wide.positives.numel(), wide.entities_lost) == (0, 1)


def test_long_text_is_cut_and_said(tiny_model):
    words = WORDS * 40
    batch = tiny_model.packer.pack(
        [words, WORDS], [["person"], ["person"]], [[(len(words) - 1,) * 2 + ("person",)], []]
    )
    assert batch.max_seqlen == 128
    kept = int(batch.cu_words[1])
    assert batch.words_cut == (len(words) - kept, 0)
    assert 0 < kept < len(words)
    assert batch.entities_lost == 1
    assert batch.word_index[kept - 1] < 127  # the last kept word's first token is no special token


def test_labels_that_do_not_fit_are_an_error(tiny_model):
    with pytest.raises(ValueError, match=r"60 labels do not fit the prompt.*128 tokens"):
        tiny_model.packer.pack([WORDS], [[f"type number {i}" for i in range(60)]])


def test_word_without_tokens_has_no_index(minilm):
    from glimodern.model.glimodern import GLiModern

    model = GLiModern.from_encoder(minilm)
    batch = model.packer.pack([["a", "\u200b", "b"]], [["x"]])
    assert batch.has_missing_words
    assert batch.word_index[1] == -1
    assert (batch.word_index[[0, 2]] > 0).all()
    with torch.no_grad():
        words, _ = model.encode(batch)
    assert torch.equal(words[1], torch.zeros_like(words[1]))
    assert words[0].abs().sum() > 0


def test_missing_prompt_tokens_are_an_error(tiny_model):
    from glimodern.inputs.packer import PromptPacker

    with pytest.raises(ValueError, match="prompt tokens"):
        PromptPacker(
            tiny_model.tokenizer.backend_tokenizer, ent_token="<<NOPE>>", sep_token="<<SEP>>", max_width=4,
            max_words=10, max_tokens=None,
        )  # fmt: skip
