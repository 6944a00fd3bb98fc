"""One linear map, however it is spelled: random spellings against the network with one layer in their place.

A spelling is a linear layer, by one of the ways of calling it, and behind it steps that scale or shift its output
channels, or only move its entries. The test keeps the account of scale and shift itself, by channel, and builds the
layer that computes all of it at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Block, Gamma, Mask
from tests.cases import DTYPE, RULES, RuleCase, seed_like, signed
from tests.compare import distance, package_rule, weighted
from tests.networks import zoo

TOLERANCE = 1e-9
Step = Callable[[nn.Module, Tensor], Tensor]


@dataclass
class Spelling:
    """What a network computes behind its layer, with the account of what that does to a channel."""

    module: nn.Module
    channels: int
    draw: torch.Generator
    shape: list[int]
    channel: int  # the dimension of the channels, or the first of two into which they were split
    split: int = 0  # in how many groups they are split
    steps: list[Step] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    scale: Tensor = field(default_factory=lambda: torch.ones(()))
    shift: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        self.scale = torch.ones(self.channels, dtype=DTYPE)
        self.shift = torch.zeros(self.channels, dtype=DTYPE)

    def own(self, low: float = -1.5, high: float = 1.5) -> tuple[Callable[[nn.Module], Tensor], Tensor]:
        """A constant of the model, as it broadcasts to what stands here, and by channel."""
        numbers = low + (high - low) * torch.rand(self.channels, generator=self.draw, dtype=DTYPE)
        numbers = numbers + 0.2 * numbers.sign()
        name = f"constant{len(list(self.module.parameters())) + len(list(self.module.buffers()))}"
        if self.pick(2):
            self.module.register_parameter(name, nn.Parameter(numbers))
        else:
            self.module.register_buffer(name, numbers)
        sizes = [self.split, self.channels // self.split] if self.split else [self.channels]
        after = len(self.shape) - self.channel - len(sizes)
        form = [*sizes, *(1,) * after]
        form = [1] * self.pick(len(self.shape) - len(form) + 1) + form
        return lambda module: getattr(module, name).reshape(form), numbers

    def pick(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.draw))

    # What scales and shifts ----------------------------------------------------------------------

    def scaled(self) -> None:
        k, numbers = self.own()
        ways: list[Step] = [
            lambda m, h: h * k(m),
            lambda m, h: k(m) * h,
            lambda m, h: torch.mul(h, k(m)),
            lambda m, h: h.mul_(k(m)),
            lambda m, h: h / (1 / k(m)),
            lambda m, h: h.div(k(m).reciprocal()),
            lambda m, h: h * k(m).expand_as(h),
        ]
        self.add("scaled", ways)
        self.scale, self.shift = self.scale * numbers, self.shift * numbers

    def shifted(self) -> None:
        k, numbers = self.own()
        ways: list[Step] = [
            lambda m, h: h + k(m),
            lambda m, h: k(m) + h,
            lambda m, h: torch.add(h, k(m) / 2, alpha=2),
            lambda m, h: h.add_(k(m)),
            lambda m, h: h - (-k(m)),
            lambda m, h: h.sub(k(m), alpha=-1),
            lambda m, h: torch.add(k(m), h),
        ]
        self.add("shifted", ways)
        self.shift = self.shift + numbers

    def mirrored(self) -> None:
        k, numbers = self.own()
        ways: list[Step] = [
            lambda m, h: k(m) - h,
            lambda m, h: torch.rsub(h, k(m)),
            lambda m, h: k(m).sub(h),
            lambda m, h: -h + k(m),
            lambda m, h: torch.sub(k(m), h / 2, alpha=2),
        ]
        self.add("mirrored", ways)
        self.scale, self.shift = -self.scale, numbers - self.shift

    def by_numbers(self) -> None:
        ways: list[Step] = [
            lambda m, h: 3 - h / -2,
            lambda m, h: h * 0.5 + 3,
            lambda m, h: h.div_(2).add_(3),
            lambda m, h: torch.add(3, h, alpha=0.5),
        ]
        self.add("by numbers", ways)
        self.scale, self.shift = self.scale * 0.5, self.shift * 0.5 + 3

    def normed(self) -> None:
        (gamma, s), (beta, b) = self.own(), self.own()
        (mean, mu), (variance, v) = self.own(), self.own(0.3, 2.0)
        rate = 1 / (v + 1e-3).sqrt()
        ways: list[Step] = [
            lambda m, h: (h - mean(m)) / torch.sqrt(variance(m) + 1e-3) * gamma(m) + beta(m),
            lambda m, h: (h - mean(m)) * (gamma(m) * torch.rsqrt(variance(m) + 1e-3)) + beta(m),
            lambda m, h: gamma(m) * ((h - mean(m)) / (variance(m) + 1e-3) ** 0.5) + beta(m),
            frozen(gamma, beta, mean, variance),
            lambda m, h: torch.addcmul(beta(m), h - mean(m), gamma(m) * (variance(m) + 1e-3).rsqrt()),
            lambda m, h: torch.lerp(mean(m), h, gamma(m) / (variance(m) + 1e-3).sqrt()) + beta(m) - mean(m),
        ]
        if self.channel == 1 and not self.split and len(self.shape) > 2:
            flat = [lambda m, k=k: k(m).detach().reshape(-1) for k in (mean, variance, gamma, beta)]
            ways += 3 * [lambda m, h: F.batch_norm(h, *(k(m) for k in flat), eps=1e-3)]
            ways.append(lambda m, h: F.instance_norm(h, *(k(m) for k in flat), use_input_stats=False, eps=1e-3))
        self.add("normed", ways)
        self.scale, self.shift = self.scale * s * rate, (self.shift - mu) * s * rate + b

    # What only moves -----------------------------------------------------------------------------

    def copied(self) -> None:
        ways: list[Step] = [
            lambda m, h: h.clone(),
            lambda m, h: h.contiguous(),
            lambda m, h: h.to(memory_format=torch.preserve_format, copy=True),
            lambda m, h: F.dropout(h, 0.5, training=False),
            lambda m, h: nn.Identity()(h),
            lambda m, h: h.view(h.shape),
            lambda m, h: h.unsqueeze(0).squeeze(0),
            lambda m, h: h.double(),
        ]
        if len(self.shape) == 4:
            ways.append(lambda m, h: h.contiguous(memory_format=torch.channels_last))
        self.add("copied", ways)

    def permuted(self) -> None:
        """The channels go last, or first behind the samples."""
        rank = len(self.shape)
        width = 2 if self.split else 1
        last = self.channel + width == rank
        own = list(range(self.channel, self.channel + width))
        rest = [d for d in range(1, rank) if d not in own]
        order = [0, *own, *rest] if last else [0, *rest, *own]
        back, goal = list(range(1, 1 + width)), list(range(rank - width, rank))
        ways: list[Step] = [
            lambda m, h: h.permute(order),
            lambda m, h: torch.movedim(h, own, back if last else goal),
            lambda m, h: h.permute(*order).contiguous(),
        ]
        if rank == 3 and width == 1:
            ways += [lambda m, h: h.transpose(1, 2), lambda m, h: h.mT]
        self.add("permuted", ways)
        self.shape = [self.shape[d] for d in order]
        self.channel = 1 if last else rank - width

    def regrouped(self) -> None:
        """The channels are split in two dimensions, or joined again; places are flattened."""
        if self.split:
            at = self.channel
            self.add("joined", [lambda m, h: h.flatten(at, at + 1), lambda m, h: h.reshape(*joined(h, at))])
            self.shape[at : at + 2] = [self.channels]
            self.split = 0
        else:
            at, groups = self.channel, 2
            self.add(
                "split",
                [
                    lambda m, h: h.unflatten(at, (groups, -1)),
                    lambda m, h: h.reshape(*h.shape[:at], groups, -1, *h.shape[at + 1 :]),
                ],
            )
            self.shape[at : at + 1] = [groups, self.channels // groups]
            self.split = groups

    def add(self, name: str, ways: list[Step]) -> int:
        way = self.pick(len(ways))
        self.steps.append(ways[way])
        self.names.append(f"{name} {way}")
        return way


def joined(h: Tensor, at: int) -> list[int]:
    return [*h.shape[:at], h.shape[at] * h.shape[at + 1], *h.shape[at + 2 :]]


def frozen(*constants: Callable[[nn.Module], Tensor]) -> Step:
    """Batch norm as the backbones of detectors freeze it."""

    def step(module: nn.Module, h: Tensor) -> Tensor:
        gamma, beta, mean, variance = (k(module) for k in constants)
        scale = gamma * (variance + 1e-3).rsqrt()
        return h * scale + (beta - mean * scale)

    return step


# The layers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A way of calling a linear layer, and the module that it is."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Callable[[nn.Module, Tensor], Tensor]
    bias: bool = True  # of the call


def by_columns(layer: nn.Module, x: Tensor) -> Tensor:
    columns = F.unfold(x, (2, 1), padding=1, stride=(1, 2))
    return (layer.weight.flatten(1) @ columns).reshape(len(x), 6, x.shape[2] + 1, -1)


def by_rows(layer: nn.Module, x: Tensor) -> Tensor:
    rows = F.unfold(x, (2, 1), padding=1, stride=(1, 2)).transpose(1, 2)
    return rows.matmul(layer.weight.view(6, -1).t()).mT.reshape(len(x), 6, x.shape[2] + 1, -1)


def padded() -> nn.Module:
    return nn.Conv2d(3, 6, (2, 1), padding=1, stride=(1, 2))


def dense() -> nn.Module:
    return nn.Linear(5, 6)


LAYERS: dict[str, Layer] = {
    "conv2d": Layer(lambda: nn.Conv2d(3, 6, 2), (2, 3, 4, 3), lambda m, x: m(x)),
    "grouped": Layer(lambda: nn.Conv2d(4, 6, 2, groups=2), (2, 4, 3, 4), lambda m, x: m(x)),
    "conv1d": Layer(lambda: nn.Conv1d(3, 6, 2, padding=1), (2, 3, 5), lambda m, x: m(x)),
    "transposed": Layer(lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 2, 2), lambda m, x: m(x)),
    "convolved": Layer(lambda: nn.Conv2d(3, 6, 2), (2, 3, 4, 3), lambda m, x: F.conv2d(x, m.weight), False),
    "columns": Layer(padded, (2, 3, 4, 3), by_columns, False),
    "rows": Layer(padded, (2, 3, 4, 3), by_rows, False),
    "linear": Layer(dense, (3, 5), lambda m, x: m(x)),
    "tokens": Layer(dense, (2, 3, 5), lambda m, x: m(x)),
    "matmul": Layer(dense, (3, 5), lambda m, x: x @ m.weight.T, False),
    "tokens matmul": Layer(dense, (2, 3, 5), lambda m, x: torch.matmul(x, m.weight.T), False),
    "from the left": Layer(dense, (2, 3, 5), lambda m, x: (m.weight @ x.mT).mT, False),
    "addmm": Layer(dense, (3, 5), lambda m, x: torch.addmm(m.bias, x, m.weight.T)),
    "addmm scaled": Layer(dense, (3, 5), lambda m, x: torch.addmm(m.bias[None], x, m.weight.T / 2, beta=1, alpha=2)),
    "baddbmm": Layer(dense, (2, 3, 5), lambda m, x: torch.baddbmm(m.bias, x, m.weight.T.expand(len(x), -1, -1))),
    "einsum": Layer(dense, (2, 3, 5), lambda m, x: torch.einsum("nti,oi->nto", x, m.weight), False),
    "einsum dots": Layer(dense, (2, 3, 5), lambda m, x: torch.einsum("...i,oi->...o", x, m.weight), False),
    "tensordot": Layer(dense, (2, 3, 5), lambda m, x: torch.tensordot(x, m.weight, ([2], [1])), False),
    "inner": Layer(dense, (2, 3, 5), lambda m, x: torch.inner(x, m.weight), False),
}


class Spelled(nn.Module):
    """A layer, the steps behind it, and a head over the entries in the layer's own order."""

    def __init__(self, layer: Layer, module: nn.Module, head: nn.Linear, steps: list[Step], back: Step) -> None:
        super().__init__()
        self.way, self.module, self.head, self.steps, self.back = layer, module, head, steps, back

    def forward(self, x: Tensor) -> Tensor:
        h = self.way.call(self.module, x)
        for step in self.steps:
            h = step(self, h)
        out: Tensor = self.head(torch.relu(self.back(self, h)).flatten(1))
        return out


