"""transformers' config of an encoder, from the fields that a checkpoint stores."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def transformers_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """Build the config that `fields`, with its model_type, describes; imports transformers. `fields` is not modified.

    Raises ValueError for a model_type that transformers does not know and for values that its class refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.for_model(**copy.deepcopy(fields))
    except StrictDataclassError as error:  # neither a ValueError nor a TypeError, and of several lines
        got = " ".join(str(error).split())
        raise ValueError(f"config: expected fields of a {fields['model_type']}, got: {got}; correct them") from error
    return config
