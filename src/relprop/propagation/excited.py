"""Sums as excitation backprop has them: shared by the positive terms alone, as its linear layers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.handler import Here
from relprop.propagation.operations import Operation, all_operations, functions_named
from relprop.propagation.storage import map_tensors


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
    none = plus.detach() == 0
    here.declared = lambda c, value: {"rule": torch.where(none, c * value, 0.0)}
    share = here.call.constant(out / torch.where(none, 1.0, plus))
    return here.call.switch(out, plus * share)


_SUMS = {
    "add": add,
    "__add__": add,
    "__radd__": add,
    "sub": sub,
    "subtract": sub,
    "__sub__": sub,
    "rsub": rsub,
    "__rsub__": rsub,
}
_TOTALS = (
    "sum", "nansum", "mean", "nanmean", "cumsum", "trace", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "index_add", "scatter_add",
)  # fmt: skip


def table() -> Mapping[Any, Operation]:
    """Return the operations of the rules, with sums that are shared by what excites them."""
    handlers = {**_SUMS, **dict.fromkeys(_TOTALS, total)}
    rules = all_operations()
    changed = {function: name for name in handlers for function in functions_named(name) if function in rules}
    return {**rules, **{f: replace(rules[f], handler=handlers[name]) for f, name in changed.items()}}
