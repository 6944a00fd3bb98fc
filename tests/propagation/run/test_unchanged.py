"""Explaining leaves the model as it was, bit for bit, whatever the model does and whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import _get_current_function_mode_stack

from relprop import LRP, DeepTaylor, Gradient, GradientXInput, Rules
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules import Epsilon, LinearRule
from tests.models import settle
from tests.unrolled import random, snapshot, weigh

pytestmark = [
    pytest.mark.filterwarnings("ignore::relprop.errors.TrainingModeWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
]


class Counts(nn.Module):
    """Keeps statistics of its own in buffers, in every way people do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("history", torch.zeros(3, 4))
        self.register_buffer("largest", torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(4))
        self.calls: Tensor
        self.mean: Tensor
        self.history: Tensor
        self.largest: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        self.mean.lerp_(x.detach().mean(0), 0.5)
        self.history[int(self.calls) % 3] = x.detach()[0]
        self.history[1:].copy_(self.history[:-1].clone())
        torch.maximum(self.largest, x.detach().amax(0), out=self.largest)
        self.scale.data.clamp_(min=0.5)
        with torch.no_grad():
            self.scale.add_(0.25)
            self.scale[0] = 2.0
        assert int(self.calls) > 0, "the model sees its own count"
        return (x - self.mean + self.history[0]) * self.scale / (1 + self.largest.abs())


class Assigns(nn.Module):
    """Puts a new tensor in the place of a buffer instead of writing into the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def _dense(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(wrap(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3))


def _normed(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 3, 1), norm(), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3, 3)
    )


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": _dense(lambda layer: layer),
    "tied": _tied,
    "batch norm": _normed(lambda: nn.BatchNorm1d(3)),
    "batch norm, cumulative average": _normed(lambda: nn.BatchNorm1d(3, momentum=None)),
    "batch norm without affine": _normed(lambda: nn.BatchNorm1d(3, affine=False)),
    "instance norm with statistics": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
    "spectral norm": _dense(parametrizations.spectral_norm),
    "spectral norm, old": _dense(nn.utils.spectral_norm),
    "weight norm": _dense(parametrizations.weight_norm),
    "weight norm, old": _dense(nn.utils.weight_norm),
    "orthogonal": _dense(parametrizations.orthogonal),
    "own counters": lambda: nn.Sequential(Counts(), nn.Linear(4, 3)),
    "assigned buffers": lambda: nn.Sequential(Assigns(), nn.Linear(4, 3)),
    "embedding with a largest norm": lambda: nn.Sequential(
        nn.Embedding(5, 4, max_norm=0.1), nn.Flatten(), nn.Linear(12, 3)
    ),
}


def make(name: str, training: bool) -> tuple[nn.Module, Tensor]:
    """The model after one training step and one forward: gradients exist, and all lazy state is there."""
    model = MODELS[name]().double()
    x = torch.tensor([[0, 1, 2], [3, 4, 1]]) if "embedding" in name else random(5, 4)
    model.train()
    model(x).sum().backward()
    list(model.parameters())[-1].requires_grad_(False)
    model.train(training)
    with torch.no_grad():
        model(x)
    return model, x


def methods(model: nn.Module) -> list[Any]:
    return [
        LRP(model),
        LRP(model, "lrp0", cache_weights=True),
        GradientXInput(model),
        Gradient(model),
        DeepTaylor(model),
    ]


def everything(model: nn.Module, x: Tensor) -> None:
    """Every public call, on every method."""
    for method in methods(model):
        method.attribute(x, 1)
        if not isinstance(method, Gradient):
            method.report(x, weigh)
        method.attribute(x, 1, create_graph=True)
    lrp = LRP(model)
    last = [name for name, _ in model.named_modules()][-1]
    lrp.attribute_layers(x, last, 1)
    lrp.attribute_targets(x, [0, 1, 2])
    lrp.attribute(x, 0, condition={last: [0, 2]})
    lrp.rules.plan(model, x, 1)
    with lrp.rules.attach(model) as attached:
        model(x)
    attached.finish()


@pytest.mark.filterwarnings("ignore::relprop.errors.DeepTaylorWarning")
@pytest.mark.filterwarnings("ignore::relprop.errors.UncoveredOperationWarning")  # what makes orthogonal weights
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_model_changes(name: str, training: bool) -> None:
    model, x = make(name, training)
    with snapshot(model):
        everything(model, x)
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "dropout"])
def test_what_is_explained_in_training_mode_is_what_the_model_computes(name: str) -> None:
    """On its own copies a model in training mode sees its writes; afterwards it computes what it would have."""
    outputs: list[Tensor] = []

    def watched(output: Tensor) -> Tensor:
        outputs.append(output.detach().clone())
        return weigh(output)

    model, x = make(name, training=True)
    LRP(model, "lrp0").attribute(x, watched)
    LRP(model, "lrp0").attribute(x, watched)
    with torch.no_grad():
        plain = model(x)
    assert torch.equal(outputs[0], plain) and torch.equal(outputs[1], plain)


# Exceptions ------------------------------------------------------------------------------------


class Trouble(Exception):
    """What goes wrong."""


class Raises(nn.Module):
    """Raises in its forward, or in its backward, while `armed`."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.armed == "forward":
            raise Trouble
        if self.armed == "backward":
            x = x.flip(1).flip(1)
            x.grad_fn.register_prehook(self._trip)
        return x

    def _trip(self, c: Tensor) -> Tensor:
        raise Trouble


