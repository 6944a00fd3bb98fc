"""What metrics by removal take, written once. :func:`relprop.metrics.perturbation_curve` says what each option is."""

from __future__ import annotations

from typing import Annotated, TypedDict

from relprop.arguments import Default
from relprop.metrics._explain import Output
from relprop.metrics._features import Features
from relprop.metrics.baselines import Baseline
from relprop.metrics.curves import Order


class DrawnOptions(TypedDict, total=False):
    """What every metric by removal takes by keyword."""

    seed: Annotated[int, Default(0)]
    internal_batch_size: Annotated[int | None, Default(512)]
    progress: Annotated[bool, Default(False)]


class RemovalOptions(DrawnOptions, total=False):
    """:class:`DrawnOptions`, what is removed, and what is scored."""

    features: Annotated[Features, Default(None)]
    baseline: Annotated[Baseline, Default("zero")]
    output: Annotated[Output, Default("logit")]


class StepOptions(RemovalOptions, total=False):
    """:class:`RemovalOptions`, and the steps of a curve."""

    absolute: Annotated[bool, Default(False)]
    steps: Annotated[int | None, Default(None)]
    recompute: Annotated[bool, Default(False)]


class CurveOptions(StepOptions, total=False):
    """:class:`StepOptions`, the order, and how far it goes: all that ``perturbation_curve`` takes."""

    order: Annotated[Order, Default("morf")]
    fraction: Annotated[float, Default(1.0)]
