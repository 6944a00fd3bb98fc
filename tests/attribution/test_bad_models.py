"""Bad models, layers and conditions: every error says what was wrong, what was expected and what to do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    DeepTaylor,
    Gradient,
    GradientXInput,
    InputError,
    InputTypeError,
    ModelError,
    RelpropError,
    Rules,
    TargetTypeError,
)
from tests.checks import nothing_left, refuses
from tests.models import Wrapped, images, mlp, residual, settle, vectors
from tests.networks import zoo

# ------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("method", [LRP, DeepTaylor, Gradient, GradientXInput])
@pytest.mark.parametrize(
    ("model", "word"),
    [(lambda x: x, "function"), (nn.ReLU, "the class ReLU"), (None, "NoneType"), ("resnet18", "str")],
    ids=["function", "class", "none", "string"],
)
def test_no_module(method: Any, model: Any, word: str) -> None:
    with pytest.raises(ModelError, match=r"instance of torch\.nn\.Module") as caught:
        method(model)
    assert isinstance(caught.value, TypeError)
    assert word in str(caught.value)


def test_plan_and_attach_want_a_module_too() -> None:
    with pytest.raises(ModelError, match=r"instance of torch\.nn\.Module, got the class ReLU"):
        Rules().plan(nn.ReLU, vectors())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"instance of torch\.nn\.Module, got the class ReLU"):
        Rules().attach(nn.ReLU)  # type: ignore[arg-type]


@pytest.mark.parametrize("returned", [None, "x", 3.0, [], {}, {"loss": 1.0}, (None, 2)], ids=repr)
def test_a_model_that_returns_no_tensor(returned: Any) -> None:
    model = Wrapped(mlp(), lambda out: returned)
    with refuses(model, ModelError, TypeError, type(returned).__name__, "no tensor", "callable target"):
        LRP(model).attribute(vectors(), 0)


def test_a_model_that_returns_no_tensor_with_a_callable() -> None:
    model = Wrapped(mlp(), lambda out: "x")
    with refuses(model, TargetTypeError, TypeError, "callable target", "str"):
        LRP(model).attribute(vectors(), lambda out: out)


def test_an_error_of_the_model_itself_comes_through() -> None:
    class Own(Exception):
        pass

    def wrap(out: Tensor) -> Tensor:
        raise Own("mine")

    model = Wrapped(residual(), wrap)
    before = zoo.fingerprint(model)
    for ask in (LRP(model).attribute, LRP(model).report, partial(Rules().plan, model)):
        with pytest.raises(Own, match="mine"):
            ask(images(), 0)
    nothing_left(model, before)


def test_an_error_in_the_backward_leaves_nothing() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *c: Tensor) -> Tensor:
            raise ZeroDivisionError("in the backward")

    model = Wrapped(residual(), Broken.apply)
    before = zoo.fingerprint(model)
    with pytest.warns(UserWarning, match="Broken"), pytest.raises(ZeroDivisionError, match="in the backward"):
        LRP(model).attribute(images(), 0)
    nothing_left(model, before)


# ---------------------------------------------------------------------------------------- layers, condition


def test_layers_that_are_not_there() -> None:
    model, x = residual(), images()
    for ask in (
        lambda: LRP(model).attribute_layers(x, "steem", 0),
        lambda: LRP(model).attribute_layers(x, ["head", "steem"], 0),
        lambda: LRP(model).attribute(x, 0, condition={"steem": [0]}),
    ):
        with refuses(model, InputError, ValueError, "Residual has no module 'steem'", "Did you mean 'stem'"):
            ask()
    for layers in ([model.stem], model.stem):
        with refuses(model, InputTypeError, TypeError, "by their names", "Conv2d"):
            LRP(model).attribute_layers(x, layers, 0)  # type: ignore[arg-type]


class Constant(nn.Module):
    """A layer on the input and one on a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.prompt = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.prompt(torch.ones(1, 2, dtype=x.dtype))
        return out


def test_a_layer_that_was_not_called_or_that_does_not_see_the_input() -> None:
    model = residual()
    model.spare = nn.Linear(2, 2, dtype=torch.float64)
    with refuses(model, InputError, ValueError, "'spare'", "was not called"):
        LRP(model).attribute_layers(images(), "spare", 0)
    constant = settle(Constant())
    with refuses(constant, InputError, ValueError, "output of module 'prompt'", "does not depend on the input"):
        LRP(constant).attribute_layers(vectors(), ["prompt", "layer"], 0)


def test_a_condition_on_a_module_that_is_not_called() -> None:
    # As with attribute_layers: without a word, the map would be that of no condition.
    model = residual()
    model.spare = nn.Linear(2, 2, dtype=torch.float64)
    with refuses(model, InputError, ValueError, "'spare'", "not called"):
        LRP(model).attribute(images(), 0, condition={"spare": [0]})


def test_a_condition_that_cannot_be() -> None:
    model, x = residual(), images()
    with refuses(model, InputTypeError, TypeError, "condition must map", "list"):
        LRP(model).attribute(x, 0, condition=["stem"])  # type: ignore[arg-type]
    with refuses(model, RelpropError, ValueError, "condition at 'stem'", "[4, -5]", "4 units"):
        LRP(model).attribute(x, 0, condition={"stem": [0, 4, -5]})


@pytest.mark.parametrize("units", ["ab", ["a"], [0.5], [True, False], None], ids=repr)
def test_a_condition_on_units_that_are_no_integers(units: Any) -> None:
    model = residual()
    with refuses(model, RelpropError, TypeError, "condition", "'stem'", "integer"):
        LRP(model).attribute(images(), 0, condition={"stem": units})


def test_no_delta_for_what_does_not_sum_to_the_output() -> None:
    model = mlp()
    with refuses(model, InputError, ValueError, "Gradient", "no convergence delta", "GradientXInput"):
        Gradient(model).attribute(vectors(), 0, return_convergence_delta=True)
    with refuses(model, InputError, ValueError, "Gradient", "no report", "GradientXInput"):
        Gradient(model).report(vectors(), 0)
    with pytest.raises(InputError, match=r"form must be one of .*'squared'.*got 'cubed'"):
        Gradient(model, form="cubed")  # type: ignore[arg-type]
