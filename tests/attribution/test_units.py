"""A hidden unit as the target: against the network cut off at the unit, for every method and every way to ask."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from relprop import (
    LRP,
    DeepTaylor,
    ExcitationBackprop,
    Gradient,
    GradientXInput,
    GuidedBackprop,
    Input,
    InputError,
    Method,
    ModelError,
    Random,
    RelpropError,
    Rules,
    Sensitivity,
    TargetError,
    TargetIndexError,
    TargetTypeError,
    Unit,
)
from relprop.rules import Flat, Mask, Zero
from tests.checks import refuses
from tests.models import Residual, close, gradient, images, mlp, residual, settle, vectors
from tests.networks import zoo

# Every method ----------------------------------------------------------------------------------------


# --------------------------------------------------------------------------- what a unit is, by plain indexing

FORMS: dict[str, tuple[Unit, Callable[[Tensor], Tensor]]] = {
    "tuple": (Unit("branch.0", (1, 2, 3)), lambda h: h[:, 1, 2, 3]),
    "negative": (Unit("branch.0", (-1, 0, -2)), lambda h: h[:, 3, 0, 4]),
    "numpy": (Unit("branch.0", (np.int64(1), 0, np.int32(2))), lambda h: h[:, 1, 0, 2]),
    "each": (Unit("branch.0", [(1, 2, 3), (0, 5, 5)]), lambda h: torch.stack([h[0, 1, 2, 3], h[1, 0, 5, 5]])),
    "sum": (Unit("branch.0", 2, reduce="sum"), lambda h: h[:, 2].sum((1, 2))),
    "mean": (Unit("branch.0", 2, reduce="mean"), lambda h: h[:, 2].mean((1, 2))),
    "max": (Unit("branch.0", 2, reduce="max"), lambda h: h[:, 2].amax((1, 2))),
    "row": (Unit("branch.0", (2, 1), reduce="sum"), lambda h: h[:, 2, 1].sum(1)),
    "each channel": (Unit("branch.0", [2, 0], "sum"), lambda h: torch.stack([h[0, 2].sum(), h[1, 0].sum()])),
    "tensor of channels": (Unit("branch.0", torch.tensor([2, 0]), "mean"), lambda h: h[[0, 1], [2, 0]].mean((1, 2))),
    "the whole layer": (Unit("branch.0", reduce="sum"), lambda h: h.sum((1, 2, 3))),
    "nothing to reduce": (Unit("branch.0", (1, 2, 3), "sum"), lambda h: h[:, 1, 2, 3]),
    "callable": (Unit("branch.0", lambda h: h[:, 1].sum((1, 2)) - h[:, 0, 0, 0]),
                 lambda h: h[:, 1].sum((1, 2)) - h[:, 0, 0, 0]),
}  # fmt: skip


def cut(model: Residual, pick: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The network up to the convolution of the branch."""

    def run(x: Tensor) -> Tensor:
        convolution = model.branch[0]
        assert isinstance(convolution, nn.Conv2d)
        h: Tensor = convolution(F.relu(model.norm(model.stem(x))))
        return pick(h)

    return run


@pytest.mark.parametrize("form", list(FORMS))
def test_forms(form: str) -> None:
    unit, pick = FORMS[form]
    model, x = residual(), images()
    expected = gradient(cut(model, pick), x)
    close(Gradient(model).attribute(x, unit), expected)
    found, delta = LRP(model, "lrp0").attribute(x, unit, return_convergence_delta=True)
    close(found, x * expected)
    close(delta, cut(model, pick)(x).detach() - (x * expected).flatten(1).sum(1))
    report = LRP(model, "lrp0").report(x, unit)
    report.check(1e-9)
    assert {entry.name for entry in report.entries} <= {"", "stem", "norm", "act", "branch.0"}


class Cut(nn.Module):
    """The network cut off behind the convolution of the branch, with the same names below it."""

    def __init__(self) -> None:
        super().__init__()
        whole = residual()
        self.stem, self.norm, self.act, self.branch = whole.stem, whole.norm, whole.act, whole.branch[:1]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(self.act(self.norm(self.stem(x))))
        return out


