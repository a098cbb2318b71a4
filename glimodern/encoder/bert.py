"""BERT and its kin (RoBERTa, ELECTRA, ...) on packed texts: our own pass through transformers' modules.

    x = embeddings(ids)                                     transformers' own module, positions counted in each text
    x = norm(x + drop(Wo attention(Wq x, Wk x, Wv x)))
    x = norm(x + drop(W2 act(W1 x)))

Only the tokens asked for go through what follows the last layer's attention. Parameters and modules stay those of
transformers, so that whatever replaces one of them (an adapter, a quantised layer) is used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .attention import Packing, packed_attention

# model_type of architectures built of BERT's layer, each proved equal to its own padded run by tests/test_encoder.py.
BERT_MODELS = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")


def bert_forward(model: Any, input_ids: Tensor, position_ids: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
    """input_ids and position_ids int64 [N], rows int64 [r] or None (all) -> hidden [r or N, hidden_size]."""
    x: Tensor = model.embeddings(input_ids=input_ids[None], position_ids=position_ids[None])[0]
    if hasattr(model, "embeddings_project"):
        x = model.embeddings_project(x)
    layers = model.encoder.layer
    for number, layer in enumerate(layers):
        mixed = _attention(layer.attention.self, x, packing)
        if rows is not None and number + 1 == len(layers):
            mixed, x = mixed.index_select(0, rows), x.index_select(0, rows)
        x = layer.attention.output(mixed, x)
        x = layer.output(layer.intermediate(x), x)
    return x if rows is None or len(layers) else x.index_select(0, rows)


def _attention(module: Any, x: Tensor, packing: Packing) -> Tensor:
    heads: int = module.num_attention_heads
    q, k, v = (linear(x).view(len(x), heads, -1) for linear in (module.query, module.key, module.value))
    dropout_p = module.dropout.p if module.training else 0.0
    return packed_attention(q, k, v, packing, dropout_p=dropout_p).reshape(len(x), -1)
