"""On a device all metrics say what they say on the CPU: what is drawn is drawn there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from relprop import metrics
from tests.metrics.small import TARGET, gradient_x_input, images, network

pytestmark = pytest.mark.cuda

CALLS: dict[str, Any] = {
    "selectivity": lambda model, x: metrics.selectivity(gradient_x_input, model, x, TARGET, baseline="noise"),
    "ties": lambda model, x: metrics.selectivity(torch.ones_like(x), model, x, TARGET, features=2),
    "recomputed": lambda model, x: metrics.perturbation_curve(
        gradient_x_input, model, x, torch.tensor(TARGET), recompute=True, baseline="neighbours"
    ),
    "insertion": lambda model, x: metrics.insertion(gradient_x_input, model, x, TARGET),
    "irof": lambda model, x: metrics.irof(gradient_x_input, model, x, TARGET, 2),
    "road": lambda model, x: metrics.road(gradient_x_input, model, x, TARGET),
    "correlation": lambda model, x: metrics.faithfulness_correlation(gradient_x_input, model, x, TARGET),
    "sensitivity_n": lambda model, x: metrics.sensitivity_n(gradient_x_input, model, x, TARGET, samples=10),
    "estimate": lambda model, x: metrics.faithfulness_estimate(gradient_x_input, model, x, TARGET),
    "arya": lambda model, x: metrics.monotonicity_arya(gradient_x_input, model, x, TARGET),
    "nguyen": lambda model, x: metrics.monotonicity_nguyen(gradient_x_input, model, x, TARGET),
    "subset": lambda model, x: metrics.infidelity(gradient_x_input, model, x, TARGET),
    "square": lambda model, x: metrics.infidelity(gradient_x_input, model, x, TARGET, perturbation="square", square=2),
    "noisy": lambda model, x: metrics.infidelity(gradient_x_input, model, x, TARGET, perturbation="noisy baseline"),
    "randomised": lambda model, x: metrics.parameter_randomisation(gradient_x_input, model, x, TARGET),
    "ssim": lambda model, x: metrics.parameter_randomisation(gradient_x_input, model, x, TARGET, similarity="ssim"),
    "smooth": lambda model, x: metrics.parameter_randomisation(
        metrics.smoothed(gradient_x_input, samples=3), model, x, TARGET, order="independent"
    ),
    "efficient": lambda model, x: metrics.efficient_randomisation(gradient_x_input, model, x, TARGET),
    "random_logit": lambda model, x: metrics.random_logit(gradient_x_input, model, x, TARGET, 3),
    "shift": lambda model, x: metrics.input_invariance(gradient_x_input, model, x, TARGET),
    "pointing": lambda model, x: metrics.pointing_game(x, MASK, radius=1),
    "mass": lambda model, x: metrics.inside_total_ratio(x, MASK, weighted=True),
    "rank": lambda model, x: metrics.relevance_rank_accuracy(x, MASK),
    "top": lambda model, x: metrics.top_k_intersection(x, MASK, 3),
    "auc": lambda model, x: metrics.localisation_auc(x, MASK),
    "gini": lambda model, x: metrics.gini_sparseness(x, features="pixels"),
    "entropy": lambda model, x: metrics.entropy_complexity(x),
}
MASK = torch.zeros(4, 6, dtype=torch.bool)
MASK[1:3, 2:5] = True


@pytest.mark.parametrize("name", CALLS)
def test_a_device_says_what_the_cpu_says(name: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        result = CALLS[name](network().to(device), images().to(device))
        found[device] = result if isinstance(result, Tensor) else result.values
        assert found[device].device.type == device
    torch.testing.assert_close(found["cuda"].cpu(), found["cpu"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["selectivity", "random_logit", "efficient"])
def test_the_input_is_taken_to_the_device_of_the_model(name: str) -> None:
    expected, found = (CALLS[name](network().to(device), images()) for device in ("cpu", "cuda"))
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=1e-6, atol=1e-9)
