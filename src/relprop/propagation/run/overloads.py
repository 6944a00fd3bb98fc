"""What a function is called: also by its overload (``torch.ops.aten.linear.default``), as in ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

Function = Callable[..., Any]
Called = tuple[Function, tuple[Any, ...], dict[str, Any]]


def by_python_name(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Called:
    """Return the same call by the function of PyTorch's Python interface, under which the table knows it."""
    if not isinstance(func, (OpOverload, OpOverloadPacket)):
        return func, args, kwargs
    name = _aten_name(func)
    rewrite = _REWRITTEN.get(name)
    if rewrite is not None:
        return rewrite(*args, **kwargs)
    if not name:
        return func, args, kwargs
    return _named(func, name), args, {"input" if key == "self" else key: value for key, value in kwargs.items()}


def name_of(func: Function) -> str:
    """Return the name of a function, or of the property that it gets."""
    name: str = getattr(func, "__name__", str(func))
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else name


def _aten_name(func: OpOverload | OpOverloadPacket) -> str:
    """Return the name of an operator of PyTorch's own; empty for those of others."""
    space, _, name = (
        func._qualified_op_name.partition("::") if isinstance(func, OpOverloadPacket) else func.name().partition("::")
    )
    return name.partition(".")[0] if space == "aten" else ""


@cache
def _named(func: Function, name: str) -> Function:
    # Not F first: its batch_norm takes the same arguments in another order.
    for space in (torch, torch._C._nn, torch.Tensor):
        found: Function | None = getattr(space, name, None)
        if found is not None:
            return found
    return func


def _embedding(weight: Tensor, indices: Tensor, padding_idx: int = -1, *more: Any, **rest: Any) -> Called:
    return F.embedding, (indices, weight), {}  # the others only matter for a gradient by the weight


def _slice(self: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Called:
    index = (slice(None),) * (dim % self.dim()) + (slice(start, end, step),)
    return torch.Tensor.__getitem__, (self, index), {}


def _index(self: Tensor, indices: list[Tensor | None]) -> Called:
    index = tuple(slice(None) if part is None else part for part in indices)
    return torch.Tensor.__getitem__, (self, index), {}


def _converted(self: Tensor, *args: Any, **kwargs: Any) -> Called:
    return torch.Tensor.to, (self, *args), {key: value for key, value in kwargs.items() if value is not None}


_REWRITTEN: dict[str, Callable[..., Called]] = {
    "embedding": _embedding,
    "slice": _slice,
    "index": _index,
    "to": _converted,
}
