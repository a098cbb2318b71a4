"""The learning rate over a run."""

import math


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at a step (0-based): linear rise over warmup x total, then a cosine to 0.

    A run that is extended goes on with the schedule of its new length: the rate jumps up to where a run of that length
    would be, and the result is not that of a run which had that length from the start.
    """
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))
