"""Quotients ``q(z) = (f(z) - f(0)) / z`` of the functions of analysis, in closed form or by their series.

As in :mod:`relprop.operations.quotients`: at 0 the derivative ``f'(0)``, nothing cancels, all is differentiable.
The logarithms have no value at 0, and are expanded about their own zero: ``q(z) = f(z) / (z - root)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ratio(value: Tensor, z: Tensor, *series: float, radius: float = 1e-3) -> Tensor:
    """Return ``value / z``, near zero by its power series ``series[0] + series[1] z + ...``.

    With five terms, the series and the division are both exact to rounding at ``|z| = 1e-3``, in value and in slope.
    """
    near = z.abs() < radius
    small = torch.where(near, z, 0.0)
    return torch.where(near, _polynomial(series, small), value / torch.where(near, 1.0, z))


def _polynomial(coefficients: Sequence[float], z: Tensor) -> Tensor:
    total = torch.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total


def nonzero(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return where ``z`` is zero, and ``z`` with 1 in its place there."""
    zero = z == 0
    return zero, torch.where(zero, 1.0, z)


def tanh(z: Tensor) -> Tensor:
    """``tanh(z) / z``."""
    return ratio(torch.tanh(z), z, 1.0, 0.0, -1 / 3, 0.0, 2 / 15)


