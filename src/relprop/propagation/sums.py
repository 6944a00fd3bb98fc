"""Handlers of sums: linear, so autograd is right, but for sums of exactly zero.

Some rules (zB, w^2, flat) send relevance to units of zero. Where a sum is exactly zero the coefficient
``R / tau`` would reach every term whole; there the terms share it equally instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.handler import Here
from relprop.propagation.numerics import TAU, safe
from relprop.propagation.products import scaled
from relprop.propagation.provenance import Origin
from relprop.propagation.storage import map_tensors, tensors_in


def add(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input + alpha other``."""
    return _signed_sum(here, input, other, alpha)


def sub(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input - alpha other``."""
    return _signed_sum(here, input, other, -alpha)


def rsub(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``other - alpha input``."""
    return _signed_sum(here, other, input, -alpha)


def neg(here: Here, input: Tensor) -> Tensor:
    """``-input``."""
    return scaled(here, input, -1.0, here.func(input))


def factor(here: Here, input: Tensor) -> Tensor:
    """A constant multiple (``deg2rad``, ``rad2deg``)."""
    return scaled(here, input, 1.0, here.func(input))


def _signed_sum(here: Here, first: Any, second: Any, alpha: float) -> Tensor:
    here.by_autograd()
    plain = torch.add(first if isinstance(first, Tensor) else torch.as_tensor(first), second, alpha=alpha)
    out = combined(here, plain, [(first, 1.0), (second, alpha)])
    origins = here.call.origins
    if alpha == -1 and isinstance(first, (int, float)) and first == 1 and origins.of(second).gate:  # 1 - gate
        origins.note(out, replace(origins.of(out), gate=True))
    return out


def combined(here: Here, out: Tensor, terms: Sequence[tuple[Any, float]]) -> Tensor:
    """Return ``out``, the sum of terms times factors, explained so that at zero the active ones share equally."""
    call = here.call
    active = [(x, factor) for x, factor in terms if here.active(x)]
    origins = [call.origins.of(x) for x, _ in active]
    counts = {origin.factors for origin in origins}  # terms that are products of as many factors stay such
    nonnegative = len(active) == len(terms) and all(
        origin.nonnegative and factor >= 0 for origin, (_, factor) in zip(origins, active, strict=True)
    )
    if not out.is_complex() and all(call.handles_zeros(x) for x, _ in active):
        surrogate = sum(_term(here, x, out, factor, len(active)) for x, factor in active)
        assert isinstance(surrogate, Tensor)
        out = call.switch(out, surrogate)
    call.origins.note(out, Origin(nonnegative=nonnegative, factors=counts.pop() if len(counts) == 1 else 1))
    return out


def _term(here: Here, x: Tensor, out: Tensor, factor: float, terms: int) -> Tensor:
    """Return ``factor x``, explained so that at ``out = 0`` it receives the relevance over ``terms``."""
    equal = TAU / terms / safe(x)
    return x * here.call.constant(torch.where(out == 0, equal, torch.full_like(out, factor)))


def total(here: Here, *args: Any, **kwargs: Any) -> Tensor:
    """Sums and means (``sum``, ``cumsum``, ``index_add``, average pooling): at zero, terms receive equal parts."""
    return averaged(here, here.func(*args, **kwargs), here.func, *args, **kwargs)


def averaged(here: Here, out: Tensor, mean: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Return ``out``, a sum of terms that count alike, explained so that the terms of a zero share equally.

    Where ``mean(x) = n sum(x_i)`` for some number ``n``, a term receives ``mean(tau) / mean(1) = tau / terms``.
    """
    call = here.call
    here.by_autograd()
    terms = [x for x in tensors_in((args, kwargs)) if here.active(x)]
    out = evenly(here, out, mean, args, kwargs)
    origins = [call.origins.of(x) for x in terms]
    counts = {origin.factors for origin in origins}
    constants = [x for x in tensors_in((args, kwargs)) if x.is_floating_point() and not here.active(x)]
    nonnegative = not constants and all(origin.nonnegative for origin in origins)
    call.origins.note(out, Origin(nonnegative=nonnegative, factors=counts.pop() if len(counts) == 1 else 1))
    return out


def evenly(
    here: Here, out: Tensor, mean: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Return ``out = mean(...)``, explained so that the terms of a zero share equally."""
    call = here.call
    if out.is_complex() or not all(call.handles_zeros(x) for x in tensors_in((args, kwargs)) if here.active(x)):
        return out
    even = _evenly(here, mean, args, kwargs)
    return call.switch(out, torch.where((out.detach() == 0) & even.isfinite(), even, out))


def _evenly(here: Here, mean: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the sums of ``tau`` over the number of terms; not finite where no term depends on the input."""

    def tiny(x: Tensor) -> Tensor:
        if here.active(x):
            return x * here.call.constant(TAU / safe(x))
        return torch.zeros_like(x) if x.is_floating_point() else x

    def one(x: Tensor) -> Tensor:
        if here.active(x):
            return torch.where(x.isnan(), x, 1.0).detach()
        return torch.zeros_like(x) if x.is_floating_point() else x

    (small, more), (ones, others) = map_tensors(tiny, (args, kwargs)), map_tensors(one, (args, kwargs))
    number = mean(*ones, **others)
    empty = number == 0
    return torch.where(empty, torch.inf, mean(*small, **more) / torch.where(empty, 1.0, number))


def mixed(here: Here, x: Tensor, out: Tensor) -> Tensor:
    """Return ``out``, a product of ``x`` with constants: where all that it mixes is zero, nothing can be shared."""
    call = here.call
    here.by_autograd()
    if call.handles_zeros(out) and not out.is_complex():
        out = call.scale(out, (out.detach() != 0).to(out.dtype))
    call.origins.note(out, Origin(factors=call.origins.of(x).factors))
    return out


def extremum(here: Here, input: Tensor, other: Tensor) -> Tensor:
    """``maximum`` and ``minimum``: the winner takes all; a constant that wins absorbs like a bias."""
    here.by_autograd()
    out: Tensor = here.func(input, other)
    if here.active(input) and here.active(other):
        return out
    x, constant = (input, other) if here.active(input) else (other, input)
    won = torch.where(x == constant, 0.5, (x != out).to(out.dtype)).detach()
    here.declared = lambda c, value: {"bias": c * value * won}
    return out


def keep_sign(here: Here, *args: Any, **kwargs: Any) -> Any:
    """Pooling, upsampling and concatenation: what is non-negative stays so."""
    call = here.call
    here.by_autograd()
    out = here.func(*args, **kwargs)
    if isinstance(out, Tensor):
        first = args[0] if args else next(iter(kwargs.values()))
        parts = list(first) if isinstance(first, (list, tuple)) else [first]
        nonnegative = all(isinstance(part, Tensor) and call.origins.of(part).nonnegative for part in parts)
        counts = {call.origins.of(part).factors for part in parts if here.active(part)}
        call.origins.note(out, Origin(nonnegative=nonnegative, factors=counts.pop() if len(counts) == 1 else 1))
    return out


def keep_origin(here: Here, *args: Any, **kwargs: Any) -> Any:
    """Views and copies: the values are those of the input."""
    call = here.call
    here.by_autograd()
    out = here.func(*args, **kwargs)
    source = args[0] if args else next(iter(kwargs.values()))
    if isinstance(source, Tensor) and not source.requires_grad and isinstance(out, Tensor):
        for tokens in call.tokens:
            if tokens.holds(source) and out.shape == source.shape and not out.is_floating_point():
                tokens.names.append(out)
    elif isinstance(source, Tensor):
        origin = call.origins.of(source)
        for part in [out] if isinstance(out, Tensor) else out if isinstance(out, (tuple, list)) else []:
            if isinstance(part, Tensor) and part is not source:
                call.origins.note(part, replace(origin, site=None))
    return out


def parts(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``chunk``, ``split``, ``unbind``, iteration: every part a view of its own, so that a model may write into it."""
    call = here.call
    here.by_autograd()
    with torch.no_grad():
        found = list(here.func(input, *args, **kwargs))
    origin = replace(call.origins.of(input), site=None)
    views = []
    for part in found:
        view = input.as_strided(part.size(), part.stride(), part.storage_offset())
        call.origins.note(view, origin)
        views.append(view)
    return iter(views) if here.operation == "__iter__" else tuple(views)
