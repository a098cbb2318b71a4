"""Models with adapters: a base's weights shared, its encoder and head updated, or the head replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from glimodern.checkpoint.adapter import ADAPTER_WEIGHTS, HEAD_WEIGHTS, Adapter, Update
from glimodern.checkpoint.folder import check_fit, to_public
from glimodern.encoder import Encoder
from glimodern.layers.packed_linear import PackedLinear, measured_inputs
from glimodern.layers.parameters import take_tensors
from glimodern.network.packed_head import PackedColumns
from glimodern.network.shared_copy import replace_module, shared_copy
from glimodern.runtime.ambient import building, lasting

from .loading import freeze, pack_head
from .precision import Questions, answers

if TYPE_CHECKING:
    from .glimodern import GLiModern

HEAD_PARTS = ("projection", "rnn", "head")
M = TypeVar("M", bound="GLiModern")


def _with_fresh_head(model: M, encoder: Encoder) -> M:
    """Build a model with another encoder and a head without values, which shares the other parts of `model`."""
    label_encoder = model.label_encoder
    if label_encoder is not None:
        label_encoder = shared_copy(label_encoder, label_encoder.held_tokenizer, label_encoder.tokens)
    with building(meta=True):
        copied = type(model)(model.config, encoder, model.held_tokenizer, label_encoder)
    copied.packer = model.packer
    copied.packed_dtype, copied.inference_only = model.packed_dtype, model.inference_only
    copied.cuda_graphs, copied.source = model.cuda_graphs, model.source
    return copied


def adapted(model: M, adapter: Adapter) -> M:
    """Build a model of a base and an adapter, in eval mode. The base does not change.

    Packed layers keep the base's weights and add the low-rank product at every call. Plain layers get a weight of
    their own, merged in fp32. Raises ValueError for an adapter that does not fit.
    """
    with lasting():
        encoder = shared_copy(model.encoder)
        dtype = "fp32" if next(encoder.parameters()).dtype == torch.float32 else "bf16"
        layers = dict(encoder.model.named_modules())
        _update(encoder, layers, adapter.updates, adapter.folder / ADAPTER_WEIGHTS, dtype)
        if not adapter.head:
            copied = with_encoder(model, encoder)
            layers = {name: m for name, m in copied.named_modules() if name.partition(".")[0] in HEAD_PARTS}
            _update(copied, layers, adapter.head_updates, adapter.folder / HEAD_WEIGHTS, dtype)
            return copied.eval()
        copied = _with_fresh_head(model, encoder)
        _load_head(copied, adapter)
    return copied.eval()


def with_encoder(model: M, encoder: Encoder) -> M:
    """Build a model with another encoder, which shares the weights of all other parts of `model`, in eval mode."""
    copied = _with_fresh_head(model, encoder)
    for part in HEAD_PARTS:
        own = getattr(model, part)
        setattr(copied, part, None if own is None else shared_copy(own))
    return copied.eval()


def _update(
    root: nn.Module, layers: Mapping[str, nn.Module], updates: Mapping[str, Update], file: Path, dtype: str
) -> None:
    """Update linear layers under a root. layers: those that may be, by name. dtype: see `PackedLinear.update`."""
    for name, update in updates.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear | PackedLinear | PackedColumns):
            raise ValueError(
                f"{file}: tensor {name}: expected a linear layer of the base, got "
                f"{'no module' if layer is None else type(layer).__name__} of that name; load it on its own base"
            )
        shape = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else layer.weight_shape
        if (len(update.b), update.a.shape[1]) != shape:
            raise ValueError(
                f"{file}: tensor {name}: expected an update of {shape}, got {(len(update.b), update.a.shape[1])}; load "
                "it on its own base"
            )
        if isinstance(layer, nn.Linear):
            replace_module(root, layer, merged_linear(layer, update))
        else:
            layer.update(update.a, update.b, dtype)


def merged_linear(layer: nn.Linear, update: Update) -> nn.Linear:
    """Build a layer with the weight W + b a, computed in fp32, in W's dtype. It shares the bias."""
    weight = layer.weight
    merged = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    product = update.b.to(weight.device) @ update.a.to(weight.device)
    merged.weight = nn.Parameter((weight.detach().float() + product).to(weight.dtype), weight.requires_grad)
    if layer.bias is not None:
        merged.bias = layer.bias
    return merged.train(layer.training)


def _load_head(model: GLiModern, adapter: Adapter) -> None:
    """Give a model, whose head has no values, the adapter's, packed as the model is."""
    parts = nn.ModuleDict({part: getattr(model, part) for part in HEAD_PARTS if getattr(model, part) is not None})
    expected = parts.state_dict()
    check_fit(to_public(expected), to_public(adapter.head), adapter.folder / HEAD_WEIGHTS, model.config.vocab_size)
    take_tensors(parts, dict(adapter.head))
    if model.inference_only:
        freeze(model)
    parts.to(device=model.device)
    plain = next(model.encoder.parameters()).dtype
    if model.packed_dtype == "int8":
        parts.to(dtype=plain)
        model.eval()
        with measured_inputs(model):
            answers(model, Questions.read(model, None, None))
    if model.packed_dtype is not None:
        pack_head(model, model.packed_dtype, plain)
    for part in parts:
        getattr(model, part).to(dtype=plain)
