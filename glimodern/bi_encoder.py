"""The bi-encoder: labels are read by an encoder of their own, once, and texts hold no prompt.

    [CLS] words... [SEP] -> text encoder -> words [n, d]        [CLS] label [SEP] -> label encoder -> mean -> [m, d]

Public models of this kind put a ModernBERT on the texts and a sentence encoder (BGE, MiniLM) on the labels. A label's
vector depends on nothing but the label: it is made once, kept, and asked of any text, thousands at a time. The LSTM
that some of their checkpoints hold is not run by the public package, so it is not run here.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.ambient import lasting
from glimodern.checkpoint import ModelConfig
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.encoder.packed_linear import PackedLinear
from glimodern.forks import keep_to_own_threads, watch_forks
from glimodern.head import SpanHead
from glimodern.hub import HubAccess
from glimodern.labels import LabelVectors
from glimodern.ops._cost import fold_types
from glimodern.plain_text import plain_tokenizer
from glimodern.prompt import Entity, PackedBatch, PromptPacker, PromptTokens, TextTokens, load_tokenizer, token_limit

_NONE = np.empty(0, dtype=np.int64)
_CHUNK_TOKENS = 2048  # of labels that are encoded at a time
_LABELS_KEPT = 4096  # of the labels that were asked last; and of label vectors whose fold is kept
_TYPE_ROWS = 4096  # type vectors that exist twice: one text's, or those of some texts with few types
_SAMPLE = 256  # values of a tensor that its fingerprint reads


@dataclass(frozen=True, kw_only=True)
class LabelBatch(PackedBatch):
    """A batch of texts without prompts. labels: the distinct ones asked of its texts; type_index int64 [m] counts in
    them, not in the tokens."""

    labels: tuple[str, ...]


class TextPacker(PromptPacker):
    """Packs words alone, `[CLS] words... [SEP]`; the labels go beside them, as they are."""

    asks_in_text = False

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, ent_token=None, sep_token=None, **options)

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """No tokens, whatever is asked."""
        return PromptTokens(_NONE, _NONE, _NONE)

    def pack_tokens(
        self,
        texts: Sequence[TextTokens],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> LabelBatch:
        batch = super().pack_tokens(texts, types, entities)
        distinct: dict[str, int] = {}
        index, rows = [_NONE], _NONE
        for i, asked in enumerate(types):
            if not i or asked is not types[i - 1]:  # most texts are asked the same list, thousands long maybe
                rows = np.array([distinct.setdefault(label, len(distinct)) for label in asked], dtype=np.int64)
            index.append(rows)
        packed = {field.name: getattr(batch, field.name) for field in fields(batch)}
        packed["type_index"] = torch.from_numpy(np.concatenate(index))
        return LabelBatch(**packed, labels=tuple(distinct))


class LabelEncoder(nn.Module):
    """Labels in, vectors out: an encoder, the mean over a label's tokens, and a projection to the head's width d if the
    encoder has another."""

    def __init__(self, encoder: Encoder, tokenizer: Any, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        if encoder.hidden_size != width:
            self.projection = nn.Linear(encoder.hidden_size, width)
        self._tokens, _ = plain_tokenizer(tokenizer.backend_tokenizer)
        self.max_tokens = token_limit(tokenizer, encoder.max_length)
        if self.max_tokens is not None:
            self._tokens.enable_truncation(self.max_tokens)
        self.sealed: str | None = None  # the fingerprint of weights that stay as they are

    def forward(self, labels: Sequence[str]) -> Tensor:
        """labels [m] -> vectors [m, d]; differentiable, packed, some thousand tokens at a time."""
        keep_to_own_threads()
        chunks, chunk, room = [], list[list[int]](), _CHUNK_TOKENS
        encodings = self._tokens.encode_batch(list(labels))
        if cut := [label for label, encoding in zip(labels, encodings, strict=True) if encoding.overflowing]:
            warnings.warn(
                f"labels: {len(cut)} are longer than the label encoder takes ({self.max_tokens} tokens) and are read "
                f"to there: {', '.join(f'{label[:40]!r}...' for label in cut[:3])}",
                stacklevel=2,
            )
        for encoding in encodings:
            if chunk and len(encoding.ids) > room:
                chunks.append(self._pooled(chunk))
                chunk, room = [], _CHUNK_TOKENS
            chunk.append(encoding.ids)
            room -= len(encoding.ids)
        chunks.append(self._pooled(chunk))
        pooled = torch.cat(chunks)
        vectors: Tensor = self.projection(pooled) if "projection" in self._modules else pooled
        return vectors

    def _pooled(self, labels: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of labels -> the mean of each label's hidden states, [m, encoder's width]."""
        device = next(self.encoder.parameters()).device
        lengths = torch.tensor([len(ids) for ids in labels], dtype=torch.int64, device="cpu")
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
        ids = torch.tensor([token for label in labels for token in label], dtype=torch.int64, device="cpu")
        hidden = self.encoder(ids.to(device), ends.to(device), int(lengths.max()) if len(labels) else 0)
        lengths = lengths.to(device)
        total = torch.segment_reduce(hidden.float(), "sum", lengths=lengths, axis=0, unsafe=True)
        return (total / lengths.clamp(min=1)[:, None]).to(hidden.dtype)

    def pack(self, dtype: str) -> bool:
        """Pack the linear layers for inference; returns whether the encoder's were."""
        if "projection" in self._modules:
            self.projection = PackedLinear(self.projection, dtype)  # type: ignore[assignment]
        return self.encoder.pack(dtype)

    def seal(self) -> None:
        """Promise that the weights stay as they are, but for packing and casting; their fingerprint is kept."""
        self.sealed = self.fingerprint

    @property
    def fingerprint(self) -> str:
        """Tells label encoders apart: a hash of every weight's name and shape, and of some of its values in fp32."""
        if self.sealed is not None:
            return self.sealed
        told = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            values = tensor.detach().flatten()
            told.update(f"{name} {tuple(tensor.shape)}".encode())
            told.update(values[:: max(1, len(values) // _SAMPLE)].float().cpu().numpy().tobytes())
        return told.hexdigest()


class Types(NamedTuple):
    """Labels, the row of each, their type vectors q [labels, d], and u [labels, H], c [labels] of the fold if kept."""

    labels: tuple[str, ...]
    rows: dict[str, int]
    q: Tensor
    folded: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, labels: Sequence[str], vectors: Tensor, head: SpanHead, fold: bool) -> "Types":
        """The head's side of label vectors [labels, d]."""
        # some at a time: the hidden layer of MLP_prompt is four times as wide
        q = torch.cat([head.prompt(part) for part in vectors.split(_TYPE_ROWS)])
        _, _, w2, b2, _ = head.factors(q[:0], q[:0])
        folded = fold_types(q, w2, b2) if fold and len(q) <= _LABELS_KEPT else None
        return cls(tuple(labels), {label: row for row, label in enumerate(labels)}, q, folded)

    def joined(self, other: "Types") -> "Types":
        """With those of other labels after them."""
        labels = (*self.labels, *other.labels)
        folded = None
        if self.folded is not None and other.folded is not None:
            folded = (torch.cat([self.folded[0], other.folded[0]]), torch.cat([self.folded[1], other.folded[1]]))
        return Types(labels, {label: row for row, label in enumerate(labels)}, torch.cat([self.q, other.q]), folded)


class TypeCache:
    """The types of the labels that were asked last, and of `LabelVectors`, for a model whose weights stay as they are.

    Of a model that can be trained nothing is kept: a fused optimizer changes weights and leaves no trace. Safe to use
    from several threads.
    """

    def __init__(self) -> None:
        watch_forks(self)
        self.after_fork()

    def after_fork(self) -> None:
        """Start anew: a thread of the parent may hold the lock."""
        self._lock = Lock()
        self._drop(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return TypeCache, ()  # of a copied or pickled model: nothing kept, a lock of its own

    def _drop(self, place: tuple[torch.device, torch.dtype, nn.Module] | None) -> None:
        self._place = place
        self._asked: Types | None = None
        self._given: WeakKeyDictionary[LabelVectors, Types] = WeakKeyDictionary()

    def find(
        self, labels: Sequence[str], label_vectors: LabelVectors | None, encoder: LabelEncoder, head: SpanHead
    ) -> Types:
        """Of these labels and maybe more: from label vectors, or by the encoder where they are not kept."""
        weight = next(encoder.parameters())
        if not encoder.sealed:
            vectors = encoder(labels) if label_vectors is None else label_vectors.of(labels)
            return Types.of(labels, vectors.to(weight.device, weight.dtype), head, fold=False)
        with self._lock, lasting():
            place = (weight.device, weight.dtype, head.prompt)  # packing gives the head another
            if self._place != place:
                self._drop(place)
            if label_vectors is None:
                return self._encoded(labels, encoder, head)
            types = self._given.get(label_vectors)
            if types is None:
                vectors = label_vectors.vectors.to(weight.device, weight.dtype)
                types = self._given[label_vectors] = Types.of(label_vectors.labels, vectors, head, fold=True)
            return types

    def _encoded(self, labels: Sequence[str], encoder: LabelEncoder, head: SpanHead) -> Types:
        kept = self._asked
        missing = [label for label in labels if kept is None or label not in kept.rows]
        if kept is None or (missing and len(kept.labels) + len(missing) > _LABELS_KEPT):
            kept = Types.of(labels, encoder(labels), head, fold=True)
        elif missing:
            kept = kept.joined(Types.of(missing, encoder(missing), head, fold=True))
        self._asked = kept
        return kept


def label_entities(
    head: SpanHead, words: Tensor, batch: LabelBatch, types: Types, max_width: int, threshold: float
) -> ops.SpanEntities:
    """Candidates of a batch whose words [n, d] are known. batch: on the CPU.

    A few texts at a time, so that type vectors of many labels are not repeated for every text.
    """
    a, b, w2, b2, _ = head.factors(words, types.q[:0])
    index = batch.type_index
    if batch.labels != types.labels:
        index = torch.tensor([types.rows[label] for label in batch.labels], dtype=torch.int64, device="cpu")[index]
    everything = torch.arange(len(types.labels), device="cpu")
    found = []
    same, q, folded = everything, types.q, types.folded
    for (w0, w1), (t0, t1), texts in _runs(batch):
        if not torch.equal(same, index[t0:t1]):
            same = index[t0:t1]
            rows = same.to(words.device)
            q = types.q.index_select(0, rows)
            if types.folded is not None:
                folded = (types.folded[0].index_select(0, rows), types.folded[1].index_select(0, rows))
        cu_words, cu_types = batch.cu_words[texts] - w0, batch.cu_types[texts] - t0
        bounds = (cu_words.to(a.device), cu_types.to(a.device))
        part = ops.head_entities(a[w0:w1], b[w0:w1], w2, b2, q, *bounds, max_width, threshold, folded)
        found.append(part._replace(word=part.word + w0, type=part.type + t0))
    return ops.SpanEntities(*(torch.cat(column) for column in zip(*found, strict=True)))


def _runs(batch: LabelBatch) -> Iterator[tuple[tuple[int, int], tuple[int, int], slice]]:
    """Consecutive texts with at most _TYPE_ROWS types, or one text: bounds of words and types, and of the offsets."""
    words, types = batch.cu_words.tolist(), batch.cu_types.tolist()
    first = 0
    for text, (_, end) in enumerate(pairwise(types)):
        last = text + 2 == len(types)
        if last or types[text + 2] - types[first] > _TYPE_ROWS:
            yield (words[first], words[text + 1]), (types[first], end), slice(first, text + 2)
            first = text + 1


def fresh_labels(path_or_hub_id: str, width: int, hub: HubAccess) -> LabelEncoder:
    """A pretrained label encoder with its tokenizer, of a folder or hub name."""
    encoder = load_encoder(path_or_hub_id, hub)
    return LabelEncoder(encoder, load_tokenizer(path_or_hub_id, add_bos_eos=False, **hub.options()), width)


def stored_labels(config: ModelConfig, tokenizer: Any) -> LabelEncoder | None:
    """The label encoder that a checkpoint's config describes, without its weights; None for a uni-encoder."""
    if config.labels_encoder_config is None:
        return None
    return LabelEncoder(build_encoder(config.labels_encoder_config, values=False), tokenizer, config.hidden_size)
