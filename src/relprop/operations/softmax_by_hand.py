"""Softmax, attention and sigmoids written by hand: ``exp(z) / sum(exp(z))``, ``(exp(z) @ v) / sum(exp(z))``, ...

The pieces have rules of their own, under which every spelling would have another explanation. So where what a call
returns is known to be one of these (see :mod:`relprop.propagation.facts.exponentials`), it is computed once more from
``z``, and explained as ``torch.softmax``, as the product of that with ``v``, or as ``torch.sigmoid`` is. A shift of
``z`` that is the same for all it is summed over receives nothing, since the coefficients of a softmax add up to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.call.autograd_functions import Adjoint, apply
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.way import NO_RULE
from relprop.propagation.facts.exponentials import Formula, Values
from relprop.propagation.facts.graph import constant_entry
from relprop.propagation.facts.operation import Image, Kind
from relprop.propagation.facts.origins import NOTHING, Origin
from relprop.propagation.run.filters import finished
from relprop.propagation.run.taps import measured_input

GATE = Origin(low=0.0, high=1.0, gate=True)
"""What is known of a sigmoid."""


def recognized(here: Here, does: Image, *args: Any) -> Tensor | None:
    """Return ``here.func(*args)`` where that is a softmax, an average by one, a sigmoid or an exponential, else None.

    Args:
        does: what the operation makes of an image of an exponential.
        args: its arguments, of which the factors are tensors; what divides is the last.
    """
    call = here.call
    if not call.known.formulas.exist or not call.way.explains:
        return None
    given = tuple(map(here.original, args))
    found = _divided_last(here, does, given)
    if found is not None:
        return found
    active = [x for x, y in zip(given, args, strict=True) if here.active(y)]
    formula = call.known.formulas.made(does, here.func, given, {}, active)
    return explained(here, here.func(*args), formula) if formula is not None and _is_known(formula) else None


def exponential(here: Here, input: Tensor, compute: Callable[[], Tensor], base: float = math.e) -> Tensor | None:
    """Return ``compute() = base^input`` where that is a softmax or a sigmoid, as its logarithm is; else None."""
    formulas, z = here.call.known.formulas, here.original(input)
    logarithm = formulas.of(z) if formulas.exist and here.call.way.explains else None
    if logarithm is None or not logarithm.logarithm:
        return None
    formula = _exponential(logarithm, base)
    return explained(here, compute(), formula) if _is_known(formula) else None


def note_exponential(here: Here, input: Tensor, out: Tensor, base: float = math.e, added: float = 0.0) -> None:
    """Remember that ``out = base^input + added``."""
    if not here.call.way.explains or input.is_complex() or base in (0.0, 1.0):
        return
    formulas, z = here.call.known.formulas, here.original(input)
    logarithm = formulas.exponent(z)
    begins = logarithm.degree == 1 and formulas.of(z) is None
    if begins or not added:
        found = _exponential(logarithm, base, added)
        rate = math.log(base)
        formulas.note(out, replace(found, degree=abs(rate), rate=rate, added=added) if begins else found)


def _exponential(logarithm: Formula, base: float, added: float = 0.0) -> Formula:
    rate = math.log(base)

    def compute(values: Values) -> Tensor:
        z = logarithm.value(values)
        return torch.exp(z if rate == 1 else rate * z) + added

    power = logarithm.times(rate)
    if power.probabilities and not math.isclose(power.scale or 0.0, 1.0):
        power = replace(power, summed=False)  # a power of probabilities
    return replace(power, compute=compute, logarithm=False, scale=None)


def note_logarithm(
    here: Here, input: Tensor, out: Tensor, compute: Callable[[Tensor], Tensor], *, summed: bool, degree: float = 1.0,
    ones: float = 0.0, rate: float = 1.0,
) -> None:  # fmt: skip
    """Remember that ``out = compute(input)`` is the logarithm of what is made of ``exp(input)``.

    Args:
        summed: of sums of it; else of a function of its entries.
        degree, ones, rate: the powers.
    """
    if not here.call.way.explains or input.is_complex():
        return
    formulas, given = here.call.known.formulas, here.original(input)
    z = formulas.exponent(given)
    if not summed or z.ones or z.degree == 0 or z.mixed:
        z = formulas.begin(given)
    inner = z
    made = replace(
        z.part(), compute=lambda values: compute(inner.value(values)), exact=not summed, summed=summed, scale=1.0
    )
    formulas.note(out, replace(made, degree=z.degree * degree, ones=ones, rate=z.rate if summed else rate))


def _is_known(formula: Formula) -> bool:
    known = formula.probabilities or formula.sigmoid_of is not None or formula.added == 0
    return known and not formula.logarithm


def explained(here: Here, native: Tensor, formula: Formula) -> Tensor:
    """Return what the model computed, explained as the softmax or the sigmoid that it is."""
    rate = formula.sigmoid_of
    if rate is not None:
        return _as_function(here, native, torch.sigmoid, formula, rate, 0.5)
    if not formula.probabilities:
        return _as_function(here, native, torch.exp, formula, formula.rate, 1.0)
    found = _by_two(here, native, formula)
    if found is not None:
        return found
    call = here.call
    _shown_as(here, Kind.SOFTMAX, "softmax")
    values: Values = {argument: argument.tensor for argument in formula.arguments}
    if here.record is not None and call.options.measuring:
        offset = (native - _tangent(formula, values)).detach()
        here.declared = lambda c, value: {"softmax": c * offset}
        values = {argument: measured_input(here, z) for argument, z in values.items()}
    here.choose()
    here.kept = Origin(low=0.0)
    p = formula.value(values).to(native.dtype)
    return here.explained(here.rule.probabilities, "p", p=call.switch(native, p))


def _as_function(here: Here, native: Tensor, func: Any, formula: Formula, rate: float, at_zero: float) -> Tensor:
    """Return what the model computed, explained as ``func(rate z)``."""
    (argument,) = formula.arguments
    x = argument.tensor
    z = _taken(here, x)
    found = _run(here, func, z if rate == 1 else rate * z, at_zero)
    here.kept = here.call.operations[func].keeps(here.call.known.origins, [x], (x,), {})
    return here.call.switch(native, found.to(native.dtype))


def _run(here: Here, func: Any, z: Tensor, at_zero: float) -> Tensor:
    """Return ``func(z)`` by the rule for it, as if the model had called that."""
    row, called = here.call.operations[func], here.func
    _shown_as(here, row.kind, row.name)
    here.choose()
    here.func, here.declared = func, lambda c, value: {"bias": c * at_zero}
    try:
        return row.handler(here, z)  # type: ignore[no-any-return]
    finally:
        here.func = called


# Of two entries, of which one is a constant -------------------------------------------------------


def of_two(here: Here, native: Tensor, input: Tensor, dim: int) -> Tensor | None:
    """Return the softmax over ``[g, c]``, with a constant ``c``, as the gates ``sigmoid(+-(g - c))``; else None."""
    call, given = here.call, here.original(input)
    held = constant_entry(call.known.graph, given, dim) if given.shape[dim] == 2 else None
    if held is None:
        return None
    z = _taken(here, given)
    found = _run(here, torch.sigmoid, z.select(dim, 1 - held) - z.select(dim, held), 0.5)
    here.kept = GATE
    both = torch.stack([found, 1 - found] if held else [1 - found, found], dim)
    return call.switch(native, both.to(native.dtype))


def _by_two(here: Here, native: Tensor, formula: Formula) -> Tensor | None:
    """Return a softmax by hand over two entries as gates, where one of them is a constant; else None."""
    z = formula.arguments[0].tensor
    if len(formula.arguments) > 1 or native.shape != z.shape:
        return None
    for dim in (dim for dim, size in enumerate(z.shape) if size == 2):
        total = native.sum(dim)
        if _alike(total, torch.ones_like(total)):
            found = of_two(here, native, z, dim)
            if found is not None:
                return found
    return None


# Functions that divide by 1 + exp(z) ----------------------------------------------------------------


def gated(here: Here, input: Any, other: Any) -> Tensor | None:
    """Return ``input / (1 + exp(z))`` as the product with a sigmoid that it is; else None."""
    call = here.call
    formula = call.known.formulas.of(here.original(other)) if call.known.formulas.exist else None
    if formula is None or not (call.way.explains and here.active(input)) or formula.degree:
        return None
    gate = formula.times(-1)
    if formula.logarithm or gate.sigmoid_of is None:
        return None
    native: Tensor = here.func(input, other)
    return _continued(here, native, explained(here, 1 / other, gate), lambda s: here.original(input) * s)


def _continued(here: Here, native: Tensor, found: Tensor, rest: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what the model computed, explained as the rest of its steps on what was ``found`` of the first.

    What was found has the row of this call, the rest has rows and rules of its own.
    """
    call = here.call
    found = finished(here, found, (), {}, ((), {}), known=False)
    call.known.origins.note(found, here.kept or NOTHING)
    call.known.graph.reach(found)
    here.record, here.choice = None, NO_RULE
    assert here.mode is not None
    with here.mode:
        out = rest(found)
    here.kept, here.factors = call.known.origins.of(out)._replace(linear_call=None), None
    return call.switch(native, out)


