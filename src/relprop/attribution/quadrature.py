"""Where a path integral is sampled, and with which weights."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from relprop.errors import InputError, near

Rule = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


def quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Return the points in [0, 1] and their weights, which sum to 1.

    Args:
        rule: ``"gausslegendre"``, exact for polynomials of degree ``2 steps - 1``; ``"riemann_left"``,
            ``"riemann_right"`` and ``"riemann_middle"``, one point in each of ``steps`` equal parts;
            ``"riemann_trapezoid"``, ``steps`` points from 0 to 1, those at the ends with half the weight.
        steps: how many points.

    Raises:
        InputError: for another rule, or the trapezoid with a single point.

    >>> quadrature("riemann_trapezoid", 3)
    ([0.0, 0.5, 1.0], [0.25, 0.5, 0.25])
    """
    if rule not in get_args(Rule):
        raise InputError(f"method must be one of {get_args(Rule)}, got {rule!r}.{near(str(rule), get_args(Rule))}")
    if rule == "gausslegendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    if rule == "riemann_trapezoid":
        if steps < 2:
            raise InputError("riemann_trapezoid needs n_steps of at least 2, one at each end of the path; got 1.")
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps).tolist(), weights.tolist()
    offset = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[rule]
    return ((np.arange(steps) + offset) / steps).tolist(), [1 / steps] * steps
