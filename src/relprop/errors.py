"""Every error and warning relprop raises.

Each error is a :class:`RelpropError` and the built-in exception that fits, so both
``except RelpropError`` and ``except ValueError`` catch it.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from types import FrameType


class RelpropError(Exception):
    """The root of every error relprop raises."""


class InputError(RelpropError, ValueError):
    """An input has the wrong shape, is empty, or does not reach the output."""


class InputTypeError(RelpropError, TypeError):
    """An input is of a type that cannot be explained."""


class TargetError(RelpropError, ValueError):
    """A target is missing or does not fit the output."""


class TargetTypeError(RelpropError, TypeError):
    """A target is of a type that selects nothing."""


class TargetIndexError(RelpropError, IndexError):
    """A target lies outside the output."""


class RuleError(RelpropError, ValueError):
    """A rule has impossible parameters or stands where it cannot serve."""


class OperationError(RelpropError, ValueError):
    """An operation is declared by arguments that contradict each other, or for a function that has a row."""


class MethodError(RelpropError, ValueError):
    """A method is unknown, cannot be made from the options given, or has a name that is taken."""


class UnknownMethodError(MethodError, KeyError):
    """No method has this name."""

    __str__ = Exception.__str__  # that of KeyError shows the message in quotes


class ModelError(RelpropError, TypeError):
    """A model is no ``nn.Module``, returns no tensor, or is built so that it cannot be explained."""


class PatternError(RelpropError, ValueError):
    """Patterns are missing, are those of another network, or cannot be read."""


class NumericalError(RelpropError, ValueError):
    """NaN or infinity in the input or in the output."""


class ConservationError(RelpropError, ArithmeticError):
    """Relevance went missing at a layer, and no rule says why."""


class UncoveredOperationError(RelpropError, NotImplementedError):
    """An operation has no rule (raised with ``strict=True``, a warning otherwise)."""


class MissingExtraError(RelpropError, ImportError):
    """An optional package is needed and not installed."""


class RelpropWarning(UserWarning):
    """The root of every warning relprop gives."""


class UncoveredOperationWarning(RelpropWarning):
    """An operation has no rule; plain autograd carried the relevance through it."""


class CompiledModelWarning(RelpropWarning):
    """A compiled model is explained through the original module, without compilation."""


class BackwardHookWarning(RelpropWarning):
    """A module has a backward hook of the user's own, which receives coefficients while relevance is explained."""


class TrainingModeWarning(RelpropWarning):
    """A layer in training mode (dropout, batch norm) makes the explanation random or batch-dependent."""


class ConvergenceWarning(RelpropWarning):
    """A sum that a method claims is further off than the tolerance, after as many steps as were allowed."""


class PatternWarning(RelpropWarning):
    """Units have no pattern, or the weights are no longer those that the patterns were fitted to."""


class DeepTaylorWarning(RelpropWarning):
    """A premise of deep Taylor decomposition does not hold in the model."""


class MovedWarning(RelpropWarning, FutureWarning):
    """A name was imported from where it stood before; in the next release it stands there no more."""


def near(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean ...?"`` with the known names nearest to ``name``, or nothing.

    >>> near("conv11", ["conv1", "fc"])
    " Did you mean 'conv1'?"
    """
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def warn(message: str, category: type[RelpropWarning]) -> None:
    """Warn at the line of the user's code that led here: the first outside relprop and torch."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


_INNER = {"relprop", "torch", "contextlib", "importlib"}
