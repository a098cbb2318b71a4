"""The encoders of docs/COMPATIBILITY.md: a tiny config of each architecture, and what is checked of it.

`check(row)` trains a model of the row, saves, loads and predicts with it, compares the packed run with the padded one
of transformers, and packs its linear layers; it asserts, and returns the row's columns.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimodern import GLiModern
from glimodern.encoder import Encoder, build_encoder
from glimodern.layers.packed_linear import PackedLinear

STEPS, THRESHOLD = 20, 0.05
TEXTS = [
    "Ada Lovelace met Charles Babbage in London .".split(),
    "Grace Hopper left Paris for New York in 1943 , and wrote to Alan Turing .".split(),
    "Nothing to see here .".split(),
    "Alan Turing lives in London .".split(),
]
LABELS = ["person", "place"]
GOLD = [
    [(0, 1, "person"), (3, 4, "person"), (6, 6, "place")],
    [(0, 1, "person"), (3, 3, "place"), (5, 6, "place"), (13, 14, "person")],
    [],
    [(0, 1, "person"), (4, 4, "place")],
]
RAGGED = [40, 7, 1, 38, 7, 90, 40]

_BERT = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
_MODERNBERT = dict(_BERT, num_hidden_layers=4, local_attention=16)
_T5 = dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0)
_DEBERTA = dict(
    _BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0
)


@dataclass(frozen=True)
class EncoderRow:
    """An architecture: its name, its tiny config (without vocabulary and special tokens, which the tokenizer gives) and
    the kind of tokenizer that its public checkpoints have."""

    name: str
    model_type: str
    tokenizer: str
    config: Mapping[str, Any] = field(default_factory=lambda: _BERT)
    packed: bool = True


ROWS = (
    EncoderRow("ModernBERT", "modernbert", "byte-level", _MODERNBERT),
    # hidden 256, MLP 384, 7 layers (17M), 384, 576, 10 (32M) and up; one rotary base for both kinds of layers
    EncoderRow("Ettin", "modernbert", "byte-level", dict(_MODERNBERT, local_rope_theta=160000.0)),
    # 256,000 tokens, Gemma's tokenizer and special tokens, Ettin's rotary base
    EncoderRow("mmBERT", "modernbert", "gemma", dict(_MODERNBERT, local_rope_theta=160000.0)),
    EncoderRow(
        "Granite embedding R2",
        "modernbert",
        "byte-level",
        dict(_MODERNBERT, global_rope_theta=150000.0, local_rope_theta=160000.0, hidden_activation="silu"),
    ),
    EncoderRow("BERT", "bert", "wordpiece"),
    EncoderRow("RoBERTa", "roberta", "roberta"),
    EncoderRow("XLM-RoBERTa", "xlm-roberta", "sentencepiece"),
    EncoderRow("XLM-RoBERTa-XL", "xlm-roberta-xl", "sentencepiece"),
    EncoderRow("CamemBERT", "camembert", "sentencepiece"),
    EncoderRow("DistilBERT", "distilbert", "wordpiece", dict(dim=64, n_layers=2, n_heads=4, hidden_dim=96)),
    EncoderRow("ELECTRA", "electra", "wordpiece", dict(_BERT, embedding_size=32)),
    EncoderRow("ERNIE", "ernie", "wordpiece"),
    EncoderRow("ALBERT", "albert", "sentencepiece", dict(_BERT, embedding_size=32)),
    EncoderRow("MPNet", "mpnet", "wordpiece"),
    EncoderRow("DeBERTa", "deberta", "roberta", dict(_DEBERTA), packed=False),
    EncoderRow("DeBERTa-v2", "deberta-v2", "sentencepiece", dict(_DEBERTA, conv_kernel_size=3, conv_act="gelu")),
    EncoderRow(
        "DeBERTa-v3",
        "deberta-v2",
        "sentencepiece",
        dict(_DEBERTA, position_buckets=16, share_att_key=True, norm_rel_ebd="layer_norm", max_position_embeddings=64),
    ),
    EncoderRow("T5", "t5", "t5", _T5),
    EncoderRow("T5 1.1, Flan-T5", "t5", "t5", dict(_T5, feed_forward_proj="gated-gelu")),
    EncoderRow("mT5", "mt5", "t5", _T5),
    EncoderRow("UMT5", "umt5", "t5", _T5),
    EncoderRow("NomicBERT", "nomic_bert", "wordpiece"),
    EncoderRow("EuroBERT", "eurobert", "llama", dict(_BERT, num_key_value_heads=2)),
)


def make_tokenizer(kind: str) -> Any:
    """A tokenizer built as those of the public checkpoints are, trained on TEXTS: "wordpiece", "byte-level", "roberta"
    (byte-level with other special tokens), "llama" (byte-level after a split), "gemma" (no prefix space),
    "sentencepiece" and "t5" (nothing before a text)."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pad, unk, cls, sep = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    if kind in ("roberta", "sentencepiece"):
        cls, pad, sep, unk = "<s>", "<pad>", "</s>", "<unk>"
    elif kind == "t5":
        pad, sep, unk = "<pad>", "</s>", "<unk>"
    elif kind == "gemma":
        pad, sep, cls, unk = "<pad>", "<eos>", "<bos>", "<unk>"
    special = [cls, pad, sep, unk] if kind in ("roberta", "sentencepiece") else [pad, unk, cls, sep]
    if kind == "t5":
        special = [pad, sep, unk]
    options: dict[str, Any] = dict(vocab_size=400, special_tokens=special, show_progress=False)
    trainer: Any
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**options)
    elif kind in ("sentencepiece", "t5"):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unk, **options)
    elif kind == "gemma":
        tokenizer = Tokenizer(models.BPE(unk_token=unk, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(**options)
    else:
        tokenizer = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "llama")
        if kind == "llama":
            split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        else:
            tokenizer.pre_tokenizer = level
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
    tokenizer.train_from_iterator([" ".join(words) for words in [*TEXTS, LABELS] for _ in range(4)], trainer)
    if kind == "gemma":  # the vocabulary is sentencepiece's, but no space is put before a text
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    ends = [(token, tokenizer.token_to_id(token)) for token in (cls, sep) if tokenizer.token_to_id(token) is not None]
    template = f"$A {sep}" if kind == "t5" else f"{cls} $A {sep}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    names = dict(pad_token=pad, unk_token=unk, sep_token=sep, eos_token=sep)
    if kind != "t5":
        names |= dict(cls_token=cls, bos_token=cls)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)


