"""Rows of docs/COMPATIBILITY.md: kinds of model that gliner 0.2.29 knows and this package refuses, with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from compatibility import Row, Section


def _row(name: str, field: str, value: Any) -> Row:
    return Row((name, f"`{field}`", f"`{json.dumps(value)}`"), {field: value})


ROWS = (
    _row("another span head", "span_mode", "markerV1"),
    _row("decoder of labels", "labels_decoder", "gpt2"),
    _row("relations", "relations_layer", "biaffine"),
    _row("streaming", "model_type", "gliner_streaming_span"),
    _row("an encoder over words", "span_encoder_config", {"model_type": "rnn"}),
    _row("fusion of labels and words", "post_fusion_schema", "l2l-l2t-t2t"),
    _row("fusion of layers", "fuse_layers", True),
    _row("compressed labels", "precomputed_prompts_mode", True),
)


def measure(row: Row, folder: Path) -> tuple[str, ...]:
    """The reason in the error that names file, field, what was expected and what came."""
    from glimodern.checkpoint.config import read_config

    ((field, value),) = row.options.items()
    encoder = {"model_type": "bert", "hidden_size": 8, "vocab_size": 9}
    fields = {"encoder_config": encoder, "hidden_size": 8, "vocab_size": 9, "class_token_index": 7}
    file = folder / "gliner_config.json"
    file.write_text(json.dumps(fields))
    assert read_config(folder).hidden_size == 8
    file.write_text(json.dumps({**fields, field: value}))
    with pytest.raises(ValueError) as caught:
        read_config(folder)
    said, _, rest = str(caught.value).partition(": not supported, because ")
    assert said.startswith(f"{file}: {field}: expected ") and said.endswith(f", got {value!r}")
    reason, _, remedy = rest.partition("; ")
    assert remedy == "run it with the gliner package"
    return (reason,)


SECTION = Section(
    title="Kinds of model that are refused",
    text="The error names the file, the field, what was expected and what came, and gives the reason in the table.",
    columns=("kind", "field", "value"),
    measured=("not supported, because",),
    rows=ROWS,
    measure=measure,
    notes="""Bad files (cut off, of another shape or vocabulary, a pickle that runs code, missing ones) are errors of
one line too: `tests/test_bad_checkpoints.py` has the list.""",
)
