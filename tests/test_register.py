"""Registration of operators from a NamedTuple: schema, gradient, tracing, and the direct path."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from glimodern.ops._register import Operator, differentiable_op

CALLS: list[str] = []


class Inputs(NamedTuple):
    x: Tensor
    y: Tensor
    shift: Tensor | None
    power: int
    scale: float


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(scale * (x * y)^power + shift, x * y), of which the backward pass saves the second."""
    CALLS.append("forward")
    x, y, shift, power, scale = inputs
    product = x * y
    out = scale * product**power
    return out if shift is None else out + shift, product


def backward(grad: Tensor, inputs: Inputs, out: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    CALLS.append("backward")
    dproduct = grad * inputs.scale * inputs.power * product ** (inputs.power - 1)
    return dproduct * inputs.y, dproduct * inputs.x


def fake(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs.x), torch.empty_like(inputs.x)


OP = differentiable_op("test_power", forward, backward, fake)


def leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


def run(x: Tensor, y: Tensor, shift: Tensor | None = None) -> Tensor:
    return OP(Inputs(x, y, shift, 3, 0.5), x, y)[0]


@pytest.mark.parametrize("shift", [None, torch.ones(4, dtype=torch.float64)], ids=["no shift", "shift"])
def test_gradients_schema_and_tracing(shift):
    x, y = leaves()
    assert torch.autograd.gradcheck(lambda x, y: run(x, y, shift), (x, y))
    torch.library.opcheck(torch.ops.glimodern.test_power.default, (x, y, shift, 3, 0.5))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y, shift), run(x, y, shift))
    grads = (torch.autograd.grad(function(x, y, shift).sum(), (x, y)) for function in (compiled, run))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_fields_are_the_arguments():
    schema = torch.ops.glimodern.test_power.default._schema
    assert str(schema).endswith("(Tensor x, Tensor y, Tensor? shift, SymInt power, float scale) -> (Tensor, Tensor)")
    names = [argument.name for argument in torch.ops.glimodern.test_power_backward.default._schema.arguments]
    assert names == ["grad", "x", "y", "shift", "power", "scale", "out", "product"]
    x, y = (leaf.detach() for leaf in leaves())
    by_name = torch.ops.glimodern.test_power(x=x, y=y, shift=None, power=3, scale=0.5)
    assert torch.equal(by_name[0], run(x, y))


def test_without_gradients_the_function_itself_runs(monkeypatch):
    x, y = leaves()
    monkeypatch.setattr(OP, "registered", None)
    with torch.no_grad():
        run(x, y)
    with pytest.raises(TypeError):
        run(x, y)


def test_no_gradient_of_the_gradient():
    x, y = leaves()
    (grad,) = torch.autograd.grad(run(x, y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="test_power_backward"):
        grad.sum().backward()


def test_an_operator_without_gradient():
    def double(inputs: Inputs) -> Tensor:
        return inputs.x * 2.0

    op = Operator("test_double", double, lambda inputs: torch.empty_like(inputs.x))
    x, y = (leaf.detach() for leaf in leaves())
    inputs = Inputs(x, y, None, 1, 1.0)
    assert torch.equal(op(inputs, x), op.registered(inputs))