def config_of(row: EncoderRow, tokenizer: Any) -> dict[str, Any]:
    """The row's config with the tokenizer's vocabulary and special tokens."""
    ids = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id",
        "sep_token_id") if getattr(tokenizer, name) is not None
    }  # fmt: skip
    places = {} if row.model_type in ("t5", "mt5", "umt5") else {"max_position_embeddings": 160}
    scale = {} if places == {} else {"initializer_range": 0.05}
    return {"model_type": row.model_type, "vocab_size": len(tokenizer), **places, **scale, **ids, **row.config}


def padded_reference(encoder: Encoder, config: dict[str, Any]) -> Any:
    """transformers' own model of the config, with the encoder's weights and transformers' attention."""
    from transformers import AutoConfig

    from glimodern.encoder import _model_class

    own = AutoConfig.for_model(**config)
    model = _model_class(own).from_config(own).eval()
    model.load_state_dict(encoder.model.state_dict())
    return model


def run_padded(model: torch.nn.Module, texts: Sequence[Tensor], pad: int) -> Tensor:
    """All texts in one padded batch, by the model itself; the padding taken out again."""
    ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=pad)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor([len(text) for text in texts])[:, None]
    hidden: Tensor = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return hidden[mask]


def ragged(vocabulary: int) -> tuple[list[Tensor], tuple[Tensor, Tensor, int]]:
    """Random texts of RAGGED lengths, and the same packed: ids, cu_seqlens, the longest."""
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(4, vocabulary, (n,), generator=generator) for n in RAGGED]
    return texts, (torch.cat(texts), torch.tensor([0, *RAGGED]).cumsum(0).int(), max(RAGGED))