def exp(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z``."""
    return expm1(z)


def expm1(z: Tensor) -> Tensor:
    """``expm1(z) / z``."""
    return ratio(torch.expm1(z), z, 1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120)


def log1p(z: Tensor) -> Tensor:
    """``log1p(z) / z``."""
    return ratio(torch.log1p(z), z, 1.0, -1 / 2, 1 / 3, -1 / 4, 1 / 5)


def erf(z: Tensor) -> Tensor:
    """``erf(z) / z``."""
    return 2 / math.sqrt(math.pi) * ratio(torch.erf(z) * (math.sqrt(math.pi) / 2), z, 1.0, 0.0, -1 / 3, 0.0, 1 / 10)


def sin(z: Tensor) -> Tensor:
    """``sin(z) / z``."""
    return ratio(torch.sin(z), z, 1.0, 0.0, -1 / 6, 0.0, 1 / 120)


def cos(z: Tensor) -> Tensor:
    """``(cos(z) - 1) / z = -2 sin(z / 2)^2 / z``."""
    return ratio(-2 * torch.sin(z / 2).square(), z, 0.0, -1 / 2, 0.0, 1 / 24, 0.0)


def sinh(z: Tensor) -> Tensor:
    """``sinh(z) / z``."""
    return ratio(torch.sinh(z), z, 1.0, 0.0, 1 / 6, 0.0, 1 / 120)


def atan(z: Tensor) -> Tensor:
    """``atan(z) / z``."""
    return ratio(torch.atan(z), z, 1.0, 0.0, -1 / 3, 0.0, 1 / 5)


def asinh(z: Tensor) -> Tensor:
    """``asinh(z) / z``."""
    return ratio(torch.asinh(z), z, 1.0, 0.0, -1 / 6, 0.0, 3 / 40)


def atanh(z: Tensor) -> Tensor:
    """``atanh(z) / z``."""
    return ratio(torch.atanh(z), z, 1.0, 0.0, 1 / 3, 0.0, 1 / 5)


def asin(z: Tensor) -> Tensor:
    """``asin(z) / z``."""
    return ratio(torch.asin(z), z, 1.0, 0.0, 1 / 6, 0.0, 3 / 40)


def acos(z: Tensor) -> Tensor:
    """``(acos(z) - pi / 2) / z = -asin(z) / z``."""
    return -asin(z)


def tan(z: Tensor) -> Tensor:
    """``tan(z) / z``."""
    return ratio(torch.tan(z), z, 1.0, 0.0, 1 / 3, 0.0, 2 / 15)


def cosh(z: Tensor) -> Tensor:
    """``(cosh(z) - 1) / z = 2 sinh(z / 2)^2 / z``."""
    return ratio(2 * torch.sinh(z / 2).square(), z, 0.0, 1 / 2, 0.0, 1 / 24, 0.0)


def sinc(z: Tensor) -> Tensor:
    """``(sin(pi z) / (pi z) - 1) / z``."""
    series = [0.0] * 16
    for k in range(1, 9):
        series[2 * k - 1] = (-1) ** k / math.factorial(2 * k + 1)
    return math.pi * ratio(torch.sinc(z) - 1, math.pi * z, *series, radius=1.0)


def exp2(z: Tensor) -> Tensor:
    """``(2^z - 1) / z``."""
    return exponential(z, math.log(2))


def exponential(z: Tensor, rate: float | Tensor) -> Tensor:
    """``(exp(rate z) - 1) / z``."""
    return rate * expm1(rate * z)


def erfc(z: Tensor) -> Tensor:
    """``(erfc(z) - 1) / z = -erf(z) / z``."""
    return -erf(z)


def erfinv(z: Tensor) -> Tensor:
    """``erfinv(z) / z``."""
    half = math.sqrt(math.pi) / 2
    return half * ratio(torch.erfinv(z) / half, z, 1.0, 0.0, math.pi / 12, 0.0, 7 * math.pi**2 / 480)


def erfcx(z: Tensor) -> Tensor:
    """``(erfcx(z) - 1) / z``."""
    root = math.sqrt(math.pi)
    return ratio(torch.special.erfcx(z) - 1, z, -2 / root, 1.0, -4 / (3 * root), 1 / 2, -8 / (15 * root))


def ndtr(z: Tensor) -> Tensor:
    """``(Phi(z) - 1/2) / z`` for the distribution function of the normal distribution."""
    return erf(z / math.sqrt(2)) / math.sqrt(8)


def log_ndtr(z: Tensor) -> Tensor:
    """``(log Phi(z) - log(1/2)) / z = log(1 + erf(z / sqrt 2)) / z``."""
    central = z.clamp(min=-1.0)
    inner = log1p(torch.erf(central / math.sqrt(2))) * erf(central / math.sqrt(2)) / math.sqrt(2)
    outer = z.clamp(max=-1.0)
    return torch.where(z > -1, inner, (torch.special.log_ndtr(outer) + math.log(2)) / outer)


def entr(z: Tensor) -> Tensor:
    """``-log(z)`` for ``entr(z) = -z log(z)``; 0 at 0, where the slope is infinite."""
    zero, base = nonzero(z)
    return torch.where(zero, 0.0, -torch.log(base))


def i0(z: Tensor) -> Tensor:
    """``(I0(z) - 1) / z`` for the modified Bessel function."""
    series = [0.0] * 16
    for k in range(1, 9):
        series[2 * k - 1] = 1 / (4**k * math.factorial(k) ** 2)
    return ratio(torch.special.i0(z) - 1, z, *series, radius=1.0)


def i0e(z: Tensor) -> Tensor:
    """``(exp(-|z|) I0(z) - 1) / z``."""
    return torch.exp(-z.abs()) * i0(z) - torch.sign(z) * expm1(-z.abs())


def i1(z: Tensor) -> Tensor:
    """``I1(z) / z``."""
    return ratio(torch.special.i1(z), z, 1 / 2, 0.0, 1 / 16, 0.0, 1 / 384)


def i1e(z: Tensor) -> Tensor:
    """``exp(-|z|) I1(z) / z``."""
    return torch.exp(-z.abs()) * i1(z)


def square(z: Tensor) -> Tensor:
    """``z``."""
    return z


def sqrt(z: Tensor) -> Tensor:
    """``1 / sqrt(z)``, 0 at 0."""
    return power(z, 0.5)


def power(z: Tensor, exponent: float) -> Tensor:
    """``z^(p - 1)`` for ``p > 0``."""
    if float(exponent).is_integer():
        return z ** (exponent - 1)
    zero, base = nonzero(z)  # the slope at zero may be infinite
    return torch.where(zero, 0.0, base ** (exponent - 1))


def powers(z: Tensor, exponent: Tensor) -> Tensor:
    """``z^(p - 1)`` where the exponent of an entry is positive, else 0; 0 at 0 but for ``p = 1``."""
    positive = exponent > 0
    p = torch.where(positive, exponent, 1.0)
    zero, base = nonzero(z)
    # An integer power of a negative number needs its integer exponent; the slope at zero may be infinite.
    at_zero = torch.where(p == 1, 1.0, 0.0)
    return torch.where(positive, torch.where(zero, at_zero, base ** (p - 1)), 0.0)


# About another root ------------------------------------------------------------------------------


def log(z: Tensor) -> Tensor:
    """``log(z) / (z - 1)``."""
    return ratio(torch.log(z), z - 1, 1.0, -1 / 2, 1 / 3, -1 / 4, 1 / 5)


def log2(z: Tensor) -> Tensor:
    """``log2(z) / (z - 1)``."""
    return log(z) / math.log(2)


def log10(z: Tensor) -> Tensor:
    """``log10(z) / (z - 1)``."""
    return log(z) / math.log(10)


def logit(z: Tensor, eps: float | None = None) -> Tensor:
    """``logit(z) / (z - 1/2)``."""
    return ratio(torch.logit(z, eps), z - 0.5, 4.0, 0.0, 16 / 3, 0.0, 64 / 5)


def ndtri(z: Tensor) -> Tensor:
    """``ndtri(z) / (z - 1/2) = 2 sqrt(2) erfinv(2 z - 1) / (2 z - 1)``."""
    return math.sqrt(8) * erfinv(2 * z - 1)


def acosh(z: Tensor) -> Tensor:
    """``acosh(z) / (z - 1)``; 0 at 1, where the slope is infinite."""
    zero, base = nonzero(z - 1)
    return torch.where(zero, 0.0, torch.acosh(torch.where(zero, 2.0, z)) / base)
