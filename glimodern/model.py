"""GLiModern: encoder, span head and prompt packing as one module, with loading, saving and prediction."""

import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, overload

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from glimodern import ops, reference
from glimodern.bi_encoder import (
    LabelBatch,
    LabelEncoder,
    TextPacker,
    TypeCache,
    fresh_labels,
    label_entities,
    stored_labels,
)
from glimodern.checkpoint import CONFIG_FILE, Checkpoint, ModelConfig, read_checkpoint, to_public, write_checkpoint
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.encoder.attention import Packing
from glimodern.encoder.packed_linear import PackedLinear, measured_inputs
from glimodern.gliner_api import GlinerApi
from glimodern.graphs import GraphCache
from glimodern.head import SpanHead
from glimodern.hub import HubAccess, HubApi
from glimodern.inference import (
    Asked,
    Found,
    Search,
    check_labels,
    find_entities,
    pair_labels,
    resolve_batch_tokens,
)
from glimodern.labels import LabelVectors
from glimodern.pooling import pool_subtokens
from glimodern.precision import (
    CANARY_LABELS,
    CANARY_TEXTS,
    LEAST_AGREEMENT,
    PrecisionReport,
    answers,
    compare_answers,
)
from glimodern.prompt import PackedBatch, PromptPacker, add_prompt_tokens, load_tokenizer
from glimodern.tensors import check_fit, first_line
from glimodern.text import Word, WordSplitter, word_splitter
from glimodern.transfer import to_device

