"""Rows of docs/COMPATIBILITY.md: checkpoints of the public format, read and written, against gliner 0.2.29."""

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from compatibility import Row, Section, decade

TEXTS = (
    "In 1843 Ada Lovelace wrote about Charles Babbage's Analytical Engine, a machine that nobody had built yet.",
    "The Social Democratic Party won 28.5 % of the vote; the Greens, its partner since 2021, lost half their seats.",
    "Dr. Maria-Luísa Gonçalves (University of São Paulo) flew to Zürich on 3/11/2019 with her co-author Jean-Pierre.",
    "東京 and Москва are 7,487 km apart.",
    "Yes.",
    "Shares of Hewlett-Packard rose after a state-of-the-art antidisestablishmentarianism study by McKinsey & Company.",
)
LABELS = ["person", "political party", "city or country", "internationally operating organisation"]
WORDS = tuple("the of and party Maria London engine machine in 1843 organisation political country person".split())

WIDTH, HEAD = 48, {"equal": 48, "other": 32}
POOLINGS = ("first", "last", "mean", "max")
FACTORS: dict[str, tuple[Any, ...]] = {
    "span_mode": ("markerV0", "marker"),
    "num_rnn_layers": (0, 1),
    "subtoken_pooling": POOLINGS,
    "embed_ent_token": (True, False),
    "hidden_size": (48, 32),
}


def _row(encoder: str, *values: Any, note: str = "", **more: Any) -> Row:
    options = {**dict(zip(FACTORS, values, strict=True)), **more}
    mode, layers, pooling, ent, width = (options[name] for name in FACTORS)
    prompt = "`<<ENT>>`" if ent else "label's first token"
    size = "the encoder's" if width == WIDTH else "another"
    return Row((encoder, mode, str(layers), pooling, prompt, size, note), {"encoder": encoder, **options})


# every pair of values of two options is in a row of the first eight (an orthogonal array); then encoders and the rest
ROWS = (
    _row("modernbert", "markerV0", 0, "first", True, 48),
    _row("modernbert", "marker", 1, "first", False, 32),
    _row("modernbert", "markerV0", 0, "last", False, 32),
    _row("modernbert", "marker", 1, "last", True, 48),
    _row("modernbert", "markerV0", 1, "mean", True, 32),
    _row("modernbert", "marker", 0, "mean", False, 48),
    _row("modernbert", "markerV0", 1, "max", False, 48),
    _row("modernbert", "marker", 0, "max", True, 32),
    _row("bert", "markerV0", 0, "mean", True, 48),
    _row("bert", "marker", 1, "max", False, 32),
    _row("deberta-v2", "markerV0", 1, "first", True, 32),
    _row("deberta-v2", "marker", 0, "last", False, 48),
    _row("modernbert", "markerV0", 2, "first", True, 48, note="two LSTM layers"),
    _row("modernbert", "markerV0", 0, "first", True, 48, note="`max_width` 5, `max_len` 9", max_width=5, max_len=9),
    _row("modernbert", "marker", 0, "mean", True, 48, note="other prompt tokens", ent_token="[E]", sep_token="[S]"),
    _row("bert", "markerV0", 0, "first", True, 48, note="`pytorch_model.bin`", pickled=True),
    _row("bert", "markerV0", 1, "first", True, 32, note="config and files as of gliner 0.1", old=True),
    _row("deberta-v2", "marker", 1, "first", True, 48, note="the same, bos and eos forgotten", old=True, bos=True),
)


@functools.cache
def _tokenizer(bos: bool = False) -> Any:
    """bos: with bos and eos tokens that it does not put around a text, as transformers 5 reads some."""
    from transformers import PreTrainedTokenizerFast

    from glimodern.train.demo import train_tokenizer

    tokenizer = train_tokenizer([WORDS] * 4, LABELS, vocab_size=340)
    if bos:
        tokenizer.backend_tokenizer.post_processor = None
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]"
        )
    tokenizer.model_max_length = 512
    return tokenizer