def _shown_as(here: Here, kind: Kind, operation: str) -> None:
    here.kind, here.operation = kind, operation
    if here.record is not None:
        here.record.operation, here.record.kind = operation, kind
        here.note("written by hand")


def _taken(here: Here, z: Tensor) -> Tensor:
    """Return what an operation takes in place of its arguments."""
    return measured_input(here, z) if here.record is not None and here.call.options.measuring else z


def _tangent(formula: Formula, given: Values) -> Tensor:
    """Return ``J z`` for the Jacobian ``J``; a score of minus infinity adds nothing."""
    finite = {argument: torch.where(z.isfinite(), z, 0.0).detach() for argument, z in given.items()}
    found = None if formula.sparse else _differentiated(formula, given, finite)
    if found is not None and bool(found.isfinite().all()):
        return found
    # Of sparse matrices PyTorch has no second derivative, and that of logcumsumexp is no number where nothing arrives.
    return _by_differences(formula, {argument: z.detach() for argument, z in given.items()}, finite)


def _differentiated(formula: Formula, given: Values, direction: Values) -> Tensor:
    """Return the derivative along a direction, as that of ``J^T u`` by ``u``."""
    with torch.enable_grad():
        values = {argument: z.detach().requires_grad_() for argument, z in given.items()}
        leaves = list(values.values())
        p = formula.value(values)
        u = torch.zeros_like(p, requires_grad=True)
        back = torch.autograd.grad(p, leaves, u, create_graph=True)
        (found,) = torch.autograd.grad(back, u, list(direction.values()))
    return found


