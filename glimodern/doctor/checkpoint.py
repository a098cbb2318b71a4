"""Checks of a checkpoint: half-written files, parts of different models, broken weights, and wrong predictions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from glimodern.files.atomic import current_files, user_path

from .base import CheckError, Checks

if TYPE_CHECKING:
    from torch import Tensor

    from glimodern.checkpoint.config import ModelConfig
    from glimodern.model.glimodern import GLiModern

_AGAIN = "download the checkpoint again, or save it again with save_pretrained"
_ONE_MODEL = "use config, weights and tokenizer of one save_pretrained"
_TRAIN = "use an earlier checkpoint, and train on from it with a smaller learning rate"
_COPY = "copy the tokenizer's files from where the model was trained"
_AS_SAVED = "use files and versions of one save_pretrained; if they are meant to differ, save the model again"
_REPORT = "send this report with a bug report"
_TEXTS = 4  # canary sentences that are predicted
_TOLERANCE = 1e-4  # of fp32 logits, relative to the largest one: the order of summation differs


def check_checkpoint(checks: Checks, model: str) -> None:
    """Check a checkpoint, part by part, so that one broken part does not hide another. model: folder or hub name."""
    checks.run("folder", lambda: _folder(model), "give the folder that holds gliner_config.json, or a hub name")
    hub = not user_path(model, "model").is_dir()
    checks.run("config", lambda folder: _config(folder, hub=hub), _AGAIN, needs=("folder",))
    checks.run("splitter", _splitter, "install the package of the checkpoint's splitter", needs=("config",))
    checks.run("weights", _weights, _AGAIN, needs=("folder",))
    checks.run("finite weights", _finite, _TRAIN, needs=("weights",))
    checks.run("shapes", _shapes, _ONE_MODEL, needs=("folder", "config", "weights"))
    checks.run("tokenizer", _tokenizer, _COPY, needs=("folder",))
    checks.run("vocabulary", _vocabulary, _ONE_MODEL, needs=("config", "tokenizer"))
    checks.run("loads", _loads, _AGAIN, needs=("folder", "shapes", "vocabulary"))
    checks.run("canary", lambda model, _: _canary(model), _TRAIN, needs=("loads", "splitter"))
    checks.run("deterministic", _deterministic, _REPORT, needs=("loads", "canary"))
    checks.run("batching", _batching, _REPORT, needs=("loads", "canary"))
    checks.run("packed", _packed, _REPORT, needs=("folder", "canary"))
    right = ("deterministic", "batching", "packed")  # else the machine is wrong, not the files
    checks.run("fingerprint", _fingerprint, _AS_SAVED, needs=("folder", "loads", *right))


# The parts


def _folder(model: str) -> tuple[Path, str]:
    from glimodern.files.hub import resolve_folder

    folder = current_files(resolve_folder(model))
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return folder, ", ".join(f"{file.name} {file.stat().st_size:,} B" for file in files) or "no files"


def _config(folder: Path, *, hub: bool) -> tuple[ModelConfig, str]:
    from glimodern.checkpoint.config import read_config
    from glimodern.files.hub import HubAccess

    config = read_config(folder, HubAccess() if hub else None)
    model_type = config.encoder_config.get("model_type")
    widest = "entities of any width" if config.any_width else f"K {config.max_width}"
    return config, f"{model_type} encoder, {config.span_mode}, d {config.hidden_size}, {widest}"


def _splitter(config: ModelConfig) -> tuple[None, str]:
    from glimodern.inputs.words import word_splitter

    word_splitter(config.words_splitter_type)
    return None, f"texts are split into words by {config.words_splitter_type!r}"


def _weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    from glimodern.files.tensors import read_tensors
    from glimodern.files.weights import weights_file

    state = read_tensors(weights_file(folder))
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    elements = sum(tensor.numel() for tensor in state.values())
    return state, f"{len(state)} tensors, {elements:,} elements in {', '.join(dtypes)}"


def _finite(state: dict[str, Tensor]) -> tuple[None, str]:
    import torch

    broken = [name for name, x in state.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]
    if broken:
        raise CheckError(
            f"weights: expected finite values, got NaN or infinity in {len(broken)} of {len(state)} tensors: "
            f"{', '.join(broken[:4])}",
            _TRAIN,
        )
    return None, "no NaN and no infinity"


def _shapes(folder: Path, config: ModelConfig, state: dict[str, Tensor]) -> tuple[None, str]:
    """Compare the tensors' names and shapes with those of the config's model, built on the meta device."""
    import torch

    from glimodern.checkpoint.folder import check_fit, from_public, to_public
    from glimodern.encoder import build_encoder
    from glimodern.files.weights import weights_file
    from glimodern.layers.quantised import hold_quantised
    from glimodern.model.glimodern import GLiModern

    if config.class_token_index == -1:
        return None, "left to loading, which adds the prompt tokens (class_token_index -1)"
    encoder = build_encoder({**config.encoder_config, "vocab_size": config.vocab_size}, values=False)
    with torch.device("meta"):
        model = GLiModern(config, encoder, _stand_in_tokenizer(config))
    hold_quantised(model, from_public(state))
    check_fit(to_public(model.state_dict()), state, weights_file(folder), config.vocab_size)
    return None, f"{len(state)} tensors have the names and shapes of the config's model"


def _stand_in_tokenizer(config: ModelConfig) -> Any:
    """Build a minimal tokenizer to construct the model with, so that a broken one does not hide broken weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({config.ent_token: 0, config.sep_token: 1}, unk_token=config.sep_token)
    return SimpleNamespace(backend_tokenizer=Tokenizer(words), model_max_length=None)