def randomized(module: nn.Module, seed: int) -> nn.Module:
    zoo.randomize(module.to(DTYPE), seed=seed)
    return module.eval()


def program(kind: str, seed: int, moves: bool = True) -> tuple[Spelled, nn.Module, Tensor, list[str]]:
    """A random spelling of a layer, and the network with one layer in its place."""
    layer = LAYERS[kind]
    module = randomized(layer.make(), seed)
    x = signed(layer.shape, seed=seed + 1)
    with torch.no_grad():
        z = layer.call(module, x)
    convolutional = kind in ("conv2d", "grouped", "conv1d", "transposed", "convolved", "columns", "rows")
    head = nn.Linear(z[0].numel(), 3).to(DTYPE)
    randomized(head, seed + 2)
    spelled = Spelled(layer, module, head, [], lambda m, h: h)
    spelling = Spelling(
        spelled, 6, torch.Generator().manual_seed(seed), list(z.shape), 1 if convolutional else z.dim() - 1
    )
    kinds = [spelling.scaled, spelling.shifted, spelling.mirrored, spelling.by_numbers, spelling.normed]
    if moves:
        kinds += [spelling.copied, spelling.permuted, spelling.regrouped]
    for _ in range(1 + spelling.pick(4)):
        kinds[spelling.pick(len(kinds))]()
    kinds[spelling.pick(5)]()  # whatever moved, something follows
    spelled.steps = spelling.steps
    at, split, form = spelling.channel, spelling.split, z.shape
    home = 1 if convolutional else z.dim() - 1

    def back(m: nn.Module, h: Tensor) -> Tensor:
        h = h.flatten(at, at + 1) if split else h
        return h.movedim(at, home).reshape(form)

    spelled.back = back
    fused = randomized(layer.make(), seed)
    with torch.no_grad():
        if not layer.bias:
            fused.bias.zero_()
        weight = fused.weight
        if isinstance(fused, nn.ConvTranspose2d):
            by_output = weight.reshape(2, 2, 3, 2, 2) * spelling.scale.reshape(2, 1, 3, 1, 1)
            weight.copy_(by_output.reshape(weight.shape))
        else:
            weight.mul_(spelling.scale.reshape(-1, *(1,) * (weight.dim() - 1)))
        fused.bias.mul_(spelling.scale).add_(spelling.shift)
    one = nn.Sequential(fused, nn.ReLU(), nn.Flatten(), head)
    return spelled, one, x, spelling.names


