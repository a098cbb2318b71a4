"""The subject of a benchmark: one operator on one input (`Problem`), and the sides that compute it.

A side is a function of the problem's floating-point inputs only. Every problem has our side, on the backend that `ops`
chooses for the input: C++ with this machine's best instruction set on a CPU, Triton on a GPU (its interpreter is never
timed). It also has the eager reference and the compiled reference. A bench adds peers.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from measure import DEVICE
from roofline import FORWARD_ONLY, Cost, Shape, cost
from torch import Tensor

from glimodern import ops

Function = Callable[..., Tensor | tuple[Tensor, ...]]
FORWARD, BACKWARD, BOTH = DIRECTIONS = ("forward", "backward", "forward + backward")


def costs(op: str, shape: Shape) -> dict[str, Cost]:
    """Minimum work of an operator, by direction."""
    forward = cost(op, shape)
    if op in FORWARD_ONLY:
        return {FORWARD: forward}
    backward = cost(op, shape, backward=True)
    return {FORWARD: forward, BACKWARD: backward, BOTH: total(forward, backward)}


def total(*parts: Cost) -> Cost:
    return Cost(*map(sum, zip(*parts, strict=True)))


class Wanted(NamedTuple):
    """A goal: the minimum of a measure.

    measure: "time" or "memory", the side's divided by ours, or "share", our share of the ceiling.
    """

    measure: str
    side: str
    at_least: float


@dataclass
class Problem:
    """One operator on one input.

    floats: the inputs that require gradients. ours, reference, peers: functions of the floats, which close over all
    other inputs. The reference in the floats' dtype is the eager side, in fp64 the truth, unless `oracle` is given.
    compiled: replaces the compiled reference. A peer, or compiled, may be a string: the reason why it does not run.
    cost: minimum work by direction (bench/roofline.py). sweep: for example ("words", 512), a point of the plot of time
    against words.
    """

    op: str
    case: str
    floats: tuple[Tensor, ...]
    ours: Function
    reference: Function
    cost: Mapping[str, Cost]
    peers: Mapping[str, Function | str] = field(default_factory=dict)
    compiled: Function | str | None = None
    sweep: tuple[str, int] | None = None
    oracle: Function | None = None

    @property
    def our_name(self) -> str:
        info = ops.backend_info(DEVICE, self.floats[0].dtype)[self.op]
        names = {"cpp": f"C++ {info['isa']}", "triton": "Triton", "reference": "ours without kernel"}
        return names.get(info["backend"], info["backend"])

    def sides(self) -> dict[str, Function | str]:
        """Return the sides by name, ours first, then eager. A string is the reason why a side does not run."""
        compiled = compile_side(self.reference) if self.compiled is None else self.compiled
        return {self.our_name: self.ours, "eager": self.reference, "compiled": compiled, **self.peers}

    @cached_property
    def upstream(self) -> tuple[Tensor, ...]:
        """Random gradients of the outputs; zero for infinite outputs (spans that leave their text)."""
        generator = torch.Generator().manual_seed(1)
        outputs = run(self.reference, self.floats, FORWARD)()
        draws = (torch.randn(x.shape, generator=generator).to(x) for x in outputs)
        return tuple(torch.where(x.isfinite(), draw, 0.0) for x, draw in zip(outputs, draws, strict=True))

    def call(self, function: Function, direction: str) -> Callable[[], tuple[Tensor, ...]]:
        return run(function, self.floats, direction, () if direction == FORWARD else self.upstream)

    def truth(self, direction: str) -> tuple[Tensor, ...]:
        """Compute outputs (forward) or gradients in fp64."""
        upstream = () if direction == FORWARD else tuple(x.double() for x in self.upstream)
        return run(self.oracle or self.reference, tuple(x.double() for x in self.floats), direction, upstream)()


def _tuple(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def run(
    function: Function, floats: tuple[Tensor, ...], direction: str, upstream: tuple[Tensor, ...] = ()
) -> Callable[[], tuple[Tensor, ...]]:
    """Return the call to time: outputs without autograd (forward), or the gradients of all floats.

    The gradients come from an existing autograd graph (backward) or from a new one (forward + backward).
    """
    if direction == FORWARD:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return _tuple(function(*floats))

        return forward
    leaves = [x.detach().clone().requires_grad_() for x in floats]
    if direction == BACKWARD:
        outputs = _tuple(function(*leaves))
        return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    return lambda: torch.autograd.grad(_tuple(function(*leaves)), leaves, upstream)


def compile_side(function: Function) -> Function | str:
    """Compile a function by torch.compile for one shape, at its first call."""
    if DEVICE.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "torch.compile needs a C++ compiler on a CPU"
    torch._dynamo.reset()  # sides share code objects, and a second shape would otherwise compile as a dynamic shape
    torch._functorch.config.donated_buffer = False  # so that a graph can run backward twice
    return torch.compile(function, dynamic=False)
