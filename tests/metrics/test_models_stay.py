"""What is given stays as it is: the copies of ``rewrites``, models that write their input, the caller's targets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop.errors import InputError
from relprop.metrics import (
    average_sensitivity,
    conservation,
    continuity,
    deletion,
    efficient_randomisation,
    evaluate,
    faithfulness_correlation,
    implementation_invariance,
    infidelity,
    input_invariance,
    insertion,
    irof,
    monotonicity_arya,
    parameter_randomisation,
    perturbation_curve,
    random_logit,
    random_neighbours,
    rewrites,
    road,
    selectivity,
    sensitivity_n,
)
from tests.metrics.small import TARGET, gradient_x_input, images, network


def test_copies_of_rewrites_have_not_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
    x, before, numbers = torch.randn(8, 4), copy.deepcopy(model[3].state_dict()), torch.get_rng_state()
    found = rewrites(model, x)
    assert list(found) == ["split", "permuted", "scaled", "identity"]
    for name, each in found.items():
        for key, value in each[3].state_dict().items():
            assert torch.equal(value, before[key]), (name, key)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[key]) for key, value in model[3].state_dict().items())
    with pytest.raises(InputError, match=r"does not run on \(1, 4\) .*more than 1 value per channel.*model.eval"):
        rewrites(model, x[:1])


@pytest.mark.parametrize("first", [nn.Hardtanh(-2, 2, inplace=True), nn.ReLU(inplace=True)])
def test_gradients_of_models_that_write_their_input(first: nn.Module) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model, x = nn.Sequential(first, inner), 3 * torch.randn(8, 4, dtype=torch.float64)
    apart = nn.Sequential(copy.deepcopy(first), inner)
    apart[0].inplace = False

    def by(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return inner(x).sum() * x

    before, other = x.clone(), rewrites(inner, x)["permuted"]
    found = implementation_invariance(by, model, nn.Sequential(copy.deepcopy(first), other), x, 1)
    expected = implementation_invariance(by, apart, nn.Sequential(copy.deepcopy(apart[0]), other), x, 1)
    assert torch.equal(found.values, expected.values) and torch.equal(found.ties, expected.ties)
    assert torch.equal(x, before)


def writes(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    found = gradient_x_input(model, x, target)
    if isinstance(target, Tensor):
        target.zero_()
    return found


def reads(outputs: Any, target: Any) -> Tensor:
    found = outputs.gather(1, target[:, None])[:, 0]
    target.zero_()
    return found


NEAR = random_neighbours(images(), 0.1, samples=2)
METRICS: dict[str, Callable[..., Any]] = {
    "perturbation_curve": lambda e, t: perturbation_curve(e, network(), images(), t).scores,
    "recomputed": lambda e, t: perturbation_curve(e, network(), images(), t, recompute=True, steps=3).scores,
    "selectivity": lambda e, t: selectivity(e, network(), images(), t).values,
    "deletion": lambda e, t: deletion(e, network(), images(), t).values,
    "insertion": lambda e, t: insertion(e, network(), images(), t).values,
    "irof": lambda e, t: irof(e, network(), images(), t, 2).values,
    "road": lambda e, t: road(e, network(), images(), t).values,
    "faithfulness_correlation": lambda e, t: faithfulness_correlation(e, network(), images(), t),
    "sensitivity_n": lambda e, t: sensitivity_n(e, network(), images(), t).correlations,
    "monotonicity_arya": lambda e, t: monotonicity_arya(e, network(), images(), t).values,
    "infidelity": lambda e, t: infidelity(e, network(), images(), t),
    "continuity": lambda e, t: continuity(e, network(), images(), t, NEAR).values,
    "average_sensitivity": lambda e, t: average_sensitivity(e, network(), images(), t, NEAR),
    "conservation": lambda e, t: conservation(e, network(), images(), t).output,
    "random_logit": lambda e, t: random_logit(e, network(), images(), t, 3),
    "parameter_randomisation": lambda e, t: parameter_randomisation(e, network(), images(), t).similarity,
    "efficient_randomisation": lambda e, t: efficient_randomisation(e, network(), images(), t).values,
    "input_invariance": lambda e, t: input_invariance(e, network(), images(), t).values,
    "implementation_invariance": lambda e, t: implementation_invariance(e, network(), network(), images(), t).values,
    "evaluate": lambda e, t: evaluate({"e": e}, {"s": selectivity}, network(), [(images(), t)]).values["e"]["s"],
    "read": lambda e, t: perturbation_curve(e, network(), images(), t, output=reads if e is writes else "logit").scores,
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_targets_stay(name: str, make: Callable[[list[int]], Any]) -> None:
    target = make(TARGET)
    found, expected = METRICS[name](writes, target), METRICS[name](gradient_x_input, make(TARGET))
    assert target.tolist() == TARGET
    assert torch.equal(found, expected)
