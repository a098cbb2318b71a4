"""The bi-encoder: labels are read by an encoder of their own, once, and texts hold no prompt.

    [CLS] words... [SEP] -> text encoder -> words [n, d]        [CLS] label [SEP] -> label encoder -> mean -> [m, d]

Public models of this kind put a ModernBERT on the texts and a sentence encoder (BGE, MiniLM) on the labels. A label's
vector depends on nothing but the label: it is made once, kept, and asked of any text, thousands at a time. The LSTM
that some of their checkpoints hold is not run by the public package, so it is not run here.
"""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.checkpoint.config import ModelConfig
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.files.hub import HubAccess
from glimodern.files.tokenizer import load_tokenizer, token_limit
from glimodern.inputs.plain_text import plain_tokenizer
from glimodern.layers.packed_linear import PackedLinear
from glimodern.runtime.forks import keep_to_own_threads

_CHUNK_TOKENS = 2048  # of labels that are encoded at a time
_SAMPLE = 256  # values of a tensor that its fingerprint reads


class LabelEncoder(nn.Module):
    """Labels in, vectors out: an encoder, the mean over a label's tokens, and a projection to the head's width d if the
    encoder has another."""

    def __init__(self, encoder: Encoder, tokenizer: Any, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.projection: nn.Module = nn.Identity()
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
        vectors: Tensor = self.projection(torch.cat(chunks))
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
        if isinstance(self.projection, nn.Linear):
            self.projection = PackedLinear(self.projection, dtype)
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


def fresh_label_encoder(path_or_hub_id: str, width: int, hub: HubAccess) -> LabelEncoder:
    """A pretrained label encoder with its tokenizer, of a folder or hub name."""
    encoder = load_encoder(path_or_hub_id, hub)
    return LabelEncoder(encoder, load_tokenizer(path_or_hub_id, add_bos_eos=False, **hub.options()), width)


def stored_label_encoder(config: ModelConfig, tokenizer: Any) -> LabelEncoder | None:
    """The label encoder that a checkpoint's config describes, without its weights; None for a uni-encoder."""
    if config.labels_encoder_config is None:
        return None
    return LabelEncoder(build_encoder(config.labels_encoder_config, values=False), tokenizer, config.hidden_size)
