"""Handlers of DeepLIFT: linear maps, and for RevealCancel the sizes of the terms that they add up.

A linear map needs no rule: autograd is right. RevealCancel asks for more: how much of ``z - z'`` is the sum of its
positive terms, how much that of its negative ones. With the spread ``s = sum_i |w_i (x_i - x'_i)|`` these are
``(z - z' + s) / 2`` and ``(z - z' - s) / 2``, and as functions of the input their derivatives are ``w_i`` for terms of
that sign, ``0`` for those of the other, and ``w_i / 2`` where ``x_i = x'_i``. So the spread is all that a linear map
must remember. What is linear behind it carries the spread along: sums, batch norm, constant factors, means, reshaping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.attribution.deep_lift import secants
from relprop.attribution.deep_lift.handlers import actives, call_of, halfway, product, quotient, steered
from relprop.attribution.deep_lift.layers import statistics_of_batch
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.relus import rectified
from relprop.propagation.facts.origins import Origin
from relprop.propagation.math.numerics import per_channel
from relprop.trees import map_tensors, tensors_in


def note_spread(
    here: Here, out: Tensor, terms: list[Tensor], combine: Callable[..., Tensor], restart: bool = False
) -> Tensor:
    """Return an output, and remember the sizes of its terms, made from those of the terms of its arguments.

    Args:
        terms: the active arguments.
        combine: from their spreads to that of the output.
        restart: an argument counts as one term, whatever it was added up from itself.
    """
    call = call_of(here)
    if not call.reveal or any(x.is_complex() for x in (out, *terms)):
        return out
    known = [None if restart else call.spread(x) for x in terms]
    fresh = [x for x, spread in zip(terms, known, strict=True) if spread is None]
    others = call.others(here, *fresh) if fresh else ()
    if call.reference is None or others is None:
        call.note_spread(out, None)
        return out
    left = iter(zip(fresh, others, strict=True))
    spreads = [secants.size_of(call, *next(left)) if spread is None else spread for spread in known]
    call.note_spread(out, combine(*spreads))
    return out


# Layers ------------------------------------------------------------------------------------------


def layer(here: Here, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """A linear or a convolutional layer."""
    if bias is not None and here.active(bias):
        out = layer(here, input, weight, None, *args, **kwargs)
        return out + bias.reshape(-1, *(1,) * (weight.dim() - 2))
    if here.active(weight):
        return product(here, input, weight, bias, *args, **kwargs)  # type: ignore[no-any-return]
    out = here.func(input, weight, bias, *args, **kwargs)
    return note_spread(
        here, out, [input], lambda size: here.func(size, weight.abs(), None, *args, **kwargs), restart=True
    )


def matmul(here: Here, input: Tensor, *factor: Tensor, **named: Tensor) -> Tensor:
    """A matrix product, of two active factors or of one with a constant."""
    (other,) = (*factor, *named.values())
    first, second = here.active(input), here.active(other)
    if first and second:
        return halfway(here, input, other)  # type: ignore[no-any-return]
    out: Tensor = here.func(input, other)
    if first:
        return note_spread(here, out, [input], lambda size: here.func(size, _size(other)), restart=True)
    return note_spread(here, out, [other], lambda size: here.func(_size(input), size), restart=True)


def addmm(here: Here, input: Tensor, *factors: Tensor, beta: Any = 1, alpha: Any = 1, **named: Tensor) -> Tensor:
    """``addmm``, ``addmv`` and ``baddbmm``: a matrix product and a term that is added."""
    left, right = (*factors, *named.values())
    native, here.func = here.func, torch.matmul
    if not (here.active(left) or here.active(right)):
        return native(input, left, right, beta=beta, alpha=alpha)  # type: ignore[no-any-return]
    z = matmul(here, left, right)
    if not here.active(input):
        out = alpha * z + beta * input
        return note_spread(here, out, [z], lambda size: size * abs(alpha))
    return note_spread(
        here,
        alpha * z + beta * input,
        [z, input],
        lambda product, term: product * abs(alpha) + (term * abs(beta)).expand_as(product),
    )


def batch_norm(
    here: Here,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``: by running statistics a constant factor for every channel."""

    def native() -> Tensor:
        out: Tensor = here.func(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return out

    if training or running_mean is None or running_var is None:
        return statistics_of_batch(here, input, weight, bias, eps, native)
    factor = torch.rsqrt(running_var + eps) * (1.0 if weight is None else weight.abs())
    return note_spread(here, native(), [input], lambda size: size * per_channel(factor, input))


def torch_batch_norm(
    here: Here,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """``torch.batch_norm``, which takes the same tensors in another order."""

    def reordered(
        x: Tensor, mean: Any, var: Any, gamma: Any, beta: Any, train: bool, rate: float, epsilon: float
    ) -> Tensor:
        return torch.batch_norm(x, gamma, beta, mean, var, train, rate, epsilon, cudnn_enabled)

    here.func = reordered
    return batch_norm(here, input, running_mean, running_var, weight, bias, training, momentum, eps)


# What is linear behind them ----------------------------------------------------------------------


def add(here: Here, input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """``input + alpha other``, ``input - alpha other``: the sizes of the terms add up, whatever the sign."""
    return _added(here, input, other, alpha, (1, abs(alpha)))


def reversed_subtract(here: Here, input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """``other - alpha input``."""
    return _added(here, input, other, alpha, (abs(alpha), 1))


def _added(here: Here, input: Any, other: Any, alpha: Any, weights: tuple[Any, Any]) -> Tensor:
    out: Tensor = here.func(input, other, alpha=alpha) if alpha != 1 else here.func(input, other)
    factors = [(x, weight) for x, weight in zip((input, other), weights, strict=True) if here.active(x)]

    def combine(*sizes: Tensor) -> Tensor:
        total = sum(size * factor for size, (_, factor) in zip(sizes, factors, strict=True))
        assert isinstance(total, Tensor)
        return total.expand_as(out)

    return note_spread(here, out, [x for x, _ in factors], combine)


def negate(here: Here, input: Tensor) -> Tensor:
    """``-x``."""
    return note_spread(here, here.func(input), [input], lambda size: size)


def multiply(here: Here, input: Any, other: Any) -> Tensor:
    """``a b``: a product, or a constant factor."""
    if here.active(input) and here.active(other):
        return halfway(here, input, other)  # type: ignore[no-any-return]
    x, factor = (input, other) if here.active(input) else (other, input)
    out: Tensor = steered(here, input, other)
    if rectified(here, (input, other), {}) is not None:  # whose terms count no more
        return out
    return note_spread(here, out, [x], lambda size: size * _size(factor))


def _size(factor: Any) -> Any:
    """Return the absolute value of a constant; a mask of bools is its own."""
    return factor if isinstance(factor, Tensor) and factor.dtype == torch.bool else abs(factor)


def divide(here: Here, input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """``a / b``: a quotient, or a constant factor."""
    out = quotient(here, input, other, rounding_mode=rounding_mode)
    if rounding_mode is not None or here.active(other):
        return out
    return note_spread(here, out, [input], lambda size: size / _size(other))


def nonnegative(here: Here, *args: Any, **kwargs: Any) -> Any:
    """Sums and means, whose weights are not negative: what they do to the terms they do to their sizes."""
    out = here.func(*args, **kwargs)
    terms = actives(here, args, kwargs)
    if not isinstance(out, Tensor) or not call_of(here).reveal:
        return out

    def combine(*sizes: Tensor) -> Tensor:
        swapped = _swapped(terms, sizes, (args, kwargs))
        found: Tensor = here.func(*swapped[0], **swapped[1])
        return found

    return note_spread(here, out, terms, combine)


def view(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler of what moves values: each keeps its terms."""

    def moved(here: Here, *args: Any, **kwargs: Any) -> Any:
        out = handler(here, *args, **kwargs)
        call, terms = call_of(here), actives(here, args, kwargs)
        if not call.reveal:
            return out
        iterated = here.operation == "__iter__"
        made = list(out) if iterated else tensors_in(out)
        spreads = [call.spread(x) for x in terms]
        for part in made:
            call.known.origins.note(part, Origin())
        if all(spread is not None for spread in spreads):
            found: list[Any] = [None] * len(made)
            if call.reference is not None:
                swapped = _swapped(terms, spreads, (args, kwargs))
                sizes = here.func(*swapped[0], **swapped[1])
                found = list(sizes) if iterated else tensors_in(sizes)
            for part, spread in zip(made, found, strict=True):
                call.note_spread(part, spread)
        return iter(made) if iterated else out

    return moved


def _swapped(terms: Sequence[Tensor], values: Sequence[Any], given: Any) -> Any:
    """Return arguments with values in the place of the active ones."""
    found = dict(zip(map(id, terms), values, strict=True))
    return map_tensors(lambda x: found.get(id(x), x), given)
