"""What the output of an operation keeps of what is known of its arguments: how that is decided.

Which operation keeps what says its row. Every operation is asked with all values that enter its output: tensors that
depend on the input, constant tensors (whose entries are never looked at) and numbers (what is filled in, padded with,
added, multiplied by).

==================  ================================  =======================  ================  ======================
operation           bounds                            gate                     factors           function of
==================  ================================  =======================  ================  ======================
copies, same shape  as they were                      as it was                as they were      what it was, and itself
moves values        those of all values and of zero   all active ones are      all have as many  -
adds up, averages   zero, where no term is below      all active ones are      all have as many  -
adds, takes         the sum; the multiple             all active ones are,     all have as many  what all are
numbers times                                         or lifted to one sign
multiplies,         zero, where no factor is below    all active ones are      as the rule       what all are
divides                                                                        shares
clips               the clipped ones                  shifted, to one sign     if at zero        what it was
other functions     those of the function             sigmoids, and of gates   if homogeneous    what it was
linear maps         none                              no                       all have as many  -
==================  ================================  =======================  ================  ======================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.facts.moves import Reshaped, order_of
from relprop.propagation.facts.origins import NOTHING, Origin, Origins, Powers, Windows
from relprop.propagation.math.linear_map import Convolution
from relprop.trees import tensors_in

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Values = Sequence[tuple[Any, float]]
"""Values that enter an output, each with what it is multiplied by."""

Interval = tuple[float, float]
ANYWHERE: Interval = (-math.inf, math.inf)


@dataclass(frozen=True)
class Terms:
    """The values that enter an output.

    Attributes:
        known: what is known of those that depend on the input.
        weights: what each of these is multiplied by.
        numbers: the constant ones; None for a tensor.
    """

    known: list[Origin]
    weights: list[float]
    numbers: list[float | None]

    @property
    def gates(self) -> bool:
        """Say whether all that depend on the input are gates."""
        return all(origin.gate for origin in self.known)

    @property
    def factors(self) -> int:
        """Return of how many factors all of them are products, 1 where they differ."""
        counts = {origin.factors for origin in self.known}
        return counts.pop() if len(counts) == 1 else 1

    @property
    def powers(self) -> Powers:
        """Return the tensors of which all of them are functions, with the powers that their sum is a multiple of."""
        first, *more = (dict(origin.powers) for origin in self.known)
        shifted = any(number != 0 for number in self.numbers)
        return tuple(
            (root, 0 if shifted or any(other[root] != degree for other in more) else degree)
            for root, degree in first.items()
            if all(root in other for other in more)
        )

    @property
    def intervals(self) -> list[Interval]:
        """Return the bounds of all of them."""
        active = [_times(origin, weight) for origin, weight in zip(self.known, self.weights, strict=True)]
        return active + [ANYWHERE if number is None else (number, number) for number in self.numbers]

    @property
    def sign(self) -> float:
        """Return zero where none of them is below, as a lower bound."""
        return 0.0 if all(low >= 0 for low, _ in self.intervals) else -math.inf


def _times(origin: Origin, weight: float) -> Interval:
    """Return the bounds of a multiple."""
    if weight == 0 or math.isnan(weight):
        return ANYWHERE if weight else (0.0, 0.0)
    ends = origin.low * weight, origin.high * weight
    return min(ends), max(ends)


Policy = Callable[[Terms], Origin]
Keeps = Callable[[Origins, Sequence[Tensor], Args, Kwargs], Origin]
"""What an output keeps, from what is known of tensors, those among the arguments that depend on the input, and all."""


def keeps_nothing(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
    """Keep nothing."""
    return NOTHING


def note_inherited(origins: Origins, out: Any, origin: Origin, active: Sequence[Tensor], factors: int | None) -> None:
    """Note on the outputs what they keep; ``factors`` where the operation multiplied active ones, and so many."""
    for tensor in (out,) if isinstance(out, Tensor) else tensors_in(out):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        found = origin if tensor.is_floating_point() else Origin(factors=origin.factors)
        if factors is not None:
            found = found._replace(factors=factors)
        if found.powers and any(tensor.shape != x.shape for x in active):
            found = found._replace(powers=())
        made = origins.of(tensor)  # by its handler, or before: some operations return what they are given
        if made.linear_call is not None:
            found = found._replace(linear_call=made.linear_call, moves=made.moves)
        elif found.linear_call is not None or (found.windows is not None and origins.of(active[0]).windows is not None):
            found = _in_its_shape(origins, found, tensor, active[0]) if tensor is out else found.elsewhere
        origins.note(tensor, found)


def _in_its_shape(origins: Origins, found: Origin, tensor: Tensor, x: Tensor) -> Origin:
    """Return what is known of a tensor that holds what ``x`` does: all of it, or it is no moved output of a call."""
    if tensor.numel() != x.numel():
        return found._replace(linear_call=None, moves=(), windows=None)
    before = origins.of(x)
    if tensor.shape == x.shape or (found.moves, found.windows) != (before.moves, before.windows):
        return found
    return found._replace(moves=(*found.moves, Reshaped(tuple(x.shape), tuple(tensor.shape))), windows=None)


# Policies --------------------------------------------------------------------------------------


def moved(terms: Terms) -> Origin:
    """Values are moved, dropped or repeated, and zeros put between them."""
    lows, highs = zip(*terms.intervals, strict=True)
    return Origin(low=min(0.0, *lows), high=max(0.0, *highs), gate=terms.gates, factors=terms.factors)


def averaged_terms(terms: Terms) -> Origin:
    """Values are added with weights that are not negative."""
    return Origin(low=terms.sign, gate=terms.gates, factors=terms.factors)


def powered(terms: Terms) -> Origin:
    """Entries are multiplied with each other."""
    return Origin(low=terms.sign, gate=terms.gates)


def summed(terms: Terms) -> Origin:
    """Values are added; a number that lifts a bounded function to one sign makes a gate of it: ``1 + tanh(z)``."""
    lows, highs = zip(*terms.intervals, strict=True)
    low, high = sum(lows), sum(highs)
    before, *more = terms.known
    lifted = not more and -math.inf < before.low < 0 < before.high < math.inf and (low >= 0 or high <= 0)
    return Origin(
        low=low,
        high=high,
        gate=terms.gates or lifted,
        held=terms.gates and any(origin.held for origin in terms.known),
        shifted=not more and None not in terms.numbers and (before.shifted or any(terms.numbers)),
        factors=terms.factors,
        powers=terms.powers,
    )


def linear_terms(terms: Terms) -> Origin:
    """Values are mapped by what is linear in them."""
    return NOTHING if terms.factors == 1 else Origin(factors=terms.factors)


def by_entry(policy: Policy) -> Policy:
    """Return the policy of an operation that takes tensors entry by entry."""
    return lambda terms: policy(terms)._replace(powers=terms.powers)


# How operations are asked ----------------------------------------------------------------------


def _terms(origins: Callable[[Tensor], Origin], active: Sequence[Tensor], values: Values) -> Terms:
    """Sort values, each with its weight."""
    terms = Terms([], [], [])
    for value, weight in values:
        if isinstance(value, Tensor) and any(value is x for x in active):
            terms.known.append(origins(value))
            terms.weights.append(weight)
        elif value is not None:
            terms.numbers.append(value * weight if isinstance(value, (int, float)) else None)
    return terms


def of(policy: Policy, values: Callable[..., Values]) -> Keeps:
    """Ask with the values that a function picks from the arguments."""

    def keeps(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
        terms = _terms(origins.with_itself, active, values(*args, **kwargs))
        return policy(terms) if terms.known else NOTHING

    return keeps


def of_all(policy: Policy, indices: bool = True) -> Keeps:
    """Ask with all tensors but masks, and but integers where those are ``indices``."""

    def keeps(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
        tensors = [x for x in tensors_in((args, kwargs)) if x.dtype != torch.bool]
        values = [(x, 1.0) for x in tensors if not indices or x.is_floating_point() or x.is_complex()]
        return policy(_terms(origins.of, active, values))

    return keeps


def of_active(policy: Policy) -> Keeps:
    """Ask with what depends on the input: whatever else there is, it cannot change the answer."""

    def keeps(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
        return policy(Terms([origins.of(x) for x in active], [1.0] * len(active), []))

    return keeps


def copied(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
    """Of the same shape, the output is the same tensor once more."""
    return origins.with_itself(active[0])


def permuted(function: Callable[..., Any]) -> Keeps:
    """Return what is kept by a function that has the dimensions of a tensor in another order."""
    moving = of_all(moved)

    def keeps(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
        found, before = moving(origins, active, args, kwargs), origins.of(active[0])
        if before.linear_call is None and before.windows is None:
            return found
        order = order_of(function, active[0], args, kwargs)
        if before.linear_call is not None:
            return found._replace(linear_call=before.linear_call, moves=(*before.moves, order))
        assert before.windows is not None
        turned = replace(before.windows, transposed=not before.windows.transposed)
        return found._replace(windows=turned if order.dims == (0, 2, 1) else None)

    return keeps


def unfolded(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
    """The windows of an image, in columns: a product with a matrix is a convolution."""
    windows = _windows(*args, **kwargs)
    return of_all(moved)(origins, active, args, kwargs)._replace(windows=windows)


def _windows(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Windows | None:
    if input.dim() != 4:
        return None
    kernel, *steps = (tuple(x) if isinstance(x, Sequence) else (x, x) for x in (kernel_size, stride, padding, dilation))
    stride, padding, dilation = steps
    return Windows(input, input._version, kernel, Convolution(stride, padding, dilation, output_padding=(0, 0)))


# Functions of one tensor -----------------------------------------------------------------------


def function(low: float, high: float, *, gate: bool, homogeneous: bool) -> Keeps:
    """Return what a function of one tensor keeps, with values between two bounds: of gates it is one.

    Args:
        gate: it is a gate whatever it is a function of: a sigmoid.
        homogeneous: ``f(t z) = t f(z)`` for ``t > 0``, so that it is made of as many factors as its argument.
    """

    def keeps(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
        x = origins.with_itself(active[0])
        factors = x.factors if homogeneous else 1
        return Origin(low=low, high=high, gate=gate or x.gate, factors=factors, powers=_functions(x, active))

    return keeps


def _functions(x: Origin, active: Sequence[Tensor]) -> Powers:
    """Return of which tensors a function of one tensor is a function: of those that this is one of, and of itself."""
    return tuple((root, 0) for root, _ in x.powers) if len(active) == 1 else ()


def clipped(between: Callable[..., tuple[Any, Any]], *, homogeneous: bool) -> Keeps:
    """Return what clipping keeps: between two numbers of one sign it makes a gate of what a number was added to."""

    def keeps(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
        x = origins.with_itself(active[0])
        bounds = between(*args, **kwargs)
        if any(isinstance(bound, Tensor) for bound in bounds):
            return Origin(gate=x.gate, powers=_functions(x, active))
        least, most = (end if bound is None else bound for bound, end in zip(bounds, ANYWHERE, strict=True))
        low, high = (min(max(end, least), most) for end in (x.low, x.high))
        shut = x.shifted and math.isfinite(low) and math.isfinite(high) and (low >= 0 or high <= 0)
        factors = x.factors if homogeneous else 1
        return Origin(
            low=low, high=high, gate=x.gate or shut, shifted=x.shifted, factors=factors, powers=_functions(x, active)
        )

    return keeps


# Products --------------------------------------------------------------------------------------


def _of_factors(terms: Terms) -> Origin:
    """A product: powers of one tensor are multiplied, and times another function of it they are none."""
    first, *more = (dict(origin.powers) for origin in terms.known)
    degrees = {
        root: [degree, *(other[root] for other in more)]
        for root, degree in first.items()
        if all(root in other for other in more)
    }
    powers = tuple((root, sum(each) if all(each) else 0) for root, each in degrees.items())
    return Origin(low=terms.sign, gate=terms.gates, powers=powers)


def _pair(input: Any, other: Any, *, rounding_mode: Any = None) -> tuple[Any, Any]:
    return input, other


def multiplied(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
    """Of how many factors a product of active tensors is made, its handler says."""
    first, second = _pair(*args, **kwargs)
    for x, factor in ((first, second), (second, first)):
        if isinstance(factor, (int, float)):
            return summed(_terms(origins.with_itself, active, [(x, factor)]))
    terms = _terms(origins.with_itself, active, [(first, 1.0), (second, 1.0)])
    held = terms.gates and len(terms.known) == 1 and first.shape == second.shape
    return _of_factors(terms)._replace(factors=terms.factors, held=held)


def divided_by(origins: Origins, active: Sequence[Tensor], args: Args, kwargs: Kwargs) -> Origin:
    """What divides is a constant."""
    above, below = _pair(*args, **kwargs)
    if isinstance(below, (int, float)) and below:
        return summed(_terms(origins.with_itself, active, [(above, 1 / below)]))
    found = _of_factors(_terms(origins.with_itself, active, [(above, 1.0), (below, 1.0)]))
    if any(below is x for x in active):
        found = found._replace(powers=tuple((root, 0) for root, _ in found.powers))
    return found._replace(factors=origins.of(above).factors) if any(above is x for x in active) else found
