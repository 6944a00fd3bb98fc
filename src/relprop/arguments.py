"""Arguments that many functions take: options that are written once, numbers, and whether a progress bar is shown."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from types import FunctionType
from typing import Any, NewType, TypeVar, cast, get_type_hints

from relprop.errors import InputError, InputTypeError, MissingExtraError, near

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Registered = NewType("Registered", str)
"""A name of your own, of a rule or of a method, to type checkers: they know those of relprop one by one.

``Rules.register`` returns it. When the program runs it is a string like any other.
"""


@dataclass(frozen=True)
class Default:
    """The default of an option: ``progress: Annotated[bool, Default(False)]`` in a ``TypedDict`` of options."""

    value: Any


def takes(function: F, **defaults: Any) -> F:
    """Make of ``**options: Unpack[Options]`` the keyword arguments that the ``TypedDict`` names, with their defaults.

    They stand in the function's signature, and it receives all of them. Another keyword is an ``InputTypeError``.

    Args:
        function: annotated by strings, as ``from __future__ import annotations`` makes them.
        defaults: other defaults than those of the ``TypedDict``.

    >>> from relprop.attribution.options import ForwardOptions
    >>> def run(x: int, **options: Unpack[ForwardOptions]) -> object:
    ...     return options
    >>> takes(run)(1)
    {'forward_kwargs': None}
    """
    signature = inspect.signature(function)
    *own, last = signature.parameters.values()
    packed = re.fullmatch(r"Unpack\[(\w+)\]", str(last.annotation))
    if packed is None:  # it takes no options, or those of another function, which checks them
        return function
    hints = get_type_hints(cast(FunctionType, function).__globals__[packed[1]], include_extras=True)
    options = {name: hint.__metadata__[0].value for name, hint in hints.items()} | defaults
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name].__origin__)
        for name, default in options.items()
    ]
    known = [parameter.name for parameter in (*own, *shown) if parameter.name != "self"]

    @functools.wraps(function)
    def taking(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in known:
                raise InputTypeError(
                    f"{function.__qualname__} takes no argument {name!r}.{near(name, known)} "
                    f"It takes {', '.join(known)}."
                )
        return function(*args, **{**options, **given})

    taking.__dict__["__signature__"] = signature.replace(parameters=[*own, *shown])
    return cast("F", taking)


def takes_with(**defaults: Any) -> Callable[[F], F]:
    """Decorate as :func:`takes`, with defaults of the function's own."""
    return lambda function: takes(function, **defaults)


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
