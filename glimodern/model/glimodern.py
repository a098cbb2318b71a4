"""GLiModern: the span network with building, loading, saving and prediction."""

import inspect
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Never, Self, Unpack

from glimodern.checkpoint.adapter import adapted_fingerprint, read_adapter
from glimodern.checkpoint.calibration_file import check_calibration
from glimodern.checkpoint.config import ENT_TOKEN, SEP_TOKEN, HeadConfig, HeadOptions, ModelConfig
from glimodern.checkpoint.folder import Checkpoint, check_fit, read_checkpoint, to_public, write_checkpoint
from glimodern.checkpoint.weights_fingerprint import weights_fingerprint
from glimodern.data.calibration import Calibration
from glimodern.data.example import Dataset
from glimodern.encoder import Encoder, build_encoder, load_encoder
from glimodern.files.atomic import expand_user
from glimodern.files.hub import HubAccess
from glimodern.files.tokenizer import add_prompt_tokens, load_tokenizer
from glimodern.files.weights import WEIGHTS_FILE
from glimodern.inference.checks import check_flag
from glimodern.inputs.labels import Labels
from glimodern.inputs.words import word_splitter
from glimodern.layers.parameters import take_tensors, without_values
from glimodern.layers.quantised import hold_quantised
from glimodern.network.label_encoder import fresh_label_encoder, stored_label_encoder
from glimodern.runtime.ambient import as_in_a_new_process, building

