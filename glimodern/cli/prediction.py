"""Options of prediction that `predict` and `jobs` share, and the JSON lines that both write."""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from glimodern.display import short
from glimodern.inputs.words import SplitterName
from glimodern.settings import AT_LEAST_ONE, check_value, field_hints

from . import check_unicode
from .reading import ReadingSettings, ThresholdOption

TEXT_FIELD = "text"
_json_string = json.encoder.encode_basestring
LINE_ENDS = "\x85\u2028\u2029"  # line ends for some readers, so they are written as JSON escapes
_ESCAPES = [(character, f"\\u{ord(character):04x}") for character in LINE_ENDS]


@dataclass(frozen=True)
class PredictionOptions:
    """How entities are found and where they are written, on a command line."""

    result_field: str = "entities"
    """Name of the output field with the entities. A text that --long-texts cut has cut also has the field "words_cut",
    or "NAME_words_cut" for another name."""
    threshold_option: ThresholdOption = field(default_factory=ThresholdOption)
    flat: bool = True
    """Find no overlapping entities; otherwise nested entities are allowed."""
    multi_label: bool = False
    """Allow several labels for one span."""
    top_k: Annotated[int | None, AT_LEAST_ONE] = None
    """Maximum entities of a text, those with the highest scores. Default: all."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Dtype of the model; auto: bf16 on hardware that multiplies it natively, else fp32."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:N, auto, or another of PyTorch's names."""
    adapter: str | None = None
    """Folder of an adapter of the checkpoint, which `python -m glimodern.train --lora-rank` wrote."""
    splitter: SplitterName | None = None
    """How texts are split into words, unicode for scripts without spaces; by default as the checkpoint says."""

    def __post_init__(self) -> None:
        check_value("top_k", field_hints(PredictionOptions)["top_k"], self.top_k)

    @property
    def cut_field(self) -> str:
        """Name of the output field with the number of words that were not read."""
        return "words_cut" if self.result_field == "entities" else f"{self.result_field}_words_cut"

    def check_fields(self, text_field: str = TEXT_FIELD) -> None:
        """Raise ValueError for a result field that would replace the text, or another output field."""
        name = self.result_field
        if name in ("", text_field, "words_cut"):
            raise ValueError(
                f"--result-field: expected a name other than {text_field} and words_cut, got {name!r}; choose another"
            )
        check_unicode(name, "--result-field")

    def loading(self) -> dict[str, Any]:
        """Return the keyword arguments of `GLiModern.from_pretrained`."""
        return {"dtype": self.dtype, "device": self.device, "splitter": self.splitter, "adapter": self.adapter}

    def search(self) -> dict[str, Any]:
        """Return the keyword arguments of `GLiModern.predict` beside texts, labels and threshold."""
        return {
            "flat": self.flat, "multi_label": self.multi_label, "top_k": self.top_k, **self.reading.given(),
        }  # fmt: skip


def row_fault(row: Any, text_field: str, output_fields: Sequence[str]) -> str | None:
    """Return why a JSON value is no row with a text, None if it is one. output_fields: names not allowed in it."""
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        return f'expected an object with a string "{text_field}", got {short(row)}'
    for name in output_fields:
        if name in row:
            return f'expected a row without the output field "{name}", got one; choose another by --result-field'
    return None


def json_head(row: Any) -> tuple[str | None, str]:
    """Return (fault or None, the JSON of a row without the closing brace)."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return _constant_fault(row), ""
    return unicode_fault(text, row), text[:-1]


def constant_fault(text: str, row: Any) -> str | None:
    """Return why a text that was parsed as JSON is none: NaN or Infinity in it, outside strings. row: its value."""
    if "NaN" not in text and "Infinity" not in text:
        return None
    constants: list[str] = []
    json.loads(text, parse_constant=constants.append)
    return _constant_fault(row) if constants else None


def _constant_fault(row: Any) -> str:
    return f"expected JSON, got NaN or Infinity, which JSON does not have, in {short(row)}; write null"


def unicode_fault(text: str, row: Any) -> str | None:
    """Return why a text cannot be written as UTF-8, None if it can. row: its row, for the message."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"expected Unicode text, got half of a surrogate pair in {short(row)}"
    return None


def json_line(head: str, result: str, entities: str, words_cut: int, cut: str | None) -> str:
    """Return a row's line of JSON: the head of `json_head`, not empty, and its entities in the field `result`.

    entities: as JSON. cut: the field for words_cut, unless that is 0; None: no such field.
    """
    added = f", {_json_string(cut)}: {words_cut}" if cut is not None and words_cut else ""
    return escaped(f"{head}, {_json_string(result)}: {entities}{added}}}\n")


def escaped(text: str) -> str:
    """Return JSON with the characters of LINE_ENDS, which occur in strings only, as escapes."""
    if not text.isascii():
        for character, escape in _ESCAPES:
            text = text.replace(character, escape)  # much faster than `translate` where there are none
    return text
