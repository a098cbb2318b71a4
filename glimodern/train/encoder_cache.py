"""What a frozen encoder computes of each text, kept on disk from epoch to epoch.

    CACHE / FINGERPRINT / first two digits of KEY / KEY

A file holds the hidden states of one text's tokens that the head reads: those of its words, then those of its types, in
the packer's order, in the run's dtype, and a CRC-32 of these bytes. KEY is a hash of the text's token ids, its prompt's
too, and of the tokens that are read. FINGERPRINT is one of the encoder's config and weights, and of the dtype. So no
file is ever out of date, and runs and ranks may share a folder. A file is written beside its place and renamed: a run
that is killed leaves whole files, and at most one partial one.

A bi-encoder's labels are kept in memory, one vector each.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from glimodern.encoder import Encoder
from glimodern.inputs.batch import LabelBatch, PackedBatch, int32_offsets
from glimodern.inputs.tokens import IntArray
from glimodern.layers.packed_linear import can_pack
from glimodern.network.label_encoder import LabelEncoder
from glimodern.network.shared_copy import shared_copy
from glimodern.network.span_network import EncoderOutputs, SpanNetwork
from glimodern.runtime.ambient import lasting

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FORMAT = 1  # of the files; part of the fingerprint
_CHECKSUM = 4  # bytes
_WITHOUT_EFFECT = ("_name_or_path", "transformers_version")  # fields of a config


class _Text(NamedTuple):
    """One text of a batch: its token ids, and the tokens that the head reads for its words and for its types."""

    ids: IntArray
    words: IntArray
    types: IntArray

    @property
    def key(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for part in self:
            digest.update(len(part).to_bytes(8, "little") + part.tobytes())
        return digest.hexdigest()


class EncoderCache:
    """The outputs of a network's frozen encoders, computed once for each distinct text.

    network: its encoders must not change. folder: for the cache. dtype: of computation and of the files, "fp32", "bf16"
    or "fp16". On a CPU the encoders run packed in fp32 and bf16, as in prediction; the bits of a text's outputs then do
    not depend on its batch, but for encoders that pad or convolve. computed: texts that this process encoded so far.
    """

    def __init__(self, network: SpanNetwork, folder: Path, dtype: str) -> None:
        self.network, self.dtype = network, _DTYPES[dtype]
        self.folder = folder / _fingerprint(network.encoder, dtype)
        self.computed = 0
        self._labels: dict[str, Tensor] = {}

    def outputs(self, batch: PackedBatch) -> EncoderOutputs:
        """Return what the encoders compute of a batch on the CPU. Texts that the cache lacks are encoded and added.

        Raises OSError for a file that cannot be written.
        """
        texts = _texts(batch)
        width = self.network.encoder.hidden_size
        word_counts, type_counts = [len(text.words) for text in texts], [len(text.types) for text in texts]
        words, types = (torch.empty(sum(counts), width, dtype=self.dtype) for counts in (word_counts, type_counts))
        parts = list(zip(words.split(word_counts), types.split(type_counts), strict=True))
        missing = [number for number, text in enumerate(texts) if not self._load(text.key, parts[number])]
        if missing:
            hidden = self._encode([texts[number] for number in missing])
            for number, rows in zip(missing, hidden, strict=True):
                for part, computed in zip(
                    parts[number], rows.split([len(part) for part in parts[number]]), strict=True
                ):
                    part.copy_(computed)
                self._store(texts[number].key, rows)
            self.computed += len(missing)
        return EncoderOutputs(words, self._label_rows(batch.labels) if isinstance(batch, LabelBatch) else types)

    # files

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _load(self, key: str, parts: Sequence[Tensor]) -> bool:
        """Read a text's rows into parts. Returns False if they are not there, or damaged."""
        views = [_bytes(part) for part in parts]
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                whole = all(file.readinto(view) == len(view) for view in views if len(view))
                stored = file.read(_CHECKSUM + 1)
        except FileNotFoundError:
            return False
        if whole and stored == _checksum(views):
            return True
        logger.warning("%s: expected the outputs of an encoder, got a damaged file; they are computed again", file.name)
        return False

    def _store(self, key: str, rows: Tensor) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{key}.{secrets.token_hex(4)}")
        try:
            content = _bytes(rows)
            partial.write_bytes(content.tobytes() + _checksum([content]))
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    # encoders

    def _encode(self, texts: Sequence[_Text]) -> list[Tensor]:
        """Encode texts; returns the rows that the head reads of each, on the CPU."""
        ends = int32_offsets([len(text.ids) for text in texts])
        rows = [
            np.concatenate([text.words, text.types]) + first for text, first in zip(texts, ends.tolist(), strict=False)
        ]
        ids, chosen = (torch.from_numpy(np.concatenate(x)) for x in ([text.ids for text in texts], rows))
        longest, device = max(len(text.ids) for text in texts), self.network.device
        encoder = self._text_encoder
        with self._arithmetic(packed=encoder is not self.network.encoder):
            hidden = encoder(ids.to(device), ends.to(device), longest, chosen.to(device))
        return list(hidden.to("cpu", self.dtype).contiguous().split([len(each) for each in rows]))

    def _label_rows(self, labels: Sequence[str]) -> Tensor:
        """Return the means of labels' hidden states, [labels, label encoder width]."""
        missing = [label for label in labels if label not in self._labels]
        if missing:
            encoder = self._label_encoder
            with self._arithmetic(packed=encoder is not self.network.label_encoder):
                vectors = encoder.pooled(missing).to("cpu", self.dtype)
            self._labels.update(zip(missing, vectors, strict=True))
        return torch.stack([self._labels[label] for label in labels])

    @contextmanager
    def _arithmetic(self, *, packed: bool) -> Iterator[None]:
        """A context for an encoder's forward pass. A packed one has weights of the run's dtype, and no autocast."""
        device, low = self.network.device.type, self.dtype != torch.float32 and not packed
        with lasting(), torch.autocast(device, self.dtype if low else None, enabled=low):
            yield

    @cached_property
    def _text_encoder(self) -> Encoder:
        packed = self._packed(shared_copy(self.network.encoder))
        return self.network.encoder if packed is None else packed

    @cached_property
    def _label_encoder(self) -> LabelEncoder:
        labels = cast(LabelEncoder, self.network.label_encoder)
        copied = shared_copy(labels, labels.held_tokenizer, labels.tokens)
        return copied if self._packed(copied.encoder) is not None else labels

    def _packed(self, encoder: Encoder) -> Encoder | None:
        """Pack a copy of an encoder for inference; None if that is not done for this device, dtype or architecture."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16"}
        if self.network.device.type != "cpu" or self.dtype not in names or not can_pack():
            return None
        if not encoder.pack(names[self.dtype]):
            return None
        for module in encoder.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:  # new ones: the tensors are those of the network
                    module._parameters[name] = nn.Parameter(parameter.detach().to(self.dtype), requires_grad=False)
        return encoder.eval()


def check_room(folder: Path, needed: int) -> str:
    """Return a line about the disk space of a cache: needed bytes, about, when it is full.

    Raises ValueError if the disk of the folder has less, beside what the folder holds.
    """
    held = sum(_size(file) for file in folder.rglob("*"))
    disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if needed > free + held:
        raise ValueError(
            f"cache_encoder: expected room for about {needed / 1e9:.1f} GB in {folder}, got {(free + held) / 1e9:.1f} "
            "GB; give another cache_dir, fewer cache_variants, or leave out cache_encoder"
        )
    return f"encoder cache: about {needed / 1e9:.2f} GB when full, in {folder}, which has {held / 1e9:.2f} GB now"


def _size(path: Path) -> int:
    """Return the bytes of a file; 0 for a folder, and for a file that another run has just renamed."""
    try:
        return 0 if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return 0


def _texts(batch: PackedBatch) -> list[_Text]:
    """Divide a batch on the CPU into its texts. A word without a token has the text's first token, any would do."""
    firsts = batch.cu_seqlens.numpy()[:-1].astype(np.int64)
    ends, words = batch.cu_words.numpy(), batch.word_index.numpy()
    if batch.subtoken_index is not None and batch.subtoken_counts is not None:
        ends = np.concatenate([[0], np.cumsum(batch.subtoken_counts.numpy())])[ends]
        words = batch.subtoken_index.numpy()
    types, type_ends = batch.type_index.numpy(), batch.cu_types.numpy()
    if isinstance(batch, LabelBatch):
        types, type_ends = types[:0], np.zeros_like(type_ends)
    bounds = zip(firsts, pairwise(batch.cu_seqlens.tolist()), pairwise(ends), pairwise(type_ends), strict=True)
    ids = batch.input_ids.numpy()
    return [
        _Text(ids[slice(*tokens)], np.maximum(words[slice(*of_words)] - first, 0), types[slice(*of_types)] - first)
        for first, tokens, of_words, of_types in bounds
    ]


def _bytes(rows: Tensor) -> memoryview:
    """Return a contiguous tensor's bytes, which share its memory."""
    return rows.flatten().view(torch.uint8).numpy().data


def _checksum(parts: Sequence[memoryview]) -> bytes:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value.to_bytes(_CHECKSUM, "little")


def _fingerprint(encoder: Encoder, dtype: str) -> str:
    """Return a hash of an encoder's architecture, config and weights, and of the dtype."""
    config = {name: value for name, value in encoder.config.to_dict().items() if name not in _WITHOUT_EFFECT}
    described = json.dumps([_FORMAT, dtype, encoder.model_type, config], sort_keys=True, default=str)
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
