"""Models in bfloat16 and float16: finite, and no further from float32 than Gradient x Input is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, DeepTaylor, GradientXInput
from relprop.errors import RuleError
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from tests.networks import zoo

SEEDS = range(10)
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
NETWORK = pytest.mark.parametrize("kind", ["convolutional", "dense"])

RULES: dict[str, Any] = {
    "gradient": None,
    "epsilon": "epsilon",
    "epsilon_gamma": "epsilon_gamma",
    "gamma": Gamma(0.25),
    "zplus": "zplus",
}


def network(kind: str, seed: int) -> tuple[nn.Module, Tensor]:
    """A float32 model with random weights and four signed inputs."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "dense":
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
        x = torch.randn(4, 64, generator=generator)
    else:
        features = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
        features += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
        model = nn.Sequential(*features, nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10))
        x = torch.randn(4, 3, 16, 16, generator=generator)
    zoo.randomize(model, seed=seed)
    return model.eval(), x


def explain(model: nn.Module, rules: Any, x: Tensor, target: Tensor) -> Tensor:
    method = GradientXInput(model) if rules is None else LRP(model, rules)
    relevance = method.attribute(x, target)
    assert isinstance(relevance, Tensor)
    assert relevance.dtype == x.dtype
    assert torch.isfinite(relevance).all()
    return relevance.float()


def errors(kind: str, dtype: torch.dtype, *, rounded: bool) -> dict[str, float]:
    """Distance of the half-precision map from float32's, relative to its norm, averaged over the seeds.

    With `rounded` the float32 model has the weights and inputs of the other, and what is left is arithmetic.
    """
    total = dict.fromkeys(RULES, 0.0)
    for seed in SEEDS:
        model, x = network(kind, seed)
        half, x_half = copy.deepcopy(model).to(dtype), x.to(dtype)
        if rounded:
            model, x = copy.deepcopy(half).float(), x_half.float()
        target = zoo.targets(model, x)
        for name, rules in RULES.items():
            exact = explain(model, rules, x, target)
            found = explain(half, rules, x_half, target)
            total[name] += float((found - exact).norm() / exact.norm()) / len(SEEDS)
    return total


@pytest.mark.slow
@HALF
@NETWORK
def test_no_further_from_float32_than_gradient_times_input(kind: str, dtype: torch.dtype) -> None:
    found = errors(kind, dtype, rounded=False)
    assert found["epsilon"] <= 1.2 * found["gradient"]
    assert found["gamma"] < found["gradient"]
    assert found["zplus"] < found["gradient"]


@pytest.mark.slow
@HALF
def test_arithmetic_alone_through_convolutions(dtype: torch.dtype) -> None:
    """As above for equal weights: what max pooling and ReLU decide differently weighs more for the gradient."""
    found = errors("convolutional", dtype, rounded=True)
    assert found["epsilon"] <= 1.2 * found["gradient"]
    assert found["gamma"] < found["gradient"]
    assert found["zplus"] < found["gradient"]


@pytest.mark.slow
@HALF
def test_arithmetic_alone_through_dense_layers(dtype: torch.dtype) -> None:
    """Nothing flips here, so the gradient is exact but for its sums; modified weights are rounded once more."""
    found = errors("dense", dtype, rounded=True)
    assert max(found.values()) <= 3 * torch.finfo(dtype).eps


@HALF
@NETWORK
@pytest.mark.parametrize(
    "rules", [*RULES.values(), Epsilon(0.1, relative=True), AlphaBeta(2, 1), ZPlus(bias="ignore")], ids=str
)
def test_finite_where_every_weight_is_negative(kind: str, dtype: torch.dtype, rules: Any) -> None:
    """No positive part anywhere: the denominators of gamma and z+ vanish."""
    for seed in SEEDS:
        model, x = network(kind, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(-parameter.abs())
        inputs = torch.cat([x, x.abs(), torch.zeros_like(x), -100 * x.abs()])
        explain(model.to(dtype), rules, inputs.to(dtype), torch.arange(4).repeat(4))


BY_WEIGHT = pytest.mark.parametrize("rule", [ZBox(-4.0, 4.0), WSquare(), Flat()], ids=["zbox", "wsquare", "flat"])


@NETWORK
@BY_WEIGHT
def test_rules_for_zero_inputs_refuse_float16(kind: str, rule: Any) -> None:
    model, x = network(kind, 0)
    with pytest.raises(RuleError, match=r"float16.*bfloat16|bfloat16.*float16"):
        LRP(model.half(), rule).attribute(x.half(), 0)


@pytest.mark.parametrize(
    "method",
    [
        lambda model: LRP(model, "flat"),
        lambda model: LRP(model, "epsilon_plus_flat"),
        lambda model: DeepTaylor(model, bounds=(-4, 4)),
    ],
    ids=["flat", "epsilon_plus_flat", "deep-taylor"],
)
def test_methods_with_such_rules_refuse_float16(method: Callable[[nn.Module], Any]) -> None:
    model, x = network("convolutional", 0)
    with pytest.raises(RuleError, match="bfloat16"):
        method(model.half()).attribute(x.half(), 0)


@NETWORK
@BY_WEIGHT
def test_rules_for_zero_inputs_in_bfloat16(kind: str, rule: Any) -> None:
    """Also for pixels of exactly zero, whose coefficient is 1e30 times their relevance."""
    error = 0.0
    for seed in SEEDS:
        model, x = network(kind, seed)
        x = torch.where(x.abs() < 0.5, 0.0, x)
        exact = explain(model, rule, x, torch.arange(4))
        found = explain(copy.deepcopy(model).bfloat16(), rule, x.bfloat16(), torch.arange(4))
        error += float((found - exact).norm() / exact.norm()) / len(SEEDS)
    assert error <= 0.1
