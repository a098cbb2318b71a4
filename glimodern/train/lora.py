"""Adapters in training: added to the encoder by peft, saved alone and merged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glimodern.checkpoint.adapter import Update, write_adapter
from glimodern.model.adapters import HEAD_PARTS, merged_linear, with_encoder
from glimodern.network.shared_copy import replace_module, shared_copy
from glimodern.runtime.ambient import building, lasting

from .tuning import TuningConfig

if TYPE_CHECKING:
    from glimodern.model.glimodern import GLiModern

_ENCODERS = ("encoder.", "label_encoder.")
_NAME = "default"  # of the adapter in peft's modules


class UpdatedLinear(nn.Linear):
    """A linear layer with the weight W + scale lora_B lora_A, of which the two factors are trained: a layer of a head.

    linear: has W and the bias. rank: of the update, at most the smaller side of W. The product is W's until training,
    as lora_B is zero. The head reads weights (the fold), which peft's layers do not have.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.base_layer, self.scale = linear.requires_grad_(False), scale
        rank = min(rank, self.in_features, self.out_features)
        self.lora_A = nn.Linear(self.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return torch.addmm(self.base_layer.weight, self.lora_B.weight, self.lora_A.weight, alpha=self.scale)

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        return self.base_layer.bias

    def merged(self) -> nn.Linear:
        """Build the plain layer of the product."""
        return merged_linear(self.base_layer, Update(self.lora_A.weight, self.scale * self.lora_B.weight))


class Lora:
    """The adapters of a model in training.

    model: gets the adapters. Its other encoder weights, a label encoder's too, are frozen. base: the name of its
    checkpoint. seed: of the first factors; the second ones are zero, so that the model computes what it did before.

    Raises ImportError without peft, and ValueError for a rank or targets that do not fit the encoder.
    """

    def __init__(self, model: GLiModern, config: TuningConfig, base: str, seed: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("lora_rank: needs the package peft; pip install 'glimodern[lora]'") from error
        rank, encoder = config.lora_rank or 1, model.encoder.model
        targets = target_layers(encoder, config.lora_targets)
        check_rank(encoder, targets, rank)
        self.base, self.base_fingerprint = base, model.weights_fingerprint
        self.config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank if config.lora_alpha is None else config.lora_alpha,
            target_modules=targets,
            base_model_name_or_path=model.config.model_name or None,
        )
        self.head = config.lora_head
        if self.head != "full":
            model.requires_grad_(False)
        if model.label_encoder is not None:
            model.label_encoder.requires_grad_(False)
        torch.manual_seed(seed)
        with building():
            inject_adapter_in_model(self.config, encoder, _NAME)  # freezes the encoder's own weights
            if self.head == "lora":
                for linear in head_layers(model):
                    replace_module(model, linear, UpdatedLinear(linear, rank, self.scale))

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
            merged = with_encoder(model, encoder)
            for layer in [layer for layer in merged.modules() if isinstance(layer, UpdatedLinear)]:
                replace_module(merged, layer, layer.merged())
            return merged

    def save(self, model: GLiModern, folder: Path) -> None:
        """Write the adapters, and the head if it was trained, to folder/adapter; the merged model to folder/model."""
        self.merged(model).save_pretrained(folder / "model")
        head = {
            name: x
            for name, x in model.state_dict().items()
            if not name.startswith(_ENCODERS) and (self.head == "full" or in_adapter(name))
        }
        named = model.encoder.model.named_parameters()
        lora = {name.replace(f".{_NAME}.", "."): x for name, x in named if in_adapter(name)}
        write_adapter(folder / "adapter", self.fields(), lora, head, self.base, self.base_fingerprint)

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
        found = [name for name in linears if "pooler" not in name.split(".")]
        if not found:
            kind = type(encoder).__name__
            raise ValueError(f"lora_rank: expected an encoder with linear layers, got {kind} without one; leave it out")
        return found
    chosen = {target: [name for name in linears if f".{name}".endswith(f".{target}")] for target in targets}
    for target, names in chosen.items():
        if not names:
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(
                f"lora_targets: expected names of the encoder's linear layers ({', '.join(known)}), got {target!r}"
            )
    return [name for name in linears if any(name in names for names in chosen.values())]


def check_rank(encoder: nn.Module, targets: list[str], rank: int) -> None:
    """Raise ValueError for a rank above the number of inputs or outputs of a layer, whose weight has no higher rank."""
    for name in targets:
        outputs, inputs = encoder.get_parameter(f"{name}.weight").shape
        if rank > min(outputs, inputs):
            raise ValueError(
                f"lora_rank: expected at most {min(outputs, inputs)}, as {name} has {inputs} inputs and {outputs} "
                f"outputs, got {rank}; lower it, or name other layers in lora_targets"
            )


def head_layers(model: GLiModern) -> list[nn.Linear]:
    """Return the linear layers outside the encoders."""
    parts = [getattr(model, part) for part in HEAD_PARTS if getattr(model, part) is not None]
    return [module for part in parts for module in part.modules() if isinstance(module, nn.Linear)]


def in_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's factor."""
    return ".lora_A." in name or ".lora_B." in name
