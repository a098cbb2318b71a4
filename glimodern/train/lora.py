"""Adapters in training: added to the encoder by peft, saved alone and merged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glimodern.checkpoint.adapter import Update, write_adapter
from glimodern.model.adapters import merged_linear, with_encoder
from glimodern.network.shared_copy import replace_module, shared_copy
from glimodern.runtime.ambient import building, lasting

from .tuning import TuningConfig

if TYPE_CHECKING:
    from glimodern.model.glimodern import GLiModern

_ENCODERS = ("encoder.", "label_encoder.")
_NAME = "default"  # of the adapter in peft's modules


class Lora:
    """The adapters of a model in training.

    model: gets the adapters. Its other encoder weights, a label encoder's too, are frozen. base: the name of its
    checkpoint. seed: of the first factors; the second ones are zero, so that the model computes what it did before.

    Raises ImportError without peft, and ValueError for targets that the encoder lacks.
    """

    def __init__(self, model: GLiModern, config: TuningConfig, base: str, seed: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("lora_rank: needs the package peft; pip install 'glimodern[lora]'") from error
        rank = config.lora_rank or 1
        self.base, self.base_fingerprint = base, model.weights_fingerprint
        self.config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank if config.lora_alpha is None else config.lora_alpha,
            target_modules=target_layers(model.encoder.model, config.lora_targets),
            base_model_name_or_path=model.config.model_name or None,
        )
        self.head_trained = config.lora_head == "full"
        if not self.head_trained:
            model.requires_grad_(False)
        if model.label_encoder is not None:
            model.label_encoder.requires_grad_(False)
        torch.manual_seed(seed)
        with building():
            inject_adapter_in_model(self.config, model.encoder.model, _NAME)  # freezes the encoder's own weights

    def merged(self, model: GLiModern) -> GLiModern:
        """Build a model with plain layers whose weights hold the adapters, in eval mode."""
        from peft.tuners.lora import LoraLayer

        with lasting():
            encoder = shared_copy(model.encoder)
            for layer in [layer for layer in encoder.modules() if isinstance(layer, LoraLayer)]:
                a, b = (factor[_NAME].get_parameter("weight") for factor in (layer.lora_A, layer.lora_B))
                update = Update(a, self.scale * b)
                base: Any = layer.base_layer
                replace_module(encoder, layer, merged_linear(base, update))
            return with_encoder(model, encoder)

    def save(self, model: GLiModern, folder: Path) -> None:
        """Write the adapters, and the head if it was trained, to folder/adapter; the merged model to folder/model."""
        self.merged(model).save_pretrained(folder / "model")
        head = {name: x for name, x in model.state_dict().items() if not name.startswith(_ENCODERS)}
        named = model.encoder.model.named_parameters()
        lora = {name.replace(f".{_NAME}.", "."): x for name, x in named if in_adapter(name)}
        write_adapter(
            folder / "adapter", self.fields(), lora, head if self.head_trained else {}, self.base, self.base_fingerprint
        )

    @property
    def scale(self) -> float:
        """The factor of the adapters' products."""
        return float(self.config.lora_alpha / self.config.r)

    def fields(self) -> dict[str, Any]:
        """Return the fields of adapter_config.json."""
        fields = {**self.config.to_dict(), "inference_mode": True}
        return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}


def target_layers(encoder: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the linear layers that targets name, by their whole names or last parts; () stands for all.

    A pooler, whose output is not used, counts only if it is named. Raises ValueError for a target that names none.
    """
    linears = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if not targets:
        return [name for name in linears if "pooler" not in name.split(".")]
    chosen = {target: [name for name in linears if f".{name}".endswith(f".{target}")] for target in targets}
    for target, names in chosen.items():
        if not names:
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(
                f"lora_targets: expected names of the encoder's linear layers ({', '.join(known)}), got {target!r}"
            )
    return [name for name in linears if any(name in names for names in chosen.values())]


def in_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's factor."""
    return ".lora_A." in name or ".lora_B." in name