Labels = Sequence[str] | Iterable[Sequence[str]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Entities(list[dict[str, Any]]):
    """The entities of one text, dicts with start, end, text, label, score (character offsets, end exclusive).

    words_cut: how many words at the text's end the model did not see, 0 for a text that was read whole.
    """

    def __init__(self, entities: Sequence[dict[str, Any]] = (), words_cut: int = 0) -> None:
        super().__init__(entities)
        self.words_cut = words_cut

    @property
    def truncated(self) -> bool:
        return self.words_cut > 0


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Of activations and of weights that are not packed: "fp32", "bf16", "fp16", "auto" (bf16 where the hardware
    multiplies it natively, else fp32; "int8" likewise) or a torch dtype."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in ("auto", "int8"):
        return torch.bfloat16 if _native_bf16(device) else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype: wanted one of {[*DTYPES, 'int8', 'auto']} or a torch dtype, got {dtype!r}")
    return DTYPES[dtype]


def _native_bf16(device: torch.device) -> bool:
    if device.type != "cuda":
        return torch.cpu._is_avx512_bf16_supported()
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


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


class WordLstm(nn.LSTM):
    """The bidirectional LSTM over words that old checkpoints put between encoder and head; packed in, packed out."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__(width, width // 2, num_layers=layers, bidirectional=True, batch_first=True)

    def run_packed(self, words: Tensor, offsets: Sequence[int]) -> Tensor:
        """words [n, d], offsets [b + 1] of the texts in it -> [n, d]; texts without words take no part."""
        lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False) if end > start]
        if not lengths:
            return words
        packed = nn.utils.rnn.pack_sequence(words.split(lengths), enforce_sorted=False)
        texts = nn.utils.rnn.unpack_sequence(self(packed)[0])
        return torch.cat(texts)


class GLiModern(nn.Module, HubApi, GlinerApi):
    """GLiNER's span model on any encoder: text and labels in, entities out.

    Build one with `from_pretrained` (a checkpoint) or `from_encoder` (a pretrained encoder and a fresh head).
    """

    labels: LabelEncoder | None  # of a bi-encoder

    def __init__(
        self, config: ModelConfig, encoder: Encoder, tokenizer: Any, labels: LabelEncoder | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.encoder = encoder
        if encoder.hidden_size != config.hidden_size:
            self.projection = nn.Linear(encoder.hidden_size, config.hidden_size)
        if config.num_rnn_layers > 0:
            self.rnn = WordLstm(config.hidden_size, config.num_rnn_layers)
        self.head = SpanHead(config.hidden_size, config.dropout, config.span_mode)
        limits = [limit for limit in (encoder.max_length, tokenizer.model_max_length) if limit is not None]
        limit = min((limit for limit in limits if limit < 2**30), default=None)
        self.labels = labels
        if labels is not None:
            if "rnn" in self._modules:
                self.rnn.requires_grad_(False)  # it is not run
            self.packer: PromptPacker = TextPacker(
                tokenizer.backend_tokenizer,
                max_width=config.max_width,
                max_words=config.max_len,
                max_tokens=limit,
                subtoken_pooling=config.subtoken_pooling,
                ids=config.vocab_size,
            )
        else:
            self.packer = PromptPacker(
                tokenizer.backend_tokenizer,
                ent_token=config.ent_token,
                sep_token=config.sep_token,
                max_width=config.max_width,
                max_words=config.max_len,
                max_tokens=limit,
                embed_ent_token=config.embed_ent_token,
                subtoken_pooling=config.subtoken_pooling,
            )
        self._types = TypeCache()
        self.encoder_frozen = False
        self.source: tuple[str, Path] | None = None  # a checkpoint's name, and the folder it was read from
        self.packed_dtype: str | None = None  # of linear layers that are packed for inference
        self.cuda_graphs = True  # for small batches on a GPU
        self._graphs = GraphCache()

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
        revision, cache_dir, token, local_files_only: as of from_pretrained.
        """
        name, hub = os.fspath(path_or_hub_id), HubAccess(revision, cache_dir, token, local_files_only)
        return cls._fresh(load_encoder(name, hub), load_tokenizer(name, **hub.options()), name, head)

    @classmethod
    def from_encoder_config(cls, encoder_config: Any, tokenizer: Any, **head: Unpack[HeadOptions]) -> "GLiModern":
        """The same from an encoder's config, with random weights (from scratch)."""
        return cls._fresh(build_encoder(encoder_config), tokenizer, "", head)

    @classmethod
    def _fresh(cls, encoder: Encoder, tokenizer: Any, name: str, head: HeadOptions) -> "GLiModern":
        ent_token, sep_token = "<<ENT>>", "<<SEP>>"
        hidden_size = head.get("hidden_size") or encoder.hidden_size
        labels_encoder = head.get("labels_encoder")
        labels = None if labels_encoder is None else fresh_labels(labels_encoder, hidden_size)
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
        model = cls(config, _encoder_of(stored, encoder_config), stored.tokenizer, labels)
        model._load_state(stored)
        model.source = (os.fspath(path_or_hub_id), stored.folder)
        model.cuda_graphs = cuda_graphs
        model.eval()
        if trainable:
            return model.to(device=where, dtype=plain)
        model.requires_grad_(False)
        if labels is not None:
            labels.seal()
        if dtype != "int8":
            if where.type == "cpu" and plain in (torch.float32, torch.bfloat16):
                model._pack("fp32" if plain == torch.float32 else "bf16")
            return model.to(device=where, dtype=plain)
        with measured_inputs(model):
            exact = answers(model, CANARY_TEXTS, CANARY_LABELS, 0.5)
        model._pack("int8")
        model.to(dtype=plain)
        report = compare_answers("int8", answers(model, CANARY_TEXTS, CANARY_LABELS, 0.5), exact)
        if report.agreement < LEAST_AGREEMENT:
            warnings.warn(
                f"{os.fspath(path_or_hub_id)}: {report}; that is under {100 * LEAST_AGREEMENT:.0f} %. Check it on your "
                'own texts with check_precision, or load with dtype="fp32" or "bf16"',
                stacklevel=2,
            )
        return model

    def _pack(self, dtype: str) -> None:
        """Pack linear layers for inference on CPUs, where there is a kernel for them."""
        if ops.backend_info("cpu")["linear_packed"]["isa"] in ("", "scalar"):
            if dtype == "int8":
                raise ValueError(
                    "dtype: 'int8' needs the C++ extension on a CPU with AVX2; load with dtype='fp32' "
                    f"({ops.backend_info('cpu')['linear_packed']['why']})"
                )
            return
        plain = [] if self.encoder.pack(dtype) else [(self.encoder, "encoder")]
        if self.labels is not None and not self.labels.pack(dtype):
            plain.append((self.labels.encoder, "label encoder"))
        if dtype == "int8":
            for encoder, name in plain:
                warnings.warn(
                    f"dtype: the layers of {encoder.config.model_type} are not known to pack, so the {name} is not "
                    "quantised, only the rest is in int8",
                    stacklevel=3,
                )
        if "projection" in self._modules:
            self.projection = PackedLinear(self.projection, dtype)  # type: ignore[assignment]
        self.head.pack(dtype)
        self.packed_dtype = dtype

    def _load_state(self, stored: Checkpoint) -> None:
        own, read = to_public(self.state_dict()), to_public(stored.state)
        check_fit(own, read, stored.weights, stored.config.vocab_size)
        self.load_state_dict(stored.state, strict=False)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a checkpoint that this package and the public one load; it appears whole or not at all."""
        if self.packed_dtype == "int8":
            raise ValueError('a model in int8 cannot be saved: load it with dtype="fp32" to save it')
        labels_tokenizer = None if self.labels is None else self.labels.tokenizer
        write_checkpoint(folder, self.config, self.state_dict(), self.tokenizer, labels_tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype_name(self) -> str:
        """What the model computes in: "fp32", "bf16", "fp16" or "int8"."""
        if self.packed_dtype == "int8":
            return "int8"
        dtype = next(self.parameters()).dtype
        return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))

    def freeze_encoder(self) -> None:
        """Run the encoder, or a bi-encoder's two, without gradients and without dropout from now on."""
        self.encoder_frozen = True
        for encoder in self._encoders():
            encoder.requires_grad_(False).eval()

    def _encoders(self) -> list[Encoder]:
        return [self.encoder] if self.labels is None else [self.encoder, self.labels.encoder]

    def set_dropout(self, p: float) -> None:
        """Train the head with this dropout from now on; the encoder keeps its own."""
        self.config = replace(self.config, dropout=p)
        for module in self.head.modules():
            if isinstance(module, nn.Dropout):
                module.p = p

    def train(self, mode: bool = True) -> "GLiModern":
        super().train(mode)
        if self.encoder_frozen:
            for encoder in self._encoders():
                encoder.eval()
        if mode:
            self._graphs.clear()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GLiModern":
        self._graphs.clear()  # weights move
        return super()._apply(fn, recurse)

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

    # computing

    def encode(self, batch: PackedBatch, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Word vectors [n, d] and type prompts [m, d] of a packed batch on the model's device.

        packing: of the batch, known to be right (`glimodern.graphs`); None: checked and made here.
        """
        if self.labels is None or not isinstance(batch, LabelBatch):
            return self._encode_texts(batch, batch.type_index, packing)
        words, _ = self._encode_texts(batch, batch.type_index[:0], packing)
        return words, self.labels(batch.labels)[batch.type_index]

    def _encode_texts(self, batch: PackedBatch, types: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Word vectors [n, d], and those of the tokens that ask the types [m]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            tokens = batch.word_index.clamp(min=0) if batch.subtoken_index is None else batch.subtoken_index
            rows = torch.cat([tokens, types])
            if packing is None:
                hidden = self.encoder(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, rows, batch.token_offsets)
            else:
                hidden = self.encoder.encode(batch.input_ids, packing, rows)
        words, prompts = hidden.split([len(tokens), len(types)])
        if "projection" in self._modules:
            words, prompts = self.projection(words), self.projection(prompts)
        if batch.subtoken_counts is not None:
            words = pool_subtokens(words, batch.subtoken_counts, self.config.subtoken_pooling)
        elif batch.has_missing_words:
            words = words.masked_fill((batch.word_index < 0)[:, None], 0.0)
        if "rnn" in self._modules and self.labels is None:
            words = self.rnn.run_packed(words, batch.word_offsets or (0,))
        return words, prompts

    def forward(
        self,
        batch: PackedBatch,
        *,
        focal_gamma: float = 0.0,
        focal_scale: float = 1.0,
        class_balance: float | None = None,
        reduction: str = "sum",
        fused: bool = True,
    ) -> Tensor:
        """The loss of a batch with positives (see ops.span_loss); fused=False computes it by the textbook form."""
        if self.packed_dtype is not None:
            raise ValueError(
                "this model was loaded for inference and has no gradients; load it with "
                "GLiModern.from_pretrained(..., trainable=True)"
            )
        words, prompts = self.encode(batch)
        width = self.config.max_width
        dropout_p = self.config.dropout if self.training and self.head.drops_spans else 0.0
        seed = int(torch.randint(2**31, (1,))) if dropout_p else 0
        if fused:
            return ops.span_loss(
                *self.head.fold(words, prompts),
                batch.cu_words,
                batch.cu_types,
                batch.positives,
                width,
                focal_gamma=focal_gamma,
                focal_scale=focal_scale,
                class_balance=class_balance,
                reduction=reduction,
                dropout_p=dropout_p,
                seed=seed,
            )
        parts = self.head.parts(words, prompts)
        logits = reference.textbook_scores(*parts, batch.cu_words, batch.cu_types, width, dropout_p, seed)
        return reference.loss_of_scores(
            logits.float(),
            batch.cu_words,
            batch.cu_types,
            batch.positives,
            width,
            focal_gamma,
            focal_scale,
            class_balance,
            reduction,
        )

    def scores(self, batch: PackedBatch) -> list[Tensor]:
        """Logits of every span and type, one tensor [words, max_width, types] per text; -inf where a span leaves it."""
        words, prompts = self.encode(batch)
        factors = self.head.factors(words, prompts)
        logits = ops.head_scores(*factors, batch.cu_words, batch.cu_types, self.config.max_width)
        return ops.split_scores(logits, batch.cu_words, batch.cu_types, self.config.max_width)

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

    @torch.no_grad()
    def _candidates(
        self, batch: PackedBatch, threshold: float, label_vectors: LabelVectors | None = None
    ) -> ops.SpanEntities:
        if self.training:
            self.eval()
            try:
                return self._candidates(batch, threshold, label_vectors)
            finally:
                self.train()
        if isinstance(batch, LabelBatch) and self.labels is not None:
            types = self._types.find(batch.labels, label_vectors, self.labels, self.head)
            words, _ = self._encode_texts(batch.to(self.device), batch.type_index[:0].to(self.device))
            return label_entities(self.head, words, batch, types, self.config.max_width, threshold)
        device = self.device
        try:
            factors = self._graphs.factors(self, batch, device) if self.cuda_graphs else None
            if factors is None:
                batch = batch.to(device)
                factors = self.head.factors(*self.encode(batch))
            cu_words, cu_types = to_device([batch.cu_words, batch.cu_types], device)
            return ops.head_entities(*factors, cu_words, cu_types, self.config.max_width, threshold)
        except torch.OutOfMemoryError:
            self._graphs.clear()  # their memory may be what is missing when half of the batch comes
            raise

    def _find(
        self,
        asked: Iterable[Asked],
        search: Search,
        batch_tokens: int | str,
        label_vectors: LabelVectors | None = None,
    ) -> Iterator[Found]:
        """The entities of every text, in order; at the end one warning if any was cut."""
        if not 0.0 <= search.threshold <= 1.0:
            raise ValueError(f"threshold: wanted a probability in [0, 1], got {search.threshold!r}")
        weight = next(self.parameters())
        bytes_per_token = 40 * self.config.hidden_size * weight.element_size()  # of activations, about
        tokens = resolve_batch_tokens(batch_tokens, weight.device, bytes_per_token)
        candidates = self._candidates
        if label_vectors is not None:
            candidates = partial(self._candidates, label_vectors=label_vectors)
        return self._warn_cut(find_entities(asked, self.packer, candidates, search, tokens))

    def _warn_cut(self, stream: Iterator[Found]) -> Iterator[Found]:
        texts = texts_cut = words_cut = 0
        for found in stream:
            texts += 1
            texts_cut += found.words_cut > 0
            words_cut += found.words_cut
            yield found
        if texts_cut:
            warnings.warn(
                f"{texts_cut} of {texts} texts are longer than the model takes (max_len {self.config.max_len} words, "
                f"{self.packer.max_tokens} tokens with the prompt): {words_cut} words at their ends were not read; "
                "such results have .truncated set. Split long texts before predicting.",
                stacklevel=4,
            )

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
        pairs = self._pair(texts, labels, label_vectors)
        split: deque[tuple[str, list[Word]]] = deque()  # of the texts that are on their way
        asked = _ask(pairs, split, word_splitter(self.config.words_splitter_type))
        stream = self._find(asked, Search(threshold, flat, multi_label), batch_tokens, label_vectors)
        results = (_with_offsets(*split.popleft(), found) for found in stream)
        total = len(texts) if isinstance(texts, Sequence) else None
        if progress or (progress is None and (total or 0) > 1000 and sys.stderr.isatty()):
            from rich.console import Console
            from rich.progress import track

            results = track(results, "predicting", total, console=Console(stderr=True))  # type: ignore[assignment]
        return results if total is None else list(results)

    def _pair(
        self, texts: Iterable[str], labels: Labels | None, label_vectors: LabelVectors | None
    ) -> Iterator[tuple[str, list[str]]]:
        """(text, labels asked of it), checked against the label vectors if there are any."""
        if label_vectors is None:
            if labels is None:
                raise TypeError("labels: wanted a sequence of strings (or label_vectors of a bi-encoder), got neither")
            return pair_labels(texts, labels)
        if not isinstance(label_vectors, LabelVectors):
            raise TypeError(f"label_vectors: wanted LabelVectors of encode_labels, got {type(label_vectors).__name__}")
        label_vectors.check_model(
            self.source_name, self._label_encoder("label_vectors").fingerprint, self.config.hidden_size
        )
        if labels is None:
            names = list(label_vectors.labels)
            return ((text, names) for text in texts)
        return label_vectors.checked(pair_labels(texts, labels))

    @property
    def source_name(self) -> str:
        """What messages call the model: the checkpoint that it was loaded from, else its encoder."""
        return self.source[0] if self.source is not None else self.config.model_name or "a model of this session"


def _encoder_of(stored: Checkpoint, config: dict[str, Any]) -> Encoder:
    try:
        return build_encoder(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{stored.weights.with_name(CONFIG_FILE)}: encoder_config: wanted a config that an encoder can be built "
            f"from, got model_type {config.get('model_type')!r} and: {first_line(error) or type(error).__name__}"
        ) from error


def _ask(
    pairs: Iterable[tuple[str, list[str]]], split: deque[tuple[str, list[Word]]], splitter: WordSplitter
) -> Iterator[Asked]:
    for i, (text, labels) in enumerate(pairs):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}]: wanted a string, got {type(text).__name__}")
        words = splitter(text)
        split.append((text, words))
        yield Asked([word.text for word in words], labels)


def _with_offsets(text: str, words: Sequence[Word], found: Found) -> Entities:
    result = Entities(words_cut=found.words_cut)
    for start, end, label, score in found.entities:
        first, last = words[start].start, words[end].end
        result.append({"start": first, "end": last, "text": text[first:last], "label": label, "score": score})
    return result
