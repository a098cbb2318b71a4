"""GLiModern: the network with what is around it: building, loading, saving, and prediction."""

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, overload

import torch
from typing_extensions import Unpack

from glimodern.bi_encoder import LabelEncoder, fresh_labels, stored_labels
from glimodern.checkpoint import ModelConfig, read_checkpoint, to_public, write_checkpoint
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.gliner_api import GlinerApi
from glimodern.hub import HubAccess, HubApi
from glimodern.inference import (
    Asked,
    Found,
    Search,
    activation_bytes,
    check_labels,
    check_threshold,
    find_entities,
    resolve_batch_tokens,
)
from glimodern.labels import LabelVectors
from glimodern.loading import DTYPES, encoder_of, make_ready, resolve_dtype
from glimodern.network import SpanNetwork
from glimodern.precision import PrecisionReport, answers, compare_answers
from glimodern.prediction import Entities, Labels, pair_texts, split_texts, warn_cut, with_offsets
from glimodern.prompt import add_prompt_tokens, load_tokenizer
from glimodern.tensors import check_fit
from glimodern.text import Word, word_splitter


class HeadOptions(TypedDict, total=False):
    """Options of a fresh head; what is not given has the default named here."""

    hidden_size: int | None
    """Width d; None: the encoder's."""
    span_mode: str
    """"markerV0", "marker" or "ffn" ("markerV0")."""
    subtoken_pooling: str
    """Which sub-tokens make a word's vector: "first", "last", "mean" or "max" ("first")."""
    max_width: int
    """Longest span in words, K (12)."""
    max_len: int | None
    """Words of a text that are read; None: as many as the encoder takes tokens, at most 8,192."""
    max_types: int
    """Most types asked of a sentence in training (25)."""
    dropout: float
    """Dropout of the head (0.4)."""
    labels_encoder: str | None
    """Folder or hub name of a sentence encoder for the labels; None: they stand in the text (None)."""
    embed_ent_token: bool
    """Whether a type's vector is that of the <<ENT>> token before its label, or of the label's first token (True)."""


