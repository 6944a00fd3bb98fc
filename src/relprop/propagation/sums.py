"""Handlers of sums: linear, so autograd is right, but for sums of exactly zero.

Some rules (zB, w^2, flat) send relevance to units of zero. Where a sum is exactly zero the coefficient
``R / tau`` would reach every term whole; there the terms share it equally instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.handler import Here
from relprop.propagation.numerics import TAU, safe
from relprop.propagation.products import scaled
from relprop.propagation.provenance import Origin


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


def _signed_sum(here: Here, first: Any, second: Any, alpha: float) -> Tensor:
    call = here.call
    here.by_autograd()
    out = torch.add(first if isinstance(first, Tensor) else torch.as_tensor(first), second, alpha=alpha)
    terms = [x for x in (first, second) if here.active(x)]
    origins = [call.origins.of(x) for x in terms]
    nonnegative = alpha >= 0 and len(terms) == 2 and all(origin.nonnegative for origin in origins)
    complement = alpha == -1 and isinstance(first, (int, float)) and first == 1 and origins[0].gate  # 1 - gate
    if all(call.handles_zeros(x) for x in terms):
        surrogate = sum(_term(here, x, out, 1.0 if x is first else alpha, len(terms)) for x in terms)
        assert isinstance(surrogate, Tensor)
        out = call.switch(out, surrogate)
    call.origins.note(out, Origin(nonnegative=nonnegative, gate=complement))
    return out


def _term(here: Here, x: Tensor, out: Tensor, factor: float, terms: int) -> Tensor:
    """Return ``factor x``, explained so that at ``out = 0`` it receives the relevance over ``terms``."""
    equal = TAU / terms / safe(x)
    return x * here.call.constant(torch.where(out == 0, equal, torch.full_like(out, factor)))


def total(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``sum`` and ``cumsum``: at zero, every term receives its equal part."""
    call = here.call
    here.by_autograd()
    out: Tensor = here.func(input, *args, **kwargs)
    if call.handles_zeros(input):
        terms = here.func(torch.ones_like(input), *args, **kwargs)
        even = here.func(input * call.constant(TAU / safe(input)), *args, **kwargs) / terms
        out = call.switch(out, torch.where(out.detach() == 0, even, out))
    call.origins.note(out, Origin(nonnegative=call.origins.of(input).nonnegative))
    return out


def average(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``mean`` and adaptive average pooling: at zero, every term receives its equal part."""
    return averaged(here, input, here.func(input, *args, **kwargs), lambda x: here.func(x, *args, **kwargs))


def averaged(here: Here, input: Tensor, out: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``out``, a mean up to a factor, explained so that the terms of a zero share equally."""
    call = here.call
    here.by_autograd()
    if call.handles_zeros(input):
        even = mean(input * call.constant(TAU / safe(input)))
        out = call.switch(out, torch.where(out.detach() == 0, even, out))
    call.origins.note(out, Origin(nonnegative=call.origins.of(input).nonnegative))
    return out


def mixed(here: Here, *args: Any, **kwargs: Any) -> Tensor:
    """A product with a constant matrix: where all that it mixes is zero, nothing can be shared."""
    here.by_autograd()
    out: Tensor = here.func(*args, **kwargs)
    if here.call.handles_zeros(out):
        out = here.call.scale(out, (out.detach() != 0).to(out.dtype))
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
        call.origins.note(out, Origin(nonnegative=nonnegative))
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
