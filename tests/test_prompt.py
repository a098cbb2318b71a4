"""Packed batches: tokens, word and type positions, positives, and what is cut."""

from types import SimpleNamespace

import pytest
import torch

from glimodern.files.tokenizer import add_prompt_tokens, load_tokenizer, token_limit
from glimodern.inputs.batch import batch_of
from glimodern.inputs.plain_text import plain_tokenizer
from tests.conftest import WORDS, make_tiny_model
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
    widest = tiny_model.packer.pack([WORDS], [["machine"]], [[(1, 6, "machine"), (1, 7, "machine")]])
    assert (widest.positives.tolist(), widest.entities_lost) == ([[1, 5, 0]], 1)


def test_types_are_read_in_their_order(tiny_model):
    packer = tiny_model.packer
    one, other = (packer.pack([["Ada"]], [labels]) for labels in (["person", "place"], ["place", "person"]))
    assert one.input_ids.tolist() != other.input_ids.tolist()
    assert sorted(one.input_ids.tolist()) == sorted(other.input_ids.tolist())
    with pytest.raises(ValueError, match=r"types: expected one list of labels per text \(2\), got 1 lists"):
        packer.pack([["Ada"], ["met"]], [["person"]])


def test_a_types_vector_may_be_read_at_its_labels_first_token():
    packer = make_tiny_model(embed_ent_token=False).packer
    batch = packer.pack([WORDS, ["Ada"]], [["person", "London"], ["place"]])
    wanted = [packer.tokenize([[label]])[0].ids[0] for label in ("person", "London", "place")]
    assert batch.input_ids[batch.type_index].tolist() == wanted


def test_few_prompts_are_kept():
    packer = make_tiny_model().packer
    for number in range(200):
        packer.pack([["Ada"]], [[f"type {number}"]])
    assert len(packer._prompts) <= 64


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
    (text,), prompt = tiny_model.packer.tokenize([words[:100]]), tiny_model.packer.prompt(["person"])
    assert kept == sum(start + len(prompt.ids) + 2 < 129 for start in text.starts + 1)
    assert tiny_model.packer.length(text, prompt) == 128
    first_cut, last_kept = [(kept, kept, "person")], [(kept - 1, kept - 1, "person")]
    again = tiny_model.packer.pack([words] * 2, [["person"]] * 2, [first_cut, last_kept])
    assert again.entities_lost == 1 and again.positives.tolist() == [[2 * kept - 1, 0, 1]]


def test_more_words_than_the_model_takes_are_cut():
    packer = make_tiny_model(max_len=5).packer
    batch = packer.pack([WORDS, WORDS[:5]], [["person"]] * 2)
    assert batch.cu_words.tolist() == [0, 5, 10] and batch.words_cut == (len(WORDS) - 5, 0)
    assert [packer.fits_alone(text) for text in packer.tokenize([WORDS, WORDS[:5]])] == [False, True]


def test_a_text_that_fits_without_its_labels(tiny_model):
    """Two special tokens and <<SEP>> stand around the 125 tokens of words that fit; "in" is one token."""
    packer = tiny_model.packer
    fits = [packer.fits_alone(text) for text in packer.tokenize([["in"] * 125, ["in"] * 126])]
    assert fits == [True, False]
    assert packer.pack([["in"] * 125], [[]]).words_cut == (0,)


def test_labels_that_leave_no_token(tiny_model):
    """128 tokens: 2 special ones, <<SEP>>, 2 for each "person" and 3 for "met" with their <<ENT>>."""
    packer, most = tiny_model.packer, ["person"] * 62
    assert packer.prompt_problem(most) == "" and packer.pack([["in", "in"]], [most]).words_cut == (1,)
    assert packer.prompt_problem([]) == ""
    message = r"62 labels do not fit the prompt: .* takes 128 tokens, .* need 128 and .*; the first 61 would fit"
    with pytest.raises(ValueError, match=message):
        packer.pack([["in"]], [[*most[:61], "met"]])
    assert packer.pack([[]], [[*most[:61], "met"]]).cu_seqlens.tolist() == [0, 128]
    assert "63 labels do not fit the prompt" in packer.prompt_problem([*most, "met"])
    assert "the first 62 would fit" in packer.prompt_problem([*most, "met"])


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
            tiny_model.tokenizer.backend_tokenizer, as_batch=batch_of, ent_token="<<NOPE>>", sep_token="<<SEP>>",
            max_width=4, max_words=10, max_tokens=None,
        )  # fmt: skip


def test_padding_of_the_users_tokenizer_is_not_read(tiny_model):
    from glimodern.inputs.packer import PromptPacker

    padded = type(tiny_model.tokenizer.backend_tokenizer).from_str(tiny_model.tokenizer.backend_tokenizer.to_str())
    padded.enable_padding(length=40)
    packer = PromptPacker(
        padded, as_batch=batch_of, ent_token="<<ENT>>", sep_token="<<SEP>>", max_width=6, max_words=128, max_tokens=128,
    )  # fmt: skip
    ours, theirs = (each.pack([WORDS], [["person"]]) for each in (tiny_model.packer, packer))
    assert torch.equal(ours.input_ids, theirs.input_ids) and torch.equal(ours.word_index, theirs.word_index)


def test_tokens_that_the_encoder_has_no_row_for_are_text():
    tokenizer = make_tokenizer("wordpiece").backend_tokenizer
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["<<one>>", "<<two>>"])
    for first_unknown, known in ((None, 2), (size + 2, 2), (size + 1, 1), (size, 0)):
        plain, _ = plain_tokenizer(tokenizer, first_unknown_id=first_unknown)
        found = [plain.encode(word, add_special_tokens=False).ids for word in ("<<one>>", "<<two>>")]
        assert [max(ids) >= size for ids in found] == [place < known for place in range(2)]


def test_limits_of_tokens():
    for stored, positions, wanted in ((10**30, 512, 512), (128, 512, 128), (512, 128, 128), (8192, None, 8192)):
        assert token_limit(SimpleNamespace(model_max_length=stored), positions) == wanted
    assert token_limit(SimpleNamespace(model_max_length=10**30), None) is None
    assert token_limit(SimpleNamespace(model_max_length=None), None) is None


def test_a_slow_tokenizer_is_an_error(monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: SimpleNamespace(is_fast=False))
    with pytest.raises(ValueError, match=r"tokenizer of 'a': expected a fast tokenizer .*, got SimpleNamespace"):
        load_tokenizer("a")