class GLiModern(SpanNetwork, HubApi, GlinerApi):
    """GLiNER's span model on any encoder: text and labels in, entities out.

    Build one with `from_pretrained` (a checkpoint) or `from_encoder` (a pretrained encoder and a fresh head).
    """

    source: tuple[str, Path] | None = None  # a checkpoint's name, and the folder it was read from

    # building, loading, saving

    @classmethod
    def from_encoder(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **head: Unpack[HeadOptions],
    ) -> "GLiModern":
        """A pretrained encoder with its tokenizer, the two prompt tokens added, and a fresh head.

        With labels_encoder, a bi-encoder: that one reads the labels, and no prompt tokens are added.
        revision (of the text encoder), cache_dir, token, local_files_only: as of from_pretrained.
        """
        name, hub = os.fspath(path_or_hub_id), HubAccess(revision, cache_dir, token, local_files_only)
        return cls._fresh(load_encoder(name, hub), load_tokenizer(name, **hub.options()), name, head, hub)

    @classmethod
    def from_encoder_config(cls, encoder_config: Any, tokenizer: Any, **head: Unpack[HeadOptions]) -> "GLiModern":
        """The same from an encoder's config, with random weights (from scratch)."""
        return cls._fresh(build_encoder(encoder_config), tokenizer, "", head, HubAccess())

    @classmethod
    def _fresh(cls, encoder: Encoder, tokenizer: Any, name: str, head: HeadOptions, hub: HubAccess) -> "GLiModern":
        ent_token, sep_token = "<<ENT>>", "<<SEP>>"
        hidden_size = head.get("hidden_size") or encoder.hidden_size
        labels_encoder = head.get("labels_encoder")
        labels = None
        if labels_encoder is not None:
            labels = fresh_labels(labels_encoder, hidden_size, replace(hub, revision=None))
        if labels is None:
            vocab_size = add_prompt_tokens(tokenizer, [ent_token, sep_token])
            encoder.resize_token_embeddings(vocab_size)
        else:
            add_prompt_tokens(tokenizer, [])
            vocab_size = encoder.config.vocab_size
        config = ModelConfig(
            encoder_config=encoder.config.to_dict(),
            hidden_size=hidden_size,
            class_token_index=tokenizer.convert_tokens_to_ids(ent_token) if labels is None else -1,
            vocab_size=vocab_size,
            model_name=name,
            span_mode=head.get("span_mode", "markerV0"),
            subtoken_pooling=head.get("subtoken_pooling", "first"),
            max_width=head.get("max_width", 12),
            max_len=head.get("max_len") or min(encoder.max_length or 8192, 8192),
            max_types=head.get("max_types", 25),
            dropout=head.get("dropout", 0.4),
            embed_ent_token=head.get("embed_ent_token", True),
            labels_encoder=labels_encoder,
            labels_encoder_config=None if labels is None else labels.encoder.config.to_dict(),
        )
        return cls(config, encoder, tokenizer, labels)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        trainable: bool = False,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cuda_graphs: bool = True,
    ) -> "GLiModern":
        """Load a checkpoint of the public GLiNER format: a local folder (no network) or a hub name.

        dtype: "fp32", "bf16", "fp16", "int8" (on CPUs: weights by output channel, activations by token; warns where
        that changes what the model finds in a few sentences) or "auto", bf16 where the hardware multiplies it natively
        and else fp32. trainable: keep plain parameters, in fp32 unless dtype says otherwise; else the model is for
        inference, and on CPUs its linear layers are packed. Of a hub name: revision is a branch, tag or commit,
        local_files_only (or the environment variable HF_HUB_OFFLINE) reads the hub's cache alone, cache_dir says where
        that is, token is the user's own or says whether to send the stored one. cuda_graphs: on a GPU, record what
        small batches launch and replay it (`glimodern.graphs`); also the attribute of this name, at any time.

        Raises FileNotFoundError for missing files, ValueError for half-written files, pickled code, unsupported kinds
        of model and tensors that do not fit the config.
        """
        where = torch.device(device)
        if dtype == "int8" and (where.type != "cpu" or trainable):
            raise ValueError(f"dtype: 'int8' is for inference on CPUs, got device {device}, trainable={trainable}")
        plain = resolve_dtype("fp32" if trainable and dtype == "auto" else dtype, where)
        stored = read_checkpoint(path_or_hub_id, HubAccess(revision, cache_dir, token, local_files_only))
        encoder_config = {**stored.config.encoder_config, "vocab_size": stored.config.vocab_size}
        config = replace(stored.config, encoder_config=encoder_config)
        labels = stored_labels(config, stored.labels_tokenizer)
        model = cls(config, encoder_of(stored, encoder_config), stored.tokenizer, labels)
        check_fit(to_public(model.state_dict()), to_public(stored.state), stored.weights, config.vocab_size)
        model.load_state_dict(stored.state, strict=False)
        model.source = (os.fspath(path_or_hub_id), stored.folder)
        model.cuda_graphs = cuda_graphs
        model.eval()
        if trainable:
            return model.to(device=where, dtype=plain)
        make_ready(model, where, plain, int8=dtype == "int8")
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a checkpoint that this package and the public one load; it appears whole or not at all."""
        if self.packed_dtype == "int8":
            raise ValueError('a model in int8 cannot be saved: load it with dtype="fp32" to save it')
        labels_tokenizer = None if self.labels is None else self.labels.tokenizer
        write_checkpoint(folder, self.config, self.state_dict(), self.tokenizer, labels_tokenizer)

    @property
    def dtype_name(self) -> str:
        """What the model computes in: "fp32", "bf16", "fp16" or "int8"."""
        if self.packed_dtype == "int8":
            return "int8"
        dtype = next(self.parameters()).dtype
        return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))

    @property
    def source_name(self) -> str:
        """What messages call the model: the checkpoint that it was loaded from, else its encoder."""
        return self.source[0] if self.source is not None else self.config.model_name or "a model of this session"

    def check_precision(self, texts: Sequence[str], labels: Sequence[str], threshold: float = 0.5) -> PrecisionReport:
        """How far this model, loaded in bf16 or int8, is from its checkpoint in fp32, which is loaded for the time of
        the call. Raises ValueError for a model that was not loaded from a checkpoint."""
        if self.source is None:
            raise ValueError(
                "check_precision: wanted a model that from_pretrained loaded, this one has no checkpoint to compare "
                "with; save it and load it"
            )
        exact = GLiModern.from_pretrained(self.source[1], dtype="fp32", device=self.device)
        return compare_answers(
            self.dtype_name, answers(self, texts, labels, threshold), answers(exact, texts, labels, threshold)
        )

    # predicting

    @torch.no_grad()
    def encode_labels(self, labels: Sequence[str]) -> LabelVectors:
        """The vectors of labels, any number, to be asked of texts by predict(texts, label_vectors=...).

        Duplicates count once. Raises ValueError for a model that is no bi-encoder.
        """
        encoder = self._label_encoder("encode_labels")
        names = check_labels(labels)
        training = self.training
        self.eval()
        try:
            return LabelVectors(tuple(names), encoder(names), self.source_name, encoder.fingerprint)
        finally:
            self.train(training)

    def _label_encoder(self, argument: str) -> LabelEncoder:
        if self.labels is None:
            raise ValueError(
                f"{argument}: wanted a bi-encoder, this model reads its labels together with each text, so a label has "
                "no vector of its own; give predict the labels, or load a model that has a labels_encoder"
            )
        return self.labels

    def _check_vectors(self, label_vectors: LabelVectors) -> None:
        if not isinstance(label_vectors, LabelVectors):
            raise TypeError(f"label_vectors: wanted LabelVectors of encode_labels, got {type(label_vectors).__name__}")
        encoder = self._label_encoder("label_vectors")
        label_vectors.check_model(self.source_name, encoder.fingerprint, self.config.hidden_size)

    def _find(
        self,
        asked: Iterable[Asked],
        search: Search,
        batch_tokens: int | str,
        label_vectors: LabelVectors | None = None,
    ) -> Iterator[Found]:
        """The entities of every text, in order; at the end one warning if any was cut."""
        check_threshold(search.threshold)
        weight = next(self.parameters())
        tokens = resolve_batch_tokens(batch_tokens, weight.device, activation_bytes(weight, self.config.hidden_size))
        candidates = self._candidates
        if label_vectors is not None:
            candidates = partial(self._candidates, label_vectors=label_vectors)
        stream = find_entities(asked, self.packer, candidates, search, tokens)
        return warn_cut(stream, self.config.max_len, self.packer.max_tokens)

    def predict_words(
        self,
        texts: Iterable[Sequence[str]],
        types: Iterable[Sequence[str]],
        *,
        threshold: float = 0.5,
        flat: bool = True,
        multi_label: bool = False,
        batch_tokens: int | str = "auto",
    ) -> Iterator[Found]:
        """Entities of texts given as words, in order: per text (start, end, label, score), word indices inclusive, and
        how many of its words were cut. types: of each text, the labels asked of it."""
        asked = (Asked(words, labels) for words, labels in zip(texts, types, strict=True))
        return self._find(asked, Search(threshold, flat, multi_label), batch_tokens)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, texts: str | Sequence[str], labels: Labels | None = ..., threshold: float = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ..., progress: bool | None = ..., *,
        label_vectors: LabelVectors | None = ...,
    ) -> list[Entities]: ...  # fmt: skip

    @overload
    def predict(
        self, texts: Iterable[str], labels: Labels | None = ..., threshold: float = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ..., progress: bool | None = ..., *,
        label_vectors: LabelVectors | None = ...,
    ) -> Iterator[Entities]: ...  # fmt: skip

    def predict(
        self,
        texts: str | Iterable[str],
        labels: Labels | None = None,
        threshold: float = 0.5,
        flat: bool = True,
        multi_label: bool = False,
        batch_tokens: int | str = "auto",
        progress: bool | None = None,
        *,
        label_vectors: LabelVectors | None = None,
    ) -> list[Entities] | Iterator[Entities]:
        """Find entities of the given types in texts: a string (one text), a sequence, or any iterable.

        A string or a sequence gives a list, one result a text; any other iterable is read as it is consumed and gives
        an iterator of results, in order, with memory for some batches of texts only. A result is a list of dicts start,
        end, text, label, score: character offsets into the text (end exclusive), by ascending start.

        labels: strings, asked of all texts, or one sequence of strings per text; duplicates count once. threshold:
        least probability, exclusive. flat: no overlaps; else nesting is allowed. multi_label: a span may have several
        labels. batch_tokens: tokens computed at a time, results do not depend on it; a batch that does not fit the
        memory is split. progress: show a bar; None: for sequences of over 1,000 texts, on a terminal. label_vectors (of
        a bi-encoder's encode_labels): all its labels are asked, or those of them that `labels` names.

        No words or no labels: no entities. A text that is too long is cut with a warning, and its result says so.
        Raises TypeError and ValueError for arguments of another kind.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if label_vectors is not None:
            self._check_vectors(label_vectors)
        pairs = pair_texts(texts, labels, label_vectors)
        split: deque[tuple[str, list[Word]]] = deque()  # of the texts that are on their way
        asked = split_texts(pairs, split, word_splitter(self.config.words_splitter_type))
        stream = self._find(asked, Search(threshold, flat, multi_label), batch_tokens, label_vectors)
        results = (with_offsets(*split.popleft(), found) for found in stream)
        total = len(texts) if isinstance(texts, Sequence) else None
        if progress or (progress is None and (total or 0) > 1000 and sys.stderr.isatty()):
            from rich.console import Console
            from rich.progress import track

            results = track(results, "predicting", total, console=Console(stderr=True))  # type: ignore[assignment]
        return results if total is None else list(results)