@dataclass(frozen=True)
class Fails(LinearRule):
    """A rule that raises once relevance arrives."""

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        raise Trouble


def troubled() -> Any:
    model = nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(4, 4)),
        nn.BatchNorm1d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Linear(4, 4), Raises()),
        Counts(),
        nn.Linear(4, 3),
    )
    model.double().train()
    model(random(5, 4)).sum().backward()
    return model


def _armed(model: Any, where: str) -> LRP:
    rules = Rules.preset("epsilon_gamma")
    if where == "rule":
        return LRP(model, rules.set("0", Fails()))
    model[3][1].armed = where
    return LRP(model, rules)


CALLS: dict[str, Callable[[LRP, Tensor], Any]] = {
    "attribute": lambda lrp, x: lrp.attribute(x, 1),
    "create_graph": lambda lrp, x: lrp.attribute(x, 1, create_graph=True),
    "layers": lambda lrp, x: lrp.attribute_layers(x, ["0", "3"], 1),
    "targets": lambda lrp, x: lrp.attribute_targets(x, [0, 1]),
    "condition": lambda lrp, x: lrp.attribute(x, 1, condition={"0": [1], "3": [0]}),
    "report": lambda lrp, x: lrp.report(x, 1),
}


@pytest.mark.filterwarnings("ignore::relprop.errors.UncoveredOperationWarning")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("where", ["forward", "backward", "rule", "target"])
def test_an_exception_leaves_nothing_behind(where: str, call: str) -> None:
    model, x = troubled(), random(5, 4)
    expected = LRP(model).attribute(x, 1)
    lrp = _armed(model, where)
    if where == "target":

        def broken(output: Tensor) -> Tensor:
            raise Trouble

        def run() -> Any:
            return lrp.report(x, broken) if call == "report" else lrp.attribute(x, broken)

    else:

        def run() -> Any:
            return CALLS[call](lrp, x)

    with snapshot(model):
        with pytest.raises(Trouble):
            run()
        assert not _get_current_function_mode_stack()
        assert torch.is_grad_enabled()
    model[3][1].armed = ""
    with snapshot(model):
        assert torch.equal(LRP(model).attribute(x, 1), expected)
        with pytest.raises(Trouble):  # the same explainer, once more
            _armed(model, where if where != "target" else "forward").attribute(x, 1)
        model[3][1].armed = ""
        assert torch.equal(LRP(model).attribute(x, 1), expected)


def test_an_exception_inside_an_attached_block() -> None:
    model, x = troubled(), random(5, 4)
    expected = LRP(model, "epsilon").attribute(x, 1)
    model[3][1].armed = "forward"
    with snapshot(model):
        with pytest.raises(Trouble), Rules.preset("epsilon").attach(model):
            model(x)
        assert not _get_current_function_mode_stack()
    model[3][1].armed = ""
    assert torch.equal(LRP(model, "epsilon").attribute(x, 1), expected)


def test_an_interrupt_is_no_exception_to_that() -> None:
    """KeyboardInterrupt is no Exception, and module hooks do not see it."""

    class Interrupts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = settle(nn.Sequential(nn.Linear(4, 4), nn.Sequential(Interrupts())))
    with snapshot(model), pytest.raises(KeyboardInterrupt):
        LRP(model).attribute(random(2, 4), 1)
    assert not _get_current_function_mode_stack()


def test_a_module_that_catches_an_exception_of_its_part() -> None:
    """Rules are still selected by the right names after an exception the model itself handled."""

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            fails = Raises()
            fails.armed = "forward"
            self.broken, self.sound = nn.Sequential(nn.Linear(4, 4), fails), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.broken(x)  # type: ignore[no-any-return]
            except Trouble:
                return F.linear(x, self.sound.weight) + self.sound(x)  # type: ignore[no-any-return]

    model, x = settle(Tries()), random(3, 4)
    rules = Rules().set(nn.Linear, Epsilon(0.0)).set("broken*", Epsilon(5.0)).set("sound", Epsilon(1.0))
    weight, bias = model.sound.weight.detach(), model.sound.bias.detach()  # type: ignore[union-attr, operator]
    z = F.linear(x, weight, bias)
    share = z / (z + torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z)))
    seed = torch.autograd.functional.jacobian(lambda out: weigh(out).sum(), z)
    expected = x * ((seed + seed * share) @ weight)
    assert torch.allclose(LRP(model, rules).attribute(x, weigh), expected, rtol=1e-12)
