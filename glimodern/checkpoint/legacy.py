"""Reading of `gliner_config.json` files of all versions: unsupported architectures and old fields.

Source: the fields that releases 0.1.14 to 0.2.29 of the public package write and read
(https://pypi.org/project/gliner/#history). The file does not store its version; the fields identify it.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimodern.display import short

_DECODER = "it writes labels with a decoder, and this package only scores the labels it is given"
_RELATIONS = "it scores relations between entities, and this package scores entities only"

# field, or (field, value) -> why such a model is not supported
_REASONS: dict[str | tuple[str, str], str] = {
    "span_mode": "it is not a head that sees a span by its two ends alone, nor one that tags words",
    ("model_type", "gliner_uni_encoder_span_decoder"): _DECODER,
    ("model_type", "gliner_uni_encoder_token_decoder"): _DECODER,
    ("model_type", "gliner_encoder_token_decoder"): _DECODER,
    ("model_type", "gliner_uni_encoder_span_relex"): _RELATIONS,
    ("model_type", "gliner_uni_encoder_token_relex"): _RELATIONS,
    ("model_type", "gliner_streaming_span"): "it reads text with a causal decoder that keeps a cache",
    "model_type": "this package has span and token-level models on encoders",
    "labels_decoder": _DECODER,
    "relations_layer": _RELATIONS,
    "span_encoder_config": "it runs a second encoder over words",
    "post_fusion_schema": "it lets labels and words attend to each other after the encoder",
    "fuse_layers": "it mixes the outputs of all layers of the encoder",
    "precomputed_prompts_mode": "its labels are stored vectors, fixed when it was compressed",
    "subtoken_pooling": "there is no such pooling in gliner 0.2.29 either",
}


def read_fields(file: Path) -> dict[str, Any]:
    """Read the fields of a `gliner_config.json` unchanged. Raises FileNotFoundError and ValueError."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent}: no {file.name}: expected a folder in the public GLiNER format, got one without it"
        )
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: not valid JSON: expected an object of fields, got {file.stat().st_size} bytes ({error}); the "
            "file may be incomplete, download or save it again"
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(fields).__name__}; download or save it again")
    return fields


def check_supported(file: Path, fields: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError, with the reason, for a field whose value is not in `supported`; None is always supported."""
    for name, allowed in supported.items():
        value = fields.get(name)
        if value in allowed or value is None:
            continue
        expected = " or ".join(repr(choice) for choice in allowed if choice is not None) or "none"
        reason = _REASONS.get((name, str(value)), _REASONS[name])
        raise ValueError(
            f"{file}: {name}: expected {expected}, got {short(value)}: not supported, because {reason}; "
            "run it with the gliner package"
        )


def check_token_level(file: Path, fields: Mapping[str, Any], token_level: str) -> None:
    """Raise ValueError for a token-level model whose fields contradict each other, or with a second head.

    token_level: the `span_mode` of such models. gliner chooses the head by `span_mode` alone, and writes the model_type
    of a span model with it.
    """
    model_type, mode = fields.get("model_type"), fields.get("span_mode")
    if str(model_type).endswith("_token") and mode != token_level:
        raise ValueError(
            f"{file}: span_mode: expected {token_level!r}, of which model_type {model_type!r} is, got "
            f"{'none' if mode is None else repr(mode)}; add the field, or correct it"
        )
    if mode == token_level and fields.get("represent_spans"):
        raise ValueError(
            f"{file}: represent_spans: expected False, got {fields['represent_spans']!r}: not supported, because it "
            "scores the spans that the token-level head found by a second head; run it with the gliner package"
        )


def upgrade_fields(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields under their current names, without those that are None.

    Warns, with the reading chosen, if gliner 0.2.29 reads a field differently from the version that wrote the file.
    """
    upgraded = {name: value for name, value in fields.items() if value is not None}
    # has_rnn: from 0.2.1 until num_rnn_layers replaced it, in 0.2.26 at the latest
    if "has_rnn" in upgraded and "num_rnn_layers" not in upgraded:
        upgraded["num_rnn_layers"] = int(bool(upgraded["has_rnn"]))
        if not upgraded["has_rnn"]:
            _warn(file, "has_rnn = false means num_rnn_layers = 0 here; gliner 0.2.29 adds an untrained LSTM")
    splitter = upgraded.get("token_splitter")  # up to 0.2.0, before words_splitter_type
    if splitter is not None and "words_splitter_type" not in upgraded:
        upgraded["words_splitter_type"] = {"mecab-ko": "mecab"}.get(splitter, splitter)
        if splitter != "whitespace":
            _warn(file, f"token_splitter = {splitter!r} splits the words here; gliner 0.2.29 splits at white space")
    pooling = upgraded.get("subtoken_pooling", "first")
    if pooling != "first" and "span_encoder_config" not in fields:  # both fields are read since 0.2.28
        _warn(
            file,
            f"subtoken_pooling = {pooling!r} is applied, as in gliner 0.2.29; the file is from a version before "
            "0.2.28, which ignored the field and took the first sub-token: if the model was trained with such a "
            'version, set it to "first"',
        )
    encoder = upgraded.get("encoder_config")
    if isinstance(encoder, dict) and encoder.get("model_type") is None:
        upgraded["encoder_config"] = {**encoder, "model_type": "deberta-v2"}  # the default of every version
    return upgraded


def _warn(file: Path, choice: str) -> None:
    warnings.warn(f"{file}: {choice}", stacklevel=3)
