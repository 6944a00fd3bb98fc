"""What metrics by removal take by keyword, written once. Where a metric has another default, its signature shows it."""

from __future__ import annotations

from typing import Annotated, TypedDict

from relprop.arguments import Default
from relprop.metrics._explain import Output
from relprop.metrics._features import Features
from relprop.metrics.baselines import Baseline
from relprop.metrics.curves import Order


class DrawnOptions(TypedDict, total=False):
    """What every metric by removal takes by keyword.

    Args:
        seed: for ties, random orders and noise; drawn on the CPU, the same on every device. Default: 0.
        internal_batch_size: inputs at once; None for all. Default: 512.
        progress: show a bar (tqdm). Default: False.
    """

    seed: Annotated[int, Default(0)]
    internal_batch_size: Annotated[int | None, Default(512)]
    progress: Annotated[bool, Default(False)]


class RemovalOptions(DrawnOptions, total=False):
    """:class:`DrawnOptions`, what is removed, and what is scored.

    Args:
        features: what is replaced together. ``"pixels"``, with all channels (so None means for ``[N, C, H, W]``);
            ``"elements"`` (None for all else); an int or a pair, the size of regions on a grid; or a tensor of
            integers, segments: for embeddings ``[N, T, D]``, ``torch.arange(T)`` are tokens. Segments have the shape of
            x, of one sample, or either without channels (or D), for all of them; a shape that fits in two ways is an
            error.
            Default: None.
        baseline: ``"zero"``, ``"mean"``, ``"blur"``, ``"noise"``, ``"invert"``, ``"neighbours"``, a number, a tensor or
            a callable (:func:`relprop.metrics.baseline_of` says what each is). Default: ``"zero"``.
        output: the score: ``"logit"``, ``"probability"`` (softmax) or a callable ``(outputs, target) -> [N]``. Default:
            ``"logit"``.
    """

    features: Annotated[Features, Default(None)]
    baseline: Annotated[Baseline, Default("zero")]
    output: Annotated[Output, Default("logit")]


class StepOptions(RemovalOptions, total=False):
    """:class:`RemovalOptions`, and the steps of a curve.

    Args:
        absolute: order by the sum of ``|R|`` instead. Default: False.
        steps: L, the same for all samples; None is one unit a step. Default: None.
        recompute: explain again at each step, and order what is left by that; L times the explanations. Default: False.
    """

    absolute: Annotated[bool, Default(False)]
    steps: Annotated[int | None, Default(None)]
    recompute: Annotated[bool, Default(False)]


class CurveOptions(StepOptions, total=False):
    """:class:`StepOptions`, the order, and how far it goes: all that ``perturbation_curve`` takes.

    Args:
        order: ``"morf"``, ``"lerf"`` or ``"random"`` (no explanation is made). A unit's relevance is the sum of its
            entries'. It keeps its sign: what speaks against the target is replaced last by MoRF. Ties are in random
            order, by ``seed``. Default: ``"morf"``.
        fraction: the part of the units that is replaced in the end. Default: 1.0.
    """

    order: Annotated[Order, Default("morf")]
    fraction: Annotated[float, Default(1.0)]
