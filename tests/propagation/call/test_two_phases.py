"""A loss on the relevance: its gradient by the input and by every parameter is that of the explicit formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP
from tests import two_phase_reference as explicit
from tests.cases import RULES, RuleCase, seed_like, signed
from tests.compare import distance, package_rule, weighted
from tests.two_phase_checks import Modules, check, gradients, loss, settle

LRP0, FLAT = RuleCase("lrp0"), RuleCase("flat")
Built = tuple[Modules, Tensor]

# ------------------------------------------------------------------------------------------ linear layers

# fmt: off
NETWORKS: dict[str, Callable[[bool], Built]] = {
    "dense": lambda b: (
        [nn.Linear(6, 8, b), nn.ReLU(), nn.Linear(8, 7, b), nn.ReLU(), nn.Linear(7, 3, b)],
        signed((3, 6)),
    ),
    "signed": lambda b: (
        [nn.Linear(6, 7, b), nn.GELU(), nn.Linear(7, 6, b), nn.Tanh(), nn.Linear(6, 3, b)],
        signed((3, 6)),
    ),
    "convolution": lambda b: (
        [
            nn.Conv2d(2, 4, 3, padding=1, bias=b), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 2, groups=2, bias=b), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3, b),
        ],
        signed((2, 2, 4, 4), seed=7),
    ),
    "transposed": lambda b: (
        [
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2, bias=b), nn.ReLU(),
            nn.AvgPool2d(2), nn.ConvTranspose2d(4, 2, 2, dilation=2, bias=b), nn.Flatten(),
        ],
        signed((2, 2, 3, 3)),
    ),
    "folded": lambda b: (
        [
            nn.Conv2d(2, 3, 3, padding=1, bias=b), nn.BatchNorm2d(3), nn.ReLU(),
            nn.ConvTranspose2d(3, 4, 2, bias=b), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(100, 3, b), nn.BatchNorm1d(3),
        ],
        signed((2, 2, 4, 4)),
    ),
    "not folded": lambda b: (
        [
            nn.Linear(4, 5, b), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3, affine=False), nn.Flatten(),
            nn.Linear(15, 3, b),
        ],
        signed((2, 3, 4)),
    ),
}
# fmt: on
# Where an input is zero these rules treat it as positive on one side and as negative on the other.
SPLIT = {"gamma", "alpha_beta", "contrast", "zplus"}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in RULES])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_rule(network: str, case: RuleCase, bias: bool) -> None:
    modules, x = NETWORKS[network](bias)
    settle(modules)
    assert (x == 0).any()
    check(modules, x, case, kinks=case.rule in SPLIT)


MIXED = {
    "flat below": [FLAT, RuleCase("gamma"), LRP0],
    "flat above": [RuleCase("epsilon"), FLAT, LRP0],
    "flat on top": [RuleCase("rho", RULES[-2].options), RuleCase("zplus", {"bias": "ignore"}), FLAT],
    "box below": [RuleCase("zbox", {"low": -2.0, "high": 2.5}), RuleCase("alpha_beta"), RuleCase("epsilon")],
    "square between": [RuleCase("gamma"), RuleCase("wsquare"), RuleCase("zplus")],
}


@pytest.mark.parametrize("mixed", list(MIXED))
@pytest.mark.parametrize("network", ["dense", "convolution", "folded"])
def test_mixed_rules_through_dead_units(network: str, mixed: str) -> None:
    modules, x = NETWORKS[network](True)
    settle(modules)
    norm = modules[1] if network == "folded" else modules[0]
    with torch.no_grad():
        norm.get_parameter("bias")[::3] = -20.0
    hidden = nn.Sequential(*modules[: 3 if network == "folded" else 2])(x)
    assert (hidden[:, ::3] == 0).all() and (hidden != 0).any()
    # Zero inputs have a test of their own.
    check(modules, x, MIXED[mixed], kinks=MIXED[mixed][0].rule not in explicit.BY_RELEVANCE)


# ------------------------------------------------------------------------------- zeros, kinks and rounding


SMOOTH = [case for case in RULES if case.rule not in SPLIT and case.options.get("epsilon") != 0.0]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in RULES])
def test_a_sample_of_zeros_gives_no_nan(case: RuleCase) -> None:
    # No bias: everything is exactly zero on the way, and so is every derivative but those of other samples.
    modules = settle([nn.Linear(4, 5, False), nn.ReLU(), nn.Linear(5, 4, False), nn.Tanh(), nn.Linear(4, 2, False)])
    x = signed((3, 4), seed=2) + 0.1
    x[1] = 0.0
    check(modules, x, case, kinks=True)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SMOOTH])
def test_outputs_of_exactly_zero(case: RuleCase) -> None:
    modules = settle([nn.Linear(4, 3, False), nn.Tanh(), nn.Linear(3, 2, False)])
    x = signed((2, 4), seed=2) + 0.1
    with torch.no_grad():
        first = modules[0].get_parameter("weight")
        first[0] = torch.tensor([1.0, -1.0, 2.0, -2.0])
        x[0] = 0.5
        # The target's own output is zero in the other sample.
    assert (nn.Sequential(*modules[:1])(x) == 0).sum() == 1
    check(modules, x, case)


@pytest.mark.parametrize("rule", ["epsilon", "lrp0"])
def test_zero_inputs_below_a_rule_that_reaches_zeros(rule: str) -> None:
    modules = settle([nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)])
    x = signed((4, 5), seed=3)
    x[:, 2] = 0.0
    check(modules, x, [RuleCase(rule), FLAT, LRP0])


KINKED = [RuleCase(rule, {"stabilizer": 1e-3}) for rule in ("gamma", "alpha_beta", "zplus")]


@pytest.mark.parametrize("where", ["input", "weight", "bias"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in KINKED])
def test_the_derivative_at_a_kink_is_one_of_its_sides(case: RuleCase, where: str) -> None:
    # Rules that part positive from negative have a kink where an input, a weight or a bias is exactly zero.
    modules = settle([nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)])
    model, x, at = nn.Sequential(*modules), signed((3, 5), seed=4) + 0.05, (1, 2)
    variable = x if where == "input" else model.get_parameter(f"0.{where}").data
    place = at if variable.dim() == 2 else at[:1]
    seed = seed_like(model(x))

    def derivative(value: float, attribute: Callable[[Tensor], Tensor]) -> float:
        variable[place] = value
        leaf = x.clone().requires_grad_()
        tensor = leaf if where == "input" else model.get_parameter(f"0.{where}")
        return float(torch.autograd.grad(loss(attribute(leaf)), tensor)[0][place])

    method = LRP(model, package_rule(case))
    found = derivative(0.0, lambda leaf: method.attribute(leaf, weighted(seed), create_graph=True))
    sides = [derivative(h, lambda leaf: explicit.explain(modules, leaf, seed, case)) for h in (-1e-12, 1e-12)]
    margin = 1e-6 * max(map(abs, sides))
    assert min(sides) - margin <= found <= max(sides) + margin, (found, sides)


# -------------------------------------------------------------------------------- elementwise functions


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


SMOOTH_AT_ZERO: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "softplus": nn.Softplus,
    "softplus-beta": lambda: nn.Softplus(beta=2.5),
    "logsigmoid": nn.LogSigmoid,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": nn.Softshrink,
    "hardshrink": nn.Hardshrink,
    "exp": lambda: Apply(torch.exp),
    "expm1": lambda: Apply(torch.expm1),
    "erf": lambda: Apply(torch.erf),
    "sin": lambda: Apply(torch.sin),
    "cos": lambda: Apply(torch.cos),
    "sinh": lambda: Apply(torch.sinh),
    "atan": lambda: Apply(torch.atan),
    "square": lambda: Apply(torch.square),
    "cube": lambda: Apply(lambda z: z**3),
    "log1p-square": lambda: Apply(lambda z: torch.log1p(torch.square(z))),
    "clamp": lambda: Apply(lambda z: z.clamp(-0.5, 0.8)),
}
KINKED_AT_ZERO: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
    "rrelu": nn.RReLU,
    "prelu": nn.PReLU,
    "prelu-channels": lambda: nn.PReLU(6),
    "relu6": nn.ReLU6,
    "elu": lambda: nn.ELU(0.7),
    "celu": lambda: nn.CELU(0.5),
    "selu": nn.SELU,
    "abs": lambda: Apply(torch.abs),
}
ABOVE_ZERO: dict[str, Callable[[], nn.Module]] = {
    "sqrt": lambda: Apply(torch.sqrt),
    "power": lambda: Apply(lambda z: z**1.5),
    "log1p": lambda: Apply(torch.log1p),
}
ACTIVATIONS = {**SMOOTH_AT_ZERO, **KINKED_AT_ZERO, **ABOVE_ZERO}
RULES_AROUND: dict[str, RuleCase | list[RuleCase]] = {
    "lrp0": LRP0,
    "epsilon": RuleCase("epsilon", {"epsilon": 0.1}),
    "flat below": [FLAT, LRP0, RuleCase("epsilon")],
    "flat": FLAT,
}


@pytest.mark.parametrize("rules", RULES_AROUND)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, rules: str) -> None:
    make, x = ACTIVATIONS[activation], 2 * signed((4, 5), seed=5)
    modules = settle([nn.Linear(5, 6), make(), nn.Linear(6, 6, False), make(), nn.Linear(6, 3)])
    if activation in ABOVE_ZERO:
        x = x.abs() + 1
        for layer in modules[:3]:
            for parameter in layer.parameters():
                parameter.data.abs_()
    check(modules, x, RULES_AROUND[rules])


@pytest.mark.parametrize("tiny", [0.0, 1e-12, -1e-9, 1e-6])
@pytest.mark.parametrize("activation", list(SMOOTH_AT_ZERO))
def test_every_smooth_activation_at_zero(activation: str, tiny: float) -> None:
    modules = settle([nn.Linear(3, 4, False), SMOOTH_AT_ZERO[activation](), nn.Linear(4, 2)])
    x = signed((2, 3), seed=6) + 0.2
    with torch.no_grad():
        modules[0].get_parameter("weight")[1] = torch.tensor([1.0, -1.0, 0.0])
        x[0, 0], x[0, 1] = 0.75 + tiny, 0.75
    z = modules[0](x)[0, 1]
    assert z == 0 if tiny == 0 else abs(z / tiny - 1) < 1e-3
    check(modules, x, LRP0)


@pytest.mark.parametrize("activation", list(KINKED_AT_ZERO))
def test_no_kinked_activation_gives_nan_at_zero(activation: str) -> None:
    modules = settle([nn.Linear(3, 6, False), KINKED_AT_ZERO[activation](), nn.Linear(6, 2)])
    model, x = nn.Sequential(*modules), signed((2, 3), seed=6)
    x[0] = 0.0
    leaf = x.clone().requires_grad_()
    found = LRP(model, "lrp0").attribute(leaf, 1, create_graph=True)
    assert distance(found, LRP(model, "lrp0").attribute(x, 1)) < 1e-12
    for gradient in gradients(found, [leaf, *model.parameters()]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_relevance_is_the_same_as_without_a_graph_where_a_slope_is_infinite(power: float) -> None:
    model = nn.Sequential(*settle([nn.Linear(3, 6, False), Apply(lambda z: z.abs() ** power), nn.Linear(6, 2)]))
    x = signed((2, 3), seed=6)
    x[0] = 0.0
    found = LRP(model, "lrp0").attribute(x, 1, create_graph=True)
    assert distance(found, LRP(model, "lrp0").attribute(x, 1)) < 1e-12
