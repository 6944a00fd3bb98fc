"""Handlers of sums: linear, so autograd is right, but where relevance is no multiple of the activation.

Some rules (zB, w^2, flat) give relevance to units whatever they are worth, units of zero among them. Where it may have
come from one of these, no sum divides by its value, which may be anything: the terms that depend on the input share
equally, and constants receive nothing.

A sum is a linear map whose weights are 1: a rule for such maps that is set at the operation shares among its terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.operations.folding import folded
from relprop.operations.products import passed_on, scaled
from relprop.operations.rows import Rows, affine, by_entry_of_ids, rows
from relprop.propagation.call import relus
from relprop.propagation.call.autograd_functions import Sum, apply
from relprop.propagation.call.linear_call import check_precision
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.sum_call import SumCall
from relprop.propagation.facts.graph import Reach
from relprop.propagation.facts.inheritance import Values, averaged_terms, by_entry, moved, of, of_all, summed
from relprop.propagation.facts.operation import Difference, Excitation, Holds, Ids, Image, Kind, Rectifies
from relprop.propagation.math.linear_map import Addition, Contraction, Geometry
from relprop.propagation.math.numerics import safe
from relprop.trees import map_tensors, tensors_in


def add(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input + alpha other``."""
    return _signed_sum(here, input, other, alpha)


