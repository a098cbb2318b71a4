"""The forms of an exported graph's inputs, and what its file says of itself; imports no torch.

"padded" has the inputs of the public package's own export, so that its readers run the graph: texts in rows of one
length, and the spans of each. "packed" has the inputs of `inputs.tokens.PackedArrays`. Both give the logits of spans,
[texts, words, max_width, types], or those of a token-level model, [texts, words, types, 3] for start, end and inside;
-inf for what a text does not have.

A bi-encoder in the layout "padded" reads the tokens of its labels beside those of the texts. In the layout "packed" it
is two graphs: LABELS_FILE computes a row of each label, and MODEL_FILE reads these rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from glimodern.checkpoint.config import ModelConfig
from glimodern.data.json_rows import parse_json
from glimodern.display import short

MODEL_FILE = "model.onnx"
LABELS_FILE = "labels.onnx"
METADATA = "glimodern"  # key of the description in the file's metadata
FORMAT = 2
OPSETS = range(18, 21)  # 18 has maxima by index, for pooling; 20 is the newest that PyTorch's tracer writes
DEFAULT_OPSET = 19  # the public package's

LayoutName = Literal["padded", "packed"]
Part = Literal["padded", "packed", "labels"]
"""What a graph is: the whole model in a layout, or the label graph of the layout "packed"."""
Dtype = Literal["fp32", "int8"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
LABEL_GRAPHS: tuple[Part, ...] = ("labels",)

Axes = dict[str, tuple[str, ...]]
"""Names of inputs or outputs, with the names of their axes."""

_PADDED: Axes = {
    "input_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", "sequence_length"),
    "words_mask": ("batch_size", "sequence_length"),
    "text_lengths": ("batch_size", "value"),
}
_SPANS: Axes = {"span_idx": ("batch_size", "num_spans", "idx"), "span_mask": ("batch_size", "num_spans")}
_LABELS: Axes = {
    "labels_input_ids": ("num_labels", "label_seq_length"),
    "labels_attention_mask": ("num_labels", "label_seq_length"),
}
_PACKED: Axes = {
    "input_ids": ("tokens",),
    "cu_seqlens": ("texts_and_1",),
    "word_index": ("words",),
    "cu_words": ("texts_and_1",),
    "type_index": ("types",),
    "cu_types": ("texts_and_1",),
}
_SUBTOKENS: Axes = {"subtoken_index": ("subtokens",), "subtoken_word": ("subtokens",)}
_LABEL_ROWS: Axes = {"label_rows": ("labels",)}
_LABEL_GRAPH: Axes = {"input_ids": ("tokens",), "cu_seqlens": ("labels_and_1",)}
# The public package names the axes of token-level logits in another order than they have.
_SPAN_LOGITS: Axes = {"logits": ("batch_size", "sequence_length", "num_spans", "num_classes")}
_TOKEN_LOGITS: Axes = {"logits": ("batch_size", "sequence_length", "num_classes")}


def check_layout(name: str) -> None:
    """Raise ValueError for a name that is no layout's."""
    if name not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, got {name!r}")


def is_bi_encoder(config: ModelConfig) -> bool:
    return config.labels_encoder is not None


def inputs_of(part: Part, config: ModelConfig) -> Axes:
    """Return the inputs of a graph of a model with this config."""
    if part == "labels":
        return _LABEL_GRAPH
    if part == "padded":
        return {**_PADDED, **({} if config.any_width else _SPANS), **(_LABELS if is_bi_encoder(config) else {})}
    pooled = config.subtoken_pooling in ("mean", "max")
    return {**_PACKED, **(_SUBTOKENS if pooled else {}), **(_LABEL_ROWS if is_bi_encoder(config) else {})}


def output_of(part: Part, config: ModelConfig) -> Axes:
    """Return the only output of a graph of a model with this config."""
    if part == "labels":
        return _LABEL_ROWS
    return _TOKEN_LOGITS if config.any_width else _SPAN_LOGITS


_TRACED = (
    "span_mode", "max_width", "hidden_size", "subtoken_pooling", "embed_ent_token", "class_token_index", "vocab_size",
)  # fmt: skip


def traced_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a config that a graph depends on."""
    return {name: getattr(config, name) for name in _TRACED}


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself, beside the checkpoint's config.

    config: the fields of the config that the graph depends on (`traced_fields`). max_tokens: most tokens of a text,
    with prompt and special tokens. max_label_tokens: most tokens of a bi-encoder's label. Both None: no limit.
    fingerprint: of the checkpoint's weights. version: of this package.
    """

    part: Part
    dtype: Dtype
    config: dict[str, Any]
    max_tokens: int | None
    max_label_tokens: int | None
    fingerprint: str
    version: str
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, file: str) -> Description:
        """Read the text of `to_json`. file: its name in errors. Raises ValueError."""
        try:
            fields: Any = parse_json(text)
        except ValueError as error:
            raise ValueError(
                f"{file}: metadata: expected a description in JSON, got {short(text)}; export the model again"
            ) from error
        known = set(cls.__dataclass_fields__)
        if not isinstance(fields, dict) or set(fields) != known or fields["format"] != FORMAT:
            given = fields.get("format") if isinstance(fields, dict) else None
            raise ValueError(f"{file}: metadata: expected format {FORMAT}, got {given!r}; export the model again")
        return cls(**fields)

    def check_config(self, config: ModelConfig, file: str, graph: str) -> None:
        """Raise ValueError for a config that the graph was not traced with. file, graph: names in errors."""
        for name, value in traced_fields(config).items():
            if self.config.get(name) != value:
                raise ValueError(
                    f"{file}: {name}: expected {self.config.get(name)!r}, as {graph} beside it says, got "
                    f"{value!r}; the files are not of one model, export it again"
                )