PAIRS = [  # every rule with every second layer
    pytest.param(kind, rule, id=f"{kind}-{rule.name}")
    for position, rule in enumerate(case for case in RULES if case.rule != "contrast")
    for kind in list(LAYERS)[position % 2 :: 2]
]


@pytest.mark.parametrize(("kind", "rule"), PAIRS)
def test_a_spelling_is_the_layer_that_it_is(kind: str, rule: RuleCase) -> None:
    spelled, one, x, names = program(kind, 100 * list(LAYERS).index(kind) + RULES.index(rule))
    before = zoo.fingerprint(spelled)
    output = seed_like(one(x))
    assert distance(spelled(x), one(x)) <= TOLERANCE, names
    found, expected = (LRP(net, package_rule(rule)).attribute(x, weighted(output)) for net in (spelled, one))
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    assert distance(found, expected) <= TOLERANCE, names
    assert zoo.fingerprint(spelled) == before


SOME_RULES = pytest.mark.parametrize("rules", ["epsilon_plus", "epsilon_gamma", "alpha2_beta1", "epsilon_plus_flat"])
CALLED = ("conv2d", "grouped", "conv1d", "transposed", "linear")  # as modules


@SOME_RULES
@pytest.mark.parametrize("kind", list(LAYERS))
def test_the_account_of_a_spelling_is_that_of_the_layer(kind: str, rules: str) -> None:
    spelled, one, x, names = program(kind, 40000 + list(LAYERS).index(kind))
    output = weighted(seed_like(one(x)))
    found, expected = LRP(spelled, rules).report(x, output), LRP(one, rules).report(x, output)
    found.check()
    scale = max(abs(entry.relevance_out) for entry in expected.entries)
    for name in expected.absorbed:
        assert abs(found.absorbed[name] - expected.absorbed[name]) <= 1e-6 * scale, (name, names)
    assert abs(found.relevance - expected.relevance) <= TOLERANCE * scale, names