def _by_differences(formula: Formula, values: Values, direction: Values, step: float = 1e-3) -> Tensor:
    """Return a derivative along a direction, by the differences of five points."""

    def difference(t: float) -> Tensor:
        before, after = (
            formula.value({argument: z + s * direction[argument] for argument, z in values.items()}) for s in (-t, t)
        )
        return (after - before) / (2 * t)

    with torch.no_grad():
        return (4 * difference(step) - difference(2 * step)) / 3


# Attention that divides last ---------------------------------------------------------------------


def _divided_last(here: Here, does: Image, args: tuple[Any, ...]) -> Tensor | None:
    """Return ``(exp(z) @ v) / sum(exp(z))``, or its product with the inverse, explained as ``softmax(z) @ v``.

    The probabilities are computed by themselves, and what the model did with the exponentials is run on them: products,
    layers and sums are explained as they are anywhere. None for anything else.
    """
    found = [here.call.known.formulas.of(x) for x in args]
    images = [formula for formula in found if formula is not None]
    if len(images) != 2:
        return None
    average, divisor = images
    if does is not Image.DIVIDES and average.degree < divisor.degree:
        average, divisor = divisor, average
    weights = average.weights
    if weights is None or divisor.mixed:
        return None
    whole = weights.by(divisor.times(-1) if does is Image.DIVIDES else divisor)
    if whole is None or not whole.probabilities:
        return None

    def divided(sums: Tensor, by: Tensor) -> Tensor:
        operands = {average: sums, divisor: by}
        given = (x if formula is None else operands[formula] for x, formula in zip(args, found, strict=True))
        return here.func(*given)  # type: ignore[no-any-return]

    def probabilities(values: Values) -> Tensor:
        e, below = weights.value(values), divisor.value(values)
        return e * _inverse_of_each(average, e, lambda sums: divided(sums, below))

    whole = replace(whole, compute=probabilities, sparse=average.sparse or divisor.sparse)
    native: Tensor = here.func(*args)
    p = probabilities({argument: argument.tensor for argument in whole.arguments})

    def again(p: Tensor) -> Tensor:
        return average.compute({weights: p})

    with torch.no_grad():  # a sum that differs among the entries that it divides is none of a softmax
        if not _alike(again(p), native):
            return None
    return _continued(here, native, explained(here, p, whole), again)


def _alike(found: Tensor, native: Tensor) -> bool:
    """Say whether two tensors are one but for rounding."""
    tolerance = max(1e-3, 16 * torch.finfo(native.dtype).eps)
    return found.shape == native.shape and bool((found - native).abs().max() <= tolerance * native.abs().max())


def _inverse_of_each(average: Formula, weights: Tensor, divided: Callable[[Tensor], Tensor]) -> Tensor:
    """Return by the inverse of what each weight is divided: of all sums that it is part of, which have it alike."""
    assert average.weights is not None
    ones: Values = {signal: torch.ones_like(signal.tensor) for signal in average.signals}

    def summed(w: Tensor) -> Tensor:
        return average.compute({average.weights: w, **ones})

    with torch.enable_grad():
        sums = summed(torch.zeros_like(weights)).detach().requires_grad_()
        quotient = divided(sums)
        (inverse,) = torch.autograd.grad(quotient, sums, torch.ones_like(quotient), create_graph=True)
        number = apply(Adjoint, summed, weights.detach(), torch.ones_like(sums))
        added = apply(Adjoint, summed, weights.detach(), inverse)
    return torch.where(number == 0, 0.0, added / torch.where(number == 0, 1.0, number))
