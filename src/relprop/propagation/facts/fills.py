"""Tensors that were written over by constants, at once or part by part: then they depend on the input no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.facts.saved import has_storage


def _set(there: Tensor, /, index: Any, value: Any) -> None:
    there[index] = True


def _fill(there: Tensor, /, *args: Any, **kwargs: Any) -> None:
    there.fill_(True)


def _fill_where(there: Tensor, /, mask: Tensor, value: Any) -> None:
    there.masked_fill_(mask, True)


def _fill_at(there: Tensor, /, dim: int, index: Tensor, value: Any) -> None:
    there.index_fill_(dim, index, True)


_WRITES: dict[str, Callable[..., None]] = {
    "__setitem__": _set,
    "fill_": _fill,
    "zero_": _fill,
    "copy_": _fill,
    "masked_fill_": _fill_where,
    "index_fill_": _fill_at,
}
"""By the names of what writes a constant, the same write of truth values."""


class Fills:
    """Which entries of tensors hold constants that were written there, as long as nothing else is written."""

    def __init__(self) -> None:
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def before_write(self, target: Tensor, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
        """Return where the memory that ``target`` is part of will hold constants; None for what is no such write."""
        write, base = _WRITES.get(getattr(func, "__name__", "")), memory(target)
        if write is None or not has_storage(base):
            return None
        if write is _fill_where and base.device.type != "cpu":
            return None  # as scores are masked: to look whether anything is left would wait for the device
        version, mask = self._known.get(base, (None, None))
        if not isinstance(mask, Tensor) or version != base._version:
            mask = torch.empty_strided(base.size(), base.stride(), dtype=torch.bool, device=base.device).fill_(False)
        part = mask.as_strided(target.size(), target.stride(), target.storage_offset() - base.storage_offset())
        write(part, *args[1:], **kwargs)
        return mask

    def wrote(self, target: Tensor, mask: Tensor) -> bool:
        """Note where constants are now, and say whether that is everywhere."""
        base = memory(target)
        self._known[base] = base._version, mask
        return bool(mask.all())

    def clear(self) -> None:
        self._known = WeakTensorKeyDictionary()


def memory(target: Tensor) -> Tensor:
    """Return the tensor that a view is of, or the tensor itself."""
    base = target._base
    return target if base is None else base
