"""Handlers of division with remainder, which is constant between its steps.

Like every elementwise function they follow the Pass rule, whatever their slope: ``R_in = R_out``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.propagation import products
from relprop.propagation.activations import divided
from relprop.propagation.handler import Here


def divide(here: Here, input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """``/``, rounded or not."""
    if rounding_mode is None:
        return products.divide(here, input, other)
    func = here.func
    here.func = lambda x, y: func(x, y, rounding_mode=rounding_mode)
    return floor_divide(here, input, other)


def floor_divide(here: Here, input: Any, other: Any) -> Tensor:
    """``input // other``: what divides is a constant, and what is divided hands its relevance on."""
    if here.active(other):
        other = products.denominator(here, other)
    if not here.active(input):
        here.absorbs_nothing()
        return here.func(input, other)  # type: ignore[no-any-return]
    here.kind = "activation"
    here.choose()
    func = here.func
    here.func = lambda x: func(x.detach(), other)  # which PyTorch does not differentiate: its derivative is zero
    here.absorbs_nothing()
    return divided(here, input)


def reversed_floor_divide(here: Here, other: Tensor, input: Any) -> Tensor:
    """``input // other`` where only ``other`` is a tensor (``Tensor.__rfloordiv__``)."""
    func = here.func
    here.func = lambda x, y: func(y, x)
    return floor_divide(here, input, other)


def remainder(here: Here, input: Any, other: Any) -> Tensor:
    """``fmod`` and ``remainder``: Pass for a constant divisor; else ``x - n y`` with a constant integer ``n``."""
    if not here.active(other):
        return divided(here, input, other)
    here.by_autograd()
    out: Tensor = here.func(input, other)
    if not here.active(input):
        here.absorbs(input * out.new_ones(()))
    return out


def reversed_remainder(here: Here, other: Tensor, input: Any) -> Tensor:
    """``input % other`` where only ``other`` is a tensor (``Tensor.__rmod__``)."""
    here.func = torch.remainder
    return remainder(here, torch.as_tensor(input, dtype=other.dtype, device=other.device), other)


def heaviside(here: Here, input: Any, values: Any) -> Tensor:
    """``heaviside``."""
    if here.active(values):
        here.uncovered("depends on the input by its value at zero")
        return here.func(input, values)  # type: ignore[no-any-return]
    func = here.func
    here.func = lambda x, at_zero: func(x.detach(), at_zero)
    return divided(here, input, values)
