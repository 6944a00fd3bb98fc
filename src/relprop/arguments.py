"""Arguments that many functions take: numbers, and whether a progress bar is shown."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeVar

from relprop.errors import InputError, MissingExtraError

T = TypeVar("T")


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a number of things.

    Raises:
        InputError: where it is no whole number, or less than ``least``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return number


def positive_number(name: str, value: Any) -> float:
    """Return a finite number above zero.

    Raises:
        InputError: anything else.
    """
    number = _number(value)
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be a finite number above 0, got {value!r}.")
    return number


def nonnegative_number(name: str, value: Any) -> float:
    """Return a finite number of at least 0.

    Raises:
        InputError: anything else.
    """
    number = _number(value)
    if not 0 <= number < math.inf:
        raise InputError(f"{name} must be a finite number of at least 0, got {value!r}.")
    return number


def _number(value: Any) -> float:
    """Return a number, of NumPy too; NaN for what is none."""
    return math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)


def bar(items: Iterable[T], progress: bool, what: str | None = None, total: int | None = None) -> Iterable[T]:
    """Return the items, behind a progress bar if asked; without an end where their number is not known.

    Raises:
        MissingExtraError: ``progress=True`` without tqdm.
    """
    if not progress:
        return items
    try:
        tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise MissingExtraError(
            "progress=True shows a bar by tqdm, which is not installed; pip install relprop[progress]"
        ) from error
    shown: Iterable[T] = tqdm(items, desc=what, total=total, leave=False)
    return shown
