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
    notes="""What the relation models (gliner-relex, span heads) would take here, by the code of gliner 0.2.29:

- A second part of the prompt: after the entity types and `<<SEP>>`, `<<REL>> label` for each relation and another
  `<<SEP>>`. `PackedBatch` would hold the tokens of relation types and their offsets by text. Labels asked in groups
  would be related inside a group only. A relation's vector is the hidden state at its `<<REL>>`, with no MLP after it.
- The vectors of the spans whose best type passes the threshold, in the order of span and width, overlapping ones too.
  `ops.span_entities` gives these spans and `ops.span_vectors` their vectors.
- An adjacency score of every ordered pair of these spans: one of six layers (`relations_layer`: dot product, MLP,
  attention, bilinear, GCN, GAT), each a small dense computation a text, or none. Pairs above `adjacency_threshold` go
  on. Attention, GCN and GAT mix a text's spans, so the windows of a long text would be graphs of their own.
- A score of each pair and relation: `Linear(2d, 4d) - ReLU - Dropout - Linear(4d, d)` on [head ; tail] and a dot
  product with the relation. This is the span head's form, whose fold applies with spans in place of words. Or one of
  seventeen `triples_layer` interactions (UM to ConvKB), which have no common form, and of which gliner builds sixteen,
  for d = 768 only.
- Decoding after the entities: relations of spans that the greedy search dropped go, the others get the indices of the
  entities kept. Results would be `(head, relation, tail, score)` beside `Entities`, in `predict`, in the server's
  answers and in the client.
- Training: two more losses (adjacency and relations, each with a coefficient), negatives among pairs, gold relations
  in the readers and converters of data.

All but the last are needed to load and run a model. They are small for `relations_layer` "none" and for the dot
product, with the MLP on pairs: that subset is where to begin. Token-level relation models need the same after the
token head.

Bad files (cut off, of another shape or vocabulary, a pickle that runs code, missing ones) are errors of
one line too: `tests/test_bad_checkpoints.py` has the list.""",
)
