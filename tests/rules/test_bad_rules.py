"""Rules that cannot be, or that stand where they cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, DeepTaylor, RuleError, Rules, Unit
from relprop.rules import (
    AlphaBeta,
    AveragePool,
    Detach,
    Epsilon,
    Flat,
    Gamma,
    Mask,
    Pass,
    Rho,
    Rule,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
)
from tests.checks import refuses
from tests.models import images, mlp, residual, settle, vectors

# -------------------------------------------------------------------------------------------- parameters

IMPOSSIBLE: dict[str, tuple[Callable[[], Any], str]] = {
    "alpha and beta": (lambda: AlphaBeta(2, 2), r"AlphaBeta: alpha - beta must be 1 .* alpha=2, beta=2"),
    "alpha alone": (lambda: AlphaBeta(alpha=3.0), r"alpha - beta must be 1 .* alpha=3.0, beta=1.0"),
    "negative beta": (lambda: AlphaBeta(0.5, -0.5), r"AlphaBeta: beta must be a number >= 0, got -0.5"),
    "beta nan": (lambda: AlphaBeta(1.0, float("nan")), r"AlphaBeta: beta must be a number >= 0, got nan"),
    "negative epsilon": (lambda: Epsilon(-1e-3), r"Epsilon: epsilon must be a number >= 0, got -0.001"),
    "epsilon a string": (lambda: Epsilon("small"), r"Epsilon: epsilon must be a number >= 0, got 'small'"),  # type: ignore[arg-type]
    "negative gamma": (lambda: Gamma(-0.1), r"Gamma: gamma must be a number >= 0, got -0.1"),
    "negative stabilizer": (lambda: Flat(-1.0), r"Flat: stabilizer must be a number >= 0"),
    "stabilizer of w^2": (lambda: WSquare(stabilizer=float("nan")), r"WSquare: stabilizer must be a number >= 0"),
    "bias": (lambda: ZPlus(bias="keep"), r"ZPlus: bias must be 'absorb' or 'ignore', got 'keep'"),  # type: ignore[arg-type]
    "low above high": (lambda: ZBox(1.0, 0.0), r"ZBox: low must be <= high everywhere, got low=1.0, high=0.0"),
    "low above high somewhere": (
        lambda: ZBox(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])),
        r"ZBox: low must be <= high everywhere",
    ),
    "nan as a bound": (lambda: ZBox(float("nan"), 1.0), r"ZBox: low must be <= high everywhere, got low=nan"),
    "bounds of two shapes": (
        lambda: ZBox(torch.zeros(2), torch.ones(3)),
        r"ZBox: low and high must broadcast to each other, got \(2,\) and \(3,\)",
    ),
    "a string as a bound": (lambda: ZBox("low", 1.0), r"ZBox: low must be a number or a tensor"),  # type: ignore[arg-type]
    "none as a bound": (lambda: ZBox(0.0, None), r"ZBox: high must be a number or a tensor"),  # type: ignore[arg-type]
    "rho no function": (lambda: Rho(1.0), r"Rho: rho must be a function of a tensor, got 1.0"),  # type: ignore[arg-type]
    "mask of a string": (lambda: Mask("ab"), r"Mask: indices must be integers, got 'ab'"),  # type: ignore[arg-type]
    "bounds no pair": (lambda: DeepTaylor(mlp(), 1.0), r"bounds must be None or a pair \(low, high\), got 1.0"),  # type: ignore[arg-type]
    "bounds reversed": (lambda: DeepTaylor(mlp(), (1.0, 0.0)), r"low must be <= high everywhere"),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_a_parameter_that_cannot_be(case: str) -> None:
    make, message = IMPOSSIBLE[case]
    with pytest.raises(RuleError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)


NO_RULES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "a number": (lambda model: LRP(model, 3), r"a preset's name, a Rules or one rule, got 3"),  # type: ignore[arg-type]
    "a class": (lambda model: LRP(model, Gamma), r"a preset's name, a Rules or one rule, got .*Gamma"),  # type: ignore[arg-type]
    "an unknown preset": (
        lambda model: LRP(model, "epsilon_gama"),
        r"No preset is named 'epsilon_gama'. Did you mean 'epsilon_gamma'.*Known: lrp0, epsilon,",
    ),
    "a preset without its bounds": (
        lambda model: LRP(model, "epsilon_gamma_box"),
        r"'epsilon_gamma_box' takes low, high, epsilon, gamma: missing .*'low'",
    ),
    "an option too many": (
        lambda model: Rules.preset("zplus", epsilon=1.0),
        r"'zplus' takes no options: .*unexpected.*'epsilon'",
    ),
    "bounds of a preset": (lambda model: Rules.preset("deep_taylor_bounded", low=1, high=0), r"low must be <= high"),
    "a class in set": (lambda model: Rules().set(nn.Linear, Gamma), r"a Rule \(an instance, not the class\)"),  # type: ignore[arg-type]
    "an unknown rule": (lambda model: Rules().set(nn.Linear, "gama"), r"registered as 'gama'. Did you mean 'gamma'"),
    "a rule that needs arguments": (lambda model: Rules().first("zbox"), r"'zbox' needs arguments; pass an instance"),
    "pooling first": (lambda model: Rules().first(AveragePool()), r"Expected a LinearRule .*got AveragePool"),
    "pooling last": (lambda model: Rules().last("average_pool"), r"Expected a LinearRule .*got AveragePool"),
    "a number as selector": (lambda model: Rules().set(3, Zero()), r"A selector is a module type.*got 3"),  # type: ignore[arg-type]
    "no type at all": (lambda model: Rules().set((), Zero()), r"A selector is a module type.*got \(\)"),
    "a tuple with a string": (
        lambda model: Rules().set((nn.Linear, "head"), Zero()),  # type: ignore[arg-type]
        r"A selector is a module type.*'head'",
    ),
    "another type": (lambda model: Rules().set(int, Zero()), r"A selector is a module type.*got <class 'int'>"),
    "a module": (lambda model: Rules().set(model, Zero()), r"A selector is a module type"),
    "an unknown operation": (lambda model: Rules().set(torch.linalg.inv, Zero()), r"no operation relprop knows"),
}


@pytest.mark.parametrize("case", list(NO_RULES))
def test_what_is_no_rule_and_no_selector(case: str) -> None:
    make, message = NO_RULES[case]
    with pytest.raises(RuleError, match=message) as caught:
        make(mlp())
    assert isinstance(caught.value, ValueError)


# --------------------------------------------------------------------------------------------- places

OPERATIONS = {
    "gamma at an activation": ("act", Gamma(), ("Gamma(", "'act'", "relu", "activation", "serves", "linear")),
    "gamma at a type": (nn.ReLU, Gamma(), ("Gamma(", "ReLU", "activation", "linear")),
    "gamma at max pooling": ("pool", Gamma(), ("Gamma(", "'pool'", "pooling", "linear")),
    "gamma at average pooling": (nn.AdaptiveAvgPool2d, Gamma(), ("Gamma(", "AdaptiveAvgPool2d", "adaptive_avg_pool2d")),
    "epsilon at batch norm": ("norm", Epsilon(), ("Epsilon(", "'norm'", "batch_norm", "linear")),
    "average pooling at a convolution": ("stem", AveragePool(), ("AveragePool(", "'stem'", "conv2d", "pooling")),
    "average pooling at dense layers": (nn.Linear, AveragePool(), ("AveragePool(", "Linear", "linear", "pooling")),
    "pass where the shape changes": ("head", Pass(), ("Pass", "'linear'", "(2, 16)", "(2, 4)")),
    "mask outside": ("stem", Mask((1, 9)), ("Mask", "conv2d", "[9]", "4 units")),
}


@pytest.mark.parametrize("case", list(OPERATIONS))
def test_a_rule_where_it_cannot_serve(case: str) -> None:
    selector, rule, words = OPERATIONS[case]
    model, rules = residual(), Rules().set(selector, rule)
    with refuses(model, RuleError, ValueError, *words):
        LRP(model, rules).attribute(images(), 0)
    with refuses(model, RuleError, ValueError, *words):
        rules.plan(model, images())
    x = images().requires_grad_()
    with refuses(model, RuleError, ValueError, *words), rules.attach(model):
        model(x)


@pytest.mark.parametrize("selector", ["1", nn.Flatten, torch.flatten], ids=["name", "type", "operation"])
def test_a_rule_at_a_layer_that_only_moves_values(selector: Any) -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2)))
    with refuses(model, RuleError, ValueError, "Gamma(", "flatten", "linear"):
        LRP(model, Rules().set(selector, Gamma())).attribute(images(), 0)


def test_a_rule_where_it_serves_one_of_several_places() -> None:
    # A glob over everything is meant for those it can serve.
    model = residual()
    found = LRP(model, Rules().set("*", Gamma())).attribute(images(), 0)
    every = LRP(model, Gamma()).attribute(images(), 0)
    assert torch.equal(found, every)


def test_a_rule_where_its_activation_is_a_view_as_well() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.flatten(1))

    model = settle(nn.Sequential(nn.Conv2d(3, 2, 3), Both(), nn.Linear(32, 2)))
    with refuses(model, RuleError, ValueError, "Gamma(", "'1'", "relu"):
        LRP(model, Rules().set("1", Gamma())).attribute(images(), 0)


def test_average_pooling_where_windows_are_dilated() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(2, dilation=2), nn.Flatten(), nn.Linear(8, 2)))
    with refuses(model, RuleError, ValueError, "AveragePool", "dilated"):
        LRP(model, Rules().set(nn.MaxPool2d, AveragePool())).attribute(images(), 0)


class Unused(nn.Module):
    """Holds a pooling layer, and calls the function in its place; what it never calls, and what is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 2, 3), nn.MaxPool2d(2), nn.Linear(8, 2)
        self.side = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(nn.functional.max_pool2d(self.conv(x), 2).flatten(1))
        return out + self.side(torch.ones(3, dtype=x.dtype))


