"""The learning rate schedule."""

import math


def rate(step: int, total: int, warmup: float) -> float:
    """Fraction of the peak learning rate at a step (0-based): a linear rise over warmup * total, then a cosine to 0.

    An extended run uses the schedule of its new length. Its rate jumps up to that of a run of the new length, so the
    result differs from that of a run which had the new length from the start.
    """
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))
