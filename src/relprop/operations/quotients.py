"""Quotients ``q(z) = (f(z) - f(0)) / z`` of activations, in closed form.

The Pass rule gives the input the coefficient ``c q(z)``. Each quotient takes the arguments of its function;
its value at 0 is the derivative ``f'(0)``. Written so that nothing cancels, and differentiable at 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations.elementary import expm1, nonzero, ratio, tanh


def gelu(z: Tensor, approximate: str = "none") -> Tensor:
    """``Phi(z)``, the distribution function of the normal distribution (or its approximation by tanh)."""
    if approximate == "tanh":
        return torch.sigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z**3))  # (1 + tanh u) / 2 = sigmoid(2 u)
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def silu(z: Tensor, inplace: bool = False) -> Tensor:
    """``sigmoid(z)``."""
    return torch.sigmoid(z)


def mish(z: Tensor, inplace: bool = False) -> Tensor:
    """``tanh(softplus(z))``."""
    return torch.tanh(F.softplus(z))


def sigmoid(z: Tensor) -> Tensor:
    """``(sigmoid(z) - 1/2) / z = tanh(z / 2) / (2 z)``."""
    return ratio(torch.tanh(z / 2) / 2, z, 1 / 4, 0.0, -1 / 48, 0.0, 1 / 480)


def hardsigmoid(z: Tensor, inplace: bool = False) -> Tensor:
    """``1/6`` within ``[-3, 3]``, ``+-1 / (2 z)`` outside."""
    inside = z.abs() <= 3
    return torch.where(inside, 1 / 6, 0.5 / torch.where(inside, 3.0, z.abs()))


def hardswish(z: Tensor, inplace: bool = False) -> Tensor:
    """``relu6(z + 3) / 6``."""
    return (z / 6 + 0.5).clamp(0, 1)


def hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """The quotient of ``clamp``."""
    return clamp(z, min_val, max_val)


def relu6(z: Tensor, inplace: bool = False) -> Tensor:
    """0 below zero, 1 up to six, ``6 / z`` above."""
    return clamp(z, 0.0, 6.0)


def clamp(z: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """``(clamp(z) - clamp(0)) / z``."""
    zero, base = nonzero(z)
    origin = clamped(torch.zeros_like(z), min, max)
    inside = torch.ones_like(z, dtype=torch.bool)
    if min is not None:
        inside = inside & (z >= min)
    if max is not None:
        inside = inside & (z <= max)
    # Where 0 and z both pass unchanged the quotient is 1, and so is its limit at 0.
    slope = (clamped(z, min, max) - origin) / base
    return torch.where(inside & (origin == 0), 1.0, torch.where(zero, 0.0, slope))


def clamped(z: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """``clamp`` with any mixture of numbers and tensors for bounds."""
    low = z if min is None else torch.maximum(z, torch.as_tensor(min, dtype=z.dtype, device=z.device))
    return low if max is None else torch.minimum(low, torch.as_tensor(max, dtype=z.dtype, device=z.device))


def clamp_min(z: Tensor, min: Any) -> Tensor:
    """``clamp`` from below."""
    return clamp(z, min=min)


def clamp_max(z: Tensor, max: Any) -> Tensor:
    """``clamp`` from above."""
    return clamp(z, max=max)


def elu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """1 above zero, ``alpha (exp(z) - 1) / z`` below."""
    return torch.where(z > 0, 1.0, alpha * expm1(z.clamp(max=0)))


def celu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """1 above zero, ``alpha (exp(z / alpha) - 1) / z`` below."""
    return torch.where(z > 0, 1.0, expm1(z.clamp(max=0) / alpha))


def selu(z: Tensor, inplace: bool = False) -> Tensor:
    """The scaled quotient of ``elu``."""
    return 1.0507009873554804934193349852946 * elu(z, 1.6732632423543772848170429916717)


def softplus(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``(softplus(z) - log(2) / beta) / z``."""
    scaled = z * beta
    small = scaled.clamp(max=threshold)
    value = torch.where(scaled > threshold, scaled - math.log(2), torch.log1p(torch.expm1(small) / 2))
    return ratio(value, scaled, 1 / 2, 1 / 8, 0.0, -1 / 192, 0.0)


def logsigmoid(z: Tensor) -> Tensor:
    """``(logsigmoid(z) + log 2) / z = (log(1 + exp(s)) - log 2) / s`` for ``s = -z``."""
    s = -z
    value = torch.log1p(torch.exp(-s.abs())) + s.clamp(min=0) - math.log(2)
    small = torch.log1p(torch.expm1(s.clamp(max=1)) / 2)
    return ratio(torch.where(s < 1, small, value), s, 1 / 2, 1 / 8, 0.0, -1 / 192, 0.0)


def softsign(z: Tensor) -> Tensor:
    """``1 / (1 + |z|)``."""
    return 1 / (1 + z.abs())


def tanhshrink(z: Tensor) -> Tensor:
    """``1 - tanh(z) / z``."""
    return 1 - tanh(z)


def softshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    """``1 - lambda / |z|`` beyond the threshold, 0 within."""
    outside = z.abs() > lambd
    return torch.where(outside, 1 - lambd / torch.where(outside, z.abs(), 1.0), 0.0)


def hardshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    """1 beyond the threshold, 0 within."""
    return (z.abs() > lambd).to(z.dtype)
