"""What tensors are of exponentials: so a softmax, an attention or a sigmoid is known however it is written.

A tensor computed from ``exp(z)`` is known by two powers: ``degree``, by which it grows as ``z`` does (``exp(z + t)``
gives ``exp(degree t)`` times what ``exp(z)`` gave), and ``ones``, the power of ``1 + exp(z)`` in it. Sums, views and
multiples keep them, products add them up, quotients subtract them, logarithms are sums in place of products. What is
left with neither, and was summed on the way, are the probabilities of a softmax; ``exp(z) / (1 + exp(z))`` and
``1 / (1 + exp(z))`` are sigmoids. Nothing is followed before there is an exponential.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.facts.numbers import number
from relprop.propagation.facts.operation import Image
from relprop.propagation.facts.saved import CopyOnWrite, storage_key
from relprop.trees import map_tensors, tensors_in

Values = dict[Any, Tensor]
"""The values of arguments and of formulas, by which others are computed."""


@dataclass(eq=False)
class Argument:
    """A tensor of the model from which others are computed, true as long as its version is ``version``."""

    tensor: Tensor
    version: int

    @property
    def unchanged(self) -> bool:
        return self.tensor._version == self.version


@dataclass(frozen=True, eq=False)
class Formula:
    """How a tensor was computed from the arguments of exponentials.

    Attributes:
        arguments: from what.
        compute: from the values of these to the tensor, by the functions that the model called.
        degree: the power of ``exp(z)`` in it.
        ones: the power of ``1 + exp(rate z)`` in it, entry by entry.
        rate: what ``z`` is multiplied by in the exponential: ``log(2)`` in ``2^z``, -1 in ``1 / exp(z)``.
        logarithm: it is the logarithm of what the powers say.
        scale: what that is multiplied by: ``1 / log(2)`` in ``log2``; None for an argument, which is one to any base.
        exact: it is nothing but these powers, entry by entry: no multiple, no mask, no sum.
        added: the number that was added to a single exponential; None where it is more than that.
        summed: entries were summed on the way.
        weights, signals: of a weighted sum the exponentials, and the tensors that they multiply.
        mixed: those depend on the input too, so that it is an image of the exponentials no more.
        whole: of what is a view, or a sparse matrix, that of which it is.
        sparse: a sparse matrix was made on the way.
    """

    arguments: tuple[Argument, ...]
    compute: Callable[[Values], Tensor]
    degree: float = 0.0
    ones: float = 0.0
    rate: float = 1.0
    logarithm: bool = False
    scale: float | None = None
    exact: bool = False
    added: float | None = None
    summed: bool = False
    weights: Formula | None = None
    signals: tuple[Argument, ...] = ()
    mixed: bool = False
    whole: Formula | None = None
    sparse: bool = False

    def value(self, values: Values) -> Tensor:
        """Return the tensor, for values of its arguments or of formulas on the way; each is computed once."""
        if self not in values:
            values[self] = self.compute(values)
        return values[self]

    @property
    def probabilities(self) -> bool:
        """Say whether it is what a softmax gives, or its logarithm."""
        return self.summed and self.degree == 0 and self.ones == 0 and not self.mixed

    @property
    def sigmoid_of(self) -> float | None:
        """Return the multiple of its argument of which it is the sigmoid, or its logarithm; None where it is none."""
        if not self.exact or self.ones != -1:
            return None
        if self.degree == 0:
            return -self.rate
        return self.rate if math.isclose(self.degree, abs(self.rate)) else None

    def times(self, power: float) -> Formula:
        """Return it raised to a power, of which a single exponential is one of another rate."""
        degree, ones = _round(self.degree * power), _round(self.ones * power)
        alone = self.added == 0 and not self.logarithm
        scale = None if self.scale is None else self.scale * power
        rate, added = (self.rate * power, 0.0) if alone else (self.rate, None)
        degree = abs(degree) if alone else degree
        more = {"weights": None, "signals": ()}
        return replace(self, degree=degree, ones=ones, rate=rate, scale=scale, added=added, **more)  # type: ignore[arg-type]

    def part(self) -> Formula:
        """Return it as a part of something else, which is no weighted sum."""
        return replace(self, weights=None, signals=(), added=None, exact=False)

    def by(self, other: Formula) -> Formula | None:
        """Return it multiplied by another; None where neither becomes of the two together."""
        if self.logarithm != other.logarithm or self.mixed or other.mixed:
            return None
        if self.rate * other.rate < 0 or (self.rate != other.rate and (self.ones or other.ones)):
            return None
        over, under = (self, other) if self.degree > other.degree else (other, self)
        degree, ones = _round(over.degree + under.degree), _round(over.ones + under.ones)
        more = tuple(x for x in over.arguments if x not in under.arguments)
        if degree == 0 and not ones and (more or not under.summed or over.degree == 0):
            return None  # what divides sums all that it divides
        if ones and self.arguments != other.arguments:
            return None
        scales = [abs(x.scale) for x in (self, other) if x.scale is not None]
        if len(scales) == 2 and not math.isclose(*scales):
            return None  # logarithms to different bases
        arguments = (*under.arguments, *more)
        rate = self.rate if self.ones else other.rate
        return Formula(
            arguments,
            self.compute,
            degree,
            ones,
            rate,
            self.logarithm,
            max(scales, default=None),
            exact=self.exact and other.exact,
            summed=self.summed or other.summed,
        )

    def beside(self, other: Formula) -> Formula | None:
        """Return what it is together with another of its degree, added to it or put beside it; else None."""
        if self.logarithm or other.logarithm or self.mixed != other.mixed:
            return None
        if self.ones or other.ones or self.rate * other.rate < 0 or not math.isclose(self.degree, other.degree):
            return None
        arguments = (*self.arguments, *(x for x in other.arguments if x not in self.arguments))
        both = replace(self, arguments=arguments, summed=self.summed or other.summed, added=None, exact=False)
        if self.weights is other.weights:
            return replace(both, signals=(*self.signals, *other.signals))
        return None if self.mixed else both.part()


def _round(power: float) -> float:
    """Return a power; of 2^z they are multiples of log(2), which need not cancel exactly."""
    return 0.0 if abs(power) < 1e-12 else power


class Formulas:
    """The formulas of the tensors of one call, held as long as the tensors live."""

    def __init__(self, saving: CopyOnWrite) -> None:
        self._saving = saving
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @property
    def exist(self) -> bool:
        """Say whether there is one at all."""
        return bool(self._known)

    def of(self, x: Any) -> Formula | None:
        """Return how a tensor was computed, if it and what it was computed from still are what they were."""
        version, formula = self._known.get(x, (0, None)) if isinstance(x, Tensor) else (0, None)
        if formula is None or version != x._version:
            return None
        return formula if all(argument.unchanged for argument in _read(formula)) else None

    def note(self, x: Tensor, formula: Formula | None) -> None:
        """Remember how the tensor, as it is now, was computed."""
        if formula is not None:
            self._known[x] = x._version, formula

    def begin(self, x: Tensor) -> Formula:
        """Return a tensor as the logarithm of its exponential.

        It is the same argument wherever it was computed alike, as in ``exp(a b) / exp(a b).sum()``.
        """
        held = [argument for argument in self._arguments() if argument.unchanged]
        found = next((argument for argument in held if argument.tensor is x), None)
        if found is None:
            found = next((argument for argument in held if computed_alike(argument.tensor, x)), None)
        return _of_argument(Argument(x, x._version) if found is None else found)

    def exponent(self, x: Tensor) -> Formula:
        """Return what is known of an exponent: what it is the logarithm of."""
        formula = self.of(x)
        return self.begin(x) if formula is None or not formula.logarithm else formula

    def before_write(self, x: Tensor) -> None:
        """Keep the values of a tensor that is an argument, before the model writes into it."""
        for argument in self._arguments():
            if argument.unchanged and storage_key(argument.tensor) == storage_key(x):
                argument.tensor = argument.tensor.clone()
                argument.version = argument.tensor._version

    def _arguments(self) -> Iterator[Argument]:
        yield from {id(x): x for _, formula in self._known.values() for x in _read(formula)}.values()

    def clear(self) -> None:
        self._known = WeakTensorKeyDictionary()

    # Following the calls of a model -----------------------------------------------------------------

    def follow(
        self,
        does: Image,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        active: list[Tensor],
        out: Any,
    ) -> None:
        """Remember how the output of a call was computed, where its arguments came from an exponential.

        Args:
            does: what the operation makes of an image.
            active: the arguments that depend on the input; what divides may have gone on as a constant.
        """
        if does is Image.NOTHING:
            return
        formula = self.made(does, func, args, kwargs, active)
        if formula is None or (formula.probabilities and not formula.logarithm):
            return  # probabilities are explained as what they are, and begin nothing
        if isinstance(out, Tensor):
            self.note(out, formula if out.layout == torch.strided else replace(formula, sparse=True))
        elif isinstance(out, tuple):
            for position, part in enumerate(out):
                if part.is_floating_point():
                    self.note(part, replace(formula, compute=_part(formula, position)))

    def made(
        self, does: Image, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], active: list[Tensor]
    ) -> Formula | None:
        """Return how the output of a call is computed, where its arguments came from an exponential; else None."""
        given = [(x, self.of(x)) for x in tensors_in((args, kwargs))]
        if not any(formula for _, formula in given):
            return None
        taken = [(x, formula) for x, formula in given if formula or any(x is y for y in active)]
        if does is Image.MOVES:  # of other arguments a view takes the shape, or the places
            source = next(x for x, _ in given if x.is_floating_point())
            taken = [(x, formula) for x, formula in taken if x is source and formula]
            if not taken:
                return None
        known = {id(x): (x, formula) for x, formula in taken}
        call = _Call(does, func, args, kwargs, [x for x, _ in known.values()])
        formulas = [formula for _, formula in known.values() if formula is not None]
        if len(formulas) == len(known) == 1:
            form = call.of_one(formulas[0], twice=len(taken) > 1)
        elif len(formulas) == len(known):
            form = call.of_several(formulas)
        elif len(known) > 2:
            form = None
        else:
            x = next(x for x, formula in known.values() if formula is None)
            if formulas[0].logarithm:  # z less the logarithm of a sum
                known[id(x)] = x, self.begin(x)
                form = call.of_several([formula for _, formula in known.values() if formula is not None])
            else:
                form = call.weighted(formulas[0], x, mixed=True)
        if form is None:
            return None
        leaves: dict[int, Formula | Argument] = {id(x): formula for x, formula in known.values() if formula is not None}
        for signal in form.signals:
            leaves.setdefault(id(signal.tensor), signal)
        whole = formulas[0].whole or formulas[0] if does is Image.MOVES else None
        return replace(form, compute=self._again(func, args, kwargs, leaves), whole=whole)

    def shift(self, out: Tensor, x: Tensor, other: Any) -> None:
        """Remember that ``out = x - other``, which is no other argument than ``x`` is."""
        begun = self.begin(x)
        compute = self._again(torch.sub, (x, other), {}, {id(x): begun})
        self.note(out, replace(begun, compute=compute, exact=False))

    def _again(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        leaves: Mapping[int, Formula | Argument],
    ) -> Callable[[Values], Tensor]:
        """Return a call as a function of the arguments; the constants in it stay what they were."""
        held = [leaves.get(id(x)) or self._saving.save(x) for x in tensors_in((args, kwargs))]

        def compute(values: Values) -> Tensor:
            left = iter(held)

            def given(_: Tensor) -> Tensor:
                one = next(left)
                if isinstance(one, Formula):
                    return one.value(values)
                return values.get(one, one.tensor)

            again: tuple[Any, Any] = map_tensors(given, (args, kwargs))
            return func(*again[0], **again[1])  # type: ignore[no-any-return]

        return compute


def _read(formula: Formula) -> tuple[Argument, ...]:
    """Return the arguments that are read where a formula is computed."""
    return (*formula.arguments, *formula.signals) if formula.signals else formula.arguments


def _of_argument(argument: Argument) -> Formula:
    return Formula((argument,), lambda values: values[argument], degree=1.0, logarithm=True, exact=True)


def _part(formula: Formula, position: int) -> Callable[[Values], Tensor]:
    return lambda values: formula.value(values)[position]


@dataclass(frozen=True)
class _Call:
    """One call that takes what came from exponentials; ``tensors`` are its arguments that depend on the input."""

    does: Image
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]

    def of_one(self, x: Formula, twice: bool) -> Formula | None:
        """Return what is made of one image, and of constants."""
        does = self.does
        if twice:  # e e, e + e, e / e
            return self.of_several([x, x])
        if does is Image.MOVES:
            return x
        if x.probabilities and does not in (Image.MULTIPLIES, Image.DIVIDES):
            return None
        if x.logarithm:
            return self._of_logarithm(x)
        if does is Image.INVERTS or (does is Image.DIVIDES and self._second()):
            numerator = 1 if len(self.args) < 2 else number(self._other()) if x.ones else 1
            return x.times(-1) if not x.mixed and numerator == 1 else None
        if does is Image.POWER:
            power = None if x.mixed or self._second() else number(self._other())
            return None if power is None else x.times(power)
        if does is Image.LOGARITHM:
            return self._logarithm(x)
        if does in (Image.ADDS, Image.SUBTRACTS) and x.added is not None:
            return self._added(x)
        if self.kwargs.get("alpha", 1) != 1:
            return None
        if x.ones or does is Image.NEGATES or (does is Image.SUBTRACTS and self._second()):
            return None
        if does is Image.NORM and self._norm() != 1:
            return None
        others = [y for y in tensors_in((self.args, self.kwargs)) if y is not self.tensors[0]]
        if does in (Image.MULTIPLIES, Image.CONTRACTS) and any(map(self._weighs, others)):
            return self.weighted(x, others[0], mixed=x.mixed) if len(others) == 1 else None
        summed = x.summed or does in (Image.SUMS, Image.NORM, Image.CONTRACTS)
        return replace(x, added=None, exact=False, summed=summed)

    def of_several(self, found: list[Formula]) -> Formula | None:
        """Return what is made of several images."""
        does, (first, *more) = self.does, found
        if any(x.probabilities for x in found):
            return None
        if does in (Image.JOINS, Image.KEEPS, Image.SUMS):
            for other in more:
                together = first.beside(other)
                if together is None:
                    return None
                first = together
            return replace(first, summed=first.summed or does is Image.SUMS)
        if len(more) != 1:
            return None
        (second,) = more
        if does in (Image.ADDS, Image.SUBTRACTS) and first.logarithm and second.logarithm and not self.kwargs:
            return first.by(second if does is Image.ADDS else second.times(-1))
        if first.logarithm or second.logarithm:
            return None
        if does is Image.ADDS:
            together = first.beside(second)
            return None if together is None else replace(together, summed=True)
        if does in (Image.MULTIPLIES, Image.CONTRACTS):
            product = first.by(second)
            return None if product is None else replace(product, summed=product.summed or does is Image.CONTRACTS)
        return first.by(second.times(-1)) if does is Image.DIVIDES else None

    def weighted(self, x: Formula, signal: Tensor, mixed: bool) -> Formula | None:
        """Return what is made of an image and of a signal that it weighs; ``mixed`` where that depends on the input."""
        if self.does not in (Image.MULTIPLIES, Image.CONTRACTS) or x.ones or x.probabilities:
            return None
        if x.weights is not None:  # weights of weights
            return None if x.mixed or mixed else x.part()
        summed, held = x.summed or self.does is Image.CONTRACTS, Argument(signal, signal._version)
        more = {"added": None, "exact": False, "summed": summed}
        return replace(x, weights=x.whole or x, signals=(held,), mixed=mixed, **more)  # type: ignore[arg-type]

    def _weighs(self, constant: Tensor) -> bool:
        """Say whether a constant is a signal and no scale or mask: it has entries that are summed, or more of them."""
        if self.does is Image.CONTRACTS:
            return number(constant) is None
        shape = self.tensors[0].shape
        return bool(torch.broadcast_shapes(shape, constant.shape) != shape)

    def _other(self) -> Any:
        """Return what a call takes beside the image."""
        operands = [x for x in (*self.args, *self.kwargs.values()) if x is not self.tensors[0]]
        return operands[0] if operands else None

    def _second(self) -> bool:
        """Say whether the image is the second of two operands."""
        return bool(self.args) and self.args[0] is not self.tensors[0]

    def _norm(self) -> float:
        p = self.args[1] if len(self.args) > 1 else self.kwargs.get("p", self.kwargs.get("ord", 2))
        return float(p) if isinstance(p, (int, float)) else 2.0

    def _logarithm(self, x: Formula) -> Formula | None:
        if x.mixed:
            return None
        name = self.func.__name__
        if name == "log1p":
            if x.added != 0:
                return None
            x = replace(x, degree=0.0, ones=1.0)
        x = replace(x, weights=None, signals=(), added=None)
        scale = 1 / math.log({"log2": 2, "log10": 10}.get(name, math.e))
        return replace(x.times(scale), logarithm=True, scale=scale)

    def _of_logarithm(self, x: Formula) -> Formula | None:
        does, other = self.does, number(self._other())
        if does is Image.NEGATES or (does is Image.SUBTRACTS and self._second() and other == 0):
            return x.times(-1)
        if does in (Image.ADDS, Image.SUBTRACTS):
            if other == 0:
                return x
            return None if x.ones or (does is Image.SUBTRACTS and self._second()) else replace(x, exact=False)
        if other is None or other == 0:
            return None
        if does is Image.MULTIPLIES:
            return x.times(other)
        return x.times(1 / other) if does is Image.DIVIDES and not self._second() else None

    def _added(self, x: Formula) -> Formula | None:
        """Return a single exponential and a number: ``1 + exp(z)`` has a power of its own."""
        other = number(self._other())
        if self.kwargs or (self.does is Image.SUBTRACTS and self._second()):
            return None
        if other is None or x.added is None:
            return replace(x, added=None, exact=False)
        total = x.added + (other if self.does is Image.ADDS else -other)
        if total == 1:
            return replace(x, degree=0.0, ones=1.0, added=None, exact=True)
        return None if x.added == -1 and total else replace(x, added=total, exact=total == 0)


# Tensors that were computed alike ------------------------------------------------------------------


def _original(node: Any) -> Any:
    """Return the node of the tensor that was copied, such as before it was written over."""
    while node is not None and node.name() == "CloneBackward0":
        node = node.next_functions[0][0]
    return node


_NODES = 64
"""How many steps are looked at to see that two tensors were computed alike."""


def computed_alike(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors are equal because the same was computed twice from the same."""
    if first.shape != second.shape or first.dtype != second.dtype or first.grad_fn is None or second.grad_fn is None:
        return False
    left, seen = [(first.grad_fn, second.grad_fn)], 0
    while left:
        one, other = map(_original, left.pop())
        seen += 1
        if one is other:
            continue
        if one is None or other is None or seen > _NODES or one.name() != other.name():
            return False
        parents, others = one.next_functions, other.next_functions
        if not parents or [position for _, position in parents] != [position for _, position in others]:
            return False
        left.extend(zip((node for node, _ in parents), (node for node, _ in others), strict=True))
    with torch.no_grad():
        alike = (first == second) | (first.isnan() & second.isnan())  # numbers and constants that were taken on the way
        return bool(alike.all())
