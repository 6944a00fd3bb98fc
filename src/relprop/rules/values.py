"""What it takes for a rule to be a value: to compare, to hash and to print, whatever its fields hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SHOWN = 6
"""The most entries of an array that are printed."""


def same(mine: Any, theirs: Any) -> bool:
    """Say whether two things are alike: arrays of one shape and with equal entries, in whatever type; NaN equals NaN.

    >>> same((0.5, torch.zeros(2)), (0.5, np.zeros(2))), same(torch.zeros(2), torch.zeros(2, 1))
    (True, False)
    """
    if mine is theirs:
        return True
    if _is_array(mine) or _is_array(theirs):
        return _same_arrays(mine, theirs)
    if type(mine) is not type(theirs):
        return bool(mine == theirs)
    if isinstance(mine, (tuple, list)):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, Mapping):
        return mine.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in mine.items())
    if is_dataclass(mine):
        return all(same(*pair) for pair in zip(_compared(mine), _compared(theirs), strict=True))
    return bool(mine == theirs) or (mine != mine and theirs != theirs)


def digest(value: Any) -> int:
    """Return a hash that is the same for whatever is :func:`same`; of an array it knows the shape alone."""
    if _is_array(value):
        return digest(value.item()) if not value.ndim and _has_numbers(value) else hash(("array", tuple(value.shape)))
    if isinstance(value, (tuple, list)):
        return hash((type(value).__name__, *map(digest, value)))
    if isinstance(value, Mapping):
        return hash(frozenset((key, digest(item)) for key, item in value.items()))
    if is_dataclass(value) and not isinstance(value, type):
        return hash((type(value), *map(digest, _compared(value))))
    try:
        return hash("nan") if value != value else hash(value)
    except TypeError:  # a set, an object without a hash
        return hash(type(value))


def shown(value: Any) -> str:
    """Return what stands for a value where a rule is printed: large arrays by their shape.

    >>> shown(torch.zeros(3, 1, 1)), shown(torch.zeros(3, 224, 224)), shown(0.5)
    ('tensor([[[0.]],[[0.]],[[0.]]])', 'tensor[3, 224, 224]', '0.5')
    """
    if type(value) in (tuple, list):
        inner = ", ".join(map(shown, value)) + ("," if type(value) is tuple and len(value) == 1 else "")
        return f"({inner})" if type(value) is tuple else f"[{inner}]"
    if not _is_array(value):
        return repr(value)
    if not _has_numbers(value) or (value.size if isinstance(value, np.ndarray) else value.numel()) > _SHOWN:
        return f"{'array' if isinstance(value, np.ndarray) else 'tensor'}{list(value.shape)}"
    return "".join(line.strip() for line in repr(value).splitlines())


class Value:
    """A dataclass, each subclass of which compares, hashes and prints by its fields, arrays among them.

    A subclass that says itself how it compares or prints is left alone.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__eq__" not in cls.__dict__:  # else `dataclass`, which runs later, would write its own
            cls.__eq__ = _equals  # type: ignore[method-assign]
            if "__hash__" not in cls.__dict__:
                cls.__hash__ = _hash  # type: ignore[method-assign]
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = _repr  # type: ignore[method-assign]


def _equals(self: Any, other: object) -> Any:
    if type(self) is not type(other):
        return NotImplemented
    return all(same(*pair) for pair in zip(_compared(self), _compared(other), strict=True))


def _hash(self: Any) -> int:
    return hash((type(self), *map(digest, _compared(self))))


def _repr(self: Any) -> str:
    names = [field.name for field in fields(self) if field.repr] if _is_declared(self) else vars(self)
    return f"{type(self).__qualname__}({', '.join(f'{name}={shown(getattr(self, name))}' for name in names)})"


def _compared(value: Any) -> Iterator[Any]:
    """Yield the fields by which a dataclass compares; all that it holds where the class itself was not made one."""
    if _is_declared(value):
        return (getattr(value, field.name) for field in fields(value) if field.compare)
    return iter(sorted(vars(value).items(), key=lambda item: item[0]))


def _is_declared(value: Any) -> bool:
    """Say whether the class of a value is a dataclass itself, not a plain subclass of one."""
    return "__dataclass_fields__" in type(value).__dict__


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _has_numbers(value: Any) -> bool:
    return not (isinstance(value, Tensor) and value.is_meta)


def _same_arrays(mine: Any, theirs: Any) -> bool:
    try:
        first, second = _plain(mine), _plain(theirs)
    except (TypeError, ValueError, RuntimeError):  # an array beside what is none, or of objects
        return False
    return first.shape == second.shape and bool(((first == second) | ((first != first) & (second != second))).all())


def _plain(value: Any) -> Tensor:
    """Return an array or a number as a dense tensor in a type that holds its entries as they are."""
    if not (_is_array(value) or isinstance(value, (int, float, complex, np.generic))) or not _has_numbers(value):
        raise TypeError
    tensor = torch.as_tensor(value).detach().cpu()
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