BOX: dict[str, Any] = {"low": -4.0, "high": 4.0}
METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "gradient": Gradient,
    "sensitivity": Sensitivity,
    "gradient_x_input": GradientXInput,
    "guided_backprop": GuidedBackprop,
    "excitation_backprop": ExcitationBackprop,
    "input": Input,
    "random": Random,
    "default": LRP,
    "box": lambda model: LRP(model, Rules.preset("epsilon_gamma_box", **BOX)),
    "flat": lambda model: LRP(model, "flat"),
    "last": lambda model: LRP(model, Rules.preset("epsilon_plus").last(Zero())),
    "last is flat": lambda model: LRP(model, Rules.preset("epsilon_plus").last(Flat())),
    "deep_taylor": DeepTaylor,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::relprop.DeepTaylorWarning")
@pytest.mark.parametrize("method", list(METHODS))
def test_nothing_above_takes_part(method: str) -> None:
    """The map of a unit is that of the network which ends there, whatever lies above; ``last`` is below the unit."""
    whole, part, x = residual(), settle(Cut()), images()
    part.load_state_dict({name: value for name, value in whole.state_dict().items() if name in part.state_dict()})
    make = METHODS[method]
    for index in ((1, 2, 3), (3, 0, 5)):
        close(make(whole).attribute(x, Unit("branch.0", index)), make(part).attribute(x, index))


def test_negative_units_receive_their_relevance() -> None:
    """A unit below zero is explained, though above it a ReLU alone consumes the layer, where gamma is cut short."""
    model, x = mlp(), vectors().abs()
    value = model[:3](x).detach()
    unit = int(value[0].argmin())
    assert value[0, unit] < 0
    gamma = Rules().set(nn.Linear, "gamma")
    found, delta = LRP(model, gamma).attribute(x, Unit("2", unit), return_convergence_delta=True)
    close(found, LRP(model[:3], gamma).attribute(x, unit))
    assert bool(found[0].any())
    assert torch.allclose(found.sum(1) + delta, value[:, unit])
    close(LRP(model, gamma).attribute_targets(x, [1, Unit("2", unit)])[1], found)


def test_what_a_callable_computes_is_explained_by_the_rules() -> None:
    """As a callable target of the model's output is: a product shares its relevance."""
    model, x = mlp(bias=False), vectors()
    unit = Unit("0", lambda h: h[:, 1] * h[:, 2])
    found = LRP(model, "lrp0").attribute(x, unit)
    close(found, LRP(model[:1], "lrp0").attribute(x, lambda h: h[:, 1] * h[:, 2]))
    close(found.sum(1), unit.pick(model[0](x), 2).detach())


# ------------------------------------------------------------------------------------------ every way to ask


def test_several_targets_from_one_forward() -> None:
    model, x = residual(), images()
    targets: list[Any] = [2, Unit("branch.0", (1, 2, 3)), Unit("head", 1), Unit("norm", 0, "sum"), 0]
    for explainer in (LRP(model), GradientXInput(model)):
        rows = explainer.attribute_targets(x, targets)
        for row, target in zip(rows, targets, strict=True):
            close(row, explainer.attribute(x, target))
    close(LRP(model).attribute(x, Unit("head", 1)), LRP(model).attribute(x, 1))
    close(LRP(model).attribute(x, Unit("", 1)), LRP(model).attribute(x, 1))


def test_layers_below_and_above() -> None:
    model, x = residual(), images()
    maps = GradientXInput(model).attribute_layers(x, ["act", "branch.0", "head"], Unit("branch.0", (1, 2, 3)))
    h = F.relu(model.norm(model.stem(x))).detach()
    close(maps["act"], h * gradient(lambda leaf: model.branch[0](leaf)[:, 1, 2, 3], h))
    own = torch.zeros_like(maps["branch.0"])
    own[:, 1, 2, 3] = model.branch[0](h)[:, 1, 2, 3].detach()
    close(maps["branch.0"], own)
    assert not maps["head"].any()


def test_conditions_below_the_unit() -> None:
    model, x = residual(), images()
    explainer, unit = GradientXInput(model), Unit("branch.0", (1, 2, 3))
    parts = [explainer.attribute(x, unit, condition={"act": [channel]}) for channel in range(4)]
    close(sum(parts, torch.zeros_like(x)), explainer.attribute(x, unit))
    close(explainer.attribute(x, unit, condition={"branch.0": [1]}), explainer.attribute(x, unit))
    assert not explainer.attribute(x, unit, condition={"branch.0": [0, 2, 3]}).any()


