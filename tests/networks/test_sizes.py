"""No preset makes much more relevance than Gradient x Input, on networks of several families."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from benchmarks._zoo_entries import ZOO
from benchmarks._zoo_models import build, image, settle
from torch import Tensor, nn

from relprop import LRP, GradientXInput, Rules
from tests.networks import zoo

NETWORKS = ["torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small", "timm/test_vit", "timm/repghostnet_050"]
OPTIONS: dict[str, dict[str, Any]] = {
    "epsilon_gamma_box": {"low": -4.0, "high": 4.0},
    "deep_taylor_bounded": {"low": -4.0, "high": 4.0},
    "preset_a_flat_until_idx": {"until": 2},
    "preset_b_flat_until_idx": {"until": 2},
}
GROWS = "lrp0_ignore_bias"  # what biases held is shared among terms that may cancel, and nothing is stabilised

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@cache
def network(name: str) -> tuple[nn.Module, Tensor, int, float]:
    """A network, an input, the class of the highest score, and the size of Gradient x Input."""
    zoo.library(name.partition("/")[0])
    entry = next(entry for entry in ZOO if entry.title == name)
    model, x = build(entry), image(entry)
    settle(model, x)
    with torch.no_grad():
        target = int(model(x).argmax())
    return model, x, target, float(GradientXInput(model).attribute(x, target).abs().sum())


@pytest.mark.parametrize("preset", [name for name in Rules.presets if name != GROWS])
@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_of_the_size_of_gradients(name: str, preset: str) -> None:
    model, x, target, size = network(name)
    rules = Rules.preset(preset, **OPTIONS.get(preset, {}))  # type: ignore[arg-type]
    assert float(LRP(model, rules).attribute(x, target).abs().sum()) <= 100 * size
