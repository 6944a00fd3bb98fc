"""Handlers of elementwise functions: the Pass rule gives the input the coefficient ``c q(z)``, by their quotients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations import elementary, quotients, softmax_by_hand
from relprop.operations.elementary import exp, exponential, nonzero, power, powers
from relprop.operations.products import denominator
from relprop.operations.quotients import hardsigmoid
from relprop.operations.rows import Rows, activation, rows
from relprop.propagation.call import relus
from relprop.propagation.call.autograd_functions import Beside, Spare, apply
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.returned import check_finite_quotient, check_quotient
from relprop.propagation.call.sum_call import SumCall
from relprop.propagation.facts.inheritance import Keeps, clipped, function, keeps_nothing
from relprop.propagation.facts.numbers import number
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Ids, Image, Kind, Rectifies
from relprop.propagation.math.numerics import safe

Function = Callable[..., Any]


def elementwise(quotient: Callable[..., Tensor], here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run an elementwise function, explained by the rule from its quotient.

    Args:
        quotient: ``q(z) = (f(z) - f(0)) / z``, of the arguments of the function; a handler is
            ``functools.partial(elementwise, q)``.
        here: the call.
        input: the argument that the function is of, entry by entry.
        args, kwargs: its other arguments.

    Returns: what the function returns.

    Raises:
        OperationError: where the quotient is no tensor of the shape of the output.
        NumericalError: where the quotient is not finite.

    >>> from relprop import LRP, operation
    >>> @operation(kind="activation", handler=partial(elementwise, torch.sigmoid))
    ... def swish(z):
    ...     return z * torch.sigmoid(z)
    >>> class Swish(torch.nn.Module):
    ...     def forward(self, x):
    ...         return swish(x)
    >>> LRP(Swish()).attribute(torch.tensor([[2.0]]))
    tensor([[1.7616]])
    """
    return applied(here.func, quotient, here, input, *args, **kwargs)


def applied(
    func: Function, quotient: Callable[..., Tensor], here: Here, input: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Run ``func``, which need not be the function that the model called, explained from its quotient."""
    call = here.call
    out: Tensor = func(input, *args, **kwargs)
    if not call.way.explains:
        return out
    if input.is_complex():
        here.uncovered("is applied to complex numbers, for which its rule is not defined")
        return out
    z = input if call.options.create_graph else input.detach()
    value = out if call.options.create_graph else out.detach()
    offset = None
    with torch.set_grad_enabled(call.options.create_graph):
        q = check_quotient(quotient(z, *args, **kwargs), out, here.where)
        if call.handles_zeros(input):
            offset = _at_zero(func, input, args, kwargs) != 0
            q = torch.where(offset, q, safe(value) / safe(z))
    if call.options.looking:
        check_finite_quotient(q, z, out, here.where)
    surrogate = here.asked(here.rule.surrogate, "out", z=input, out=out, quotient=q)
    if call.way.by_sign and here.choice.default:
        surrogate = _beside(here, surrogate, _value_at_zero(func, input, args, kwargs), value)
    found = call.switch(out, surrogate)
    if offset is None:
        return found
    return _without_offset(here, input, apply(Spare, call, found, offset & (out.detach() == 0)), out - q * z)


def _beside(here: Here, signal: Tensor, constant: Tensor | None, out: Tensor) -> Tensor:
    """Return the signal of a function that adds a constant to it: below z+ and alpha-beta the two share by sign.

    Of what such a layer gives its input only the parts of one sign count, however small the input: the constant is one
    of the contributions, and where ``f(z)`` is near 0 nothing is amplified.
    """
    call, by_itself = here.call, here.declared
    if constant is None:
        return signal
    call.above = {} if call.above is None else call.above
    sum_call, mark = SumCall(call, here.where), object()
    found = apply(Beside, sum_call, signal, constant, out, mark)
    if not call.options.measuring:
        return found
    value_of, constant_of = signal.detach(), constant.detach()

    def declared(c: Tensor, value: Tensor) -> dict[str, Tensor]:
        rule = (call.above or {}).get(mark)
        if rule is not None:
            return sum_call.absorbed(rule, value_of[None], constant_of, value, c)
        return {"bias": c * constant_of} if by_itself is None else by_itself(c, value)

    here.declared = declared
    return found


def _value_at_zero(func: Function, input: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return ``f(0)``; None where that is zero."""
    tensors = any(isinstance(x, Tensor) for x in (*args, *kwargs.values()))
    dtype = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) and not tensors else input.dtype
    with torch.no_grad():  # beside the device, where that can be, which it need not wait for
        zero = torch.zeros((), dtype=dtype, device=input.device if tensors else "cpu")
        found: Tensor = func(zero, *args, **kwargs)
        return found.to(input.device, input.dtype) if bool((found != 0).any()) else None


