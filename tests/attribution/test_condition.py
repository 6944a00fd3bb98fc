"""Relevance through chosen channels only, against a copy of the network that masks explicitly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, GradientXInput, Rules
from relprop.rules import Epsilon, Gamma, ZPlus
from tests import reference_steps
from tests.models import close, images, residual, settle, without_bias

RULES: dict[str, tuple[Any, tuple[str, dict[str, Any]]]] = {
    "lrp0": ("lrp0", ("lrp0", {})),
    "epsilon": (Epsilon(0.1), ("epsilon", {"epsilon": 0.1})),
    "gamma": (Gamma(0.25), ("gamma", {"gamma": 0.25})),
    "zplus": (ZPlus(), ("zplus", {})),
}

LAYERS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.BatchNorm2d(4),
    nn.ReLU(),
    nn.Conv2d(4, 5, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(80, 6),
    nn.ReLU(),
    nn.Linear(6, 3),
]
SEED = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


def sequence() -> nn.Sequential:
    return settle(nn.Sequential(*LAYERS))


def masked(
    model: nn.Sequential, x: Tensor, rule: tuple[str, dict[str, Any]], position: int, units: Sequence[int]
) -> Tensor:
    """The reference in two parts: above the masked layer, and below it from the masked relevance."""
    modules = list(model)
    cut = position + 1
    h = nn.Sequential(*modules[:cut])(x).detach()
    above = reference_steps.explain(modules[cut:], h, SEED, rule)[0]
    mask = torch.zeros(h.shape[1], dtype=h.dtype)
    mask[list(units)] = 1.0
    mask = mask.reshape(-1, *(1,) * (h.dim() - 2))
    # `explain` seeds with a derivative: relevance over value, where the value is not zero.
    seed = torch.where(h == 0, torch.zeros_like(h), above * mask / torch.where(h == 0, torch.ones_like(h), h))
    return reference_steps.explain(modules[:cut], x, seed, rule)[0]


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize(
    ("position", "units"), [(1, [0, 3]), (2, [1]), (3, [2, 4]), (6, [0, 1, 5]), (7, [3, 4, 5]), (8, [1])]
)
def test_against_an_explicit_mask(rule: str, position: int, units: list[int]) -> None:
    model, x = sequence(), images()
    package, named = RULES[rule]
    with torch.no_grad():
        expected = masked(model, x, named, position, units)
    close(LRP(model, package).attribute(x, 1, condition={str(position): units}), expected)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_folded_convolution_is_masked_with_its_batch_norm(rule: str) -> None:
    model, x = sequence(), images()
    package, named = RULES[rule]
    with torch.no_grad():
        expected = masked(model, x, named, 1, [0, 2])
    close(LRP(model, package).attribute(x, 1, condition={"0": [0, 2]}), expected)


def test_several_conditions_at_once() -> None:
    model, x = sequence(), images()
    method = LRP(model, Gamma())
    both = method.attribute(x, 1, condition={"1": [0, 3], "6": [0, 1, 5]})
    # Relevance is linear: what flows through both is the sum over the single pairs.
    pairs = [method.attribute(x, 1, condition={"1": [i], "6": [k]}) for i in (0, 3) for k in (0, 1, 5)]
    close(both, torch.stack(pairs).sum(0))


@pytest.mark.parametrize("name", ["stem", "norm", "act", "branch", "branch.0", "branch.1", "pool", "mean", "head"])
@pytest.mark.parametrize("rules", ["lrp0", "epsilon_gamma", "zplus"])
def test_units_add_up(name: str, rules: str) -> None:
    """Where every path leads through a module, the maps of its units sum to the whole map."""
    model, x = residual(), images()
    method = LRP(model, rules)
    whole = method.attribute(x, 1)
    units = 4
    parts = torch.stack([method.attribute(x, 1, condition={name: [unit]}) for unit in range(units)])
    everything = method.attribute(x, 1, condition={name: range(units)})
    close(everything, whole)
    if name.startswith("branch"):
        # The identity beside the branch is not masked, and is in each of them.
        nothing = method.attribute(x, 1, condition={name: []})
        close((parts - nothing).sum(0) + nothing, whole)
    else:
        close(parts.sum(0), whole)


def test_sum_is_the_relevance_of_the_units() -> None:
    model, x = without_bias(sequence()), images()
    with torch.no_grad():
        model[1].running_mean.zero_()
    method = LRP(model, Gamma(stabilizer=0.0))
    at_layer = method.attribute_layers(x, "3", 1)["3"]
    found, delta = method.attribute(x, 1, condition={"3": [1, 4]}, return_convergence_delta=True)
    close(found.flatten(1).sum(1), at_layer[:, [1, 4]].flatten(1).sum(1))
    close(delta, at_layer[:, [0, 2, 3]].flatten(1).sum(1))


def test_what_arrives_at_the_module_is_not_changed() -> None:
    # attribute_layers shows what arrives at the output of a module; below it, what was let through.
    model, x = sequence(), images()
    method = LRP(model, Gamma())
    without = method.attribute_layers(x, ["3", "4", "6"], 1)
    with_it = method.attribute_layers(x, ["3", "4", "6"], 1, condition={"4": [2]})
    for name in ("6", "4"):
        close(with_it[name], without[name])
    expected = torch.zeros_like(without["3"])
    expected[:, 2] = without["3"][:, 2]
    close(with_it["3"], expected)


def test_ways_to_name_units() -> None:
    model, x = residual(), images()
    method = LRP(model)
    expected = method.attribute(x, 1, condition={"stem": [1, 3]})
    for units in ((1, 3), [1, -1], range(1, 4, 2), np.array([1, 3]), torch.tensor([1, 3])):
        assert torch.equal(method.attribute(x, 1, condition={"stem": units}), expected)  # type: ignore[dict-item]
    one = method.attribute(x, 1, condition={"stem": [2]})
    for unit in (2, np.int64(2)):
        assert torch.equal(method.attribute(x, 1, condition={"stem": unit}), one)  # type: ignore[dict-item]
    assert torch.equal(method.attribute(x, 1, condition={}), method.attribute(x, 1))


def test_a_module_used_twice_is_masked_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)
            self.head = nn.Linear(108, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.layer(torch.relu(self.layer(x))))
            out: Tensor = self.head(h.flatten(1))
            return out

    model, x = settle(Twice()), images()
    layer = model.layer
    unrolled = nn.Sequential(
        layer, nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1).double(), nn.ReLU(), nn.Flatten(), model.head
    )
    unrolled[2].load_state_dict(layer.state_dict())
    found = LRP(model, Gamma()).attribute(x, 1, condition={"layer": [0, 1]})
    close(found, LRP(unrolled, Gamma()).attribute(x, 1, condition={"0": [0, 1], "2": [0, 1]}))


@pytest.mark.parametrize("name", ["stem", "act", "branch.0", "pool", "head"])
def test_the_report_shows_the_share_of_the_condition(name: str) -> None:
    model, x = residual(), images()
    method = LRP(model)
    arriving = method.attribute_layers(x, name, 1)[name]
    report = method.report(x, 1, condition={name: [1, 2]})
    blocked = float(arriving[:, [0, 3]].sum())
    assert report.absorbed["condition"] == pytest.approx(blocked, rel=1e-9)
    (entry,) = [entry for entry in report.entries if "condition" in entry.absorbed]
    assert entry.name == name
    assert entry.operation == "condition"
    assert entry.relevance_out == pytest.approx(float(arriving.sum()), rel=1e-9)
    assert entry.unexplained == pytest.approx(0.0, abs=1e-12)
    found = method.attribute(x, 1, condition={name: [1, 2]})
    assert report.relevance == pytest.approx(float(found.sum()), rel=1e-9)
    leaks = sum(entry.leak for entry in report.entries)
    assert leaks == pytest.approx(float(report.delta.sum()), abs=1e-9)
    report.check(1e-9)


def test_gradient_x_input_takes_a_condition_too() -> None:
    model, x = sequence(), images()
    found = GradientXInput(model).attribute(x, 1, condition={"4": [2]})
    close(found, LRP(model, "lrp0").attribute(x, 1, condition={"4": [2]}))


def test_with_create_graph() -> None:
    model, x = sequence(), images().requires_grad_()
    method = LRP(model, Rules.preset("epsilon"))
    relevance = method.attribute(x, 1, condition={"3": [1]}, create_graph=True)
    close(relevance, method.attribute(x.detach(), 1, condition={"3": [1]}))
    direction = torch.randn(x.shape, dtype=x.dtype)
    (found,) = torch.autograd.grad((relevance * direction).sum(), x)
    step = 1e-6
    with torch.no_grad():
        ends = [
            (method.attribute(x.detach() + sign * step * direction, 1, condition={"3": [1]}) * direction).sum()
            for sign in (1, -1)
        ]
    slope = float((ends[0] - ends[1]) / (2 * step))
    assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-6)
