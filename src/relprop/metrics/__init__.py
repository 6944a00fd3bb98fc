"""Is this explanation any good? Measures of relevance, for any explainer.

An explainer is a function ``explain(model, x, target) -> relevance`` of the shape of ``x``: relprop's are
``lambda model, x, target: LRP(model).attribute(x, target)``. Nothing here knows how relevance came about.
"""

from relprop.metrics.baselines import baseline_of, blurred, neighbours_mean
from relprop.metrics.curves import Curve
from relprop.metrics.selectivity import (
    Selectivity,
    deletion,
    insertion,
    perturbation_curve,
    pixel_flipping,
    region_perturbation,
    selectivity,
)

__all__ = [
    "Curve",
    "Selectivity",
    "baseline_of",
    "blurred",
    "deletion",
    "insertion",
    "neighbours_mean",
    "perturbation_curve",
    "pixel_flipping",
    "region_perturbation",
    "selectivity",
]