def _without_offset(here: Here, input: Tensor, out: Tensor, offset: Tensor) -> Tensor:
    """Return ``out``; below a rule that reaches zeros, the constant in it receives nothing, and its argument all."""
    call = here.call
    if not call.handles_zeros(input) or not here.rule.exact_by_autograd:
        return out
    mark, offset, by_itself = object(), offset.detach(), here.declared

    def declared(c: Tensor, value: Tensor) -> dict[str, Tensor]:
        if call.zeros_above(mark):
            return {}
        return {"bias": c * offset} if by_itself is None else by_itself(c, value)

    here.declared = declared
    return call.even(out, input * call.constant(safe(out) / safe(input)), mark)


def exponential_function(here: Here, input: Tensor) -> Tensor:
    """``exp``, which may come to be part of a softmax that is written by hand."""
    found = softmax_by_hand.exponential(here, input, lambda: here.func(input))
    if found is not None:
        return found
    out = elementwise(exp, here, input)
    softmax_by_hand.note_exponential(here, input, out)
    return out


def exponential_of_two(here: Here, input: Tensor) -> Tensor:
    """``exp2``, likewise."""
    found = softmax_by_hand.exponential(here, input, lambda: here.func(input), 2.0)
    if found is not None:
        return found
    out = elementwise(elementary.exp2, here, input)
    softmax_by_hand.note_exponential(here, input, out, base=2.0)
    return out


def exponential_less_one(here: Here, input: Tensor) -> Tensor:
    """``expm1``, which is an exponential again once 1 is added."""
    out = elementwise(elementary.expm1, here, input)
    softmax_by_hand.note_exponential(here, input, out, added=-1.0)
    return out


