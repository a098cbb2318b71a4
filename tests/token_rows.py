"""Rows of docs/COMPATIBILITY.md: token-level checkpoints, with one encoder and with two, against gliner 0.2.29."""

import warnings
from pathlib import Path
from typing import Any

import torch
from compatibility import Row, Section, decade

from tests.bi_encoder_rows import LABELS, TEXTS, save_encoder

OPTIONS = (  # threshold, flat_ner, multi_label
    (0.5, True, False),
    (0.3, False, True),
    (0.6, True, True),
    (0.4, False, False),
)


def _row(kind: str, text: str, labels: str | None = None, note: str = "", **options: Any) -> Row:
    encoder = f"{text}, {labels} on labels" if labels else text
    layers, width = options.get("num_rnn_layers", 0), options.get("hidden_size", 48)
    size = "the encoder's" if width == 48 else "another"
    return Row((kind, encoder, str(layers), size, note), {"text": text, "labels": labels, **options})


ROWS = (
    _row("NuNER-Zero, gliner-multitask", "deberta-v2", num_rnn_layers=1, max_width=1),
    _row("NuNER-Zero, gliner-multitask", "deberta-v2", note="`max_width` 100, `pytorch_model.bin`", num_rnn_layers=1,
         hidden_size=32, max_width=100, pickled=True),
    _row("GLiNER-x", "mt5"),
    _row("GLiNER-x", "mt5", note="LSTM, type vector at the label", num_rnn_layers=1, embed_ent_token=False),
    _row("one encoder", "modernbert", note="`subtoken_pooling` mean", subtoken_pooling="mean"),
    _row("one encoder", "bert", note="`max_len` 10", num_rnn_layers=2, max_len=10, hidden_size=32),
    _row("one encoder", "xlm-roberta", note="`model_type` as gliner names it", model_type="gliner_uni_encoder_token"),
    _row("two encoders", "modernbert", "bert"),
    _row("two encoders", "deberta-v2", "roberta", note="stored LSTM, which gliner does not run", num_rnn_layers=1,
         hidden_size=64),
    _row("two encoders", "modernbert", "bert", note="`model_type` as gliner names it",
         model_type="gliner_bi_encoder_token"),
)  # fmt: skip


def public_model(row: Row, folder: Path) -> Any:
    """gliner's token-level model of a row with random weights, saved by its own save_pretrained under folder/public."""
    import json

    from gliner import GLiNER
    from gliner.config import GLiNERConfig

    options = dict(row.options)
    text, labels, pickled = options.pop("text"), options.pop("labels"), options.pop("pickled", False)
    model_type = options.pop("model_type", None)
    encoder = save_encoder(folder / "text", text, 48, vocab_size=400)
    two = {}
    if labels is not None:
        config = save_encoder(folder / "labels", labels, 32, vocab_size=330)
        two = {"labels_encoder": str(folder / "labels"), "labels_encoder_config": config.to_dict()}
    fields = {"max_width": 12, "max_len": 384, "num_rnn_layers": 0, "hidden_size": 48, **options, **two}
    config = GLiNERConfig(
        model_name=str(folder / "text"),
        encoder_config=encoder.to_dict(),
        dropout=0.1,
        span_mode="token_level",
        **fields,
    )
    torch.manual_seed(2)
    model = GLiNER.from_config(config, backbone_from_pretrained=False).eval()
    spread_logits(model)
    model.save_pretrained(folder / "public", safe_serialization=not pickled)
    if model_type is not None:
        file = folder / "public" / "gliner_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": model_type}))
    return model


def spread_logits(model: Any) -> None:
    """Scale a fresh scorer's logits: some words start and end entities, most are inside, so that some are long."""
    from glimodern.inputs.words import split_words

    texts = [[word.text for word in split_words(text)] for text in TEXTS]
    last = model.model.scorer.out_mlp[3]
    with torch.no_grad():
        model.model.scorer.proj_token.weight.mul_(5.0)  # words differ more than types
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_len cuts
            logits = torch.cat([x.flatten(0, 1) for x in public_logits(model, texts)])
        scale = 1.0 / logits.std(0)
        last.weight.mul_(scale[:, None])
        last.bias.copy_((last.bias - logits.mean(0)) * scale + torch.tensor([-0.3, -0.3, 1.0]))


