"""TODO docstring."""

from collections import OrderedDict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimodern.layers.packed_linear import PackedLinear, input_sizes


def _packed_mlp(mlp: nn.Module, dtype: str, last: str) -> nn.Sequential:
    """The same for inference; the names of its state are `_mlp`'s."""
    first, second = cast(nn.Linear, mlp.get_submodule("0")), cast(nn.Linear, mlp.get_submodule("3"))
    hidden = PackedLinear(first, dtype, "relu")
    return nn.Sequential(hidden, nn.Identity(), nn.Identity(), PackedLinear(second, dtype, last))


def _side_by_side(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """a = [s | 0] and b = [0 | e] of a head without W1."""
    width = starts.shape[1]
    return F.pad(starts, (0, width)), F.pad(ends, (width, 0))


class _PackedMarker(nn.Module):
    """The span layer of "marker" for inference: its weight transposed. It meets only types, and stays in fp32 or bf16
    where other layers are int8.

    Its state_dict is that of the layer.
    """

    b2: Tensor

    def __init__(self, layer: nn.Module, fold_dtype: str) -> None:
        super().__init__()
        linear = cast(nn.Linear, layer)
        fold = nn.Linear(linear.out_features, linear.in_features, bias=False, device="meta")
        fold.weight = nn.Parameter(linear.weight.detach().T, requires_grad=False)
        self.fold = PackedLinear(fold, fold_dtype)
        self.register_buffer("b2", linear.bias.detach())

    def halves(self, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """a, b [n, H] of the two inputs [n, d] of the concatenation."""
        return _side_by_side(starts, ends)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        destination = OrderedDict() if destination is None else destination
        destination[prefix + "weight"] = self.fold.packed.unpack().T.contiguous()
        destination[prefix + "bias"] = self.b2
        return destination


class _PackedSpan(_PackedMarker):
    """The span FFN for inference: the halves of its first Linear packed, and the second as in "marker".

    Its state_dict is that of the FFN; the halves have no entries of their own.
    """

    def __init__(self, span: nn.Module, width: int, dtype: str, fold_dtype: str) -> None:
        super().__init__(span.get_submodule("3"), fold_dtype)
        first = cast(nn.Linear, span.get_submodule("0"))
        halves, seen = [], input_sizes(first)
        sizes = (None, None) if seen is None else seen.chunk(2)
        for weight, bias, largest in zip(first.weight.chunk(2, dim=1), (first.bias, None), sizes, strict=True):
            half = nn.Linear(width, first.out_features, bias=bias is not None, device="meta")
            half.weight = nn.Parameter(weight.detach(), requires_grad=False)
            if bias is not None:
                half.bias = bias
            halves.append(PackedLinear(half, dtype, sizes=largest))
        self.start, self.end = halves

    def halves(self, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        return self.start(starts), self.end(ends)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        destination = OrderedDict() if destination is None else destination
        start, end = self.start.state_dict(), self.end.state_dict()
        destination[prefix + "0.weight"] = torch.cat([start["weight"], end["weight"]], dim=1)
        destination[prefix + "0.bias"] = start["bias"]
        return super().state_dict(destination=destination, prefix=prefix + "3.")
