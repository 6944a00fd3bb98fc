"""DeepLIFT of maxima that several entries share: as the definition says, and the same in a mirror."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import DeepLift
from tests.attribution.deep_lift.deep_lift_reference import MaxPool
from tests.models import Wrapped, close, settle

POOLS: dict[str, tuple[tuple[int, ...], Any]] = {
    "max_pool1d": ((9,), lambda x: F.max_pool1d(x, 3, 2)),
    "max_pool1d padded, dilated": ((9,), lambda x: F.max_pool1d(x, 3, 2, 1, 2)),
    "max_pool2d": ((6, 6), lambda x: F.max_pool2d(x, 2)),
    "max_pool2d overlapping, padded": ((6, 7), lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0))),
    "max_pool2d dilated, ceil": ((7, 6), lambda x: F.max_pool2d(x, 2, 2, 0, (2, 1), ceil_mode=True)),
    "max_pool2d padded, ceil": ((5, 6), lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max_pool3d": ((4, 3, 4), lambda x: F.max_pool3d(x, 2, 1, (1, 0, 1))),
    "adaptive_max_pool1d": ((7,), lambda x: F.adaptive_max_pool1d(x, 3)),
    "adaptive_max_pool2d": ((7, 5), lambda x: F.adaptive_max_pool2d(x, (3, 2))),
    "adaptive_max_pool3d": ((3, 5, 4), lambda x: F.adaptive_max_pool3d(x, (2, 3, 1))),
    "amax": ((4, 5), lambda x: x.amax((1, 3))),
    "max over a dimension": ((4, 5), lambda x: x.max(2)[0]),
    "min over a dimension": ((4, 5), lambda x: -x.min(3).values),
    "max of everything": ((4, 5), lambda x: torch.stack([one.max() for one in x])),
    "maximum of two": ((6,), lambda x: torch.maximum(x[..., :3], x[..., 3:])),
}


def integers(shape: tuple[int, ...], seed: int, number: int = 3) -> Tensor:
    """Few values, so that most maxima are shared."""
    return torch.randint(0, number, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", POOLS)
def test_entries_that_share_a_maximum(name: str) -> None:
    """The whole map is the definition's; which entries a window has is asked of the function, entry by entry."""
    sizes, pool = POOLS[name]
    sign = -1.0 if "min" in name else 1.0
    one = (1, 2, *sizes)
    probes = torch.eye(torch.Size(one).numel(), dtype=torch.float64).reshape(-1, *one) * sign
    seen = torch.stack([pool(probe).flatten() for probe in probes]) == 1
    steps = MaxPool([column.nonzero().flatten().tolist() for column in seen.T])
    x, base = integers((4, *one[1:]), 0), integers((4, *one[1:]), 1)
    base[0] = 0  # as after a ReLU: all entries tie
    weights = torch.randn(seen.shape[1], generator=torch.Generator().manual_seed(2)).double()
    expected = torch.stack(
        [
            (a - b) * sign * steps.back(sign * a.flatten(), sign * b.flatten(), (weights, weights))[0].reshape(a.shape)
            for a, b in zip(x, base, strict=True)
        ]
    )
    model = Wrapped(nn.Identity(), lambda z: pool(z).reshape(len(z), -1) @ weights)
    found, delta = DeepLift(model).attribute(x, base, return_convergence_delta=True)
    close(found, expected)
    assert float(delta.abs().max()) < 1e-12


def flipped(model: nn.Sequential) -> nn.Sequential:
    """The network of mirrored images."""
    model = copy.deepcopy(model)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.flip(-1)
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.unflatten(1, (4, 3, 3)).flip(-1).flatten(1)
    return model


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(4, 2, 1), nn.MaxPool2d(4, 1), nn.AdaptiveMaxPool2d(3)], ids=str
)
def test_a_mirrored_image_through_the_mirrored_network_has_the_mirrored_map(pool: nn.Module, rule: Any) -> None:
    """Images of few values, against zero and against another such image."""
    layers = [nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), pool, nn.Flatten()]
    model = settle(nn.Sequential(*layers, nn.Linear(36, 3)))
    model[0].weight.data = integers((4, 2, 3, 3), 3) - 1
    x = integers((3, 2, 6, 6), 0)
    for base in (0.0, integers((3, 2, 6, 6), 1)):
        there = base if isinstance(base, float) else base.flip(-1)
        found = DeepLift(flipped(model), rule).attribute(x.flip(-1), there, 1)
        close(found.flip(-1), DeepLift(model, rule).attribute(x, base, 1))