def _tokenizer(folder: Path) -> tuple[Any, str]:
    from glimodern.files.tokenizer import load_tokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise CheckError(f"{folder}: expected tokenizer.json and tokenizer_config.json, got neither", _COPY)
    try:
        tokenizer = load_tokenizer(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself for a file that it cannot read
        message = " ".join(str(error).split())
        raise CheckError(f"{folder}: expected a tokenizer, got files that cannot be read ({message})", _COPY) from error
    return tokenizer, f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens"


def _vocabulary(config: ModelConfig, tokenizer: Any) -> tuple[None, str]:
    if config.class_token_index == -1:
        return None, "left to loading, which adds the prompt tokens (class_token_index -1)"
    known = tokenizer.get_vocab()
    missing = [token for token in (config.ent_token, config.sep_token) if token not in known]
    if missing:
        raise CheckError(
            f"tokenizer: expected the prompt tokens {missing}, got {len(known):,} other tokens", _ONE_MODEL
        )
    index, last = known[config.ent_token], max(known.values())
    if config.class_token_index != index:
        expected = f"expected the id of {config.ent_token!r} in the tokenizer ({index})"
        raise CheckError(f"class_token_index: {expected}, got {config.class_token_index}", _ONE_MODEL)
    if last >= config.vocab_size:
        expected = f"expected an embedding row for every token id, up to {last}"
        raise CheckError(f"vocab_size: {expected}, got {config.vocab_size} rows", _ONE_MODEL)
    return None, f"ids up to {last} for {config.vocab_size} rows; {config.ent_token} is {index}"


# The whole model


def _loads(folder: Path, *_: None) -> tuple[GLiModern, str]:
    from glimodern.model.glimodern import GLiModern

    model = GLiModern.from_pretrained(folder, dtype="fp32", trainable=True)
    limit = model.packer.max_tokens
    reads = f"texts of {model.packer.max_words} words" + ("" if limit is None else f", {limit} tokens with the prompt")
    return model, f"{reads}; {model.encoder.packed_reason}"


def _logits(model: GLiModern, texts: int | slice) -> Tensor:
    """Compute the canary's logits of all spans inside their texts, as one fp32 vector.

    texts: one canary sentence, or several in one batch.
    """
    import torch

    from glimodern.inputs.words import word_splitter
    from glimodern.model.precision import CANARY_LABELS, CANARY_TEXTS

    chosen = CANARY_TEXTS[:_TEXTS][texts if isinstance(texts, slice) else slice(texts, texts + 1)]
    split = word_splitter(model.config.words_splitter_type)
    words = [[word.text for word in split(text)] for text in chosen]
    with torch.no_grad():
        parts = model.scores(model.packer.pack(words, [CANARY_LABELS[:3]] * len(words)))
    return torch.cat([part[~part.isneginf()] for part in parts]).float()


def _canary(model: GLiModern) -> tuple[Tensor, str]:
    import torch

    logits = _logits(model, slice(None))
    if not bool(torch.isfinite(logits).all()):
        raise CheckError(
            f"logits: expected finite values for {_TEXTS} sentences, got {int((~torch.isfinite(logits)).sum())} of "
            f"{len(logits)} that are not finite",
            _TRAIN,
        )
    return logits, f"{len(logits)} finite logits of {_TEXTS} sentences, {logits.min():.2f} to {logits.max():.2f}"


def _deterministic(model: GLiModern, logits: Tensor) -> tuple[None, str]:
    import torch

    if not torch.equal(_logits(model, slice(None)), logits):
        raise CheckError("logits: expected the same bits in a second run, got others", _REPORT)
    return None, "a second run gives the same bits"


def _batching(model: GLiModern, logits: Tensor) -> tuple[None, str]:
    import torch

    alone = torch.cat([_logits(model, text) for text in range(_TEXTS)])
    return None, f"sentences alone and together: {_compare(alone, logits)}"


def _packed(folder: Path, logits: Tensor) -> tuple[None, str]:
    from glimodern.model.glimodern import GLiModern

    model = GLiModern.from_pretrained(folder, dtype="fp32")
    if model.packed_dtype is None:
        return None, "nothing is packed on this machine"
    return None, f"packed for inference and plain: {_compare(_logits(model, slice(None)), logits)}"


def _fingerprint(folder: Path, model: GLiModern, *_: None) -> tuple[None, str]:
    from glimodern.checkpoint.fingerprint import FINGERPRINT_FILE
    from glimodern.model.verifying import check_fingerprint

    if not (folder / FINGERPRINT_FILE).is_file():
        return None, f"no {FINGERPRINT_FILE} to compare with; save_pretrained writes it"
    return None, str(check_fingerprint(model, folder))


def _compare(got: Tensor, expected: Tensor) -> str:
    difference, largest = float((got - expected).abs().max()), float(expected.abs().max())
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise CheckError(
            f"logits: expected equal values up to rounding, got a difference of {difference:.1e} of {largest:.1f}",
            _REPORT,
        )
    return f"logits differ by {difference:.1e}"
