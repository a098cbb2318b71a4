"""GLiModern: the span network with building, loading, saving and prediction."""

import inspect
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from typing_extensions import Never, Unpack

from glimodern.checkpoint.calibration_file import check_calibration
from glimodern.checkpoint.config import ENT_TOKEN, SEP_TOKEN, HeadConfig, HeadOptions, ModelConfig
from glimodern.checkpoint.fingerprint import weights_fingerprint
from glimodern.checkpoint.folder import Checkpoint, check_fit, read_checkpoint, to_public, write_checkpoint
from glimodern.data.calibration import Calibration
from glimodern.data.example import Dataset
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.files.atomic import expand_user
from glimodern.files.hub import HubAccess
from glimodern.files.tokenizer import add_prompt_tokens, load_tokenizer
from glimodern.inference.checks import check_flag
from glimodern.inputs.labels import Labels
from glimodern.inputs.words import word_splitter
from glimodern.layers.packed_linear import measured_inputs
from glimodern.layers.parameters import take_tensors, without_values
from glimodern.network.label_encoder import fresh_label_encoder, stored_label_encoder
from glimodern.runtime.ambient import as_in_a_new_process, building

from .calibrating import calibrate, kept_calibration
from .entity_predictor import EntityPredictor
from .gliner_api import GlinerApi
from .keywords import refuse_keywords
from .loading import DTYPES, encoder_of, freeze, pack, resolve_device, resolve_dtype
from .precision import CANARY_LABELS, CANARY_TEXTS, LEAST_AGREEMENT, PrecisionReport, answers, compare_answers
from .sharing import HubApi

_HEAD_OPTIONS = tuple(HeadOptions.__annotations__)
MAX_LEN = 8192  # default limit of max_len (words of a text) for a fresh model


def _head_config(options: HeadOptions) -> HeadConfig:
    """Check the options of a fresh head, and that the splitter's package is there. Expand a `~` in labels_encoder."""
    name = options.get("labels_encoder")
    if "words_splitter_type" in options:
        word_splitter(options["words_splitter_type"])
    checked: dict[str, Any] = {
        **options,
        "labels_encoder": None if name is None else expand_user(name, "labels_encoder"),
    }
    return HeadConfig(**checked)


