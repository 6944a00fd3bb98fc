"""Batch norm that must not be folded, and a folded layer's other consumers: each written out by hand.

The references work in relevance form, with `reference.linear` for the layers and, for what is linear beside
them, the coefficient form: relevance over output, through the transposed map, times input.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.errors import TrainingModeWarning
from tests import reference, reference_steps
from tests.cases import DTYPE, RULES, RuleCase, seed_like, signed
from tests.compare import TOLERANCE, distance, package_rule, weighted
from tests.networks import zoo

EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)

Function = Callable[[Tensor], Tensor]


def through(function: Function, a: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of `a` below a map that is linear but for its offset, in coefficient form."""
    leaf = a.detach().clone().requires_grad_()
    output = function(leaf)
    (coefficient,) = torch.autograd.grad(output, leaf, relevance / output.detach())
    return a.detach() * coefficient


def step(rule: RuleCase) -> Callable[[Function, Tensor, Tensor], Tensor]:
    """What relevance does at a map without weights: below a rule that reaches zeros each entry keeps its own."""
    if rule.rule not in reference_steps.REACHES_ZEROS:
        return through
    return lambda function, a, relevance: relevance.reshape(a.shape)


def added(rule: RuleCase, term: Tensor, other: Tensor, relevance: Tensor) -> Tensor:
    """The relevance of one of two terms of a sum: below such a rule they share equally."""
    if rule.rule in reference_steps.REACHES_ZEROS:
        return relevance / 2
    return through(lambda t: t + other, term, relevance)


def running(norm: nn.Module) -> Function:
    """Batch norm by running statistics, written out; over dimension 1."""
    scale, shift = reference.affine(norm)

    def function(h: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (h.ndim - 2))
        return h * scale.detach().reshape(shape) + shift.detach().reshape(shape)

    return function


def of_the_batch(norm: nn.Module) -> Function:
    """Batch norm by the statistics of the batch, the standard deviation a constant."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    weight, bias = norm.weight.detach(), norm.bias.detach()

    def function(h: Tensor) -> Tensor:
        dims, shape = [0, *range(2, h.ndim)], (1, -1, *[1] * (h.ndim - 2))
        centred = h - h.mean(dims, keepdim=True)
        deviation = (centred.square().mean(dims, keepdim=True) + norm.eps).sqrt().detach()
        return centred / deviation * weight.reshape(shape) + bias.reshape(shape)

    return function


class Network(nn.Module):
    """A linear layer, something between, batch norm, ReLU and a dense layer."""

    def __init__(self, layer: nn.Module, between: Function, norm: nn.Module, features: int) -> None:
        super().__init__()
        self.layer, self.norm, self.head = layer, norm, nn.Linear(features, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.relu(self.norm(self.between(self.layer(x)))).reshape(len(x), -1))
        return output

    def expected(self, x: Tensor, seed: Tensor, rule: RuleCase, between: Function, norm: Function) -> Tensor:
        """Layer by layer, batch norm on its own; `between` is given as a function without side effects."""
        h = self.layer(x).detach()
        middle = between(h)
        y = torch.relu(norm(middle)).reshape(len(x), -1).detach()
        relevance = reference.linear(self.head, y, self.head(y).detach() * seed, rule.rule, **rule.options)
        relevance = step(rule)(norm, middle, relevance.reshape(middle.shape))
        relevance = step(rule)(between, h, relevance)
        return reference.linear(self.layer, x, relevance, rule.rule, **rule.options).detach()


def made(layer: nn.Module, between: Function, norm: nn.Module, features: int) -> Network:
    model = Network(layer, between, norm, features).to(DTYPE).eval()
    zoo.randomize(model, seed=5)
    return model


def same(h: Tensor) -> Tensor:
    return h


def check(model: Network, x: Tensor, rule: RuleCase, between: Function = same, norm: Function | None = None) -> None:
    with torch.no_grad():
        seed = seed_like(model.head(torch.zeros(len(x), model.head.in_features, dtype=DTYPE)))
    before = zoo.fingerprint(model)
    found = LRP(model, package_rule(rule)).attribute(x, weighted(seed))
    assert zoo.fingerprint(model) == before
    expected = model.expected(x, seed, rule, between, running(model.norm) if norm is None else norm)
    assert distance(found, expected) <= TOLERANCE


def assert_not_folded(model: nn.Module, x: Tensor, name: str = "norm") -> None:
    rows = Rules.preset("epsilon").plan(model, x, target=0).rows
    notes = [note for row in rows if row.name == name for note in row.notes]
    assert any(note.startswith("not folded") for note in notes), notes
    assert not any("batch norm folded" in row.notes for row in rows)


@EVERY_RULE
def test_a_linear_layer_with_3d_output(rule: RuleCase) -> None:
    """[N, 5, 6] -> [N, 5, 5]: the norm's channels are not the layer's outputs, though there are as many."""
    model = made(nn.Linear(6, 5), same, nn.BatchNorm1d(5), 25)
    x = signed((3, 5, 6), seed=2)
    assert_not_folded(model, x)
    check(model, x, rule)


class Unbatched(nn.Conv1d):
    """A convolution of one sample without its batch dimension: [1, C, L] -> [K, L]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.squeeze(0))


