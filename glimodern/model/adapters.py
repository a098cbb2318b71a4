"""Models with adapters: a base's weights shared, its encoder updated by low-rank products, its head replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from glimodern.checkpoint.adapter import ADAPTER_WEIGHTS, HEAD_WEIGHTS, Adapter, Update
from glimodern.checkpoint.folder import check_fit, to_public
from glimodern.encoder import Encoder
from glimodern.layers.packed_linear import PackedLinear, measured_inputs
from glimodern.layers.parameters import take_tensors
from glimodern.network.shared_copy import replace_module, shared_copy
from glimodern.runtime.ambient import building, lasting

from .loading import freeze, pack_head
from .precision import Questions, answers

if TYPE_CHECKING:
    from .glimodern import GLiModern

_HEAD_PARTS = ("projection", "rnn", "head")
M = TypeVar("M", bound="GLiModern")


def _with_fresh_head(model: M, encoder: Encoder) -> M:
    """Build a model with another encoder and a head without values, which shares the other parts of `model`."""
    label_encoder = model.label_encoder
    if label_encoder is not None:
        label_encoder = shared_copy(label_encoder, label_encoder.held_tokenizer, label_encoder._tokens)
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
        _update(encoder, adapter)
        if not adapter.head:
            return with_encoder(model, encoder)
        copied = _with_fresh_head(model, encoder)
        _load_head(copied, adapter)
    return copied.eval()


def with_encoder(model: M, encoder: Encoder) -> M:
    """Build a model with another encoder, which shares the weights of all other parts of `model`, in eval mode."""
    copied = _with_fresh_head(model, encoder)
    for part in _HEAD_PARTS:
        own = getattr(model, part)
        setattr(copied, part, None if own is None else shared_copy(own))
    return copied.eval()


def _update(encoder: Encoder, adapter: Adapter) -> None:
    layers = dict(encoder.model.named_modules())
    dtype = "fp32" if next(encoder.parameters()).dtype == torch.float32 else "bf16"
    for name, update in adapter.updates.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear | PackedLinear):
            raise ValueError(
                f"{adapter.folder / ADAPTER_WEIGHTS}: tensor {name}: expected a linear layer of the base's encoder, "
                f"got {'no module' if layer is None else type(layer).__name__} of that name; load it on its own base"
            )
        rows = layer.out_features * (2 if isinstance(layer, PackedLinear) and layer.packed.gated else 1)
        shape = (rows, layer.in_features)
        if (len(update.b), update.a.shape[1]) != shape:
            raise ValueError(
                f"{adapter.folder / ADAPTER_WEIGHTS}: tensor {name}: expected an update of {shape}, got "
                f"{(len(update.b), update.a.shape[1])}; load it on its own base"
            )
        if isinstance(layer, PackedLinear):
            layer.update(update.a, update.b, dtype)
        else:
            replace_module(encoder, layer, merged_linear(layer, update))


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
    parts = nn.ModuleDict({part: getattr(model, part) for part in _HEAD_PARTS if getattr(model, part) is not None})
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
