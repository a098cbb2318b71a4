"""Encoder and head as one module: a packed batch in; loss, logits or candidate entities out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from typing_extensions import Self

from glimodern import ops
from glimodern.checkpoint.config import TOKEN_LEVEL, ModelConfig
from glimodern.encoder import Encoder
from glimodern.files.stored_tokenizer import whole_tokenizer
from glimodern.files.tokenizer import token_limit
from glimodern.inference.compute import SpanScores
from glimodern.inference.packers import packer_of
from glimodern.inputs.batch import LabelBatch, PackedBatch, batch_of
from glimodern.inputs.label_vectors import LabelVectors
from glimodern.inputs.packer import Packer
from glimodern.inputs.transfer import to_device
from glimodern.layers.attention import Packing
from glimodern.runtime.ambient import predicts
from glimodern.runtime.forks import keep_to_own_threads, watch_forks

from .base_head import Head, HeadRows, LossOptions
from .cuda_graphs import GraphCache
from .eval_mode import eval_replica, in_eval_mode
from .head import SpanHead
from .label_encoder import LabelEncoder
from .pooling import pool_subtokens
from .token_head import TokenHead
from .type_cache import TypeCache, label_entities
from .word_lstm import WordLstm

T = TypeVar("T")


class EncoderOutputs(NamedTuple):
    """What the encoders compute of a batch, before the layers that follow them.

    words: hidden states [s, encoder width] of the tokens that words are made of, in the batch's order: one of each word
    (`word_index`; any value for -1), or all (`subtoken_index`).
    types: hidden states [m, encoder width] at `type_index`; for a LabelBatch the means of its labels' hidden states
    [labels, label encoder width].
    """

    words: Tensor
    types: Tensor

    def to(self, device: torch.device) -> "EncoderOutputs":
        return EncoderOutputs(self.words.to(device), self.types.to(device))


def build_head(config: ModelConfig) -> Head:
    """Build the head that `span_mode` names, with fresh weights."""
    if config.span_mode == TOKEN_LEVEL:
        return TokenHead(config.hidden_size, config.dropout)
    return SpanHead(config.hidden_size, config.dropout, config.span_mode, config.max_width)


class SpanNetwork(nn.Module):
    """GLiNER's span or token-level model on any encoder, for packed batches. `GLiModern` adds texts, labels and files.

    label_encoder: a bi-encoder's label encoder; None for a model whose prompts stand in the text.
    encoder_frozen: whether `freeze_encoder` was called. packed_dtype: dtype of the packed linear layers; None: not
    packed. inference_only: whether the model was loaded for inference; autocast then has no effect on it.
    cuda_graphs: whether small batches on a GPU may use CUDA graphs (`glimodern.network.cuda_graphs`).
    """

    label_encoder: LabelEncoder | None

    def __init__(
        self, config: ModelConfig, encoder: Encoder, tokenizer: Any, label_encoder: LabelEncoder | None = None
    ) -> None:
        super().__init__()
        watch_forks()
        keep_to_own_threads()
        self._mode: object | None = object()  # a new object after every switch of the mode; None during the switch
        self.config = config
        self.held_tokenizer = tokenizer
        self.encoder = encoder
        self.projection: nn.Module = nn.Identity()
        if encoder.hidden_size != config.hidden_size:
            self.projection = nn.Linear(encoder.hidden_size, config.hidden_size)
        self.rnn = WordLstm(config.hidden_size, config.num_rnn_layers) if config.num_rnn_layers else None
        self.head = build_head(config)
        self.label_encoder = label_encoder
        if label_encoder is not None and self.rnn is not None:
            self.rnn.requires_grad_(False)  # not run by a bi-encoder
        self.packer = self._make_packer()
        self._types = TypeCache()
        self.encoder_frozen = False
        self.packed_dtype: str | None = None
        self.inference_only = False
        self.cuda_graphs = True
        self._graphs = GraphCache()

    def _make_packer(self) -> Packer[PackedBatch]:
        return packer_of(
            self.config,
            self.held_tokenizer.backend_tokenizer,
            as_batch=batch_of,
            max_tokens=token_limit(self.held_tokenizer, self.encoder.max_length),
            bi_encoder=self.label_encoder is not None,
        )

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer of the texts. It is loaded, and transformers imported, when first asked for."""
        self.held_tokenizer = whole_tokenizer(self.held_tokenizer)
        return self.held_tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def freeze_encoder(self) -> None:
        """Run the encoder, or both encoders of a bi-encoder, without gradients and dropout from now on."""
        self.encoder_frozen = True
        for encoder in self._encoders():
            encoder.requires_grad_(False).eval()

    def _encoders(self) -> list[Encoder]:
        return [self.encoder] if self.label_encoder is None else [self.encoder, self.label_encoder.encoder]

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability of the head, for training. The encoder keeps its own."""
        self.config = replace(self.config, dropout=p)
        for module in self.head.modules():
            if isinstance(module, nn.Dropout):
                module.p = p

    def train(self, mode: bool = True) -> Self:
        self._mode = None
        try:
            super().train(mode)
            if self.encoder_frozen:
                for encoder in self._encoders():
                    encoder.eval()
            if mode:
                self._graphs.clear()
        finally:
            self._mode = object()
        return self

    def run_in_eval(self, compute: Callable[[Self], T]) -> T:
        """Call compute(network) in eval mode, without changing the modules' modes.

        The network passed is this one if all of its modules are in eval mode, else a replica on the same parameters. If
        another thread switches the mode (`train`, `eval`) during the call, the result is computed again on a replica.
        """
        keep_to_own_threads()
        mode = self._mode
        if mode is not None and in_eval_mode(self):
            result = compute(self)
            if self._mode is mode:
                return result
        return compute(eval_replica(self))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._graphs.clear()  # the weights move
        return super()._apply(fn, recurse)

    # computing

    def encode(
        self, batch: PackedBatch, packing: Packing | None = None, outputs: EncoderOutputs | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the word vectors [n, d] and type prompts [m, d] of a packed batch on the model's device.

        packing: the batch's checked Packing (`glimodern.network.cuda_graphs` passes one); None: built and checked here.
        outputs: what the encoders compute of this batch; None: they run.
        """
        if self.label_encoder is None or not isinstance(batch, LabelBatch):
            if outputs is None:
                return self._encode_texts(batch, batch.type_index, packing)
            return self._vectors(batch, *outputs)
        if outputs is None:
            words, _ = self._encode_texts(batch, batch.type_index[:0], packing)
            labels = self.label_encoder(batch.labels)
        else:
            words, _ = self._vectors(batch, outputs.words, outputs.words[:0])
            labels = self.label_encoder.projection(outputs.types)
        return words, labels[batch.type_index]

    def _encode_texts(self, batch: PackedBatch, types: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Compute word vectors [n, d], and the vectors [m, d] of the tokens `types`, int64 [m]."""
        keep_to_own_threads()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            tokens = batch.word_index.clamp(min=0) if batch.subtoken_index is None else batch.subtoken_index
            rows = torch.cat([tokens, types])
            if packing is None:
                hidden = self.encoder(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, rows, batch.token_offsets)
            else:
                hidden = self.encoder.encode(batch.input_ids, packing, rows)
        words, prompts = hidden.split([len(tokens), len(types)])
        return self._vectors(batch, words, prompts)

    def _vectors(self, batch: PackedBatch, words: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute word vectors [n, d] and type prompts [m, d] from the encoder's hidden states of their tokens."""
        words, prompts = self.projection(words), self.projection(prompts)
        if batch.subtoken_counts is not None:
            words = pool_subtokens(words, batch.subtoken_counts, self.config.subtoken_pooling)
        elif batch.has_missing_words:
            words = words.masked_fill((batch.word_index < 0)[:, None], 0.0)
        if self.rnn is not None and self.label_encoder is None:
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
        outputs: EncoderOutputs | None = None,
    ) -> Tensor:
        """Compute the loss of a batch with positives, a scalar (see `ops.span_loss` for the options).

        fused: if False, compute it by the textbook form in plain PyTorch. outputs: what the encoders compute of this
        batch; None: they run. Raises ValueError for a model whose layers are packed for inference.
        """
        if self.packed_dtype is not None:
            raise ValueError(
                "model: expected a trainable model, got one that was loaded for inference and has no gradients; load "
                "it with GLiModern.from_pretrained(..., trainable=True)"
            )
        words, prompts = self.encode(batch, outputs=outputs)
        dropout_p = self.config.dropout if self.training and self.head.drops_hidden else 0.0
        seed = int(torch.randint(2**31, (1,))) if dropout_p else 0
        options = LossOptions(focal_gamma, focal_scale, class_balance, reduction, fused, dropout_p, seed)
        return self.head.loss(words, prompts, batch, options)

    @predicts
    def scores(self, batch: PackedBatch) -> list[Tensor]:
        """Compute all logits: one tensor per text, [words, max_width, types] of spans, or [words, types, 3] of words.

        The logit of a span that leaves its text is -inf. The three of a word are those of a token-level model: start,
        end, inside.
        """
        return self.head.logits(self.head.rows(*self.encode(batch)), batch.cu_words, batch.cu_types)

    @predicts
    @torch.no_grad()
    def _score_spans(
        self,
        batch: PackedBatch,
        spans: Sequence[npt.NDArray[np.int64]],
        vectors: bool,
        label_vectors: LabelVectors | None = None,
    ) -> SpanScores:
        """Score given spans of a batch on the CPU; see `glimodern.inference.compute.SpanModel`."""
        return self.run_in_eval(lambda network: network._given_spans(batch, spans, vectors, label_vectors))

    def _given_spans(
        self,
        batch: PackedBatch,
        spans: Sequence[npt.NDArray[np.int64]],
        vectors: bool,
        label_vectors: LabelVectors | None,
    ) -> SpanScores:
        device = self.device
        if isinstance(batch, LabelBatch) and self.label_encoder is not None:
            types = self._types.find(batch.labels, label_vectors, self.label_encoder, self.head)
            words, _ = self._encode_texts(batch.to(device), batch.type_index[:0].to(device))
            chosen = torch.tensor([types.row[label] for label in batch.labels], dtype=torch.int64, device="cpu")
            rows = HeadRows(self.head.word_rows(words), types.select(chosen[batch.type_index].to(device)))
        else:
            words, prompts = self.encode(batch.to(device))
            rows = self.head.rows(words, prompts)
        return self.head.span_scores(words, rows, batch, spans, vectors)

    @predicts
    @torch.no_grad()
    def _candidates(
        self, batch: PackedBatch, threshold: float | Tensor, label_vectors: LabelVectors | None = None
    ) -> ops.SpanEntities:
        def compute(network: Self) -> ops.SpanEntities:
            return network._entities(batch, threshold, label_vectors, graphs=network is self and self.cuda_graphs)

        return self.run_in_eval(compute)

    def _entities(
        self, batch: PackedBatch, threshold: float | Tensor, label_vectors: LabelVectors | None, *, graphs: bool
    ) -> ops.SpanEntities:
        """Find the candidate entities of a batch on the CPU.

        threshold: one for all types, or one per type, fp32 [m]. graphs: whether to use this network's CUDA graphs.
        """
        if isinstance(batch, LabelBatch) and self.label_encoder is not None:
            types = self._types.find(batch.labels, label_vectors, self.label_encoder, self.head)
            words, _ = self._encode_texts(batch.to(self.device), batch.type_index[:0].to(self.device))
            return label_entities(self.head, words, batch, types, threshold)
        device = self.device
        threshold = threshold.to(device) if isinstance(threshold, Tensor) else threshold
        try:
            rows = self._graphs.rows(self, batch, device) if graphs else None
            if rows is None:
                batch = batch.to(device)
                rows = self.head.rows(*self.encode(batch))
            cu_words, cu_types = to_device([batch.cu_words, batch.cu_types], device)
            return self.head.entities(rows, cu_words, cu_types, threshold)
        except torch.OutOfMemoryError:
            self._graphs.clear()  # frees their memory before the caller retries with half of the batch
            raise