IDLE: dict[str, tuple[Any, Rule, tuple[str, ...]]] = {
    "a type that is not there": (nn.Conv3d, Gamma(), ("Gamma(", "Conv3d", "Unused", "Conv2d, MaxPool2d, Linear")),
    "types that are not there": ((nn.Conv3d, nn.Conv1d), Gamma(), ("Conv3d | Conv1d", "no such module")),
    "a filter at a type that is not there": (nn.ReLU, Mask((0,)), ("Mask(", "ReLU", "no such module")),
    "a type that is not called": (
        nn.MaxPool2d,
        AveragePool(),
        ("MaxPool2d", "'pool'", "not called in this forward pass"),
    ),
    "a name that is not called": (
        "pool",
        AveragePool(),
        ("'pool'", "not called in this forward pass", "optional=True"),
    ),
    "a module of constants": ("side", Gamma(), ("'side'", "nothing runs that depends on the input")),
    "an operation that does not run": (
        torch.softmax,
        Detach(),
        ("Detach()", "softmax", "conv2d, max_pool2d", "linear"),
    ),
}


@pytest.mark.parametrize("case", list(IDLE))
def test_an_entry_that_serves_nothing(case: str) -> None:
    selector, rule, words = IDLE[case]
    model, x = settle(Unused()), images()
    rules = Rules().set(selector, rule)
    with refuses(model, RuleError, ValueError, *words):
        LRP(model, rules).attribute(x, 0)
    with refuses(model, RuleError, ValueError, *words):
        rules.plan(model, x)
    with refuses(model, RuleError, ValueError, *words), rules.attach(model):
        model(x.clone().requires_grad_())
    lenient = Rules().set(selector, rule, optional=True)
    assert torch.equal(LRP(model, lenient).attribute(x, 0), LRP(model, "lrp0").attribute(x, 0))


