"""Relevance as part of a user's graph: what else they differentiate, where it comes from, and what it trains."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Gradient, GradientXInput, Rules, UncoveredOperationWarning
from relprop.rules import Epsilon, Gamma
from tests import two_phase_reference as explicit
from tests.cases import DTYPE, RuleCase, seed_like, signed
from tests.compare import distance, weighted
from tests.two_phase_checks import agree, gradients, loss, settle

RULES = Rules().set(nn.Conv2d, Gamma()).set(nn.Linear, Epsilon(0.1))
CASES = [RuleCase("gamma"), RuleCase("epsilon", {"epsilon": 0.1})]


def network() -> nn.Sequential:
    modules = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(*settle(modules))


def pixels() -> Tensor:
    """Of both signs and none of them zero: there gamma has a kink."""
    return signed((2, 1, 6, 6), seed=13) + 0.01


def one_hot(*labels: int) -> Tensor:
    return F.one_hot(torch.tensor(labels), 3).to(DTYPE)


def test_without_create_graph_there_is_no_graph() -> None:
    x = pixels().requires_grad_()
    method = LRP(network(), RULES)
    found, delta = method.attribute(torch.sin(x), 1, return_convergence_delta=True)
    layers = method.attribute_layers(x, ["0", "3"], 1)
    for tensor in (found, delta, method.attribute_targets(x, [0, 1]), *layers.values()):
        assert not tensor.requires_grad and tensor.grad_fn is None
    assert x.grad is None


@pytest.mark.parametrize("rules", [RULES, "zplus", "flat", "epsilon_plus_flat", "epsilon_alpha2_beta1", "wsquare"])
def test_the_relevance_is_the_same_with_a_graph(rules: Any) -> None:
    x, method = pixels(), LRP(network(), rules)
    found = method.attribute(x, 1, create_graph=True)
    assert found.requires_grad, "the parameters are trained"
    assert distance(found, method.attribute(x, 1)) < 1e-13


def test_other_graphs_through_the_model_are_unaffected() -> None:
    model, x = network(), pixels().requires_grad_()
    tensors = [x, *model.parameters()]
    expected = torch.autograd.grad(model(x).square().sum(), tensors)
    before = model(x)
    relevance = LRP(model, RULES).attribute(x, 1, create_graph=True)
    after = model(x)
    for out in (before, after):
        for mine, theirs in zip(torch.autograd.grad(out.square().sum(), tensors), expected, strict=True):
            assert torch.equal(mine, theirs)
    assert all(tensor.grad is None for tensor in tensors)
    relevance.square().sum().backward()
    assert all(tensor.grad is not None for tensor in tensors)


def test_an_input_with_a_graph_upstream() -> None:
    model, y, scale = network(), pixels().requires_grad_(), torch.tensor(0.7, dtype=DTYPE, requires_grad=True)
    x = torch.sin(y) * scale + 0.2
    seed = seed_like(model(x))
    found = LRP(model, RULES).attribute(x, weighted(seed), create_graph=True)
    expected = explicit.explain(list(model), x, seed, CASES)
    agree(found, expected, {"y": y, "scale": scale, "x": x, **dict(model.named_parameters())})


def test_an_input_that_asks_for_no_gradient() -> None:
    model, x = network(), pixels()
    seed = seed_like(model(x))
    found = LRP(model, RULES).attribute(x, weighted(seed), create_graph=True)
    expected = explicit.explain(list(model), x, seed, CASES)
    agree(found, expected, dict(model.named_parameters()))
    frozen = model.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    found = LRP(frozen, RULES).attribute(leaf, weighted(seed), create_graph=True)
    agree(found, explicit.explain(list(frozen), leaf, seed, CASES), {"input": leaf})


def test_the_gradient_of_the_gradient() -> None:
    model, x = network(), pixels().requires_grad_()
    seed, tensors = seed_like(model(x)), {"input": x, **dict(model.named_parameters())}
    slopes = []
    for relevance in (
        LRP(model, RULES).attribute(x, weighted(seed), create_graph=True),
        explicit.explain(list(model), x, seed, CASES),
    ):
        parts = torch.autograd.grad(relevance.square().sum(), list(tensors.values()), create_graph=True)
        slopes.append(torch.cat([part.flatten() for part in parts]))
    agree(slopes[0], slopes[1], tensors)


def test_a_loss_of_relevance_and_prediction_trains() -> None:
    model, x = network(), pixels()
    twin, labels = copy.deepcopy(model), torch.tensor([0, 2])
    outside = (torch.arange(36).reshape(6, 6) % 2).to(DTYPE)

    def step(trained: nn.Module, relevance: Tensor) -> float:
        share = (relevance * outside).abs().sum() / relevance.abs().sum()
        value = F.cross_entropy(trained(x), labels) + share
        value.backward()
        with torch.no_grad():
            for parameter in trained.parameters():
                assert parameter.grad is not None
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
        return float(value.detach())

    losses = []
    for _ in range(15):
        losses.append(step(model, LRP(model, RULES).attribute(x, labels, create_graph=True)))
        expected = step(twin, explicit.explain(list(twin), x, one_hot(0, 2), CASES))
        assert abs(losses[-1] - expected) < 1e-8
    assert losses[-1] < 0.7 * losses[0], losses


def test_layers_targets_and_delta() -> None:
    model, x = network(), pixels().requires_grad_()
    method, modules, tensors = LRP(model, RULES), list(model), {"input": x, **dict(model.named_parameters())}
    for name, end in (("1", 2), ("3", 4)):
        layer = method.attribute_layers(x, name, 1, create_graph=True)[name]
        agree(layer, explicit.explain(modules[end:], model[:end](x), one_hot(1, 1), CASES[1:]), tensors)
    for target, found in zip((1, 0), method.attribute_targets(x, [1, 0], create_graph=True), strict=True):
        agree(found, explicit.explain(modules, x, one_hot(target, target), CASES), tensors)
    _, delta = method.attribute(x, 1, return_convergence_delta=True, create_graph=True)
    expected = explicit.explain(modules, x, one_hot(1, 1), CASES)
    agree(delta, model(x)[:, 1] - expected.flatten(1).sum(1), tensors)


def test_condition() -> None:
    modules = settle([nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)])
    model, x = nn.Sequential(*modules), signed((2, 5), seed=14).requires_grad_()
    found = LRP(model, "lrp0").attribute(x, 1, condition={"1": [2, 0]}, create_graph=True)
    u, v = model[0](x), model[:3](x)
    c = (model[4].weight[1] * explicit.secant(torch.tanh, v)) @ model[2].weight
    c = c * torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=DTYPE) * explicit.secant(torch.tanh, u)
    agree(found, x * (c @ model[0].weight), {"input": x, **dict(model.named_parameters())})


class Tokens(nn.Module):
    """Token ids, embedded, through a layer; with `twice`, the embedding is tied to the output."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.embedding, self.layer, self.top = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        if twice:
            self.top.weight = self.embedding.weight
        settle([self])

    def forward(self, ids: Tensor) -> Tensor:
        return self.of_embedded(self.embedding(ids))

    def of_embedded(self, embedded: Tensor) -> Tensor:
        out: Tensor = self.top(torch.tanh(self.layer(embedded)).mean(1))
        return out


