"""`gliner_config.json` as its writers meant it: kinds of model that are not here, fields of old versions.

What each version of the public package wrote and read was looked up in its releases 0.1.14 to 0.2.29
(https://pypi.org/project/gliner/#history). No version says in the file which one it is; the fields tell.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimodern.display import short

_TOKEN_LEVEL = "a token-level model tags words and has no span head"
_DECODER = "it writes labels with a decoder, and this package only scores the labels it is given"
_RELATIONS = "it scores relations between entities, and this package scores entities only"

# field, or field and value -> why a model that says so cannot be run
_REASONS: dict[str | tuple[str, str], str] = {
    ("span_mode", "token_level"): _TOKEN_LEVEL,
    ("span_mode", "token-level"): _TOKEN_LEVEL,
    "span_mode": "it is not a head that sees a span by its two ends alone",
    ("model_type", "gliner_uni_encoder_token"): _TOKEN_LEVEL,
    ("model_type", "gliner_bi_encoder_token"): _TOKEN_LEVEL,
    ("model_type", "gliner_uni_encoder_span_decoder"): _DECODER,
    ("model_type", "gliner_uni_encoder_token_decoder"): _DECODER,
    ("model_type", "gliner_encoder_token_decoder"): _DECODER,
    ("model_type", "gliner_uni_encoder_span_relex"): _RELATIONS,
    ("model_type", "gliner_uni_encoder_token_relex"): _RELATIONS,
    ("model_type", "gliner_streaming_span"): "it reads text with a causal decoder that keeps a cache",
    "model_type": "this package has span models on encoders",
    "labels_decoder": _DECODER,
    "relations_layer": _RELATIONS,
    "span_encoder_config": "it runs a second encoder over words",
    "post_fusion_schema": "it lets labels and words attend to each other after the encoder",
    "fuse_layers": "it mixes the outputs of all layers of the encoder",
    "precomputed_prompts_mode": "its labels are stored vectors, fixed when it was compressed",
    "subtoken_pooling": "there is no such pooling in gliner 0.2.29 either",
}


def read_fields(file: Path) -> dict[str, Any]:
    """The fields of a `gliner_config.json`, as they stand there."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent}: no {file.name}: expected a folder in the public GLiNER format, got one without"
        )
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: not valid JSON: expected an object of fields, got {file.stat().st_size} bytes that break off or "
            f"are none ({error}); is the file half written?"
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(fields).__name__}")
    return fields


def refuse_other_kinds(file: Path, fields: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """ValueError for a field whose value names a kind of model that this package does not have, saying why."""
    for name, allowed in supported.items():
        value = fields.get(name)
        if value in allowed or value is None:
            continue
        wanted = " or ".join(repr(one) for one in allowed if one is not None) or "none"
        reason = _REASONS.get((name, str(value)), _REASONS[name])
        raise ValueError(
            f"{file}: {name}: expected {wanted}, got {short(value)}: not supported, because {reason}; "
            "run it with the gliner package"
        )


def settle_old_fields(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with those of old versions under today's names.

    Where gliner 0.2.29 reads a file otherwise than the version that wrote it, so that two answers are possible, a
    warning says which one was taken.
    """
    settled = {name: value for name, value in fields.items() if value is not None}
    if "has_rnn" in settled and "num_rnn_layers" not in settled:  # 0.2.1 until num_rnn_layers came, which 0.2.26 has
        settled["num_rnn_layers"] = int(bool(settled["has_rnn"]))
        if not settled["has_rnn"]:
            _warn(file, "has_rnn = false means num_rnn_layers = 0 here; gliner 0.2.29 adds an untrained LSTM")
    splitter = settled.get("token_splitter")  # up to 0.2.0, which had no words_splitter_type
    if splitter is not None and "words_splitter_type" not in settled:
        settled["words_splitter_type"] = {"mecab-ko": "mecab"}.get(splitter, splitter)
        if splitter != "whitespace":
            _warn(file, f"token_splitter = {splitter!r} splits the words here; gliner 0.2.29 splits at white space")
    pooling = settled.get("subtoken_pooling", "first")
    if pooling != "first" and "span_encoder_config" not in fields:  # both are read since 0.2.28
        _warn(
            file,
            f"subtoken_pooling = {pooling!r} is followed, as by gliner 0.2.29; the file is of a version before "
            '0.2.28, which took the first sub-token whatever it said: if the model was trained so, set it to "first"',
        )
    encoder = settled.get("encoder_config")
    if isinstance(encoder, dict) and encoder.get("model_type") is None:
        settled["encoder_config"] = {**encoder, "model_type": "deberta-v2"}  # as every version assumes
    return settled


def _warn(file: Path, choice: str) -> None:
    warnings.warn(f"{file}: {choice}", stacklevel=3)
