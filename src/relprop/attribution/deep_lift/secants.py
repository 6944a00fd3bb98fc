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
        difference = _change(x, other)
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
    difference = _change(x, other)
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
    """Return ``p = exp(x - L)`` with ``L = log sum exp(x)``: ``dp_i = w_i (dx_i - dL)``.

    ``w_i`` is the logarithmic mean of ``p_i`` and ``p_i'``, and ``dL`` the mean of :func:`logsumexp`.
    """
    with torch.set_grad_enabled(call.options.create_graph):
        value, other = x.value.softmax(dim), x.other.softmax(dim)
        weights = _mean_probabilities(x, (dim,))
    scores = torch.where(torch.isfinite(x.value), x.value, 0.0)
    centered = scores - _mean(call, scores, weights, (dim,))
    return Pair(call.switch(value, centered * call.constant(weights)), other)


def log_softmax(call: Call, x: Pair, dim: int) -> Pair:
    """Return ``x - L`` with the ``L`` of :func:`logsumexp`."""
    with torch.set_grad_enabled(call.options.create_graph):
        value, other = x.value.log_softmax(dim), x.other.log_softmax(dim)
        weights = _mean_probabilities(x, (dim,))
    scores = torch.where(torch.isfinite(x.value), x.value, 0.0)
    return Pair(call.switch(value, x.value - _mean(call, scores, weights, (dim,))), other)


def logsumexp(call: Call, x: Pair, dims: Sequence[int]) -> Pair:
    """Return ``L = log sum exp(x)``, with the dimensions it is taken over: ``dL = sum_j w_j dx_j / sum_j w_j``.

    ``w_j`` is the logarithmic mean of the probabilities ``p_j`` and ``p_j'``. With ``dp_j = w_j (dx_j - dL)`` and
    ``sum_j dp_j = 0`` that is exact, and a common offset of the scores passes whole, however large.
    """
    over = tuple(dims)
    with torch.set_grad_enabled(call.options.create_graph):
        value, other = x.value.logsumexp(over, keepdim=True), x.other.logsumexp(over, keepdim=True)
        weights = _mean_probabilities(x, over)
    scores = torch.where(torch.isfinite(x.value), x.value, 0.0)
    return Pair(call.switch(value, _mean(call, scores, weights, over)), other)


def _mean(call: Call, x: Tensor, weights: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the weighted mean of ``x``."""
    total = weights.sum(dims, keepdim=True)
    return (x * call.constant(weights / torch.where(total == 0, 1.0, total))).sum(dims, keepdim=True)


def _mean_probabilities(x: Pair, dims: tuple[int, ...]) -> Tensor:
    """Return the logarithmic means of the probabilities of ``x`` and of those of the reference."""
    return _log_mean(_log_probabilities(x.value, dims), _log_probabilities(x.other, dims))


def _log_probabilities(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return ``x - log sum exp(x)``, from differences to the largest score, whose rounding is not that of ``x``."""
    most = x.amax(dims, keepdim=True).detach()
    scores = x - torch.where(torch.isfinite(most), most, 0.0)
    return scores - scores.logsumexp(dims, keepdim=True)


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


def picked(call: Call, x: Pair, largest: bool = True, inside: Tensor | None = None) -> Pair:
    """Return the extreme entries of the last dimension: the whole difference goes to what accounts for it.

    Where the extreme value moved outwards that is the entry which is extreme now, otherwise the one that was: it moved
    at least as far itself, so that its multiplier is between 0 and 1. Of several it is the one that moved least, the
    more extreme in the other pass; several that are alike in both share equally.

    Args:
        inside: what takes part, to be broadcast to ``x``; all by default.
    """
    with torch.set_grad_enabled(call.options.create_graph):
        now, before = (x.value, x.other) if largest else (-x.value, -x.other)
        if inside is not None:
            now, before = now.masked_fill(~inside, -torch.inf), before.masked_fill(~inside, -torch.inf)
        most, most_before = now.amax(-1, keepdim=True), before.amax(-1, keepdim=True)
        outwards = most >= most_before
        extreme = torch.where(outwards, now, before) == torch.where(outwards, most, most_before)
        also = torch.where(outwards, before, now).masked_fill(~extreme, -torch.inf)
        nearest = also.amax(-1, keepdim=True)
        chosen = (also == nearest).logical_and_(extreme)
        moved = torch.where(outwards, _change(most, nearest), _change(nearest, most_before))
        still = moved == 0
        factor = torch.where(still, 1.0, _change(most, most_before) / torch.where(still, 1.0, moved))
        share = (factor / chosen.sum(-1, keepdim=True)).squeeze(-1)
        value, other = (out.squeeze(-1) if largest else -out.squeeze(-1) for out in (most, most_before))
    total = x.value.masked_fill(~chosen, 0.0).sum(-1)
    return Pair(call.switch(value, total * call.constant(share)), other)


def _change(x: Tensor, other: Tensor) -> Tensor:
    """Return ``x - x'``, where infinities may be equal too."""
    return torch.where(x == other, 0.0, x - other)


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
