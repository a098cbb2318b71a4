"""Words and labels are plain text: no text becomes a special token, and all other text has the ids it always had."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from glimodern.files.tokenizer import add_prompt_tokens
from glimodern.inputs.batch import batch_of
from glimodern.inputs.packer import PromptPacker
from glimodern.inputs.plain_text import plain_tokenizer
from tests.conftest import WORDS
from tests.encoder_rows import make_tokenizer

KINDS = ("wordpiece", "byte-level", "roberta", "llama", "gemma", "sentencepiece", "t5", "word-level", "wordpiece-split")
ORDINARY = [
    *WORDS,
    "ADA",
    "naïve",
    "Ｆｕｌｌ",
    "state-of-the-art",
    "…",
    "日本",
    "a b",
    " ",
    "",
    "x" * 60,
    "\u200b",
    "<",
    "[",
    "SEP",
]


def make(kind: str) -> Tokenizer:
    """With prompt tokens, one of them not flagged as special, and an added word that is text like any other."""
    if kind in ("word-level", "wordpiece-split"):  # the model itself knows "[SEP]", and nothing splits it
        vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdeSEP[]<>", *WORDS])}
        vocab = {token: i for i, token in enumerate(vocab)}
        model = models.WordLevel if kind == "word-level" else models.WordPiece
        tokenizer = Tokenizer(model(vocab, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    else:
        whole = make_tokenizer(kind)
        add_prompt_tokens(whole, [])
        tokenizer = whole.backend_tokenizer
    tokenizer.add_tokens([AddedToken("[FLERT]", special=True, normalized=False), "<<ENT>>"])
    tokenizer.add_tokens([AddedToken("<<SEP>>", special=True), "covid19"])
    return tokenizer


def ids_of(tokenizer: Tokenizer, words: list[str]) -> list[int]:
    return tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pair(kind):
    """A tokenizer and its plain copy, and the ids that no text may have."""
    tokenizer = make(kind)
    plain, _ = plain_tokenizer(tokenizer, ["<<ENT>>"])
    specials = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return tokenizer, plain, specials | {tokenizer.token_to_id("<<ENT>>")}


def test_ordinary_text_has_the_same_ids(pair):
    tokenizer, plain, _ = pair
    for words in ([*ORDINARY, "covid19", "xcovid19y"], *([word] for word in ORDINARY)):
        assert ids_of(plain, words) == ids_of(tokenizer, words)
        assert plain.encode(" ".join(words)).ids == tokenizer.encode(" ".join(words)).ids  # as a label encoder reads
    assert tokenizer.token_to_id("covid19") in ids_of(plain, ["covid19"])
    assert plain.get_vocab_size() == tokenizer.get_vocab_size()


def test_special_text_is_text(pair):
    tokenizer, plain, specials = pair
    unknown = tokenizer.token_to_id("[UNK]") if "[UNK]" in tokenizer.get_vocab() else tokenizer.token_to_id("<unk>")
    names = [tokenizer.id_to_token(i) for i in sorted(specials)]

    @settings(max_examples=150, deadline=None)
    @given(parts=st.lists(st.sampled_from([*names, "a", " ", "x", "▁", "Ａ", "＜＜ENT＞＞", "［SEP］"]), max_size=6))
    def check(parts):
        for words in (parts, ["".join(parts)]):
            assert not {*ids_of(plain, words)} & (specials - {unknown})

    check()
    for name in names:
        assert specials & {*ids_of(tokenizer, [name])}, "the tokenizer itself does not find it: the test is empty"


def test_padding_truncation_and_the_copy_leave_the_original_alone(kind):
    tokenizer = make(kind)
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(30)
    before = tokenizer.to_str()
    plain, _ = plain_tokenizer(tokenizer)
    assert (plain.padding, plain.truncation) == (None, None)
    assert tokenizer.to_str() == before


CONTROL = ["<<ENT>>", "<<SEP>>", "[SEP]", "[CLS]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<<ENT>> place <<SEP>>"]


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "gemma", "sentencepiece", "t5"])
def test_prompts_of_labels_that_look_like_prompts(kind):
    """Each label's type vector is at its own <<ENT>>, and the batch has no other <<ENT>> or <<SEP>>."""
    tokenizer = make_tokenizer(kind)
    add_prompt_tokens(tokenizer, ["<<ENT>>", "<<SEP>>"])
    backend = tokenizer.backend_tokenizer
    packer = PromptPacker(
        backend, as_batch=batch_of, ent_token="<<ENT>>", sep_token="<<SEP>>", max_width=6, max_words=99, max_tokens=None
    )  # fmt: skip
    labels = ["person", *CONTROL, "place"]
    batch = packer.pack([[*WORDS, *CONTROL]], [labels])
    ids, ent = batch.input_ids, tokenizer.convert_tokens_to_ids("<<ENT>>")
    assert ids[batch.type_index].tolist() == [ent] * len(labels)
    assert int((ids == ent).sum()) == len(labels)
    assert int((ids == tokenizer.convert_tokens_to_ids("<<SEP>>")).sum()) == 1
    for label, start, following in zip(labels, batch.type_index, [*batch.type_index[1:], None], strict=True):
        if following is not None:
            assert packer.tokenize([[label]])[0].ids.tolist() == ids[start + 1 : following].tolist()
    ordinary = tokenizer(["<<ENT>>", "person", "<<ENT>>", "place", "<<SEP>>", *WORDS], is_split_into_words=True)
    assert packer.pack([WORDS], [["person", "place"]]).input_ids.tolist() == ordinary["input_ids"]


def test_a_label_equal_to_the_prompt_token_shifts_nothing(tiny_model):
    """What other labels score does not depend on what a label is called; an entity keeps its own label."""
    text = " ".join(WORDS)
    asked = ["<<ENT>>", "person", "place"]
    found = tiny_model.predict(text, asked, 0.0, flat=False, multi_label=True)[0]
    assert {entity["label"] for entity in found} == {*asked}
    batch = tiny_model.packer.pack([WORDS], [asked])
    prompts = tiny_model.encode(batch)[1].detach()
    ids = batch.input_ids.tolist()
    second = ids.index(ids[batch.type_index[0]], int(batch.type_index[0]) + 1)
    assert int(batch.type_index[1]) == second and prompts.shape[0] == 3
    assert torch.isfinite(prompts).all()


def test_training_asks_labels_as_text(tiny_model):
    batch = tiny_model.packer.pack([WORDS], [["<<ENT>>", "person"]], [[(0, 1, "person")]])
    assert batch.positives.tolist() == [[0, 1, 1]]
    assert tiny_model.packer.label_lengths(["person"])[0] == 1 + len(tiny_model.packer.tokenize([["person"]])[0].ids)
