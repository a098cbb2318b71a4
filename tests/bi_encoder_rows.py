"""Bi-encoder checkpoints of the public package, one a row: random weights, built offline with gliner itself.

`check(row)` says how far our logits are from gliner's and whether the entities are the same; docs/COMPATIBILITY.md and
tests/test_bi_encoder.py are made from it.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glimodern import GLiModern
from glimodern.model.precision import CANARY_TEXTS
from tests.conftest import WORDS

LABELS = ["person", "member of a political party", "country", "Krankheit (disease)"]
TEXTS = CANARY_TEXTS[:6]


class Row(NamedTuple):
    """text, labels: kind and width of the two encoders; hidden_size: the head's width."""

    name: str
    text: tuple[str, int]
    labels: tuple[str, int]
    hidden_size: int
    options: dict[str, Any] = {}
    safetensors: bool = True


ROWS = (
    Row("ModernBERT, BERT on labels, one width", ("modernbert", 48), ("bert", 48), 48),
    Row("ModernBERT, BERT on labels of another width", ("modernbert", 48), ("bert", 32), 48),
    Row("ModernBERT and BERT, both projected", ("modernbert", 48), ("bert", 32), 64),
    Row("stored LSTM, which gliner does not run", ("modernbert", 48), ("bert", 32), 64, {"num_rnn_layers": 1}),
    Row("ModernBERT on texts and labels", ("modernbert", 48), ("modernbert", 32), 48),
    Row("BERT, RoBERTa on labels (positions from 2)", ("bert", 48), ("roberta", 48), 48),
    Row("DeBERTa, DistilBERT on labels", ("deberta-v2", 48), ("distilbert", 48), 48),
    Row("ModernBERT, MPNet on labels, pytorch_model.bin", ("modernbert", 48), ("mpnet", 48), 48, {}, False),
    Row("span_mode marker", ("modernbert", 48), ("bert", 32), 48, {"span_mode": "marker"}),
    Row("subtoken_pooling mean", ("modernbert", 48), ("bert", 32), 64, {"subtoken_pooling": "mean"}),
    Row("bos and eos of labels forgotten", ("modernbert", 48), ("bert", 48), 48, {"bos": True}),
    Row("max_width 5, max_len 10", ("modernbert", 48), ("bert", 48), 48, {"max_width": 5, "max_len": 10}),
)


def encoder_config(kind: str, width: int, vocab_size: int) -> Any:
    """The config of a tiny encoder whose special tokens are those of `glimodern.train.demo.train_tokenizer`."""
    from transformers import AutoConfig

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": width}
    more: dict[str, Any] = {
        "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 2, "sep_token_id": 3},
        "distilbert": {"n_layers": 2, "n_heads": 4, "hidden_dim": 64, "dim": width},
        "mt5": {"d_model": width, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    }.get(kind, {})
    sizes = {} if kind in ("distilbert", "mt5") else sizes
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.2}
    return AutoConfig.for_model(kind, vocab_size=vocab_size, **special, **sizes, **more)


def save_encoder(folder: Path, kind: str, width: int, vocab_size: int, bos: bool = False) -> Any:
    """A tiny encoder with random weights and its tokenizer, as transformers stores them; returns the config.

    bos: the tokenizer has bos and eos tokens that it does not put around a text, as transformers 5 reads some.
    """
    from transformers import AutoModel, PreTrainedTokenizerFast

    from glimodern.train.demo import train_tokenizer

    tokenizer = train_tokenizer([text.split() for text in CANARY_TEXTS], LABELS, vocab_size)
    if bos:
        backend = tokenizer.backend_tokenizer
        backend.post_processor = None
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
        )
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    config = encoder_config(kind, width, len(tokenizer))
    torch.manual_seed(1)
    AutoModel.from_config(config).save_pretrained(folder)
    return config


def model_of(kind: str, folder: Path, **head: Any) -> GLiModern:
    """A tiny model of random weights on an encoder of this kind, saved to a folder."""
    from glimodern.train.demo import train_tokenizer

    tokenizer = train_tokenizer([WORDS] * 4, ["person", "place", "machine"], vocab_size=320)
    torch.manual_seed(0)
    model = GLiModern.from_encoder_config(encoder_config(kind, 64, len(tokenizer)), tokenizer, **head).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ffn: the public package does not know it
        model.save_pretrained(folder)
    return model


def spread_types(prompt: torch.nn.Module) -> None:
    """Makes a fresh head's type vectors large, so that logits are of the size of a trained model's."""
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.mul_(5.0)


