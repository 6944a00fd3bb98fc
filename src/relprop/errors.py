"""Every error and warning relprop raises.

Each error is a :class:`RelpropError` and the built-in exception that fits, so both
``except RelpropError`` and ``except ValueError`` catch it. Messages name what was wrong, what was expected
and what to do.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from types import FrameType


class RelpropError(Exception):
    """The root of every error relprop raises.

    What to do: catch it where any failure of relprop is to be handled; by itself it is never raised.
    """


class InputError(RelpropError, ValueError):
    """An input has the wrong shape, is empty, or does not reach the output.

    What to do: give what the message says was expected. Where the output does not depend on the input, look for a part
    of the model that leaves autograd (``detach``, ``no_grad``, NumPy), or explain another target.
    """


class InputTypeError(RelpropError, TypeError):
    """An input is of a type that cannot be explained.

    What to do: give tensors, or what the message says was expected; for token ids, a method that takes them, or their
    embeddings.
    """


class TargetError(RelpropError, ValueError):
    """A target is missing or does not fit the output.

    What to do: give one target for each sample, or one for all, in a form that :meth:`relprop.Attribution.attribute`
    lists.
    """


class TargetTypeError(RelpropError, TypeError):
    """A target is of a type that selects nothing.

    What to do: give integers, tuples of them, a callable, or a :class:`relprop.Unit`.
    """


class TargetIndexError(RelpropError, IndexError):
    """A target lies outside the output.

    What to do: count from 0, up to one less than the number of outputs that the message names.
    """


class RuleError(RelpropError, ValueError):
    """A rule has impossible parameters or stands where it cannot serve.

    What to do: change the parameter, or set the rule at an operation of a kind that it serves;
    ``print(rules.plan(model, x))`` shows what runs where.
    """


class OperationError(RelpropError, ValueError):
    """An operation is declared by arguments that contradict each other, or for a function that has a row.

    What to do: give what the kind asks for, see :func:`relprop.operation`; for a function of torch that has a row, set
    a rule instead.
    """


class MethodError(RelpropError, ValueError):
    """A method is unknown, cannot be made from the options given, or has a name that is taken.

    What to do: take a name of :func:`relprop.methods` and options that its class takes, or choose another name.
    """


class UnknownMethodError(MethodError, KeyError):
    """No method has this name.

    What to do: take a name of :func:`relprop.methods`; the message names the nearest.
    """

    __str__ = Exception.__str__  # that of KeyError shows the message in quotes


class ModelError(RelpropError, TypeError):
    """A model is no ``nn.Module``, returns no tensor, or is built so that it cannot be explained.

    What to do: give the module itself, as eager code on floating point weights; of outputs that are no tensor, let a
    callable target read one.
    """


class PatternError(RelpropError, ValueError):
    """Patterns are missing, are those of another network, or cannot be read.

    What to do: call ``fit`` or ``load`` first, on the network that is explained.
    """


class NumericalError(RelpropError, ValueError):
    """NaN or infinity in the input or in the output.

    What to do: look where the first of them comes from, in the data or in the model, and explain in float32 or float64
    where half precision overflows.
    """


class ConservationError(RelpropError, ArithmeticError):
    """Relevance went missing at a layer, and no rule says why.

    What to do: read the row that the message names; a rule of your own declares by ``absorbed`` what it keeps, and a
    coarse dtype needs a larger tolerance.
    """


class UncoveredOperationError(RelpropError, NotImplementedError):
    """An operation has no rule (raised with ``strict=True``, a warning otherwise).

    What to do: say what the operation is by :func:`relprop.operation`, set a filter such as ``Detach`` at it, or leave
    ``strict`` out.
    """


class MissingExtraError(RelpropError, ImportError):
    """An optional package is needed and not installed.

    What to do: run the ``pip install`` that the message names.
    """


class RelpropWarning(UserWarning):
    """The root of every warning relprop gives.

    What to do: filter by it to silence relprop, or to make its warnings errors.
    """


class UncoveredOperationWarning(RelpropWarning):
    """An operation has no rule; plain autograd carried the relevance through it.

    What to do: read in a report what leaked there; then say what the operation is by :func:`relprop.operation`, or set
    a filter such as ``Detach`` or ``Pass`` at it.
    """


class CompiledModelWarning(RelpropWarning):
    """A compiled model is explained through the original module, without compilation.

    What to do: give the original module, and there is no warning; the numbers are those of eager code.
    """


class BackwardHookWarning(RelpropWarning):
    """A module has a backward hook of the user's own, which receives coefficients while relevance is explained.

    What to do: remove the hook while you explain, unless it only looks on.
    """


class TrainingModeWarning(RelpropWarning):
    """A layer in training mode (dropout, batch norm) makes the explanation random or batch-dependent.

    What to do: call ``model.eval()`` first, if that is not meant.
    """


class ConvergenceWarning(RelpropWarning):
    """A sum that a method claims is further off than the tolerance, after as many steps as were allowed.

    What to do: allow more ``max_steps``, or a larger ``tolerance``.
    """


class PatternWarning(RelpropWarning):
    """Units have no pattern, or the weights are no longer those that the patterns were fitted to.

    What to do: fit to more data, or again after training.
    """


class DeepTaylorWarning(RelpropWarning):
    """A premise of deep Taylor decomposition does not hold in the model.

    What to do: train with biases that are not positive, or read the map as what it is without the premise: LRP, which
    conserves.
    """


class ProbabilityWarning(RelpropWarning):
    """A relevance method explains the output of a softmax or of a sigmoid, of which it absorbs most.

    What to do: explain the scores before it: ``Unit("layer", index)`` as the target, the layer that returns them, or a
    model without the last step. Filter the warning where probabilities are meant.
    """


class NoEffectWarning(RelpropWarning):
    """A method met nothing on the way to the explained output that it passes otherwise than the gradient does.

    What to do: take another method, such as LRP, which has rules for other activations; or explain a target above the
    layers that the method is about.
    """


class StabilizerWarning(RelpropWarning):
    """By a report, stabilizers took more than 1 % of the explained output.

    What to do: set a smaller epsilon, or another rule, where the message says; or filter it, where that is meant.
    """


class MovedWarning(RelpropWarning, FutureWarning):
    """A name was imported from where it stood before; in the next release it stands there no more.

    What to do: import it from where the message says.
    """


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
