"""Calls that write into an argument: what they write, and the same call that writes nothing."""

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

from relprop.propagation.storage import tensors_in

_NOT_WRITES = {"requires_grad_", "share_memory_", "detach_"}
_OPERATORS = {"__setitem__"} | {
    f"__i{name}__"
    for name in (
        "add",
        "sub",
        "mul",
        "div",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    )
}


_FILLS = {"fill_", "zero_"} | {
    f"{name}_"
    for name in ("normal", "uniform", "random", "exponential", "geometric", "cauchy", "log_normal", "bernoulli")
}
_RESHAPES = {"unsqueeze_", "squeeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "resize_", "as_strided_"}


@dataclass(frozen=True)
class Twin:
    """A call that computes what a writing call would write."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def written_by(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors a call writes into."""
    out = kwargs.get("out")
    if out is not None:
        return tensors_in(out)
    if _writes_first(func) or (args and _inplace(func, args, kwargs)):
        first = args[0] if args else next(iter(kwargs.values()))
        return tensors_in(first)
    return []


def twin_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Twin | None:
    """Return the same call without the write, or None where there is none."""
    if "out" in kwargs:
        func = func.overloadpacket if isinstance(func, OpOverload) else func  # the overload knows no call without
        return Twin(func, args, {name: value for name, value in kwargs.items() if name != "out"})
    if func is torch.Tensor.__setitem__:
        return Twin(set_item, args, kwargs)
    if func is torch.Tensor.copy_:
        return Twin(copied, args[:2], {})
    if func is torch.Tensor.fill_ and isinstance(args[1], Tensor):
        return Twin(copied, args, kwargs)
    if func is torch.Tensor.fill_diagonal_:
        return Twin(filled_diagonal, args, kwargs)
    if _writes_first(func):
        pure = None if func.__name__ in _RESHAPES | _FILLS else _pure(func)
        return None if pure is None else Twin(pure, args, kwargs)
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


def copied(x: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` in the shape and the type of ``x``."""
    return value.expand_as(x).to(x.dtype, copy=True)


def fills(func: Callable[..., Any]) -> bool:
    """Say whether a function overwrites a whole tensor with a constant."""
    return getattr(func, "__name__", "") in _FILLS


def reshapes(func: Callable[..., Any]) -> bool:
    """Say whether a function changes the shape of its argument in place."""
    return getattr(func, "__name__", "") in _RESHAPES


@cache
def _writes_first(func: Callable[..., Any]) -> bool:
    """Say whether a function writes into its first argument: an operator by its schema, any other by its name."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        first = _schema(func).arguments[:1]
        return bool(first) and first[0].alias_info is not None and first[0].alias_info.is_write
    if isinstance(func, FunctionType) and func.__module__.partition(".")[0] != "torch":
        return False  # PyTorch names what writes by an underscore; others name as they like
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name in _OPERATORS
    return name.endswith("_") and name not in _NOT_WRITES


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
