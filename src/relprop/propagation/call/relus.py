"""What a ReLU is, whatever a model calls it by: the one notion for every method that treats ReLUs by themselves.

A ReLU of ``h`` is ``relu``, and what equals it by its other arguments: a maximum with zero, a clamp from zero on, a
threshold, a leaky slope of zero, a hard tanh from zero to infinity. It is also ``h`` times ``h > 0``, and ``where``,
``masked_fill`` and ``h[...] = 0`` by such a mask. Masks are known by where they came from: a comparison of ``h`` with
zero, negated or converted. A ReLU put together otherwise, ``(h + h.abs()) / 2``, is what it is put together from.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.call.call import Call
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.operation import Operation, Table, Truth, question
from relprop.propagation.facts.origins import Mask


def rectified(here: Here, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the tensor whose ReLU a call is; None for any other call."""
    row = here.call.operations.get(here.func)
    found = None if row is None or row.rectifies is None else row.rectifies(here, *args, **kwargs)
    return found if found is not None and here.active(found) else None


def like_output(h: Tensor, out: Tensor) -> Tensor:
    """Return what is rectified in the shape and the dtype of the ReLU, to which other arguments may have brought it."""
    return h.to(out.dtype).expand(out.shape)


def rectifiers(operations: Table) -> Iterator[tuple[Any, Operation]]:
    """Yield every function that may be a ReLU, with its row."""
    return ((function, row) for function, row in operations.items() if row.rectifies is not None)


def comparisons(operations: Table) -> Iterator[tuple[Any, Operation]]:
    """Yield every function that compares, and what runs it: a comparison with zero gives a mask."""
    for function, row in operations.items():
        if row.truth in (Truth.ABOVE, Truth.BELOW):
            yield function, question(row.name, partial(_compared, row.truth is Truth.ABOVE))


# Functions that are ReLUs by their arguments -----------------------------------------------------


def is_zero(value: Any) -> bool:
    """Say whether a number, or every entry of a tensor, is zero."""
    if isinstance(value, Tensor):
        return value.numel() > 0 and not value.is_meta and bool((value.detach() == 0).all())
    return isinstance(value, (int, float)) and value == 0


def _is_unbounded(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and not value.is_meta and bool((value.detach() == torch.inf).all())
    return value is None or value == float("inf")


def of_relu(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """``relu``."""
    return input


def of_clamp(here: Here, input: Tensor, min: Any = None, max: Any = None) -> Tensor | None:
    """``clamp`` from zero on."""
    return input if is_zero(min) and not here.active(min) and _is_unbounded(max) else None


def of_hardtanh(
    here: Here, input: Tensor, min_val: Any = -1.0, max_val: Any = 1.0, *args: Any, **kw: Any
) -> Tensor | None:
    """``hardtanh`` from zero to infinity."""
    return of_clamp(here, input, min_val, max_val)


def of_threshold(here: Here, input: Tensor, threshold: Any, value: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """``threshold`` of zero, with zero below."""
    return input if is_zero(threshold) and is_zero(value) else None


def of_leaky_relu(here: Here, input: Tensor, negative_slope: Any = 0.01, *args: Any, **kwargs: Any) -> Tensor | None:
    """``leaky_relu`` with a slope of zero."""
    return input if is_zero(negative_slope) else None


def of_prelu(here: Here, input: Tensor, weight: Tensor) -> Tensor | None:
    """``prelu`` with slopes of zero."""
    return input if is_zero(weight) and not here.active(weight) else None


def of_rrelu(
    here: Here, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *args: Any, **kwargs: Any
) -> Tensor | None:
    """``rrelu`` with slopes of zero."""
    return input if is_zero(lower) and is_zero(upper) else None


def of_elu(here: Here, input: Tensor, alpha: float = 1.0, *args: Any, **kwargs: Any) -> Tensor | None:
    """By its module or ``F.elu``, that have no other scales."""
    scaled = "scale" in kwargs or any(not isinstance(value, bool) for value in args)
    return input if is_zero(alpha) and not scaled else None


def of_maximum(here: Here, input: Tensor, other: Any = None, *args: Any, **kwargs: Any) -> Tensor | None:
    """``maximum``, ``fmax``, and ``max`` of two tensors."""
    if not isinstance(other, Tensor) or here.active(input) == here.active(other):
        return None
    h, bound = (input, other) if here.active(input) else (other, input)
    return h if is_zero(bound) else None


# Masks -------------------------------------------------------------------------------------------


def _compared(above: bool, here: Here, input: Any, other: Any) -> Any:
    """Compare; with zero, remember of what the mask is."""
    out = here.func(input, other)
    first = here.active(input)
    h, bound = (input, other) if first else (other, input)
    if isinstance(out, Tensor) and not (first and here.active(other)) and is_zero(bound):
        here.call.known.origins.note_mask(out, Mask(h, h._version, above == first))
    return out


def follow_masks(call: Call, row: Operation | None, args: tuple[Any, ...], out: Any) -> None:
    """Remember that what is made of a mask, by a conversion or a negation, is one."""
    truth = Truth.NOTHING if row is None else row.truth
    if truth not in (Truth.NEGATES, Truth.KEEPS) or not args:
        return
    if not isinstance(args[0], Tensor) or not isinstance(out, Tensor):
        return
    mask, negates = call.known.origins.mask(args[0]), truth is Truth.NEGATES
    if mask is None or out is args[0] or (negates and args[0].dtype != torch.bool):
        return
    call.known.origins.note_mask(out, Mask(mask.of, mask.version, mask.above != negates))


def _masks(here: Here, mask: Any, h: Any, above: bool) -> bool:
    """Say whether a tensor is a mask of where another is above zero, or below."""
    found = here.call.known.origins.mask(mask) if isinstance(mask, Tensor) else None
    return found is not None and found.of is h and found.above == above


def of_product(here: Here, input: Any, other: Any) -> Tensor | None:
    """``h (h > 0)``."""
    for h, mask in ((input, other), (other, input)):
        if _masks(here, mask, h, True):
            return h  # type: ignore[no-any-return]
    return None


def of_where(here: Here, *args: Any, **kwargs: Any) -> Tensor | None:
    """``torch.where(mask, then, otherwise)`` and ``then.where(mask, otherwise)``."""
    given = [*args, *(kwargs[name] for name in ("condition", "input", "self", "other") if name in kwargs)]
    masks = [x for x in given if isinstance(x, Tensor) and x.dtype == torch.bool]
    if len(given) != 3 or len(masks) != 1:
        return None
    then, otherwise = (x for x in given if x is not masks[0])
    for h, rest, above in ((then, otherwise, True), (otherwise, then, False)):
        if _masks(here, masks[0], h, above) and not here.active(rest) and is_zero(rest):
            return h  # type: ignore[no-any-return]
    return None


def of_filled(here: Here, input: Tensor, mask: Any, value: Any) -> Tensor | None:
    """``masked_fill``, and ``h[mask] = value``."""
    return input if _masks(here, mask, input, False) and not here.active(value) and is_zero(value) else None