def public_model(row: Row, folder: Path) -> Any:
    """gliner's model of a row with random weights, saved by its own save_pretrained under folder/public."""
    from gliner import GLiNER
    from gliner.config import GLiNERConfig

    text = save_encoder(folder / "text", *row.text, vocab_size=400)
    options = {"max_width": 12, "max_len": 384, "num_rnn_layers": 0, **row.options}
    labels = save_encoder(folder / "labels", *row.labels, vocab_size=330, bos=options.pop("bos", False))
    config = GLiNERConfig(
        model_name=str(folder / "text"), encoder_config=text.to_dict(), labels_encoder=str(folder / "labels"),
        labels_encoder_config=labels.to_dict(), hidden_size=row.hidden_size, dropout=0.1, **options,
    )  # fmt: skip
    torch.manual_seed(2)
    model = GLiNER.from_config(config, backbone_from_pretrained=False)
    spread_types(model.model.prompt_rep_layer)
    model.save_pretrained(folder / "public", safe_serialization=row.safetensors)
    return model.eval()


def public_logits(model: Any, texts: list[list[str]], labels: list[str]) -> list[torch.Tensor]:
    """Of each text [words, max_width, labels]."""
    batch = model.collate_batch(
        [{"tokenized_text": words, "ner": None} for words in texts], labels, model.create_collator()
    )
    with torch.no_grad():
        logits = model.model(**{k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}).logits
    return [logits[i, : len(words)] for i, words in enumerate(texts)]


def difference(public: Any, ours: Any, texts: list[list[str]]) -> float:
    """The greatest between the two models' logits of spans inside their texts."""
    with torch.no_grad():
        scores = ours.scores(ours.packer.pack(texts, [LABELS] * len(texts)))
    worst = 0.0
    for wanted, got in zip(public_logits(public, texts, LABELS), scores, strict=True):
        wanted = wanted[: len(got)]
        inside = torch.isfinite(got)
        words, width, _ = got.shape
        assert torch.equal(inside[..., 0], torch.arange(words)[:, None] + torch.arange(width) < words)
        worst = max(worst, float((got - wanted)[inside].abs().max()))
    return worst


def same_entities(public: Any, ours: Any, threshold: float) -> bool:
    """Whether both find the same, overlapping or not, by labels and by vectors of the labels; and whether anything."""
    vectors, public_vectors = ours.encode_labels(LABELS), public.encode_labels(LABELS)
    found = 0
    for flat, multi_label in ((True, False), (False, True)):
        options = {"threshold": threshold, "flat_ner": flat, "multi_label": multi_label}
        sides = [
            public.inference(list(TEXTS), LABELS, **options),
            public.batch_predict_with_embeds(list(TEXTS), public_vectors, LABELS, **options),
            ours.predict(TEXTS, LABELS, threshold, flat, multi_label, long_texts="cut"),
            ours.predict(TEXTS, None, threshold, flat, multi_label, label_vectors=vectors, long_texts="cut"),
        ]
        spans = [[[(e["start"], e["end"], e["text"], e["label"]) for e in text] for text in side] for side in sides]
        scores = torch.tensor([[e["score"] for text in side for e in text] for side in sides if spans[0] == spans[-1]])
        if any(side != spans[0] for side in spans) or float((scores - scores[0]).abs().max()) > 1e-5:
            return False
        found += scores.shape[1]
    return found > 0


def check(row: Row) -> tuple[float, bool]:
    """(greatest difference of logits, whether the entities are the same): of the checkpoint that gliner saved as we
    read it, and of the one that we save as gliner reads it, strictly."""
    import warnings

    from gliner import GLiNER

    from glimodern import GLiModern

    words = [text.replace(",", " ,").replace(".", " .").split()[:10] for text in TEXTS] + [["one"]]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gliner: "resizing is not supported"; ours: texts beyond max_len
        folder = Path(name)
        public = public_model(row, folder)
        ours = GLiModern.from_pretrained(folder / "public", dtype="fp32")
        logits = torch.cat([t[torch.isfinite(t)] for t in ours.scores(ours.packer.pack(words, [LABELS] * len(words)))])
        assert min(logits.std(), logits.view(-1, len(LABELS)).std(1).mean()) > 0.1, "logits too near each other"
        threshold = float(torch.sigmoid(logits).quantile(0.98))
        ours.save_pretrained(folder / "saved")
        again = GLiNER.from_pretrained(str(folder / "saved"), strict=True).eval()
        worst = max(difference(public, ours, words), difference(again, ours, words))
        return worst, same_entities(public, ours, threshold)
