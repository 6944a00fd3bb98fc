"""Handlers of products and quotients: where several active tensors meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.operations import softmax_by_hand
from relprop.operations.folding import folded
from relprop.operations.rows import Rows, rows, weighted
from relprop.propagation.call import relus
from relprop.propagation.call.operation_call import Here, declares_nothing
from relprop.propagation.facts.inheritance import Keeps, keeps_nothing, multiplied
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Ids, Image, Kind
from relprop.propagation.facts.origins import Origin
from relprop.propagation.math.numerics import TAU, safe

CONSTANT = Origin(factors=0)
"""What is known of a factor that does not depend on the input: it counts as none."""


def product(here: Here, factors: tuple[Any, ...], entrywise: bool = False) -> tuple[Any, ...]:
    """Return the factors of a product, each carrying the share of the relevance that the rule gives it.

    Factors that do not depend on the input are constants. Where a gate multiplies something that is none, the rule for
    gates is chosen. Of what is multiplied ``entrywise``, ``q(z)`` is a constant too where ``z`` is another factor.
    """
    call = here.call
    if not call.way.explains:
        return factors
    origins = [call.known.origins.with_itself(here.original(x)) if here.active(x) else CONSTANT for x in factors]
    slopes = _slopes(origins) if entrywise else [False] * len(origins)
    counts = tuple(0 if slope else origin.factors for origin, slope in zip(origins, slopes, strict=True))
    counts = counts if any(counts) else tuple(int(here.active(x)) for x in factors)  # multiples of zero alone
    gates = tuple(origin.gate and not slope for origin, slope in zip(origins, slopes, strict=True))
    here.kind = Kind.GATE if any(gates) and sum(map(bool, counts)) > sum(gates) else Kind.PRODUCT
    here.choose()
    shares = here.shares(counts, gates)
    here.factors = sum(count for count, share in zip(counts, shares, strict=True) if share)
    if any(slopes) and sum(map(bool, counts)) == 1:  # an activation, which is one factor of what it is part of
        here.factors = 1
    return tuple(shared(here, factor, share) for factor, share in zip(factors, shares, strict=True))


def shared(here: Here, factor: Any, share: float) -> Any:
    """Return a factor through which a share of the relevance passes; a constant is one whatever its share."""
    if share == 1.0 or not here.active(factor):
        return factor
    return here.call.constant(factor) if share == 0.0 else here.call.scale(factor, share)


def _slopes(origins: Sequence[Origin]) -> list[bool]:
    """Say of each factor whether it is the ``q(z)`` of ``z q(z)``, an activation that is spelled as a product."""
    powers = {root for origin in origins for root, degree in origin.powers if degree}
    return [any(degree == 0 and root in powers for root, degree in origin.powers) for origin in origins]


def _activation(here: Here, input: Tensor, other: Tensor) -> Tensor | None:
    """Return ``input other`` where that is ``z q(z)``, by the rule for activations; else None."""
    call = here.call
    if not (call.way.explains and here.active(input) and here.active(other)):
        return None
    slopes = _slopes([call.known.origins.with_itself(here.original(x)) for x in (input, other)])
    if True not in slopes:
        return None
    z, q = (input, other) if slopes[1] else (other, input)
    here.kind, here.factors = Kind.ACTIVATION, 1
    here.choose()
    if here.rule.exact_by_autograd:
        factors = z, call.constant(q)
        return joined(here, here.func(*factors), torch.mul, factors, masked=False)
    out, value = here.func(input, other), q if call.options.create_graph else q.detach()
    return call.switch(out, here.asked(here.rule.surrogate, "out", z=z, out=out, quotient=value))


def multiply(here: Here, input: Any, other: Any) -> Tensor:
    """``*``: by a constant it is linear, by another active tensor a product."""
    found = softmax_by_hand.recognized(here, Image.MULTIPLIES, input, other)
    if found is not None:
        return found
    if not (here.active(input) and here.active(other)):
        x, factor = (input, other) if here.active(input) else (other, input)
        if isinstance(factor, (int, float)) and factor == 0:
            here.kept = CONSTANT
        found = folded(here, x, lambda y: torch.mul(y, factor), lambda: (factor, None), (factor,))
        out: Tensor = scaled(here, x, factor, here.func(input, other)) if found is None else found
        if isinstance(factor, Tensor) and factor.dim():  # a sum of it may be a linear layer
            here.call.known.products.note(out, here.original(x), factor)
        return out
    found = _activation(here, input, other)
    if found is not None:
        return found
    factors = product(here, (input, other))
    return joined(here, here.func(*factors), torch.mul, factors, masked=False)


def divide(here: Here, input: Any, other: Any) -> Tensor:
    """``/``: what divides is a constant (Norm)."""
    if here.active(other):
        found = softmax_by_hand.recognized(here, Image.DIVIDES, input, other)
        if found is None:
            found = softmax_by_hand.gated(here, input, other)
        if found is not None:
            return found
        here.declared = declares_nothing
        divisor = denominator(here, other)
        out: Tensor = here.func(input, divisor)
        return out if here.active(divisor) or not here.active(input) else passed_on(here, input, out)
    if isinstance(other, Tensor) or other:
        found = folded(here, input, lambda x: here.func(x, other), lambda: (1 / other, None), (other,))
        if found is not None:
            return found
    here.declared = declares_nothing
    return scaled(here, input, 1.0, here.func(input, other))


def reversed_divide(here: Here, other: Tensor, input: Any) -> Tensor:
    """``input / other`` where only ``other`` is a tensor (``Tensor.__rdiv__``)."""
    found = softmax_by_hand.recognized(here, Image.INVERTS, other, input)
    if found is not None:
        return found
    return here.func(denominator(here, other), input)  # type: ignore[no-any-return]


def inverse(here: Here, input: Tensor, *args: Any) -> Tensor:
    """``rsqrt``, ``reciprocal`` and negative powers: what divides is a constant (Norm)."""
    found = softmax_by_hand.recognized(here, Image.POWER if args else Image.INVERTS, input, *args)
    return denominator(here, here.func(input, *args)) if found is None else found


def denominator(here: Here, x: Tensor) -> Tensor:
    """Return what divides, as the rule passes relevance to it."""
    if not here.call.way.explains:
        return x
    here.kind, here.declared = Kind.NORM, declares_nothing
    here.choose()
    return here.explained(here.rule.denominator, "x", x=x)


def scaled(here: Here, x: Tensor, factor: Any, out: Tensor) -> Tensor:
    """Return ``out = factor x`` for a constant factor; at ``x = 0`` relevance passes unless the factor is 0."""
    call = here.call
    here.by_autograd()
    masked = torch.as_tensor(factor, device=out.device) == 0 if call.handles_zeros(x) else None
    out = passed_on(here, x, out, masked)
    if masked is not None:
        here.declared = lambda c, value: {"mask": torch.where(masked, safe(value) * c, 0.0)}
    return out


def passed_on(here: Here, x: Tensor, out: Tensor, masked: Tensor | None = None) -> Tensor:
    """Return ``out``, a multiple of ``x``, explained so that ``x`` receives its relevance whole, at units of zero too.

    Where it is ``masked`` by a constant that is zero, ``x`` receives nothing.
    """
    call = here.call
    if not call.handles_zeros(x) or out.is_complex():
        return out
    passed = call.constant(safe(out) / safe(x))
    if masked is not None:
        passed = torch.where(masked, torch.zeros_like(passed), passed)
    return call.switch(out, x * passed)


def whole(here: Here, x: Tensor, out: Tensor) -> Tensor:
    """Return ``out``, linear in ``x``; below a rule that reaches zeros, each entry receives its relevance whole."""
    if not here.call.handles_zeros(x) or out.is_complex():
        return out
    return here.call.even(out, x * here.call.constant(safe(out) / safe(x)), object())


def joined(
    here: Here, out: Tensor, compute: Callable[..., Tensor], factors: Sequence[Any], masked: bool = True
) -> Tensor:
    """Return ``out``, linear in each of its factors, explained so that sums of zero conserve their relevance too.

    There the terms that were summed receive equal parts, and so do the active factors of a term, whatever they are
    worth. Each factor already carries its share (see :func:`product`). What a constant zero multiplies is no term,
    unless it is not ``masked`` by it: a gate that the rule made constant hands on what it shut.
    """
    call = here.call
    active = [factor for factor in factors if here.active(factor)]
    if out.is_complex() or not active or not all(map(call.handles_zeros, active)):
        return out

    def with_one(position: int | None) -> Tensor:
        """Return the product with ones for all factors but one, and tau for that."""
        return compute(
            *(
                x * call.constant(TAU / safe(x))
                if index == position
                else (x.detach() != 0).to(x.dtype)
                if masked and not here.active(x)
                else torch.ones_like(x)
                for index, x in enumerate(factors)
            )
        )

    terms = with_one(None)
    even = sum((with_one(i) for i, x in enumerate(factors) if here.active(x)), torch.zeros_like(out))
    here.declared = lambda c, value: {"mask": torch.where((value == 0) & (terms == 0), safe(value) * c, 0.0)}
    return call.switch(out, torch.where(out.detach() == 0, even / terms.clamp(min=1), out))


# The rows ----------------------------------------------------------------------------------------


def divider(*names: str, handler: Handler, keeps: Keeps, difference: Difference) -> Rows:
    """``/`` in its spellings: by a constant it scales, by what depends on the input it is a product."""
    return rows(
        *names, label="div", kind=Kind.PRODUCT, handler=handler, keeps=keeps, difference=difference,
        excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.CHANGES, entering=(), image=Image.DIVIDES,
        holds=Holds.NOTHING, updates=None, composite=False, deterministic=True,
    )  # fmt: skip


def _inverting(*names: str, kind: Kind, handler: Handler, difference: Difference, label: str | None = None) -> Rows:
    return rows(
        *names, label=label, kind=kind, handler=handler, keeps=keeps_nothing, difference=difference,
        excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.CHANGES, entering=(), image=Image.INVERTS,
        holds=Holds.NOTHING, updates=None, composite=False, deterministic=True,
    )  # fmt: skip


ROWS: Rows = [
    *rows(
        "mul", "multiply", "__mul__", "__rmul__", label="mul", kind=Kind.PRODUCT, handler=multiply, keeps=multiplied,
        difference=Difference.MULTIPLY, excitation=Excitation.AS_RULES, rectifies=relus.of_product, ids=Ids.CHANGES,
        entering=(), image=Image.MULTIPLIES, holds=Holds.NOTHING, updates=None, composite=False, deterministic=True,
    ),
    *_inverting("__rdiv__", "__rtruediv__", label="div", kind=Kind.PRODUCT, handler=reversed_divide,
                difference=Difference.REVERSED_DIVIDE),
    *_inverting("reciprocal", kind=Kind.NORM, handler=inverse, difference=Difference.RECIPROCAL),
    *weighted("rsqrt", kind=Kind.NORM, handler=inverse, keeps=keeps_nothing, difference=Difference.INVERSE_ROOT,
              image=Image.NOTHING, holds=Holds.NOTHING, updates=None),
]  # fmt: skip