@EVERY_RULE
def test_an_unbatched_convolution(rule: RuleCase) -> None:
    """[K, L] with K = L: batch norm takes the channels for samples and positions for channels."""
    layer = Unbatched(2, 5, 3, padding=1)
    model = made(layer, same, nn.BatchNorm1d(5), 25)
    x = signed((1, 2, 5), seed=2)
    plain = nn.Conv1d(2, 5, 3, padding=1).to(DTYPE)
    plain.load_state_dict(layer.state_dict())
    by_hand = Network(plain, lambda h: h.squeeze(0), model.norm, 25)
    by_hand.head = model.head
    seed = seed_like(model(x))
    found = LRP(model, package_rule(rule)).attribute(x, weighted(seed))
    expected = by_hand.expected(x, seed, rule, lambda h: h.squeeze(0), running(model.norm))
    assert distance(found, expected) <= TOLERANCE


def item(h: Tensor) -> Tensor:
    h[:, 0] *= 3
    return h


def through_a_view(h: Tensor) -> Tensor:
    h.view(-1)[3:7].add_(1)
    return h


def add_to_four(h: Tensor) -> Tensor:
    added = torch.zeros(h.numel(), dtype=DTYPE)
    added[3:7] = 1
    return h + added.reshape(h.shape)


def tripled_first(h: Tensor) -> Tensor:
    factors = torch.ones(h.shape[1], 1, 1, dtype=DTYPE)
    factors[0] = 3
    return h * factors


@EVERY_RULE
@pytest.mark.parametrize(
    ("change", "between"),
    [
        (item, tripled_first),
        (through_a_view, add_to_four),
        (torch.abs, torch.abs),
    ],
    ids=["item", "view", "out-of-place"],
)
def test_a_tensor_changed_in_between(change: Function, between: Function, rule: RuleCase) -> None:
    model = made(nn.Conv2d(3, 4, 3), change, nn.BatchNorm2d(4), 16)
    x = signed((2, 3, 4, 4), seed=2)
    assert_not_folded(model, x)
    check(model, x, rule, between)


@EVERY_RULE
def test_the_input_of_the_layer_changed_in_between(rule: RuleCase) -> None:
    """The pair as one map would read the layer's input again, which is another by then."""

    class Changed(Network):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            h = self.layer(x)
            x.mul_(-3)
            output: Tensor = self.head(torch.relu(self.norm(h)).reshape(len(x), -1))
            return output

    model = Changed(nn.Conv2d(3, 4, 3), same, nn.BatchNorm2d(4), 16).to(DTYPE).eval()
    zoo.randomize(model, seed=5)
    x = signed((2, 3, 4, 4), seed=2)
    plain = made(model.layer, same, model.norm, 16)
    plain.head = model.head
    zoo.randomize(model, seed=5)
    seed = seed_like(model(x))
    found = LRP(model, package_rule(rule)).attribute(x, weighted(seed))
    folded = reference_steps.explain(
        [model.layer, model.norm, nn.ReLU(), nn.Flatten(), model.head], x, seed, (rule.rule, rule.options)
    )[0]
    apart = plain.expected(x, seed, rule, same, running(model.norm))
    # Folded or not, it is the input as it was that is explained.
    assert min(distance(found, folded), distance(found, apart)) <= TOLERANCE


@EVERY_RULE
def test_no_running_statistics(rule: RuleCase) -> None:
    model = made(nn.Conv2d(3, 4, 3), same, nn.BatchNorm2d(4, track_running_stats=False), 16)
    x = signed((3, 3, 4, 4), seed=2)
    assert_not_folded(model, x)
    check(model, x, rule, norm=of_the_batch(model.norm))


@EVERY_RULE
@pytest.mark.parametrize("momentum", [0.1, None])
def test_training_mode(rule: RuleCase, momentum: float | None) -> None:
    model = made(nn.Conv2d(3, 4, 3), same, nn.BatchNorm2d(4, momentum=momentum), 16)
    model.train()
    x = signed((3, 3, 4, 4), seed=2)
    norm = of_the_batch(model.norm)
    with pytest.warns(TrainingModeWarning, match="norm"):
        check(model, x, rule, norm=norm)