@SOME_RULES
@pytest.mark.parametrize("kind", CALLED)
def test_the_layer_is_read_and_conditioned_behind_the_chain(kind: str, rules: str) -> None:
    spelled, one, x, names = program(kind, 50000 + list(LAYERS).index(kind))
    output = weighted(seed_like(one(x)))
    ours, theirs = LRP(spelled, rules), LRP(one, rules)
    read = ours.attribute_layers(x, "module", output)["module"]
    assert distance(read, theirs.attribute_layers(x, "0", output)["0"]) <= TOLERANCE, names
    found = ours.attribute(x, output, condition={"module": [0, 3]})
    assert distance(found, theirs.attribute(x, output, condition={"0": [0, 3]})) <= TOLERANCE, names


@pytest.mark.parametrize("rules", ["epsilon_plus", "epsilon_gamma"])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_a_loss_on_the_relevance_of_a_spelling(kind: str, rules: str) -> None:
    """By the input as of the one layer; by its weight by the chain rule, for the one layer's is a multiple of it."""
    spelled, one, x, names = program(kind, 60000 + list(LAYERS).index(kind))
    output = weighted(seed_like(one(x)))
    gradients = []
    for net, layer in ((spelled, spelled.module), (one, one[0])):
        given = x.clone().requires_grad_()
        relevance = LRP(net, rules).attribute(given, output, create_graph=True)
        assert isinstance(relevance, Tensor)
        gradients.append(torch.autograd.grad(relevance.square().sum(), [given, layer.weight]))
    (by_input, by_weight), (expected, of_one) = gradients
    assert distance(by_input, expected) <= TOLERANCE, names
    with torch.no_grad():
        scale = one[0].weight / spelled.module.weight
    assert distance(by_weight, of_one * scale) <= TOLERANCE, names


