"""Register operators with torch.library; an operator's arguments are the fields of one NamedTuple, stated once.

`torch.ops.glimodern.NAME` takes the fields in their order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from .dispatch import direct, needs_grad

Inputs = TypeVar("Inputs", bound=tuple[Any, ...])
Outputs = TypeVar("Outputs")


def _define(
    name: str,
    run: Callable[..., Any],
    arguments: Mapping[str, Any],
    returns: Any,
    fake: Callable[..., Any],
) -> Any:
    """Register glimodern::NAME with these argument and return types; run and fake take the arguments by position."""
    parameters = [
        inspect.Parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hint)
        for argument, hint in arguments.items()
    ]
    # torch.library infers the schema from the signature
    run.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    op = torch.library.custom_op(f"glimodern::{name}", run, mutates_args=())
    op.register_fake(fake)
    return op


class Operator(Generic[Inputs, Outputs]):
    """An operator `forward(inputs)`, registered as `torch.ops.glimodern.NAME`.

    forward, fake: functions of a NamedTuple, with annotations. fake returns empty outputs, for tracing.
    """

    def __init__(self, name: str, forward: Callable[[Inputs], Outputs], fake: Callable[[Inputs], Any]) -> None:
        hints = get_type_hints(forward)
        (argument,) = inspect.signature(forward).parameters
        inputs_type = hints[argument]
        self.forward = forward
        self.fields: dict[str, Any] = get_type_hints(inputs_type)
        self.make: Callable[..., Inputs] = inputs_type
        self.op = _define(
            name,
            lambda *values: forward(inputs_type(*values)),
            self.fields,
            hints["return"],
            lambda *values: fake(inputs_type(*values)),
        )
        self._overload = getattr(torch.ops.glimodern, name).default

    def __call__(self, inputs: Inputs, *differentiable: Tensor) -> Outputs:
        """Run `forward` itself where neither autograd (of these tensors) nor tracing asks for the registered op."""
        if direct(needs_grad(*differentiable), differentiable):
            return self.forward(inputs)
        return self.registered(inputs)

    def registered(self, inputs: Inputs) -> Outputs:
        """Run the registered op."""
        outputs: Outputs = self._overload(*inputs)
        return outputs


def differentiable_op(
    name: str,
    forward: Callable[[Inputs], Outputs],
    backward: Callable[..., Tensor | tuple[Tensor, ...]],
    fake: Callable[[Inputs], Any],
) -> Operator[Inputs, Outputs]:
    """Register glimodern::NAME, its gradient, and glimodern::NAME_backward, which computes it.

    forward(inputs) -> output, or a tuple whose first element is the output; the others have no gradient. The fields of
        inputs are tensors, then options.
    backward(grad, inputs, *outputs) -> gradients of the first fields of inputs, as many as it returns, each in its
        field's shape and dtype, or empty for a field that is None. All inputs are saved, and as many outputs as
        backward has parameters for.
    fake: `forward` without values.
    """
    operator = Operator(name, forward, fake)
    tensors, fields = sum(hint in (Tensor, Tensor | None) for hint in operator.fields.values()), len(operator.fields)
    _, _, *saved_outputs = inspect.signature(backward).parameters
    returns = get_type_hints(backward)["return"]
    grads_count = len(get_args(returns)) or 1

    def run(grad: Tensor, *values: Any) -> Tensor | tuple[Tensor, ...]:
        return backward(grad, operator.make(*values[:fields]), *values[fields:])

    def fake_grads(grad: Tensor, *values: Any) -> Any:
        grads = tuple(grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in values[:grads_count])
        return grads if grads_count > 1 else grads[0]

    arguments = {"grad": Tensor, **operator.fields, **dict.fromkeys(saved_outputs, Tensor)}
    _define(f"{name}_backward", run, arguments, returns, fake_grads)
    backward_op = getattr(torch.ops.glimodern, f"{name}_backward").default

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = (output,) if isinstance(output, Tensor) else output
        ctx.save_for_backward(*inputs[:tensors], *outputs[: len(saved_outputs)])
        ctx.options = inputs[tensors:]
        if len(outputs) > 1:
            ctx.mark_non_differentiable(*outputs[1:])

    def autograd(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        given = [grad, *[x for x in saved if x is not None]]
        compute = run if direct(needs_grad(*given), given) else backward_op
        grads = compute(grad, *saved[:tensors], *ctx.options, *saved[tensors:])
        grads = (grads,) if isinstance(grads, Tensor) else grads
        asked = [x if needed else None for x, needed in zip(grads, ctx.needs_input_grad, strict=False)]
        return (*asked, *(None,) * (fields - grads_count))

    operator.op.register_autograd(autograd, setup_context=setup)
    return operator
