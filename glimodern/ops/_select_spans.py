"""select_spans: the candidates that a greedy search keeps."""

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch


def select_spans(start: Tensor, end: Tensor, *, flat: bool = True, multi_label: bool = False) -> Tensor:
    """Select candidates greedily: each is kept that conflicts with none kept before.

    start, end: int64 [n] on the CPU, first and last word (inclusive) of candidates in order of preference.
    flat: spans that share a word conflict; False: only spans that cross.
    multi_label: the same span may be kept twice.

    Returns the indices of the kept candidates, int64, ascending. Time is linear in candidates times their widths.

    Raises TypeError for other dtypes and devices, ValueError for other shapes and a span with start < 0 or end < start.
    """
    for name, x in (("start", start), ("end", end)):
        if x.dtype != torch.int64 or x.device.type != "cpu":
            raise TypeError(f"{name}: expected int64 on the CPU, got {x.dtype} on {x.device}")
    if start.ndim != 1 or start.shape != end.shape:
        raise ValueError(f"start, end: expected one shape [n], got {tuple(start.shape)} and {tuple(end.shape)}")
    if len(start) and (int(start.min()) < 0 or bool((end < start).any())):
        row = int(((start < 0) | (end < start)).nonzero()[0])
        raise ValueError(
            f"start, end: expected 0 <= start <= end (end is inclusive), got {int(start[row])} and {int(end[row])} "
            f"in row {row}"
        )
    if not dispatch.host_kernels():
        return reference.select_spans(start, end, flat=flat, multi_label=multi_label)
    start, end, kept = start.contiguous(), end.contiguous(), torch.empty_like(start)
    count = dispatch.extension.select_spans(
        start.data_ptr(), end.data_ptr(), len(start), flat, multi_label, kept.data_ptr()
    )
    return kept[:count]