def test_entries_that_may_or_do_serve_are_no_error() -> None:
    model, x = mlp(), vectors()
    for rules in (
        Rules().set((nn.Conv2d, nn.Linear), Epsilon()),  # one of several types
        Rules().set(nn.Linear, Gamma()).set("*", Epsilon()),  # shadowed by a later entry
        Rules().set(lambda name, module: False, Gamma()).set(nn.Linear, Epsilon()),  # a condition may hold nowhere
        Rules.preset("epsilon_gamma").set(nn.Linear, Epsilon()),  # a preset keeps its leniency
        Rules.preset("cp_lrp").set(nn.Linear, Epsilon()),
    ):
        assert torch.equal(LRP(model, rules).attribute(x, 0), LRP(model, Epsilon()).attribute(x, 0))


def test_only_a_whole_forward_pass_tells_what_serves_nothing() -> None:
    model, x = Unused(), images()
    settle(model)
    rules = Rules().set(nn.Linear, Gamma()).set(torch.flatten, Detach())
    unit = Unit("conv", (0, 1, 1))
    assert torch.equal(LRP(model, rules).attribute(x, unit), LRP(model, "lrp0").attribute(x, unit))
    with rules.attach(model):
        model.conv(x.clone().requires_grad_())


def test_a_name_that_matches_nothing_may_be_optional() -> None:
    model, x = mlp(), vectors()
    rules = Rules().set("features.*", Gamma(), optional=True)
    assert torch.equal(LRP(model, rules).attribute(x, 0), LRP(model, "lrp0").attribute(x, 0))