class GLiModern(EntityPredictor, HubApi, GlinerApi):
    """GLiNER's span model on any encoder: texts and labels in, entities out.

    Build one with `from_pretrained` (a checkpoint) or `from_encoder` (a pretrained encoder and a fresh head).
    """

    _loaded_fingerprint = ""  # of the checkpoint's weights

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
        """Build a model from a pretrained encoder with its tokenizer, two added prompt tokens and a fresh head.

        head: the fields of `HeadConfig`. With labels_encoder the model is a bi-encoder: the label encoder reads the
        labels, and no prompt tokens are added. revision: of the text encoder. revision, cache_dir, token and
        local_files_only: see `from_pretrained`.
        """
        name = expand_user(path_or_hub_id, "path_or_hub_id")
        hub = HubAccess(revision, cache_dir, token, local_files_only)
        refuse_keywords("from_encoder", head, _HEAD_OPTIONS)
        options = _head_config(head)
        return cls._fresh(load_encoder(name, hub), load_tokenizer(name, **hub.options()), name, options, hub)

    @classmethod
    def from_encoder_config(cls, encoder_config: Any, tokenizer: Any, **head: Unpack[HeadOptions]) -> "GLiModern":
        """Build a model with random weights from an encoder's config and a tokenizer, to train from scratch.

        encoder_config: a transformers config, or its dict. tokenizer: a transformers fast tokenizer. head: the fields
        of `HeadConfig`.
        """
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
        splitter: str | None = None,
        **unknown: Never,
    ) -> "GLiModern":
        """Load a checkpoint in the public GLiNER format, from a local folder (without network access) or a hub name.

        dtype: "fp32", "bf16", "fp16", "int8" or "auto". "auto" is bf16 on hardware that multiplies it natively, else
        fp32. "int8" is for CPUs: weights are quantised by output channel, activations by token. It warns if that
        changes the entities found in a few sentences.
        device: "cpu", "cuda", "cuda:1", another of PyTorch's names, or "auto": a CUDA GPU if there is one, else the
        CPU.
        trainable: if True, keep plain parameters, in fp32 for dtype "auto". If False, the model is for inference, and
        on CPUs its linear layers are packed.
        revision: branch, tag or commit of a hub repository. cache_dir: folder of the hub's cache. token: an access
        token, or whether to send the stored one. local_files_only: read the hub's cache only, as the environment
        variable HF_HUB_OFFLINE does too.
        cuda_graphs: on a GPU, record the kernel launches of small batches and replay them
        (`glimodern.network.cuda_graphs`). The attribute `cuda_graphs` changes this later.
        splitter: how texts are split into words, one of `glimodern.inputs.words.SPLITTERS`; None: as the checkpoint's
        `words_splitter_type` says. save_pretrained writes it.

        Torch's settings (default dtype and device, inference mode, generator) do not affect the result. The files may
        be overwritten afterwards. Weights that are stored in another dtype are converted to fp32 first.

        Raises FileNotFoundError for missing files. Raises ValueError for half-written files, pickled code, unsupported
        kinds of models, tensors that do not fit the config, a calibration of another model, and a device that is not
        available.
        """
        known = (*inspect.signature(cls.from_pretrained).parameters,)[1:-1]
        refuse_keywords("from_pretrained", unknown, known)
        trainable, cuda_graphs = check_flag("trainable", trainable), check_flag("cuda_graphs", cuda_graphs)
        where = resolve_device(device)
        if splitter is not None:
            word_splitter(splitter, "splitter")
        if dtype == "int8" and (where.type != "cpu" or trainable):
            raise ValueError(
                f"dtype: expected 'int8' on device 'cpu' with trainable=False, got device {str(device)!r}, "
                f"trainable={trainable}; choose another dtype"
            )
        plain = resolve_dtype("fp32" if trainable and dtype == "auto" else dtype, where)
        with as_in_a_new_process():
            stored = read_checkpoint(path_or_hub_id, HubAccess(revision, cache_dir, token, local_files_only))
            if splitter is not None:
                stored = replace(stored, config=replace(stored.config, words_splitter_type=splitter))
            model = cls._of_checkpoint(stored)
            model.source = (os.fspath(path_or_hub_id), stored.folder)
            model._loaded_fingerprint = weights_fingerprint(model.state_dict())
            model.calibration = check_calibration(stored.calibration, model._loaded_fingerprint, stored.folder)
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
        """Pack in int8, scaled by each layer's inputs in a dozen sentences. Warn if the entities found there change.

        dtype: of the activations, and of layers that are not quantised.
        """
        with measured_inputs(self):
            exact = answers(self, CANARY_TEXTS, CANARY_LABELS, 0.5)
        pack(self, dtype, int8=True)
        self.to(dtype=dtype)
        report = compare_answers("int8", answers(self, CANARY_TEXTS, CANARY_LABELS, 0.5), exact)
        if report.agreement < LEAST_AGREEMENT:
            warnings.warn(
                f"{self.source_name}: expected at least {100 * LEAST_AGREEMENT:.0f} % agreement, got {report}; check "
                'it on your own texts with check_precision, or load with dtype="fp32" or "bf16"',
                stacklevel=3,
            )

    @classmethod
    def _of_checkpoint(cls, stored: Checkpoint) -> "GLiModern":
        """Build the model of a checkpoint, in fp32. Empties the checkpoint's state dict."""
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
        """Write a checkpoint that this package and the public one can load, atomically.

        folder: may contain other files, which stay, and an older checkpoint, which is replaced. It may be the working
        directory, a mount point or a symbolic link. After a crash at any time, from_pretrained reads the older
        checkpoint or this one. Other programs may then see files of both, until the next save_pretrained to the folder.

        The calibration is written too. If the weights have changed since, it is left out, with a warning.

        Raises ValueError for a model in int8, and for a folder with another model's files of these names.
        """
        if self.packed_dtype == "int8":
            raise ValueError('dtype: expected fp32, bf16 or fp16 to save, got int8; load the model with dtype="fp32"')
        labels_tokenizer = None if self.label_encoder is None else self.label_encoder.tokenizer
        state = self.state_dict()
        calibration = kept_calibration(self, weights_fingerprint(state))
        write_checkpoint(folder, self.config, state, self.tokenizer, labels_tokenizer, calibration)

    @property
    def dtype_name(self) -> str:
        """The dtype of computation: "fp32", "bf16", "fp16" or "int8"."""
        if self.packed_dtype == "int8":
            return "int8"
        dtype = next(self.parameters()).dtype
        return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))

    def check_precision(self, texts: str | Iterable[str], labels: Labels, threshold: float = 0.5) -> PrecisionReport:
        """Compare this model, loaded in bf16 or int8, with its checkpoint in fp32.

        texts, labels, threshold: see `predict`. The fp32 model is held in memory during the call. Raises ValueError for
        a model that was not loaded from a checkpoint.
        """
        if self.source is None:
            raise ValueError(
                "check_precision: expected a model that from_pretrained loaded, got one without a checkpoint to "
                "compare with; save it and load it"
            )
        requests = list(self.requests(texts, labels).stream)
        if not requests:
            raise ValueError("texts: expected at least one text to compare by, got none")
        checked_texts = [request.text for request in requests]
        label_sets = [dict(zip(*request.labels, strict=True)) for request in requests]
        ours = answers(self, checked_texts, label_sets, threshold)
        splitter = self.config.words_splitter_type
        exact = GLiModern.from_pretrained(self.source[1], dtype="fp32", device=self.device, splitter=splitter)
        return compare_answers(self.dtype_name, ours, answers(exact, checked_texts, label_sets, threshold))

    @property
    def fingerprint(self) -> str:
        """Hash of the weights (`weights_fingerprint`); those of a model for inference are the checkpoint's."""
        return self._loaded_fingerprint if self.inference_only else weights_fingerprint(self.state_dict())

    def calibrate(self, dataset: Dataset, *, seed: int = 0, batch_tokens: int | str = "auto") -> Calibration:
        """Fit calibrated probabilities and thresholds to annotated text (see `Calibration`), and keep them.

        Sets `calibration`, which `save_pretrained` writes. dataset: from `glimodern.data.load_dataset`; fifty sentences
        are enough, and each is asked the labels that `glimodern.evaluate` asks. seed: of the cross-validation that
        chooses and measures. batch_tokens: see `predict`.

        Raises ValueError for data without gold entities, or with labels that do not fit the encoder.
        """
        self.calibration = calibrate(self, dataset, seed=seed, batch_tokens=batch_tokens).calibration
        return self.calibration
