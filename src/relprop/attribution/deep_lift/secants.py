"""The multipliers of DeepLIFT: functions whose differences are those of the function itself, exactly.

A multiplier ``m`` of ``y = f(x)`` against a reference ``x'`` gives ``f(x) - f(x') = m (x - x')``. Two of them serve
everything: the secant ``(f(x) - f(x')) / (x - x')`` of an elementwise function, and the derivative halfway between
``x`` and ``x'``, which is exact for polynomials of second degree in all their arguments together: for a product it
is ``dx (y + y') / 2 + dy (x + x') / 2``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from relprop.propagation.call.call import Call

Function = Callable[[Tensor], Tensor]
Slope = Callable[[Function, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From ``f``, ``x``, ``x'``, ``f(x)`` and ``f(x')`` to the multiplier."""


@dataclass(frozen=True)
class Pair:
    """A value, whose graph is its explanation, and what it is for the reference."""

    value: Tensor
    other: Tensor


def linear(call: Call, function: Callable[..., Tensor], *pairs: Pair) -> Pair:
    """Return a linear function of some values: autograd is right."""
    value = function(*(pair.value for pair in pairs))
    with torch.set_grad_enabled(call.options.create_graph):
        return Pair(value, function(*(pair.other for pair in pairs)))


def quadratic(call: Call, function: Callable[..., Tensor], *pairs: Pair) -> Pair:
    """Return a polynomial of second degree, such as a product, explained by its derivative halfway."""
    with torch.set_grad_enabled(call.options.create_graph):
        value = function(*(pair.value for pair in pairs))
        other = function(*(pair.other for pair in pairs))
    halfway = function(*(midpoint(call, pair.value, pair.other) for pair in pairs))
    return Pair(call.switch(value, halfway), other)


def elementwise(call: Call, function: Function, pair: Pair, slope: Slope) -> Pair:
    """Return an elementwise function, explained by its secant."""
    with torch.set_grad_enabled(call.options.create_graph):
        value, other = function(pair.value), function(pair.other)
        factor = slope(function, pair.value, pair.other, value, other)
    return Pair(call.switch(value, pair.value * call.constant(factor)), other)


def midpoint(call: Call, x: Tensor, other: Tensor) -> Tensor:
    """Return the point halfway, as a function of ``x`` with the derivative 1."""
    return at(call, x, (x + other) / 2)


def at(call: Call, x: Tensor, point: Tensor) -> Tensor:
    """Return another point, as a function of ``x`` with the derivative 1."""
    return call.switch(point, x)


# Slopes of secants -------------------------------------------------------------------------------


def divided(
    near: Callable[[Tensor, Tensor], Tensor], limit: Callable[[Function, Tensor, Tensor], Tensor] | None = None
) -> Slope:
    """Return the slope ``(f(x) - f(x')) / (x - x')``; nearer than ``near``, ``limit``: the derivative halfway."""

    def slope(function: Function, x: Tensor, other: Tensor, y: Tensor, y_other: Tensor) -> Tensor:
        difference = torch.where(x == other, 0.0, x - other)  # infinities may be equal too
        close = difference.abs() <= near(x, other)
        there = (limit or halfway)(function, x, other)
        return torch.where(close, there, torch.where(close, 0.0, y - y_other) / torch.where(close, 1.0, difference))

    return slope


def halfway(function: Function, x: Tensor, other: Tensor) -> Tensor:
    """Return the derivative halfway between two points."""
    return derivative(function, torch.where(x == other, x, (x + other) / 2))


_NODES = ((-(0.6**0.5), 5 / 18), (0.0, 8 / 18), (0.6**0.5, 5 / 18))


def mean_derivative(function: Function, x: Tensor, other: Tensor) -> Tensor:
    """Return the mean of the derivative between two points, by the three nodes of Gauss and Legendre."""
    middle = torch.where(x == other, x, (x + other) / 2)
    half = torch.where(x == other, 0.0, (x - other) / 2)
    return torch.stack([weight * derivative(function, middle + node * half) for node, weight in _NODES]).sum(0)


