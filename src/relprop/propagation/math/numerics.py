"""Guarded quotients, on which every rule stands, and the sizes that stabilizers count in."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TAU = 1e-30
"""What stands in for an activation of exactly zero, so that ``R / a`` exists."""


def safe(a: Tensor) -> Tensor:
    """Return ``a``, with the signed tiny ``tau = 1e-30`` where ``|a| < tau`` (``sign(0) = +1``).

    Relevance that is not a multiple of the activation (zB, w^2, flat) reaches units with ``a = 0``,
    where the coefficient ``c = R / a`` does not exist; ``R / safe(a)`` does.

    Args:
        a: activations; complex ones are returned as they are.

    >>> safe(torch.tensor([0.0, -2.0])).tolist()
    [1.0000000031710769e-30, -2.0]
    """
    if a.is_complex():
        return a
    tau = torch.full((), TAU, dtype=a.dtype, device=a.device)
    return torch.where(a.abs() < TAU, torch.where(a < 0, -tau, tau), a)


def stabilize(z: Tensor, epsilon: float | Tensor = 1e-6) -> Tensor:
    """Return ``z + epsilon * sign(z)`` with ``sign(0) = +1``.

    Args:
        z: sums of contributions.
        epsilon: in units of ``z``, a number or a tensor that broadcasts to it, >= 0; 1e-6 by default.

    >>> stabilize(torch.tensor([0.0, -2.0]), 0.5).tolist()
    [0.5, -2.5]
    """
    if not isinstance(epsilon, Tensor):
        epsilon = torch.full((), epsilon, dtype=z.dtype, device=z.device)
    return z + torch.copysign(epsilon, z)


def quotient(numerator: Tensor, denominator: Tensor, stabilizer: float | Tensor = 0.0) -> Tensor:
    """Return ``numerator / stabilize(denominator, stabilizer)``; without a stabilizer, ``x / 0 = 0``.

    In half precision the quotient is computed in float32 and brought back into the range of the type,
    so that a share of zero stays zero instead of ``inf * 0``.

    Args:
        numerator, denominator: of one shape, or such that they broadcast.
        stabilizer: in units of the denominator, as ``epsilon`` of ``stabilize``; 0 by default. Zeros in a tensor of
            stabilizers are exact quotients too.

    >>> quotient(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 0.0])).tolist()
    [1.5, 0.0]
    """
    dtype = numerator.dtype
    if dtype in (torch.float16, torch.bfloat16):
        limits = torch.finfo(dtype)
        exact = quotient(numerator.float(), denominator.float(), stabilizer)
        return exact.clamp(limits.min, limits.max).to(dtype)
    if isinstance(stabilizer, Tensor):  # which may itself be zero
        denominator = stabilize(denominator, stabilizer)
    elif stabilizer != 0.0:
        return numerator / stabilize(denominator, stabilizer)
    empty = denominator.abs() <= TAU
    # The division is guarded on both sides: its derivative must not meet 0 / 0 either.
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


def shared_out(relevance: Tensor, total: Tensor, stabilizer: Tensor) -> Tensor:
    """Return ``relevance / stabilize(total, stabilizer)``, and nothing where there is nothing to share it among.

    A total of zero is no small one, by which a stabilizer would divide: nothing may be amplified.

    >>> shared_out(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 0.0]), torch.tensor(1e-6)).tolist()
    [1.4999992847442627, 0.0]
    """
    dtype = relevance.dtype
    if dtype in (torch.float16, torch.bfloat16):
        limits = torch.finfo(dtype)
        return shared_out(relevance.float(), total.float(), stabilizer.float()).clamp(limits.min, limits.max).to(dtype)
    empty = (total <= TAU).logical_and_(total >= -TAU)
    whole = torch.copysign(stabilizer, total)
    if torch.is_grad_enabled():
        return relevance / torch.where(empty, torch.inf, total + whole)  # NaN stays NaN, to be found
    # The same, without a new tensor at every step: memory is what these steps cost.
    whole = (whole.add_(total) if whole.shape == total.shape else total + whole).masked_fill_(empty, torch.inf)
    return torch.div(relevance, whole, out=whole) if whole.shape == relevance.shape else relevance / whole


def damped(c: Tensor, z: Tensor, stabilizer: Tensor) -> Tensor:
    """Return ``c z / stabilize(z, stabilizer)``: what :func:`shared_out` gives of ``z c``, by fewer steps.

    >>> damped(torch.tensor([3.0, 3.0]), torch.tensor([-2.0, 0.0]), torch.tensor(2.0)).tolist()
    [1.5, 0.0]
    """
    if c.dtype in (torch.float16, torch.bfloat16):
        return damped(c.float(), z.float(), stabilizer.float()).to(c.dtype)
    size = z.abs()
    whole = size + (stabilizer + TAU)  # 0 / 0 = 0
    return c * (size / whole) if torch.is_grad_enabled() else size.div_(whole).mul_(c)


def rms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the root mean square over some dimensions, which stay; at least in float32.

    >>> rms(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), (1,)).tolist()
    [[3.535533905029297], [0.0]]
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    most = torch.finfo(wide.dtype).max  # so that sums whose squares overflow have a size all the same
    square = wide.square().mean(dims, keepdim=True).clamp(max=most)
    zero = square == 0  # where the root has no derivative
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """Return a parameter of the channels (dimension 1), so that it broadcasts."""
    return parameter.reshape(1, -1, *(1,) * (x.dim() - 2))


AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_AVERAGES: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
"""Average pooling, by the number of dimensions."""