# What is no part of the layer ------------------------------------------------------------------------


class Kept(nn.Module):
    """A convolution and a function behind it, with constants of the model."""

    def __init__(self, function: Callable[..., Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 2), norm, nn.Linear(24, 3)
        self.by_channel = nn.Parameter(torch.randn(4, 1, 1))
        self.by_place = nn.Parameter(torch.randn(1, 1, 3, 2))
        self.function = function
        zoo.randomize(self.to(DTYPE), seed=3)
        self.eval()

    def forward(self, x: Tensor, given: Any = None) -> Tensor:
        h = self.conv(x)
        h = self.function(self, h) if given is None else self.function(self, h, given)
        return self.head(torch.relu(h).flatten(1))  # type: ignore[no-any-return]


def apart(h: Tensor) -> Tensor:
    """The same tensor, of which nothing is known."""
    return h[:, torch.arange(h.shape[1])]


ELSEWHERE: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "given": (lambda m, h, k: h * k, torch.randn(1, 4, 1, 1, dtype=DTYPE)),
    "computed from what is given": (lambda m, h, k: h + m.by_channel * k, torch.randn(1, 4, 1, 1, dtype=DTYPE)),
    "by place": (lambda m, h: h * m.by_place, None),
    "by channel and place": (lambda m, h: h + m.by_channel * m.by_place, None),
    "by sample": (lambda m, h: h * torch.linspace(1, 2, len(h), dtype=DTYPE)[:, None, None, None], None),
    "drawn": (lambda m, h: h * (1 + torch.arange(4, dtype=DTYPE))[:, None, None], None),
    "channels joined with places": (lambda m, h: (h.flatten(1) + m.head.weight[0]).reshape(h.shape), None),
    "some entries": (lambda m, h: torch.cat([2 * h[:, :1], h[:, 1:]], 1), None),
    "depends on the input": (lambda m, h: h * h.mean((2, 3), keepdim=True), None),
}