from .adapters import adapted
from .calibrating import calibrate, kept_calibration
from .entity_predictor import EntityPredictor
from .fingerprinting import saved_fingerprint
from .gliner_api import GlinerApi
from .keywords import refuse_keywords
from .loading import (
    DTYPES,
    check_int8_kernel,
    computes_as_stored,
    encoder_of,
    freeze,
    pack,
    pack_stored,
    resolve_device,
    resolve_dtype,
)
from .precision import PrecisionReport, Questions, answers, compare_answers
from .sharing import HubApi
from .storing import check_agreement, check_dtype, in_dtype, lower, warn_of
from .verifying import verified

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
    adapter: Path | None = None
    """The folder of the adapter that a model for inference runs with; None: none."""

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
        verify: bool = False,
        adapter: str | os.PathLike[str] | None = None,
        **unknown: Never,
    ) -> "GLiModern":
        """Load a checkpoint in the public GLiNER format, from a local folder (without network access) or a hub name.

        dtype: "fp32", "bf16", "fp16", "int8" or "auto". "auto" is bf16 on hardware that multiplies it natively, else
        fp32; on a CPU, weights that are stored in int8 are computed in int8. "int8" is for CPUs: weights are quantised
        by output channel, token embeddings by row, activations by token. It warns if that changes the entities found in
        a few sentences. In another dtype, weights that are stored in int8 are dequantised.
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
        verify: compare what the model computes here with the checkpoint's fingerprint.json, which save_pretrained
        wrote, and raise ValueError for a difference beyond rounding, with the first stage that differs: tokens, hidden
        states or scores.
        adapter: folder of an adapter of this checkpoint (see `with_adapter`); with trainable=True it is merged.

        Torch's settings (default dtype and device, inference mode, generator) do not affect the result. The files may
        be overwritten afterwards. Weights that are stored in a third dtype are converted to fp32 first.

        Raises FileNotFoundError for missing files. Raises ValueError for half-written files, pickled code, unsupported
        kinds of models, tensors that do not fit the config, a calibration or an adapter of another model, and a device
        that is not available. With verify=True, fingerprint.json is such a file, and a fingerprint of another model is
        refused.
        """
        known = (*inspect.signature(cls.from_pretrained).parameters,)[1:-1]
        refuse_keywords("from_pretrained", unknown, known)
        trainable, cuda_graphs = check_flag("trainable", trainable), check_flag("cuda_graphs", cuda_graphs)
        verify = check_flag("verify", verify)
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
            as_stored = computes_as_stored(stored, dtype, where, trainable=trainable)
            if dtype == "int8" and not as_stored:
                check_int8_kernel()
            kept = None if trainable or dtype == "int8" else plain
            model = cls._of_checkpoint(stored, kept)
            model.source = (os.fspath(path_or_hub_id), stored.folder)
            model._loaded_fingerprint = weights_fingerprint(model.state_dict())
            model.calibration = check_calibration(stored.calibration, model._loaded_fingerprint, stored.folder)
            model.cuda_graphs = cuda_graphs
            model.eval()
            if trainable:
                if adapter is not None:
                    model, verify = verified(model, stored.folder, verify).with_adapter(adapter), False
                return verified(model.to(device=where, dtype=plain), stored.folder, verify)
            freeze(model)
            if as_stored:
                pack_stored(model, plain, stored)
            elif dtype == "int8":
                report = lower(model, "int8", plain, Questions.read(model, None, None))
                model.config = replace(model.config, precision=asdict(report))
            elif where.type == "cpu" and plain in (torch.float32, torch.bfloat16):
                pack(model, plain)
            model.to(device=where, dtype=plain)
        if model.dtype_name == "int8" and model.config.precision is not None:
            warn_of(model.config.precision, model.source_name)
        model = verified(model, stored.folder, verify)
        return model if adapter is None else model.with_adapter(adapter)

    def with_adapter(self, folder: str | os.PathLike[str]) -> Self:
        """Return this model with an adapter that was trained on its weights. The model itself does not change.

        folder: the folder `adapter` of a training run with --lora-rank; peft is not needed. The result shares this
        model's memory, so that a model and any number of its adapters are loaded once, and to switch is to use another
        object. It is not calibrated. A model for inference keeps its packed weights, in any dtype, and adds the
        adapter's low-rank products; a trainable one gets merged weights, and can be saved.

        Raises FileNotFoundError for a missing file, and ValueError for a broken one, for an adapter of another base,
        and for a model that has an adapter.
        """
        if self.adapter is not None:
            raise ValueError(
                f"with_adapter: expected a model without an adapter, got one with {self.adapter}; call it on the base"
            )
        adapter = read_adapter(folder)
        fingerprint = self.weights_fingerprint
        adapter.check_base(self.source_name, fingerprint)
        model = adapted(self, adapter)
        if self.inference_only:
            model.adapter = adapter.folder
            model._loaded_fingerprint = adapted_fingerprint(fingerprint, adapter.fingerprint)
        return model

    @classmethod
    def _of_checkpoint(cls, stored: Checkpoint, keep: torch.dtype | None = None) -> "GLiModern":
        """Build the model of a checkpoint. Empties the checkpoint's state dict.

        Parameters are in fp32, but for tensors of the dtype `keep`, and for weights that the state holds in int8, which
        must be packed.
        """
        encoder_config = {**stored.config.encoder_config, "vocab_size": stored.config.vocab_size}
        config = replace(stored.config, encoder_config=encoder_config)

        def build() -> "GLiModern":
            label_encoder = stored_label_encoder(config, stored.labels_tokenizer)
            return cls(config, encoder_of(stored, encoder_config), stored.tokenizer, label_encoder)

        model = without_values(build)
        hold_quantised(model, stored.state)
        check_fit(to_public(model.state_dict()), to_public(stored.state), stored.weights, config.vocab_size)
        take_tensors(model, stored.state, keep)
        return model

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        texts: str | Iterable[str] | None = None,
        labels: Labels | None = None,
        force: bool = False,
    ) -> None:
        """Write a checkpoint, atomically. This package and the public one can load it; one in int8, this one only.

        dtype: "fp32", "bf16" or "int8", in which the weights are stored; None: as the model computes. A model in fp32
        can be stored in each. It is compared in that dtype with fp32 (`check_precision`), and the result is written
        into the config. from_pretrained then computes the same bits as from the checkpoint in fp32, loaded with this
        dtype; from weights in int8 it does so by default. The scales of int8 are fitted to a dozen built-in sentences.
        texts, labels: to compare by, see `predict`; None: the built-in sentences. Measure on texts of yours: agreement
        depends on them. force: store the weights even if less than 97 % of the entities agree, or none were found; also
        where such weights are stored again.

        folder: may contain other files, which stay, and an older checkpoint, which is replaced. It may be the working
        directory, a mount point or a symbolic link. After a crash at any time, from_pretrained reads the older
        checkpoint or this one. Other programs may then see files of both, until the next save_pretrained to the folder.

        The calibration is written too. If the weights have changed since, it is left out, with a warning.

        What the model computes for a dozen sentences, in the stored dtype, is written to fingerprint.json, for
        `from_pretrained` with verify=True. A model that cannot be run is saved with a warning.

        Raises ValueError for a dtype that the model's weights cannot be stored in, for less than 97 % agreement, and
        for a folder with another model's files of these names.
        """
        if self.adapter is not None:
            raise ValueError(
                f"adapter: expected none, or a merged one, to save, got {self.adapter}; load the model with "
                "trainable=True, which merges it"
            )
        if dtype is not None:
            check_dtype(dtype, self.dtype_name)
        state, config, force = self.state_dict(), self._own_config(), check_flag("force", force)
        computing, weights = self, weights_fingerprint(state)
        calibration = kept_calibration(self, weights)
        if dtype not in (None, self.dtype_name):
            asked = Questions.read(self, texts, labels)
            state, computing, report = in_dtype(state, dtype, asked, self._plain_copy)
            config, weights = replace(config, precision=asdict(report)), weights_fingerprint(state)
        elif texts is not None or labels is not None:
            remedy = "give dtype" if self.dtype_name == "fp32" else 'load it with dtype="fp32" and give dtype'
            raise ValueError(
                f"texts, labels: expected None for a model that is stored as it computes, in {self.dtype_name}, got "
                f"texts to compare by; {remedy}"
            )
        check_agreement(config.precision, force=force)
        if calibration is not None:
            calibration = replace(calibration, fingerprint=weights)
        fingerprint = saved_fingerprint(computing, weights)
        labels_tokenizer = None if self.label_encoder is None else self.label_encoder.tokenizer
        write_checkpoint(folder, config, state, self.tokenizer, labels_tokenizer, calibration, fingerprint)

    def _own_config(self) -> ModelConfig:
        """The config, with the precision of the weights only if they have not changed since it was measured."""
        precision = self.config.precision
        kept = self.inference_only and precision is not None and precision.get("dtype") == self.dtype_name
        return self.config if kept else replace(self.config, precision=None)

    @as_in_a_new_process()
    def _plain_copy(self, state: dict[str, Tensor]) -> "GLiModern":
        """Build a plain model for inference on the CPU, of this model's config and a state dict, which is emptied."""
        labels_tokenizer = None if self.label_encoder is None else self.label_encoder.held_tokenizer
        memory = Path(WEIGHTS_FILE)
        stored = Checkpoint(self.config, state, self.held_tokenizer, memory, memory.parent, labels_tokenizer)
        copy = type(self)._of_checkpoint(stored).eval()
        freeze(copy)
        return copy

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
        asked = Questions.read(self, texts, labels, threshold)
        ours = answers(self, asked)
        splitter = self.config.words_splitter_type
        exact = GLiModern.from_pretrained(
            self.source[1], dtype="fp32", device=self.device, splitter=splitter, adapter=self.adapter
        )
        return compare_answers(self.dtype_name, ours, answers(exact, asked))

    @property
    def weights_fingerprint(self) -> str:
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
