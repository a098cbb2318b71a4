"""Acceleration of the public gliner package's models, in place.

    with accelerate_gliner(model):              # a gliner.GLiNER; or handle = accelerate_gliner(model)
        model.inference(texts, labels)          # the same entities, sooner      ... handle.restore()

gliner keeps its word splitter, tokenizer, collation, decoder and results. These methods are replaced on the instance,
until restored:

    Transformer.forward     the encoder: padded ids -> packed ids -> this package's encoder -> padded hidden states
    (core model).forward    the span head: word and label vectors -> the fold -> the logits [texts, words, K, labels]
                            that gliner decodes. With this package's encoder nothing is padded in between, and the end
                            of the last layer is computed for the tokens of words and labels only.
    _process_batches        reads several batches ahead, so that small ones are computed together

The replacements run shadows: modules of this package on the memory of the model's parameters. The parameters and the
state dict are not modified. On CPUs in fp32, linear layers are packed copies (`ops.linear_packed`). Shadows are rebuilt
when parameters have been written, replaced or moved. gliner's own methods compute what a shadow cannot (a loss,
gradients, dropout, span vectors), with one warning.
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


def _methods(model: Any) -> list[tuple[Any, str]]:
    """(object, name) of every method that may be replaced."""
    layer = getattr(model.model, "token_rep_layer", None)
    encoders = [getattr(layer, name, None) for name in ("bert_layer", "labels_encoder")]
    forwards = [(module, "forward") for module in (model.model, *encoders) if module is not None]
    return [*forwards, (model, "_process_batches")]


def _is_replaced(owner: Any, name: str) -> bool:
    return isinstance(getattr(vars(owner).get(name), "__self__", None), _SWAPS)


class Acceleration:
    """The acceleration of a model by `accelerate_gliner`. It ends with `restore()` or with a `with` block.

    swapped: the replaced parts, each with a description. left: the parts that stay gliner's, each with the reason.
    """

    def __init__(self, model: Any, swapped: dict[str, str], left: dict[str, str]) -> None:
        self.model, self.swapped, self.left = model, swapped, left

    def restore(self) -> None:
        """Restore the model's own methods, which are all that was changed. A second call does nothing."""
        for owner, name in _methods(self.model):
            if _is_replaced(owner, name):
                delattr(owner, name)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def __str__(self) -> str:
        lines = [f"{name}: {how}" for name, how in self.swapped.items()]
        return "; ".join([*lines, *(f"{name} is left to gliner: {why}" for name, why in self.left.items())])


def accelerate_gliner(model: Any, *, pack: bool = True) -> Acceleration:
    """Make a live `gliner.GLiNER` compute with this package's encoder and span head, in place, until restored.

    All methods of the model (predict_entities, inference, run_batch, evaluate, ...) give the same entities. Scores
    differ by rounding. The span head of span models (markerV0, uni-encoder or bi-encoder) is replaced, and so are
    encoders that run packed here (ModernBERT, BERT and related models, ...). Other parts stay gliner's, with a warning.

    pack: on CPUs in fp32, hold packed copies of the linear layers' weights, which need as much memory again. False
    shares all memory.

    Weights may change during the acceleration. Training, gradients, a loss and span vectors are left to gliner's own
    modules, with one warning. Forward hooks on modules inside the encoder and the head are not called.

    Raises TypeError for an object that is not a gliner model. Raises ValueError for a model with nothing to replace
    (ONNX and OpenVINO runtimes, streaming decoders, compiled models) and for a model that is already accelerated.
    """
    if not any(c.__module__ == "gliner.model" and c.__name__ == "BaseGLiNER" for c in type(model).__mro__):
        raise TypeError(f"model: expected a gliner.GLiNER, got {type(model).__module__}.{type(model).__name__}")
    core = model.model
    if getattr(model, "is_runtime_model", False) or not isinstance(core, nn.Module):
        raise ValueError(
            "model: expected one that runs in PyTorch, got one for ONNX Runtime or OpenVINO; load its PyTorch weights "
            "to accelerate it"
        )
    if "_orig_mod" in core._modules:
        raise ValueError(
            "model: expected one that is not compiled, got a compiled one; accelerate it instead of model.compile()"
        )
    replaced = [f"{type(owner).__name__}.{name}" for owner, name in _methods(model) if name in vars(owner)]
    if replaced:
        raise ValueError(
            f"model: expected its own methods, got {', '.join(replaced)} replaced already; restore() the earlier "
            "acceleration first"
        )
    swapped: dict[str, str] = {}
    left: dict[str, str] = {}
    encoder = _swap_encoders(core, pack, swapped, left)
    spans = _swap_head(core, encoder, pack, swapped, left)
    if spans is not None and encoder is not None and type(core).__name__ == "UniEncoderSpanModel":
        model._process_batches = LookAhead(model, spans).process
    if not swapped:
        raise ValueError(
            "model: expected an encoder or a span head to replace, got nothing to replace: "
            + "; ".join(f"{name}: {why}" for name, why in left.items())
        )
    done = Acceleration(model, swapped, left)
    if left:
        warnings.warn(f"accelerate_gliner: {done}", stacklevel=2)
    return done


def _swap_encoders(core: Any, pack: bool, swapped: dict[str, str], left: dict[str, str]) -> Shadow[Encoder] | None:
    """Replace the forward passes of gliner's Transformers. Returns the text encoder's shadow, or None.

    swapped, left: see `Acceleration`; an entry is added to one of them for each encoder.
    """
    text_shadow: Shadow[Encoder] | None = None
    rep = getattr(core, "token_rep_layer", None)
    for name, part in (("bert_layer", "encoder"), ("labels_encoder", "label encoder")):
        layer = getattr(rep, name, None)
        if layer is None:
            if name == "bert_layer":
                left[part] = f"{type(core).__name__} has no token_rep_layer.bert_layer"
            continue
        swap = EncoderForward(layer, pack)
        encoder = swap.shadow.current()
        if isinstance(encoder, str):
            left[part] = encoder
            continue
        layer.forward = swap.forward
        swapped[part] = f"{layer.model.config.model_type}, packed"
        text_shadow = swap.shadow if name == "bert_layer" else text_shadow
    return text_shadow


def _swap_head(
    core: Any, encoder: Shadow[Encoder] | None, pack: bool, swapped: dict[str, str], left: dict[str, str]
) -> SpanForward | None:
    """Replace the forward pass of gliner's core model, unless its span head is of another kind."""
    if type(core).__name__ not in ("UniEncoderSpanModel", "BiEncoderSpanModel"):
        left["span head"] = f"{type(core).__name__} has another scoring function"
        return None
    spans = SpanForward(core, encoder, pack)
    head = spans.shadow.current()
    if isinstance(head, str):
        left["span head"] = head
        return None
    core.forward = spans.forward
    swapped["span head"] = "markerV0, folded"
    return spans
