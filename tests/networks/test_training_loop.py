"""A model that is explained while it trains: every answer is that of a fresh explainer of a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from relprop import LRP, Rules
from relprop.rules import AlphaBeta, Epsilon, Gamma, WSquare
from tests.models import settle
from tests.unrolled import assert_close, random

pytestmark = pytest.mark.filterwarnings("ignore::relprop.TrainingModeWarning")

RULES: dict[str, Rules] = {
    "gamma": Rules.preset("epsilon_gamma"),
    "box": Rules.preset("epsilon_gamma_box", low=-4.0, high=4.0),
    "signed": Rules().set(nn.Conv2d, AlphaBeta(2, 1)).set(nn.Linear, Gamma(0.1)).first(WSquare()).last(Epsilon(0.1)),
}


class Net(nn.Module):
    """[N, 1, 6, 6] to [N, 3]: folded batch norm, a frozen layer, a parametrised and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.frozen = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
        self.mixed, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        settle(self)
        parametrizations.weight_norm(self.mixed)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.stem(x)))
        h = F.max_pool2d(F.silu(self.frozen(h)) + h, 2).flatten(1)
        h = F.linear(self.mixed(h).relu(), self.mixed.weight.t())
        return self.head(h)  # type: ignore[no-any-return]


def _swap(model: Any, x: Tensor, step: int) -> None:
    """Not by an optimiser: by `.data`, in place, by a new tensor, and by loading a state."""
    with torch.no_grad():
        model.stem.weight.data = model.stem.weight.data * 0.9
        model.head.weight.mul_(1.01)
        model.norm.running_var.mul_(1.1)
        model.head.bias = nn.Parameter(model.head.bias + 0.1)
    state = copy.deepcopy(model.state_dict())
    state["frozen.weight"] += 0.01
    model.load_state_dict(state)


def _train(
    optimizer: type[torch.optim.Optimizer], **options: Any
) -> Callable[[Any], Callable[[Any, Tensor, int], None]]:
    def make(model: Any) -> Callable[[Any, Tensor, int], None]:
        taught = optimizer((p for p in model.parameters() if p.requires_grad), **options)

        def step(model: Any, x: Tensor, step: int) -> None:
            loss = F.cross_entropy(model(x), torch.arange(len(x)) % 3)
            taught.zero_grad()
            loss.backward()
            taught.step()

        return step

    return make


def _learn_from_relevance(model: Any) -> Callable[[Any, Tensor, int], None]:
    """The loss holds the share of relevance on the upper half, explained by an explainer that lives on."""
    taught, lrp = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01), LRP(model, "epsilon")

    def step(model: Any, x: Tensor, step: int) -> None:
        relevance = lrp.attribute(x, step % 3, create_graph=True)
        loss = F.cross_entropy(model(x), torch.arange(len(x)) % 3)
        loss = loss + relevance[:, :, :3].abs().sum() / relevance.abs().sum()
        taught.zero_grad()
        loss.backward()
        taught.step()

    return step


STEPS: dict[str, Callable[[Any], Callable[[Any, Tensor, int], None]]] = {
    "sgd": _train(torch.optim.SGD, lr=0.05, momentum=0.9),
    "fused adam": _train(torch.optim.Adam, lr=0.01, fused=True),
    "foreach adamw": _train(torch.optim.AdamW, lr=0.01, foreach=True),
    "by hand": lambda model: _swap,
    "by relevance": _learn_from_relevance,
}


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("how", STEPS)
def test_a_model_explained_every_few_steps(how: str, cached: bool) -> None:
    model, held_out = Net().train(), random(2, 1, 6, 6, seed=9)
    explainers = {name: LRP(model, rules, cache_weights=cached) for name, rules in RULES.items()}
    step = STEPS[how](model)
    before: dict[str, Tensor] = {}
    for position in range(12):
        step(model, random(6, 1, 6, 6, seed=position), position)
        if position % 4:
            continue
        for training in (True, False):
            model.train(training)
            statistics = model.norm.running_mean.clone(), model.norm.num_batches_tracked.clone()
            for name, rules in RULES.items():
                fresh = copy.deepcopy(model)
                expected = LRP(fresh, rules).attribute(held_out, 1)
                for _ in range(2):
                    found = explainers[name].attribute(held_out, 1)
                    assert torch.equal(found, expected), (name, position)
                connected = explainers[name].attribute(held_out, 1, create_graph=True).detach()
                assert_close(connected, expected, name)
                if not training:
                    assert name not in before or not torch.allclose(before[name], found, rtol=1e-4)
                    before[name] = found
            # In training mode too, explaining moves no statistics.
            assert torch.equal(model.norm.running_mean, statistics[0])
            assert torch.equal(model.norm.num_batches_tracked, statistics[1])
        model.train()


def test_training_goes_the_same_way_with_and_without_explanations() -> None:
    """Nothing of an explanation reaches the gradients, the statistics or the random numbers of the training."""
    ends = []
    for explained in (False, True):
        torch.manual_seed(0)
        model = Net().train()
        lrp, step = LRP(model, cache_weights=True), STEPS["sgd"](model)
        for position in range(6):
            if explained:
                lrp.attribute(random(2, 1, 6, 6, seed=9), 1)
                lrp.report(random(2, 1, 6, 6, seed=9), 2)
            step(model, random(6, 1, 6, 6, seed=position), position)
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