def packed_layers(module: torch.nn.Module) -> int:
    return sum(isinstance(layer, PackedLinear) for layer in module.modules())


def check(row: EncoderRow) -> dict[str, Any]:
    """Build, train, save, load and predict with a tiny model of the row; asserts, and returns the columns: encoder,
    packed, why, difference (of the packed run from the padded one), trained, saved, linears (packed for inference)."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(row.tokenizer)
    config = config_of(row, tokenizer)
    encoder = build_encoder(config).eval().requires_grad_(False)
    assert encoder.packed == row.packed, f"{row.name}: {encoder.packed_reason}"
    texts, batch = ragged(len(tokenizer))
    hidden = encoder(*batch)
    difference = (hidden - run_padded(padded_reference(encoder, config), texts, tokenizer.pad_token_id)).abs().max()
    assert difference <= 1e-5, f"{row.name}: the packed run is off by {difference:.1e}"
    linears = _check_packing(row, encoder, batch, hidden)

    model = GLiModern.from_encoder_config(config, tokenizer, dropout=0.0, max_width=4)
    losses = _train(model)
    assert losses[-1] < 0.5 * losses[0], f"{row.name}: the loss went from {losses[0]:.3g} to {losses[-1]:.3g}"
    text = [" ".join(words) for words in TEXTS]
    model.eval()
    found = model.predict(text, LABELS, THRESHOLD, long_texts="cut")
    assert any(found), f"{row.name}: no entity after training"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        for trainable in (True, False):
            again = GLiModern.from_pretrained(Path(folder) / "model", dtype="fp32", trainable=trainable)
            _same_entities(row, found, again.predict(text, LABELS, THRESHOLD, long_texts="cut"))
    return {
        "encoder": row.name,
        "packed": encoder.packed,
        "why": encoder.packed_reason,
        "difference": difference.item(),
        "trained": f"loss {losses[0]:.3g} to {losses[-1]:.2g} in {STEPS} steps",
        "saved": f"{sum(map(len, found))} entities, the same after loading",
        "linears": linears,
    }


def _check_packing(row: EncoderRow, encoder: Encoder, batch: tuple[Tensor, Tensor, int], hidden: Tensor) -> int:
    """The encoder with packed linears gives the same hidden states; how many layers were packed."""
    state = encoder.state_dict()
    count = 0
    for dtype, tolerance in (("fp32", 1e-5), ("int8", 0.1)):
        other = build_encoder(encoder.config).eval().requires_grad_(False)
        other.load_state_dict(state)
        packs = other.pack(dtype)
        count = packed_layers(other)
        assert packs and count > 0, f"{row.name}: {count} layers packed, pack() said {packs}"
        error = (other(*batch) - hidden).square().mean().sqrt() / hidden.square().mean().sqrt()
        assert error <= tolerance, f"{row.name}: with {dtype} linears off by {error:.1e} of the size"
        assert dtype == "fp32" or error > 0
    return count


def _train(model: GLiModern) -> list[float]:
    batch = model.packer.pack(TEXTS, [LABELS] * len(TEXTS), GOLD)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    model.train()
    for _ in range(STEPS):
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _same_entities(row: EncoderRow, wanted: Sequence[Any], got: Sequence[Any]) -> None:
    for ours, theirs in zip(wanted, got, strict=True):
        spans = [[(e["start"], e["end"], e["label"]) for e in entities] for entities in (ours, theirs)]
        assert spans[0] == spans[1], f"{row.name}: {spans[0]} before saving, {spans[1]} after loading"
        for a, b in zip(ours, theirs, strict=True):
            assert abs(a["score"] - b["score"]) < 1e-4
