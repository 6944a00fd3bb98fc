"""Two hundred calls of every kind need the memory of one, and leave no state, hook, graph or tensor behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, ModelError, Rules
from relprop.propagation.call.call import Call
from relprop.propagation.call.linear_call import LinearCall
from relprop.propagation.run.forward import Forward
from relprop.propagation.run.function_mode import RelevanceMode
from relprop.propagation.run.module_hooks import ModuleHooks
from tests.models import settle
from tests.unrolled import random

pytestmark = pytest.mark.filterwarnings("ignore:register_hook:relprop.UncoveredOperationWarning")


class Trouble(Exception):
    """What goes wrong."""


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to the state of every call: the call, its hooks, its mode, its forward pass, its layers."""
    made: list[weakref.ref[Any]] = []
    for kind in (Call, ModuleHooks, RelevanceMode, Forward, LinearCall):

        def init(self: Any, *args: Any, __init: Any = kind.__init__, **kwargs: Any) -> None:
            __init(self, *args, **kwargs)
            made.append(weakref.ref(self))

        monkeypatch.setattr(kind, "__init__", init)
    return made


@dataclass
class Batch:
    x: Tensor
    name: str = ""


class Net(nn.Module):
    """[N, 2, S, S] to [N, 3]; with hooks of gradients, a closure over an activation and an attribute it assigns.

    What it made is kept by the class, since what a module holds is put back.
    """

    made: ClassVar[list[weakref.ref[Any]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)
        settle(self)
        self.fails = ""

    def forward(self, x: Tensor | Batch) -> Tensor:
        z = self.stem(x.x if isinstance(x, Batch) else x)
        h = self.norm(z).relu_()
        self.last = h
        if h.requires_grad:
            h.register_hook(lambda c: c + 0 * z)
        gate = torch.sigmoid(h.mean((2, 3), keepdim=True))
        out = self.body(h * gate) + h
        for tensor in (z, h, gate, out):
            Net.made.extend([weakref.ref(tensor), weakref.ref(tensor.untyped_storage())])
        if self.fails == "forward":
            raise Trouble
        if self.fails == "backward" and out.grad_fn is not None:
            out.grad_fn.register_prehook(self._fail)
        if self.fails == "refused":
            torch.autograd.grad(out.sum(), h, retain_graph=True)
        return self.head(out.mean((2, 3)))  # type: ignore[no-any-return]

    @staticmethod
    def _fail(c: Any) -> Any:
        raise Trouble


def _connected(model: Net, x: Tensor) -> None:
    relevance = LRP(model).attribute(x, 1, create_graph=True)
    relevance.square().sum().backward()
    model.zero_grad()


def _attached(model: Net, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    with Rules.preset("epsilon_gamma").attach(model) as attached:
        out = model(leaf)
    torch.autograd.grad(out[:, 1].sum(), leaf, retain_graph=True)
    attached.finish()
    torch.autograd.grad(out[:, 1].sum(), leaf)


def _broken(where: str, kind: type[Exception], ask: Callable[[Net, Tensor], Any]) -> Callable[[Net, Tensor], None]:
    def run(model: Net, x: Tensor) -> None:
        model.fails = where
        caught = False
        try:
            ask(model, x)
        except kind:
            caught = True
        model.fails = ""
        model.zero_grad()
        assert caught

    return run


CALLS: dict[str, Callable[[Net, Tensor], Any]] = {
    "attribute": lambda model, x: LRP(model).attribute(x, 1),
    "box": lambda model, x: LRP(model, Rules.preset("epsilon_gamma_box", low=-4.0, high=4.0)).attribute(x, 1),
    "report": lambda model, x: LRP(model).report(x, 1),
    "plan": lambda model, x: Rules().plan(model, x, 1),
    "layers and condition": lambda model, x: LRP(model).attribute_layers(
        x, ["stem", "body"], 1, condition={"stem": [1]}
    ),
    "targets": lambda model, x: LRP(model).attribute_targets(x, [0, 1]),
    "container": lambda model, x: LRP(model).attribute(Batch(x), 1),
    "last": lambda model, x: LRP(model, Rules.preset("zplus").last("epsilon")).attribute(x, 1),
    "create_graph": _connected,
    "attach": _attached,
    "error in the forward": _broken("forward", Trouble, lambda model, x: LRP(model).attribute(x, 1)),
    "error in the backward": _broken("backward", Trouble, lambda model, x: LRP(model).attribute(x, 1)),
    "error in the backward of a loss": _broken("backward", Trouble, _connected),
    "error in a report": _broken("backward", Trouble, lambda model, x: LRP(model).report(x, 1)),
    "error in attach": _broken("forward", Trouble, _attached),
    "error in the backward of attach": _broken("backward", Trouble, _attached),
    "refused": _broken("refused", ModelError, lambda model, x: LRP(model).attribute(x, 1)),
    "bad target": _broken("", IndexError, lambda model, x: LRP(model).attribute(x, 7)),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_a_call_survives_it(name: str, states: list[weakref.ref[Any]]) -> None:
    model, x = Net(), random(2, 2, 6, 6)
    model.made.clear()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    kept = CALLS[name](model, x)
    assert len(states) >= 3 and len(model.made) >= 6
    assert not [state() for state in states if state() is not None]
    assert not [made() for made in model.made if made() is not None]
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert not torch.overrides._get_current_function_mode_stack()
    del kept


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_many_calls_hold_what_two_did(name: str) -> None:
    """Tensors, and whatever else Python's collector would have to know of; two hundred of the commonest."""
    many = 200 if name in ("attribute", "report", "create_graph", "attach") else 40
    model, x = Net(), random(2, 2, 6, 6)

    def calls(number: int) -> tuple[int, int]:
        for _ in range(number):
            CALLS[name](model, x)
            model.made.clear()
        known = gc.get_objects()
        return sum(issubclass(type(one), Tensor) for one in known), len(known)

    calls(3)
    tensors, objects = calls(2)
    after_tensors, after_objects = calls(many)
    assert after_tensors == tensors
    assert after_objects - objects < many / 2, "fewer than one object for every second call"


@pytest.mark.slow
def test_the_process_does_not_grow() -> None:
    """More than a megabyte of activations in each of 200 calls."""
    resource = pytest.importorskip("resource")
    model, x = Net(), random(2, 2, 48, 48)

    def grown(number: int) -> float:
        for position in range(number):
            name = ("attribute", "report", "create_graph", "error in the backward", "attach")[position % 5]
            CALLS[name](model, x)
            model.made.clear()
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024  # in MB on Linux

    before = grown(10)
    assert grown(200) - before < 40
