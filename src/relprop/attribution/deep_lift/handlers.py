"""Handlers of DeepLIFT: elementwise functions and products, explained by their difference from a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from relprop.attribution.deep_lift import secants
from relprop.attribution.deep_lift.secants import KINKED, SCALED, SMOOTH, Pair, Slope
from relprop.attribution.deep_lift.two_runs import PairedCall
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.relus import like_output, rectified
from relprop.propagation.run.in_place import set_item
from relprop.trees import map_tensors, tensors_in

OTHERWISE = "takes constants that are others for the baselines than for the inputs; the sum may miss f - f'."
UNCOVERED = "has no DeepLIFT rule; its gradient stands in for a multiplier, and the sum may miss f - f'."


def call_of(here: Here) -> PairedCall:
    """Return the call, which is one of two passes."""
    return cast("PairedCall", here.call)


def pairs(here: Here, *tensors: Tensor) -> tuple[Pair, ...] | None:
    """Return active arguments with what they are for the reference; None in that pass itself."""
    others = call_of(here).others(here, *tensors)
    return None if others is None else tuple(map(Pair, tensors, others))


def uncovered(here: Here, *args: Any, **kwargs: Any) -> Any:
    """Run what has no rule by its gradient, and name it."""
    out = here.func(*args, **kwargs)
    call = call_of(here)
    if call.reference is not None and any(call.known.graph.active(tensor) for tensor in tensors_in(out)):
        call.coverage.uncovered(here.operation if here.operation != "unknown" else name_of(here.func), UNCOVERED)
    return out


def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function, or of the property that it gets."""
    name = getattr(func, "__name__", str(func))
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else str(name)