@pytest.mark.parametrize("rule", [Gamma(), Detach(), Mask((0,))], ids=repr)
def test_a_rule_by_name_at_a_module_in_which_nothing_runs(rule: Rule) -> None:
    # Without a word it would look as if it had worked.
    model = settle(nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 2)))
    with refuses(model, RuleError, ValueError, "'1'", "runs"):
        LRP(model, Rules().set("1", rule)).attribute(vectors(), 1)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


GLOBS = {
    "clasifier": ("'clasifier' matches no module of Named", "Did you mean 'classifier'"),
    "features.9": ("'features.9' matches no module of Named", "'features.0'"),
    "Features.0": ("matches no module", "'features.0'"),
    "featuers.*": ("matches no module", "'features.0'"),
    "classifier.weight": ("matches no module", "'classifier'"),
    "zzz": ("'zzz' matches no module of Named",),
    "features": ("nothing runs but their parts", "'features.*'"),
}


@pytest.mark.parametrize("glob", list(GLOBS))
def test_a_glob_that_matches_nothing(glob: str) -> None:
    model, x = settle(Named()), images()
    rules = Rules().set(nn.Linear, Epsilon()).set(glob, Gamma())
    with refuses(model, RuleError, ValueError, *GLOBS[glob]):
        LRP(model, rules).attribute(x, 0)
    with refuses(model, RuleError, ValueError, *GLOBS[glob]):
        rules.plan(model, x)
    with refuses(model, RuleError, ValueError, *GLOBS[glob]), rules.attach(model):
        model(x.clone().requires_grad_())


# --------------------------------------------------------------------------------------------- bounds

SHAPES = {
    "channels": (torch.zeros(4), "(4,)"),
    "an image of another size": (torch.zeros(3, 5, 5), "(3, 5, 5)"),
    "another batch": (torch.zeros(5, 3, 6, 6), "(5, 3, 6, 6)"),
    "too many dimensions": (torch.zeros(1, 2, 3, 6, 6), "(1, 2, 3, 6, 6)"),
}


@pytest.mark.parametrize("case", list(SHAPES))
@pytest.mark.parametrize("side", ["low", "high"])
def test_bounds_of_the_wrong_shape(case: str, side: str) -> None:
    bound, shown = SHAPES[case]
    low, high = (bound - 3, 3.0) if side == "low" else (-3.0, bound + 3)
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2, bias=False)))
    words = (f"ZBox: {side} has shape {shown}", "(2, 3, 6, 6)", "one number per channel")
    methods: list[LRP] = [
        LRP(model, Rules().first(ZBox(low, high))),
        LRP(model, Rules.preset("epsilon_gamma_box", low=low, high=high)),
        DeepTaylor(model, (low, high)),
    ]
    for method in methods:
        with refuses(model, RuleError, ValueError, *words):
            method.attribute(images(), 0)


def test_one_rule_that_serves_no_linear_layer() -> None:
    model = residual()
    with refuses(model, RuleError, ValueError, "LinearRule", "AveragePool"):
        LRP(model, AveragePool()).attribute(images(), 0)


@pytest.mark.parametrize("rule", [ZBox(-4.0, 4.0), WSquare(), Flat()], ids=repr)
def test_what_reaches_zeros_in_float16(rule: Rule) -> None:
    model = mlp().half()
    with refuses(model, RuleError, ValueError, type(rule).__name__, "float16", "bfloat16"):
        LRP(model, Rules().set(nn.Linear, Zero()).first(rule)).attribute(vectors().half(), 0)
