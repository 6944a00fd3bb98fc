"""Every rule on every linear layer against the explicit matrix form, whole maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Flat, ZBox
from tests import reference, reference_steps
from tests.cases import DTYPE, HIGH, LOW, RULES, LayerCase, RuleCase, layer_cases, seed_like, signed
from tests.compare import TOLERANCE, distance, package_rule, sequence_distance, weighted

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

LAYERS = [pytest.param(case, bias, id=name) for name, case, bias in layer_cases()]
WITH_BIAS = [pytest.param(case, id=case.name) for _, case, bias in layer_cases() if bias]

# Every rule with all its options: each rule is a case.
OPTIONS = {name: [case for case in RULES if case.rule == name] for name in dict.fromkeys(case.rule for case in RULES)}
# Rules whose evaluation takes another path for non-negative inputs or in front of a ReLU.
BRANCHING = ("gamma", "alpha_beta", "zplus")
LRP0 = RuleCase("lrp0")
FLAT = RuleCase("flat")


def check(distances: dict[str, float], tolerance: float = TOLERANCE) -> None:
    wrong = {name: value for name, value in distances.items() if not value <= tolerance}
    assert not wrong, f"{len(wrong)} of {len(distances)} rules differ from the reference: {wrong}"


@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize(("case", "bias"), LAYERS)
def test_layer_alone_on_signed_input(case: LayerCase, bias: bool, rule: str) -> None:
    layer, x = case.build(bias), signed(case.shape)
    seed = seed_like(layer(x))
    check({each.name: sequence_distance([layer], x, seed, [each]) for each in OPTIONS[rule]})


@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize(("case", "bias"), LAYERS)
def test_layer_behind_relu(case: LayerCase, bias: bool, rule: str) -> None:
    layer, x = case.build(bias), signed(case.shape, seed=2)
    seed = seed_like(layer(x), seed=3)
    check({each.name: sequence_distance([nn.ReLU(), layer], x, seed, [each]) for each in OPTIONS[rule]})


def headed(layer: nn.Module, x: Tensor, before: bool, after: bool) -> list[nn.Module]:
    """The layer in a network: ReLUs around it where wanted, then a dense layer with three outputs."""
    body = [*([nn.ReLU()] if before else []), layer, *([nn.ReLU()] if after else []), nn.Flatten()]
    features = nn.Sequential(*body)(x).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        return [*body, nn.Linear(features, 3).to(DTYPE)]


@pytest.mark.parametrize("rule", BRANCHING)
@pytest.mark.parametrize("after", [True, False], ids=["relu-after", "linear-after"])
@pytest.mark.parametrize("before", [True, False], ids=["relu-before", "signed"])
@pytest.mark.parametrize("case", WITH_BIAS)
def test_layer_in_network(case: LayerCase, before: bool, after: bool, rule: str) -> None:
    layer, x = case.build(True), signed(case.shape, seed=4)
    modules = headed(layer, x, before, after)
    seed = seed_like(x.new_zeros(len(x), 3), seed=5)
    check({each.name: sequence_distance(modules, x, seed, [each, LRP0]) for each in OPTIONS[rule]})


@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize("before", [True, False], ids=["relu-before", "signed"])
@pytest.mark.parametrize("case", WITH_BIAS)
def test_relevance_from_flat_arrives_where_a_relu_is_zero(case: LayerCase, before: bool, rule: str) -> None:
    layer, x = case.build(True), signed(case.shape, seed=6)
    modules = headed(layer, x, before, after=True)
    seed = seed_like(x.new_zeros(len(x), 3), seed=7)
    check({each.name: sequence_distance(modules, x, seed, [each, FLAT]) for each in OPTIONS[rule]})


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.name) for rule in RULES])
def test_registry_entry_by_type_serves_every_layer(rule: RuleCase) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose1d(4, 3, 2, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2),
    ).to(DTYPE)  # fmt: skip
    x = signed((3, 2, 6), seed=8)
    seed = seed_like(model(x))
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)
    expected = reference_steps.explain(list(model), x, seed, (rule.rule, rule.options))[0]
    by_type = LRP(model, Rules().set(kinds, package_rule(rule))).attribute(x, target=weighted(seed))
    alone = LRP(model, package_rule(rule)).attribute(x, target=weighted(seed))
    # Deep chains of quotients of signed sums lose some digits on both sides.
    assert distance(by_type, expected) < 1e-9
    assert torch.equal(by_type, alone)


def per_channel(x: Tensor, value: float, *lead: int) -> Tensor:
    """One bound for each channel, the second lower by a half, with dimensions of one behind."""
    bound = torch.full((x.shape[1],), value, dtype=DTYPE)
    bound[1] -= 0.5
    return bound.reshape(*lead, -1, *[1] * (x.dim() - 2))


def per_entry(x: Tensor) -> Tensor:
    """A positive number for each entry of a sample."""
    return torch.arange(1, x[0].numel() + 1).to(x).reshape(x[0].shape) / 8


BOUNDS: dict[str, Callable[[Tensor], tuple[float | Tensor, float | Tensor]]] = {
    "channel": lambda x: (per_channel(x, LOW), HIGH),
    "channel-batched": lambda x: (LOW - 1, per_channel(x, HIGH + 1, 1)),
    "entry": lambda x: (x.amin(0) - 0.5, x.amax(0) + per_entry(x)),
    "entry-batched": lambda x: (x.amin(0, keepdim=True) - 0.5, x.amax(0, keepdim=True) + per_entry(x)),
    "sample": lambda x: (x - 0.5, x + per_entry(x)),
}
BOUNDED = [c for c in WITH_BIAS if str(c.id).endswith(("reflect", "circular", "plain", "same-even", "groups"))]


def padded(layer: nn.Module, bound: float | Tensor, x: Tensor) -> float | Tensor:
    """The bound as that of the layer's input: a padding mode is a step before the layer."""
    if not isinstance(bound, Tensor) or getattr(layer, "padding_mode", "zeros") == "zeros":
        return bound
    if bound.shape[-1] == 1:
        return bound
    mode, widths = str(layer.padding_mode), reference.paddings(layer)
    return nn.functional.pad(bound.expand_as(x), widths, mode=mode)


