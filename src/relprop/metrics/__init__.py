"""Is this explanation any good? Measures of relevance, for any explainer.

An explainer is a function ``explain(model, x, target) -> relevance`` of the shape of ``x``: relprop's are
``lambda model, x, target: LRP(model).attribute(x, target)``. Nothing here knows how relevance came about.
"""

from relprop.metrics.conservation import Absorbed, Conservation, absorbed_shares, conservation
from relprop.metrics.continuity import Continuity, average_sensitivity, continuity, max_sensitivity
from relprop.metrics.invariance import Invariance, implementation_invariance
from relprop.metrics.neighbours import interpolation, random_neighbours, translated, translation
from relprop.metrics.rewrites import rewrites
from relprop.metrics.trajectory import PathContinuity, Trajectory, path_continuity, trajectory

__all__ = [
    "Absorbed",
    "Conservation",
    "Continuity",
    "Invariance",
    "PathContinuity",
    "Trajectory",
    "absorbed_shares",
    "average_sensitivity",
    "conservation",
    "continuity",
    "implementation_invariance",
    "interpolation",
    "max_sensitivity",
    "path_continuity",
    "random_neighbours",
    "rewrites",
    "trajectory",
    "translated",
    "translation",
]
