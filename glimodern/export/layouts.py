"""The two forms of an exported graph's inputs, and what its file says of itself; imports no torch.

"padded" has the inputs of the public package's own export, so that its readers run the graph: texts in rows of one
length, and the spans of each. "packed" has the inputs of `inputs.tokens.PackedArrays`. Both give the logits
[texts, words, max_width, types], -inf for a span or a type that a text does not have.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

from glimodern.data.json_rows import parse_json

MODEL_FILE = "model.onnx"
OUTPUT = "logits"
METADATA = "glimodern"  # key of the description in the file's metadata
FORMAT = 1
OPSETS = range(18, 21)  # 18 has maxima by index, for pooling; 20 is the newest that PyTorch's tracer writes
DEFAULT_OPSET = 19  # the public package's

LayoutName = Literal["padded", "packed"]
Dtype = Literal["fp32", "int8"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)


class Layout(NamedTuple):
    """Names of a graph's inputs with the names of their axes. pooled: those that pooling of sub-tokens adds."""

    inputs: dict[str, tuple[str, ...]]
    pooled: dict[str, tuple[str, ...]]

    def axes(self, pooling: str) -> dict[str, tuple[str, ...]]:
        """Return the inputs of a model with this `subtoken_pooling`."""
        return {**self.inputs, **self.pooled} if pooling in ("mean", "max") else self.inputs


PADDED = Layout(
    {
        "input_ids": ("batch_size", "sequence_length"),
        "attention_mask": ("batch_size", "sequence_length"),
        "words_mask": ("batch_size", "sequence_length"),
        "text_lengths": ("batch_size", "value"),
        "span_idx": ("batch_size", "num_spans", "idx"),
        "span_mask": ("batch_size", "num_spans"),
    },
    {},
)
PACKED = Layout(
    {
        "input_ids": ("tokens",),
        "cu_seqlens": ("texts_and_1",),
        "word_index": ("words",),
        "cu_words": ("texts_and_1",),
        "type_index": ("types",),
        "cu_types": ("texts_and_1",),
    },
    {"subtoken_index": ("subtokens",), "subtoken_word": ("subtokens",)},
)
OUTPUT_AXES = ("batch_size", "sequence_length", "num_spans", "num_classes")


def layout_of(name: str) -> Layout:
    """Return the layout of a name. Raises ValueError for another name."""
    if name not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, got {name!r}")
    return PADDED if name == "padded" else PACKED


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself, beside the checkpoint's config.

    max_tokens: most tokens of a text, with prompt and special tokens; None: no limit. max_width: most words of a span.
    fingerprint: of the checkpoint's weights. version: of this package.
    """

    layout: LayoutName
    dtype: Dtype
    max_tokens: int | None
    max_width: int
    fingerprint: str
    version: str
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, file: str) -> Description:
        """Read the text of `to_json`. file: its name in errors. Raises ValueError."""
        fields: Any = parse_json(text)
        known = set(cls.__dataclass_fields__)
        if not isinstance(fields, dict) or set(fields) != known or fields["format"] != FORMAT:
            given = fields.get("format") if isinstance(fields, dict) else None
            raise ValueError(f"{file}: metadata: expected format {FORMAT}, got {given!r}; export the model again")
        layout_of(fields["layout"])
        return cls(**fields)
