"""Is this explanation any good? Measures of relevance, for any explainer.

An explainer is a function ``explain(model, x, target) -> relevance`` of the shape of ``x``: relprop's are
``lambda model, x, target: LRP(model).attribute(x, target)``. Nothing here knows how relevance came about.
"""

from relprop.metrics.baselines import baseline_of, blurred, neighbours_mean
from relprop.metrics.conservation import Absorbed, Conservation, absorbed_shares, conservation
from relprop.metrics.continuity import Continuity, average_sensitivity, continuity, max_sensitivity
from relprop.metrics.curves import Curve
from relprop.metrics.invariance import Invariance, implementation_invariance
from relprop.metrics.neighbours import interpolation, random_neighbours, translated, translation
from relprop.metrics.rewrites import rewrites
from relprop.metrics.selectivity import (
    Selectivity,
    deletion,
    insertion,
    perturbation_curve,
    pixel_flipping,
    region_perturbation,
    selectivity,
)
from relprop.metrics.trajectory import PathContinuity, Trajectory, path_continuity, trajectory

__all__ = [
    "Absorbed",
    "Conservation",
    "Continuity",
    "Curve",
    "Invariance",
    "PathContinuity",
    "Selectivity",
    "Trajectory",
    "absorbed_shares",
    "average_sensitivity",
    "baseline_of",
    "blurred",
    "conservation",
    "continuity",
    "deletion",
    "implementation_invariance",
    "insertion",
    "interpolation",
    "max_sensitivity",
    "neighbours_mean",
    "path_continuity",
    "perturbation_curve",
    "pixel_flipping",
    "random_neighbours",
    "region_perturbation",
    "rewrites",
    "selectivity",
    "trajectory",
    "translated",
    "translation",
]
