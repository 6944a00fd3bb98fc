"""Sums as excitation backprop has them: shared by the positive terms alone, as its linear layers are."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.operation import Excitation, Handler, Operation, Table
from relprop.trees import map_tensors


def add(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input + alpha other``."""
    return _sum(here, input, other, alpha)


def sub(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input - alpha other``."""
    return _sum(here, input, other, -alpha)


def rsub(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``other - alpha input``."""
    return _sum(here, other, input, -alpha)


def total(here: Here, *args: Any, **kwargs: Any) -> Tensor:
    """Sums and means of many terms, with weights that are not negative."""
    plus = map_tensors(lambda x: _excites(here, x, 1.0) if x.is_floating_point() else x, (args, kwargs))
    return _explained(here, here.func(*args, **kwargs), here.func(*plus[0], **plus[1]))


def index_add(here: Here, input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """``input`` with ``alpha source`` added in places."""
    terms = _excites(here, source, -1.0 if alpha < 0 else 1.0)
    plus = here.func(_excites(here, input, 1.0), dim, index, terms, alpha=abs(alpha))
    return _explained(here, here.func(input, dim, index, source, alpha=alpha), plus)


def scattered(handler: Handler, here: Here, *args: Any, **kwargs: Any) -> Any:
    """What is added in places, or averaged there; what takes a place, and the largest of several, are as they are."""
    reduce = next((value for value in (*args, *kwargs.values()) if isinstance(value, str)), None)
    accumulate = kwargs.get("accumulate", args[-1] is True)
    adds = accumulate if reduce is None else reduce in ("sum", "add", "mean")
    return total(here, *args, **kwargs) if adds else handler(here, *args, **kwargs)


def interpolated(handler: Handler, here: Here, *args: Any, **kwargs: Any) -> Any:
    """Means of neighbours; bicubic ones have weights of both signs."""
    bicubic = "bicubic" in (value for value in (*args, *kwargs.values()) if isinstance(value, str))
    return handler(here, *args, **kwargs) if bicubic else total(here, *args, **kwargs)


def _sum(here: Here, first: Any, second: Any, alpha: float) -> Tensor:
    out = torch.add(first if isinstance(first, Tensor) else torch.as_tensor(first), second, alpha=alpha)
    plus = sum(_excites(here, x, weight) for x, weight in ((first, 1.0), (second, alpha)) if here.active(x))
    assert isinstance(plus, Tensor)
    return _explained(here, out, plus)


def _excites(here: Here, x: Tensor, weight: float) -> Tensor:
    """Return ``(weight x)+``, linear in ``x``; a constant excites no more than a bias does."""
    if not here.active(x):
        return torch.zeros_like(x)
    return x * (torch.where(x.detach() * weight > 0, weight, 0.0).to(x.dtype))


def _explained(here: Here, out: Tensor, plus: Tensor) -> Tensor:
    """Return ``out``, of which every term receives its part of the sum ``plus`` of those that excite it."""
    here.by_autograd()
    none = plus.detach() <= 4 / torch.finfo(plus.dtype).max  # less has no reciprocal
    here.declared = lambda c, value: {"rule": torch.where(none, c * value, 0.0)}
    share = torch.where(none, 0.0, 1 / torch.where(none, 1.0, plus))
    # The relevance c out first, which is no larger than any: out / plus may be.
    found = here.call.switch(out, plus * here.call.constant(share) * here.call.constant(out))
    cast("Any", found.grad_fn).excites = True  # read where the method asks whether it does anything
    return found


HANDLERS: dict[Excitation, Handler] = {
    Excitation.ADD: add,
    Excitation.SUBTRACT: sub,
    Excitation.REVERSED_SUBTRACT: rsub,
    Excitation.INDEX_ADD: index_add,
    Excitation.AVERAGES: total,
}
"""What runs a sum; what is one by its arguments, :func:`_run` says."""


def table(operations: Table) -> Table:
    """Return the rows of the rules, with sums that are shared by what excites them."""
    return {function: _run(row) for function, row in operations.items()}


def _run(row: Operation) -> Operation:
    if row.excitation is Excitation.AS_RULES:
        return row
    if row.excitation is Excitation.SCATTERS:
        return replace(row, handler=partial(scattered, row.handler))
    if row.excitation is Excitation.INTERPOLATES:
        return replace(row, handler=partial(interpolated, row.handler))
    return replace(row, handler=HANDLERS[row.excitation])
