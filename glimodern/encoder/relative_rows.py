"""Table rows of relative distances, for `ops.RelativePositions`: exact for near ones, logarithmic buckets beyond.

All are computed in fp32 and in the order of operations that trained models used: other rounding would move the bounds
of buckets. Distances are query - key.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from glimodern.runtime.ambient import as_in_a_new_process

_FAR = 2**17  # tokens; farther distances share the row of this one in any case


def _rows(row_of: Callable[[Tensor], Tensor], distance: int) -> Tensor:
    """Compute the rows of distances up to the last change: int32 [2 reach + 1].

    row_of: distances, int64 [n] -> their rows. distance: where rows may be expected to change no more.
    """
    far = 2 * distance
    while True:
        rows = row_of(torch.arange(-far, far + 1))
        same = (rows[:far].flip(0) == rows[0]) & (rows[far + 1 :] == rows[-1])  # of distances -d and d, from 1 on
        changes = (~same).nonzero()
        reach = int(changes[-1]) + 2 if len(changes) else 1  # the first distance from which on nothing changes
        if 2 * reach <= far or far >= _FAR:
            return rows[far - reach : far + reach + 1].int()
        far *= 2


@functools.cache
def deberta_rows(buckets: int, max_distance: int, span: int) -> Tensor:
    """Return DeBERTa's rows of distances: int32 [2 reach + 1], ascending.

    buckets: position_buckets; none if not positive. max_distance: max_relative_positions. span: half of the table's
    rows. https://arxiv.org/abs/2006.03654, equation 3; the buckets are version 2's.
    """

    def row_of(distance: Tensor) -> Tensor:
        if buckets > 0 and max_distance > 0:
            middle = buckets // 2
            size = distance.abs().clamp(min=middle).float()
            log = torch.log(size / middle) / torch.log(size.new_tensor((max_distance - 1) / middle)) * (middle - 1)
            bucket = (torch.ceil(log) + middle).long() * distance.sign()
            distance = torch.where(distance.abs() <= middle, distance, bucket)
        return (distance + span).clamp(0, 2 * span - 1)

    with as_in_a_new_process():
        return _rows(row_of, max(max_distance, span))


@functools.cache
def t5_rows(buckets: int, max_distance: int) -> Tensor:
    """Return the rows of distances of T5, mT5, UMT5 and MPNet: int32 [2 reach + 1], of a table of `buckets` rows.

    The first half of the table is for keys at or before the query, the other for keys after it; half of each is exact.
    https://arxiv.org/abs/1910.10683, section 2.1.
    """
    half = buckets // 2
    exact = half // 2

    def row_of(distance: Tensor) -> Tensor:
        size = distance.abs()
        log = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
        bucket = (exact + log.long()).clamp(max=half - 1)
        return torch.where(size < exact, size, bucket) + half * (distance < 0)

    with as_in_a_new_process():
        return _rows(row_of, max(max_distance, buckets))
