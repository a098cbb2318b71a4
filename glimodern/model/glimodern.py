"""GLiModern: the network with what is around it: building, loading, saving, and prediction."""

import inspect
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from typing_extensions import Never, Unpack

from glimodern.checkpoint.config import ENT_TOKEN, SEP_TOKEN, HeadConfig, HeadOptions, ModelConfig
from glimodern.checkpoint.folder import Checkpoint, check_fit, read_checkpoint, to_public, write_checkpoint
from glimodern.display import console
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.files.atomic import expand_user
from glimodern.files.hub import HubAccess
from glimodern.files.tokenizer import add_prompt_tokens, load_tokenizer
from glimodern.inference.entities import Entities, warn_cut, with_offsets
from glimodern.inference.request import (
    CheckLabels,
    Requests,
    Search,
    check_flag,
    read_labels,
    read_requests,
    read_word_requests,
)
from glimodern.inference.stream import Answer, Result, activation_bytes, find_entities, resolve_batch_tokens
from glimodern.inputs.label_vectors import LabelVectors
from glimodern.inputs.labels import LabelArgument, Labels, LabelSet
from glimodern.inputs.words import word_splitter
from glimodern.layers.packed_linear import measured_inputs
from glimodern.layers.parameters import take_tensors, without_values
from glimodern.network.label_encoder import LabelEncoder, fresh_label_encoder, stored_label_encoder
from glimodern.network.span_network import SpanNetwork
from glimodern.runtime.ambient import as_in_a_new_process, building, predicts

from .gliner_api import GlinerApi
from .loading import (
    DTYPES,
    encoder_of,
    freeze,
    pack,
    refuse_keywords,
    resolve_device,
    resolve_dtype,
)
from .precision import CANARY_LABELS, CANARY_TEXTS, LEAST_AGREEMENT, PrecisionReport, answers, compare_answers
from .sharing import HubApi

_HEAD_OPTIONS = tuple(HeadOptions.__annotations__)
MAX_LEN = 8192  # most words read of a text by a fresh model that is not told otherwise


