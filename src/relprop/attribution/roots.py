"""Where a function of every sample is zero: on a path from the input, and nearest to it.

Functions take rows ``[N, D]`` and give one number for each, ``[N]``; what is found for a sample depends on it alone.
Where a function is not defined (NaN), there is no root, and no way on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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

    The path is looked at ``n_steps`` times; then the root is enclosed between the last point of the starting sign and
    the first of another. A value that only touches zero between two of these points is missed.

    Args:
        start: the values at 0, ``[N]``.
        length: how far to look, ``[N]``.

    Returns:
        ``t``, ``[N]``; NaN where the sign never changes, 0 where the value is zero to begin with.
    """
    sign = start.sign()

    def remaining(t: Tensor) -> Tensor:
        """Return the values, positive as long as they are of the sign they start with, or none."""
        return (value(path(t[:, None])) * sign).nan_to_num(torch.inf, torch.inf, -torch.inf)

    low, high = torch.zeros_like(length), torch.where(sign == 0, 0.0, torch.nan).to(length)
    above, below = start * sign, torch.zeros_like(length)
    for step in range(1, n_steps + 1):
        t = length * (step / n_steps)
        now = remaining(t)
        first = high.isnan() & (now <= 0)
        high, below = torch.where(first, t, high), torch.where(first, now, below)
        low, above = torch.where(high.isnan(), t, low), torch.where(high.isnan(), now, above)
        if not bool(high.isnan().any()):
            break
    found, high = ~high.isnan(), torch.where(high.isnan(), length, high)
    low = torch.where(found, low, high)
    t = _enclosed(remaining, low, above, high, below)
    return torch.where(found, torch.where(sign == 0, 0.0, t), torch.nan)


def _enclosed(remaining: Value, low: Tensor, above: Tensor, high: Tensor, below: Tensor) -> Tensor:
    """Return the first place up to rounding where the values, above zero at one end, are no longer above zero.

    The interval is divided in turns: where the line between its ends is zero, as the function is if it is linear; next
    to an end where the function is zero up to rounding, to see whether that is all that is left; and in the middle.
    """
    eps = float(torch.finfo(low.dtype).eps)
    least = 4 * eps * above
    for turn in range(3 * torch.finfo(low.dtype).bits):
        middle = low + (high - low) / 2
        if bool(((middle <= low) | (middle >= high)).all()):
            break
        if turn % 3 == 0:
            t = low + (high - low) * (above / (above - below))
        elif turn % 3 == 1:
            t = torch.where(
                above <= least, low + 2 * eps * high, torch.where(-below <= least, high * (1 - 2 * eps), middle)
            )
        else:
            t = middle
        t = torch.where((t > low) & (t < high), t, middle)
        now = remaining(t)
        low, above = torch.where(now > 0, t, low), torch.where(now > 0, now, above)
        high, below = torch.where(now > 0, high, t), torch.where(now > 0, below, now)
    return high


def limit(x: Tensor, root: Tensor) -> Tensor:
    """Return a point next to a root on the side of ``x``, where a derivative is the limit from there.

    It is ``x~ + t (x - x~)`` with a ``t`` as small as rounding allows: 4e-10 in double precision, 7e-5 in single.
    """
    return root + float(torch.finfo(x.dtype).eps ** 0.6) * (x - root)


def other_side(value: Value, slope: Value, point: Tensor, sign: Tensor, iterations: int) -> Tensor:
    """Return points at which the sign is another, by descent; where none was met, the last point.

    Every step is Newton's, half as long again: ``x - 1.5 f / |g|^2 g``.

    Args:
        point: where to begin, ``[N, D]``.
        sign: the sign to leave, ``[N]``.
    """
    for _ in range(iterations):
        output = value(point)
        within = output * sign > 0
        if not bool(within.any()):
            break
        gradient = slope(point)
        size = gradient.square().sum(1)
        step = torch.where(within & (size > 0), 1.5 * output / torch.where(size > 0, size, 1.0), 0.0)
        point = torch.where(step[:, None] != 0, point - step[:, None] * gradient, point)
    return point


def first_roots(
    value: Value, slope: Value, x: Tensor, start: Tensor, point: Tensor, n_steps: int, iterations: int
) -> Tensor:
    """Return the first root on the way to where descent from a point leads; NaN where it has none.

    Args:
        start: ``f(x)``.
        point: where the descent begins, ``[N, D]``.
    """
    path = segment(x, other_side(value, slope, point, start.sign(), iterations))
    t = first_root(value, path, start, torch.ones_like(start), n_steps)
    return path(t[:, None])


def nearest_of(
    value: Value, slope: Value, x: Tensor, start: Tensor, root: Tensor, directions: Iterable[Tensor], n_steps: int,
    iterations: int,
) -> Tensor:  # fmt: skip
    """Return the nearest of the roots that several searches lead to; NaN where none does.

    The first begins at ``root``, the others go to as far as the nearest root so far, each in one direction, downhill
    from there, and back to the first root on the way. Every one goes some steps on to the nearest root around it, and
    the nearest of all goes on to the end.

    Args:
        start: ``f(x)``.
        root: roots to begin with, NaN where there is none.
        directions: ``[D]`` each, of any length, the same for every sample.
    """
    few = max(1, iterations // 5)
    far = start.abs() / slope(x).norm(dim=1)  # as far as a linear function's root, where no other is known
    far = torch.where(far.isfinite(), far, x.norm(dim=1).clamp(min=1.0))
    best, nearest = root, torch.full_like(start, torch.nan)
    for begin in (None, *directions):
        if begin is not None:
            radius = torch.where(nearest.isnan(), far, nearest)
            point = x + radius[:, None] * _unit(begin[None])
            root = first_roots(value, slope, x, start, point, n_steps, iterations)
        found = ~root.isnan().any(1)
        root = nearest_root(value, slope, x, start, torch.where(found[:, None], root, x), n_steps, few)
        distance = (root - x).norm(dim=1)
        nearer = found & (nearest.isnan() | (distance < nearest))
        best, nearest = torch.where(nearer[:, None], root, best), torch.where(nearer, distance, nearest)
    found = ~nearest.isnan()[:, None]
    polished = nearest_root(value, slope, x, start, torch.where(found, best, x), n_steps, iterations)
    return torch.where(found, polished, torch.nan)


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
    rate, smallest = torch.ones_like(distance), 4 * eps  # at a kink, on which no gradient lies, all digits count
    looks = max(1, n_steps // 10)  # any nearer root will do, it need not be the first
    for _ in range(iterations):
        towards = -start.sign()[:, None] * _unit(slope(limit(x, root)))
        rate = torch.where((towards - direction).norm(dim=1) < eps**0.5, 0.0, rate)
        moving = rate >= smallest
        if not bool(moving.any()):
            break
        turned = _unit(torch.lerp(direction, towards, rate[:, None]))
        path = ray(x, turned)
        t = first_root(value, path, start, distance, looks)
        nearer = moving & (t < distance * (1 - 4 * eps))
        distance = torch.where(nearer, t, distance)
        direction = torch.where(nearer[:, None], turned, direction)
        root = torch.where(nearer[:, None], path(distance[:, None]), root)
        rate = torch.where(nearer, (2 * rate).clamp(max=1.0), rate / 4)
    return root


def _unit(direction: Tensor) -> Tensor:
    """Return directions of length 1; zero stays zero."""
    length = direction.norm(dim=1, keepdim=True)
    return direction / torch.where(length == 0, 1.0, length)
