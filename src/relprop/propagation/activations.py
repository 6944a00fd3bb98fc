"""Elementwise functions and their quotients ``q(z) = (f(z) - f(0)) / z``, in closed form.

The Pass rule gives the input the coefficient ``c q(z)``. Each quotient takes the arguments of its function;
its value at 0 is the derivative ``f'(0)``. Written so that nothing cancels, and differentiable at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.propagation.handler import Here
from relprop.propagation.numerics import safe
from relprop.propagation.primitives import Spare, apply
from relprop.propagation.products import inverse
from relprop.propagation.provenance import Origin


def ratio(value: Tensor, z: Tensor, *series: float) -> Tensor:
    """Return ``value / z``, near zero by its power series ``series[0] + series[1] z + ...``.

    With five terms, the series and the division are both exact to rounding at ``|z| = 1e-3``, in value and in slope.
    """
    near = z.abs() < 1e-3
    small = torch.where(near, z, 0.0)
    polynomial = torch.full_like(z, series[-1])
    for coefficient in reversed(series[:-1]):
        polynomial = polynomial * small + coefficient
    return torch.where(near, polynomial, value / torch.where(near, 1.0, z))


def _nonzero(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return where ``z`` is zero, and ``z`` with 1 in its place there."""
    zero = z == 0
    return zero, torch.where(zero, 1.0, z)


def gelu(z: Tensor, approximate: str = "none") -> Tensor:
    """``Phi(z)``, the distribution function of the normal distribution (or its approximation by tanh)."""
    if approximate == "tanh":
        return torch.sigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z**3))  # (1 + tanh u) / 2 = sigmoid(2 u)
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def silu(z: Tensor, inplace: bool = False) -> Tensor:
    """``sigmoid(z)``."""
    return torch.sigmoid(z)


def mish(z: Tensor, inplace: bool = False) -> Tensor:
    """``tanh(softplus(z))``."""
    return torch.tanh(F.softplus(z))


def tanh(z: Tensor) -> Tensor:
    """``tanh(z) / z``."""
    return ratio(torch.tanh(z), z, 1.0, 0.0, -1 / 3, 0.0, 2 / 15)


def sigmoid(z: Tensor) -> Tensor:
    """``(sigmoid(z) - 1/2) / z = tanh(z / 2) / (2 z)``."""
    return ratio(torch.tanh(z / 2) / 2, z, 1 / 4, 0.0, -1 / 48, 0.0, 1 / 480)


def hardsigmoid(z: Tensor, inplace: bool = False) -> Tensor:
    """``1/6`` within ``[-3, 3]``, ``+-1 / (2 z)`` outside."""
    inside = z.abs() <= 3
    return torch.where(inside, 1 / 6, 0.5 / torch.where(inside, 3.0, z.abs()))


def hardswish(z: Tensor, inplace: bool = False) -> Tensor:
    """``relu6(z + 3) / 6``."""
    return (z / 6 + 0.5).clamp(0, 1)


def hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """The quotient of ``clamp``."""
    return clamp(z, min_val, max_val)


def relu6(z: Tensor, inplace: bool = False) -> Tensor:
    """0 below zero, 1 up to six, ``6 / z`` above."""
    return clamp(z, 0.0, 6.0)


