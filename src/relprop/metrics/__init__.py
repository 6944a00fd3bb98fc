"""Is this explanation any good? Measures of relevance, for any explainer.

An explainer is a function ``explain(model, x, target) -> relevance`` of the shape of ``x``: relprop's are
``lambda model, x, target: LRP(model).attribute(x, target)``. Nothing here knows how relevance came about.
"""

from relprop.metrics.baselines import baseline_of, blurred, neighbours_mean
from relprop.metrics.complexity import entropy_complexity, gini_sparseness
from relprop.metrics.conservation import Absorbed, Conservation, absorbed_shares, conservation
from relprop.metrics.continuity import Continuity, average_sensitivity, continuity, max_sensitivity
from relprop.metrics.curves import Curve
from relprop.metrics.evaluation import Evaluation, evaluate
from relprop.metrics.faithfulness import SensitivityN, faithfulness_correlation, faithfulness_estimate, sensitivity_n
from relprop.metrics.imputation import noisy_linear_imputation
from relprop.metrics.infidelity import infidelity
from relprop.metrics.invariance import Invariance, implementation_invariance
from relprop.metrics.irof import irof
from relprop.metrics.localisation import (
    inside_total_ratio,
    localisation_auc,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    top_k_intersection,
)
from relprop.metrics.monotonicity import Monotonicity, monotonicity_arya, monotonicity_nguyen
from relprop.metrics.neighbours import interpolation, random_neighbours, translated, translation
from relprop.metrics.rewrites import rewrites
from relprop.metrics.road import Road, road
from relprop.metrics.sanity import (
    EfficientRandomisation,
    Randomisation,
    efficient_randomisation,
    parameter_randomisation,
    random_logit,
    smoothed,
)
from relprop.metrics.selectivity import (
    Selectivity,
    deletion,
    insertion,
    perturbation_curve,
    pixel_flipping,
    region_perturbation,
    selectivity,
)
from relprop.metrics.shift import InputInvariance, input_invariance, shifted_model
from relprop.metrics.similarity import hog_similarity, rank_correlation, structural_similarity
from relprop.metrics.trajectory import PathContinuity, Trajectory, path_continuity, trajectory

__all__ = [
    "Absorbed",
    "Conservation",
    "Continuity",
    "Curve",
    "EfficientRandomisation",
    "Evaluation",
    "InputInvariance",
    "Invariance",
    "Monotonicity",
    "PathContinuity",
    "Randomisation",
    "Road",
    "Selectivity",
    "SensitivityN",
    "Trajectory",
    "absorbed_shares",
    "average_sensitivity",
    "baseline_of",
    "blurred",
    "conservation",
    "continuity",
    "deletion",
    "efficient_randomisation",
    "entropy_complexity",
    "evaluate",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "gini_sparseness",
    "hog_similarity",
    "implementation_invariance",
    "infidelity",
    "input_invariance",
    "insertion",
    "inside_total_ratio",
    "interpolation",
    "irof",
    "localisation_auc",
    "max_sensitivity",
    "monotonicity_arya",
    "monotonicity_nguyen",
    "neighbours_mean",
    "noisy_linear_imputation",
    "parameter_randomisation",
    "path_continuity",
    "perturbation_curve",
    "pixel_flipping",
    "pointing_game",
    "random_logit",
    "random_neighbours",
    "rank_correlation",
    "region_perturbation",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "rewrites",
    "road",
    "selectivity",
    "sensitivity_n",
    "shifted_model",
    "smoothed",
    "structural_similarity",
    "top_k_intersection",
    "trajectory",
    "translated",
    "translation",
]
