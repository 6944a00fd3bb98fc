"""The roots of deep Taylor decomposition, each with its rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, DeepTaylor, DeepTaylorWarning, GradientXInput, RuleError
from relprop.rules import Epsilon, Gamma, RescaledExcitation, Rules, WSquare, ZBox, ZPlus
from tests import reference_steps
from tests.models import DTYPE, close, images, mlp, settle, vectors, without_bias


def network() -> nn.Sequential:
    """Without positive biases, so that every root exists."""
    model = settle(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.ReLU(),
                      nn.Flatten(), nn.Linear(24, 3))
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(-parameter.abs() / 20)
    return model


DEEP: dict[str, tuple[dict[str, Any], tuple[Any, Any]]] = {
    "default": ({}, (("wsquare", {}), ("rescaled_excitation", {}))),
    "nearest": ({"root": "nearest"}, (("wsquare", {}), ("wsquare", {}))),
    "gamma": ({"gamma": 0.4}, (("wsquare", {}), ("rescaled_excitation", {"gamma": 0.4}))),
    "box": (
        {"bounds": (-3.0, 3.5), "gamma": 0.4},
        (("zbox", {"low": -3.0, "high": 3.5}), ("rescaled_excitation", {"gamma": 0.4})),
    ),
    "first": (
        {"first": "excitation", "root": "nearest", "gamma": 0.2},
        (("rescaled_excitation", {"gamma": 0.2}), ("wsquare", {})),
    ),
}


@pytest.mark.parametrize("case", list(DEEP))
def test_every_choice_against_the_reference(case: str) -> None:
    options, (first, above) = DEEP[case]
    model, x = network(), images().clamp(-3, 3.5)
    seed = torch.tensor([1.0, 0.0, 0.0], dtype=DTYPE)
    expected = reference_steps.explain(list(model), x, seed, [first, above, above])[0]
    close(DeepTaylor(model, **options).attribute(x, 0), expected)


def test_each_root_is_its_rule() -> None:
    model, x = network(), images().abs()
    plus = Rules().set((nn.Linear, nn.Conv2d), ZPlus(bias="ignore"))
    close(DeepTaylor(model, first="excitation").attribute(x, 0), LRP(model, plus).attribute(x, 0))
    close(DeepTaylor(model).attribute(x, 0), LRP(model, plus.first(WSquare())).attribute(x, 0))
    close(DeepTaylor(model, (0.0, 5.0)).attribute(x, 0), LRP(model, plus.first(ZBox(0.0, 5.0))).attribute(x, 0))
    close(DeepTaylor(model, root="nearest").attribute(x, 0), LRP(model, "wsquare").attribute(x, 0))


def test_gamma_one_is_gradient_times_input_without_biases() -> None:
    model, x = without_bias(network()), images().abs()
    found = DeepTaylor(model, first="excitation", gamma=1.0).attribute(x, 0)
    close(found, GradientXInput(model).attribute(x, 0), 1e-4)  # the stabilizer's share
    exact = LRP(model, Rules().set((nn.Linear, nn.Conv2d), Epsilon(1e-6, relative=True, bias="ignore"))).attribute(x, 0)
    close(found, exact)


@pytest.mark.parametrize("g", [0.1, 0.25, 1.0, 9.0])
def test_gamma_of_the_root_and_of_lrp(g: float) -> None:
    """1 / (1 + g) is LRP-gamma with g, where nothing is negative that flows: outputs above zero."""
    layer = settle(nn.Linear(6, 5))
    a, relevance = vectors(4, 6).abs(), vectors(4, 5, seed=2)
    with torch.no_grad():
        layer.bias.copy_(-layer.bias.abs() / 10)
        layer.weight.copy_(layer.weight + 0.1)
        z = layer(a)
    weights = torch.where(z > 0, relevance, 0.0)
    assert int((weights != 0).sum()) > 8

    def score(out: Tensor) -> Tensor:
        return (out * weights).sum(1)

    generalised = LRP(layer, RescaledExcitation(1 / (1 + g), stabilizer=0.0)).attribute(a, score)
    close(generalised, LRP(layer, Gamma(g, bias="ignore", stabilizer=0.0)).attribute(a, score))


def test_the_root_that_the_rule_expands_at() -> None:
    """z at the root is zero, it lies in a >= 0, and w (a - root) is the relevance."""
    layer, a = settle(nn.Linear(6, 1)), vectors(8, 6).abs()
    with torch.no_grad():
        layer.bias.fill_(-0.1)
        z = layer(a)
    a, z = a[z[:, 0] > 0], z[z > 0][:, None]
    w = layer.weight.detach()
    for gamma in (0.0, 0.3, 1.0):
        share = torch.where(w > 0, 1.0, gamma * torch.ones_like(w))
        t = z / (a * w * share).sum(1, keepdim=True)
        root = a * (1 - t * share)
        assert bool((root >= -1e-12).all())
        assert float(layer(root).detach().abs().max()) < 1e-12
        close(LRP(layer, RescaledExcitation(gamma, stabilizer=0.0)).attribute(a, 0), w * (a - root))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": "far"}, "root must be one of"),
        ({"first": "far"}, "first must be one of"),
        ({"gamma": 1.1}, "gamma must be between 0 and 1, got 1.1"),
        ({"gamma": -0.1}, "gamma"),
        ({"root": "nearest", "gamma": 0.5}, "the nearest root has none"),
        ({"bounds": (0.0, 1.0), "first": "nearest"}, "give one of them"),
        ({"bounds": 1.0}, "a pair"),
    ],
)
def test_bad_roots(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RuleError, match=words):
        DeepTaylor(mlp(), **options)


def test_positive_biases_are_still_named() -> None:
    with pytest.warns(DeepTaylorWarning):
        DeepTaylor(mlp(), gamma=0.5).attribute(vectors().abs(), 0)