def _encoder_config(kind: str, vocab_size: int) -> Any:
    from transformers import BertConfig, DebertaV2Config, ModernBertConfig

    common: dict[str, Any] = dict(
        vocab_size=vocab_size, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    if kind == "modernbert":
        return ModernBertConfig(
            **common, global_attn_every_n_layers=2, local_attention=16, bos_token_id=2, eos_token_id=3, cls_token_id=2,
            sep_token_id=3,
        )  # fmt: skip
    if kind == "bert":
        return BertConfig(**common)
    return DebertaV2Config(
        **common, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"], type_vocab_size=0,
        norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
    )  # fmt: skip


def public_model(folder: Path, row: Row) -> Any:
    """A gliner model with random weights, saved by gliner itself."""
    from gliner import GLiNER
    from gliner.config import GLiNERConfig

    options = dict(row.options)
    kind, pickled, old = options.pop("encoder"), options.pop("pickled", False), options.pop("old", False)
    base = folder / "encoder"
    tokenizer = _tokenizer(bos=True) if options.pop("bos", False) else _tokenizer()
    tokenizer.save_pretrained(base)
    encoder = _encoder_config(kind, len(tokenizer))
    encoder.save_pretrained(base)
    config = GLiNERConfig(model_name=str(base), encoder_config=encoder.to_dict(), dropout=0.1, **options)
    torch.manual_seed(1)
    model = GLiNER.from_config(config, backbone_from_pretrained=False).eval()
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if not name.startswith("token_rep_layer.bert_layer"):
                parameter.mul_(2.0)  # logits of a trained model's size
    model.save_pretrained(folder / "public", safe_serialization=not (pickled or old))
    if old:
        _make_old(folder / "public")
    return model


def _make_old(folder: Path) -> None:
    """What gliner 0.1 left in a folder: no tokenizer, and in the config nothing of the encoder or of prompt tokens."""
    import json

    kept = "model_name max_width hidden_size dropout fine_tune subtoken_pooling span_mode max_len".split()
    fields = json.loads((folder / "gliner_config.json").read_text())
    old = {**{name: fields[name] for name in kept}, "lr_encoder": "1e-5", "max_types": 25, "name": "correct"}
    for file in folder.iterdir():
        if file.name != "pytorch_model.bin":
            file.unlink()
    (folder / "gliner_config.json").write_text(json.dumps(old))


def public_logits(model: Any, texts: list[list[str]]) -> list[torch.Tensor]:
    batch = model.collate_batch(
        [{"tokenized_text": words, "ner": None} for words in texts], LABELS, model.create_collator()
    )
    with torch.no_grad():
        logits = model.model(**{k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}).logits
    kept = [min(len(words), model.config.max_len) for words in texts]
    return [logits[i, :words, :, : len(LABELS)] for i, words in enumerate(kept)]


def greatest_difference(public: Any, ours: Any) -> float:
    """Of all logits of spans inside their text."""
    from glimodern.inputs.words import split_words

    texts = [[word.text for word in split_words(text)] for text in TEXTS]
    with torch.no_grad():
        got = ours.scores(ours.packer.pack(texts, [LABELS] * len(texts)))
    differences, spread = [], []
    for one, other in zip(got, public_logits(public, texts), strict=True):
        assert one.shape == other.shape
        inside = torch.isfinite(one)
        assert inside.sum() == sum(len(LABELS) * min(one.shape[1], one.shape[0] - i) for i in range(one.shape[0]))
        differences.append(float((one - other)[inside].abs().max()))
        spread.append(other[inside])
    assert torch.cat(spread).std() > 0.1, "logits too near each other for their difference to say anything"
    return max(differences)


def same_entities(public: Any, ours: Any) -> int:
    """How many entities both find, flat and nested with several labels a span; AssertionError if they differ."""
    from glimodern.inputs.words import split_words

    packed = ours.packer.pack([[word.text for word in split_words(text)] for text in TEXTS], [LABELS] * len(TEXTS))
    with torch.no_grad():
        probabilities = torch.cat([torch.sigmoid(one[torch.isfinite(one)]) for one in ours.scores(packed)]).sort()[0]
    high = probabilities[int(0.97 * len(probabilities)) :]
    place = int((high[1:-9] - high[:-10]).argmax())
    threshold = float(high[place : place + 2].mean())  # in a gap, so that rounding moves no score across it
    found = 0
    for flat, multi_label in ((True, False), (False, True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both say that max_len cuts
            theirs = public.inference(
                list(TEXTS), LABELS, threshold=threshold, flat_ner=flat, multi_label=multi_label, batch_size=8
            )
            mine = ours.predict(TEXTS, LABELS, threshold, flat=flat, multi_label=multi_label, long_texts="cut")
        for wanted, got in zip(theirs, mine, strict=True):
            assert [(e["start"], e["end"], e["text"], e["label"]) for e in got] == [
                (e["start"], e["end"], e["text"], e["label"]) for e in wanted
            ]
            assert all(abs(one["score"] - other["score"]) <= 1e-5 for one, other in zip(got, wanted, strict=True))
            found += len(wanted)
    return found


def measure(row: Row, folder: Path) -> tuple[str, ...]:
    """gliner's random checkpoint read here, what is saved here read by gliner with strict=True."""
    from gliner import GLiNER

    from glimodern import GLiModern

    public = public_model(folder, row)
    ours = GLiModern.from_pretrained(folder / "public", dtype="fp32")
    ours.save_pretrained(folder / "saved")
    again = GLiNER.from_pretrained(str(folder / "saved"), strict=True).eval()
    read, written = greatest_difference(public, ours), greatest_difference(again, ours)
    assert max(read, written) <= 1e-4
    assert same_entities(public, ours) > 0
    assert same_entities(again, ours) > 0
    return decade(max(read, written)), "yes"


SECTION = Section(
    title="Checkpoints of the public format",
    text="""A model with random weights, built and saved by gliner 0.2.29, is read here, saved here, and read by gliner
with `strict=True`; all three give the same logits (at most 1e-4 apart in fp32) and the same entities, flat and nested.
Labels and words are of several sub-tokens. The first eight rows hold every pair of two options' values.""",
    columns=("encoder", "`span_mode`", "LSTM layers", "`subtoken_pooling`", "type vector at", "head's width", "also"),
    measured=("logits differ by", "entities equal"),
    rows=ROWS,
    measure=measure,
    notes="""Old configs: a field that is missing has the value of the version that wrote the file (`has_rnn` for
`num_rnn_layers`, tokenizer and encoder from `model_name`, prompt tokens added as gliner adds them); where gliner 0.2.29
reads it otherwise, a warning says what was taken.

`words_splitter_type` may be any of gliner's: `whitespace`, `spacy`, `jieba`, `hanlp`, `janome`, `mecab`, `camel`,
`hindi`, `stanza`, `universal`. Each gives gliner's words and offsets (`tests/test_splitters.py`) and needs the extra of
its name, but for `whitespace`. Without the package a model loads and takes texts given as words (`predict_words`).
gliner does not know `unicode`. Differences, on purpose: a token that the text does not have where it should be is left
out and later words keep their offsets, where gliner's drift (`hindi` leaves it out in gliner, too); a token of Stanza
whose words the text does not have is one word, where gliner has words without offsets; a missing model of Stanza for a
text's language is a warning before the English one is taken; `hindi` gives no empty word for an empty text; `jieba`
needs the package jieba3 only, where gliner wants jieba beside it.

Known differences, on purpose: after a word that the tokenizer turns into nothing (a zero-width space, say) gliner gives
each word its right neighbour's vector, so that entities are reported one word early; here such a word is a zero vector
and the others keep their own. Words at the end of a text that do not fit the encoder are zero vectors in gliner and
take part in its LSTM; here they are cut, with a warning.""",
)
