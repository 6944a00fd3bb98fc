"""Networks of torchvision and timm as they come, against plain autograd, fused copies and explicit rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, GradientXInput
from relprop.rules import Epsilon, Gamma, ZPlus
from tests import explicit, fusion
from tests.networks import zoo

# Pairs of a linear layer and the batch norm that is fused into it, by network.
PAIRS = {
    "torchvision/vgg16": 0,
    "torchvision/vgg11_bn": 8,
    "torchvision/resnet18": 20,
    "torchvision/resnet50": 53,
    "torchvision/densenet121": 59,  # of 121: the others normalise a concatenation
    "torchvision/googlenet": 57,
    "torchvision/squeezenet1_1": 0,
    "torchvision/shufflenet_v2_x1_0": 56,
    "torchvision/mobilenet_v2": 52,
    "timm/regnetx_002": 44,
    "timm/resnetv2_50": 32,  # of 49: the others normalise a sum or a pooled map
}

pytestmark = pytest.mark.slow

MOBILENET = "torchvision/mobilenet_v2"


@dataclass
class Case:
    name: str
    model: nn.Module
    x: Tensor
    target: Tensor
    fused: nn.Module
    fingerprint: dict[str, object]

    def explain(self, rules: Any, model: nn.Module | None = None) -> Tensor:
        relevance = LRP(self.model if model is None else model, rules).attribute(self.x, self.target)
        assert isinstance(relevance, Tensor)
        return relevance


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Case:
    name: str = request.param
    model = zoo.build(name)
    x = zoo.images(name, scale=10.0 if name == MOBILENET else 1.0)
    fused = fusion.fuse(model, x, expected=PAIRS[name])
    return Case(name, model, x, zoo.targets(model, x), fused, zoo.fingerprint(model))


@pytest.fixture
def case(network: Case) -> Iterator[Case]:
    yield network
    assert zoo.fingerprint(network.model) == network.fingerprint, "the explanation changed the model"


def rule_of_epsilon_gamma(module: nn.Module) -> explicit.Rule:
    return explicit.epsilon if isinstance(module, nn.Linear) else explicit.gamma


RULES: dict[str, tuple[Any, Callable[[nn.Module], explicit.Rule]]] = {
    "lrp0": ("lrp0", lambda module: explicit.zero),
    "epsilon": ("epsilon", lambda module: explicit.epsilon),
    "epsilon_gamma": ("epsilon_gamma", rule_of_epsilon_gamma),
    "gamma": (Gamma(0.25), lambda module: explicit.gamma),
    "zplus": ("zplus", lambda module: explicit.zplus),
}


@pytest.mark.parametrize("rule", ["lrp0", "epsilon", "epsilon_gamma", "zplus"])
@pytest.mark.parametrize("network", list(PAIRS), indirect=True)
def test_equals_fused_copy_and_explicit_rules(case: Case, rule: str) -> None:
    check(case, rule)


# On VGG's hundred million dense weights the reference would take longer than all the rest together.
@pytest.mark.parametrize("network", [name for name in PAIRS if "vgg" not in name], indirect=True)
def test_gamma_everywhere_equals_fused_copy_and_explicit_rules(case: Case) -> None:
    check(case, "gamma")


def check(case: Case, rule: str) -> None:
    rules, rule_of = RULES[rule]
    relevance = case.explain(rules)
    if PAIRS[case.name]:
        compare(relevance, case.explain(rules, case.fused), 1e-9)
    rewritten = explicit.rewrite(case.fused, explicit.under(rule_of))
    compare(relevance, zoo.gradient_times_input(rewritten, case.x, case.target), 1e-9)


@pytest.mark.parametrize("network", [name for name in PAIRS if name != MOBILENET], indirect=True)
def test_lrp0_is_gradient_times_input(case: Case) -> None:
    relevance = case.explain("lrp0")
    compare(relevance, zoo.gradient_times_input(case.model, case.x, case.target), 1e-10)
    compare(relevance, GradientXInput(case.model).attribute(case.x, case.target), 1e-10)


@pytest.mark.parametrize("network", [MOBILENET], indirect=True)
def test_relu6_saturates(case: Case) -> None:
    """Where it does, relevance passes and the gradient does not, so the comparisons above mean something."""
    assert min(saturation(case.model, case.x)) > 0.01
    gradient = zoo.gradient_times_input(case.model, case.x, case.target)
    assert zoo.difference(gradient, case.explain("lrp0")) > 0.1


@pytest.mark.parametrize("network", ["torchvision/resnet18", "timm/regnetx_002"], indirect=True)
@pytest.mark.parametrize(("preset", "rule"), [("epsilon", Epsilon(relative=True)), ("zplus", ZPlus())])
def test_one_rule_everywhere_is_its_preset(case: Case, preset: str, rule: Any) -> None:
    assert torch.equal(case.explain(preset), case.explain(rule))


def test_standardised_weights_with_group_norm() -> None:
    model = zoo.build("timm/resnetv2_50x1_bit")
    x = zoo.images("timm/resnetv2_50x1_bit")
    target = zoo.targets(model, x)
    before = zoo.fingerprint(model)
    reference = explicit.rewrite(model, detached_group_norm)
    with torch.no_grad():
        compare(reference(x), model(x), 1e-10)
    expected = zoo.gradient_times_input(reference, x, target)
    assert zoo.difference(zoo.gradient_times_input(model, x, target), expected) > 0.1
    compare(LRP(model, "lrp0").attribute(x, target), expected, 1e-10)
    assert zoo.fingerprint(model) == before


def detached_group_norm(module: nn.Module) -> nn.Module | None:
    return explicit.GroupNorm(module, fusion.after(module)) if isinstance(module, nn.GroupNorm) else None


def compare(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert torch.isfinite(actual).all()
    assert zoo.difference(actual, expected) <= tolerance


def saturation(model: nn.Module, x: Tensor) -> list[float]:
    """The share of inputs above 6, for each ReLU6."""
    shares: list[float] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: shares.append(float((args[0] > 6).double().mean())))
        for module in model.modules()
        if isinstance(module, nn.ReLU6)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return shares
