"""Monotonicity, of which two definitions bear the name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relprop.arguments import takes, takes_with, whole_number
from relprop.metrics._correlation import spearman
from relprop.metrics._explain import Explain, Output, Target, generator
from relprop.metrics._features import Features
from relprop.metrics._removal import copies_scores, removal
from relprop.metrics.curves import along, places, standard_error
from relprop.metrics.faithfulness import same_counts
from relprop.metrics.options import DrawnOptions, RemovalOptions
from relprop.tables import text_table
from relprop.training import one_measurement

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Monotonicity:
    """Whether the score rises with each feature, from ``monotonicity_arya``.

    Attributes:
        scores: from the baseline to the whole input, ``[N, K + 1]``.
        values: 1 where no step falls, else 0, ``[N]``.
    """

    scores: Tensor = field(repr=False)
    values: Tensor

    @property
    def shares(self) -> Tensor:
        """The share of steps that do not fall, ``[N]``; higher is better, and chance is near 1/2."""
        return (self.scores.diff(dim=1) >= 0).double().mean(dim=1)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {"values": self.values.tolist(), "shares": self.shares.tolist(), "scores": self.scores.tolist()}

    def __str__(self) -> str:
        rows = [
            [name, f"{float(each.mean()):.4g}", f"{standard_error(each):.2g}"]
            for name, each in (("monotone", self.values), ("steps that do not fall", self.shares))
        ]
        return text_table(("", "mean", "+/-"), rows, right=(1, 2))


@one_measurement
@takes_with(output="probability")
def monotonicity_arya(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    absolute: bool = False,
    **options: Unpack[RemovalOptions],
) -> Monotonicity:
    """Put features into the baseline, the least relevant first: the score should never fall.

    Definition: ``x_0`` is the baseline, ``x_k`` has the k features of least relevance from x;
    ``values = 1`` if ``f(x_k) >= f(x_{k-1})`` for all k = 1..K, else 0.
    Range: 0 or 1; higher is better.
    Source: Arya et al. 2019 (arXiv:1909.03012). Their AIX360 leaves out the step from ``x_0`` to ``x_1``. With signed
    relevance the first features speak against the target, so that a faithful order falls at first: where features do,
    read ``shares``, or mean "importance" and order by ``absolute``.

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        absolute: order by ``|R|``.
        options: see :class:`relprop.metrics.options.RemovalOptions`; ``output`` is ``"probability"`` by default.

    Raises:
        InputError: samples of different numbers of segments.
        RelpropError: what ``perturbation_curve`` raises.

    >>> model = nn.Linear(3, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0, 4.0]]))
    >>> x = torch.ones(1, 3)
    >>> monotonicity_arya(lambda model, x, target: x * model.weight, model, x, output="logit").scores
    tensor([[0., 1., 3., 7.]], dtype=torch.float64)
    """
    given = removal(model, x, target, **options)
    same_counts(given.parts)
    order = places(given, "lerf", given.relevance(explain), absolute)
    counts = torch.arange(given.parts.most + 1, device=given.x.device).expand(len(given.x), -1)
    found = along(given, order, counts, insert=True)
    return Monotonicity(found, (found.diff(dim=1) >= 0).all(dim=1).double())


@one_measurement
@takes
def monotonicity_nguyen(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    samples: int = 10,
    features: Features = None,
    output: Output = "probability",
    **options: Unpack[DrawnOptions],
) -> Tensor:
    """Rank-correlate the size of relevance with how much the score depends on each feature.

    Definition: ``Spearman_i( |R_i|, 1/S sum_s (f(x) - f(x with i from z_s))^2 )``, where ``z_s`` is drawn uniformly
    between the smallest and the largest entry of the sample. 0 where one of them does not vary.
    Range: [-1, 1]; higher is better. Blind to the sign of relevance.
    Source: Nguyen and Martinez 2020 (arXiv:2007.07584), who weight the squares by what is the same for all features of
    a sample, which changes no rank, and leave open what is drawn.

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        samples: S, draws for each sample, by ``seed``; every feature is replaced from each of them.
        features, output: see :class:`relprop.metrics.options.RemovalOptions`.
        options: see :class:`relprop.metrics.options.DrawnOptions`.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: samples of different numbers of segments, an x that is not floating.
        RelpropError: what ``perturbation_curve`` raises.

    >>> model = nn.Linear(3, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -20.0, 4.0]]))
    >>> x = torch.tensor([[1.0, 1.0, -1.0]])
    >>> monotonicity_nguyen(lambda model, x, target: x * model.weight, model, x, output="logit").round(decimals=4)
    tensor([1.], dtype=torch.float64)
    """
    given = removal(model, x, target, features=features, baseline="noise", output=output, **options)
    same_counts(given.parts)
    whole_number("samples", samples)
    relevance, whole = given.parts.total(given.relevance(explain)), given.whole()
    count, flat = given.parts.most, given.x.flatten(1)
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    ones = (1,) * (given.x.dim() - 1)
    effect = torch.zeros_like(relevance)
    source = generator(given.seed)
    for _ in range(samples):
        drawn = torch.rand(given.x.shape, generator=source, dtype=torch.float64).to(given.x.device, given.x.dtype)
        z = low.view(-1, *ones) + (high - low).view(-1, *ones) * drawn

        def perturbed(rows: Tensor, copy: Tensor, z: Tensor = z) -> Tensor:
            mask = (given.parts.index[rows] == copy[:, None]).view(len(rows), *given.x.shape[1:])
            return torch.where(mask, z[rows], given.x[rows])

        found = copies_scores(
            model, given.x, target, output, count, perturbed, internal_batch_size=given.size, progress=given.progress
        )
        effect += (whole[:, None] - found).square() / samples
    return spearman(relevance.abs(), effect)
