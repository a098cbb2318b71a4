"""What fine-tuning does to zero-shot F1: measured before and after, and kept by interpolating the weights.

The weights between the checkpoint's and the fine-tuned ones, (1 - ratio) W0 + ratio W1, often find as much in the new
data and lose less elsewhere (WiSE-FT, https://arxiv.org/abs/2109.01903). Of an adapter, ratio scales its product.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch

from glimodern.checkpoint.adapter import Update, read_adapter, remove_adapter, write_adapter
from glimodern.model.glimodern import GLiModern

from .ranks import together
from .resume import FINE_TUNED
from .trainer import Trainer
from .zero_shot import f1_of

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


def interpolate(trainer: Trainer) -> dict[str, Any]:
    """Save the interpolation that finds most, in place of the fine-tuned model. Returns its ratio and the F1 of all.

    A ratio counts by the mean of F1 on dev_data, if given, and the mean F1 on held_out_types and canary_data.
    """
    config, accelerator = trainer.config, trainer.accelerator
    with together(accelerator, "loading the models to interpolate"):
        source = trainer.output / FINE_TUNED
        tuned = GLiModern.from_pretrained(source / "model", trainable=True, device=accelerator.device).eval()
        base = trainer.load_base(trainable=True)
    ends = {name: (value, tuned.state_dict()[name].clone()) for name, value in base.state_dict().items()}
    sets = {name: dataset for name, dataset in trainer.zero_shot.items() if name != "canary"}
    measured: dict[str, dict[str, float]] = {}
    for ratio in RATIOS:
        _blend(tuned, ends, ratio)
        zero_shot = f1_of(accelerator, config, tuned, sets)
        target = {} if not config.data.dev_data or trainer.dev_set is None else {"dev_data": trainer.dev_set}
        found = f1_of(accelerator, config, tuned, target)
        measured[f"{ratio:g}"] = {**found, **zero_shot, "mean": fmean([*found.values(), fmean(zero_shot.values())])}
    best = max(RATIOS, key=lambda ratio: (measured[f"{ratio:g}"]["mean"], ratio))
    _blend(tuned, ends, best)
    with together(accelerator, "saving the interpolated model"):
        if accelerator.is_main_process:
            tuned.save_pretrained(trainer.output / "model")
            if trainer.lora is not None:
                _save_adapter(trainer, ends, best)
            else:
                remove_adapter(trainer.output / "adapter")
    return {"ratio": best, "by_ratio": measured}


Ends = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def _blend(model: GLiModern, ends: Ends, ratio: float) -> None:
    """Give a model the weights between two states' of the same names."""
    for name, tensor in model.state_dict().items():
        before, after = ends[name]
        tensor.copy_(torch.lerp(before, after, ratio) if tensor.is_floating_point() else after)


def _save_adapter(trainer: Trainer, ends: Ends, ratio: float) -> None:
    """Write the fine-tuned adapter with its products scaled by ratio; if its head is whole, the interpolated head."""
    adapter = read_adapter(trainer.output / FINE_TUNED / "adapter")
    lora = trainer.lora
    if lora is None:
        return
    share = ratio / lora.scale  # updates that were read are scaled
    tensors = _factors(adapter.updates, share)
    head = {name: torch.lerp(*ends[name], ratio) for name in adapter.head} | _factors(adapter.head_updates, share)
    write_adapter(trainer.output / "adapter", lora.fields(), tensors, head, lora.base, lora.base_fingerprint)


def _factors(updates: Mapping[str, Update], share: float) -> dict[str, torch.Tensor]:
    """Return the factors of updates as they are stored, with their products times share."""
    return {
        f"{layer}.lora_{part}.weight": factor
        for layer, (a, b) in updates.items()
        for part, factor in (("A", a), ("B", share * b))
    }
