"""Continuity: do nearly equal inputs have nearly equal explanations?

Montavon, Samek and Mueller 2018 (arXiv:1706.07979), section 7.1: if the prediction is continuous, so should be its
explanation. All functions take ``explain(model, x, target) -> relevance``, as everywhere in :mod:`relprop.metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import InputError, InputTypeError
from relprop.metrics._checked import must_be_numbers, must_explain
from relprop.metrics._explain import Explain, Target, checked_input, explained
from relprop.metrics.neighbours import distances
from relprop.metrics.trajectory import explained_points, normalized
from relprop.tables import text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class Continuity:
    """How much faster than the input the explanation changes, from ``continuity``.

    Attributes:
        ratios: ``|R(x') - R(x)|_1 / |x' - x|_2`` for each neighbour, ``[S, N]``; in [0, inf), lower is better.
        distances: ``|x' - x|_2``, ``[S, N]``.
    """

    ratios: Tensor
    distances: Tensor

    @property
    def values(self) -> Tensor:
        """The largest ratio of every sample, ``[N]``: a lower bound of the local Lipschitz constant."""
        return self.ratios.amax(dim=0)

    @property
    def averages(self) -> Tensor:
        """The mean ratio of every sample, ``[N]``."""
        return self.ratios.mean(dim=0)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def quantile(self, q: float) -> Tensor:
        """Return the quantile ``q`` in [0, 1] of every sample's ratios, ``[N]``."""
        if not 0 <= q <= 1:
            raise InputError(f"q is {q}; expected a number in [0, 1]")
        return self.ratios.quantile(q, dim=0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {"ratios": self.ratios.tolist(), "distances": self.distances.tolist(), "max": self.values.tolist()}

    def __str__(self) -> str:
        rows = [
            [str(n), *(f"{float(value):.4g}" for value in row)]
            for n, row in enumerate(
                zip(
                    self.distances.amin(dim=0),
                    self.distances.amax(dim=0),
                    self.averages,
                    self.quantile(0.5),
                    self.quantile(0.95),
                    self.values,
                    strict=True,
                )
            )
        ]
        header = ["sample", "nearest", "farthest", "mean", "median", "95 %", "max"]
        return text_table(header, rows, right=range(1, len(header)))


@one_measurement
def continuity(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target,
    neighbours: Tensor,
    *,
    normalize: bool = False,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Continuity:
    """Measure how much faster than the input the explanation changes, towards given neighbours.

    Definition: ``|R(x') - R(x)|_1 / |x' - x|_2`` for each neighbour ``x'``.
    Range: [0, inf); lower is better, and 0 is an explanation that never changes. The unit is relevance per unit of
    input, so compare methods that share it, or normalise. At a discontinuity the ratio grows as the distance shrinks:
    ``path_continuity`` tells that from a steep explanation.
    Source: Montavon et al. 2018, section 7.1 (doi:10.1016/j.dsp.2017.10.011); there the largest over all pairs of a
    data set.

    Args:
        explain: ``explain(model, x, target) -> relevance``.
        model: what is explained.
        x: ``[N, ...]``.
        target: None, an int, or one for each sample.
        neighbours: ``[S, N, ...]``, from ``random_neighbours``, ``translated``, ``interpolation(...)[1:]`` or anywhere.
        normalize: divide each R by its own ``sum |R|`` first (0 / 0 = 0).
        internal_batch_size: inputs explained at once.
        progress: show a bar.

    Raises:
        InputError: neighbours of another shape; a neighbour that equals its sample; an explainer that returns another
            shape, or NaN.
        InputTypeError: relevance in the place of the explainer; neighbours that are no tensor, or floating ones of an
            input of integers.
        MissingExtraError: ``progress=True`` without tqdm.
        TargetError, TargetTypeError: another number of targets than of samples, or no integers.

    >>> linear = torch.nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> x = torch.tensor([[1.0, 1.0]])
    >>> result = continuity(lambda model, x, target: x * model.weight, linear, x, None, torch.tensor([[[1.5, 1.0]]]))
    >>> result.values  # |1.5 * 3 - 3| / 0.5
    tensor([3.], dtype=torch.float64)
    """
    must_explain(explain, "continuity", "the neighbours, too")
    here, there = _pairs(explain, model, x, target, neighbours, internal_batch_size, progress)
    if normalize:
        here, there = normalized(here), normalized(there)
    away = distances(neighbours.detach(), x.detach())
    if bool((away == 0).any()):
        s, n = (int(index) for index in (away == 0).nonzero()[0])
        raise InputError(
            f"neighbour {s} of sample {n} equals the sample; expected neighbours at a distance above 0 "
            f"(an image without contrast does not move: leave it out)"
        )
    return Continuity((there - here).norm(p=1, dim=2) / away, away)


@one_measurement
def max_sensitivity(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target,
    neighbours: Tensor,
    *,
    normalize: bool = True,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Tensor:
    """Measure how far the explanation of a neighbour can lie from that of the sample.

    Definition: ``max over x' of |R(x') - R(x)|_2``, divided by ``|R(x)|_2`` with ``normalize``. The paper does not
    divide; Captum's ``sensitivity_max`` and Quantus do. 0 / 0 is 0; a map that was empty and is not any more is at
    infinity (Captum divides by 1 there).
    Range: [0, inf]; lower is better.
    Source: Yeh et al. 2019 (arXiv:1901.09392), where the neighbours are the ball around x.

    Args:
        explain, model, x, target, internal_batch_size, progress: as in ``continuity``.
        neighbours: ``[S, N, ...]``: ``random_neighbours(x, radius, shape="ball")`` is the paper's set,
            ``shape="cube"`` what Captum and Quantus draw.
        normalize: divide by the size of the map; True by default.

    Shapes: ``-> [N]``, float64.

    Raises:
        RelpropError: what ``continuity`` raises, but that a neighbour may equal its sample.

    >>> linear = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 1.0]])
    >>> max_sensitivity(lambda model, x, target: x, linear, x, None, torch.tensor([[[1.0, 3.0]]]), normalize=False)
    tensor([2.], dtype=torch.float64)
    """
    must_explain(explain, "max_sensitivity", "the neighbours, too")
    changes = _changes(explain, model, x, target, neighbours, normalize, internal_batch_size, progress)
    return changes.amax(dim=0)


@one_measurement
def average_sensitivity(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target,
    neighbours: Tensor,
    *,
    normalize: bool = True,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Tensor:
    """Measure how far the explanations of neighbours lie from that of the sample on average.

    Definition: ``mean over x' of |R(x') - R(x)|_2``, divided by ``|R(x)|_2`` with ``normalize``.
    Range: [0, inf]; lower is better.
    Source: Bhatt et al. 2020 (arXiv:2005.00631), with the Euclidean distance; Yeh et al. 2019 take the
    largest.

    Args:
        explain, model, x, target, neighbours, normalize, internal_batch_size, progress: as in ``max_sensitivity``.

    Shapes: ``-> [N]``, float64.

    Raises:
        RelpropError: what ``max_sensitivity`` raises.

    >>> linear = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> average_sensitivity(lambda model, x, target: x, linear, x, None, torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    must_explain(explain, "average_sensitivity", "the neighbours, too")
    changes = _changes(explain, model, x, target, neighbours, normalize, internal_batch_size, progress)
    return changes.mean(dim=0)


def _pairs(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target,
    neighbours: Tensor,
    size: int | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Return the flat relevance of the samples, ``[1, N, D]``, and of their neighbours, ``[S, N, D]``, in float64."""
    x = checked_input(x)
    if not isinstance(neighbours, Tensor):
        raise InputTypeError(f"neighbours are a {type(neighbours).__name__}; expected a tensor, [S, N, ...]")
    if neighbours.is_floating_point():
        must_be_numbers(x, f"its neighbours are of {neighbours.dtype}")
    if neighbours.dim() != x.dim() + 1 or neighbours.shape[1:] != x.shape or len(neighbours) == 0:
        raise InputError(
            f"neighbours have shape {tuple(neighbours.shape)}; expected [S, {', '.join(map(str, x.shape))}], "
            f"at least one for each sample of x"
        )
    here = explained(explain, model, x, target, internal_batch_size=size)
    there = explained_points(explain, model, neighbours, target, size, progress)
    return here.double().flatten(1)[None], there.double().flatten(2)


def _changes(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target,
    neighbours: Tensor,
    normalize: bool,
    size: int | None,
    progress: bool,
) -> Tensor:
    here, there = _pairs(explain, model, x, target, neighbours, size, progress)
    change = (there - here).norm(dim=2)
    return torch.where(change == 0, 0.0, change / here.norm(dim=2)) if normalize else change
