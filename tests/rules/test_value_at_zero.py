"""Functions with f(0) != 0 below z+ and alpha-beta: f(z) - f(0) and f(0) share by sign, and nothing is amplified."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import AlphaBeta, Epsilon, Group, GroupRule, Pass, RescaledExcitation, Rule, ZPlus
from tests.models import settle
from tests.reference import linear
from tests.reference_steps import activation, by_sign, explain

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "exp": torch.exp,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erfc": torch.erfc,
    "acos": lambda x: torch.acos(torch.tanh(x)),
    "clamp": lambda x: x.clamp(0.5, 2.0),
    "power": lambda x: 2.0**x,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}
RULES: dict[str, tuple[Rule, tuple[str, dict[str, Any]]]] = {
    "zplus": (ZPlus(), ("zplus", {})),
    "zplus_ignore": (ZPlus(bias="ignore"), ("zplus", {"bias": "ignore"})),
    "rescaled": (RescaledExcitation(), ("zplus", {"bias": "ignore"})),
    "alpha2_beta1": (AlphaBeta(2, 1), ("alpha_beta", {})),
    "alpha3_beta2": (AlphaBeta(3, 2), ("alpha_beta", {"alpha": 3.0, "beta": 2.0})),
    "epsilon": (Epsilon(relative=True), ("epsilon", {"relative": True})),
}


class Function(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.name](x)


def network(name: str) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 6), Function(name), nn.Linear(6, 4), Function(name), nn.Linear(4, 3)).double()


def given() -> Tensor:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[3] = 0.0
    return x


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "acos"])
@pytest.mark.parametrize("rule", RULES)
def test_whole_maps(rule: str, name: str) -> None:
    model, x = network(name), given()
    seed = torch.tensor([0.0, 1.0, 0.0])
    reference = explain(list(model), x, seed.double(), RULES[rule][1])
    found = LRP(model, RULES[rule][0]).attribute(x, 1)
    torch.testing.assert_close(found, reference[0].detach(), rtol=1e-9, atol=1e-10)
    LRP(model, RULES[rule][0]).report(x, 1).check(1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", ["zplus", "alpha1_beta0", "alpha1_beta0_ignore_bias", "epsilon_plus"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_amplified(name: str, preset: str, dtype: torch.dtype) -> None:
    """Far from zero, where many of these functions are almost zero, z+ hands on no more than it was given."""
    model = network(name)
    for layer in (model[0], model[2]):
        assert isinstance(layer, nn.Linear)
        layer.weight.data.mul_(4 if "exp" in name or "cosh" in name or "power" in name else 20)
    if preset == "epsilon_plus":  # whose z+ stands at convolutions
        model = nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Conv1d(5, 6, 1), model[1], nn.Conv1d(6, 2, 1), nn.Flatten())
        model = model.double()
    model, x = model.to(dtype), given().to(dtype)
    share = LRP(model, preset).attribute(x, 1).double().abs().sum(1) / model(x)[:, 1].detach().double().abs()
    assert bool((share <= 1 + {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]).all())


def test_the_layer_above_decides() -> None:
    """By type, by name or as a preset: below a layer with such a rule, whatever stands between; not below another."""
    torch.manual_seed(0)
    low, high, other = (nn.Linear(4, 4).double() for _ in range(3))

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high, self.other = low, high, other

        def forward(self, x: Tensor) -> Tensor:
            h = torch.sigmoid(self.low(x))
            h = self.high((2.0 * h.reshape(-1, 2, 2)).flatten(1))
            return self.other(torch.sigmoid(h))  # type: ignore[no-any-return]

    model, x = Between(), torch.randn(3, 4, dtype=torch.float64)
    z = low(x)
    h = torch.sigmoid(z)
    y = high(2 * h)
    out = other(torch.sigmoid(y))
    relevance = torch.zeros_like(out)
    relevance[:, 1] = out[:, 1]
    relevance = activation(torch.sigmoid, y, linear(other, torch.sigmoid(y), relevance, "epsilon", relative=True))
    relevance = linear(high, 2 * h, relevance, "zplus")
    half = torch.full_like(h, 0.5)
    reference = linear(low, x, by_sign(h - half, half, relevance, 1.0, 0.0), "zplus").detach()
    for rules in (
        Rules().set(nn.Linear, ZPlus()).set("other", Epsilon(relative=True)),
        Rules.preset("zplus").set("other", Epsilon(relative=True)),
        Rules().set("[lh]*", ZPlus()).last(Epsilon(relative=True)),
    ):
        torch.testing.assert_close(LRP(model, rules).attribute(x, 1), reference, rtol=1e-10, atol=1e-12)


def test_a_rule_that_is_set_at_the_function_stays() -> None:
    model, x = network("sigmoid"), given()
    with_pass = LRP(model, Rules().set(nn.Linear, ZPlus()).set(Function, Pass())).attribute(x, 1)
    z = model[0](x)
    h = torch.sigmoid(z)
    y = model[2](h)
    out = model[4](torch.sigmoid(y))
    relevance = torch.zeros_like(out)
    relevance[:, 1] = out[:, 1]
    for layer, a, before in ((model[4], torch.sigmoid(y), y), (model[2], h, z)):
        relevance = activation(torch.sigmoid, before, linear(layer, a, relevance, "zplus"))
    torch.testing.assert_close(with_pass, linear(model[0], x, relevance, "zplus").detach(), rtol=1e-9, atol=1e-10)


def test_every_target_has_its_own_layer_above() -> None:
    torch.manual_seed(0)

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plus, self.other = nn.Linear(4, 1).double(), nn.Linear(4, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            h = torch.sigmoid(x)
            return torch.cat([self.plus(h), self.other(h)], 1)

    model, x = Heads(), torch.randn(3, 4, dtype=torch.float64)
    explainer = LRP(model, Rules().set("plus", ZPlus()))
    both = explainer.attribute_targets(x, [0, 1])
    torch.testing.assert_close(both[0], explainer.attribute(x, 0))
    torch.testing.assert_close(both[1], explainer.attribute(x, 1))


def test_graphs_that_users_run_explain_alike() -> None:
    model, x = network("softplus"), given().requires_grad_()
    with Rules.preset("zplus").attach(model) as attached:
        output = model(x)
    (c,) = torch.autograd.grad(output[:, 1].sum(), x, retain_graph=True)
    torch.testing.assert_close((x * c).detach(), LRP(model, "zplus").attribute(x.detach(), 1))
    attached.finish()
    (true,) = torch.autograd.grad(output[:, 1].sum(), x)
    torch.testing.assert_close(true, torch.autograd.grad(model(x)[:, 1].sum(), x)[0])


@pytest.mark.parametrize("rule", ["zplus", "alpha2_beta1"])
def test_a_loss_on_the_relevance_is_differentiated(rule: str) -> None:
    model = network("softplus")
    x, y = (given().requires_grad_() for _ in range(2))
    LRP(model, RULES[rule][0]).attribute(x, 1, create_graph=True).pow(2).sum().backward()
    seed = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    explain(list(model), y, seed, RULES[rule][1])[0].pow(2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(24))
def test_networks_drawn_at_random(seed: int) -> None:
    """Functions behind each other, behind batch norms and behind pooling, each below a layer of another rule."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    smooth = [name for name in FUNCTIONS if name not in ("acos", "exp", "cosh", "power")]  # of numbers of any size
    modules: list[nn.Module] = []
    rules: list[tuple[Rule, tuple[str, dict[str, Any]]]] = []
    for _ in range(3):
        modules.append(nn.Conv1d(4, 4, 1))
        rules.append(draw.choice(list(RULES.values())))
        for _ in range(draw.randrange(1, 3)):
            modules.append(Function(draw.choice(smooth)))
            modules.extend(draw.choice([[], [], [nn.BatchNorm1d(4)], [nn.AvgPool1d(2)]]))
    modules += [nn.Flatten(), nn.LazyLinear(3)]
    rules.append(RULES["epsilon"])
    model, x = nn.Sequential(*modules).double().eval(), torch.randn(2, 4, 32, dtype=torch.float64)
    model(x)
    settle(model)
    registry = Rules()
    places = [name for name, module in model.named_children() if isinstance(module, (nn.Conv1d, nn.Linear))]
    for place, (rule, _) in zip(places, rules, strict=True):
        registry = registry.set(place, rule)
    seeds = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    reference = explain(list(model), x, seeds, [named for _, named in rules])[0].detach()
    found = LRP(model, registry).attribute(x, 1)
    assert float((found - reference).abs().max()) <= 1e-9 * float(reference.abs().max().clamp(min=1e-12))
    LRP(model, registry).report(x, 1).check(1e-8)


def test_a_rule_of_ones_own_says_so() -> None:
    class Own(GroupRule):
        groups, by_sign = (Group(1, 0),), True

    model, x = network("sigmoid"), given()
    torch.testing.assert_close(LRP(model, Own()).attribute(x, 1), LRP(model, "zplus").attribute(x, 1))
