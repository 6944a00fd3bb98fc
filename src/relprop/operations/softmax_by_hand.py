"""Softmax written by hand: ``exp(z) / sum(exp(z))``, whatever was subtracted from ``z``, and ``exp(log_softmax(z))``.

The pieces have rules of their own, under which every way of stabilising the quotient would have another explanation.
So where a quotient is known to be one (see :mod:`relprop.propagation.facts.exponentials`), it is computed once more
from ``z``, and explained as ``torch.softmax`` is. A shift of ``z`` that is the same for all it is summed over receives
nothing, since the coefficients of a softmax add up to zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.exponentials import Compute, Form, Formula
from relprop.propagation.facts.operation import Kind
from relprop.propagation.run.taps import measured_input


def quotient(here: Here, input: Any, other: Any) -> Tensor | None:
    """Return ``input / other`` where that is a softmax, else None."""
    first, second = (_formula(here, x) for x in (input, other))
    if first is None or second is None or not _one_softmax(first, second, Form.IMAGE):
        return None
    above, below = first.compute, second.compute
    return explained(here, here.func(input, other), first, lambda z: above(z) / below(z))


def product(here: Here, input: Any, other: Any) -> Tensor | None:
    """Return ``input other`` where that is a softmax: an exponential times the inverse of its sum; else None."""
    first, second = (_formula(here, x) for x in (input, other))
    if first is None or second is None:
        return None
    if first.kind is Form.INVERSE:
        first, second = second, first
    if not _one_softmax(first, second, Form.INVERSE):
        return None
    above, below = first.compute, second.compute
    return explained(here, here.func(input, other), first, lambda z: above(z) * below(z))


def exponential(here: Here, input: Tensor) -> Tensor | None:
    """Return ``exp(input)`` where that is a softmax, since the input is a logarithm of probabilities; else None."""
    formula = _formula(here, input)
    if formula is None or formula.kind is not Form.LOG_PROBABILITY or not formula.summed:
        return None
    inner = formula.compute
    return explained(here, here.func(input), formula, lambda z: torch.exp(inner(z)))


def note_exponential(here: Here, input: Tensor, out: Tensor) -> None:
    """Remember that ``out = exp(input)``."""
    formulas, shifted = here.call.known.formulas, _formula(here, input)
    if shifted is not None and shifted.kind is Form.SHIFTED:
        inner = shifted.compute
        formulas.note(out, Formula(shifted.argument, Form.IMAGE, lambda z: torch.exp(inner(z))))
        return
    formulas.note(out, Formula(formulas.begin(here.original(input)), Form.IMAGE, torch.exp))


def note_logarithm(here: Here, kind: Form, input: Tensor, out: Tensor, compute: Compute) -> None:
    """Remember that ``out`` is a logarithm of sums of ``exp(input)``, or ``input`` less that."""
    formulas = here.call.known.formulas
    formulas.note(out, Formula(formulas.begin(here.original(input)), kind, compute, summed=True))


def _formula(here: Here, x: Any) -> Formula | None:
    formulas = here.call.known.formulas
    return formulas.of(here.original(x)) if formulas.exist and here.call.way.explains else None


def _one_softmax(first: Formula, second: Formula, kind: Form) -> bool:
    return first.kind is Form.IMAGE and second.kind is kind and second.summed and first.argument is second.argument


def explained(here: Here, native: Tensor, formula: Formula, compute: Compute) -> Tensor:
    """Return the probabilities that the model computed, explained as the softmax that they are."""
    call, z = here.call, formula.argument.tensor
    here.operation = here.kind = Kind.SOFTMAX
    if here.record is not None:
        here.record.operation, here.record.kind = "softmax", Kind.SOFTMAX
        here.note("written by hand")
        if call.options.measuring:
            offset = (native - _tangent(compute, z)).detach()
            here.declared = lambda c, value: {"softmax": c * offset}
            z = measured_input(here, z)
    here.choose()
    return here.explained(here.rule.probabilities, "p", p=call.switch(native, compute(z).to(native.dtype)))


def _tangent(compute: Compute, z: Tensor) -> Tensor:
    """Return ``J z`` for the Jacobian ``J``, as the derivative of ``J^T u``; a score of minus infinity adds nothing."""
    with torch.enable_grad():
        x = z.detach().requires_grad_()
        p = compute(x)
        u = torch.zeros_like(p, requires_grad=True)
        (back,) = torch.autograd.grad(p, x, u, create_graph=True)
        (found,) = torch.autograd.grad(back, u, torch.where(x.isfinite(), x, 0.0).detach())
    return found
