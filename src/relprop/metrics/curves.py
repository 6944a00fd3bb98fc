"""Curves of a score against what was taken from the input or put into it, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from relprop.errors import InputError
from relprop.metrics._explain import (
    Explain,
    Output,
    Target,
    checked_input,
    checked_target,
    explained,
    generator,
    permutations,
    whole_number,
)
from relprop.metrics._features import Features, Units, region_size, units
from relprop.metrics._perturb import perturbed_scores, replaced
from relprop.metrics.baselines import Baseline, baseline_of
from relprop.tables import text_table

Order: TypeAlias = Literal["morf", "lerf", "random"]
ORDERS: tuple[Order, ...] = ("morf", "lerf", "random")


@dataclass(frozen=True)
class Curve:
    """The score of every sample as more and more of it is replaced, from ``perturbation_curve`` and its kin.

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
    def aopc(self) -> Tensor:
        """``1 / (L + 1) sum_{k=0..L} f(x_0) - f(x_k)``, ``[N]`` (Samek et al. 2017, equation 12)."""
        return aopc(self.scores)

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


def aopc(scores: Tensor) -> Tensor:
    """Return ``1 / (L + 1) sum_k f(x_0) - f(x_k)`` of scores ``[N, L + 1]``, ``[N]``."""
    return scores[:, 0] - scores.mean(dim=1)


def auc(scores: Tensor, fractions: Tensor) -> Tensor:
    """Return the area under scores over fractions, both ``[N, L + 1]``, divided by the width, ``[N]``."""
    return torch.trapezoid(scores, fractions, dim=1) / (fractions[:, -1] - fractions[:, 0])


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of values ``[N]``; NaN for one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Setting:
    """What all orders of one measurement share.

    Attributes:
        model, x, target, output: what is scored.
        x0: what replaces x.
        parts: what is replaced together.
        counts: how many units are gone at each step, ``[N, L + 1]``.
        absolute: order by ``|R|``.
        seed: for ties and random orders.
        size: inputs at once.
        progress: show a bar.
    """

    model: nn.Module
    x: Tensor
    x0: Tensor
    target: int | Tensor | None
    output: Output
    parts: Units
    counts: Tensor
    absolute: bool
    seed: int
    size: int | None
    progress: bool

    @property
    def fractions(self) -> Tensor:
        """The part of the units that is gone at each step, ``[N, L + 1]``."""
        return self.counts.double() / self.parts.counts[:, None]

    def places(self, order: Order, relevance: Tensor | None) -> Tensor:
        """Return the place of each unit in an order, ``[N, K]``."""
        if order == "random" or relevance is None:
            # Not the numbers that break ties: random and tied orders shall be independent.
            source = generator(self.seed)
            permutations(len(self.x), self.parts.most, source)
            return self.parts.ranks(torch.zeros(self.parts.missing.shape, device=self.x.device).double(), source)
        values = self.parts.total(relevance, self.absolute)
        return self.parts.ranks(values, self.seed, descending=order == "morf")

    def curve(self, places: Tensor, *, insert: bool = False) -> Tensor:
        """Return the scores along an order, ``[N, L + 1]``."""
        old, new = (self.x0, self.x) if insert else (self.x, self.x0)

        def perturbed(rows: Tensor, copy: Tensor) -> Tensor:
            gone = self.parts.spread(places[rows] < self.counts[rows, copy][:, None], rows)
            return replaced(old, new, rows, gone)

        return perturbed_scores(
            self.model,
            self.x,
            self.target,
            self.output,
            self.counts.shape[1],
            perturbed,
            internal_batch_size=self.size,
            progress=self.progress,
        )

    def recomputed(self, explain: Explain, order: Order) -> Tensor:
        """Return the places of the units where each step orders what is left by the explanation of what is left."""
        places = torch.full(self.parts.missing.shape, self.parts.most, device=self.x.device)
        for k in range(self.counts.shape[1] - 1):
            gone = places < self.counts[:, k, None]
            everything = torch.arange(len(self.x), device=self.x.device)
            now = replaced(self.x, self.x0, everything, self.parts.spread(gone))
            relevance = explained(explain, self.model, now, self.target, internal_batch_size=self.size)
            values = self.parts.total(relevance, self.absolute)
            values = values.masked_fill(gone, float("-inf") if order == "morf" else float("inf"))
            ranks = self.parts.ranks(values, self.seed, descending=order == "morf")
            # Those that are gone come last: the first of the others take the places of this step.
            taken = ~gone & (ranks < (self.counts[:, k + 1] - self.counts[:, k])[:, None])
            places = torch.where(taken, ranks + self.counts[:, k, None], places)
        return places


def setting(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    absolute: bool,
    steps: int | None,
    fraction: float,
    features: Features,
    baseline: Baseline,
    output: Output,
    seed: int,
    internal_batch_size: int | None,
    progress: bool,
) -> Setting:
    """Check the arguments that all curves have in common."""
    x = checked_input(x)
    parts = units(x, features)
    region = region_size(x, features) if isinstance(features, (int, tuple)) else (1, 1)
    x0 = baseline_of(x, baseline, region=region, seed=seed)
    return Setting(
        model,
        x,
        x0,
        checked_target(target, len(x)),
        output,
        parts,
        step_counts(parts, steps, fraction),
        absolute,
        seed,
        internal_batch_size,
        progress,
    )


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
