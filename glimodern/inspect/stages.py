"""The tensors of a forward pass with their shapes and dtypes, and the operators that it runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.encoder.modernbert import ModernBertEncoder
from glimodern.layers.packed_linear import PackedLinear
from glimodern.ops import PackedWeight, vectors_are_cheaper

if TYPE_CHECKING:
    from glimodern.inputs.batch import PackedBatch
    from glimodern.model.glimodern import GLiModern
    from glimodern.network.head import SpanFactors
    from glimodern.network.span_network import SpanNetwork

_MAX_SHOWN = 8  # a tensor's values are shown if it has at most this many elements


@dataclass(frozen=True)
class Stage:
    """A tensor (or list) of a forward pass: its stage, name, shape and dtype, and a note."""

    stage: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    note: str = ""


class Watch:
    """Records the stages of one forward pass. Hooks record the outputs of encoder and projection.

    by_vectors: whether the batch is scored by span vectors, rather than by the fold.
    """

    def __init__(self, model: SpanNetwork) -> None:
        self.model = model
        self.stages: list[Stage] = []
        self.by_vectors = False
        self._hooks: list[Any] = []

    def __enter__(self) -> Watch:
        encoder = self.model.encoder
        self._hook(encoder, "encoder", ["hidden"], f"rows of words and types only; {encoder.packed_reason}")
        if not isinstance(self.model.projection, nn.Identity):
            self._hook(self.model.projection, "projection", ["words", "prompts"], "encoder width -> head width d")
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, module: nn.Module, stage: str, names: list[str], note: str) -> None:
        remaining = list(names)

        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._tensor(stage, remaining.pop(0) if remaining else "output", output, note)

        self._hooks.append(module.register_forward_hook(record))

    def _tensor(self, stage: str, name: str, x: Tensor, note: str = "") -> None:
        dtype = str(x.dtype).removeprefix("torch.")
        self.stages.append(Stage(stage, name, tuple(x.shape), dtype, note))

    def words(self, words: int, characters: int, max_len: int) -> None:
        self.stages.append(Stage("text", "words", (words,), "str", f"{characters} characters; max_len {max_len} words"))

    def batch(self, batch: PackedBatch) -> None:
        for field in fields(batch):
            x = getattr(batch, field.name)
            if isinstance(x, Tensor):
                values = x.tolist() if 0 < x.numel() <= _MAX_SHOWN else ""
                self._tensor("PackedBatch", field.name, x, str(values))
            elif x is not None:
                self.stages.append(Stage("PackedBatch", field.name, (), type(x).__name__, str(x)))

    def vectors(self, words: Tensor, prompts: Tensor) -> None:
        lstm = ", through the LSTM" if self.model.rnn is not None else ""
        self._tensor("encode", "h", words, "word vectors" + lstm)
        self._tensor("encode", "p", prompts, "type prompts")

    def factors(self, factors: SpanFactors) -> None:
        w2 = factors.w2.unpack().T if isinstance(factors.w2, PackedWeight) else factors.w2
        width, hidden = w2.shape
        self.by_vectors = vectors_are_cheaper(len(factors.q), 1, self.model.config.max_width, hidden, width)
        notes = {"a": "a word as a start", "b": "a word as an end", "w2": "span FFN's last layer", "q": "type vectors"}
        for name, x in factors._replace(w2=w2)._asdict().items():
            self._tensor("head", name, x, notes.get(name, ""))

    def scores(self, logits: Tensor, candidates: ops.SpanEntities, threshold: float) -> None:
        how = "by span_vectors" if self.by_vectors else "by span_scores, with the fold u = q W2"
        self._tensor("scores", "logits", logits, f"[words, max_width, types]; {how}")
        operator = "span_vectors" if self.by_vectors else "span_entities"
        self._tensor("candidates", "score", candidates.score, f"above {threshold:g}; by {operator}")

    def entities(self, count: int, flat: bool, multi_label: bool) -> None:
        mode = ("no overlaps" if flat else "nesting allowed") + (", several labels per span" if multi_label else "")
        self.stages.append(Stage("decode", "entities", (count,), "dict", f"greedy search: {mode}"))


def operators_of(model: GLiModern, dtype: torch.dtype, by_vectors: bool) -> dict[str, dict[str, str]]:
    """Return `ops.backend_info` of the operators that prediction runs on the model's device.

    dtype: of the model's weights. by_vectors: see `Watch`.
    """
    names = {"span_vectors"} if by_vectors else {"span_scores", "span_entities"}
    if model.encoder.packed:
        names.add("attention_varlen")
    if isinstance(model.encoder, ModernBertEncoder):
        gelu = model.encoder.model.settings.hidden_activation == "gelu"
        names |= {"rotary", "add_layer_norm"} | ({"geglu"} if gelu else set())
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        names.add("linear_packed")
    info = ops.backend_info(model.device, dtype)
    return {name: info[name] for name in info if name in names}