def sub(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input - alpha other``."""
    return _signed_sum(here, input, other, -alpha)


def rsub(here: Here, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``other - alpha input``."""
    return _signed_sum(here, other, input, -alpha)


def neg(here: Here, input: Tensor) -> Tensor:
    """``-input``."""
    found = folded(here, input, torch.neg, lambda: (-1.0, None), ())
    return scaled(here, input, -1.0, here.func(input)) if found is None else found


def factor(here: Here, input: Tensor) -> Tensor:
    """A constant multiple (``deg2rad``, ``rad2deg``)."""
    return scaled(here, input, 1.0, here.func(input))


def _signed_sum(here: Here, first: Any, second: Any, alpha: float) -> Tensor:
    held = _held(here, first, second)
    several = held is None and here.active(first) and here.active(second)
    centres = several and alpha == -1 and _is_statistic(here.original(second), here.original(first))
    if centres or not several:
        here.kind = Kind.SHIFT
        here.choose()
    nothing = any(not isinstance(x, Tensor) and x == 0 for x in (first, second))  # with which Python's `sum` begins
    ruled = by_rule(here, first, second) and not nothing
    if not ruled:
        here.by_autograd()
        found = _shifted(here, first, second, alpha)
        if found is not None:
            return found
    terms = [(first, 1.0), (second, alpha)]
    if held is not None:
        x, factor = terms[held]
        terms[held] = here.call.constant(x), factor
        here.absorbs(x.detach() * factor)
    (first, _), (second, _) = terms
    plain = torch.add(first if isinstance(first, Tensor) else torch.as_tensor(first), second, alpha=alpha)
    if ruled:
        out = _stacked(here, plain, terms)
    else:
        out = combined(here, plain, terms, among=[first] if centres else None)
    if alpha == -1 and here.active(first) and _shifts(first, second) and here.call.handles_zeros(first):
        # Where it is a softmax that is stabilised so, its relevance must not meet the rule for sums of zero.
        here.call.known.formulas.shift(out, here.original(first), here.original(second))
    return out


def _shifted(here: Here, first: Any, second: Any, alpha: float) -> Tensor | None:
    """Return ``first + alpha second`` where one is the output of a linear map, which the other, a constant, shifts."""
    if not here.active(second):
        return folded(
            here, first, lambda x: torch.add(x, second, alpha=alpha), lambda: (None, alpha * second), (second,)
        )
    if here.active(first):
        return None
    before, scale = torch.as_tensor(first), None if alpha == 1 else alpha
    return folded(here, second, lambda x: torch.add(before, x, alpha=alpha), lambda: (scale, first), (first,))


def by_rule(here: Here, *terms: Any) -> bool:
    """Say whether a rule was set at a sum, which serves real numbers."""
    if here.kind not in (Kind.SUM, Kind.SHIFT) or here.rule is None or here.rule.exact_by_autograd:
        return False
    if any(isinstance(x, Tensor) and x.is_complex() for x in terms):
        here.uncovered(f"adds up complex numbers, for which {here.rule!r} is not defined")
        return False
    return True


def _stacked(here: Here, out: Tensor, terms: Sequence[tuple[Any, float]]) -> Tensor:
    """Return ``out``, the sum of two terms times factors, among which a rule for linear maps shares."""

    def term(x: Any, factor: float) -> Tensor:
        given = torch.as_tensor(x, device=out.device)
        weighted = given if factor == 1 else given * factor
        if weighted is not given and here.active(x):  # whole, at zero too
            weighted = passed_on(here, given, weighted)
        found: Tensor = weighted.to(out.dtype).expand_as(out)
        return found

    given = [x for x, _ in terms if here.active(x)]
    active = torch.stack([term(x, factor) for x, factor in terms if here.active(x)])
    constants = [term(x, factor) for x, factor in terms if not here.active(x)]
    return shared(here, out, Addition(), given, active, constants[0] if constants else None)


def shared(
    here: Here, out: Tensor, geometry: Geometry, given: Sequence[Tensor], a: Tensor, constant: Tensor | None
) -> Tensor:
    """Return ``out``, the sum of what is in ``a`` and a constant, as the rule shares it out.

    Args:
        geometry: how ``a`` is added up.
        given: the tensors that ``a`` was made of.
    """
    call, rule = here.call, here.rule
    check_precision(rule, out.dtype)
    first = any(call.known.graph.reach(x) is Reach.ACTIVE for x in given)
    sum_call = SumCall(call, here.where, rule, geometry, call.handles_zeros(a), first)
    terms, beside = a.detach(), None if constant is None else constant.detach()
    here.declared = lambda c, value: sum_call.absorbed(rule, terms, beside, value, c)
    return apply(Sum, sum_call, lambda: out.detach().clone(), a, constant)


def _held(here: Here, first: Any, second: Any) -> int | None:
    """Return which term is a constant signal let through by a gate, beside one that is no gate: it is a constant.

    So a gate receives nothing where the signal is a constant either, as in the first step of a recurrent network.
    """
    call = here.call
    if not call.way.explains or not (here.active(first) and here.active(second)):
        return None
    origins = call.known.origins.of(first), call.known.origins.of(second)
    if origins[0].gate == origins[1].gate or not (origins[0].held or origins[1].held):
        return None
    rule = call.way.choose(Kind.GATE, "mul", *call.place, parts_of=call.trace.parts_of).rule
    return int(origins[1].held) if rule.shares((1, 1), (True, False))[0] == 0.0 else None


def _shifts(x: Tensor, other: Any) -> bool:
    """Say whether ``other`` is the same for many entries of ``x``."""
    return not isinstance(other, Tensor) or other.numel() < x.numel()


def _is_statistic(statistic: Tensor, x: Tensor) -> bool:
    """Say whether a tensor is one number for many entries of another, and computed from these without a linear map."""
    alike = statistic.numel() < x.numel() or 0 in statistic.stride()
    stack: list[Any] = [statistic.grad_fn] if alike else []
    seen: set[Any] = set()
    while stack and len(seen) < 16:
        node = stack.pop()
        if node is x.grad_fn and node is not None:
            return True
        if node is not None and node not in seen and not getattr(node, "passes_linear", False):
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return False


def combined(
    here: Here,
    out: Tensor,
    terms: Sequence[tuple[Any, float]],
    mark: object = None,
    among: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return ``out``, the sum of terms times factors; below a rule that reaches zeros, active ones share equally.

    Args:
        mark: by which it is known whether it stands there.
        among: the terms that share there, where these are not all active ones: what is centred keeps its own.
    """
    call = here.call
    active = [x for x, factor in terms if here.active(x) and factor != 0] if among is None else list(among)
    if out.is_complex() or not active or not all(map(call.handles_zeros, active)):
        return out
    surrogate = sum(x * call.constant(safe(out) / (len(active) * safe(x))) for x in active)
    assert isinstance(surrogate, Tensor)
    mark = object() if mark is None else mark
    found = call.even(out, surrogate, mark)
    if not call.options.measuring:
        return found
    constants = [torch.as_tensor(x).detach() * factor for x, factor in terms if x is not None and not here.active(x)]
    by_terms = here.declared

    def declared(c: Tensor, value: Tensor) -> dict[str, Tensor]:
        if call.zeros_above(mark):
            return {}
        if by_terms is not None:
            return by_terms(c, value)
        return {"bias": sum((c * constant for constant in constants), torch.zeros_like(value))}

    here.declared = declared
    return found


def total(here: Here, *args: Any, **kwargs: Any) -> Tensor:
    """Sums and means (``sum``, ``cumsum``, ``index_add``, average pooling)."""
    return averaged(here, here.func(*args, **kwargs), here.func, *args, **kwargs)


def averaged(here: Here, out: Tensor, mean: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Return ``out``, a sum of terms that count alike; where relevance reaches zeros, they share it equally."""
    if by_rule(here, out):
        (a,) = (x for x in tensors_in((args, kwargs)) if here.active(x))

        def averages(x: Tensor, weight: Tensor) -> Tensor:
            """Weights that are not negative, as those of a mean, times one number."""
            given, named = map_tensors(lambda each: x * weight if each is a else each, (args, kwargs))
            return mean(*given, **named)

        return shared(here, out, Contraction(averages), [a], a, None)
    here.by_autograd()
    return evenly(here, out, mean, args, kwargs)


def evenly(
    here: Here, out: Tensor, mean: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Return ``out = mean(...)``, explained so that the terms share equally, where relevance reaches zeros.

    Where ``mean(x) = n sum(x_i)`` for some number ``n``, the share of a term is ``mean(its 1) / mean(1)``.
    """
    call = here.call
    if out.is_complex() or not all(call.handles_zeros(x) for x in tensors_in((args, kwargs)) if here.active(x)):
        return out

    def each(x: Tensor) -> Tensor:
        if here.active(x):
            return x * call.constant(1 / safe(x))
        return torch.zeros_like(x) if x.is_floating_point() else x

    def one(x: Tensor) -> Tensor:
        if here.active(x):
            return torch.where(x.isnan(), x, 1.0).detach()
        return torch.zeros_like(x) if x.is_floating_point() else x

    (terms, more), (ones, others) = map_tensors(each, (args, kwargs)), map_tensors(one, (args, kwargs))
    number = mean(*ones, **others)
    empty = number == 0  # no term depends on the input
    share = torch.where(empty, 0.0, safe(out) / torch.where(empty, 1.0, number))
    mark = object()
    found = call.even(out, mean(*terms, **more) * call.constant(share), mark)
    if not call.options.measuring:
        return found
    with torch.no_grad():
        empty_args, empty_kwargs = map_tensors(lambda x: torch.zeros_like(x) if here.active(x) else x, (args, kwargs))
        offset = mean(*empty_args, **empty_kwargs)

    def declared(c: Tensor, value: Tensor) -> dict[str, Tensor]:
        if call.zeros_above(mark):
            return {"rule": torch.where(empty, safe(value) * c, 0.0)}
        return {"bias": c * offset}

    here.declared = declared
    return found


def extremum(here: Here, input: Tensor, other: Tensor) -> Tensor:
    """``maximum`` and ``minimum``: the winner takes all; a constant that wins absorbs like a bias."""
    here.by_autograd()
    out: Tensor = here.func(input, other)
    if here.active(input) and here.active(other):
        return out
    x, constant = (input, other) if here.active(input) else (other, input)
    won = torch.where(x == constant, 0.5, (x != out).to(out.dtype)).detach()
    here.declared = lambda c, value: {"bias": c * value * won}
    return out


# The rows ----------------------------------------------------------------------------------------


def _added(input: Any, other: Any, *, alpha: float = 1) -> Values:
    return (input, 1), (other, alpha)


def _subtracted(input: Any, other: Any, *, alpha: float = 1) -> Values:
    return (input, 1), (other, -alpha)


def _subtracted_from(input: Any, other: Any, *, alpha: float = 1) -> Values:
    return (other, 1), (input, -alpha)


def _negative(input: Any) -> Values:
    return ((input, -1),)


def _first(x: Any, *rest: Any, **more: Any) -> Values:
    return ((x, 1),)


def _extremes(*names: str, difference: Difference, rectifies: Rectifies | None, image: Image) -> Rows:
    """The larger or the smaller of two tensors."""
    return rows(
        *names, kind=Kind.AFFINE, handler=extremum, keeps=of(by_entry(moved), _added), difference=difference,
        excitation=Excitation.AS_RULES, rectifies=rectifies, ids=Ids.CHANGES, entering=(), image=image,
        holds=Holds.NOTHING, updates=None, composite=False, deterministic=True,
    )  # fmt: skip


def _totals(*names: str, kind: Kind, difference: Difference, image: Image, label: str | None = None) -> Rows:
    """Sums and means of entries."""
    return affine(
        *names,
        kind=kind,
        handler=total,
        keeps=of_all(averaged_terms),
        difference=difference,
        excitation=Excitation.AVERAGES,
        image=image,
        label=label,
    )


_SHIFTED: Rows = [
    *affine("add", "__add__", "__radd__", label="add", kind=Kind.SUM, handler=add, keeps=of(summed, _added),
            difference=Difference.ADD, excitation=Excitation.ADD, image=Image.ADDS),
    *affine("sub", "subtract", "__sub__", label="sub", kind=Kind.SUM, handler=sub, keeps=of(summed, _subtracted),
            difference=Difference.ADD, excitation=Excitation.SUBTRACT, image=Image.SUBTRACTS),
    *affine("rsub", "__rsub__", label="sub", kind=Kind.SUM, handler=rsub, keeps=of(summed, _subtracted_from),
            difference=Difference.REVERSED_SUBTRACT, excitation=Excitation.REVERSED_SUBTRACT, image=Image.NOTHING),
    *affine("neg", "negative", "__neg__", label="neg", handler=neg, keeps=of(summed, _negative),
            difference=Difference.NEGATE, excitation=Excitation.AS_RULES, image=Image.NEGATES),
    *affine("deg2rad", "rad2deg", handler=factor, keeps=of(by_entry(averaged_terms), _first),
            difference=Difference.LINEAR, excitation=Excitation.AS_RULES, image=Image.NOTHING),
]  # fmt: skip

ROWS: Rows = [
    *by_entry_of_ids(_SHIFTED),
    *_totals("nanmean", "cumsum", "sum_to_size", kind=Kind.SUM,
             difference=Difference.AVERAGES, image=Image.SUMS),
    *_totals("_sparse_sum", label="sum", kind=Kind.AFFINE, difference=Difference.UNCOVERED, image=Image.SUMS),
    *_totals("trace", "fold", kind=Kind.AFFINE, difference=Difference.LINEAR, image=Image.NOTHING),
    *_extremes("maximum", difference=Difference.LARGER, rectifies=relus.of_maximum, image=Image.KEEPS),
    *_extremes("fmax", difference=Difference.LARGER, rectifies=relus.of_maximum, image=Image.NOTHING),
    *_extremes("minimum", "fmin", difference=Difference.SMALLER, rectifies=None, image=Image.NOTHING),
]  # fmt: skip
