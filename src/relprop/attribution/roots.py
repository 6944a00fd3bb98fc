"""Where a function of every sample is zero: on a path from the input, and nearest to it.

Functions take rows ``[N, D]`` and give one number for each, ``[N]``; what is found for a sample depends on it alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Value = Callable[[Tensor], Tensor]
Path = Callable[[Tensor], Tensor]
"""From ``t``, ``[N, 1]``, to the points at ``t``, ``[N, D]``; the input is at 0."""


def ray(x: Tensor, direction: Tensor) -> Path:
    """Return the path ``x + t d``."""
    return lambda t: x + t * direction


def segment(x: Tensor, other: Tensor) -> Path:
    """Return the path from ``x`` at 0 to ``other`` at 1, exact at both ends."""
    return lambda t: torch.lerp(x, other, t)


def first_root(value: Value, path: Path, start: Tensor, length: Tensor, n_steps: int) -> Tensor:
    """Return the smallest ``t`` up to ``length`` at which the value is no longer of the sign it starts with.

    The path is looked at ``n_steps`` times; between the last point of the starting sign and the first of another, the
    interval is halved until its ends are neighbours up to rounding. A value that only touches zero between two of
    these points is missed.

    Args:
        start: the values at 0, ``[N]``.
        length: how far to look, ``[N]``.

    Returns:
        ``t``, ``[N]``; NaN where the sign never changes, 0 where the value is zero to begin with.
    """
    sign = start.sign()

    def beyond(t: Tensor) -> Tensor:
        return value(path(t[:, None])) * sign <= 0

    low, high = torch.zeros_like(length), torch.where(sign == 0, 0.0, torch.nan).to(length)
    for step in range(1, n_steps + 1):
        t = length * (step / n_steps)
        high = torch.where(high.isnan() & beyond(t), t, high)
        low = torch.where(high.isnan(), t, low)
        if not bool(high.isnan().any()):
            break
    found, high = ~high.isnan(), torch.where(high.isnan(), length, high)
    for _ in range(torch.finfo(length.dtype).bits):
        middle = (low + high) / 2
        if bool(((middle == low) | (middle == high)).all()):
            break
        reached = beyond(middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return torch.where(found, torch.where(sign == 0, 0.0, high), torch.nan)


def limit(x: Tensor, root: Tensor) -> Tensor:
    """Return a point next to a root on the side of ``x``, where a derivative is the limit from there.

    It is ``x~ + t (x - x~)`` with a ``t`` as small as rounding allows: 4e-10 in double precision, 7e-5 in single.
    """
    return root + float(torch.finfo(x.dtype).eps ** 0.6) * (x - root)


def other_side(value: Value, slope: Value, x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Return points at which the sign is another than at ``x``, by descent; where none was met, the last point.

    Every step is Newton's, half as long again: ``x - 1.5 f / |g|^2 g``.
    """
    point, output = x, start
    for _ in range(iterations):
        within = output * start.sign() > 0
        if not bool(within.any()):
            break
        gradient = slope(point)
        size = gradient.square().sum(1)
        step = torch.where(within & (size > 0), 1.5 * output / torch.where(size > 0, size, 1.0), 0.0)
        point = point - step[:, None] * gradient
        output = value(point)
    return point


def nearest_root(
    value: Value, slope: Value, x: Tensor, start: Tensor, root: Tensor, n_steps: int, iterations: int
) -> Tensor:
    """Return a root that is the nearest to ``x`` in its neighbourhood: ``min |x - x~|`` where ``f(x~) = 0``.

    Every iterate is a root, the first on a ray from ``x``. The ray turns towards the gradient at the root, which lies
    on the line to ``x`` where the root is the nearest; a turn that brings no nearer root is undone and made smaller.

    Args:
        value, slope: the function and its gradient, ``[N, D]``.
        start: ``f(x)``.
        root: roots to begin with.
    """
    distance = (root - x).norm(dim=1)
    direction = _unit(root - x)
    eps = float(torch.finfo(x.dtype).eps)
    rate, smallest = torch.ones_like(distance), eps**0.5
    for _ in range(iterations):
        towards = -start.sign()[:, None] * _unit(slope(limit(x, root)))
        rate = torch.where((towards - direction).norm(dim=1) < smallest, 0.0, rate)
        if bool((rate < smallest).all()):
            break
        turned = _unit(torch.lerp(direction, towards, rate[:, None]))
        path = ray(x, turned)
        t = first_root(value, path, start, distance, n_steps)
        nearer = t < distance * (1 - 4 * eps)
        distance = torch.where(nearer, t, distance)
        direction = torch.where(nearer[:, None], turned, direction)
        root = torch.where(nearer[:, None], path(distance[:, None]), root)
        rate = torch.where(nearer, (2 * rate).clamp(max=1.0), rate / 4)
    return root


def _unit(direction: Tensor) -> Tensor:
    """Return directions of length 1; zero stays zero."""
    length = direction.norm(dim=1, keepdim=True)
    return direction / torch.where(length == 0, 1.0, length)
