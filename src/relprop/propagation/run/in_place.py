"""Calls that write into an argument: what they write, and the same call that writes nothing.

:mod:`relprop.propagation.run.function_mode` runs the one in the place of the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from relprop.propagation.facts.operation import Operation, Writes
from relprop.trees import tensors_in


@dataclass(frozen=True)
class Twin:
    """A call that computes what a writing call would write."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def written_by(
    row: Operation | None, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    """Return the tensors a call writes into."""
    out = kwargs.get("out")
    if out is not None:
        return tensors_in(out)
    writes = writes_first(func) if row is None else row.writes is not Writes.NOTHING
    if writes or (args and _inplace(func, args, kwargs)):
        first = args[0] if args else next(iter(kwargs.values()))
        return tensors_in(first)
    return []


def twin_of(
    row: Operation | None, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Twin | None:
    """Return the same call without the write, or None where there is none."""
    if "out" in kwargs:
        func = func.overloadpacket if isinstance(func, OpOverload) else func  # the overload knows no call without
        return Twin(func, args, {name: value for name, value in kwargs.items() if name != "out"})
    writes = Writes.NOTHING if row is None else row.writes
    if writes is Writes.RESHAPES or (writes is Writes.FILLS and not tensors_in((args[1:], kwargs))):
        return None
    if row is not None and row.pure is not None:
        return Twin(row.pure, args, kwargs)
    if writes_first(func):
        pure = _pure(func)
        return None if pure is None or writes is Writes.FILLS else Twin(pure, args, kwargs)
    position = _inplace_position(func)
    assert position is not None  # nothing else writes
    kept = tuple(False if index == position else value for index, value in enumerate(args))
    return Twin(func, kept, {name: value for name, value in kwargs.items() if name != "inplace"})


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return ``x`` with ``x[index] = value``."""
    out = x.clone()
    out[index] = value
    return out


def filled_diagonal(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return ``x`` with a constant diagonal."""
    return x.clone().fill_diagonal_(*args, **kwargs)


def copied(x: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    """Return ``value`` in the shape and the type of ``x``."""
    return value.expand_as(x).to(x.dtype, copy=True)


@cache
def writes_first(func: Callable[..., Any]) -> bool:
    """Say whether a function without a row writes into its first argument: by its schema, any other by its name."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        first = _schema(func).arguments[:1]
        return bool(first) and first[0].alias_info is not None and first[0].alias_info.is_write
    if isinstance(func, FunctionType) and func.__module__.partition(".")[0] != "torch":
        return False  # PyTorch names what writes by an underscore; others name as they like
    name = getattr(func, "__name__", "")
    if name.startswith("__"):  # x += y writes what x + y gives; there is no x nvert y to x.__invert__()
        return name.startswith("__i") and hasattr(Tensor, f"__{name[3:]}")
    return name.endswith("_")


def _schema(func: OpOverload | OpOverloadPacket) -> torch.FunctionSchema:
    return (func if isinstance(func, OpOverload) else getattr(func, func.overloads()[0]))._schema


@cache
def _pure(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the function that computes what an in-place one writes, by its name."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        library, _, name = str(_schema(func).name).partition("::")
        pure = name.removesuffix("_")
        return None if pure == name else getattr(getattr(torch.ops, library), pure, None)
    name = func.__name__
    pure = f"__{name[3:]}" if name.startswith("__i") else name[:-1]
    spaces = (torch.Tensor, torch, F) if getattr(torch.Tensor, name, None) is func else (torch, F, torch.Tensor)
    for space in spaces:
        found: Callable[..., Any] | None = getattr(space, pure, None)
        if found is not None:
            return found
    return None


@cache
def _inplace_position(func: Callable[..., Any]) -> int | None:
    """Return where a Python function takes ``inplace``, if it does."""
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def _inplace(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    position = _inplace_position(func)
    return position is not None and len(args) > position and bool(args[position])
