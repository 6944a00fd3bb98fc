"""Class activation maps, against plain autograd and against Captum."""

from __future__ import annotations

from typing import Any

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import GuidedBackprop, GuidedGradCam, InputError, InputTypeError, LayerGradCam, Unit
from tests.attribution.averages import Modules, pictures, spelt
from tests.checks import refuses
from tests.models import close, mlp, settle, vectors

LAYERS = ["first", "one", "second", "two", "pool"]


def plain(model: Modules, x: Tensor, layer: str, target: int) -> Tensor:
    """The channels times their mean gradients, with hooks of autograd's own."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, args, out: kept.append(out))
    (slope,) = torch.autograd.grad(model(x)[:, target].sum(), kept)
    handle.remove()
    return kept[0].detach() * slope.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_grad_cam(layer: str) -> None:
    (model, functions), x = spelt(), pictures()
    expected = plain(model, x, layer, 1)
    close(LayerGradCam(model, layer).attribute(x, 1), expected.sum(1, keepdim=True))
    close(LayerGradCam(model, layer).attribute(x, 1, attr_dim_summation=False), expected)
    rectified = LayerGradCam(model, layer).attribute(x, 1, relu_attributions=True)
    close(rectified, expected.sum(1, keepdim=True).clamp(min=0))
    assert layer != "first" or not torch.equal(rectified, expected.sum(1, keepdim=True))
    module = model.get_submodule(layer)
    assert torch.equal(LayerGradCam(model, module).attribute(x, 1), LayerGradCam(model, layer).attribute(x, 1))
    theirs = captum.attr.LayerGradCam(model, module)
    for target in (1, [2, 0]):
        close(LayerGradCam(model, layer).attribute(x, target), theirs.attribute(x, target), 1e-5)
    if layer in ("first", "second"):
        close(LayerGradCam(functions, layer).attribute(x, 1), expected.sum(1, keepdim=True))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("layer", ["second", "pool"])
@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_guided_grad_cam(mode: str, layer: str) -> None:
    (model, functions), x = spelt(), pictures()
    weight = F.interpolate(plain(model, x, layer, 2).sum(1, keepdim=True).clamp(min=0), (6, 6), mode=mode)
    expected = GuidedBackprop(model).attribute(x, 2) * weight
    close(GuidedGradCam(model, layer).attribute(x, 2, interpolate_mode=mode), expected)
    theirs = captum.attr.GuidedGradCam(model, model.get_submodule(layer)).attribute(x, 2, interpolate_mode=mode)
    close(GuidedGradCam(model, layer).attribute(x, 2, interpolate_mode=mode), theirs, 1e-5)
    if layer == "second":
        close(GuidedGradCam(functions, layer).attribute(x, 2, interpolate_mode=mode), expected)
    resized = LayerGradCam(model, layer).attribute(x, 2, relu_attributions=True, interpolate_mode=mode)
    close(resized, weight)


def test_below_a_global_mean_it_sums_to_the_output() -> None:
    model = settle(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    x = pictures()
    found = LayerGradCam(model, "1").attribute(x, 1)
    close(found.flatten(1).sum(1), (model(x)[:, 1] - model[4].bias[1]).detach())


@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")  # a network of tanh
def test_other_layers_inputs_and_targets() -> None:
    model, x = mlp(), vectors()
    close(LayerGradCam(model, "1").attribute(x, 1), captum.attr.LayerGradCam(model, model[1]).attribute(x, 1))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 2, 3)

        def forward(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
            return torch.tanh(self.two(torch.tanh(self.one(a) + b))).sum(2) * scale

    pair, a = settle(Two()), torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(0)).double()
    b = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1)).double()
    theirs = captum.attr.LayerGradCam(pair, pair.two).attribute((a, b), 1, 2.0)
    close(LayerGradCam(pair, "two").attribute((a, b), 1, 2.0), theirs)
    first, second = LayerGradCam(pair, "two").attribute((a, b), 1, 2.0, interpolate_mode="linear")
    close(first, F.interpolate(theirs, (7,), mode="linear"))
    assert torch.equal(first, second)
    maps = GuidedGradCam(pair, "two").attribute((a, b), 1, 2.0)
    for found, guided in zip(maps, GuidedBackprop(pair).attribute((a, b), 1, 2.0), strict=True):
        close(found, guided * F.interpolate(theirs.clamp(min=0), (7,)))


def test_a_unit_above_the_layer_and_below_it() -> None:
    model, x = spelt()[0], pictures()
    unit = Unit("second", (1, 2, 3))
    assert LayerGradCam(model, "first").attribute(x, unit).shape == (2, 1, 6, 6)
    assert not LayerGradCam(model, "pool").attribute(x, unit).any(), "nothing of the unit depends on it"


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.relu(self.conv(x)))).sum((1, 2, 3))


@pytest.mark.parametrize("method", [LayerGradCam, GuidedGradCam])
def test_layers_that_do_not_serve(method: Any) -> None:
    model, x = spelt()[0], pictures()
    with refuses(model, InputError, ValueError, "no module 'secnd'", "Did you mean 'second'"):
        method(model, "secnd")
    with refuses(model, InputError, ValueError, "Conv2d is no module of Modules"):
        method(model, nn.Conv2d(1, 1, 1))
    for wrong in (3, None, ["second"]):
        with refuses(model, InputTypeError, TypeError, "Layers are given by their names"):
            method(model, wrong)
    twice = settle(Twice())
    with refuses(twice, InputError, ValueError, "'conv' is called 2 times", "another layer"):
        method(twice, "conv").attribute(x)
    with refuses(twice, InputError, ValueError, "'unused' was not called"):
        method(twice, "unused").attribute(x)
    with refuses(model, InputError, ValueError, "interpolate_mode must be one of", "Did you mean 'bilinear'"):
        method(model, "second").attribute(x, 1, interpolate_mode="bilinar")
    with refuses(model, InputError, ValueError, "cannot be resized", "(2, 1)", "(2, 2, 6, 6)"):
        method(model, "hidden").attribute(x, 1, interpolate_mode="nearest")
