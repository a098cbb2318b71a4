"""The label encoder of a bi-encoder, which encodes each label by itself, so that texts contain no prompt.

    [CLS] words... [SEP] -> text encoder -> words [n, d]        [CLS] label [SEP] -> label encoder -> mean -> [m, d]

Public bi-encoders use a ModernBERT for texts and a sentence encoder (BGE, MiniLM) for labels. A label's vector depends
only on the label. It is computed once, kept, and used for any text, with thousands of labels per text. Some public
checkpoints contain an LSTM, which the public package does not run for bi-encoders; neither does this package.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.checkpoint.config import ModelConfig
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.files.hub import HubAccess
from glimodern.files.stored_tokenizer import whole_tokenizer
from glimodern.files.tokenizer import load_tokenizer, token_limit
from glimodern.inputs.label_tokens import LabelTokens, in_chunks
from glimodern.layers.packed_linear import PackedLinear
from glimodern.runtime.forks import keep_to_own_threads

_CHUNK_TOKENS = 2048  # maximum tokens of the labels that are encoded at a time
_SAMPLE = 256  # values of each tensor that the fingerprint reads, approximately


class LabelEncoder(nn.Module):
    """Labels in, vectors out: an encoder, the mean over a label's tokens, and a projection to the head's width d.

    The projection is the identity if the encoder's width is d. tokens: tokenises labels. sealed: the fingerprint of
    weights that no longer change (`seal`), else None.
    """

    def __init__(self, encoder: Encoder, tokenizer: Any, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.held_tokenizer = tokenizer
        self.projection: nn.Module = nn.Identity()
        if encoder.hidden_size != width:
            self.projection = nn.Linear(encoder.hidden_size, width)
        self.tokens = LabelTokens(tokenizer.backend_tokenizer, token_limit(tokenizer, encoder.max_length))
        self.sealed: str | None = None

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer of the labels. It is loaded, and transformers imported, when first asked for."""
        self.held_tokenizer = whole_tokenizer(self.held_tokenizer)
        return self.held_tokenizer

    def forward(self, labels: Sequence[str]) -> Tensor:
        """Encode labels [m] as vectors [m, d]: differentiable, packed, about 2,000 tokens at a time.

        Warns if labels are truncated to `tokens.max_tokens`.
        """
        vectors: Tensor = self.projection(self.pooled(labels))
        return vectors

    def pooled(self, labels: Sequence[str]) -> Tensor:
        """Compute what `forward` projects: the mean hidden state of each label, [m, encoder width]."""
        keep_to_own_threads()
        return torch.cat([self._pooled(chunk) for chunk in in_chunks(self.tokens.ids(labels), _CHUNK_TOKENS)])

    def _pooled(self, labels: Sequence[Sequence[int]]) -> Tensor:
        """Compute the mean hidden state of each label, [m, encoder width], from the labels' token ids."""
        device = next(self.encoder.parameters()).device
        lengths = torch.tensor([len(ids) for ids in labels], dtype=torch.int64, device="cpu")
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
        ids = torch.tensor([token for label in labels for token in label], dtype=torch.int64, device="cpu")
        hidden = self.encoder(ids.to(device), ends.to(device), int(lengths.max()) if len(labels) else 0)
        lengths = lengths.to(device)
        total = torch.segment_reduce(hidden.float(), "sum", lengths=lengths, axis=0, unsafe=True)
        return (total / lengths.clamp(min=1)[:, None]).to(hidden.dtype)

    def pack(self, dtype: str) -> bool:
        """Pack the linear layers for inference. Returns whether the encoder's were packed (see `Encoder.pack`)."""
        if isinstance(self.projection, nn.Linear):
            self.projection = PackedLinear(self.projection, dtype)
        return self.encoder.pack(dtype)

    def seal(self) -> None:
        """Declare that the weights no longer change, except by packing and casting, and store their fingerprint."""
        self.sealed = self.fingerprint

    @property
    def fingerprint(self) -> str:
        """Hash of every weight's name, shape and a sample of its values in fp32, which identifies a label encoder."""
        if self.sealed is not None:
            return self.sealed
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            values = tensor.detach().flatten()
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(values[:: max(1, len(values) // _SAMPLE)].float().cpu().numpy().tobytes())
        return digest.hexdigest()


def fresh_label_encoder(path_or_hub_id: str, width: int, hub: HubAccess) -> LabelEncoder:
    """Load a pretrained label encoder with its tokenizer. width: the head's width d. hub: options of the hub lookup."""
    encoder = load_encoder(path_or_hub_id, hub)
    return LabelEncoder(encoder, load_tokenizer(path_or_hub_id, add_bos_eos=False, **hub.options()), width)


def stored_label_encoder(config: ModelConfig, tokenizer: Any) -> LabelEncoder | None:
    """Build the label encoder of a checkpoint's config, without values; None for a model without a label encoder."""
    if config.labels_encoder_config is None:
        return None
    return LabelEncoder(build_encoder(config.labels_encoder_config, values=False), tokenizer, config.hidden_size)
