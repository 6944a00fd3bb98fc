"""Models in training mode: every metric that runs one warns, once, and says nothing in evaluation mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop.metrics as metrics
from relprop import GradientXInput
from relprop.errors import InputError, TrainingModeWarning
from tests.metrics.small import TARGET, images


def normalised() -> nn.Sequential:
    """Batch norm behind the convolution, in float64."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)]
    return nn.Sequential(*parts).double()


def product(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    return GradientXInput(model).attribute(x, target)


def near() -> Tensor:
    return metrics.random_neighbours(images(), 0.1, 3)


FOUR = [
    "conservation",
    "deletion",
    "efficient_randomisation",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "insertion",
    "monotonicity_arya",
    "monotonicity_nguyen",
    "parameter_randomisation",
    "perturbation_curve",
    "pixel_flipping",
    "road",
    "selectivity",
    "sensitivity_n",
]
CALLS: dict[str, Callable[[Any, nn.Module], Any]] = {
    **{name: lambda e, m, name=name: getattr(metrics, name)(e, m, images(), TARGET) for name in FOUR},
    "average_sensitivity": lambda e, m: metrics.average_sensitivity(e, m, images(), TARGET, near()),
    "continuity": lambda e, m: metrics.continuity(e, m, images(), TARGET, near()),
    "evaluate": lambda e, m: metrics.evaluate(
        {"a": e, "b": e}, {"c": metrics.conservation, "s": metrics.selectivity}, m, [(images(), TARGET)] * 2
    ),
    "irof": lambda e, m: metrics.irof(e, m, images(), TARGET, 2),
    "max_sensitivity": lambda e, m: metrics.max_sensitivity(e, m, images(), TARGET, near()),
    "random_logit": lambda e, m: metrics.random_logit(e, m, images(), TARGET, classes=3),
    "recomputed": lambda e, m: metrics.perturbation_curve(e, m, images(), TARGET, recompute=True, steps=4),
    "region_perturbation": lambda e, m: metrics.region_perturbation(e, m, images(), TARGET, region=2),
    "shifted_model": lambda e, m: metrics.shifted_model(m, images(), 0.5),
    "smoothed": lambda e, m: metrics.selectivity(metrics.smoothed(e, samples=2), m, images(), TARGET),
    "trajectory": lambda e, m: metrics.trajectory(e, m, near(), TARGET),
}


@pytest.mark.parametrize("name", CALLS)
def test_training_mode_is_warned_of_once(name: str) -> None:
    with pytest.warns(TrainingModeWarning, match=r"'1' \(BatchNorm2d\).*the measurement.*model\.eval\(\)") as seen:
        CALLS[name](product, normalised().train())
    assert len(seen) == 1, [str(each.message) for each in seen]
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[name](product, normalised().eval())


def test_relevance_that_is_there_is_measured_on_the_model_too() -> None:
    with pytest.warns(TrainingModeWarning) as seen:
        metrics.perturbation_curve(images(), normalised().train(), x=images(), target=TARGET)
    assert len(seen) == 1
    with pytest.warns(TrainingModeWarning) as seen:
        metrics.perturbation_curve(explain=images(), model=normalised().train(), x=images(), target=TARGET)
    assert len(seen) == 1


def test_either_of_two_models() -> None:
    evaluated = normalised().eval()
    behind = nn.Sequential(evaluated, nn.Dropout(0.5)).train()
    behind[0].eval()
    behind[1].p = 1e-300  # drops nothing, and is in training mode all the same
    for pair in ((evaluated, behind), (behind, evaluated), (behind, behind)):
        with pytest.warns(TrainingModeWarning) as seen:
            metrics.implementation_invariance(product, *pair, images(), TARGET)
        assert len(seen) == 1


def test_the_warning_comes_back_with_the_next_call() -> None:
    model = normalised().train()
    for _ in range(2):
        with pytest.warns(TrainingModeWarning):
            metrics.conservation(product, model, images(), TARGET)
    with pytest.raises(InputError), pytest.warns(TrainingModeWarning):
        metrics.perturbation_curve(product, model, images(), TARGET, order="first")  # type: ignore[arg-type]
    with pytest.warns(TrainingModeWarning, match="the explanation"):
        product(model, images(), TARGET)
