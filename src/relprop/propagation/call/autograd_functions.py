"""The autograd functions: the nodes whose backward is a rule while relevance is explained.

Each asks its call for the phase. While the call is *explaining*, a backward carries the coefficient
``c = R / a`` as the rule says; afterwards it is the true derivative, so that a loss on the relevance is
differentiated through the network as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from relprop.propagation.math.linear_map import Geometry
from relprop.propagation.math.numerics import TAU
from relprop.propagation.math.zero_coefficients import finite, usual_arithmetic

if TYPE_CHECKING:
    from relprop.propagation.call.call import Call
    from relprop.propagation.call.linear_call import LinearCall
    from relprop.propagation.call.sum_call import SumCall


class Linear(Function):
    """A linear map with parameters: ``c_in = rule(layer, a, z, c_out)``."""

    @staticmethod
    def forward(
        ctx: Any, linear_call: LinearCall, compute: Callable[[], Tensor], a: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        z = compute()
        if z._is_view():  # of a matrix that nobody else holds: the model may write into what it is given
            z = torch.ops.aten._unsafe_view(z, z.shape)
        ctx.linear_call = linear_call
        ctx.passes_linear = True  # read by the walk that finds the first and the last layer
        ctx.save_for_backward(a, z, *parameters)
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        linear_call: LinearCall = ctx.linear_call
        with torch._C.DisableTorchFunction():  # a backward may run inside the user's `attach` block
            a, z, *parameters = ctx.saved_tensors
            if not linear_call.call.explaining:
                return None, None, *_derivatives(ctx, linear_call.geometry, a, tuple(parameters), c)
            weight, bias = linear_call.geometry.folded(*parameters)
            if linear_call.call.options.looking:  # where no coefficient arrives, whatever is infinite there
                with usual_arithmetic():
                    a, z = finite(a), finite(z)
                    layer = linear_call.layer(a, weight, bias)
                    return None, None, linear_call.coefficient(layer, a, z, c, ctx), *(None for _ in parameters)
            layer = linear_call.layer(a, weight, bias)
            return None, None, linear_call.coefficient(layer, a, z, c, ctx), *(None for _ in parameters)


def _derivatives(
    ctx: Any, geometry: Geometry, a: Tensor, parameters: tuple[Tensor | None, ...], c: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the true derivatives of a linear map by its input and each of its parameters."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        needed = ctx.needs_input_grad[2:]
        variables = tuple(
            tensor if tensor is None or again else tensor.detach().requires_grad_(need)
            for tensor, need in zip((a, *parameters), needed, strict=True)
        )
        origin = variables[0]
        assert origin is not None
        weight, bias = geometry.folded(*variables[1:])  # type: ignore[arg-type]  # there is a weight
        z = geometry.forward(origin, weight.to(c.dtype), bias)
        wanted = [tensor for tensor, need in zip(variables, needed, strict=True) if need and tensor is not None]
        found = iter(torch.autograd.grad(z, wanted, c, create_graph=again, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)


class Sum(Function):
    """A sum of terms and a constant: ``c_in = rule(layer, a, z, c_out)``, of a layer whose weights are 1."""

    @staticmethod
    def forward(
        ctx: Any, sum_call: SumCall, compute: Callable[[], Tensor], a: Tensor, constant: Tensor | None
    ) -> Tensor:
        z = compute()
        ctx.sum_call = sum_call
        ctx.save_for_backward(a, z, constant)
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        sum_call: SumCall = ctx.sum_call
        with torch._C.DisableTorchFunction():
            a, z, constant = ctx.saved_tensors
            if sum_call.call.explaining:
                return None, None, sum_call.coefficient(sum_call.rule, a, constant, z, c), None
            by_constant = c.sum_to_size(constant.shape) if ctx.needs_input_grad[3] else None
            return None, None, sum_call.geometry.transpose(c, a.new_ones(()), a), by_constant


class Beside(Function):
    """A signal to which a constant is added to give ``z``; below a layer whose rule shares by sign, so do these two."""

    @staticmethod
    def forward(ctx: Any, sum_call: SumCall, signal: Tensor, constant: Tensor, z: Tensor, mark: object) -> Tensor:
        ctx.sum_call, ctx.above_mark = sum_call, mark
        ctx.save_for_backward(signal, constant, z)
        return signal.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        sum_call: SumCall = ctx.sum_call
        call = sum_call.call
        rule = (call.above or {}).get(ctx.above_mark) if call.explaining else None
        if rule is None:
            return None, c, None, None, None
        with torch._C.DisableTorchFunction():
            signal, constant, z = ctx.saved_tensors
            return None, sum_call.coefficient(rule, signal[None], constant, z, c)[0], None, None, None


class Scale(Function):
    """The identity, whose relevance is multiplied by a factor: 0 makes a constant, 1/2 shares a product."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, factor: float | Tensor) -> Tensor:
        ctx.call, ctx.factor = call, factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        if not ctx.call.explaining:
            return None, c, None
        if isinstance(ctx.factor, float) and ctx.factor == 0.0:
            return None, None, None  # not even a zero: further down it may meet an infinite slope
        return None, c * ctx.factor, None


