"""Model configuration: the fields of `gliner_config.json` and all their defaults."""

from dataclasses import MISSING, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypedDict, get_args

from glimodern.display import first_line
from glimodern.files.atomic import current_files, user_path
from glimodern.files.hub import HubAccess, resolve_folder
from glimodern.inputs.words import DEFAULT_SPLITTER
from glimodern.settings import AT_LEAST_ONE, NOT_NEGATIVE, SHARE, WIDTH, check_settings

from .legacy import check_supported, check_token_level, read_fields, upgrade_fields

CONFIG_FILE = "gliner_config.json"
ENT_TOKEN, SEP_TOKEN = "<<ENT>>", "<<SEP>>"

SpanMode = Literal["markerV0", "marker", "ffn", "token_level"]
TOKEN_LEVEL: Final = "token_level"
Pooling = Literal["first", "last", "mean", "max"]
SPAN_MODES: tuple[SpanMode, ...] = get_args(SpanMode)
SPAN_HEADS = tuple(mode for mode in SPAN_MODES if mode != TOKEN_LEVEL)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Options of a span model on any encoder, with the defaults of a new model."""

    hidden_size: Annotated[int | None, WIDTH] = None
    """Head width d; None: the encoder's width. An encoder with another width gets a projection."""
    span_mode: SpanMode = "markerV0"
    """Head. It scores spans: "markerV0" of public checkpoints, "marker" of the oldest ones, "ffn" of the paper's
    equation 3. Or words, as the start, the end and the inside of an entity: "token_level"."""
    subtoken_pooling: Pooling = "first"
    """Which sub-tokens make a word's vector."""
    max_width: Annotated[int, AT_LEAST_ONE] = 12
    """Maximum span width in words, K. A token-level head finds longer entities too; windows of long texts still
    overlap so that entities of at most so many words lie whole in one."""
    max_len: Annotated[int | None, AT_LEAST_ONE] = None
    """Maximum words of a text; later words are cut. None: the encoder's maximum number of tokens, at most 8,192."""
    max_types: Annotated[int, AT_LEAST_ONE] = 25
    """Maximum entity types per sentence in training."""
    dropout: Annotated[float, SHARE] = 0.4
    """Dropout probability of the head."""
    labels_encoder: str | None = None
    """Folder or hub name of a sentence encoder for the labels (a bi-encoder); None: the labels are in the prompt."""
    embed_ent_token: bool = True
    """True: a type's vector is read at the <<ENT>> token before its label; False: at the label's first token."""
    words_splitter_type: str = DEFAULT_SPLITTER
    """How a text is split into words: one of `glimodern.inputs.words.SPLITTERS`."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def any_width(self) -> bool:
        """Whether the head finds entities of more than max_width words."""
        return self.span_mode == TOKEN_LEVEL


class HeadOptions(TypedDict, total=False):
    """The fields of `HeadConfig` as keyword arguments."""

    hidden_size: int | None
    span_mode: SpanMode
    subtoken_pooling: Pooling
    max_width: int
    max_len: int | None
    max_types: int
    dropout: float
    labels_encoder: str | PathLike[str] | None
    embed_ent_token: bool
    words_splitter_type: str


@dataclass(frozen=True, kw_only=True)
class ModelConfig(HeadConfig):
    """The fields of a checkpoint's `gliner_config.json`, under the public names.

    encoder_config: the encoder's transformers config as a dict.
    class_token_index: id of ent_token.
    vocab_size: rows of the token embedding.
    model_name: folder or hub name of the encoder.
    num_rnn_layers: layers of the bidirectional LSTM over word vectors; 0: none.
    labels_encoder_config: config of a bi-encoder's label encoder as a dict, else None.
    precision: of weights that were stored in int8 or bf16, their agreement with fp32 (the fields of
        `glimodern.model.precision.PrecisionReport`); else None. Not one of the public fields.
    """

    hidden_size: Annotated[int, WIDTH]
    max_len: Annotated[int, AT_LEAST_ONE]
    encoder_config: dict[str, Any]
    class_token_index: int
    vocab_size: Annotated[int, AT_LEAST_ONE]
    model_name: str = ""
    num_rnn_layers: Annotated[int, NOT_NEGATIVE] = 0
    ent_token: str = ENT_TOKEN
    sep_token: str = SEP_TOKEN
    labels_encoder_config: dict[str, Any] | None = None
    precision: dict[str, Any] | None = None


# field of gliner_config.json -> supported values; another value means a model architecture that is not supported
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": (
        *(None, "gliner", "gliner_uni_encoder_span", "gliner_bi_encoder", "gliner_bi_encoder_span"),
        *("gliner_uni_encoder_token", "gliner_bi_encoder_token"),
    ),
    "span_mode": SPAN_MODES,
    "subtoken_pooling": POOLINGS,
    "labels_decoder": (None,),
    "relations_layer": (None,),
    "span_encoder_config": (None,),
    "post_fusion_schema": ("", None),
    "fuse_layers": (False, None),
    "precomputed_prompts_mode": (False, None),
}

# The public package's defaults for fields that an old file lacks. They equal the defaults above except where listed
# (tests/test_old_configs.py compares them with the package).
PUBLIC_DEFAULTS: dict[str, Any] = {
    **{field.name: field.default for field in fields(ModelConfig) if field.default is not MISSING},
    "hidden_size": 512,
    "max_len": 384,
    "num_rnn_layers": 1,
    "model_name": "microsoft/deberta-v3-small",
    "vocab_size": -1,
    "class_token_index": -1,
    "encoder_config": None,
}


def read_config(folder: Path, hub: HubAccess | None = None) -> ModelConfig:
    """Read `gliner_config.json` of a folder.

    A class_token_index of -1 means that the prompt tokens must still be added to tokenizer and embedding.

    hub: how to look up the encoder for a file without encoder_config; None: without network access.
    Raises ValueError, with the name of the field, for an unsupported architecture or an invalid value.
    """
    file = folder / CONFIG_FILE
    stored = read_fields(file)
    check_supported(file, stored, SUPPORTED)
    check_token_level(file, stored, TOKEN_LEVEL)
    stored = upgrade_fields(file, stored)
    known = {**PUBLIC_DEFAULTS, **{name: stored[name] for name in PUBLIC_DEFAULTS if name in stored}}
    encoders = {"encoder_config": "model_name"}
    if known["labels_encoder"] is not None:
        encoders["labels_encoder_config"] = "labels_encoder"
    for field, name in encoders.items():
        if known[field] is None:
            known[field] = _encoder_config(file, field, name, known[name], hub)
        if not isinstance(known[field], dict):
            raise ValueError(f"{file}: {field}: expected an object of fields, got {known[field]!r}")
    if known["labels_encoder"] is not None:
        # texts have no prompt; the public package neither resizes the embedding nor reads these two fields
        known.update(vocab_size=known["encoder_config"].get("vocab_size"), class_token_index=-1)
    elif -1 in (known["class_token_index"], known["vocab_size"]):
        rows = known["encoder_config"].get("vocab_size") if known["vocab_size"] == -1 else known["vocab_size"]
        known.update(class_token_index=-1, vocab_size=rows)
    if known["precision"] is not None and not isinstance(known["precision"], dict):
        raise ValueError(
            f"{file}: precision: expected an object or null, got {known['precision']!r}; save the model again"
        )
    try:
        return ModelConfig(**known)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def stored_splitter(path_or_hub_id: str | PathLike[str]) -> str:
    """Return `words_splitter_type` of a checkpoint, a folder or a hub name, to read data as the model reads texts."""
    folder = resolve_folder(path_or_hub_id)
    hub = None if user_path(path_or_hub_id, "path_or_hub_id").is_dir() else HubAccess()
    return read_config(current_files(folder), hub).words_splitter_type


def encoder_lookup(hub: HubAccess | None) -> dict[str, Any]:
    """Return the hub options for the encoder that a checkpoint names.

    hub: the lookup of the checkpoint, without its revision; None: the checkpoint is a local folder, no network access.
    """
    return (HubAccess(local_files_only=True) if hub is None else replace(hub, revision=None)).options()


def _encoder_config(file: Path, field: str, name_field: str, name: str, hub: HubAccess | None) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(name, **encoder_lookup(hub)).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}: {field}: expected the encoder's config, got none, and the config of {name_field} {name!r} could "
            f"not be loaded ({first_line(error)}); add its config.json as {field}"
        ) from error
    return config
