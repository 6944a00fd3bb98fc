"""Units of modules that are called again, and units that do not exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    Gradient,
    GradientXInput,
    InputError,
    ModelError,
    RelpropError,
    TargetError,
    TargetIndexError,
    TargetTypeError,
    Unit,
)
from tests.checks import refuses
from tests.models import close, gradient, images, residual, settle, vectors

# ------------------------------------------------------------------------------ modules that are called again


class Reused(nn.Module):
    """One linear layer and one ReLU, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu, self.never = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.relu(self.layer(x))
        return x


@pytest.mark.parametrize("call", [0, 1, 2])
def test_which_call(call: int) -> None:
    model, x = settle(Reused()), vectors()

    def until(leaf: Tensor) -> Tensor:
        for _ in range(call):
            leaf = model.layer(leaf).relu()
        out: Tensor = model.layer(leaf)
        return out[:, 2]

    close(GradientXInput(model).attribute(x, Unit("layer", 2, call=call)), x * gradient(until, x))
    rows = GradientXInput(model).attribute_targets(x, [Unit("layer", 2, call=2), Unit("layer", 2, call=call)])
    close(rows[1], x * gradient(until, x))


# ------------------------------------------------------------------------------ inputs without a common batch


class Graph(nn.Module):
    """One output for a whole set of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.out(self.node(graph["x"]).relu().sum(0, keepdim=True))
        return out


def test_units_of_a_structure_are_one_for_every_row() -> None:
    model, x = settle(Graph()), vectors(3)
    graph = {"x": x, "edges": torch.tensor([[0, 1], [1, 2]])}
    rows = model.node.weight.detach()
    found, delta = LRP(model, "lrp0").attribute(graph, Unit("node", 2), return_convergence_delta=True)
    close(found["x"], x * rows[2])
    close(delta, 3 * model.node.bias[2].detach().reshape(1))
    assert found["edges"] is None
    close(GradientXInput(model).attribute(graph, Unit("node", [1, 0, 4]))["x"], x * rows[[1, 0, 4]])
    one = Unit("node", lambda h: h[1, 2].reshape(1))
    expected = torch.zeros_like(x)
    expected[1] = x[1] * rows[2]
    close(GradientXInput(model).attribute(graph, one)["x"], expected)
    close(LRP(model).explained(graph, one), model.node(x)[1, 2].detach().reshape(1))


# ------------------------------------------------------------------------------------------------ bad input

BAD: dict[str, tuple[Unit, type[RelpropError], type[Exception], tuple[str, ...]]] = {
    "unknown": (Unit("brunch.0", (1, 2, 3)), TargetError, ValueError, ("module 'brunch.0'", "mean 'branch.0'")),
    "channel": (Unit("branch.0", 1), TargetError, ValueError, ("channel", "(2, 4, 6, 6)", "(1, 0, 0)", "reduce='sum'")),
    "short": (Unit("branch.0", (1, 2)), TargetError, ValueError, ("'branch.0'", "(1, 2)", "needs 3")),
    "long": (Unit("head", (1, 2)), TargetError, ValueError, ("'head'", "needs 1")),
    "no index": (Unit("head"), TargetError, ValueError, ("'head'", "must say which")),
    "too large": (Unit("branch.0", (1, 2, 6)), TargetIndexError, IndexError, ("'branch.0'", "6", "out of range")),
    "channel too large": (Unit("branch.0", 4, "sum"), TargetIndexError, IndexError, ("4", "range", "(2, 4, 6, 6)")),
    "too long to reduce": (Unit("head", (1, 2), "sum"), TargetError, ValueError, ("(1, 2)", "needs 1")),
    "of two lengths": (Unit("branch.0", [(1, 2), (1,)], "sum"), TargetError, ValueError, ("(2, 4, 6, 6)",)),
    "too few": (Unit("branch.0", [1], "sum"), TargetError, ValueError, ("1 entries", "2 samples")),
    "word": (Unit("head", "cat"), TargetTypeError, TypeError, ("'head'", "'cat'")),
    "bool": (Unit("branch.0", True, "sum"), TargetTypeError, TypeError, ("True",)),
    "no such call": (Unit("head", 1, call=1), TargetIndexError, IndexError, ("'head'", "1 time", "no call=1")),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_units(case: str) -> None:
    unit, error, built_in, words = BAD[case]
    model, x = residual(), images()
    for ask in (
        lambda: LRP(model).attribute(x, unit),
        lambda: Gradient(model).attribute_targets(x, [1, unit]),
        lambda: LRP(model).report(x, unit),
    ):
        with refuses(model, error, built_in, *words):
            ask()


def test_bad_calls() -> None:
    model, x = settle(Reused()), vectors()
    with refuses(model, TargetError, ValueError, "'layer'", "3 times", "call=0", "call=2"):
        LRP(model).attribute(x, Unit("layer", 2))
    with refuses(model, TargetIndexError, IndexError, "'layer'", "3 times", "no call=3"):
        LRP(model).attribute(x, Unit("layer", 2, call=3))
    with refuses(model, TargetError, ValueError, "'never'", "not called"):
        LRP(model).attribute(x, Unit("never", 2))


def test_bad_construction() -> None:
    for make, error, words in (
        (lambda: Unit(nn.ReLU(), 1), TargetTypeError, "by its name, got ReLU"),  # type: ignore[arg-type]
        (lambda: Unit("a", 1, reduce="median"), TargetError, "one of ('sum', 'mean', 'max')"),  # type: ignore[arg-type]
        (lambda: Unit("a", lambda h: h, reduce="sum"), TargetError, "callable index"),
        (lambda: Unit("a", 1, call=True), TargetTypeError, "call must be an int"),
        (lambda: Unit("a", 1, call=-1), TargetError, "count from 0"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            make()


def test_outputs_that_hold_no_unit() -> None:
    class Odd(nn.Module):
        def __init__(self, made: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.made = made

        def forward(self, x: Tensor) -> Any:
            return self.made(x)

    class Holding(nn.Module):
        def __init__(self, made: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.odd, self.layer = Odd(made), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.odd(x)
            out: Tensor = self.layer(x)
            return out

    for made, error, words in (
        (lambda x: "words", ModelError, ("'odd'", "str", "no tensor")),
        (lambda x: x.detach(), InputError, ("does not depend on the input",)),
        (lambda x: x.mT, TargetError, ("'odd'", "(4, 2)", "2 samples")),
        (lambda x: None, TargetError, ("'odd'", "not called")),
    ):
        model = settle(Holding(made))
        with refuses(model, error, Exception, *words):
            LRP(model).attribute(vectors(), Unit("odd", 1))
    tuples = settle(Holding(lambda x: (None, {"logits": x})))
    with refuses(tuples, ModelError, TypeError, "tuple", "no tensor"):
        LRP(tuples).attribute(vectors(), Unit("odd", 1))
    close(
        Gradient(tuples).attribute(vectors(), Unit("odd", lambda out: out[1]["logits"][:, 1])),
        torch.eye(4).double()[1].expand(2, -1),
    )
