"""The one relevance function: groups drawn at random against the explicit form, and what they leave over."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, RuleError, Rules
from relprop.rules import (
    AlphaBeta,
    Contrast,
    Distances,
    Epsilon,
    FilterRule,
    Gamma,
    Group,
    GroupRule,
    LinearMap,
    RescaledExcitation,
    ZBox,
    ZPlus,
)
from tests import reference
from tests.cases import DTYPE, LAYERS, LayerCase, RuleCase, seed_like, signed
from tests.compare import TOLERANCE, Groups, distance, sequence_distance, weighted
from tests.rules.test_linear_rules import headed
from tests.shares import adds_up

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

SEEDS = range(40)


def drawn(seed: int) -> RuleCase:
    """One to three groups: even and uneven ones, for outputs of one sign and of both, that share all or less."""
    draw = random.Random(seed)
    counted = [(p, n) for p in (0, 0.5, 1, 1.25, 2) for n in (0, 0.5, 1, 3) if p or n]
    numbers = tuple(
        (*draw.choice(counted), draw.choice([1, 1, -1, 2, 0.3]), sign)
        for sign in draw.choice([(0,), (1, -1), (-1, 1), (0, 0), (1,), (-1,), (0, 1, -1)])
    )
    return RuleCase("groups", {"groups": numbers, "bias": draw.choice(["absorb", "ignore"]), "stabilizer": 0.01})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("before", [True, False], ids=["relu-before", "signed"])
@pytest.mark.parametrize("after", [True, False], ids=["relu-after", "linear-after"])
def test_groups_in_a_network(seed: int, before: bool, after: bool) -> None:
    case: LayerCase = random.Random(seed).choice(LAYERS)
    layer, x = case.build(True), signed(case.shape, seed=seed)
    modules, rule = headed(layer, x, before, after), drawn(seed)
    seeds = seed_like(x.new_zeros(len(x), 3), seed=5)
    assert sequence_distance(modules, x, seeds, [rule, RuleCase("lrp0")]) <= TOLERANCE, (case.name, rule.name)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_groups_absorb_is_accounted_for(seed: int) -> None:
    case: LayerCase = random.Random(seed).choice(LAYERS)
    layer, x = case.build(True), signed(case.shape, seed=seed)
    options = dict(drawn(seed).options)
    rule = Groups(tuple(options.pop("groups")), **options)
    for before in (True, False):
        model = nn.Sequential(*headed(layer, x, before, after=False))
        report = LRP(model, Rules().set("1" if before else "0", rule)).report(x, 1)
        report.check(1e-9)
        assert max(abs(entry.unexplained) for entry in report.entries) < 1e-9 * (1 + abs(report.output))


def test_groups_that_hand_on_nothing() -> None:
    """Outputs below zero receive no relevance here: the map is zero, not an error."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    x = torch.rand(2, 3, dtype=DTYPE)
    found = LRP(model, Rules().set("0", Groups(((1, 0, 1, -1),)))).attribute(x)
    assert torch.equal(found, torch.zeros_like(x))


# ---------------------------------------------------------------------------------- what a user's rule may say


class PerChannel(GroupRule):
    """Epsilon whose stabilizer is the size of the bias, channel by channel."""

    groups = Epsilon.groups

    def stabilize(self, layer: LinearMap, z: Tensor) -> Tensor:
        assert layer.bias is not None
        return layer.per_channel(layer.bias.abs(), z)


PLAIN = [case for case in LAYERS if "padding_mode" not in case.keywords]  # which pads in a step of its own


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_a_stabilizer_for_every_channel(case: LayerCase) -> None:
    layer, x = case.build(True), signed(case.shape)
    seed = seed_like(layer(x))
    matrix = reference.dense(layer, x.shape[1:])
    z = matrix.products(x.flatten(1)).sum(2) + matrix.bias
    relevance = (layer(x) * seed).flatten(1)
    expected = reference.share(matrix.products(x.flatten(1)), z, relevance, matrix.bias.abs()).reshape(x.shape)
    model = nn.Sequential(layer)
    assert distance(LRP(model, PerChannel()).attribute(x, target=weighted(seed)), expected) <= TOLERANCE
    report = LRP(model, PerChannel()).report(x, weighted(seed))
    report.check(1e-9)
    adds_up(report)


