"""Presets that ignore biases: maps are finite and those of float64, or an error names the layer and says what to do."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, RuleError

PRESETS = [
    "lrp0_ignore_bias",
    "epsilon_ignore_bias",
    "alpha1_beta0_ignore_bias",
    "alpha2_beta1_ignore_bias",
    "deep_taylor",
]


def depthwise(seed: int, depth: int) -> nn.Sequential:
    """Depthwise and pointwise convolutions as MobileNets have them, with dead units, and units that are bias alone."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(depth):
        groups = draw.choice([1, 8])
        bends = draw.choice([nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Identity()])
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=draw.random() < 0.5), nn.BatchNorm2d(8), bends]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
                module.bias[draw.randrange(8)] = -8.0  # dead behind a ReLU
            elif isinstance(module, nn.Conv2d):
                module.weight[draw.randrange(8)] = 0.0  # nothing but a bias
    return model.eval()


def given(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    x[:, :, :4] = 0.0  # patches that hold nothing
    return x.to(dtype)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("preset", PRESETS)
def test_maps_are_finite_and_those_of_float64(preset: str, seed: int) -> None:
    model = depthwise(seed, depth=2)
    found = LRP(model, preset).attribute(given(), 1)
    exact = LRP(model.double(), preset).attribute(given(torch.float64), 1)
    assert bool(found.isfinite().all())
    assert float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)) < 1e-2
    LRP(model, preset).report(given(torch.float64), 1).check(1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_where_nothing_is_to_share_nothing_is_shared(preset: str) -> None:
    """Outputs of biases alone: 0 / 0 = 0, and the report counts it as the rule's."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)).eval()
    model[0].weight.data.zero_()  # type: ignore[operator, union-attr]
    model[0].bias.data.fill_(0.7)  # type: ignore[operator, union-attr]
    x = torch.randn(2, 1, 5, 5)
    assert not LRP(model, preset).attribute(x, 0).any()
    LRP(model.double(), preset).report(x.double(), 0).check(1e-9)


def test_growth_beyond_the_type_names_the_layer() -> None:
    """Large biases over signals that cancel: every layer divides by z - b, which is a thousandth of its terms."""
    layers: list[nn.Module] = []
    for _ in range(16):
        layers += [nn.Linear(8, 8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(8, 2))
    torch.manual_seed(0)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data.normal_(std=1e-4).add_(0.1 * torch.tensor([1.0, -1.0] * 4))
            layer.bias.data.fill_(1.0)
    with pytest.raises(RuleError, match=r"in module '\d+' \(Linear\).*relevance has grown.*bias='absorb'"):
        LRP(model, "lrp0_ignore_bias").attribute(torch.randn(2, 8), 1)
    assert bool(LRP(model, "epsilon").attribute(torch.randn(2, 8), 1).isfinite().all())
