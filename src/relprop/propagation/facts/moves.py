"""How the entries of a tensor were moved, none of them dropped or repeated: what a view or a copy of it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from relprop.trees import map_tensors


@dataclass(frozen=True)
class Reshaped:
    """The same entries in the same order, in another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(self.after)

    def undo(self, x: Tensor) -> Tensor:
        """Return them in the shape that they had."""
        return x.reshape(self.before)


@dataclass(frozen=True)
class Permuted:
    """The same entries, with the dimensions in another order."""

    dims: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)

    def undo(self, x: Tensor) -> Tensor:
        """Return them with the dimensions in the order that they had."""
        return x.permute([self.dims.index(d) for d in range(x.dim())])


Moves: TypeAlias = "tuple[Reshaped | Permuted, ...]"


def order_of(function: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Permuted:
    """Return in which order a function that permutes dimensions of ``x`` has them."""
    if args and args[0] is x and not kwargs:
        return _order(function, x.dim(), *(tuple(each) if isinstance(each, list) else each for each in args[1:]))
    numbered = _numbered(x.dim())
    args, kwargs = map_tensors(lambda y: numbered if y is x else y, (args, kwargs))
    return Permuted(tuple(stride - 1 for stride in function(*args, **kwargs).stride()))


@lru_cache(maxsize=256)
def _order(function: Callable[..., Any], rank: int, *args: Any) -> Permuted:
    return Permuted(tuple(stride - 1 for stride in function(_numbered(rank), *args).stride()))


def _numbered(rank: int) -> Tensor:
    """Return a tensor whose dimensions are known by their strides."""
    return torch.empty_strided((2,) * rank, tuple(range(1, rank + 1)), device="meta")


def undone(moves: Moves, y: Tensor) -> Tensor:
    """Return the tensor that was moved to ``y``."""
    return reduce(lambda x, move: move.undo(x), reversed(moves), y)


def numbers_along(shape: torch.Size, dims: tuple[int, ...], moves: Moves, constant: Tensor) -> Tensor | None:
    """Return the numbers by which a constant scales or shifts what was moved, one for every entry along ``dims``.

    None where it differs in other dimensions too. A constant that is expanded differs only where it has memory.

    Args:
        shape: of the tensor before it was moved.
        dims: of it; where a dimension that they became part of holds others too, none of the constant may.
        constant: broadcasts to the tensor that was moved.
    """
    steps, number = [], 1
    for d in reversed(dims):
        steps.append((d, number))
        number *= shape[d]
    if constant.numel() == 1:
        return constant.reshape(1).expand(number)
    if not moves and len(dims) == 1:  # the common case
        d = dims[0] - len(shape)
        if constant.numel() == number and -d <= constant.dim() and constant.shape[d] == number:
            return constant.reshape(-1)
    step = dict(steps)
    strides = tuple(step.get(d, 0) for d in range(len(shape)))
    if moves:
        places = torch.empty_strided(shape, strides, device="meta")
        try:
            for move in moves:
                places = places.view(move.after) if isinstance(move, Reshaped) else move(places)
        except RuntimeError:  # they are in one dimension with others
            return None
        shape, strides = places.shape, places.stride()
    constant = constant[(None,) * (len(shape) - constant.dim())]
    along = [d for d, size in enumerate(shape) if size > 1 and strides[d]]
    for d, size in enumerate(constant.shape):
        if d not in along and size > 1:
            if constant.stride(d):
                return None
            constant = constant.narrow(d, 0, 1)
    along.sort(key=strides.__getitem__, reverse=True)
    rest = [d for d in range(len(shape)) if d not in along]
    return constant.permute(along + rest).expand([*(shape[d] for d in along), *(1 for _ in rest)]).reshape(-1)
