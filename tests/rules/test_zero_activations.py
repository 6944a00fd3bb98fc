"""Flat, w^2 and zB on every layer of a network, through dead units and zero pixels.

Their relevance is no multiple of the activation, so it reaches units whose activation is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Flat, Zero
from tests import reference, reference_steps
from tests.cases import DTYPE, RULES, RuleCase, seed_like, signed
from tests.compare import TOLERANCE, distance, package_rule, sequence_distance, weighted

REACHES_ZERO = [
    RuleCase("flat"),
    RuleCase("flat", {"stabilizer": 0.0}),
    RuleCase("wsquare"),
    RuleCase("wsquare", {"stabilizer": 0.0}),
    RuleCase("zbox", {"low": -3.0, "high": 6.0}),
    RuleCase("zbox", {"low": -3.0, "high": 6.0, "stabilizer": 0.0}),
]


def kill(layer: nn.Module, units: slice) -> nn.Module:
    """Make units of a layer negative whatever non-negative input comes: they are dead behind a ReLU."""
    with torch.no_grad():
        weight = layer.get_parameter("weight")
        weight[units] = -weight[units].abs()
        if getattr(layer, "bias", None) is not None:
            layer.get_parameter("bias")[units] = -1.0
    return layer


def dense(bias: bool) -> list[nn.Module]:
    torch.manual_seed(1)
    layers = [nn.Linear(12, 10, bias), *(nn.Linear(10, 10, bias) for _ in range(5)), nn.Linear(10, 3, bias)]
    for layer in layers[1:-1]:
        kill(layer, slice(0, 4))
    return [m for layer in layers for m in (layer, nn.ReLU())][:-1]


def convolutional(bias: bool) -> list[nn.Module]:
    torch.manual_seed(2)
    return [
        nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.ReLU(),
        kill(nn.Conv2d(4, 6, 3, stride=2, bias=bias), slice(2)), nn.ReLU(),
        kill(nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=bias), slice(2, 4)), nn.ReLU(),
        nn.Conv2d(6, 4, 2, dilation=2, bias=bias), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5, bias), nn.ReLU(),
        nn.Linear(5, 3, bias),
    ]  # fmt: skip


def pooled(bias: bool) -> list[nn.Module]:
    torch.manual_seed(3)
    return [
        nn.Conv2d(2, 5, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        kill(nn.Conv2d(5, 6, 3, padding=1, bias=bias), slice(3)), nn.ReLU(), nn.AvgPool2d(2, 1),
        kill(nn.Conv2d(6, 6, 1, bias=bias), slice(2)), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.ConvTranspose2d(6, 4, 2, stride=2, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(), nn.Linear(8, 3, bias),
    ]  # fmt: skip


NETWORKS = {"dense": dense, "convolutional": convolutional, "pooled": pooled}


def pixels(name: str) -> Tensor:
    """Inputs with zero pixels, a zero square among them so that whole receptive fields are zero."""
    if name == "dense":
        return signed((3, 12), seed=3)
    x = signed((2, 2, 9, 9), seed=3)
    x[:, :, 2:8, 3:9] = 0.0
    return x


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.name) for rule in REACHES_ZERO])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_on_every_layer(network: str, rule: RuleCase, bias: bool) -> None:
    modules = [module.to(DTYPE) for module in NETWORKS[network](bias)]
    x = pixels(network)
    model = nn.Sequential(*modules)
    dead = [int((m == 0).all(0).sum()) for m in activations(modules, x)]
    assert max(dead) >= 2, "the network has dead units"
    seed = seed_like(model(x))
    relevances = reference_steps.explain(modules, x, seed, (rule.rule, rule.options))
    method = LRP(model, package_rule(rule))
    assert distance(method.attribute(x, target=weighted(seed)), relevances[0]) < TOLERANCE
    names = [str(i) for i in range(len(modules))]
    layers = method.attribute_layers(x, names, target=weighted(seed))
    for i, name in enumerate(names):
        assert distance(layers[name], relevances[i + 1]) < TOLERANCE, (name, modules[i])


def activations(modules: list[nn.Module], x: Tensor) -> list[Tensor]:
    found = []
    for module in modules:
        x = module(x)
        if isinstance(module, nn.ReLU):
            found.append(x)
    return found


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.name) for rule in REACHES_ZERO])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_on_every_layer_in_float32(network: str, rule: RuleCase, bias: bool) -> None:
    # Both sides see the same numbers, those that float32 can hold.
    single = nn.Sequential(*NETWORKS[network](bias)).float()
    x = pixels(network).float()
    seed = seed_like(single(x))
    found = LRP(single, package_rule(rule)).attribute(x, target=weighted(seed))
    assert found.dtype == torch.float32
    double = single.double()
    expected = reference_steps.explain(list(double), x.double(), seed.double(), (rule.rule, rule.options))[0]
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.name) for rule in RULES])
def test_flat_above_other_rules(rule: RuleCase, bias: bool) -> None:
    # Relevance from flat arrives at outputs of zero: those of dead units, and of fields that hold only zeros.
    modules = [module.to(DTYPE) for module in convolutional(bias)]
    x = pixels("convolutional")
    seed = seed_like(x.new_zeros(2, 3))
    flat = RuleCase("flat")
    assert sequence_distance(modules, x, seed, [rule, rule, flat, flat, flat, flat]) < 1e-9


class Branches(nn.Module):
    """Two ReLU branches added, again and again; where both are dead the sum is exactly zero."""

    def __init__(self, kind: Callable[[], nn.Module], depth: int) -> None:
        super().__init__()
        self.left = nn.ModuleList(kind() for _ in range(depth))
        self.right = nn.ModuleList(kind() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for left, right in zip(self.left, self.right, strict=True):
            x = torch.relu(left(x)) + torch.relu(right(x))
        return x.flatten(1).sum(1, keepdim=True)

    def explain(self, x: Tensor, rule: RuleCase) -> Tensor:
        inputs = [x]
        for left, right in zip(self.left, self.right, strict=True):
            inputs.append(torch.relu(left(inputs[-1])) + torch.relu(right(inputs[-1])))
        top = inputs.pop()
        # The final sum shares by its terms, those below the rule equally.
        relevance = top
        for step, (left, right) in enumerate(zip(reversed(self.left), reversed(self.right), strict=True)):
            a = inputs.pop()
            sides = [left, right]
            shares = reference_steps.addition([torch.relu(side(a)) for side in sides], relevance, equal=step > 0)
            relevance = sum(
                reference.linear(side, a, r, rule.rule, **rule.options) for side, r in zip(sides, shares, strict=True)
            )
        return relevance


BRANCHES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: kill(nn.Linear(8, 8, bias=False), slice(2)), (3, 8)),
    "convolutional": (lambda: kill(nn.Conv2d(3, 3, 2, bias=False), slice(1)), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.name) for rule in REACHES_ZERO])
@pytest.mark.parametrize("kind", list(BRANCHES))
def test_two_branches_added_six_deep(kind: str, rule: RuleCase) -> None:
    torch.manual_seed(4)
    make, shape = BRANCHES[kind]
    model = Branches(make, depth=6).to(DTYPE)
    x = signed(shape, seed=5).abs()
    found = LRP(model, package_rule(rule)).attribute(x)
    assert distance(found, model.explain(x, rule)) < TOLERANCE
    if rule.options.get("stabilizer") == 0.0:
        torch.testing.assert_close(found.flatten(1).sum(1), model(x)[:, 0], rtol=1e-10, atol=0)


class Reduced(nn.Module):
    """A convolution whose maps are reduced by a sum or a mean before the dense layer."""

    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = kill(nn.Conv2d(2, 4, 3, bias=False), slice(2))
        self.dense = nn.Linear(4, 2, bias=False)
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(self.reduce(torch.relu(self.conv(x))))
        return out


@pytest.mark.parametrize(
    "reduce",
    [
        lambda h: h.sum((2, 3)),
        lambda h: h.mean(dim=(2, 3)),
        lambda h: torch.sum(h.flatten(2), -1),
        lambda h: torch.mean(torch.mean(h, 3), 2),
        lambda h: nn.functional.adaptive_avg_pool2d(h, 1).flatten(1),
        lambda h: torch.stack(h.flatten(2).unbind(2)).sum(0),
    ],
    ids=["sum", "mean", "flat-sum", "two-means", "pool", "stacked-sum"],
)
def test_a_reduction_of_zeros_shares_equally(reduce: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(6)
    model = Reduced(reduce).to(DTYPE)
    x = signed((2, 2, 5, 5), seed=6).abs()
    hidden = torch.relu(model.conv(x))
    assert (hidden.sum((2, 3)) == 0).any()
    out = model(x)
    reduced = reference.linear(model.dense, reduce(hidden), out, "flat", stabilizer=0.0)
    shared = torch.stack(reference_steps.addition(hidden.flatten(2).unbind(2), reduced, equal=True), 2)
    expected = reference.linear(model.conv, x, shared.reshape(hidden.shape), "flat", stabilizer=0.0)
    found = LRP(model, Flat(stabilizer=0.0)).attribute(x, target=lambda y: y.sum(1))
    assert distance(found, expected) < TOLERANCE


def test_flat_at_the_first_layer_alone() -> None:
    modules = [module.to(DTYPE) for module in convolutional(True)]
    model, x = nn.Sequential(*modules), pixels("convolutional")
    seed = seed_like(model(x))
    rules = Rules().set((nn.Conv2d, nn.Linear), Zero()).first(Flat())
    found = LRP(model, rules).attribute(x, target=weighted(seed))
    lrp0 = ("lrp0", {})
    by_layer = [("flat", {}), *[lrp0] * 5]
    assert distance(found, reference_steps.explain(modules, x, seed, by_layer)[0]) < TOLERANCE


class Between(nn.Module):
    """Something between a layer of zeros and a dense layer with a bias."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.last = nn.Linear(4, 1)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.first(x)))
        return out


def norm_without_shift(h: Tensor) -> Tensor:
    scale = torch.tensor([0.5, 2.0, 3.0, 0.1], dtype=h.dtype)
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return nn.functional.batch_norm(torch.relu(h), zero, one, scale, zero)


@pytest.mark.parametrize(
    "middle",
    [
        torch.relu,
        lambda h: 3 * torch.relu(h),
        lambda h: -h / 255,
        lambda h: h.relu().sub(torch.tanh(h), alpha=0.5),
        nn.functional.gelu,
        nn.functional.silu,
        nn.functional.hardswish,
        norm_without_shift,
    ],
    ids=["relu", "multiple", "negative-fraction", "difference", "gelu", "silu", "hardswish", "batch-norm"],
)
def test_what_is_no_layer_passes_the_relevance_of_zeros_whole(middle: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(7)
    model = Between(middle).to(DTYPE)
    x = torch.zeros(2, 3, dtype=DTYPE)
    out = model(x)
    found = LRP(model, Flat(stabilizer=0.0)).attribute(x)
    torch.testing.assert_close(found, (out / 3).expand(2, 3), rtol=1e-10, atol=0)
