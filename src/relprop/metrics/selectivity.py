"""Selectivity: does the score fall fastest where relevance says what matters?

Bach et al. 2015 (doi:10.1371/journal.pone.0130140) flip pixels, Samek et al. 2017 (arXiv:1509.06321) perturb regions,
Petsiuk et al. 2018 (arXiv:1806.07421) delete and insert. All replace units of the input in the order of relevance: the
most relevant first (MoRF), the least relevant first (LeRF), or at random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from relprop.arguments import takes, takes_with
from relprop.errors import InputError
from relprop.metrics._explain import Explain, Target
from relprop.metrics._removal import Removal, removal
from relprop.metrics.baselines import Baseline
from relprop.metrics.curves import (
    ORDERS,
    Curve,
    Order,
    along,
    aopc,
    fractions,
    lengths,
    places,
    random_places,
    recomputed_places,
    standard_error,
    step_counts,
)
from relprop.metrics.options import CurveOptions, RemovalOptions, StepOptions
from relprop.tables import text_table
from relprop.training import one_measurement

if TYPE_CHECKING:
    from typing_extensions import Unpack


@one_measurement
@takes
def perturbation_curve(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    **options: Unpack[CurveOptions],
) -> Curve:
    """Replace more and more of the input in the order of relevance, and record the score.

    Definition: ``x_0 = x``; ``x_k`` is x with the first ``round(k fraction K / L)`` of its K units replaced by the
    baseline. ``values`` is the area over the curve, ``AOPC = 1 / (L + 1) sum_{k=0..L} f(x_0) - f(x_k)``. Where samples
    have different numbers K of segments and ``steps`` is None, each has its own L.
    Range: (-inf, inf) for the logit, (-1, 1) for the probability. For MoRF higher is better, for LeRF lower; both mean
    little alone: compare with random (``selectivity`` does).
    Source: Samek et al. 2017 (arXiv:1509.06321).

    Args:
        explain: ``explain(model, x, target) -> relevance``, or relevance that is there already.
        model: what is scored, in the mode it is in.
        x: ``[N, ...]``.
        target: None for models of one output, an int, or one for each sample.
        options: see :class:`relprop.metrics.options.CurveOptions`.

    Raises:
        InputError: relevance of another shape or not finite, an unknown order, baseline or score, regions larger than
            the input, more steps than units, a baseline that does not fit; ``recompute`` of a tensor.
        InputTypeError: no explainer, x or relevance that is no tensor, a model that cannot be called, an x of integers
            where the baseline is made from it, or a seed that is no integer.
        MissingExtraError: ``progress=True`` without tqdm.
        ModelError: outputs that are no tensor ``[N, C]``, and no callable that reads them.
        NumericalError: the model returns NaN or infinity.
        TargetError: another number of targets than of samples, or no target where there are several outputs.
        TargetIndexError: a target out of range.
        TargetTypeError: targets that are no integers.

    >>> import torch
    >>> model = nn.Linear(3, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0, -4.0]]))
    >>> x = torch.ones(1, 3)
    >>> curve = perturbation_curve(lambda model, x, target: x * model.weight, model, x)
    >>> curve.scores
    tensor([[-1., -3., -4.,  0.]], dtype=torch.float64)
    >>> curve.values  # the mean of 0, 2, 3, -1
    tensor([1.], dtype=torch.float64)
    """
    return _curve(explain, model, x, target, **options)


@takes_with(baseline="invert")
def pixel_flipping(
    explain: Explain | Tensor, model: nn.Module, x: Tensor, target: Target = None, **options: Unpack[CurveOptions]
) -> Curve:
    """Flip one pixel after the other, the most relevant first, until the image is its negative.

    Definition: ``perturbation_curve`` with ``baseline="invert"``, ``min + max - x``.
    Range: (-inf, inf) for the logit, (-1, 1) for the probability; higher is better.
    Source: Bach et al. 2015 (doi:10.1371/journal.pone.0130140), where pixels are -1 or 1.

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        options: see :class:`relprop.metrics.options.CurveOptions`; ``baseline`` is ``"invert"`` by default.

    Raises:
        RelpropError: what ``perturbation_curve`` raises.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> x = torch.randn(3, 1, 4, 4)
    >>> pixel_flipping(lambda model, x, target: x, model, x, 0).scores.shape
    torch.Size([3, 17])
    """
    return perturbation_curve(explain, model, x, target, **options)


def region_perturbation(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    region: int | tuple[int, int] = 9,
    baseline: Baseline = "noise",
    **options: Any,
) -> Curve:
    """Replace one region after the other by noise, the most relevant first.

    Definition: ``perturbation_curve`` with ``features=region`` and ``baseline="noise"``, uniform between the sample's
    smallest and largest entry.
    Range: (-inf, inf) for the logit, (-1, 1) for the probability; higher is better.
    Source: Samek et al. 2017 (arXiv:1509.06321): 9 x 9 pixels, 100 steps, on images of 224 x 224.

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        region: the height and the width of regions on a grid, or one int for both.
        baseline: what replaces a region; ``"noise"`` by default.
        options: see :class:`relprop.metrics.options.CurveOptions`, but for ``features``.

    Raises:
        RelpropError: what ``perturbation_curve`` raises.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> x = torch.randn(3, 1, 4, 4)
    >>> region_perturbation(lambda model, x, target: x, model, x, 0, region=2).scores.shape
    torch.Size([3, 5])
    """
    return perturbation_curve(explain, model, x, target, features=region, baseline=baseline, **options)


@takes_with(output="probability")
def deletion(
    explain: Explain | Tensor, model: nn.Module, x: Tensor, target: Target = None, **options: Unpack[CurveOptions]
) -> Curve:
    """Delete the most relevant first: the area under the curve.

    Definition: ``values`` is the area under ``f(x_k)`` over the part that is deleted, by trapezoids.
    Range: [0, 1] for the probability; lower is better.
    Source: Petsiuk et al. 2018 (RISE, arXiv:1806.07421).

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        options: see :class:`relprop.metrics.options.CurveOptions`; ``output`` is ``"probability"`` by default.

    Raises:
        RelpropError: what ``perturbation_curve`` raises.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> x = torch.randn(3, 1, 4, 4)
    >>> deletion(lambda model, x, target: x, model, x, 0).values.shape
    torch.Size([3])
    """
    curve = perturbation_curve(explain, model, x, target, **options)
    return Curve(curve.scores, curve.fractions, curve.auc, "AUC of deletion", curve.order)


@one_measurement
@takes_with(baseline="blur", output="probability")
def insertion(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    order: Order = "morf",
    **options: Unpack[StepOptions],
) -> Curve:
    """Begin with the baseline and insert the most relevant first: the area under the curve.

    Definition: ``x_k`` is the baseline with the first ``round(k K / L)`` units of x; ``values`` is the area under
    ``f(x_k)`` over the part that is inserted, by trapezoids.
    Range: [0, 1] for the probability; higher is better.
    Source: Petsiuk et al. 2018 (RISE, arXiv:1806.07421), which begins with a blurred image.

    Args:
        explain, model, x, target: as in ``perturbation_curve``.
        order: ``"morf"``, ``"lerf"`` or ``"random"``.
        options: see :class:`relprop.metrics.options.StepOptions`. ``recompute`` explains again, at each step, the input
            as far as it is inserted, and orders what is missing by that: a baseline of zero, where Gradient x Input is
            zero, says nothing of it. ``output`` is ``"probability"`` by default, and ``baseline`` ``"blur"``, which is
            for images: give another for other inputs.

    Raises:
        RelpropError: what ``perturbation_curve`` raises.

    >>> import torch
    >>> model = nn.Linear(3, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0, -4.0]]))
    >>> x = torch.ones(1, 3)
    >>> insertion(lambda model, x, target: x * model.weight, model, x, baseline="zero", output="logit").scores
    tensor([[ 0.,  2.,  3., -1.]], dtype=torch.float64)
    """
    curve = _curve(explain, model, x, target, order=order, fraction=1.0, insert=True, **options)
    return Curve(curve.scores, curve.fractions, curve.auc, "AUC of insertion", order)


def _curve(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    order: Order,
    absolute: bool,
    steps: int | None,
    fraction: float,
    recompute: bool,
    insert: bool = False,
    **options: Unpack[RemovalOptions],
) -> Curve:
    """Return the curve along one order."""
    given = removal(model, x, target, **options)
    counts = step_counts(given.parts, steps, fraction)
    scores = along(
        given, _places(given, explain, order, absolute, counts, recompute, insert=insert), counts, insert=insert
    )
    return Curve(scores, fractions(given.parts, counts), aopc(scores, lengths(counts)), "AOPC", order)


@dataclass(frozen=True)
class Selectivity:
    """The three orders side by side, from ``selectivity``.

    Attributes:
        morf, lerf, random: their curves; the same x, baseline and steps.
    """

    morf: Curve = field(repr=False)
    lerf: Curve = field(repr=False)
    random: Curve = field(repr=False)

    @property
    def values(self) -> Tensor:
        """The area ``1 / (L + 1) sum_k f(x_k^LeRF) - f(x_k^MoRF)``, ``[N]``, L of each sample; higher is better."""
        return self.morf.aopc - self.lerf.aopc

    @property
    def over_random(self) -> Tensor:
        """``AOPC(MoRF) - AOPC(random)``, ``[N]``: how much better than chance; higher is better."""
        return self.morf.aopc - self.random.aopc

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
        found: dict[str, Any] = {name: getattr(self, name).to_dict() for name in ORDERS}
        return {"area": self.values.tolist(), "over_random": self.over_random.tolist(), **found}

    def __str__(self) -> str:
        parts = {f"AOPC {name}": getattr(self, name).aopc for name in ORDERS}
        parts |= {"AOPC morf - random": self.over_random, "area lerf - morf": self.values}
        rows = [[name, f"{float(each.mean()):.4g}", f"{standard_error(each):.2g}"] for name, each in parts.items()]
        return text_table(("", "mean", "+/-"), rows, right=(1, 2))


@one_measurement
@takes
def selectivity(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    absolute: bool = False,
    steps: int | None = None,
    fraction: float = 1.0,
    recompute: bool = False,
    **options: Unpack[RemovalOptions],
) -> Selectivity:
    """Measure MoRF, LeRF and random order on the same inputs.

    Definition: three times ``perturbation_curve``. ``values`` is the area between LeRF and MoRF,
    ``1 / (L + 1) sum_k f(x_k^LeRF) - f(x_k^MoRF)``. A random explanation has 0 up to chance, and so has a uniform one,
    whose order is that of broken ties.
    Range: (-inf, inf) for the logit, (-1, 1) for the probability; higher is better.
    Source: Samek et al. 2017 (arXiv:1509.06321); Schulz et al. 2020 (arXiv:2001.00396) for the area between.

    Args:
        explain, model, x, target, absolute, steps, fraction, recompute: as in ``perturbation_curve``, for all orders.
        options: see :class:`relprop.metrics.options.RemovalOptions`.

    Raises:
        RelpropError: what ``perturbation_curve`` raises.

    >>> import torch
    >>> model = nn.Linear(3, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0, -4.0]]))
    >>> selectivity(lambda model, x, target: x * model.weight, model, torch.ones(1, 3)).values  # LeRF: -1, 3, 2, 0
    tensor([3.], dtype=torch.float64)
    """
    given = removal(model, x, target, **options)
    counts = step_counts(given.parts, steps, fraction)
    once = explain if recompute else given.relevance(explain)
    curves = {}
    for order in ORDERS:
        scores = along(given, _places(given, once, order, absolute, counts, recompute), counts)
        curves[order] = Curve(scores, fractions(given.parts, counts), aopc(scores, lengths(counts)), "AOPC", order)
    return Selectivity(**curves)


def _places(
    given: Removal,
    explain: Explain | Tensor,
    order: Order,
    absolute: bool,
    counts: Tensor,
    recompute: bool,
    *,
    insert: bool = False,
) -> Tensor:
    """Return the place of each unit in an order, ``[N, K]``."""
    if order not in ORDERS:
        raise InputError(f"order is {order!r}; expected one of {ORDERS}")
    if order == "random":
        return random_places(given)
    if not recompute:
        return places(given, order, given.relevance(explain), absolute)
    if isinstance(explain, Tensor):
        raise InputError("recompute=True explains again at each step; expected an explainer, got a tensor")
    return recomputed_places(given, explain, order, counts, absolute, insert=insert)
