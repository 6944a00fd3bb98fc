"""IROF: segments go in the order of their mean relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from relprop.arguments import takes
from relprop.errors import InputError
from relprop.metrics._explain import Explain, Target, checked_input
from relprop.metrics._removal import removal
from relprop.metrics.baselines import Baseline
from relprop.metrics.curves import Curve, along, fractions
from relprop.metrics.options import DrawnOptions
from relprop.training import one_measurement

if TYPE_CHECKING:
    from typing_extensions import Unpack


@one_measurement
@takes
def irof(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target,
    segments: Tensor | int | tuple[int, int] | Callable[[Tensor], Tensor],
    *,
    baseline: Baseline = "mean",
    **options: Unpack[DrawnOptions],
) -> Curve:
    """Remove segments, those of the largest mean relevance first: the area over the relative probability.

    Definition: ``values = 1 - 1/L integral_0^L p(x_l) / p(x_0) dl`` by trapezoids, where ``x_l`` is without the l
    segments of the largest mean relevance of the sample's L, and p the target's probability. ``scores`` are
    ``p(x_l) / p(x_0)``.
    Range: (-inf, 1]; higher is better. The integral is divided by L, so that samples of different L compare.
    Source: Rieger and Hansen 2020 (arXiv:2003.08747). Quantus does not divide by L.

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        segments: integers, as ``features`` of ``RemovalOptions``; or the size of regions; or a callable from x to
            integers ``[N, H, W]``, such as one that runs ``skimage.segmentation.slic`` on each image. Samples may have
            different numbers of segments: their curves end earlier, and go on with the last score.
        baseline: what replaces a segment; the mean of the sample, channel by channel, by default.
        options: see :class:`relprop.metrics.options.DrawnOptions`.

    Raises:
        InputError: a probability of 0 for the whole input.
        RelpropError: what ``perturbation_curve`` raises.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> x = torch.randn(3, 1, 4, 4)
    >>> irof(lambda model, x, target: x, model, x, 0, 2).scores.shape
    torch.Size([3, 5])
    """
    x = checked_input(x)
    given = removal(
        model,
        x,
        target,
        features=segments(x.clone()) if callable(segments) else segments,
        baseline=baseline,
        output="probability",
        **options,
    )
    means = given.parts.total(given.relevance(explain)) / given.parts.sizes
    order = given.parts.ranks(means, given.seed)
    counts = torch.arange(given.parts.most + 1, device=x.device).minimum(given.parts.counts[:, None])
    found = along(given, order, counts)
    if bool((found[:, 0] == 0).any()):
        n = int((found[:, 0] == 0).nonzero()[0])
        raise InputError(f"the probability of the target is 0 for sample {n}; IROF is relative to it")
    relative = found / found[:, :1]
    parts = fractions(given.parts, counts)
    return Curve(relative, parts, 1 - torch.trapezoid(relative, parts, dim=1), "IROF", "morf")
