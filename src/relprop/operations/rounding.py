"""Handlers of division with remainder, which is constant between its steps.

Like every elementwise function they follow the Pass rule, whatever their slope: ``R_in = R_out``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.operations import products
from relprop.operations.activations import Function, divided
from relprop.operations.rows import Rows, activation, by_entry_of_ids, weighted
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import divided_by, keeps_nothing
from relprop.propagation.facts.operation import Difference, Handler, Holds, Image, Kind


def divide(here: Here, input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """``/``, rounded or not."""
    if rounding_mode is None:
        return products.divide(here, input, other)
    return _floor_divide(lambda x, y: here.func(x, y, rounding_mode=rounding_mode), here, input, other)


def floor_divide(here: Here, input: Any, other: Any) -> Tensor:
    """``input // other``: what divides is a constant, and what is divided hands its relevance on."""
    return _floor_divide(here.func, here, input, other)


def reversed_floor_divide(here: Here, other: Tensor, input: Any) -> Tensor:
    """``input // other`` where only ``other`` is a tensor (``Tensor.__rfloordiv__``)."""
    return _floor_divide(lambda x, y: here.func(y, x), here, input, other)


def _floor_divide(func: Function, here: Here, input: Any, other: Any) -> Tensor:
    if here.active(other):
        other = products.denominator(here, other)
    if not here.active(input):
        here.absorbs_nothing()
        return func(input, other)  # type: ignore[no-any-return]
    here.kind = Kind.ACTIVATION
    here.choose()
    here.absorbs_nothing()
    # Detached, since PyTorch does not differentiate it: its derivative is zero.
    return divided(lambda x: func(x.detach(), other), here, input)


def remainder(here: Here, input: Any, other: Any) -> Tensor:
    """``fmod`` and ``remainder``: Pass for a constant divisor; else ``x - n y`` with a constant integer ``n``."""
    return _remainder(here.func, here, input, other)


def reversed_remainder(here: Here, other: Tensor, input: Any) -> Tensor:
    """``input % other`` where only ``other`` is a tensor (``Tensor.__rmod__``)."""
    return _remainder(torch.remainder, here, torch.as_tensor(input, dtype=other.dtype, device=other.device), other)


def _remainder(func: Function, here: Here, input: Any, other: Any) -> Tensor:
    if not here.active(other):
        return divided(func, here, input, other)
    here.by_autograd()
    out: Tensor = func(input, other)
    if not here.active(input):
        here.absorbs(input * out.new_ones(()))
    return out


def heaviside(here: Here, input: Any, values: Any) -> Tensor:
    """``heaviside``."""
    func = here.func
    if here.active(values):
        here.uncovered("depends on the input by its value at zero")
        return func(input, values)  # type: ignore[no-any-return]
    return divided(lambda x, at_zero: func(x.detach(), at_zero), here, input, values)


# The rows ----------------------------------------------------------------------------------------


def _quotient(name: str, *, handler: Handler, difference: Difference, label: str | None = None) -> Rows:
    return by_entry_of_ids(
        weighted(
            name,
            kind=Kind.PRODUCT,
            handler=handler,
            keeps=keeps_nothing,
            difference=difference,
            image=Image.NOTHING,
            holds=Holds.NOTHING,
            updates=None,
            label=label,
        )
    )


def _steps(*names: str, handler: Handler, difference: Difference, label: str | None = None) -> Rows:
    return activation(
        *names,
        handler=handler,
        keeps=keeps_nothing,
        difference=difference,
        rectifies=None,
        image=Image.NOTHING,
        label=label,
    )


ROWS: Rows = [
    *products.divider(
        "div",
        "divide",
        "true_divide",
        "__truediv__",
        handler=divide,
        keeps=divided_by,
        difference=Difference.DIVIDE,
    ),
    *products.divider("__div__", handler=divide, keeps=divided_by, difference=Difference.UNCOVERED),
    *_steps("heaviside", handler=heaviside, difference=Difference.STEPPED),
    *_steps("fmod", handler=remainder, difference=Difference.KINKED),
    *_steps("remainder", "__mod__", label="remainder", handler=remainder, difference=Difference.KINKED),
    *_steps("__rmod__", label="remainder", handler=reversed_remainder, difference=Difference.UNCOVERED),
    *_quotient("floor_divide", handler=floor_divide, difference=Difference.STEPPED),
    *_quotient("__floordiv__", label="floor_divide", handler=floor_divide, difference=Difference.STEPPED),
    *_quotient("__rfloordiv__", label="floor_divide", handler=reversed_floor_divide, difference=Difference.UNCOVERED),
]
