"""select_spans: which candidates a greedy search keeps."""

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch


def select_spans(start: Tensor, end: Tensor, *, flat: bool = True, multi_label: bool = False) -> Tensor:
    """Numbers of the candidates to keep, int64, rising.

    start, end int64 [n] on the CPU: first and last word (inclusive) of candidates in order of preference. Each is kept
    that conflicts with none kept before: the same words twice conflict unless multi_label; different spans when they
    share a word (flat), or only when they cross. Raises TypeError and ValueError for other tensors, and for a span with
    start < 0 or end < start. Linear in candidates times their widths.
    """
    for name, x in (("start", start), ("end", end)):
        if x.dtype != torch.int64 or x.device.type != "cpu":
            raise TypeError(f"select_spans: {name} must be int64 on the CPU, got {x.dtype} on {x.device}")
    if start.ndim != 1 or start.shape != end.shape:
        raise ValueError(
            f"select_spans: start and end must be [n] each, got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if len(start) and (int(start.min()) < 0 or bool((end < start).any())):
        raise ValueError("select_spans: expected 0 <= start <= end (end is inclusive), got a span that breaks it")
    if not dispatch.host_kernels():
        return reference.select_spans(start, end, flat=flat, multi_label=multi_label)
    start, end, kept = start.contiguous(), end.contiguous(), torch.empty_like(start)
    count = dispatch.extension.select_spans(
        start.data_ptr(), end.data_ptr(), len(start), flat, multi_label, kept.data_ptr()
    )
    return kept[:count]