def derivative(function: Function, point: Tensor) -> Tensor:
    """Return the derivative of an elementwise function, 0 where it is infinite."""
    connected = torch.is_grad_enabled() and point.requires_grad
    with torch.enable_grad():
        x = point if connected else point.detach().requires_grad_()
        (found,) = torch.autograd.grad(function(x).sum(), x, create_graph=connected)
    return torch.where(torch.isfinite(found), found, 0.0)


def rounding(x: Tensor, other: Tensor) -> Tensor:
    """Return the distance at which a difference is nothing but rounding: for functions with kinks or poles."""
    return torch.maximum(x.abs(), other.abs()) * (8 * torch.finfo(x.dtype).eps)


def curvature(x: Tensor, other: Tensor) -> Tensor:
    """Return the distance up to which the mean derivative is exact, for functions smooth everywhere.

    On a distance d three nodes miss the mean by ``f^(7) d^6 / 2e6``, 5e-13 here; beyond, rounding of the quotient is
    ten times that of ``f``.
    """
    return torch.full_like(x, 0.1)


def relative(x: Tensor, other: Tensor) -> Tensor:
    """Return the distance at which the derivative halfway is the better quotient, for functions smooth but at zero."""
    return torch.minimum(x.abs(), other.abs()) * float(torch.finfo(x.dtype).eps ** (1 / 3))


def stepped(function: Function, x: Tensor, other: Tensor, y: Tensor, y_other: Tensor) -> Tensor:
    """Return the slope of a function made of steps, flat between them: it need have no derivative in PyTorch."""
    difference = torch.where(x == other, 0.0, x - other)
    still = difference == 0
    return torch.where(still, 0.0, torch.where(still, 0.0, y - y_other) / torch.where(still, 1.0, difference))


KINKED, SMOOTH = divided(rounding), divided(curvature, mean_derivative)  # defined everywhere
POLES, SCALED = divided(rounding), divided(relative)  # not defined everywhere


def of_reciprocal(function: Function, x: Tensor, other: Tensor, y: Tensor, y_other: Tensor) -> Tensor:
    """Return ``(1/x - 1/x') / (x - x')``."""
    return -y * y_other


def of_root(function: Function, x: Tensor, other: Tensor, y: Tensor, y_other: Tensor) -> Tensor:
    """Return ``(sqrt(x) - sqrt(x')) / (x - x')``, 0 where both are 0."""
    total = y + y_other
    return torch.where(total == 0, 0.0, 1 / torch.where(total == 0, 1.0, total))


def of_inverse_root(function: Function, x: Tensor, other: Tensor, y: Tensor, y_other: Tensor) -> Tensor:
    """Return ``(1/sqrt(x) - 1/sqrt(x')) / (x - x')``."""
    return -(y * y_other).square() / (y + y_other)


def of_square(function: Function, x: Tensor, other: Tensor, y: Tensor, y_other: Tensor) -> Tensor:
    """Return ``(x^2 - x'^2) / (x - x')``."""
    return x + other


# What is made of these ---------------------------------------------------------------------------


def reciprocal(call: Call, x: Pair) -> Pair:
    """Return ``1 / x``."""
    return elementwise(call, torch.reciprocal, x, of_reciprocal)


def power(call: Call, x: Pair, exponent: float) -> Pair:
    """Return ``x^p``."""
    return elementwise(call, partial(_raised, exponent=exponent), x, of_square if exponent == 2 else SCALED)


def _raised(x: Tensor, exponent: float) -> Tensor:
    return x**exponent


