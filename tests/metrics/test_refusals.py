"""What the metrics of sanity, invariance and continuity refuse: with what was wrong, what was expected, what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop.errors import InputError, InputTypeError, ModelError, TargetError
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
from tests.metrics.small import TARGET, gradient_x_input, images, network

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
    with pytest.raises(
        InputTypeError, match=rf"{name} explains .* is 'gradient'; expected a callable.*relevance; write lambda"
    ):
        metric("gradient")


class Words(nn.Module):
    """Token ids to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embedding(ids)).mean(1))


def ones(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    return torch.ones(x.shape)


IDS = torch.arange(12).view(3, 4)
AS_NUMBERS: dict[str, Callable[[], Any]] = {
    "smoothed": lambda: smoothed(ones)(Words(), IDS, 0),
    "smooth randomisation": lambda: parameter_randomisation(smoothed(ones), Words(), IDS, 0),
    "random_neighbours": lambda: random_neighbours(IDS, 0.1),
    "continuity": lambda: continuity(ones, Words(), IDS, 0, IDS[None] + 0.5),
    "max_sensitivity": lambda: max_sensitivity(ones, Words(), IDS, 0, IDS[None] + 0.5),
    "average_sensitivity": lambda: average_sensitivity(ones, Words(), IDS, 0, IDS[None] + 0.5),
    "infidelity": lambda: infidelity(ones, Words(), IDS, 0, perturbation="noisy baseline"),
    "of a coefficient": lambda: infidelity(ones, Words(), IDS, 0, kind="coefficient"),
    "of one's own": lambda: infidelity(ones, Words(), IDS, 0, perturbation=lambda x, source: 0.1 * x),
    "input_invariance": lambda: input_invariance(ones, Words(), IDS, 0),
}


@pytest.mark.parametrize("name", AS_NUMBERS)
def test_indices_are_not_numbers_to_add_noise_to(name: str) -> None:
    with pytest.raises((InputError, InputTypeError), match=r"torch.int64.*(indices|integers).*expected"):
        AS_NUMBERS[name]()


def test_indices_may_be_exchanged() -> None:
    """Other words in their place: defined for indices, and no noise."""
    other = (IDS + 5)[None]
    distance = np.linalg.norm((other - IDS[None]).numpy().astype(float), axis=2)
    by_ids = lambda model, x, target: x.double()  # noqa: E731
    expected = np.abs((other - IDS[None]).numpy()).sum(2) / distance
    np.testing.assert_allclose(continuity(by_ids, Words(), IDS, 0, other).ratios.numpy(), expected)
    assert infidelity(ones, Words(), IDS, 0, perturbation="subset").shape == (3,)


class Pair(nn.Module):
    """Two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), x


def test_models_with_several_outputs() -> None:
    x = torch.rand(2, 4)
    for call in (lambda: input_invariance(ones, Pair(), x, 0), lambda: shifted_model(Pair(), x, 1.0)):
        with pytest.raises(ModelError, match=r"input_invariance compares outputs, and Pair returned a tuple; .* wrap"):
            call()
    with pytest.raises(ModelError, match=r"rewrites compares outputs, and Pair returned a tuple; .* wrap"):
        rewrites(Pair(), x)
    with pytest.raises(ModelError, match=r"the model returns a tuple; expected .* output="):
        implementation_invariance(ones, Pair(), Pair(), x, 0)
    with pytest.raises(TargetError, match=r"the model returns \(2, 3\); expected a target"):
        implementation_invariance(ones, Pair().body, Pair().body, x)
    found = parameter_randomisation(ones, Pair(), x, 0)  # whose outputs are the explainer's affair
    assert found.layers == ("body.2", "body.0")


def test_models_that_cannot_be_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3))
    x = torch.rand(2, 4)
    for call in (
        lambda: parameter_randomisation(ones, old, x, 0),
        lambda: efficient_randomisation(ones, old, x, 0),
        lambda: rewrites(old, x, [("0", "2")]),
        lambda: rewrites(old, x),
        lambda: shifted_model(old, x, 1.0),
    ):
        with pytest.raises(ModelError, match=r"cannot be copied .*'0' \(Linear\) holds 'weight'.*parametrizations"):
            call()
    taken_off = torch.nn.utils.remove_weight_norm(old[0])  # as the message says
    assert taken_off is old[0] and list(rewrites(old, x))
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3))
    assert parameter_randomisation(ones, new, x, 0).layers == ("2", "0.parametrizations.weight", "0")
    torch.testing.assert_close(shifted_model(new, x, 1.0)(x + 1), new(x))
    for chains in (None, [("0", "2")]):
        with pytest.raises(ModelError, match=r"'0' is parametrized.*remove_parametrizations\(module, 'weight'\)"):
            rewrites(new, x, chains)
    nn.utils.parametrize.remove_parametrizations(new[0], "weight")
    assert list(rewrites(new, x))

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there is only one of me")

    with pytest.raises(ModelError, match=r"Stubborn cannot be copied \(there is only one of me\).*__deepcopy__"):
        parameter_randomisation(ones, Stubborn(4, 3), x, 0)


def test_functions_that_are_no_modules() -> None:
    x = torch.rand(2, 4)
    for call in (
        lambda: parameter_randomisation(ones, torch.relu, x, 0),  # type: ignore[arg-type]
        lambda: rewrites(torch.relu, x),  # type: ignore[arg-type]
        lambda: shifted_model(torch.relu, x, 1.0),  # type: ignore[arg-type]
    ):
        with pytest.raises(ModelError, match=r"works on a copy of an nn.Module; the model is a builtin"):
            call()


def test_a_constant_model_has_gradient_zero_and_no_ties() -> None:
    x = torch.rand(3, 4, dtype=torch.float64)
    constant = nn.Linear(4, 2).double()
    nn.init.zeros_(constant.weight)
    for model in (constant, lambda x: torch.ones(len(x), 2), lambda x: torch.ones(len(x), 2, requires_grad=True) * 1):
        result = implementation_invariance(ones, model, model, x, 1)  # type: ignore[arg-type]
        assert result.values.tolist() == [0, 0, 0] and not result.ties.any()
    assert input_invariance(gradient_x_input, constant, x, 1).values.tolist() == [0, 0, 0]


def test_empty_inputs_are_named() -> None:
    x = torch.rand(0, 4)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    for call in (
        lambda: implementation_invariance(ones, model, model, x, 0),
        lambda: rewrites(model, x),
        lambda: random_neighbours(x, 0.1),
        lambda: shifted_model(model, x, 1.0),
        lambda: efficient_randomisation(ones, model, x, 0),
    ):
        with pytest.raises(InputError, match="at least one sample"):
            call()
    with pytest.raises(InputTypeError, match="neighbours are a list"):
        continuity(ones, model, torch.rand(1, 4), 0, [[[1.0]]])  # type: ignore[arg-type]


def test_infidelity_keeps_no_graph() -> None:
    x, baseline = torch.rand(2, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    found = infidelity(lambda model, x, target: x * model.weight, nn.Linear(4, 1), x, baseline=baseline)
    assert not found.requires_grad
