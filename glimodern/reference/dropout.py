"""The oracle of dropout: a counter-based generator, the same in forward, backward and every backend."""

import math

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def _multiply32(x: Tensor, factor: int) -> Tensor:
    """x * factor mod 2^32 on int64 tensors that hold uint32 values, without overflowing int64."""
    low = (x & 0xFFFF) * factor
    high = ((x >> 16) * factor) & 0xFFFF
    return (low + (high << 16)) & _MASK32


def mix32(x: Tensor) -> Tensor:
    """A bijective 32-bit hash with low bias; int64 tensor holding uint32 values, same shape out.

    Source: the two-round xorshift-multiply found by https://github.com/skeeto/hash-prospector ("lowbias32").
    """
    x = x ^ (x >> 16)
    x = _multiply32(x, 0x7FEB352D)
    x = x ^ (x >> 15)
    x = _multiply32(x, 0x846CA68B)
    return x ^ (x >> 16)


def dropout_threshold(dropout_p: float) -> int:
    """The uint32 bound below which an element's hash drops the element: floor(p * 2^32)."""
    return int(math.floor(dropout_p * 4294967296.0))


def keep_mask(rows: Tensor, columns: Tensor, dropout_p: float, seed: int) -> Tensor:
    """bool [*rows, columns], True where kept, for rows int64 of any shape and columns int64 [c].

    key = mix32(mix32(row mod 2^32) xor (seed mod 2^32)); an element is kept if mix32(key + column * 0x9E3779B9) >=
    floor(p * 2^32).
    """
    key = mix32(mix32(rows & _MASK32) ^ (seed & _MASK32))
    return mix32((key[..., None] + _multiply32(columns, _GOLDEN)) & _MASK32) >= dropout_threshold(dropout_p)


def dropout_keep(rows: Tensor, hidden: int, dropout_p: float, seed: int) -> Tensor:
    """Dropout mask of hidden values: bool [r, hidden], True where kept.

    rows: int64 [r], the span's index i * K + k, with i counted in the whole batch.
    """
    return keep_mask(rows, torch.arange(hidden, device=rows.device), dropout_p, seed)


def dropout(x: Tensor, p: float, seed: int, first: int = 0) -> Tensor:
    """x [..., h] times the mask `dropout_keep` over its rows, counted from `first`, and times 1 / (1 - p)."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)
    keep = dropout_keep(first + torch.arange(len(rows), device=x.device), rows.shape[1], p, seed)
    return torch.where(keep, rows / (1.0 - p), torch.zeros((), dtype=x.dtype, device=x.device)).view(x.shape)