def actives(here: Here, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the active arguments, as often as they occur."""
    return [tensor for tensor in tensors_in((args, kwargs)) if here.active(tensor)]


def with_actives(here: Here, args: Any, kwargs: Any, values: list[Tensor]) -> tuple[Any, Any]:
    """Return the arguments with other values in the place of the active ones."""
    left = iter(values)
    found: tuple[Any, Any] = map_tensors(lambda x: next(left) if here.active(x) else x, (args, kwargs))
    return found


# Elementwise functions ---------------------------------------------------------------------------


def elementwise(slope: Slope, here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An elementwise function, by its secant, or by RevealCancel behind a linear map."""
    call = call_of(here)
    if not here.active(input) or actives(here, args, kwargs):
        return uncovered(here, input, *args, **kwargs)  # type: ignore[no-any-return]
    found = pairs(here, input)
    if found is None:
        return here.func(input, *args, **kwargs)  # type: ignore[no-any-return]

    def function(z: Tensor) -> Tensor:
        out: Tensor = here.func(z, *args, **kwargs)
        return out

    return _by_secant(call, function, found[0], slope)


def _by_secant(call: PairedCall, function: Callable[[Tensor], Tensor], pair: Pair, slope: Slope) -> Tensor:
    spread = call.spread(pair.value) if slope in (KINKED, SMOOTH) else None  # which are defined everywhere
    if spread is None:
        return secants.elementwise(call, function, pair, slope).value
    return secants.revealed(call, function, pair, spread, slope).value


def hardsigmoid(here: Here, input: Tensor, inplace: bool = False) -> Tensor:
    """``hardsigmoid``, whose own derivative in PyTorch has none itself."""
    here.func = _hardsigmoid
    return elementwise(KINKED, here, input)


def _hardsigmoid(z: Tensor) -> Tensor:
    return (z + 3).clamp(0, 6) / 6


def rrelu(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``rrelu``; while training its slopes are random, and are drawn once for both."""
    if not here.active(input):
        return uncovered(here, input, *args, **kwargs)  # type: ignore[no-any-return]
    found = pairs(here, input)
    out: Tensor = here.func(input, *args, **kwargs)
    if found is None:
        return out
    slopes = torch.where(input < 0, out / torch.where(input < 0, input, 1.0), 1.0).detach()
    drawn = torch.where(slopes == 1, _mean_slope(*args, **kwargs), slopes)
    return _by_secant(call_of(here), lambda z: torch.where(z < 0, z * drawn, z), found[0], KINKED)


def _mean_slope(lower: float = 1 / 8, upper: float = 1 / 3, *args: Any, **kwargs: Any) -> float:
    return (lower + upper) / 2


def square(here: Here, input: Tensor) -> Tensor:
    """``x^2``."""
    return elementwise(secants.of_square, here, input)


def raised(here: Here, input: Any, exponent: Any) -> Tensor:
    """``x^p`` for a number ``p``, or ``b^x`` for a constant ``b``."""
    if here.active(input) and not here.active(exponent):
        two = not isinstance(exponent, Tensor) and exponent == 2
        return elementwise(secants.of_square if two else SCALED, here, input, exponent)
    if here.active(input):
        return uncovered(here, input, exponent)  # type: ignore[no-any-return]
    power, here.func = here.func, lambda z: power(input, z)
    return elementwise(SMOOTH, here, exponent)


def reversed_raised(here: Here, exponent: Tensor, input: Any) -> Tensor:
    """``b^x`` as ``Tensor.__rpow__`` spells it."""
    here.func = torch.pow
    return raised(here, input, exponent)


# Products and quotients --------------------------------------------------------------------------


def halfway(here: Here, *args: Any, **kwargs: Any) -> Any:
    """A function of degree two in its active arguments together: products, and what squares its argument."""
    call = call_of(here)
    found = pairs(here, *actives(here, args, kwargs))
    if found is None:
        return here.func(*args, **kwargs)
    with torch.set_grad_enabled(call.options.create_graph):
        native = here.func(*args, **kwargs)
    points = [secants.midpoint(call, pair.value, pair.other) for pair in found]
    args, kwargs = with_actives(here, args, kwargs, points)
    surrogates = iter(tensors_in(here.func(*args, **kwargs)))
    return map_tensors(lambda value: call.switch(value, next(surrogates)), native)


def product(here: Here, *args: Any, **kwargs: Any) -> Any:
    """A product of two factors, or of one with a constant; with terms that are added to it."""
    found = actives(here, args, kwargs)
    return here.func(*args, **kwargs) if len(found) == 1 else halfway(here, *args, **kwargs)


def contraction(here: Here, *args: Any, **kwargs: Any) -> Any:
    """``einsum`` and ``bilinear``: products of up to two active operands."""
    run = uncovered if len(actives(here, args, kwargs)) > 2 else product
    return run(here, *args, **kwargs)


def deviation(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``std``: the root of a variance."""
    found = pairs(here, input)
    if found is None:
        return here.func(input, *args, **kwargs)  # type: ignore[no-any-return]
    call = call_of(here)
    variance = secants.quadratic(call, lambda x: x.var(*args, **kwargs), found[0])
    return secants.elementwise(call, torch.sqrt, variance, secants.of_root).value


def quotient(here: Here, input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """``a / b``, by the product ``(a / b) b = a``; where ``a`` is a constant, by the secant of ``1 / b``."""
    call = call_of(here)
    if rounding_mode is not None:
        return elementwise(KINKED, here, input, other, rounding_mode=rounding_mode)
    if not here.active(other):
        return steered(here, input, other)  # type: ignore[no-any-return]
    found = pairs(here, *(x for x in (input, other) if here.active(x)))
    if found is None:
        return here.func(input, other)  # type: ignore[no-any-return]
    if not here.active(input):
        return secants.linear(call, lambda x: x * input, secants.reciprocal(call, found[-1])).value
    return secants.quotient(call, *found).value


def reversed_quotient(here: Here, other: Tensor, input: Any) -> Tensor:
    """``a / b`` as ``Tensor.__rtruediv__`` spells it."""
    here.func = torch.div
    return quotient(here, torch.as_tensor(input, dtype=other.dtype, device=other.device), other)


def steered(here: Here, *args: Any, **kwargs: Any) -> Any:
    """A function linear in what is active, entry by entry, with a constant that the input may have decided.

    ``where(x > 0, x, 0)`` and ``x * (x > 0)`` are ReLUs, for both inputs. Where the value of another function comes
    about otherwise for the reference, the multiplier is the secant.
    """
    call = call_of(here)
    found = actives(here, args, kwargs)
    out = here.func(*args, **kwargs)
    then = _meanwhile(here, found, args, kwargs)
    if not then:
        return out
    if here.func is set_item and not here.active(args[0]):
        _name_if_set_otherwise(here, then, *args)
        return out
    h, otherwise = rectified(here, args, kwargs), _decided_otherwise(here, then, args, kwargs)
    if len(found) > 1 and otherwise:
        call.coverage.uncovered(here.operation, OTHERWISE)
    if len(found) > 1 or (h is None and not otherwise):
        return out
    with torch.set_grad_enabled(call.options.create_graph):
        args, kwargs = map_tensors(lambda x: then.get(id(x), x), (args, kwargs))
        before = here.func(*args, **kwargs)
    if h is not None and torch.equal(before, like_output(then[id(h)], before).relu()):
        pair = Pair(h, then[id(h)])
        wide = h.shape == out.shape and h.dtype == out.dtype
        pair = pair if wide else secants.linear(call, lambda x: like_output(x, out), pair)
        return _by_secant(call, torch.relu, pair, KINKED)
    with torch.set_grad_enabled(call.options.create_graph):
        moved = (found[0] - then[id(found[0])]).expand_as(out)
        still = moved == 0
        factor = torch.where(still, 0.0, (out - before) / torch.where(still, 1.0, moved))
    if bool((still & (out != before)).any()):
        call.coverage.uncovered(here.operation, OTHERWISE)
    return call.switch(out, torch.where(still, out, found[0] * call.constant(factor)))


def _name_if_set_otherwise(here: Here, then: dict[int, Tensor], x: Tensor, index: Any, value: Tensor) -> None:
    """Name ``x[index] = value`` into a constant that keeps entries which are others for the baselines."""
    kept = ~set_item(torch.zeros_like(x, dtype=torch.bool), index, True)
    if _decided_otherwise(here, then, index, {}) or not _same(x[kept], then.get(id(x), x)[kept]):
        call_of(here).coverage.uncovered(here.operation, OTHERWISE)


def checked(handler: Callable[..., Any], here: Here, *args: Any, **kwargs: Any) -> Any:
    """A function that is named where a constant it takes, made from the input, is another for the reference."""
    then = _meanwhile(here, actives(here, args, kwargs), args, kwargs)
    otherwise = _decided_otherwise(here, then, args, kwargs)
    out = handler(here, *args, **kwargs)
    if otherwise and any(map(here.active, tensors_in(out))):
        call_of(here).coverage.uncovered(here.operation, OTHERWISE)
    return out


def _decided_otherwise(here: Here, then: dict[int, Tensor], args: Any, kwargs: Any) -> bool:
    """Say whether constants were others in the pass on the baselines."""
    constants = (x for x in tensors_in((args, kwargs)) if id(x) in then and not here.active(x))
    return not all(_same(x, then[id(x)]) for x in constants)


def _same(x: Tensor, other: Tensor) -> bool:
    """Say whether constants are equal, NaN to NaN too."""
    return torch.equal(x, other) or bool(((x == other) | (x.isnan() & other.isnan())).all())


def _meanwhile(here: Here, found: list[Tensor], args: Any, kwargs: Any) -> dict[int, Tensor]:
    """Return what active arguments, and constants that the input may have decided, were for the baselines.

    Nothing in that pass itself, and where there are no such constants.
    """
    call = call_of(here)

    def of_model(x: Tensor) -> bool:
        return call.known.protected.owns(x) or call.known.origins.is_weight(x)

    decided = [x for x in tensors_in((args, kwargs)) if not here.active(x) and not of_model(x)]
    others = call.others(here, *found, *decided) if decided else ()
    return dict(zip(map(id, (*found, *decided)), others, strict=True)) if others else {}