def test_rules_are_their_groups() -> None:
    """Equal groups, equal maps: the rules of the package are nothing else."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(2, 2, 6, 6, dtype=DTYPE)
    for rule in (
        Epsilon(relative=True),
        Gamma(0.3),
        Gamma(0.3, bias="ignore"),
        AlphaBeta(),
        ZPlus(),
        RescaledExcitation(0.5),
    ):
        numbers = tuple((g.p, g.n, g.share, g.sign) for g in rule.groups)
        stabilizer = rule.epsilon if isinstance(rule, Epsilon) else rule.stabilizer
        same = Groups(numbers, bias=rule.bias, stabilizer=stabilizer)
        assert torch.equal(LRP(model, rule).attribute(x, 1), LRP(model, same).attribute(x, 1)), rule


# ------------------------------------------------------------------------------------------------ first mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"p": float("nan"), "n": 1}, "p must be a finite number"),
        ({"p": 1, "n": "1"}, "n must be a finite number"),
        ({"p": 1, "n": 0, "share": float("inf")}, "share must be a finite number"),
        ({"p": 0, "n": 0}, "no contribution counts"),
        ({"p": 1, "n": 1, "sign": 2}, "sign must be 1"),
    ],
    ids=str,
)
def test_groups_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RuleError, match=said):
        Group(**options)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no tuple": ({"groups": Group(1, 0)}, "expected a tuple of groups"),
    "no groups": ({"groups": ()}, "expected a tuple of groups"),
    "numbers": ({"groups": ((1, 0),)}, "expected a tuple of groups"),
    "none": ({"groups": property(lambda self: None)}, r"groups is None, expected a tuple"),
    "no contributions": ({"contributions": lambda self, layer, a, z: z}, "contributions returned Tensor"),
    "a channel's stabilizers": ({"stabilize": lambda self, layer, z: torch.ones(3)}, r"shape \(3,\).*per_channel"),
    "of the width": ({"stabilize": lambda self, layer, z: torch.ones(2)}, r"shape \(2,\).*per_channel"),
    "nothing": ({"stabilize": lambda self, layer, z: None}, "returned None. Write `return`"),
    "a negative stabilizer": ({"stabilize": lambda self, layer, z: -1.0}, "returned -1.0, expected a number >= 0"),
    "a forgotten return": ({"stabilize": lambda self, layer, z: "1e-6"}, "returned '1e-6'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_first_mistakes_are_named(mistake: str) -> None:
    body, said = MISTAKES[mistake]
    rule = type("Mine", (GroupRule,), {"groups": (Group(1, 1),), **body})()
    model, x = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten()).double(), torch.rand(1, 1, 3, 3, dtype=DTYPE)
    with pytest.raises(RuleError, match=f"Mine.*{said}"):
        LRP(model, rule).attribute(x, 0)


# ---------------------------------------------------------------------------------------- what short cuts must not do


@pytest.mark.parametrize("groups", [((1, 0, 1, 0),), ((1, 1, 0.5, 0),), ((2, 1, 1, 1), (1, 2, 1, -1))], ids=str)
def test_the_exact_quotient_is_accounted_for(groups: tuple[Any, ...]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    report = LRP(model, Groups(groups, stabilizer=None)).report(torch.randn(4, 3, dtype=DTYPE), 1)
    report.check(1e-9)
    adds_up(report)


@pytest.mark.parametrize("gamma", [0.25, 100.0, 1e4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_small_shares_keep_their_digits(gamma: float, dtype: torch.dtype, tolerance: float) -> None:
    """Below zero, gamma leaves positive contributions little, which no difference of large numbers may be."""
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = torch.tensor([[0.3, -3.0]], dtype=DTYPE)
    x = torch.ones(1, 2, dtype=DTYPE)
    exact = LRP(layer, Gamma(gamma)).attribute(x)
    found = LRP(layer.to(dtype), Gamma(gamma)).attribute(x.to(dtype)).double()
    assert ((found - exact) / exact).abs().max() < tolerance


@pytest.mark.parametrize("rule", [AlphaBeta(), Contrast()], ids=repr)
def test_a_sum_that_overflows_elsewhere_disturbs_nothing(rule: GroupRule) -> None:
    """In float16 the sums of one output are infinite; the other, which is explained, has nothing to do with it."""
    layer = nn.Linear(64, 2, bias=False)
    layer.weight.data[0], layer.weight.data[1] = 0.1, torch.tensor([60.0, -60.0] * 32)
    x = torch.full((1, 64), 50.0)
    assert LRP(layer.half(), rule).attribute(x.half(), 0).isfinite().all()


def test_distances_count_as_positive() -> None:
    class Inside(GroupRule):
        groups = (Group(1, 0),)
        bias = "ignore"
        reaches_zeros = True

        def contributions(self, layer: LinearMap, a: Tensor, z: Tensor) -> Distances:
            return Distances(layer, a, a, a - 1)

    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = torch.tensor([[3.0, -1.0]], dtype=DTYPE)
    x = torch.tensor([[1.0, 0.0]], dtype=DTYPE)
    assert torch.allclose(LRP(layer, Inside()).attribute(x), LRP(layer, ZBox(0.0, 1.0)).attribute(x))


def test_a_rule_that_hands_on_nothing_stays_connected() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double().requires_grad_(False)
    x = torch.rand(2, 3, dtype=DTYPE, requires_grad=True)
    rules = Rules().set("0", Groups(((1, 0, 1, -1),)))
    assert float(LRP(model, rules).attribute(x, create_graph=True).detach().abs().sum()) == 0.0


def test_a_filter_behind_a_relu_may_send_relevance_below_zero() -> None:
    """So gamma has to serve outputs below zero there."""

    class Through(FilterRule):
        by_output_alone = False

        def output(self, flow: Any, out: Tensor, inputs: Any) -> Tensor:
            return flow.switch(out, inputs[0])

    class Straight(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z + (z.relu() - z).detach()

    weights = [torch.tensor([[1.0, -2.0], [1.0, 1.0]], dtype=DTYPE), torch.tensor([[1.0, 1.0]], dtype=DTYPE)]
    first, last = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    first.weight.data, last.weight.data = weights
    x = torch.tensor([[1.0, 2.0]], dtype=DTYPE)
    rules = Rules().set(nn.Linear, Gamma(1.0))
    model = nn.Sequential(nn.ReLU(), first, nn.ReLU(), last)
    found = LRP(model, rules.set("2", Through())).report(x)
    z = first(x)
    assert z[0, 0] < 0  # where relevance arrives all the same
    found_map = LRP(model, rules.set("2", Through())).attribute(x)
    weight = first.weight
    up, down = weight + weight.clamp(min=0), weight + weight.clamp(max=0)
    rows = torch.where(z[0, :, None] >= 0, up, down) * x
    expected = (rows / rows.sum(1, keepdim=True) * z[0, :, None]).sum(0)
    assert torch.allclose(found_map[0], expected, rtol=1e-5)
    found.check(1e-5)
