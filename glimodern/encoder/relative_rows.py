"""Table rows of relative distances, for `ops.RelativePositions`: exact for near ones, logarithmic buckets beyond.

All are computed in fp32 and in the order of operations that trained models used: other rounding would move the bounds
of buckets. Distances are query - key.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from glimodern.runtime.ambient import as_in_a_new_process

_FAR = 2**17  # tokens; from here on all distances share a row


def _trimmed(rows: Tensor) -> Tensor:
    """Cut the rows of distances -n ... n, int64 [2n + 1], to those up to the last change: int32 [2 reach + 1]."""
    n = len(rows) // 2
    same = (rows[:n].flip(0) == rows[0]) & (rows[n + 1 :] == rows[-1])  # of distances -d and d from 1 on
    changes = (~same).nonzero()
    reach = int(changes[-1]) + 2 if len(changes) else 1  # the first distance from which on nothing changes
    return rows[n - reach : n + reach + 1].int()


@functools.cache
def deberta_rows(buckets: int, max_distance: int, span: int) -> Tensor:
    """Return DeBERTa's rows of distances: int32 [2 reach + 1], ascending.

    buckets: position_buckets; none if not positive. max_distance: max_relative_positions. span: half of the table's
    rows. https://arxiv.org/abs/2006.03654, equation 3; the buckets are version 2's.
    """
    with as_in_a_new_process():
        far = max(_FAR, 2 * max_distance)
        distance = torch.arange(-far, far + 1)
        if buckets > 0 and max_distance > 0:
            middle = buckets // 2
            size = distance.abs().clamp(min=middle).float()
            log = torch.log(size / middle) / torch.log(size.new_tensor((max_distance - 1) / middle)) * (middle - 1)
            bucket = (torch.ceil(log) + middle).long() * distance.sign()
            distance = torch.where(distance.abs() <= middle, distance, bucket)
        return _trimmed((distance + span).clamp(0, 2 * span - 1))


@functools.cache
def t5_rows(buckets: int, max_distance: int) -> Tensor:
    """Return the rows of distances of T5, mT5, UMT5 and MPNet: int32 [2 reach + 1], of a table of `buckets` rows.

    The first half of the table is for keys at or before the query, the other for keys after it; half of each is exact.
    https://arxiv.org/abs/1910.10683, section 2.1.
    """
    with as_in_a_new_process():
        far = max(_FAR, 2 * max_distance)
        distance = torch.arange(-far, far + 1)
        half = buckets // 2
        exact = half // 2
        size = distance.abs()
        log = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
        bucket = (exact + log.long()).clamp(max=half - 1)
        return _trimmed(torch.where(size < exact, size, bucket) + half * (distance < 0))