class Consumers(nn.Module):
    """A convolution whose output goes to batch norm and, plain, elsewhere."""

    def __init__(self, plain_first: bool, after_norm: Function, after_plain: Function) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 3)
        self.plain_first, self.after_norm, self.after_plain = plain_first, after_norm, after_plain

    def forward(self, x: Tensor) -> Tensor:
        # Rules take a shorter way where they know that the input is not negative.
        h = self.conv(torch.relu(x))
        if self.plain_first:
            plain = self.after_plain(h)
            normed = self.after_norm(self.norm(h))
        else:
            normed = self.after_norm(self.norm(h))
            plain = self.after_plain(h)
        output: Tensor = self.head((normed + plain).flatten(1))
        return output


def consumers_by_hand(model: Consumers, x: Tensor, seed: Tensor, rule: RuleCase) -> tuple[Tensor, Tensor]:
    """Relevance at the convolution's output and at the input.

    Batch norm's share is that of the folded map, the rest that of the plain layer; they meet at the input.
    """
    x = torch.relu(x)  # hands relevance on unchanged
    h = model.conv(x).detach()
    y = model.norm(h).detach()
    normed, plain = model.after_norm(y.clone()), model.after_plain(h.clone())
    total = (normed + plain).flatten(1)
    relevance = reference.linear(model.head, total, model.head(total).detach() * seed, rule.rule, **rule.options)
    relevance = relevance.reshape(h.shape).detach()
    folded = step(rule)(model.after_norm, y, added(rule, normed, plain, relevance))
    other = step(rule)(model.after_plain, h, added(rule, plain, normed, relevance))
    below = reference.linear(model.conv, x, folded, rule.rule, model.norm, **rule.options)
    return folded + other, (below + reference.linear(model.conv, x, other, rule.rule, **rule.options)).detach()


def leaky(h: Tensor) -> Tensor:
    return nn.functional.leaky_relu(h, 0.3)


def less_leaky(h: Tensor) -> Tensor:
    return nn.functional.leaky_relu(h, 0.6)


@EVERY_RULE
@pytest.mark.parametrize("plain_first", [True, False], ids=["plain-first", "norm-first"])
@pytest.mark.parametrize(
    "after",
    [(leaky, less_leaky), (less_leaky, leaky), (same, same), (torch.relu, less_leaky), (less_leaky, torch.relu)],
    ids=["leaky-norm", "leaky-plain", "bare", "relu-norm", "relu-plain"],
)
def test_a_second_consumer(plain_first: bool, after: tuple[Function, Function], rule: RuleCase) -> None:
    model = Consumers(plain_first, *after).to(DTYPE).eval()
    zoo.randomize(model, seed=5)
    x = signed((2, 3, 4, 4), seed=2)
    seed = seed_like(model(x))
    at_output, at_input = consumers_by_hand(model, x, seed, rule)
    explainer = LRP(model, package_rule(rule))
    assert distance(explainer.attribute(x, weighted(seed)), at_input) <= TOLERANCE
    found = explainer.attribute_layers(x, ["conv"], weighted(seed))["conv"]
    assert isinstance(found, Tensor)
    assert distance(found, at_output) <= TOLERANCE
    conditioned = [explainer.attribute(x, weighted(seed), condition={"conv": part}) for part in ([0, 1], [2, 3])]
    assert distance(conditioned[0] + conditioned[1], at_input) <= TOLERANCE


class Beside(nn.Module):
    """A dense layer with 3-d output that feeds a ReLU and, beside it, a batch norm that is not folded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(25, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(torch.relu(x))
        output: Tensor = self.head((torch.relu(h) + self.norm(h)).flatten(1))
        return output


@EVERY_RULE
def test_an_unfolded_norm_beside_a_relu(rule: RuleCase) -> None:
    """Relevance arrives at negative outputs of the layer too, though a ReLU takes them."""
    model = Beside().to(DTYPE).eval()
    zoo.randomize(model, seed=5)
    x = signed((2, 5, 6), seed=2)
    seed = seed_like(model(x))
    a, norm = torch.relu(x), running(model.norm)
    h = model.layer(a).detach()
    total = torch.relu(h) + norm(h)
    top = total.flatten(1)
    relevance = reference.linear(model.head, top, model.head(top).detach() * seed, rule.rule, **rule.options)
    relevance = relevance.detach().reshape(h.shape)
    direct = added(rule, torch.relu(h), norm(h), relevance)
    normed = step(rule)(norm, h, added(rule, norm(h), torch.relu(h), relevance))
    expected = reference.linear(model.layer, a, direct + normed, rule.rule, **rule.options).detach()
    assert distance(LRP(model, package_rule(rule)).attribute(x, weighted(seed)), expected) <= TOLERANCE
