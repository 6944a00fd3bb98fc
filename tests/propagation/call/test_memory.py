"""Nothing of a call survives it: what a forward pass made dies when the call returns, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, DeepTaylor, GradientXInput, Rules
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules import Epsilon, LinearRule
from tests.models import settle
from tests.unrolled import random


class Trouble(Exception):
    """What goes wrong."""


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Mark:
    """Something to refer to weakly."""


class Trace:
    """What a model has made; in an object of its own, since lists of a module are put back after a call."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Any]] = []


class Traced(nn.Module):
    """[N, 2, 6, 6] to [N, 3]; keeps weak references to everything its forward passes made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.pool, self.head = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Linear(12, 3)
        settle(self)
        self.trace = Trace()
        self.broken = ""

    def forward(self, x: Tensor) -> Tensor:
        h = self._see(self.relu(self._see(self.norm(self._see(self.stem(self._see(x)))))))
        out = self._see(self.body(h))
        out += h
        out = self._see(self._see(out * torch.sigmoid(out)) + nn.functional.silu(out))
        if self.broken == "forward":
            raise Trouble
        if self.broken == "backward":
            out.grad_fn.register_prehook(self._raise)  # a hook of a tensor only sees true gradients
        return self._see(self.head(self._see(self.pool(out)).flatten(1)))

    def _see(self, tensor: Tensor) -> Tensor:
        self.trace.made.append(weakref.ref(tensor))
        self.trace.made.append(weakref.ref(tensor.untyped_storage()))
        if tensor.grad_fn is not None:
            mark = Mark()  # a node takes no weak references, but keeps what it is given
            tensor.grad_fn.metadata["mark"] = mark  # type: ignore[index]
            self.trace.made.append(weakref.ref(mark))
        return tensor

    @staticmethod
    def _raise(c: Tensor) -> Tensor:
        raise Trouble

    def alive(self) -> int:
        """How many of what was made still live."""
        assert len(self.trace.made) >= 20
        return sum(made() is not None for made in self.trace.made)


@dataclass(frozen=True)
class Fails(LinearRule):
    """A rule that raises once relevance arrives."""

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        raise Trouble


RULES: dict[str, Any] = {
    "lrp0": "lrp0",
    "epsilon_gamma": "epsilon_gamma",
    "alpha2_beta1": "alpha2_beta1",
    "box": Rules.preset("epsilon_gamma_box", low=-4.0, high=4.0),
    "flat everywhere": "flat",
    "last": Rules.preset("epsilon_gamma").last(Epsilon(0.5)),
}

CALLS: dict[str, Callable[[LRP, Tensor], Any]] = {
    "attribute": lambda lrp, x: lrp.attribute(x, 1),
    "delta": lambda lrp, x: lrp.attribute(x, 1, return_convergence_delta=True),
    "layers": lambda lrp, x: lrp.attribute_layers(x, ["stem", "norm", "body", "head"], 1),
    "targets": lambda lrp, x: lrp.attribute_targets(x, [0, 1, 2]),
    "condition": lambda lrp, x: lrp.attribute(x, 1, condition={"stem": [1], "body": [0]}),
    "report": lambda lrp, x: lrp.report(x, 1),
    "plan": lambda lrp, x: lrp.rules.plan(lrp.model, x, 1),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("call", CALLS)
def test_activations_die_with_the_call(call: str, rules: str) -> None:
    model, x = Traced(), random(2, 2, 6, 6)
    kept = CALLS[call](LRP(model, RULES[rules]), x)
    assert model.alive() == 0
    assert kept is not None


@pytest.mark.parametrize("method", [GradientXInput, DeepTaylor])
@pytest.mark.filterwarnings("ignore::relprop.errors.DeepTaylorWarning")
def test_activations_of_other_methods_die_with_the_call(method: Any) -> None:
    model, x = Traced(), random(2, 2, 6, 6)
    kept = method(model).attribute(x, 1)
    assert model.alive() == 0
    assert kept is not None


def test_activations_die_with_a_connected_relevance() -> None:
    """With `create_graph` they live as long as the relevance, and no longer."""
    model, x = Traced(), random(2, 2, 6, 6)
    relevance = LRP(model).attribute(x, 1, create_graph=True)
    assert model.alive() > 0
    relevance.square().sum().backward()
    del relevance
    assert model.alive() == 0


def test_activations_die_with_what_an_attached_block_made() -> None:
    model, x = Traced(), random(2, 2, 6, 6).requires_grad_()
    with Rules.preset("epsilon_gamma").attach(model) as attached:
        out = model(x * 1.0)
    (c,) = torch.autograd.grad(out[:, 1].sum(), x, retain_graph=True)
    assert model.alive() > 0
    del out
    assert model.alive() == 0
    attached.finish()
    assert c is not None


@pytest.mark.parametrize("call", [call for call in CALLS if call != "plan"])
@pytest.mark.parametrize("where", ["forward", "backward", "rule"])
def test_activations_die_with_an_exception(where: str, call: str) -> None:
    model, x = Traced(), random(2, 2, 6, 6)
    lrp = LRP(model, Rules.preset("epsilon_gamma").set("stem", Fails()) if where == "rule" else "epsilon_gamma")
    model.broken = where
    caught = False
    try:
        CALLS[call](lrp, x)
    except Trouble:
        caught = True
    assert caught
    assert model.alive() == 0


@pytest.mark.slow
def test_repeated_calls_leave_no_tensors() -> None:
    """Fifty rounds hold as many tensors and storages as two did, with the collector off."""
    model, x = Traced(), random(2, 2, 6, 6)
    explainers = [LRP(model, rules, cache_weights=cached) for rules in RULES.values() for cached in (False, True)]

    def round_() -> int:
        for lrp in explainers:
            lrp.attribute(x, 1)
        LRP(model, "zplus").report(x, 1)
        LRP(model).attribute_layers(x, ["stem", "body"], 1)
        model.trace.made.clear()
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    round_()
    settled = round_()
    counts = [round_() for _ in range(50)]
    assert counts == [settled] * 50


def test_a_relevance_map_holds_nothing_but_itself() -> None:
    model, x = Traced(), random(2, 2, 6, 6)
    relevance = LRP(model).attribute(x.requires_grad_(), 1)
    assert relevance.grad_fn is None and not relevance.requires_grad
    assert relevance.untyped_storage().nbytes() == relevance.numel() * relevance.element_size()
    assert relevance.data_ptr() != x.data_ptr()


def test_an_explainer_does_not_hold_on_to_inputs() -> None:
    model = Traced()
    lrp = LRP(model, "epsilon_gamma", cache_weights=True)
    x = random(2, 2, 6, 6)
    seen = weakref.ref(x)
    lrp.attribute(x, 1)
    lrp.report(x, 1)
    del x
    assert seen() is None
