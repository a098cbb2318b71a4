"""Settings of fine-tuning: adapters, and what keeps the zero-shot F1 of the checkpoint in init_from."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from glimodern.settings import AT_LEAST_ONE, POSITIVE, SettingError, check_settings


@dataclass(frozen=True)
class TuningConfig:
    """Fine-tuning of the checkpoint in init_from."""

    lora_rank: Annotated[int | None, AT_LEAST_ONE] = None
    """Train adapters (LoRA) of this rank on the encoder, whose own weights stay as they are. Needs the extra lora.
    Default: none, all weights are trained."""
    lora_alpha: Annotated[int | None, AT_LEAST_ONE] = None
    """The adapters' product is scaled by lora_alpha / lora_rank. Default: twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers with adapters, or the last parts of names (query value). Default: all linear layers of
    the encoder."""
    lora_head: Literal["lora", "full", "frozen"] = "lora"
    """Train low-rank updates of the head's linear layers too, with rank and alpha of the adapters; or train the head
    whole, which is then saved whole with the adapters; or leave it as it is."""
    lora_lr: Annotated[float, POSITIVE] = 1e-3
    """Peak learning rate of the adapters and of the head's updates. A head that is trained whole has head_lr."""
    keep_zero_shot: bool = False
    """Save the interpolation of init_from's weights and the fine-tuned ones that finds most on dev_data, held_out_types
    and canary_data."""
    canary_data: tuple[str, ...] = ()
    """Data sets of other types and subjects, whose F1 is reported before and after. Default: a dozen sentences of the
    package, which keep_zero_shot does not choose by."""
    replay_data: tuple[str, ...] = ()
    """Data sets whose sentences are trained on too, with the entities that init_from finds in them as gold. Their own
    entities only say which types to ask."""
    replay_ratio: Annotated[float, POSITIVE] = 0.5
    """Sentences of replay_data for each sentence of train_data."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def given(self) -> list[str]:
        """Names of the settings that differ from their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def check(self, *, init_from: str | None, freeze_encoder: bool, measured: bool) -> None:
        """Raise SettingError for settings that do not go together.

        init_from, freeze_encoder: of the model. measured: whether held_out_types or canary_data is given.
        """
        given = self.given
        if given and init_from is None:
            raise SettingError(
                f"{', '.join(given)}: expected init_from, the checkpoint to fine-tune, with it, got none; train a "
                "model first, then give it as init_from"
            )
        lora = [name for name in given if name.startswith("lora_") and name != "lora_rank"]
        if lora and self.lora_rank is None:
            raise SettingError(f"{', '.join(lora)}: expected lora_rank with it, got none; give lora_rank")
        if self.lora_rank is not None and freeze_encoder:
            raise SettingError("lora_rank, freeze_encoder: expected one of them, got both; adapters train the encoder")
        if self.keep_zero_shot and not measured:
            raise SettingError(
                "keep_zero_shot: expected held_out_types or canary_data, to choose the ratio by, got neither; give one"
            )
        if "replay_ratio" in given and not self.replay_data:
            raise SettingError("replay_ratio: expected replay_data with it, got none; give replay_data")
