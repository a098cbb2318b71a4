"""Modules of this package on the parameters of a live gliner model, rebuilt when the parameters change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from glimodern.checkpoint.folder import PREFIXES
from glimodern.encoder import Encoder
from glimodern.encoder.shadow import shadow_encoder, share_parameters
from glimodern.layers.packed_linear import PackedLinear, can_pack
from glimodern.layers.snapshot import Snapshot
from glimodern.network.head import SpanHead
from glimodern.runtime.ambient import lasting
from glimodern.runtime.forks import keep_to_own_threads, watch_forks

T = TypeVar("T")


class Shadow(Generic[T]):
    """A module built by `build(module, pack)` on a live module's parameters, and rebuilt when they change.

    parts: the live modules whose parameters are used. pack: whether the copy may hold packed weights. Copies and
    pickles rebuild the shadow on first use.
    """

    def __init__(self, build: Callable[[Any, bool], T], module: nn.Module, parts: list[nn.Module], pack: bool) -> None:
        self.build, self.module, self.parts, self.pack = build, module, parts, pack
        self.built: tuple[Snapshot | None, T | str] = (None, "")
        watch_forks()

    def current(self) -> T | str:
        """Return the shadow, or the reason why there is none."""
        keep_to_own_threads()
        snapshot = self.built[0]
        if snapshot is None or not snapshot.unchanged():
            plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for m in self.parts for p in m.parameters())
            try:
                with lasting():
                    made: T | str = self.build(self.module, self.pack and plain and can_pack())
            except ValueError as error:
                made = str(error)
            self.built = (Snapshot(*self.parts, values=True), made)
        return self.built[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "built": (None, "")}


def build_encoder(layer: Any, pack: bool) -> Encoder:
    """Build an encoder on the parameters of gliner's `Transformer`. Raises ValueError with the reason if it cannot."""
    if layer.config.fuse_layers:
        raise ValueError("fuse_layers reads all layers")
    encoder = shadow_encoder(layer.model)
    if pack:
        encoder.pack("fp32")
    return encoder


class Head(NamedTuple):
    """A span head, and the projection of the encoder's width to the head's, if the model has one."""

    head: SpanHead
    projection: Callable[[Tensor], Tensor] | None


def build_head(core: Any, pack: bool) -> Head:
    """Build a span head on the parameters of gliner's core model. Raises ValueError with the reason if it cannot."""
    context = type(core.span_rep_layer.context_encoder).__name__
    if core.config.span_mode != "markerV0" or context != "IdentityContextEncoder":
        raise ValueError(
            f"span_mode: expected 'markerV0' with IdentityContextEncoder, got {core.config.span_mode!r} with {context}"
        )
    with torch.device("meta"):
        head = SpanHead(core.config.hidden_size, 0.0, "markerV0", core.config.max_width)
    prefixes = {public: ours.removeprefix("head.") for ours, public in PREFIXES if ours.startswith("head.")}
    state = {
        ours + name.removeprefix(public): tensor
        for name, tensor in core.state_dict().items()
        for public, ours in prefixes.items()
        if name.startswith(public)
    }
    share_parameters(head, state, "markerV0")
    head.eval().requires_grad_(False)
    projection = getattr(core.token_rep_layer, "projection", None)
    if pack:
        head.pack("fp32", "fp32")
        projection = None if projection is None else PackedLinear(projection, "fp32")
    return Head(head, projection)


def why_plain(module: nn.Module) -> str:
    """Reason why gliner's own module must run; empty if it need not."""
    if module.training:
        return "the model is in training mode (call .eval())"
    if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
        return "gradients are asked for (call it under torch.no_grad() or torch.inference_mode())"
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch.onnx.is_in_onnx_export():
        return "it is being traced, compiled or exported"
    devices = {p.device.type for p in module.parameters()}
    return "autocast is on" if any(map(torch.is_autocast_enabled, devices)) else ""
