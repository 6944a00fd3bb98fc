"""Curves of a score against what was taken from the input or put into it, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from relprop.arguments import bar, whole_number
from relprop.errors import InputError
from relprop.metrics._explain import Explain, explained, generator, permutations
from relprop.metrics._features import Units
from relprop.metrics._removal import Removal
from relprop.tables import text_table

Order: TypeAlias = Literal["morf", "lerf", "random"]
ORDERS: tuple[Order, ...] = ("morf", "lerf", "random")


@dataclass(frozen=True)
class Curve:
    """The score of every sample as more and more of it is replaced, from ``perturbation_curve`` and its kin.

    Samples of fewer units end earlier: their scores and fractions then stay where they are, up to the largest number
    of steps L of all samples. What is left of their rows counts in no area.

    Attributes:
        scores: ``f(x_k)`` for ``k = 0 .. L``, ``[N, L + 1]``, float64.
        fractions: the part of the units that is replaced (in an insertion: put in) at each k, ``[N, L + 1]``.
        values: what the function that made the curve reports for each sample, ``[N]``: ``aopc`` or ``auc``.
        measure: the name of that.
        order: ``"morf"``, ``"lerf"`` or ``"random"``.
    """

    scores: Tensor = field(repr=False)
    fractions: Tensor = field(repr=False)
    values: Tensor
    measure: str
    order: str

    @property
    def lengths(self) -> Tensor:
        """How many steps each sample has, ``L_n``, ``[N]``: as many as change what is replaced."""
        return lengths(self.fractions)

    @property
    def aopc(self) -> Tensor:
        """``1 / (L_n + 1) sum_{k=0..L_n} f(x_0) - f(x_k)``, ``[N]`` (Samek et al. 2017)."""
        return aopc(self.scores, self.lengths)

    @property
    def auc(self) -> Tensor:
        """The area under the curve over ``fractions``, by trapezoids, divided by its width, ``[N]``."""
        return auc(self.scores, self.fractions)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """The standard error of ``mean``; NaN for one sample."""
        return standard_error(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "measure": self.measure,
            "order": self.order,
            "values": self.values.tolist(),
            "scores": self.scores.tolist(),
            "fractions": self.fractions.tolist(),
        }

    def __str__(self) -> str:
        steps = self.scores.shape[1] - 1
        shown = sorted({round(step * steps / 10) for step in range(11)})
        rows = [
            [
                str(k),
                f"{float(self.fractions[:, k].mean()):.3g}",
                f"{float(self.scores[:, k].mean()):.4g}",
                f"{standard_error(self.scores[:, k]):.2g}",
            ]
            for k in shown
        ]
        table = text_table(("step", "fraction", "score", "+/-"), rows, right=range(4))
        return f"{table}\n{self.measure} ({self.order}): {self.mean:.4g} +/- {self.error:.2g}"


def lengths(positions: Tensor) -> Tensor:
    """Return how often a row of counts or fractions ``[N, L + 1]`` rises, ``[N]``: at every step until it ends."""
    return (positions.diff(dim=1) > 0).sum(dim=1)


def aopc(scores: Tensor, steps: Tensor) -> Tensor:
    """Return ``1 / (L_n + 1) sum_{k=0..L_n} f(x_0) - f(x_k)``, ``[N]``; of scores ``[N, L + 1]`` and L_n ``[N]``."""
    after = torch.arange(scores.shape[1], device=scores.device) > steps[:, None]
    return scores[:, 0] - scores.masked_fill(after, 0).sum(dim=1) / (steps + 1)


def auc(scores: Tensor, fractions: Tensor) -> Tensor:
    """Return the area under scores over fractions, both ``[N, L + 1]``, divided by the width, ``[N]``."""
    return torch.trapezoid(scores, fractions, dim=1) / (fractions[:, -1] - fractions[:, 0])


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of values ``[N]``; NaN for one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


def places(given: Removal, order: Order, relevance: Tensor, absolute: bool) -> Tensor:
    """Return the place of each unit in an order by relevance, ``[N, K]``."""
    return given.parts.ranks(given.parts.total(relevance, absolute), given.seed, descending=order == "morf")


def random_places(given: Removal) -> Tensor:
    """Return the place of each unit in a random order, ``[N, K]``."""
    source = generator(given.seed)
    # Not the numbers that break ties: random orders and the orders of ties shall be independent.
    permutations(len(given.x), given.parts.most, source)
    return given.parts.ranks(torch.zeros_like(given.parts.missing, dtype=torch.float64), source)


def recomputed_places(
    given: Removal, explain: Explain, order: Order, counts: Tensor, absolute: bool, *, insert: bool = False
) -> Tensor:
    """Return the place of each unit where each step orders the units to come by the explanation of the input then."""
    found = torch.full(given.parts.missing.shape, given.parts.most, device=given.x.device)
    rows = torch.arange(len(given.x), device=given.x.device)
    for k in bar(range(counts.shape[1] - 1), given.progress, "explain"):
        gone = found < counts[:, k, None]
        now = given.replaced(rows, gone, insert=insert)
        relevance = explained(explain, given.model, now, given.target, internal_batch_size=given.size)
        values = given.parts.total(relevance, absolute)
        values = values.masked_fill(gone, float("-inf") if order == "morf" else float("inf"))
        ranks = given.parts.ranks(values, given.seed, descending=order == "morf")
        # What has its place comes last: the first of the others take the places of this step.
        taken = ranks < counts[:, k + 1, None] - counts[:, k, None]
        found = torch.where(taken, ranks + counts[:, k, None], found)
    return found


def along(given: Removal, order: Tensor, counts: Tensor, *, insert: bool = False) -> Tensor:
    """Return the scores as the first ``counts`` ``[N, L + 1]`` units in an order (their places) go, ``[N, L + 1]``."""

    def gone(rows: Tensor, copy: Tensor) -> Tensor:
        return order[rows] < counts[rows, copy][:, None]

    return given.without(counts.shape[1], gone, insert=insert)


def fractions(parts: Units, counts: Tensor) -> Tensor:
    """Return the part of the units that is gone at each step, ``[N, L + 1]``."""
    return counts.double() / parts.counts[:, None]


def step_counts(parts: Units, steps: int | None, fraction: float) -> Tensor:
    """Return how many units are gone at each step, ``[N, L + 1]``: from none to a fraction of them, evenly.

    Raises:
        InputError: a fraction outside (0, 1], or more steps than units.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction}; expected a part of the units, above 0 and at most 1")
    last = (parts.counts * fraction).round().clamp(min=1).long()
    if steps is None:  # one unit each step; samples of fewer units stay where they end
        return torch.arange(int(last.max()) + 1, device=last.device).minimum(last[:, None])
    fewest = int(last.min())
    if whole_number("steps", steps) > fewest:
        raise InputError(f"steps is {steps}, but there are only {fewest} units to replace; expected at most as many")
    k = torch.arange(steps + 1, device=last.device, dtype=torch.float64)
    return (k * last[:, None] / steps).round().long()
