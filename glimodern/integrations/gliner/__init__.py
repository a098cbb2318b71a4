"""The public gliner package's models, accelerated in place.

    with accelerate_gliner(model):              # a gliner.GLiNER; or handle = accelerate_gliner(model)
        model.inference(texts, labels)          # the same entities, sooner      ... handle.restore()

gliner keeps its word splitter, tokenizer, collation, decoder and results. Replaced, on the instance and until restored:

    Transformer.forward     the encoder: padded ids -> packed -> our encoder -> padded hidden states
    (core model).forward    the span head: word and label vectors -> the fold -> the logits [texts, words, K, labels]
                            that gliner decodes; with an encoder of ours nothing is padded in between, and the last
                            layer computes only the tokens that are words and labels
    _process_batches        reads some batches ahead, so that small ones are computed together

Ours are shadows: modules of our own on the memory of the model's parameters, which stay where they are, so the
state_dict is untouched. Linear layers in fp32 on CPUs are packed copies (`ops.linear_packed`). Shadows are made anew
when parameters have been written, replaced or moved. What a shadow cannot do (a loss, gradients, dropout, span vectors)
gliner's own methods do, and it is said once.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from glimodern.encoder import Encoder

from .encoder import EncoderForward
from .shadows import Shadow
from .spans import LookAhead, SpanForward

__all__ = ["Acceleration", "accelerate_gliner"]

_SWAPS = (EncoderForward, SpanForward, LookAhead)


def _places(model: Any) -> list[tuple[Any, str]]:
    """(object, name) of every method that may be replaced."""
    layer = getattr(model.model, "token_rep_layer", None)
    encoders = [getattr(layer, name, None) for name in ("bert_layer", "labels_encoder")]
    forwards = [(module, "forward") for module in (model.model, *encoders) if module is not None]
    return [*forwards, (model, "_process_batches")]


def _swapped_in(place: Any, name: str) -> bool:
    return isinstance(getattr(vars(place).get(name), "__self__", None), _SWAPS)


class Acceleration:
    """What `accelerate_gliner` did to a model; ends by `restore()`, or with a `with` block.

    swapped: what runs here now, with how; left: what stays gliner's, with why.
    """

    def __init__(self, model: Any, swapped: dict[str, str], left: dict[str, str]) -> None:
        self.model, self.swapped, self.left = model, swapped, left

    def restore(self) -> None:
        """Give the model its own methods back; nothing else of it has been changed. A second call does nothing."""
        for place, name in _places(self.model):
            if _swapped_in(place, name):
                delattr(place, name)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def __str__(self) -> str:
        lines = [f"{name}: {how}" for name, how in self.swapped.items()]
        return "; ".join([*lines, *(f"{name} is left to gliner: {why}" for name, why in self.left.items())])


def accelerate_gliner(model: Any, *, pack: bool = True) -> Acceleration:
    """Make a live `gliner.GLiNER` compute with this package's encoder and span head, in place and until restored.

    All its methods (predict_entities, inference, run_batch, evaluate, ...) give the same entities; scores differ by
    rounding. Replaced are the span head of span models (markerV0, one encoder or two) and encoders that run packed here
    (ModernBERT, BERT and its kin, ...); whatever cannot be is left as it is, with a warning. pack: on CPUs in fp32,
    hold packed copies of the linear layers' weights, which costs as much memory again; False shares all memory.

    Weights may change while it lasts; training, gradients, a loss and span vectors are left to gliner's own modules,
    and that is said once. Forward hooks on modules inside the encoder and the head are not called.

    Raises TypeError for what is no model of gliner's, ValueError for one with nothing to replace (ONNX and OpenVINO
    runtimes, streaming decoders, compiled models) and for one that is accelerated already.
    """
    kind = next((c for c in type(model).__mro__ if c.__module__ == "gliner.model" and c.__name__ == "BaseGLiNER"), None)
    if kind is None:
        raise TypeError(f"model: expected a gliner.GLiNER, got {type(model).__module__}.{type(model).__name__}")
    core = model.model
    if getattr(model, "is_runtime_model", False) or not isinstance(core, nn.Module):
        raise ValueError("model: it runs in ONNX Runtime or OpenVINO; load its PyTorch weights to accelerate it")
    if "_orig_mod" in core._modules:
        raise ValueError("model: it is compiled; accelerate it instead of model.compile()")
    taken = [f"{type(place).__name__}.{name}" for place, name in _places(model) if name in vars(place)]
    if taken:
        raise ValueError(f"model: {', '.join(taken)} is replaced already; restore() the earlier acceleration first")
    swapped: dict[str, str] = {}
    left: dict[str, str] = {}
    encoder = _swap_encoders(core, pack, swapped, left)
    spans = _swap_head(core, encoder, pack, swapped, left)
    if spans is not None and encoder is not None and type(core).__name__ == "UniEncoderSpanModel":
        model._process_batches = LookAhead(model, spans).process
    if not swapped:
        raise ValueError(f"model: nothing to replace: {'; '.join(f'{name}: {why}' for name, why in left.items())}")
    done = Acceleration(model, swapped, left)
    if left:
        warnings.warn(f"accelerate_gliner: {done}", stacklevel=2)
    return done


def _swap_encoders(core: Any, pack: bool, swapped: dict[str, str], left: dict[str, str]) -> Shadow[Encoder] | None:
    """Replace the forward passes of gliner's Transformers; the text encoder's shadow, if it has one."""
    text: Shadow[Encoder] | None = None
    rep = getattr(core, "token_rep_layer", None)
    for name, what in (("bert_layer", "encoder"), ("labels_encoder", "label encoder")):
        layer = getattr(rep, name, None)
        if layer is None:
            if name == "bert_layer":
                left[what] = f"{type(core).__name__} has none of the usual kind"
            continue
        swap = EncoderForward(layer, pack)
        made = swap.shadow.current()
        if isinstance(made, str):
            left[what] = made
            continue
        layer.forward = swap.forward
        swapped[what] = f"{layer.model.config.model_type}, packed"
        text = swap.shadow if name == "bert_layer" else text
    return text


def _swap_head(
    core: Any, encoder: Shadow[Encoder] | None, pack: bool, swapped: dict[str, str], left: dict[str, str]
) -> SpanForward | None:
    if type(core).__name__ not in ("UniEncoderSpanModel", "BiEncoderSpanModel"):
        left["span head"] = f"{type(core).__name__} scores otherwise"
        return None
    spans = SpanForward(core, encoder, pack)
    made = spans.shadow.current()
    if isinstance(made, str):
        left["span head"] = made
        return None
    core.forward = spans.forward
    swapped["span head"] = "markerV0, folded"
    return spans
