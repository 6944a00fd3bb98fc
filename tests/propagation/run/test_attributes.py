"""What a model keeps of its own in Python is put back after every call: attributes, and what containers hold."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, DeepTaylor, Gradient, GradientXInput
from tests.models import settle
from tests.unrolled import random, weigh


class Remembers(nn.Module):
    """Keeps what it computes in every way people do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        settle(self)
        self.count, self.flag, self.last, self.plain = 0, False, None, torch.zeros(4, dtype=torch.float64)
        self.memory: list[Any] = ["first"]
        self.by_name: dict[str, Any] = {"a": 1, "b": 2}
        self.ordered: OrderedDict[str, Any] = OrderedDict(a=1, b=2)
        self.lists: defaultdict[str, list[Any]] = defaultdict(list)
        self.counts: Counter[str] = Counter("ab")
        self.seen: set[Any] = {1}
        self.recent: deque[Any] = deque([1, 2], maxlen=2)
        self.forgotten = "here"
        self.tensors = [torch.zeros(4, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        self.count += 1
        self.flag, self.last = True, h
        self.plain.add_(x.detach()[0])
        self.tensors[0].add_(1.0)
        self.memory.append(h)
        self.memory[0] = "changed"
        self.by_name["h"] = h
        del self.by_name["a"]
        self.ordered.move_to_end("a")
        self.ordered["c"] = h
        self.lists["h"].append(h)
        self.counts.update("a")
        self.seen.add(h)
        self.recent.append(h)
        self.made = h
        self.extra = nn.Linear(2, 2)
        self.register_buffer("late", torch.zeros(2))
        if hasattr(self, "forgotten"):
            del self.forgotten
        self.eval()
        return self.head(h * (1 + 0.1 * self.plain.sum()))  # type: ignore[no-any-return]


def state(model: Any) -> dict[str, Any]:
    """All attributes, with copies of what can be changed."""
    found: dict[str, Any] = {"attributes": sorted(vars(model)), "training": model.training}
    for name, value in vars(model).items():
        if isinstance(value, Tensor):
            found[name] = value, value.tolist()
        elif isinstance(value, dict):
            found[name] = value, list(value.items())
        elif isinstance(value, (list, deque)):
            found[name] = value, [item.tolist() if isinstance(item, Tensor) else item for item in value]
        elif isinstance(value, set):
            found[name] = value, sorted(value, key=str)
        else:
            found[name] = value
    return found


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def alike(a: Any, b: Any) -> bool:
        if isinstance(a, tuple):
            return a[0] is b[0] and a[1] == b[1]
        return a is b or (isinstance(a, (int, str, list)) and a == b)

    return before.keys() == after.keys() and all(alike(value, after[name]) for name, value in before.items())


def _failing(model: Any, x: Tensor) -> None:
    with pytest.raises(ZeroDivisionError):
        LRP(model).attribute(x, lambda _: 1 / 0)


CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "lrp": lambda model, x: LRP(model).attribute(x, weigh),
    "create_graph": lambda model, x: LRP(model).attribute(x, weigh, create_graph=True),
    "report": lambda model, x: LRP(model).report(x, weigh),
    "layers": lambda model, x: LRP(model).attribute_layers(x, "layer", weigh),
    "plan": lambda model, x: LRP(model).rules.plan(model, x, weigh),
    "gradient": lambda model, x: Gradient(model).attribute(x, weigh),
    "gradient x input": lambda model, x: GradientXInput(model).attribute(x, weigh),
    "deep taylor": lambda model, x: DeepTaylor(model).attribute(x, weigh),
    "an error": lambda model, x: _failing(model, x),
}


@pytest.mark.filterwarnings("ignore::relprop.errors.DeepTaylorWarning")
@pytest.mark.parametrize("call", CALLS)
def test_attributes_and_containers_are_what_they_were(call: str) -> None:
    model, x = Remembers().train(), random(3, 4)
    before = state(model)
    for _ in range(2):
        CALLS[call](model, x)
        assert same(before, state(model))


def test_within_a_call_the_model_sees_what_it_wrote() -> None:
    model, x = Remembers().train(), random(3, 4)
    found, value = [], []

    def watched(output: Tensor) -> Tensor:
        found.append((model.count, len(model.memory), model.flag))
        value.append(output.detach().clone())
        return weigh(output)

    LRP(model).attribute(x, watched)
    assert found == [(1, 2, True)]
    with torch.no_grad():
        assert torch.equal(value[0], model(x))
    assert model.count == 1 and torch.equal(model.plain, x[0])


class Counts(nn.Module):
    """Writes what threads can write at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.count, self.memory = nn.Linear(4, 3), 0, [0]
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.memory.append(self.count)
        return self.layer(x)  # type: ignore[no-any-return]


def test_several_threads() -> None:
    """The state from before the first of them is that after the last."""
    model, x = Counts(), random(3, 4)
    expected = LRP(model, "lrp0").attribute(x, weigh)
    found: list[Tensor] = []

    def explain() -> None:
        found.extend(LRP(model, "lrp0").attribute(x, weigh) for _ in range(5))

    threads = [threading.Thread(target=explain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and all(torch.equal(map_, expected) for map_ in found)
    assert model.count == 0 and model.memory == [0]
