"""Faithfulness: does the relevance of features say how the score changes without them?

Each removes sets of features and correlates what their relevance says with what the score does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relprop.arguments import takes, takes_with, whole_number
from relprop.errors import InputError
from relprop.metrics._correlation import pearson
from relprop.metrics._explain import Explain, Target, generator, permutations
from relprop.metrics._features import Units
from relprop.metrics._removal import Removal, removal
from relprop.metrics.curves import standard_error
from relprop.metrics.options import RemovalOptions
from relprop.tables import text_table
from relprop.training import one_measurement

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class SensitivityN:
    """Correlations for sets of several sizes, from ``sensitivity_n``.

    Attributes:
        sizes: how many features are removed at once, ``n``.
        correlations: Pearson's, ``[N, len(sizes)]``; in [-1, 1], higher is better.
    """

    sizes: tuple[int, ...]
    correlations: Tensor

    @property
    def values(self) -> Tensor:
        """The mean over the sizes, ``[N]``."""
        return self.correlations.mean(dim=1)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {"sizes": list(self.sizes), "correlations": self.correlations.tolist()}

    def __str__(self) -> str:
        rows = [
            [str(size), f"{float(each.mean()):.4g}", f"{standard_error(each):.2g}"]
            for size, each in zip(self.sizes, self.correlations.T, strict=True)
        ]
        return text_table(("n", "correlation", "+/-"), rows, right=range(3))


@one_measurement
@takes
def faithfulness_correlation(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    subset_size: int | None = None,
    samples: int = 100,
    absolute: bool = False,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    """Correlate the relevance of random sets of features with what the score loses without them.

    Definition: ``corr_S( sum_{i in S} R_i, f(x) - f(x with S from the baseline) )``, Pearson's, over random sets S of
    one size. 0 where one of them does not vary, as for uniform relevance.
    Range: [-1, 1]; higher is better.
    Source: Bhatt et al. 2020 (arXiv:2005.00631).

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        subset_size: how many features are removed at once; a quarter of them, at least one, by default.
        samples: how many sets for each sample.
        absolute: sum ``|R|``.
        options: see :class:`relprop.metrics.options.RemovalOptions`; ``seed`` draws the sets too.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: a set larger than the input, fewer than 2 samples.
        RelpropError: what ``perturbation_curve`` raises.

    >>> model = nn.Linear(4, 1)
    >>> x = torch.randn(2, 4)
    >>> faithfulness_correlation(lambda model, x, target: x * model.weight, model, x, subset_size=2).round(decimals=4)
    tensor([1., 1.], dtype=torch.float64)
    """
    given = removal(model, x, target, **options)
    size = max(1, int(given.parts.counts.min()) // 4) if subset_size is None else subset_size
    return _random_sets(given, given.relevance(explain), (size,), samples, absolute)[:, 0]


@one_measurement
@takes
def sensitivity_n(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    sizes: Sequence[int] | None = None,
    samples: int = 100,
    **options: Unpack[RemovalOptions],
) -> SensitivityN:
    """Correlate relevance and loss over random sets, for sets of several sizes n.

    Definition: for each n, ``corr_S( sum_{i in S} R_i, f(x) - f(x with S from the baseline) )``, Pearson's, over random
    sets S with ``|S| = n``. 0 where one of them does not vary.
    Range: [-1, 1]; higher is better.
    Source: Ancona et al. 2018 (arXiv:1711.06104): n from 1 to about 80 % of the features, 100 sets, zeros.

    Args:
        sizes: the n; by default up to 8 of them, evenly spaced on a logarithmic scale from 1 to 80 % of the features.
        explain, model, x, target, samples, options: as in ``faithfulness_correlation``.

    Raises:
        RelpropError: what ``faithfulness_correlation`` raises.

    >>> model = nn.Linear(4, 1)
    >>> found = sensitivity_n(lambda model, x, target: x * model.weight, model, torch.randn(2, 4), sizes=(1, 3))
    >>> found.correlations.round(decimals=4)
    tensor([[1., 1.],
            [1., 1.]], dtype=torch.float64)
    """
    given = removal(model, x, target, **options)
    if sizes is None:
        most = max(1, int(0.8 * int(given.parts.counts.min())))
        sizes = sorted({round(most ** (step / 7)) for step in range(8)})
    return SensitivityN(tuple(sizes), _random_sets(given, given.relevance(explain), sizes, samples, False))


@one_measurement
@takes_with(output="probability")
def faithfulness_estimate(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    absolute: bool = False,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    """Correlate the relevance of each feature with what the score loses without it alone.

    Definition: ``corr_i( R_i, f(x) - f(x with i from the baseline) )``, Pearson's, over all features.
    Range: [-1, 1]; higher is better.
    Source: Alvarez-Melis and Jaakkola 2018 (arXiv:1806.07538), on probabilities.

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        absolute: take ``|R|``.
        options: see :class:`relprop.metrics.options.RemovalOptions`; ``output`` is ``"probability"`` by default.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: samples of different numbers of segments.
        RelpropError: what ``perturbation_curve`` raises.

    >>> model = nn.Linear(4, 1)
    >>> x = torch.randn(2, 4)
    >>> faithfulness_estimate(lambda model, x, target: x * model.weight, model, x, output="logit").round(decimals=4)
    tensor([1., 1.], dtype=torch.float64)
    """
    given = removal(model, x, target, **options)
    return pearson(given.parts.total(given.relevance(explain), absolute), single_losses(given))


def single_losses(given: Removal) -> Tensor:
    """Return what the score loses without each unit, ``[N, K]``."""
    same_counts(given.parts)

    def gone(rows: Tensor, copy: Tensor) -> Tensor:
        return torch.arange(given.parts.most, device=rows.device) == copy[:, None]

    return given.whole()[:, None] - given.without(given.parts.most, gone)


def same_counts(parts: Units) -> None:
    """Raise where samples have different numbers of units."""
    if bool((parts.counts != parts.most).any()):
        raise InputError(
            f"samples have from {int(parts.counts.min())} to {parts.most} segments; expected the same number in all"
        )


def _random_sets(given: Removal, relevance: Tensor, sizes: Sequence[int], samples: int, absolute: bool) -> Tensor:
    """Return the correlations over random sets of each size, ``[N, len(sizes)]``."""
    same_counts(given.parts)
    for size in sizes:
        if whole_number("the size of a set", size) > given.parts.most:
            raise InputError(f"sets of {size} features were asked for, but there are only {given.parts.most}")
    whole_number("samples", samples, least=2)
    totals = given.parts.total(relevance, absolute)
    whole, source, found = given.whole(), generator(given.seed), []
    for size in sizes:
        seeds = torch.randint(2**62, (len(given.x),), generator=source).tolist()
        sets = _Sets(seeds, samples, given.parts.most, size, given.x.device)
        after = given.without(samples, sets, what=f"sets of {size}")
        claimed = torch.stack([(sets.of(n) * totals[n]).sum(dim=1) for n in range(len(totals))])
        found.append(pearson(claimed, whole[:, None] - after))
    return torch.stack(found, dim=1)


class _Sets:
    """The random sets of each sample, made from its seed when they are needed: together they are as large as all
    perturbed inputs."""

    def __init__(self, seeds: list[int], samples: int, count: int, size: int, device: torch.device) -> None:
        self.seeds, self.samples, self.count, self.size, self.device = seeds, samples, count, size, device

    def of(self, n: int) -> Tensor:
        """Return the sets of one sample, ``[samples, K]``."""
        order = permutations(self.samples, self.count, torch.Generator().manual_seed(self.seeds[n]))
        member = torch.zeros(self.samples, self.count, dtype=torch.bool)
        return member.scatter_(1, order[:, : self.size], True).to(self.device)

    def __call__(self, rows: Tensor, copy: Tensor) -> Tensor:
        """Return the sets of pairs of a sample and the number of its set, ``[P, K]``."""
        return torch.cat([self.of(int(n))[copy[rows == n]] for n in rows.unique_consecutive()])