def quotient(call: Call, a: Pair, b: Pair) -> Pair:
    """Return ``y = a / b``, explained as the product ``y b = a``: ``dy = (da - (y + y')/2 db) / ((b + b')/2)``.

    What divides is then no smaller than half the larger of ``b`` and ``b'``. Where their signs differ it may vanish;
    there ``y`` is the product of ``a`` and ``1 / b``.
    """
    with torch.set_grad_enabled(call.options.create_graph):
        value, other = a.value / b.value, a.other / b.other
        apart = b.value * b.other < 0
        middle = torch.where(apart, 1.0, (b.value + b.other) / 2)
        factor = torch.where(apart, (1 / b.value + 1 / b.other) / 2, 1 / middle)
        share = torch.where(apart, (a.value + a.other) / (2 * b.value * b.other), (value + other) / (2 * middle))
    return Pair(call.switch(value, a.value * call.constant(factor) - b.value * call.constant(share)), other)


def softmax(call: Call, x: Pair, dim: int) -> Pair:
    """Return ``p = exp(x - L)`` with ``L = log sum exp(x)``: of both the secants, in logarithms.

    ``dp_i = w_i (dx_i - sum_j m_j dx_j)``, with the logarithmic mean ``w_i`` of ``p_i`` and ``p_i'`` and the ``m_j`` of
    :func:`logsumexp`: all of them between 0 and 1.
    """
    with torch.set_grad_enabled(call.options.create_graph):
        value, other = x.value.softmax(dim), x.other.softmax(dim)
        mean = _log_mean(x.value.log_softmax(dim), x.other.log_softmax(dim))
        shares, _ = _shares(x, (dim,))
    scores = torch.where(torch.isfinite(x.value), x.value, 0.0)
    centered = scores - (scores * call.constant(shares)).sum(dim, keepdim=True)
    return Pair(call.switch(value, centered * call.constant(mean)), other)


def logsumexp(call: Call, x: Pair, dims: Sequence[int]) -> Pair:
    """Return ``log sum exp(x)``, with the dimensions it is taken over: ``dL = sum_j m_j dx_j``.

    ``m_j`` is the logarithmic mean of ``exp(x_j)`` and ``exp(x_j')`` over that of the two sums: between 0 and 1, and
    together at most 1.
    """
    over = tuple(dims)
    with torch.set_grad_enabled(call.options.create_graph):
        shares, (value, other) = _shares(x, over)
    scores = torch.where(torch.isfinite(x.value), x.value, 0.0)
    return Pair(call.switch(value, (scores * call.constant(shares)).sum(over, keepdim=True)), other)