@SOME_RULES
@pytest.mark.parametrize("name", list(ELSEWHERE))
def test_what_is_not_folded(name: str, rules: str) -> None:
    """It is what it is to a tensor that no linear map is known to have made."""
    function, given = ELSEWHERE[name]
    x = signed((2, 3, 4, 3), seed=4)
    together = LRP(Kept(function), rules).attribute(x, 1, given)
    separate = LRP(Kept(lambda m, h, *more: function(m, apart(h), *more)), rules).attribute(x, 1, given)
    assert distance(together, separate) <= TOLERANCE


@SOME_RULES
@pytest.mark.parametrize("name", [name for name in ELSEWHERE if name != "by sample"])
def test_a_sample_is_explained_as_alone(name: str, rules: str) -> None:
    function, given = ELSEWHERE[name]
    model, x = LRP(Kept(function), rules), signed((2, 3, 4, 3), seed=4)
    batch = model.attribute(x, 1, given)
    singles = torch.cat([model.attribute(x[i : i + 1], 1, given) for i in range(2)])
    assert distance(singles, batch) <= TOLERANCE


@pytest.mark.parametrize("stands", ["rule", "condition", "rule at the layer"])
def test_a_filter_in_between_ends_the_folding(stands: str) -> None:
    """A mask or a condition at the first norm acts on its output; the second norm is a step of its own."""
    x = signed((2, 3, 4, 3), seed=4)
    norm = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model, units = Kept(lambda m, h: m.norm(h), norm), [0, 2]
    separate = Kept(lambda m, h: m.norm[1](apart(m.norm[0](h))), norm)
    for net in (model, separate):
        zoo.randomize(net, seed=5)
    rules = Rules().set(nn.Conv2d, Gamma(0.5))
    if stands == "rule at the layer":  # which acts behind the chain, where the one layer's output is
        found = LRP(model, rules.set("conv", Mask(units))).attribute(x, 1)
        expected = LRP(model, rules.set("norm.1", Mask(units))).attribute(x, 1)
    elif stands == "rule":
        found, expected = (LRP(net, rules.set("norm.0", Mask(units))).attribute(x, 1) for net in (model, separate))
    else:
        found, expected = (LRP(net, rules).attribute(x, 1, condition={"norm.0": units}) for net in (model, separate))
    assert distance(found, expected) <= TOLERANCE
    assert LRP(model, rules.set("norm.0", Block())).attribute(x, 1).abs().max() == 0


def test_a_second_consumer_sees_the_plain_layer() -> None:
    x = signed((2, 3, 4, 3), seed=4)

    def both(m: Any, h: Tensor) -> Tensor:
        return h.clone().relu() - (h.permute(0, 2, 3, 1) * m.by_channel.flatten()).permute(0, 3, 1, 2).relu()

    model = Kept(both)
    twice = copy.deepcopy(model)
    layer = copy.deepcopy(model.conv)
    with torch.no_grad():
        layer.weight.mul_(model.by_channel[..., None])
        layer.bias.mul_(model.by_channel.flatten())
    twice.norm = layer

    class Twice(Kept):
        def forward(self, x: Tensor, given: Any = None) -> Tensor:
            h = self.conv(x).relu() - self.norm(x).relu()
            return self.head(torch.relu(h).flatten(1))  # type: ignore[no-any-return]

    twice.__class__ = Twice
    for rules in ("epsilon_gamma", "epsilon_plus"):
        found, expected = LRP(model, rules).attribute(x, 1), LRP(twice, rules).attribute(x, 1)
        assert distance(found, expected) <= TOLERANCE