@pytest.mark.parametrize("twice", [False, True], ids=["own", "tied"])
def test_token_ids(twice: bool) -> None:
    model, ids = Tokens(twice), torch.tensor([[1, 2, 2], [6, 0, 3]])
    found = LRP(model, "lrp0").attribute(ids, 3, create_graph=True)
    embedded = model.embedding(ids)
    hidden = model.layer(embedded)
    c = model.top.weight[3] / 3 * explicit.secant(torch.tanh, hidden)
    expected = (embedded * (c @ model.layer.weight)).sum(-1)
    agree(found, expected, dict(model.named_parameters()))


class Cross(nn.Module):
    """[N, 4] to [N]: queries against keys that are made from a buffer."""

    context: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("context", signed((5, 4), seed=16))
        settle([self])

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.query(x) @ self.key(self.context).mT).sum(1)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("make", [Cross, network, lambda: Twice(F.gelu)], ids=["cross", "network", "dense"])
def test_the_relevance_does_not_depend_on_what_is_trained(make: Callable[[], nn.Module], create_graph: bool) -> None:
    model = make()
    x = pixels() if isinstance(model, nn.Sequential) else signed((2, 4), seed=15)
    target = None if isinstance(model, Cross) else 1
    maps = []
    for trained in (True, False):
        method = LRP(model.requires_grad_(trained), Gamma())
        maps.append(method.attribute(x.clone().requires_grad_(create_graph), target, create_graph=create_graph))
    assert distance(maps[0], maps[1]) < 1e-13


# ------------------------------------------------------------------------- what has no second derivative


class Twice(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.function = function
        settle([self])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.first(x)))
        return out


class Once(torch.autograd.Function):
    """tanh, whose author did not think of a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.tanh(x))
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, c: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return c * (1 - y * y)


def warped(z: Tensor) -> Tensor:
    grid = torch.linspace(-0.9, 0.9, 4, dtype=DTYPE).expand(len(z), 1, 4)
    grid = torch.stack([grid, torch.zeros_like(grid)], -1)
    return F.grid_sample(z[:, None, None], grid, align_corners=True)[:, 0, 0]


def distances(z: Tensor) -> Tensor:
    return torch.cdist(z[:, None], torch.eye(4, dtype=DTYPE))[:, 0]


@pytest.mark.parametrize("method", [Gradient, GradientXInput])
def test_plain_gradients_differentiate_hardsigmoid_twice(method: Any) -> None:
    """Which PyTorch's own does not, and whose first derivative holds 1/6 in single precision."""
    found, expected = [
        gradients(method(Twice(function)).attribute(x, 1, create_graph=True), [x])[0]
        for function in (F.hardsigmoid, lambda z: (z + 3).clamp(0, 6) / 6)
        for x in [signed((2, 4), seed=15).requires_grad_()]
    ]
    assert distance(found, expected) < 1e-12


@pytest.mark.parametrize(
    ("function", "name"),
    [(Once.apply, "Once"), (warped, "grid_sampl"), (distances, "cdist")],
    ids=["once", "grid-sample", "cdist"],
)
def test_relevance_is_right_or_an_error_names_the_operation(function: Callable[[Tensor], Tensor], name: str) -> None:
    model, x = Twice(function), signed((2, 4), seed=15).requires_grad_()
    method, heard, failed = LRP(model, "lrp0"), [], ""
    with warnings.catch_warnings(record=True) as caught:  # where relprop has no rule, it says so
        warnings.simplefilter("always")
        try:
            found = method.attribute(x, 1, create_graph=True)
            slope = gradients(found, [x])[0]
        except RuntimeError as error:
            failed = str(error)
        heard = [str(warning.message) for warning in caught]
    if failed:
        assert name in " ".join([failed, *heard])
        return
    sides = []
    for h in (1e-6, -1e-6):
        moved = x.detach().clone()
        moved[0, 1] += h
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncoveredOperationWarning)
            sides.append(float(loss(method.attribute(moved, 1), like=found)))
    assert abs(float(slope[0, 1]) - (sides[0] - sides[1]) / 2e-6) < 1e-5 * float(slope.abs().max())
