"""Whole maps, layer by layer, of a branching network against a backward pass written by hand."""

from __future__ import annotations

import pytest
import torch

from relprop import LRP, GradientXInput, Rules
from tests import network_reference
from tests.cases import RuleCase, seed_like, signed
from tests.compare import distance, package_rule, weighted
from tests.network_reference import MIXED, THROUGH_ZEROS, Assignment, Branching

# Eight linear layers of signed sums in a row: both sides lose a digit or two of sixteen to cancellation.
TOLERANCE = 1e-10

LRP0: Assignment = {name: ("lrp0", {}) for name in MIXED}
ASSIGNMENTS = {"lrp0": LRP0, "mixed": MIXED, "through-zeros": THROUGH_ZEROS}


def registry(assignment: Assignment) -> Rules:
    rules = Rules()
    for name, (rule, options) in assignment.items():
        rules = rules.set(name, package_rule(RuleCase(rule, options)))
    return rules


@pytest.fixture(scope="module")
def model() -> Branching:
    return network_reference.build()


X = signed((2, 3, 8, 8), seed=13)
SEED = seed_like(torch.zeros(2, 3, dtype=torch.float64), seed=14)


def test_the_network_has_what_it_should(model: Branching) -> None:
    hidden = model.stem_norm(model.stem(X))
    assert (X < 0).any()
    assert (hidden < 0).any()
    assert (hidden > 0).any()
    joined = torch.relu(hidden)
    windows = model.shrink(
        model.join(model.left_act(model.left(joined)) + model.right_norm(model.right(joined)) + joined)
    )
    assert (windows == 0).any(), "some pooling windows hold only dead units"
    assert all(model.get_parameter(f"{n}_norm.bias").abs().min() > 0 for n in ("stem", "right", "cat"))


def test_reference_with_lrp0_is_gradient_times_input(model: Branching) -> None:
    # The gradient is that of the network with each smooth activation replaced by its secant through f(0).
    leaf = X.clone().requires_grad_()
    secant = network_reference.build()
    for name in ("gate", "soft", "bend"):
        getattr(secant, name).register_forward_hook(_secant)
    (gradient,) = torch.autograd.grad((secant(leaf) * SEED).sum(), leaf)
    found = network_reference.explain(model, X, SEED, LRP0)["input"]
    assert distance(found, gradient * X) < TOLERANCE


def _secant(module: torch.nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    (z,) = inputs
    at_zero = torch.nn.functional.softplus(z * 0) if isinstance(module, torch.nn.Softplus) else z * 0
    return at_zero + z * ((out - at_zero) / z).detach()


@pytest.mark.parametrize("name", list(ASSIGNMENTS))
def test_whole_map(model: Branching, name: str) -> None:
    expected = network_reference.explain(model, X, SEED, ASSIGNMENTS[name])
    found = LRP(model, registry(ASSIGNMENTS[name])).attribute(X, target=weighted(SEED))
    assert distance(found, expected["input"]) < TOLERANCE


@pytest.mark.parametrize("name", list(ASSIGNMENTS))
def test_map_at_every_layer(model: Branching, name: str) -> None:
    expected = network_reference.explain(model, X, SEED, ASSIGNMENTS[name])
    del expected["input"]
    method = LRP(model, registry(ASSIGNMENTS[name]))
    found = method.attribute_layers(X, list(expected), target=weighted(SEED))
    assert set(found) == set(expected)
    wrong = {key: distance(found[key], expected[key]) for key in expected}
    assert not {key: value for key, value in wrong.items() if not value < TOLERANCE}


def test_relevance_stays_the_size_of_the_output(model: Branching) -> None:
    # A map that explodes can still sum right. (Gamma below flat divides what is no multiple of a sum by that sum.)
    every = ({name: (rule, {}) for name in MIXED} for rule in ("flat", "wsquare"))
    for assignment in (LRP0, MIXED, *every):
        found = LRP(model, registry(assignment)).attribute(X, target=0)
        assert found.abs().sum() < 1e3 * model(X)[:, 0].abs().sum()


def test_gradient_times_input_differs_from_lrp0_only_by_the_activations() -> None:
    linear = network_reference.build()
    linear.gate, linear.soft, linear.bend = (torch.nn.ReLU() for _ in range(3))
    found = LRP(linear, registry(LRP0)).attribute(X, target=1)
    assert distance(found, GradientXInput(linear).attribute(X, target=1)) < TOLERANCE
