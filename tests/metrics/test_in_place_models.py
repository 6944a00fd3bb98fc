"""Models and explainers that write into their input: the user's tensors stay, and the numbers are those of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop.metrics import (
    conservation,
    deletion,
    evaluate,
    faithfulness_correlation,
    faithfulness_estimate,
    insertion,
    interpolation,
    irof,
    monotonicity_arya,
    monotonicity_nguyen,
    perturbation_curve,
    road,
    selectivity,
    sensitivity_n,
    trajectory,
)
from tests.metrics.small import TARGET, gradient_x_input, images, network


class Before(nn.Module):
    """The network behind ``relu(x + 1)``, in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace, self.behind = inplace, network()

    def forward(self, x: Tensor) -> Tensor:
        if self.inplace:
            x += 1
            return self.behind(nn.functional.relu_(x))
        return self.behind(nn.functional.relu(x + 1))


def through(model: Any, x: Tensor, target: Any) -> Tensor:
    """Gradient x input of the network behind; writes into what it is given, as the model does."""
    found = gradient_x_input(model.behind, nn.functional.relu(x + 1), target)
    if model.inplace:
        x.zero_()
    return found


Metric = Callable[[Any, nn.Module, Tensor], Any]
METRICS: dict[str, Metric] = {
    "perturbation_curve": lambda *args: perturbation_curve(*args, TARGET).scores,
    "batches": lambda *args: perturbation_curve(*args, TARGET, internal_batch_size=2).scores,
    "recomputed": lambda *args: perturbation_curve(*args, TARGET, recompute=True, steps=4).scores,
    "selectivity": lambda *args: selectivity(*args, TARGET).values,
    "deletion": lambda *args: deletion(*args, TARGET).values,
    "insertion": lambda *args: insertion(*args, TARGET, baseline="mean").scores,
    "irof": lambda *args: irof(*args, TARGET, 2).scores,
    "road": lambda *args: road(*args, TARGET).morf,
    "faithfulness_correlation": lambda *args: faithfulness_correlation(*args, TARGET),
    "faithfulness_estimate": lambda *args: faithfulness_estimate(*args, TARGET),
    "sensitivity_n": lambda *args: sensitivity_n(*args, TARGET).correlations,
    "monotonicity_arya": lambda *args: monotonicity_arya(*args, TARGET).scores,
    "monotonicity_nguyen": lambda *args: monotonicity_nguyen(*args, TARGET),
    "conservation": lambda *args: conservation(*args, TARGET).output,
}


@pytest.mark.parametrize("name", METRICS)
def test_inputs_stay_and_numbers_are_the_same(name: str) -> None:
    x, kept = images(), images()
    found = METRICS[name](through, Before(True), x)
    assert torch.equal(x, kept)
    expected = METRICS[name](through, Before(False), x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_curve_of_an_inplace_model_is_that_of_numpy() -> None:
    model, x = Before(False), images()
    relevance = through(model, x, TARGET).sum(dim=1).flatten(1).numpy()
    expected = np.empty((3, 25))
    for n in range(3):
        image = x[n].numpy().reshape(2, 24).copy()
        order = np.argsort(-relevance[n])
        for k in range(25):
            image[:, order[:k]] = 0
            expected[n, k] = model(torch.from_numpy(image.reshape(1, 2, 4, 6)))[0, TARGET[n]].detach()
    found = perturbation_curve(through, Before(True), x, TARGET)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-10)


def test_paths_stay() -> None:
    path = interpolation(images(), torch.zeros(2, 4, 6, dtype=torch.float64), steps=4)
    kept = path.clone()
    found = trajectory(through, Before(True), path, TARGET)
    assert torch.equal(path, kept)
    assert torch.equal(found.inputs, kept)
    expected = trajectory(through, Before(False), path, TARGET)
    torch.testing.assert_close(found.outputs, expected.outputs)
    torch.testing.assert_close(found.relevance, expected.relevance)


def test_a_callable_that_makes_segments_gets_a_copy() -> None:
    def segments(x: Tensor) -> Tensor:
        labels = torch.arange(24).view(4, 6).expand(len(x), 4, 6)
        x.zero_()
        return labels

    x = images()
    found = irof(through, Before(False), x, TARGET, segments)
    assert torch.equal(x, images())
    torch.testing.assert_close(found.scores, irof(through, Before(False), x, TARGET, 1).scores)


def test_metrics_and_explainers_of_evaluate_do_not_meet() -> None:
    def outputs(explain: Any, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return model(x).detach().gather(1, target[:, None])[:, 0]

    x, target = images(), torch.tensor(TARGET)
    metrics = {"first": outputs, "second": outputs}
    found = evaluate({"a": through, "b": through}, metrics, Before(True), [(x, target)])
    expected = Before(False)(x).detach().gather(1, target[:, None])[:, 0]
    assert torch.equal(x, images())
    assert target.tolist() == TARGET
    for method in ("a", "b"):
        for name in metrics:
            torch.testing.assert_close(found.values[method][name], expected)
