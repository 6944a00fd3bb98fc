"""`attribute_targets`: one forward, a backward for each target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Attribution, DeepTaylor, DeepTaylorWarning, Gradient, GradientXInput, Rules
from relprop.rules import Epsilon, Gamma, WSquare, Zero
from tests.models import close, images, mlp, residual, settle, vectors

LAST = Rules().set(nn.Conv2d, Gamma()).set(nn.Linear, Epsilon()).first(WSquare()).last(Zero())

METHODS: dict[str, Any] = {
    "gradient": Gradient,
    "squared": lambda model: Gradient(model, form="squared"),
    "gradient x input": GradientXInput,
    "epsilon_gamma": LRP,
    "zplus": lambda model: LRP(model, "zplus"),
    "flat": lambda model: LRP(model, "flat"),
    "first and last": lambda model: LRP(model, LAST),
}


@pytest.mark.parametrize("method", list(METHODS))
def test_equal_to_separate_calls(method: str) -> None:
    model, x = residual(), images()
    explainer: Attribution = METHODS[method](model)
    targets: list[Any] = [0, torch.tensor([3, 1]), np.int64(2), [1, 0], lambda out: out[:, 0] - out[:, 3]]
    found = explainer.attribute_targets(x, targets)
    assert found.shape == (5, 2, 3, 6, 6)
    for index, target in enumerate(targets):
        assert torch.equal(found[index], explainer.attribute(x, target))


class Heads(nn.Module):
    """Two heads of different depth: `last` is another layer for each target."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.short = nn.Linear(6, 2)
        self.deep = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.trunk(x))
        return torch.cat([self.short(h), self.deep(h)], 1)


def test_last_is_resolved_for_each_target() -> None:
    model, x = settle(Heads()), vectors()
    found = LRP(model, Rules().set(nn.Linear, "zplus").last("epsilon")).attribute_targets(x, [0, 3])
    by_name = Rules().set(nn.Linear, "zplus").set("short", "epsilon").set("deep.2", "epsilon")
    for index, target in enumerate((0, 3)):
        close(found[index], LRP(model, by_name).attribute(x, target))


def test_last_is_last_for_the_target_alone() -> None:
    # The trunk is the last layer of what reads it directly, though another output lies behind another layer.
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(4, 2)
            self.head = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.trunk(x)
            return h, self.head(torch.relu(h))

    model, x = settle(Skips()), vectors()
    targets: list[Any] = [lambda out: out[0][:, 1], lambda out: out[1][:, 0]]
    found = LRP(model, Rules().set(nn.Linear, "zplus").last("epsilon")).attribute_targets(x, targets)
    close(found[0], LRP(model, Rules().set(nn.Linear, "epsilon")).attribute(x, targets[0]))
    close(found[1], LRP(model, Rules().set(nn.Linear, "zplus").set("head", "epsilon")).attribute(x, targets[1]))


def test_deep_taylor() -> None:
    model, x = mlp(), vectors()
    with pytest.warns(DeepTaylorWarning):
        found = DeepTaylor(model).attribute_targets(x, [0, 1, 2])
    for index in range(3):
        with pytest.warns(DeepTaylorWarning):
            assert torch.equal(found[index], DeepTaylor(model).attribute(x, index))


def test_one_forward() -> None:
    model, x = residual(), images()
    calls = []
    model.stem.register_forward_hook(lambda *args: calls.append(1))
    LRP(model).attribute_targets(x, [0, 1, 2])
    assert len(calls) == 1


def test_one_target() -> None:
    model, x = mlp(), vectors()
    found = LRP(model).attribute_targets(x, (2,))
    assert found.shape == (1, 2, 4)
    assert torch.equal(found[0], LRP(model).attribute(x, 2))


def test_with_a_condition() -> None:
    model, x = residual(), images()
    found = LRP(model).attribute_targets(x, [0, 3], condition={"branch": [1]})
    for index, target in enumerate((0, 3)):
        assert torch.equal(found[index], LRP(model).attribute(x, target, condition={"branch": [1]}))


def test_with_create_graph() -> None:
    model, x = mlp(), vectors().requires_grad_()
    found = LRP(model, "epsilon").attribute_targets(x, [0, 2], create_graph=True)
    (together,) = torch.autograd.grad(found.square().sum(), x)
    alone = torch.zeros_like(x)
    for target in (0, 2):
        relevance = LRP(model, "epsilon").attribute(x, target, create_graph=True)
        alone = alone + torch.autograd.grad(relevance.square().sum(), x)[0]
    close(together, alone)