def _head_config(options: HeadOptions) -> HeadConfig:
    """The options of a fresh head, checked; labels_encoder as the user meant it."""
    name = options.get("labels_encoder")
    checked: dict[str, Any] = {
        **options,
        "labels_encoder": None if name is None else expand_user(name, "labels_encoder"),
    }
    return HeadConfig(**checked)


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
        name = expand_user(path_or_hub_id, "path_or_hub_id")
        hub = HubAccess(revision, cache_dir, token, local_files_only)
        refuse_keywords("from_encoder", head, _HEAD_OPTIONS)
        options = _head_config(head)
        return cls._fresh(load_encoder(name, hub), load_tokenizer(name, **hub.options()), name, options, hub)

    @classmethod
    def from_encoder_config(cls, encoder_config: Any, tokenizer: Any, **head: Unpack[HeadOptions]) -> "GLiModern":
        """The same from an encoder's config, with random weights (from scratch)."""
        refuse_keywords(
            "from_encoder_config", [option for option in head if option not in _HEAD_OPTIONS], _HEAD_OPTIONS
        )
        return cls._fresh(build_encoder(encoder_config), tokenizer, "", _head_config(head), HubAccess())

    @classmethod
    @building()
    def _fresh(cls, encoder: Encoder, tokenizer: Any, name: str, head: HeadConfig, hub: HubAccess) -> "GLiModern":
        hidden_size = encoder.hidden_size if head.hidden_size is None else head.hidden_size
        max_len = min(encoder.max_length or MAX_LEN, MAX_LEN) if head.max_len is None else head.max_len
        label_encoder = None
        if head.labels_encoder is None:
            vocab_size = add_prompt_tokens(tokenizer, [ENT_TOKEN, SEP_TOKEN])
            encoder.resize_token_embeddings(vocab_size)
        else:
            label_encoder = fresh_label_encoder(head.labels_encoder, hidden_size, replace(hub, revision=None))
            add_prompt_tokens(tokenizer, [])
            vocab_size = encoder.config.vocab_size
        config = ModelConfig(
            **{**vars(head), "hidden_size": hidden_size, "max_len": max_len},
            encoder_config=encoder.config.to_dict(),
            class_token_index=tokenizer.convert_tokens_to_ids(ENT_TOKEN) if label_encoder is None else -1,
            vocab_size=vocab_size,
            model_name=name,
            labels_encoder_config=None if label_encoder is None else label_encoder.encoder.config.to_dict(),
        )
        return cls(config, encoder, tokenizer, label_encoder)

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
        **unknown: Never,
    ) -> "GLiModern":
        """Load a checkpoint of the public GLiNER format: a local folder (no network) or a hub name.

        dtype: "fp32", "bf16", "fp16", "int8" (on CPUs: weights by output channel, activations by token; warns where
        that changes what the model finds in a few sentences) or "auto", bf16 where the hardware multiplies it natively
        and else fp32. trainable: keep plain parameters, in fp32 unless dtype says otherwise; else the model is for
        inference, and on CPUs its linear layers are packed. Of a hub name: revision is a branch, tag or commit,
        local_files_only (or the environment variable HF_HUB_OFFLINE) reads the hub's cache alone, cache_dir says where
        that is, token is the user's own or says whether to send the stored one. cuda_graphs: on a GPU, record what
        small batches launch and replay it (`glimodern.network.cuda_graphs`); the attribute of this name sets it too.

        What torch is set to (default dtype and device, inference mode, its generator) changes nothing here, and the
        files may be overwritten later. Weights that are stored in another dtype are made fp32 first.

        Raises FileNotFoundError for missing files, ValueError for half-written files, pickled code, unsupported kinds
        of model, tensors that do not fit the config and a device that is not there.
        """
        known = (*inspect.signature(cls.from_pretrained).parameters,)[1:-1]
        refuse_keywords("from_pretrained", unknown, known)
        trainable, cuda_graphs = check_flag("trainable", trainable), check_flag("cuda_graphs", cuda_graphs)
        where = resolve_device(device)
        if dtype == "int8" and (where.type != "cpu" or trainable):
            raise ValueError(
                f"dtype: expected 'int8' on device 'cpu' with trainable=False, got device {str(device)!r}, "
                f"trainable={trainable}; choose another dtype"
            )
        plain = resolve_dtype("fp32" if trainable and dtype == "auto" else dtype, where)
        with as_in_a_new_process():
            stored = read_checkpoint(path_or_hub_id, HubAccess(revision, cache_dir, token, local_files_only))
            model = cls._of_checkpoint(stored)
            model.source = (os.fspath(path_or_hub_id), stored.folder)
            model.cuda_graphs = cuda_graphs
            model.eval()
            if trainable:
                return model.to(device=where, dtype=plain)
            freeze(model)
            if dtype == "int8":
                model._quantise(plain)
            elif where.type == "cpu" and plain in (torch.float32, torch.bfloat16):
                pack(model, plain)
            model.to(device=where, dtype=plain)
        return model

    def _quantise(self, dtype: torch.dtype) -> None:
        """Pack in int8 by the inputs that a dozen sentences give each layer; warn if it then finds other entities.

        dtype: of the activations, and of what is not quantised.
        """
        with measured_inputs(self):
            exact = answers(self, CANARY_TEXTS, CANARY_LABELS, 0.5)
        pack(self, dtype, int8=True)
        self.to(dtype=dtype)
        report = compare_answers("int8", answers(self, CANARY_TEXTS, CANARY_LABELS, 0.5), exact)
        if report.agreement < LEAST_AGREEMENT:
            warnings.warn(
                f"{self.source_name}: {report}; that is under {100 * LEAST_AGREEMENT:.0f} %. Check it on your own "
                'texts with check_precision, or load with dtype="fp32" or "bf16"',
                stacklevel=3,
            )

    @classmethod
    def _of_checkpoint(cls, stored: Checkpoint) -> "GLiModern":
        """The model of a checkpoint, in fp32; the checkpoint's tensors are taken from it."""
        encoder_config = {**stored.config.encoder_config, "vocab_size": stored.config.vocab_size}
        config = replace(stored.config, encoder_config=encoder_config)

        def build() -> "GLiModern":
            label_encoder = stored_label_encoder(config, stored.labels_tokenizer)
            return cls(config, encoder_of(stored, encoder_config), stored.tokenizer, label_encoder)

        model = without_values(build)
        check_fit(to_public(model.state_dict()), to_public(stored.state), stored.weights, config.vocab_size)
        take_tensors(model, stored.state)
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a checkpoint that this package and the public one load; it appears whole or not at all.

        folder may hold other files, which stay, and an older checkpoint, which is replaced; it may be the working
        directory, a mount point or a symbolic link. A crash at any time leaves the older checkpoint or this one to
        from_pretrained; other programs may see files of both until the next save_pretrained there.

        Raises ValueError for a model in int8 and for a folder with another model's files of these names.
        """
        if self.packed_dtype == "int8":
            raise ValueError('a model in int8 cannot be saved: load it with dtype="fp32" to save it')
        labels_tokenizer = None if self.label_encoder is None else self.label_encoder.tokenizer
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

    def check_precision(self, texts: str | Iterable[str], labels: Labels, threshold: float = 0.5) -> PrecisionReport:
        """How far this model, loaded in bf16 or int8, is from its checkpoint in fp32, which is loaded for the time of
        the call. texts, labels, threshold: as of predict. Raises ValueError for a model that was not loaded from a
        checkpoint."""
        if self.source is None:
            raise ValueError(
                "check_precision: expected a model that from_pretrained loaded, this one has no checkpoint to compare "
                "with; save it and load it"
            )
        requests = list(self.requests(texts, labels).stream)
        if not requests:
            raise ValueError("texts: expected at least one text to compare by, got none")
        names = [request.text for request in requests]
        asked = [dict(zip(*request.labels, strict=True)) for request in requests]
        ours = answers(self, names, asked, threshold)
        exact = GLiModern.from_pretrained(self.source[1], dtype="fp32", device=self.device)
        return compare_answers(self.dtype_name, ours, answers(exact, names, asked, threshold))

    # predicting

    @predicts
    @torch.no_grad()
    def encode_labels(self, labels: LabelArgument) -> LabelVectors:
        """The vectors of labels, any number, to be asked of texts by predict(texts, label_vectors=...).

        labels: one label set, as predict takes it; of a mapping, the descriptions are read. Duplicates count once.
        Raises ValueError for a model that is no bi-encoder.
        """
        encoder = self._require_label_encoder("encode_labels")
        names, prompts = read_labels(labels)
        vectors = self.run_in_eval(lambda network: self._require_label_encoder("encode_labels", network)(prompts))
        described = {name: prompt for name, prompt in zip(names, prompts, strict=True) if name != prompt}
        return LabelVectors(names, vectors, self.source_name, encoder.fingerprint, described)

    def _require_label_encoder(self, argument: str, network: SpanNetwork | None = None) -> LabelEncoder:
        label_encoder = (network or self).label_encoder
        if label_encoder is None:
            raise ValueError(
                f"{argument}: expected a bi-encoder, this model reads its labels together with each text, so a label "
                "has no vector of its own; give predict the labels, or load a model that has a labels_encoder"
            )
        return label_encoder

    def _check_vectors(self, label_vectors: LabelVectors) -> None:
        if not isinstance(label_vectors, LabelVectors):
            raise TypeError(
                f"label_vectors: expected LabelVectors of encode_labels, got {type(label_vectors).__name__}"
            )
        encoder = self._require_label_encoder("label_vectors")
        label_vectors.check_model(self.source_name, encoder.fingerprint, self.config.hidden_size)

    def _label_check(self, label_vectors: LabelVectors | None) -> CheckLabels:
        """What this model has to say about each label set: that it is among label_vectors, and leaves room for text."""

        def check(labels: LabelSet, where: str) -> LabelSet:
            if label_vectors is not None:
                labels = label_vectors.select(labels, where)
            if problem := self.packer.prompt_problem(labels.prompts):
                raise ValueError(f"{where}: {problem}")
            return labels

        return check

    def requests(
        self, texts: str | Iterable[str], labels: Labels | None, label_vectors: LabelVectors | None = None
    ) -> Requests:
        """What predict is asked: texts and labels read (see glimodern.inference.request), texts split into words."""
        if label_vectors is not None:
            self._check_vectors(label_vectors)
            labels = label_vectors.labels if labels is None else labels
        splitter = word_splitter(self.config.words_splitter_type)
        return read_requests(texts, labels, splitter, self._label_check(label_vectors))

    def _find(
        self,
        requests: Requests,
        search: Search,
        batch_tokens: int | str,
        label_vectors: LabelVectors | None = None,
    ) -> Iterator[Answer]:
        """Each request with its result, in order; at the end a warning if any text was cut."""
        weight = next(self.parameters())
        tokens = resolve_batch_tokens(batch_tokens, weight.device, activation_bytes(weight, self.config.hidden_size))
        candidates = self._candidates
        if label_vectors is not None:
            candidates = partial(self._candidates, label_vectors=label_vectors)
        stream = find_entities(requests.stream, self.packer, candidates, search, tokens)
        return warn_cut(stream, self.packer, stacklevel=3 if requests.total is None else 4)

    @overload
    def predict_words(  # type: ignore[overload-overlap]
        self, texts: Sequence[Iterable[str]], labels: Labels, *, threshold: float = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ...,
    ) -> list[Result]: ...  # fmt: skip

    @overload
    def predict_words(
        self, texts: Iterable[Iterable[str]], labels: Labels, *, threshold: float = ..., flat: bool = ...,
        multi_label: bool = ..., batch_tokens: int | str = ...,
    ) -> Iterator[Result]: ...  # fmt: skip

    def predict_words(
        self,
        texts: Iterable[Iterable[str]],
        labels: Labels,
        *,
        threshold: float = 0.5,
        flat: bool = True,
        multi_label: bool = False,
        batch_tokens: int | str = "auto",
    ) -> list[Result] | Iterator[Result]:
        """`predict` for texts that are split into words: each a list (or another iterable) of strings.

        A result has entities (start, end, label, score), word indices inclusive, and words_cut, how many words at the
        text's end were not read.
        """
        search = Search.checked(threshold, flat, multi_label)
        requests = read_word_requests(texts, labels, self._label_check(None))
        results = (result for _, result in self._find(requests, search, batch_tokens))
        return results if requests.total is None else list(results)

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
        """Find entities of the given types in texts.

        texts: a string (one text), or any ordered iterable of strings. What has a length (list, array, column) gives a
        list, one result a text, after all of it was checked; a stream is read as it is consumed and gives an iterator
        of results, in order, with memory for some batches of texts only. A result is a list of dicts start, end, text,
        label, score: character offsets into the text (end exclusive), by ascending start.

        labels: strings, asked of all texts; or a mapping label -> description, which asks with the descriptions and
        answers with the labels; or one of these per text. Duplicates count once. threshold: least probability,
        exclusive. flat: no overlaps; else nesting is allowed. multi_label: a span may have several labels.
        batch_tokens: tokens computed at a time, results do not depend on it; a batch that does not fit the memory is
        split. progress: show a bar; None: for lists of over 1,000 texts, on a terminal. label_vectors (of a
        bi-encoder's encode_labels): all its labels are asked, or those of them that `labels` names.

        No words or no labels: no entities. A text that is too long is cut with a warning, and its result says so.
        Raises TypeError and ValueError that name the argument and the item; in a stream where it comes, after the
        results before it.
        """
        search = Search.checked(threshold, flat, multi_label)
        if progress is not None:
            progress = check_flag("progress", progress)
        requests = self.requests(texts, labels, label_vectors)
        stream = self._find(requests, search, batch_tokens, label_vectors)
        results = (with_offsets(request, result) for request, result in stream)
        if progress or (progress is None and (requests.total or 0) > 1000 and sys.stderr.isatty()):
            from rich.progress import track

            results = track(results, "predicting", requests.total, console=console(stderr=True))  # type: ignore[assignment]
        return results if requests.total is None else list(results)