def _shares(x: Pair, dims: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the multipliers of ``log sum exp``, and its values, with the dimensions it is taken over."""
    value, other = x.value.logsumexp(dims, keepdim=True), x.other.logsumexp(dims, keepdim=True)
    gone = torch.maximum(x.value, x.other).isneginf()
    most = torch.where(gone, 0.0, torch.maximum(x.value, x.other)) - torch.maximum(value, other)
    shares = most.exp() * _mean_exponential(x.value - x.other) / _mean_exponential(value - other)
    return torch.where(gone, 0.0, shares), (value, other)


def _log_mean(u: Tensor, other: Tensor) -> Tensor:
    """Return ``(exp(u) - exp(u')) / (u - u')``, 0 where both are minus infinity."""
    most = torch.maximum(u, other)
    gone = most.isneginf()
    return torch.where(gone, 0.0, torch.where(gone, 0.0, most).exp() * _mean_exponential(u - other))


def _mean_exponential(difference: Tensor) -> Tensor:
    """Return ``(1 - exp(-t)) / t`` for the size ``t`` of a difference, 1 at zero (and where infinities are equal)."""
    size = difference.abs()
    small = ~(size > 0)
    return torch.where(small, 1.0, -torch.expm1(-size) / torch.where(small, 1.0, size))


def standardized(call: Call, x: Pair, dims: Sequence[int], eps: float, centered: bool = True) -> Pair:
    """Return ``(x - mean) / sqrt(var + eps)`` over ``dims``."""
    over = tuple(dims)
    if centered:
        x = linear(call, lambda value: value - value.mean(over, keepdim=True), x)
    variance = quadratic(call, lambda value: value.square().mean(over, keepdim=True), x)
    shifted = linear(call, lambda value: value + eps, variance)
    return quotient(call, x, elementwise(call, torch.sqrt, shifted, of_root))


def norm(call: Call, x: Pair, p: float, dims: Sequence[int]) -> Pair:
    """Return ``(sum |x|^p)^(1/p)``, with the dimensions it is taken over."""
    over = tuple(dims)
    if p == 2:
        total = quadratic(call, lambda value: value.square().sum(over, keepdim=True), x)
        return elementwise(call, torch.sqrt, total, of_root)
    size = elementwise(call, torch.abs, x, KINKED)
    terms = size if p == 1 else power(call, size, p)
    total = linear(call, lambda value: value.sum(over, keepdim=True), terms)
    return total if p == 1 else power(call, total, 1 / p)


def picked(call: Call, x: Pair, index: Tensor, index_other: Tensor, largest: bool = True) -> Pair:
    """Return extreme entries of the last dimension: the whole difference goes to one entry.

    Where the extreme value moved outwards it is the entry that is extreme now, otherwise the one that was: the entry
    that accounts for the difference, since it moved at least as far itself. Its multiplier is between 0 and 1.

    Args:
        index, index_other: where the extreme entries are, and where they are in the reference.
    """
    with torch.set_grad_enabled(call.options.create_graph):
        value, other = x.value.gather(-1, index), x.other.gather(-1, index_other)
        outwards = value >= other if largest else value <= other
        chosen = torch.where(outwards, index, index_other)
        moved = x.value.gather(-1, chosen) - x.other.gather(-1, chosen)
        still = moved == 0
        factor = torch.where(still, 1.0, (value - other) / torch.where(still, 1.0, moved))
    return Pair(call.switch(value, x.value.gather(-1, chosen) * call.constant(factor)), other)


# RevealCancel ------------------------------------------------------------------------------------


def revealed(call: Call, function: Function, x: Pair, spread: Tensor, slope: Slope) -> Pair:
    """Return an elementwise function of what a linear map adds up, explained by RevealCancel.

    With ``dx+`` the sum of the positive terms of ``x - x'`` and ``dx-`` that of the negative ones,
    ``dy+ = (f(x' + dx+) - f(x')) / 2 + (f(x) - f(x' + dx-)) / 2`` and ``dy-`` likewise: each acts before the other in
    one half, after it in the other. The multipliers are ``dy+ / dx+`` for the positive terms and ``dy- / dx-`` for the
    negative ones.

    Args:
        spread: ``dx+ - dx-``, the sum of the sizes of the terms, whose graph leads to them.
    """
    with torch.set_grad_enabled(call.options.create_graph):
        z, other, size = x.value, x.other, spread
        difference = z - other
        noise = 32 * torch.finfo(z.dtype).eps * (size + z.abs() + other.abs())
        parts = ((difference + size) / 2, (difference - size) / 2)
        alone = [other + torch.where(part.abs() <= noise, 0.0, part) for part in parts]
        value, start = function(z), function(other)
        reached = [function(point) for point in alone]
        up, down = (
            (slope(function, alone[i], other, reached[i], start) + slope(function, z, alone[j], value, reached[j])) / 2
            for i, j in ((0, 1), (1, 0))
        )
    mean, contrast = call.constant((up + down) / 2), call.constant((up - down) / 2)
    return Pair(call.switch(value, x.value * mean + spread * contrast), start)


def size_of(call: Call, x: Tensor, other: Tensor) -> Tensor:
    """Return ``|x - x'|``, as a function of ``x`` with the derivative ``sign(x - x')``."""
    with torch.set_grad_enabled(call.options.create_graph):
        difference = x - other
    return at(call, x, difference) * difference.detach().sign()