@pytest.mark.parametrize("bounds", list(BOUNDS))
@pytest.mark.parametrize("case", BOUNDED)
def test_zbox_bounds_may_be_tensors(case: LayerCase, bounds: str) -> None:
    layer, x = case.build(True), signed(case.shape, seed=9)
    low, high = BOUNDS[bounds](x)
    out = layer(x)
    seed = seed_like(out)
    expected = reference.linear(layer, x, out * seed, "zbox", low=low, high=high)
    rule = ZBox(*(padded(layer, bound, x) for bound in (low, high)))
    assert distance(LRP(layer, rule).attribute(x, target=weighted(seed)), expected) < TOLERANCE


@pytest.mark.parametrize("case", [case for case in BOUNDED if "linear" not in str(case.id)])
def test_zbox_bounds_may_be_one_number_per_channel(case: LayerCase) -> None:
    layer, x = case.build(True), signed(case.shape, seed=9)
    out = layer(x)
    seed = seed_like(out)
    low, high = per_channel(x, LOW), per_channel(x, HIGH + 1)
    expected = reference.linear(layer, x, out * seed, "zbox", low=low, high=high)
    found = LRP(layer, ZBox(low.flatten(), high.flatten())).attribute(x, target=weighted(seed))
    assert distance(found, expected) < TOLERANCE


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for _, c, b in layer_cases() if b][::5])
def test_flat_does_not_look_at_weights(case: LayerCase) -> None:
    layer, x = case.build(True), signed(case.shape, seed=10)
    with torch.no_grad():
        weight = layer.get_parameter("weight")
        weight[weight.abs() < 0.3] = 0.0
    out = layer(x)
    seed = seed_like(out)
    expected = reference.linear(layer, x, out * seed, "flat")
    assert distance(LRP(layer, Flat()).attribute(x, target=weighted(seed)), expected) < TOLERANCE


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.name) for rule in RULES])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_input_of_zeros_gives_finite_relevance(rule: RuleCase, bias: bool) -> None:
    layer = LayerCase("zeros", nn.Conv1d, (2, 3, 3), (2, 2, 5), {"padding": 1}).build(bias)
    x = signed((2, 2, 5))
    x[0] = 0.0
    assert sequence_distance([layer], x, seed_like(layer(x)), [rule]) < TOLERANCE