def public_logits(model: Any, texts: list[list[str]]) -> list[torch.Tensor]:
    """Of each text [words, labels, 3]."""
    batch = model.collate_batch(
        [{"tokenized_text": words, "ner": None} for words in texts], LABELS, model.create_collator()
    )
    with torch.no_grad():
        logits = model.model(**{k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}).logits
    kept = [min(len(words), model.config.max_len) for words in texts]
    return [logits[i, :words, : len(LABELS)] for i, words in enumerate(kept)]


def greatest_difference(public: Any, ours: Any) -> float:
    from glimodern.inputs.words import split_words

    texts = [[word.text for word in split_words(text)] for text in TEXTS]
    with torch.no_grad():
        got = ours.scores(ours.packer.pack(texts, [LABELS] * len(texts)))
    wanted = public_logits(public, texts)
    assert [x.shape for x in got] == [x.shape for x in wanted]
    assert torch.cat([x.flatten() for x in wanted]).std() > 0.3, "logits too near each other"
    return max(float((one - other).abs().max()) for one, other in zip(got, wanted, strict=True))


def same_entities(public: Any, ours: Any) -> int:
    """How many words the longest entity has that both find; AssertionError if they differ anywhere."""
    longest = 0
    for threshold, flat, multi_label in OPTIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both say that max_len cuts
            theirs = public.inference(list(TEXTS), LABELS, threshold=threshold, flat_ner=flat, multi_label=multi_label)
            mine = ours.predict(TEXTS, LABELS, threshold, flat, multi_label, long_texts="cut")
        found = sum(map(len, theirs))
        assert found > 0
        for wanted, got in zip(theirs, mine, strict=True):
            assert [(e["start"], e["end"], e["text"], e["label"]) for e in got] == [
                (e["start"], e["end"], e["text"], e["label"]) for e in wanted
            ]
            assert all(abs(one["score"] - other["score"]) <= 1e-5 for one, other in zip(got, wanted, strict=True))
            longest = max([longest, *(len(e["text"].split()) for e in wanted)])
    return longest


def measure(row: Row, folder: Path) -> tuple[str, ...]:
    """gliner's random checkpoint read here, what is saved here read by gliner with strict=True."""
    from gliner import GLiNER

    from glimodern import GLiModern

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gliner: resizing is not supported; subtoken_pooling of an old version
        public = public_model(row, folder)
        ours = GLiModern.from_pretrained(folder / "public", dtype="fp32")
        ours.save_pretrained(folder / "saved")
        again = GLiNER.from_pretrained(str(folder / "saved"), strict=True).eval()
    assert type(again) is type(public)
    difference = max(greatest_difference(public, ours), greatest_difference(again, ours))
    assert difference <= 1e-4
    longest = same_entities(public, ours)
    assert same_entities(again, ours) == longest
    return decade(difference), "yes", str(longest)


SECTION = Section(
    title="Token-level checkpoints",
    text="""`span_mode` "token_level": start, end and inside scores of every word, for entities of any length. Built,
read, saved and compared as above; the entities at four thresholds, flat, nested and with several labels. NuNER-Zero,
gliner-multitask and GLiNER-x are such models. Their weights and configs were not at hand: the rows of their names are
tiny models with random weights, on an encoder of the architecture that they are built on.""",
    columns=("kind", "encoder", "LSTM layers", "head's width", "also"),
    measured=("logits differ by", "entities equal", "words of the longest"),
    rows=ROWS,
    measure=measure,
    notes="""An entity begins where start exceeds the threshold, ends where end does, and inside reaches it in all of
its words; its score is the least of these. `max_width` does not limit it. Texts longer than the encoder are read in
windows that hold every entity of `max_width` words with its context; a longer one that lies whole in no window is not
found.
`predict`'s `spans`, `scores="all"` and `vectors` work: a span's vector is the mean of its words' vectors, as in gliner.
`glimodern.inspect`, which ranks spans, refuses such a model, and `accelerate_gliner` replaces its encoder only.
`represent_spans`, a second head over the spans that the first one found, is refused.""",
)
