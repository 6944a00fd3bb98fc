"""What the metrics of sanity, invariance and continuity refuse: with what was wrong, what was expected, what to do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.metrics.small import TARGET, gradient_x_input, images, network
from torch import Tensor, nn

from relprop.errors import InputError, InputTypeError, ModelError
from relprop.metrics import (
    average_sensitivity,
    continuity,
    efficient_randomisation,
    implementation_invariance,
    infidelity,
    input_invariance,
    max_sensitivity,
    parameter_randomisation,
    random_logit,
    random_neighbours,
    rewrites,
    shifted_model,
    smoothed,
    trajectory,
)

NEAR = random_neighbours(images(), 0.1, samples=2)
EXPLAINS_MORE: dict[str, Callable[..., Any]] = {
    "parameter_randomisation": lambda explain: parameter_randomisation(explain, network(), images(), TARGET),
    "efficient_randomisation": lambda explain: efficient_randomisation(explain, network(), images(), TARGET),
    "random_logit": lambda explain: random_logit(explain, network(), images(), TARGET, 3),
    "smoothed": smoothed,
    "input_invariance": lambda explain: input_invariance(explain, network(), images(), TARGET),
    "implementation_invariance": lambda explain: implementation_invariance(
        explain, network(), network(), images(), TARGET
    ),
    "continuity": lambda explain: continuity(explain, network(), images(), TARGET, NEAR),
    "max_sensitivity": lambda explain: max_sensitivity(explain, network(), images(), TARGET, NEAR),
    "average_sensitivity": lambda explain: average_sensitivity(explain, network(), images(), TARGET, NEAR),
    "trajectory": lambda explain: trajectory(explain, network(), NEAR, TARGET),
}


@pytest.mark.parametrize("name", EXPLAINS_MORE)
def test_relevance_that_is_there_already_explains_nothing_else(name: str) -> None:
    metric = EXPLAINS_MORE[name]
    with pytest.raises(InputTypeError, match=rf"{name} explains .*relevance that is there already.*explain\(model, x"):
        metric(gradient_x_input(network(), images(), TARGET))
    with pytest.raises(InputTypeError, match="explain is a str, which cannot; expected a callable"):
        metric("gradient")
