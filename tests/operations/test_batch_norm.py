"""Batch norm folded into the linear layer before it: against the fused copy and the explicit reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Gamma
from tests import fusion, reference_steps
from tests.cases import DTYPE, RULES, RuleCase, seed_like, signed
from tests.compare import TOLERANCE, distance, package_rule, weighted
from tests.networks import zoo

# On every layer of a network Contrast leaves rounding errors: what it shares out cancels.
EVERY_RULE = pytest.mark.parametrize(
    "rule", [case for case in RULES if case.rule != "contrast"], ids=lambda rule: rule.name
)


def conv(kind: Callable[..., nn.Module], norm: Callable[..., nn.Module], dims: int) -> list[nn.Module]:
    """Grouped, strided and padded, then grouped and dilated."""
    return [
        kind(4, 6, 3, stride=2, padding=1, groups=2),
        norm(6),
        nn.ReLU(),
        kind(6, 4, (2,) + (1,) * (dims - 1), groups=2, bias=False, dilation=2),
        norm(4),
    ]


def transposed(kind: Callable[..., nn.Module], norm: Callable[..., nn.Module], dims: int) -> list[nn.Module]:
    """As `conv`, with as many outputs as inputs in a group and with fewer."""
    return [
        kind(4, 6, 2, stride=2, padding=1, output_padding=1, groups=2),
        norm(6),
        nn.ReLU(),
        kind(6, 4, (2,) + (1,) * (dims - 1), groups=2, bias=False, dilation=2),
        norm(4),
    ]


def dense(affine: bool) -> list[nn.Module]:
    norm = nn.BatchNorm1d
    return [nn.Linear(6, 8), norm(8, affine=affine), nn.ReLU(), nn.Linear(8, 7, bias=False), norm(7)]


CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "conv1d": (conv, nn.Conv1d, nn.BatchNorm1d, (7,)),
    "conv2d": (conv, nn.Conv2d, nn.BatchNorm2d, (5, 3)),
    "conv3d": (conv, nn.Conv3d, nn.BatchNorm3d, (5, 2, 3)),
    "transposed1d": (transposed, nn.ConvTranspose1d, nn.BatchNorm1d, (4,)),
    "transposed2d": (transposed, nn.ConvTranspose2d, nn.BatchNorm2d, (3, 2)),
    "transposed3d": (transposed, nn.ConvTranspose3d, nn.BatchNorm3d, (2, 1, 2)),
}


def network(kind: str, affine: bool) -> tuple[nn.Sequential, Tensor]:
    """Two pairs of the kind, a dense pair and a dense layer, with signed inputs."""
    if kind == "linear":
        body, shape = dense(affine), (2, 6)
    else:
        make, layer, norm, size = CONVOLUTIONS[kind]
        body = make(layer, lambda n: norm(n, affine=affine, eps=1e-2), len(size))
        shape = (2, 4, *size)
    x = signed(shape, seed=3)
    features = nn.Sequential(*body)(x.float()).flatten(1).shape[1]
    head = [nn.Flatten(), nn.Linear(features, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)]
    model = nn.Sequential(*body, nn.ReLU(), *head).to(DTYPE).eval()
    zoo.randomize(model, seed=len(kind))
    return model, x


@EVERY_RULE
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "linear"])
def test_equals_fused_copy_and_reference(kind: str, affine: bool, rule: RuleCase) -> None:
    model, x = network(kind, affine)
    fused = fusion.fuse(model, x, expected=3)
    seed = seed_like(model(x))
    before = zoo.fingerprint(model)
    relevance = explain(model, x, rule, seed)
    assert zoo.fingerprint(model) == before
    assert distance(relevance, explain(fused, x, rule, seed)) <= TOLERANCE
    modules = [module for module in fused.children() if not isinstance(module, nn.Identity)]
    expected = reference_steps.explain(modules, x, seed, (rule.rule, rule.options))[0]
    assert distance(relevance, expected) <= TOLERANCE


def explain(model: nn.Module, x: Tensor, rule: RuleCase, seed: Tensor) -> Tensor:
    relevance = LRP(model, package_rule(rule)).attribute(x, weighted(seed))
    assert isinstance(relevance, Tensor)
    return relevance


def test_the_plan_says_so() -> None:
    model, x = network("conv2d", affine=True)
    rows = Rules.preset("epsilon_gamma").plan(model, x, target=0).rows
    notes = {row.name: row.notes for row in rows}
    assert all("batch norm folded" in notes[name] for name in ("0", "3", "7"))
    assert "batch norm folded" not in notes["10"]


# Other spellings of the same pair: gamma tells a folded map from an unfolded one.


class Spelled(nn.Module):
    """A convolution and a batch norm joined by a function, before ReLU and a dense layer."""

    def __init__(self, join: Callable[[nn.Conv2d, nn.BatchNorm2d, Tensor], Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), norm, nn.Linear(16, 3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.relu(self.join(self.conv, self.norm, x)).flatten(1))  # type: ignore[arg-type]
        return output


class NormReLU(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu_(super().forward(input))


def as_functions(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    h = F.conv2d(x, conv.weight, bias=conv.bias)
    mean, variance = norm.running_mean, norm.running_var
    return F.batch_norm(h, mean, variance, weight=norm.weight, bias=norm.bias, eps=norm.eps)


def as_torch_functions(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    h = torch.conv2d(x, conv.weight, conv.bias)
    mean, variance = norm.running_mean, norm.running_var
    return torch.batch_norm(h, norm.weight, norm.bias, mean, variance, False, 0.1, norm.eps, False)


def as_modules(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    h: Tensor = norm(conv(x))
    return h


@pytest.mark.parametrize(
    ("join", "norm"),
    [
        (as_functions, nn.BatchNorm2d(4)),
        (as_torch_functions, nn.BatchNorm2d(4)),
        (as_modules, NormReLU(4)),
        (as_modules, nn.SyncBatchNorm(4)),
        (as_modules, nn.BatchNorm2d(4, momentum=None)),
    ],
    ids=["functional", "torch", "subclass", "sync", "cumulative"],
)
def test_other_spellings_are_folded(join: Any, norm: nn.Module) -> None:
    model = zoo.randomize(Spelled(join, norm).to(DTYPE).eval())
    assert isinstance(model, Spelled)
    x = signed((2, 3, 4, 4))
    plain = nn.BatchNorm2d(4, eps=norm.eps).to(DTYPE).eval()  # type: ignore[arg-type]
    plain.load_state_dict(norm.state_dict())
    fused = nn.Sequential(fusion.fuse_pair(model.conv, plain), nn.ReLU(), nn.Flatten(), model.head)
    for rule in (RuleCase("gamma"), RuleCase("flat"), RuleCase("zbox", {"low": -2.0, "high": 2.0})):
        seed = seed_like(model(x))
        assert distance(explain(model, x, rule, seed), explain(fused, x, rule, seed)) <= TOLERANCE


def test_a_shared_convolution_is_folded_into_each_of_its_norms() -> None:
    class Shared(nn.Module):
        def __init__(self, first: nn.Module, second: nn.Module, *norms: nn.Module) -> None:
            super().__init__()
            self.first, self.second, self.norms = first, second, nn.ModuleList(norms)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.norms[0](self.first(x)))
            output: Tensor = self.norms[1](self.second(h)).mean((2, 3))
            return output

    conv = nn.Conv2d(3, 3, 3, padding=1)
    norms = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    model = zoo.randomize(Shared(conv, conv, *norms).to(DTYPE).eval())
    pairs = [fusion.fuse_pair(conv, norm) for norm in norms]
    fused = Shared(*pairs, nn.Identity(), nn.Identity())
    x = signed((2, 3, 4, 4))
    for rule in (RuleCase("gamma"), RuleCase("alpha_beta"), RuleCase("wsquare")):
        seed = seed_like(model(x))
        assert distance(explain(model, x, rule, seed), explain(fused, x, rule, seed)) <= TOLERANCE


# `attribute_layers` and `condition` where the pair is one map, on a ResNet as it comes.

LAYERS = ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn2", "layer2.0.downsample.0", "layer4.1.conv2", "fc"]


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, nn.Module, Tensor]:
    model = zoo.build("torchvision/resnet18")
    x = zoo.images("torchvision/resnet18")
    return model, fusion.fuse(model, x, expected=20), x


@pytest.fixture(scope="module")
def whole(residual: tuple[nn.Module, nn.Module, Tensor]) -> Callable[[str], Tensor]:
    """The map without a condition, of one rule after the other."""
    model, _, x = residual
    return cache(lambda rules: LRP(model, rules).attribute(x, 5))


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["epsilon", "epsilon_gamma", "zplus", Gamma(0.25)], ids=str)
def test_layers_of_a_resnet(residual: tuple[nn.Module, nn.Module, Tensor], rules: Any) -> None:
    model, fused, x = residual
    before = zoo.fingerprint(model)
    found = LRP(model, rules).attribute_layers(x, LAYERS, target=5)
    assert zoo.fingerprint(model) == before
    expected = LRP(fused, rules).attribute_layers(x, LAYERS, target=5)
    assert list(found) == LAYERS
    for name in LAYERS:
        assert zoo.difference(found[name], expected[name]) <= 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["epsilon", "epsilon_gamma", "zplus"])
@pytest.mark.parametrize("layer", ["conv1", "bn1", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2"])
def test_condition_on_a_resnet(
    residual: tuple[nn.Module, nn.Module, Tensor], whole: Callable[[str], Tensor], layer: str, rules: str
) -> None:
    model, fused, x = residual
    channels = [0, 7, 11]
    found = LRP(model, rules).attribute(x, 5, condition={layer: channels})
    expected = LRP(fused, rules).attribute(x, 5, condition={layer: channels})
    assert zoo.difference(found, expected) <= 1e-9
    assert zoo.difference(found, whole(rules)) > 1e-3


@pytest.mark.slow
def test_conditions_add_up(residual: tuple[nn.Module, nn.Module, Tensor], whole: Callable[[str], Tensor]) -> None:
    model, _, x = residual
    explainer = LRP(model, "epsilon_gamma")
    halves = [explainer.attribute(x, 5, condition={"conv1": list(range(start, start + 32))}) for start in (0, 32)]
    assert zoo.difference(halves[0] + halves[1], whole("epsilon_gamma")) <= 1e-10
