"""Networks whose batch norm is frozen, as torchvision's detectors write it out: the networks that they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from tests.compare import distance
from tests.networks import zoo

PRESETS = ["epsilon_gamma", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_plus_flat", "wsquare"]


class Pyramid(nn.Module):
    """The backbone of a Faster R-CNN, of whose maps the strongest entries are scores."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([level.amax((2, 3))[:, :3] for level in self.backbone(x).values()], 1).sum(1)


def resnet(norm: Any) -> nn.Module:
    models = zoo.library("torchvision").models
    return models.resnet18(norm_layer=norm, num_classes=3)  # type: ignore[no-any-return]


def pyramid(norm: Any) -> nn.Module:
    utilities = zoo.library("torchvision").models.detection.backbone_utils
    return Pyramid(utilities.resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm))


def pair(make: Any) -> tuple[nn.Module, nn.Module]:
    """The network with frozen norms, and with batch norm in eval mode."""
    frozen = make(zoo.library("torchvision").ops.FrozenBatchNorm2d).double().eval()
    plain = zoo.randomize(make(nn.BatchNorm2d).double(), seed=3).eval()
    frozen.load_state_dict({name: value for name, value in plain.state_dict().items() if "num_batches" not in name})
    return frozen, plain


@pytest.mark.parametrize(
    ("make", "preset"),
    [*((resnet, preset) for preset in PRESETS), (pyramid, "epsilon_plus"), (pyramid, "epsilon_gamma")],
)
def test_a_network_with_frozen_norms(make: Any, preset: str) -> None:
    frozen, plain = pair(make)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, expected = LRP(frozen, preset).attribute(x, 1), LRP(plain, preset).attribute(x, 1)
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    assert distance(found, expected) <= 1e-9


def test_the_plan_has_one_row_a_layer() -> None:
    frozen, _ = pair(resnet)
    plan = Rules.preset("epsilon_gamma").plan(frozen, torch.randn(1, 3, 64, 64).double(), target=1)
    notes = [row.notes for row in plan.rows if row.operation == "conv2d"]
    assert len(notes) == 20
    assert all(row.count("mul folded") == row.count("add folded") == 1 for row in notes)