def clamp(z: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """``(clamp(z) - clamp(0)) / z``."""
    zero, base = _nonzero(z)
    origin = torch.zeros((), dtype=z.dtype, device=z.device).clamp(min, max)
    inside = torch.ones_like(z, dtype=torch.bool)
    if min is not None:
        inside = inside & (z >= min)
    if max is not None:
        inside = inside & (z <= max)
    # Where 0 and z both pass unchanged the quotient is 1, and so is its limit at 0.
    return torch.where(inside & (origin == 0), 1.0, torch.where(zero, 0.0, (z.clamp(min, max) - origin) / base))


def clamp_min(z: Tensor, min: Any) -> Tensor:
    """``clamp`` from below."""
    return clamp(z, min=min)


def clamp_max(z: Tensor, max: Any) -> Tensor:
    """``clamp`` from above."""
    return clamp(z, max=max)


def elu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """1 above zero, ``alpha (exp(z) - 1) / z`` below."""
    return torch.where(z > 0, 1.0, alpha * expm1(z.clamp(max=0)))


def celu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """1 above zero, ``alpha (exp(z / alpha) - 1) / z`` below."""
    return torch.where(z > 0, 1.0, expm1(z.clamp(max=0) / alpha))


def selu(z: Tensor, inplace: bool = False) -> Tensor:
    """The scaled quotient of ``elu``."""
    return 1.0507009873554804934193349852946 * elu(z, 1.6732632423543772848170429916717)


def softplus(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``(softplus(z) - log(2) / beta) / z``."""
    scaled = z * beta
    small = scaled.clamp(max=threshold)
    value = torch.where(scaled > threshold, scaled - math.log(2), torch.log1p(torch.expm1(small) / 2))
    return ratio(value, scaled, 1 / 2, 1 / 8, 0.0, -1 / 192, 0.0)


def logsigmoid(z: Tensor) -> Tensor:
    """``(logsigmoid(z) + log 2) / z = (log(1 + exp(s)) - log 2) / s`` for ``s = -z``."""
    s = -z
    value = torch.log1p(torch.exp(-s.abs())) + s.clamp(min=0) - math.log(2)
    small = torch.log1p(torch.expm1(s.clamp(max=1)) / 2)
    return ratio(torch.where(s < 1, small, value), s, 1 / 2, 1 / 8, 0.0, -1 / 192, 0.0)


def softsign(z: Tensor) -> Tensor:
    """``1 / (1 + |z|)``."""
    return 1 / (1 + z.abs())


def tanhshrink(z: Tensor) -> Tensor:
    """``1 - tanh(z) / z``."""
    return 1 - tanh(z)


def softshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    """``1 - lambda / |z|`` beyond the threshold, 0 within."""
    outside = z.abs() > lambd
    return torch.where(outside, 1 - lambd / torch.where(outside, z.abs(), 1.0), 0.0)


def hardshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    """1 beyond the threshold, 0 within."""
    return (z.abs() > lambd).to(z.dtype)


def exp(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z``."""
    return expm1(z)


def expm1(z: Tensor) -> Tensor:
    """``expm1(z) / z``."""
    return ratio(torch.expm1(z), z, 1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120)


def log1p(z: Tensor) -> Tensor:
    """``log1p(z) / z``."""
    return ratio(torch.log1p(z), z, 1.0, -1 / 2, 1 / 3, -1 / 4, 1 / 5)


def erf(z: Tensor) -> Tensor:
    """``erf(z) / z``."""
    return 2 / math.sqrt(math.pi) * ratio(torch.erf(z) * (math.sqrt(math.pi) / 2), z, 1.0, 0.0, -1 / 3, 0.0, 1 / 10)


def sin(z: Tensor) -> Tensor:
    """``sin(z) / z``."""
    return ratio(torch.sin(z), z, 1.0, 0.0, -1 / 6, 0.0, 1 / 120)


def cos(z: Tensor) -> Tensor:
    """``(cos(z) - 1) / z = -2 sin(z / 2)^2 / z``."""
    return ratio(-2 * torch.sin(z / 2).square(), z, 0.0, -1 / 2, 0.0, 1 / 24, 0.0)


def sinh(z: Tensor) -> Tensor:
    """``sinh(z) / z``."""
    return ratio(torch.sinh(z), z, 1.0, 0.0, 1 / 6, 0.0, 1 / 120)


def atan(z: Tensor) -> Tensor:
    """``atan(z) / z``."""
    return ratio(torch.atan(z), z, 1.0, 0.0, -1 / 3, 0.0, 1 / 5)


def square(z: Tensor) -> Tensor:
    """``z``."""
    return z


def sqrt(z: Tensor) -> Tensor:
    """``1 / sqrt(z)``, 0 at 0."""
    return power(z, 0.5)


def power(z: Tensor, exponent: float) -> Tensor:
    """``z^(p - 1)`` for ``p > 0``."""
    if float(exponent).is_integer():
        return z ** (exponent - 1)
    zero, base = _nonzero(z)  # the slope at zero may be infinite
    return torch.where(zero, 0.0, base ** (exponent - 1))


# Handlers --------------------------------------------------------------------------------------


def elementwise(quotient: Callable[..., Tensor], here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run an elementwise function, explained by the rule from its quotient."""
    call = here.call
    out: Tensor = here.func(input, *args, **kwargs)
    if call.selector is None:
        return out
    z = input if call.create_graph else input.detach()
    value = out if call.create_graph else out.detach()
    with torch.set_grad_enabled(call.create_graph):
        zeros, offset = call.handles_zeros(input), False
        if zeros and _at_zero(here, input, args, kwargs) == 0.0:
            q = safe(value) / safe(z)
        else:
            q = quotient(z, *args, **kwargs)
            offset = zeros
    found = call.switch(out, here.rule.surrogate(call, input, out, q))
    return apply(Spare, call, found, out.detach() == 0) if offset else found


def _at_zero(here: Here, input: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return ``f(0)``."""
    with torch.no_grad():
        return float(here.func(torch.zeros(1, dtype=input.dtype, device=input.device), *args, **kwargs))


def piecewise(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A function linear on each side of zero: plain autograd is the Pass rule, but at units of zero."""
    call = here.call
    if here.rule is not None and not here.rule.exact_by_autograd:
        return elementwise(_by_division(here), here, input, *args, **kwargs)
    here.by_autograd()
    out: Tensor = here.func(input, *args, **kwargs)
    if call.handles_zeros(input):
        out = call.switch(out, input * call.constant(safe(out) / safe(input)))
    return out


def _by_division(here: Here) -> Callable[..., Tensor]:
    """Return the quotient of a function with ``f(0) = 0``; 0 at 0."""

    def quotient(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        zero, base = _nonzero(z)
        return torch.where(zero, 0.0, here.func(z, *args, **kwargs) / base)

    return quotient


def threshold(here: Here, input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """``threshold``: what replaces the input absorbs like a bias."""
    here.by_autograd()
    out: Tensor = here.func(input, threshold, value)
    replaced = (input <= threshold).to(out.dtype)
    here.declared = lambda c, _: {"bias": c * value * replaced}
    return out


def relu(here: Here, input: Tensor, inplace: bool = False) -> Tensor:
    """ReLU: linear on each side of zero, and its output is known to be non-negative."""
    call = here.call
    out = piecewise(here, input, inplace) if inplace else piecewise(here, input)
    call.origins.note(out, Origin(nonnegative=True, factors=call.origins.of(input).factors))
    return out


def gate(quotient: Callable[..., Tensor], here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A sigmoid, which may come to act as a gate."""
    out = elementwise(quotient, here, input, *args, **kwargs)
    here.call.origins.note(out, Origin(nonnegative=True, gate=True))
    return out


def hard_gate(here: Here, input: Tensor, inplace: bool = False) -> Tensor:
    """``hardsigmoid``, whose own derivative in PyTorch holds 1/6 in single precision and has no derivative itself."""
    if here.call.create_graph:
        here.func = _hardsigmoid
    return gate(hardsigmoid, here, input)


def _hardsigmoid(z: Tensor) -> Tensor:
    return (z + 3).clamp(0, 6) / 6


def raise_to(here: Here, input: Any, exponent: Any) -> Tensor:
    """``x^p``: explained by its quotient for a positive number ``p``; a negative one divides."""
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and not here.active(exponent):
        exponent = exponent.item()
    if not isinstance(exponent, (int, float)):
        here.call.name_uncovered("pow", "has an exponent that is no number; plain autograd carries its relevance.")
        here.by_autograd()
        return here.func(input, exponent)  # type: ignore[no-any-return]
    if exponent <= 0:
        return inverse(here, input, exponent)
    return elementwise(power, here, input, exponent)