def softplus(here: Here, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``softplus``, the logarithm of ``1 + exp(z)``."""
    out = elementwise(quotients.softplus, here, input, beta, threshold)
    softmax_by_hand.note_logarithm(
        here, input, out, lambda z: F.softplus(z, beta, threshold), summed=False, degree=0, ones=1 / beta, rate=beta
    )
    return out


def log_sigmoid(here: Here, input: Tensor) -> Tensor:
    """``logsigmoid``."""
    out = elementwise(quotients.logsigmoid, here, input)
    softmax_by_hand.note_logarithm(here, input, out, F.logsigmoid, summed=False, ones=-1)
    return out


def _at_zero(func: Function, input: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return ``f(0)``, as it broadcasts to the output."""
    parameters = any(isinstance(x, Tensor) and x.dim() for x in (*args, *kwargs.values()))
    with torch.no_grad():
        zeros = torch.zeros_like(input) if parameters else torch.zeros_like(input[(0,) * input.dim()])
        found: Tensor = func(zeros, *args, **kwargs)
        return found


def about(root: float, quotient: Callable[..., Tensor], here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a function without a value at 0, explained about its zero: ``f(z) = q(z) (z - root)``.

    What belongs to ``-root`` absorbs like a bias, so that ``log(1 + z)`` is explained as ``log1p(z)`` is.
    """
    call = here.call
    out: Tensor = here.func(input, *args, **kwargs)
    if not call.way.explains:
        return out
    if input.is_complex():
        here.uncovered("is applied to complex numbers, for which its rule is not defined")
        return out
    with torch.set_grad_enabled(call.options.create_graph):
        q = check_quotient(
            quotient(input if call.options.create_graph else input.detach(), *args, **kwargs), out, here.where
        )
    if call.options.looking:
        check_finite_quotient(q, input, out, here.where)
    here.absorbs(-root * q)
    surrogate = here.asked(here.rule.surrogate, "out", z=input, out=out, quotient=q)
    if call.way.by_sign and here.choice.default:
        surrogate = _beside(here, surrogate, -root * q, out if call.options.create_graph else out.detach())
    return _without_offset(here, input, call.switch(out, surrogate), -root * q)


def piecewise(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A function linear on each side of zero: plain autograd is the Pass rule, but at units of zero."""
    call = here.call
    if here.rule is not None and not here.rule.exact_by_autograd:
        return divided(here.func, here, input, *args, **kwargs)
    here.by_autograd()
    out: Tensor = here.func(input, *args, **kwargs)
    if call.handles_zeros(input):
        out = call.switch(out, input * call.constant(safe(out) / safe(input)))
    return out


def prelu(here: Here, input: Tensor, weight: Tensor) -> Tensor:
    """``prelu``: linear on each side of zero, unless its slope depends on the input."""
    if here.active(weight):
        here.uncovered("has a slope that depends on the input")
        return here.func(input, weight)  # type: ignore[no-any-return]
    return piecewise(here, input, weight)


def _by_division(func: Function) -> Callable[..., Tensor]:
    """Return the quotient ``(f(z) - f(0)) / z`` of any function; 0 at 0."""

    def quotient(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        zero, base = nonzero(z)
        return torch.where(zero, 0.0, (func(z, *args, **kwargs) - _at_zero(func, z, args, kwargs)) / base)

    return quotient


def stepwise(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An elementwise function of which only its values are known (``sign``, ``round``, ``floor``)."""
    return divided(here.func, here, input, *args, **kwargs)


def divided(func: Function, here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run ``func``, of which only its values are known."""
    return applied(func, _by_division(func), here, input, *args, **kwargs)


def clamp(quotient: Callable[..., Tensor], here: Here, input: Any, min: Any = None, max: Any = None) -> Tensor:
    """``clamp``; where a bound depends on the input too, the winner takes all."""
    bounds = [bound for bound in (min, max) if here.active(bound)]
    if not bounds:
        return elementwise(quotient, here, input, min, max)
    here.by_autograd()
    out: Tensor = here.func(input, min, max)
    ours = torch.stack([out == x for x in (input, *bounds) if here.active(x)]).any(0)
    here.absorbs(torch.where(ours, 0.0, out))
    return out


def threshold(here: Here, input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """``threshold``: what replaces the input absorbs like a bias."""
    here.by_autograd()
    out: Tensor = here.func(input, threshold, value)
    here.absorbs(torch.where(input <= threshold, out, 0.0))
    return out


def relu(here: Here, input: Tensor, inplace: bool = False) -> Tensor:
    """ReLU: linear on each side of zero."""
    return piecewise(here, input, inplace) if inplace else piecewise(here, input)


def sigmoid(here: Here, input: Tensor) -> Tensor:
    """``sigmoid``."""
    return elementwise(quotients.sigmoid, here, input)


def hard_sigmoid(here: Here, input: Tensor, inplace: bool = False) -> Tensor:
    """``hardsigmoid``, whose own derivative in PyTorch holds 1/6 in single precision and has no derivative itself."""
    return applied(_hardsigmoid if here.call.options.create_graph else here.func, hardsigmoid, here, input)


def _hardsigmoid(z: Tensor) -> Tensor:
    return (z + 3).clamp(0, 6) / 6


def raise_to(here: Here, input: Any, exponent: Any) -> Tensor:
    """``x^p``: by its quotient for positive ``p``; a negative power divides; ``b^x`` is an exponential function."""
    return _power(here.func, here, input, exponent)


def reversed_power(here: Here, exponent: Tensor, base: Any) -> Tensor:
    """``base ** exponent`` where only the exponent is a tensor (``Tensor.__rpow__``)."""
    return _power(lambda x, p: here.func(p, x), here, base, exponent)


def float_power(here: Here, input: Any, exponent: Any) -> Tensor:
    """``float_power``, which computes in double precision."""
    double = [x.double() if isinstance(x, Tensor) else float(x) for x in (input, exponent)]
    return _power(torch.pow, here, *double)


def _power(func: Function, here: Here, input: Any, exponent: Any) -> Tensor:
    if here.active(exponent):
        if here.active(input):
            here.uncovered("raises an active tensor to an active exponent")
            return func(input, exponent)  # type: ignore[no-any-return]
        return _exponential(func, here, input, exponent)
    if isinstance(exponent, Tensor):
        if exponent.numel() > 1:
            return _powers(func, here, input, exponent)
        exponent = exponent.item()
    if exponent <= 0:
        found = softmax_by_hand.recognized(here, Image.POWER, input, exponent)
        return denominator(here, func(input, exponent)) if found is None else found
    return applied(func, power, here, input, exponent)


def _exponential(func: Function, here: Here, base: Any, exponent: Tensor) -> Tensor:
    base = torch.as_tensor(base, dtype=exponent.dtype, device=exponent.device)
    if bool((base <= 0).any()):
        here.uncovered("raises a base that is not positive to an active exponent")
        return func(base, exponent)  # type: ignore[no-any-return]
    one = number(base)
    found = None if one is None else softmax_by_hand.exponential(here, exponent, lambda: func(base, exponent), one)
    if found is not None:
        return found
    here.absorbs(torch.ones_like(exponent * base))
    out = applied(lambda x, b: func(b, x), _of_base, here, exponent, base)
    if one is not None:
        softmax_by_hand.note_exponential(here, exponent, out, base=one)
    return out


def _of_base(x: Tensor, base: Tensor) -> Tensor:
    """``(base^x - 1) / x``."""
    return exponential(x, torch.log(base))


def _powers(func: Function, here: Here, input: Tensor, exponent: Tensor) -> Tensor:
    """A power for every entry: those that are not positive are constants, as what divides is."""
    call = here.call
    out: Tensor = func(input, exponent)
    if not call.way.explains:
        return out
    with torch.set_grad_enabled(call.options.create_graph):
        q = powers(input if call.options.create_graph else input.detach(), exponent)
    here.absorbs(torch.where(exponent > 0, 0.0, out))
    given = {"z": input.expand_as(out), "out": out, "quotient": q.expand_as(out)}
    return call.switch(out, here.asked(here.rule.surrogate, "out", **given))


# The rows ----------------------------------------------------------------------------------------

_REAL = (-math.inf, math.inf)
_ABOVE = (0.0, math.inf)


def curve(*names: str, quotient: Callable[..., Tensor], bounds: tuple[float, float], difference: Difference) -> Rows:
    """Functions that are explained by their quotients; none of them is ever a ReLU, and none is a gate."""
    keeps = function(*bounds, gate=False, homogeneous=False)
    handler = partial(elementwise, quotient)
    return activation(*names, handler=handler, keeps=keeps, difference=difference, rectifies=None, image=Image.NOTHING)


def _gate(
    *names: str, handler: Handler, bounds: tuple[float, float], difference: Difference, label: str | None = None
) -> Rows:
    """Functions that switch what they multiply."""
    keeps = function(*bounds, gate=True, homogeneous=False)
    return activation(
        *names,
        handler=handler,
        keeps=keeps,
        difference=difference,
        rectifies=None,
        image=Image.NOTHING,
        label=label,
    )


def _beginning(*names: str, handler: Handler, bounds: tuple[float, float]) -> Rows:
    """Functions of an exponential, which begin what is followed of them: their handlers say what."""
    keeps = function(*bounds, gate=False, homogeneous=False)
    return activation(
        *names, handler=handler, keeps=keeps, difference=Difference.SMOOTH, rectifies=None, image=Image.NOTHING,
    )  # fmt: skip


def _about(*names: str, root: float, quotient: Callable[..., Tensor], difference: Difference, image: Image) -> Rows:
    """Functions without a value at 0, by their quotients about their zero."""
    keeps = function(*_REAL, gate=False, homogeneous=False)
    handler = partial(about, root, quotient)
    return activation(*names, handler=handler, keeps=keeps, difference=difference, rectifies=None, image=image)


def _kinked(*names: str, handler: Handler, keeps: Keeps, rectifies: Rectifies | None, image: Image) -> Rows:
    """Functions linear on both sides of kinks, which may be ReLUs."""
    return activation(
        *names, handler=handler, keeps=keeps, difference=Difference.KINKED, rectifies=rectifies, image=image
    )


def _relu_bounds(input: Any, inplace: bool = False) -> tuple[Any, Any]:
    return 0.0, None


def _relu6_bounds(input: Any, inplace: bool = False) -> tuple[Any, Any]:
    return 0.0, 6.0


def _hardtanh_bounds(input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> tuple[Any, Any]:
    return min_val, max_val


def _clamp_bounds(input: Any, min: Any = None, max: Any = None) -> tuple[Any, Any]:
    return min, max


def _clamp_max_bounds(input: Any, max: Any) -> tuple[Any, Any]:
    return None, max


_anything = function(*_REAL, gate=False, homogeneous=False)
_multiple = function(*_REAL, gate=False, homogeneous=True)

ROWS: Rows = [
    # Smooth everywhere, explained by their quotients.
    *curve("gelu", quotient=quotients.gelu, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("silu", quotient=quotients.silu, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("mish", quotient=quotients.mish, bounds=_REAL, difference=Difference.SMOOTH),
    *_beginning("softplus", handler=softplus, bounds=_ABOVE),
    *_beginning("log_sigmoid", handler=log_sigmoid, bounds=(-math.inf, 0.0)),
    *curve("softsign", quotient=quotients.softsign, bounds=(-1.0, 1.0), difference=Difference.SMOOTH),
    *curve("tanhshrink", quotient=quotients.tanhshrink, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("tanh", quotient=elementary.tanh, bounds=(-1.0, 1.0), difference=Difference.SMOOTH),
    *curve("sinh", quotient=elementary.sinh, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("cosh", quotient=elementary.cosh, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("sin", quotient=elementary.sin, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("cos", quotient=elementary.cos, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("sinc", quotient=elementary.sinc, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("atan", "arctan", quotient=elementary.atan, bounds=_REAL, difference=Difference.SMOOTH),
    *curve("asinh", "arcsinh", quotient=elementary.asinh, bounds=_REAL, difference=Difference.SMOOTH),
    *_beginning("exp", handler=exponential_function, bounds=_ABOVE),
    *_beginning("exp2", handler=exponential_of_two, bounds=_ABOVE),
    *_beginning("expm1", handler=exponential_less_one, bounds=(-1.0, math.inf)),
    *curve("erf", quotient=elementary.erf, bounds=(-1.0, 1.0), difference=Difference.SMOOTH),
    *_gate("erfc", handler=partial(elementwise, elementary.erfc), bounds=(0.0, 2.0), difference=Difference.SMOOTH),
    *_gate("ndtr", handler=partial(elementwise, elementary.ndtr), bounds=(0.0, 1.0), difference=Difference.SMOOTH),
    *_gate("sigmoid", "expit", label="sigmoid", handler=sigmoid, bounds=(0.0, 1.0), difference=Difference.SMOOTH),
    # With poles, or not defined everywhere.
    *curve("tan", quotient=elementary.tan, bounds=_REAL, difference=Difference.POLES),
    *curve("asin", "arcsin", quotient=elementary.asin, bounds=_REAL, difference=Difference.POLES),
    *curve("acos", "arccos", quotient=elementary.acos, bounds=_REAL, difference=Difference.POLES),
    *curve("atanh", "arctanh", quotient=elementary.atanh, bounds=_REAL, difference=Difference.POLES),
    *activation("log1p", handler=partial(elementwise, elementary.log1p), keeps=_anything,
                difference=Difference.POLES, rectifies=None, image=Image.LOGARITHM),
    *curve("erfinv", quotient=elementary.erfinv, bounds=_REAL, difference=Difference.POLES),
    *curve("erfcx", quotient=elementary.erfcx, bounds=_REAL, difference=Difference.UNCOVERED),
    *curve("log_ndtr", quotient=elementary.log_ndtr, bounds=_REAL, difference=Difference.POLES),
    *curve("entr", quotient=elementary.entr, bounds=_REAL, difference=Difference.POLES),
    *curve("i0", quotient=elementary.i0, bounds=_REAL, difference=Difference.POLES),
    *curve("i0e", quotient=elementary.i0e, bounds=_REAL, difference=Difference.POLES),
    *curve("i1", quotient=elementary.i1, bounds=_REAL, difference=Difference.POLES),
    *curve("i1e", quotient=elementary.i1e, bounds=_REAL, difference=Difference.POLES),
    *curve("square", quotient=elementary.square, bounds=_ABOVE, difference=Difference.SQUARE),
    *curve("sqrt", quotient=elementary.sqrt, bounds=_ABOVE, difference=Difference.SQUARE_ROOT),
    *_about("log", root=1.0, quotient=elementary.log, difference=Difference.SCALED, image=Image.LOGARITHM),
    *_about("log2", root=1.0, quotient=elementary.log2, difference=Difference.SCALED, image=Image.LOGARITHM),
    *_about("log10", root=1.0, quotient=elementary.log10, difference=Difference.SCALED, image=Image.LOGARITHM),
    *_about(
        "acosh", "arccosh", root=1.0, quotient=elementary.acosh, difference=Difference.POLES, image=Image.NOTHING
    ),
    *_about("logit", root=0.5, quotient=elementary.logit, difference=Difference.POLES, image=Image.NOTHING),
    *_about("ndtri", root=0.5, quotient=elementary.ndtri, difference=Difference.POLES, image=Image.NOTHING),
    # With kinks.
    *curve("hardswish", quotient=quotients.hardswish, bounds=_REAL, difference=Difference.KINKED),
    *curve("celu", quotient=quotients.celu, bounds=_REAL, difference=Difference.KINKED),
    *curve("selu", quotient=quotients.selu, bounds=_REAL, difference=Difference.KINKED),
    *curve("softshrink", quotient=quotients.softshrink, bounds=_REAL, difference=Difference.KINKED),
    *curve("hardshrink", quotient=quotients.hardshrink, bounds=_REAL, difference=Difference.KINKED),
    *_gate("hardsigmoid", handler=hard_sigmoid, bounds=(0.0, 1.0), difference=Difference.HARD_SIGMOID),
    *_kinked("elu", handler=partial(elementwise, quotients.elu), keeps=_anything, rectifies=relus.of_elu,
             image=Image.NOTHING),
    *_kinked("relu", handler=relu, keeps=clipped(_relu_bounds, homogeneous=True), rectifies=relus.of_relu,
             image=Image.NOTHING),
    *_kinked("leaky_relu", handler=piecewise, keeps=_multiple, rectifies=relus.of_leaky_relu,
             image=Image.NOTHING),
    *activation("rrelu", handler=piecewise, keeps=_multiple, difference=Difference.RRELU,
                rectifies=relus.of_rrelu, image=Image.NOTHING),
    *_kinked("prelu", handler=prelu, keeps=_multiple, rectifies=relus.of_prelu, image=Image.NOTHING),
    *_kinked("abs", "absolute", handler=piecewise, keeps=function(*_ABOVE, gate=False, homogeneous=True),
             rectifies=None, image=Image.NOTHING),
    *_kinked("relu6", handler=partial(elementwise, quotients.relu6), keeps=clipped(_relu6_bounds, homogeneous=False),
             rectifies=None, image=Image.NOTHING),
    *_kinked("hardtanh", handler=partial(elementwise, quotients.hardtanh),
             keeps=clipped(_hardtanh_bounds, homogeneous=False), rectifies=relus.of_hardtanh,
             image=Image.NOTHING),
    *_kinked("clamp", "clip", handler=partial(clamp, quotients.clamp), keeps=clipped(_clamp_bounds, homogeneous=False),
             rectifies=relus.of_clamp, image=Image.KEEPS),
    *_kinked("clamp_min", handler=partial(elementwise, quotients.clamp_min),
             keeps=clipped(_clamp_bounds, homogeneous=False), rectifies=relus.of_clamp, image=Image.KEEPS),
    *_kinked("clamp_max", handler=partial(elementwise, quotients.clamp_max),
             keeps=clipped(_clamp_max_bounds, homogeneous=False), rectifies=None, image=Image.NOTHING),
    *rows(
        "threshold", kind=Kind.AFFINE, handler=threshold, keeps=_anything, difference=Difference.KINKED,
        excitation=Excitation.AS_RULES, rectifies=relus.of_threshold, ids=Ids.CHANGES, entering=(),
        image=Image.NOTHING, holds=Holds.NOTHING, updates=None, composite=False, deterministic=True,
    ),
    # Powers, of which a number says what they are.
    *activation("pow", "__pow__", label="pow", handler=raise_to, keeps=_anything, difference=Difference.POWER,
                rectifies=None, image=Image.POWER),
    *activation("__rpow__", label="pow", handler=reversed_power, keeps=_anything,
                difference=Difference.REVERSED_POWER, rectifies=None, image=Image.NOTHING),
    *activation("float_power", handler=float_power, keeps=_anything, difference=Difference.POWER, rectifies=None,
                image=Image.NOTHING),
    # Of which only the values are known.
    *activation("sign", "sgn", "round", "floor", "ceil", "trunc", "fix", handler=stepwise, keeps=_anything,
                difference=Difference.STEPPED, rectifies=None, image=Image.NOTHING),
    *activation("frac", handler=stepwise, keeps=_anything, difference=Difference.KINKED, rectifies=None,
                image=Image.NOTHING),
    *activation("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", handler=stepwise,
                keeps=keeps_nothing, difference=Difference.UNCOVERED, rectifies=None, image=Image.NOTHING),
]  # fmt: skip