def test_a_plan_ends_at_the_unit() -> None:
    model, x = residual(), images()
    plan = Rules.preset("epsilon_gamma").last(Flat()).plan(model, x, Unit("branch.0", (1, 2, 3)))
    assert [(row.name, row.operation) for row in plan.rows] == [
        ("stem", "conv2d"), ("norm", "batch_norm"), ("act", "relu"), ("branch.0", "conv2d"),
    ]  # fmt: skip
    assert plan.rows[-1].rule == repr(Flat())
    assert [module.name for module in plan.modules] == ["", "stem", "norm", "act", "branch", "branch.0"]


def test_entries_for_what_lies_above_are_no_error() -> None:
    model, x = residual(), images()
    rules = Rules().set("head", "epsilon").set("branch.2", Mask([0])).set("pool", "average_pool")
    found = LRP(model, rules).attribute(x, Unit("branch.0", (1, 2, 3)))
    close(found, LRP(model, "lrp0").attribute(x, Unit("branch.0", (1, 2, 3))))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.weight = nn.Linear(4, 3), nn.Parameter(torch.empty(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.inner(x), self.weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer = Outer()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.outer(x)
            return out

    nested, x = settle(Model()), vectors()
    found = LRP(nested, Rules().set("outer", "epsilon")).attribute(x, Unit("outer.inner", 1))
    close(found, x * nested.outer.inner.weight[1].detach())


def test_a_filter_at_the_layer_does_not_act_on_the_selection() -> None:
    model, x = residual(), images()
    masked = Rules().set("branch.0", Mask([1]))
    close(
        LRP(model, masked).attribute(x, Unit("branch.0", (1, 2, 3))),
        LRP(model, "lrp0").attribute(x, Unit("branch.0", (1, 2, 3))),
    )
    assert not LRP(model, masked).attribute(x, Unit("branch.0", (0, 2, 3))).any()


class Unseen(Function):
    """An operation that no rule covers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


def test_what_is_above_is_not_named_and_not_refused() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Unseen.apply(self.above(self.below(x)))
            return out

    model, x = settle(Strange()), vectors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = LRP(model, "lrp0", strict=True).attribute(x, Unit("below", 1))
    close(found, x * model.below.weight[1].detach())
    with pytest.raises(RelpropError, match="UnseenBackward"):
        LRP(model, "lrp0", strict=True).attribute(x, 1)


def test_the_unit_is_read_before_it_is_written_over() -> None:
    class Overwriting(nn.Module):
        def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.layer, self.out = nn.Linear(4, 3), nn.Linear(3, 2)
            self.act = act

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            self.act(h)
            h[:, 1] = 0.0
            out: Tensor = self.out(h)
            return out

    for act in (torch.relu_, lambda h: h.mul_(0.0), lambda h: h.copy_(torch.ones_like(h)), lambda h: h.zero_()):
        model, x = settle(Overwriting(act)), vectors()
        for unit in (Unit("layer", 1), Unit("layer", lambda h: h[:, 1])):
            close(GradientXInput(model).attribute(x, unit), x * model.layer.weight[1].detach())
            found, delta = LRP(model, "lrp0").attribute(x, unit, return_convergence_delta=True)
            close(found.sum(1) + delta, model.layer(x)[:, 1].detach())


def test_statistics_above_are_left_alone_too() -> None:
    model, x = residual(), images()
    model.branch[1].train()
    before = zoo.fingerprint(model)
    with pytest.warns(UserWarning, match="training mode"):
        LRP(model).attribute(x, Unit("act", (0, 1, 1)))
    assert zoo.fingerprint(model) == before


def test_token_ids() -> None:
    class Sentence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.hidden, self.out = nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.out(self.hidden(self.embedding(ids)).relu().mean(1))
            return out

    model, ids = settle(Sentence()), torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = LRP(model, "lrp0").attribute(ids, Unit("hidden", (2, 1)))
    expected = torch.zeros(2, 3, dtype=torch.float64)
    expected[:, 2] = model.embedding(ids[:, 2]) @ model.hidden.weight[1]
    close(found, expected.detach())


def test_a_loss_on_the_map_of_a_unit() -> None:
    model, x = mlp(), vectors()
    found = LRP(model, "lrp0").attribute(x, Unit("2", 1), create_graph=True)
    weights = [model[0].weight, model[2].weight]
    z = model[0](x)
    expected = x * ((model[2].weight[1] * (z > 0)) @ model[0].weight)
    mine, theirs = (torch.autograd.grad(m.square().sum(), weights) for m in (found, expected))
    for one, other in zip(mine, theirs, strict=True):
        close(one, other)


# Units of modules that are called again, and units that do not exist ---------------------------------


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