class Rectify(Function):
    """The identity, through which only positive coefficients pass."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor) -> Tensor:
        ctx.call = call
        ctx.rectifies = True  # read where a method asks whether it has met a ReLU
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        return None, c.clamp(min=0) if ctx.call.explaining else c


_BY_ZERO = TAU**-0.5
"""What no coefficient of a value reaches, and ``R / tau`` at a unit of zero exceeds by far."""


class Spare(Function):
    """The identity, through which no relevance reaches the units of zero where ``f(0)`` is not zero."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, at: Tensor) -> Tensor:
        ctx.call, ctx.at = call, at
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        return None, torch.where(ctx.at & (c.abs() > _BY_ZERO), 0.0, c) if ctx.call.explaining else c, None


class Switch(Function):
    """The value of ``native``; explained as if it had been ``surrogate``, differentiated as it is."""

    @staticmethod
    def forward(ctx: Any, call: Call, native: Tensor, surrogate: Tensor) -> Tensor:
        ctx.call = call
        return native.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        return (None, None, c) if ctx.call.explaining else (None, c, None)


class Below(Function):
    """The value of ``native``; explained as ``even`` where relevance may come from a rule that reaches zeros."""

    @staticmethod
    def forward(ctx: Any, call: Call, native: Tensor, even: Tensor, mark: object) -> Tensor:
        ctx.call, ctx.below_mark = call, mark
        return native.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        evenly = ctx.call.explaining and ctx.call.zeros_above(ctx.below_mark)
        return (None, None, c, None) if evenly else (None, c, None, None)


class Adjoint(Function):
    """``L^T u`` for a linear map ``L``, whose derivative is ``L``, also where PyTorch knows no second one."""

    @staticmethod
    def forward(ctx: Any, linear: Callable[[Tensor], Tensor], like: Tensor, u: Tensor) -> Tensor:
        ctx.linear = linear
        with torch.enable_grad():
            x = torch.zeros_like(like).requires_grad_()
            (found,) = torch.autograd.grad(linear(x), x, u)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        with torch._C.DisableTorchFunction():
            return None, None, ctx.linear(c)


class Tap(Function):
    """The identity; while explaining, it tells what coefficient passed."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, tell: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.call, ctx.tell = call, tell
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c,) = gradients
        if ctx.call.explaining:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                ctx.tell(c.detach(), ctx.saved_tensors[0].detach())
        return None, c, None


def apply(primitive: type[Function], *arguments: Any) -> Tensor:
    """Return ``primitive.apply(*arguments)``: a fresh tensor with the primitive as its node."""
    out: Tensor = primitive.apply(*arguments)
    return out
