"""Every form of target and of output, against plain gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Attribution, Gradient, GradientXInput, Rules
from relprop.targets import output_tensor, select
from tests.models import Wrapped, close, gradient, images, mlp, residual, settle, vectors

Pick = Callable[[Tensor], Tensor]

# What each form selects from an output [3, 3], in plain indexing.
VECTOR_FORMS: dict[str, tuple[Any, Pick]] = {
    "int": (1, lambda out: out[:, 1]),
    "negative int": (-1, lambda out: out[:, 2]),
    "numpy int64": (np.int64(2), lambda out: out[:, 2]),
    "numpy uint8": (np.uint8(0), lambda out: out[:, 0]),
    "numpy 0-d": (np.array(1), lambda out: out[:, 1]),
    "tensor []": (torch.tensor(1), lambda out: out[:, 1]),
    "tensor [1]": (torch.tensor([2]), lambda out: out[:, 2]),
    "tensor [N]": (torch.tensor([2, 0, -2]), lambda out: torch.stack([out[0, 2], out[1, 0], out[2, 1]])),
    "tensor int32": (torch.tensor([2, 0, 1], dtype=torch.int32), lambda out: out[range(3), [2, 0, 1]]),
    "tensor uint8": (torch.tensor([2, 0, 1], dtype=torch.uint8), lambda out: out[range(3), [2, 0, 1]]),
    "list of ints": ([0, 2, 1], lambda out: out[range(3), [0, 2, 1]]),
    "list of numpy ints": ([np.int64(0), np.int32(2), 1], lambda out: out[range(3), [0, 2, 1]]),
    "array": (np.array([1, 1, 2]), lambda out: out[range(3), [1, 1, 2]]),
    "tuple of one": ((2,), lambda out: out[:, 2]),
    "list of tuples of one": ([(2,), (0,), (0,)], lambda out: out[range(3), [2, 0, 0]]),
    "contrast": (lambda out: out[:, 0] - out[:, 2], lambda out: out[:, 0] - out[:, 2]),
    "sum": (lambda out: out.sum(1), lambda out: out.sum(1)),
    "column": (lambda out: out[:, 1:2], lambda out: out[:, 1]),
    "each its best": (lambda out: out.max(1).values, lambda out: out.max(1).values),
}

# From an output [2, 4, 4, 4].
MAP_FORMS: dict[str, tuple[Any, Pick]] = {
    "tuple": ((1, 2, 3), lambda out: out[:, 1, 2, 3]),
    "negative tuple": ((-1, 0, -2), lambda out: out[:, 3, 0, 2]),
    "tuple with numpy": ((np.int64(1), 0, np.int32(2)), lambda out: out[:, 1, 0, 2]),
    "list of tuples": ([(1, 2, 3), (0, 0, 1)], lambda out: torch.stack([out[0, 1, 2, 3], out[1, 0, 0, 1]])),
    "callable": (lambda out: out[:, 1].sum((1, 2)), lambda out: out[:, 1].sum((1, 2))),
    "callable [N, 1, 1]": (lambda out: out.mean((1, 2, 3), keepdim=True)[:, 0], lambda out: out.mean((1, 2, 3))),
}


def against_gradient(model: nn.Module, x: Tensor, target: Any, pick: Pick) -> None:
    """The gradient, its product with the input and, without a rule that differs from it, LRP-0; and delta."""
    score = lambda leaf: pick(model(leaf))  # noqa: E731
    expected = gradient(score, x)
    close(Gradient(model).attribute(x, target), expected)
    for method in (GradientXInput(model), LRP(model, "lrp0")):
        found, delta = method.attribute(x, target, return_convergence_delta=True)
        close(found, x * expected)
        with torch.no_grad():
            close(delta, score(x) - (x * expected).flatten(1).sum(1))


@pytest.mark.parametrize("form", list(VECTOR_FORMS))
def test_into_outputs_of_one_dimension(form: str) -> None:
    target, pick = VECTOR_FORMS[form]
    against_gradient(mlp(), vectors(3), target, pick)


@pytest.mark.parametrize("form", list(MAP_FORMS))
def test_into_outputs_of_more_dimensions(form: str) -> None:
    target, pick = MAP_FORMS[form]
    model = settle(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3)))
    against_gradient(model, images(), target, pick)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_none_where_there_is_one_output_a_sample(shape: tuple[int, ...]) -> None:
    model = Wrapped(mlp(), lambda out: out[:, 1].reshape(-1, *shape))
    against_gradient(model, vectors(3), None, lambda out: out.reshape(3))


def test_none_where_one_sample_gives_a_number() -> None:
    model = Wrapped(mlp(), lambda out: out[:, 1].sum())
    against_gradient(model, vectors(1), None, lambda out: out.reshape(1))


def test_a_batch_of_one_and_a_list_of_one() -> None:
    for target in ([2], torch.tensor([2]), [(2,)], 2):
        against_gradient(mlp(), vectors(1), target, lambda out: out[:, 2])


# ------------------------------------------------------------------------------------------------ outputs


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass
class Scores:
    temperature: float
    scores: Tensor


class Pair(NamedTuple):
    scores: Tensor
    auxiliary: Tensor


class WithLogits(NamedTuple):
    loss: Tensor
    logits: Tensor


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda out: out,
    "tuple": lambda out: (out, out * 7),
    "list": lambda out: [out, out * 7],
    "tuple with none": lambda out: (None, out),
    "dict with logits": lambda out: {"hidden": out * 7, "logits": out},
    "ordered dict with logits": lambda out: OrderedDict(hidden=out * 7, logits=out),
    "dict with one tensor": lambda out: {"labels": ["a"], "out": out, "aux": out * 7},
    "dataclass with logits": lambda out: Output(out.sum() * 7, out, (out * 7,)),
    "dataclass without": lambda out: Scores(1.0, out),
    "namedtuple": lambda out: Pair(out, out * 7),
    "namedtuple with logits": lambda out: WithLogits(out.sum() * 7, out),
    "object with logits": Plain,
}


@pytest.mark.parametrize("form", list(OUTPUTS))
def test_outputs(form: str) -> None:
    model, x = mlp(), vectors(3)
    wrapped = Wrapped(model, OUTPUTS[form])
    expected = gradient(lambda leaf: model(leaf)[:, 1], x)
    methods: list[Attribution] = [Gradient(wrapped), GradientXInput(wrapped), LRP(wrapped, "lrp0")]
    for method in methods:
        found = method.attribute(x, 1)
        close(found, expected if isinstance(method, Gradient) else x * expected)
    close(LRP(wrapped, "lrp0").attribute_targets(x, [1, 1])[1], x * expected)


def test_a_callable_receives_what_the_model_returned() -> None:
    model, x = mlp(), vectors(3)
    received: list[Any] = []

    def target(out: Output) -> Tensor:
        received.append(out)
        return out.hidden[0][:, 2] + out.logits[:, 0]

    wrapped = Wrapped(model, lambda out: Output(None, out, (out.square(),)))
    found = Gradient(wrapped).attribute(x, target)
    assert isinstance(received[0], Output)
    close(found, gradient(lambda leaf: model(leaf)[:, 2].square() + model(leaf)[:, 0], x))


def test_a_callable_is_explained_too() -> None:
    # What a target computes is part of the network: a square is an activation with a rule of its own.
    model, x = mlp(bias=False), vectors(3)
    found, delta = LRP(model, "lrp0").attribute(x, lambda out: out[:, 1] ** 2, return_convergence_delta=True)
    close(found.sum(1), model(x)[:, 1].detach() ** 2)
    assert float(delta.abs().max()) < 1e-12


def test_last_is_the_last_layer_of_the_target() -> None:
    # A contrast of two heads has two last layers; a target of one of them, one.
    x = vectors(3)

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(4, 5)
            self.left = nn.Linear(5, 2)
            self.right = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.trunk(x))
            return self.left(h), self.right(h)

    model = settle(Heads())
    by_last = LRP(model, Rules().set(nn.Linear, "zplus").last("epsilon"))
    by_name = LRP(model, Rules().set("trunk", "zplus").set("left", "epsilon").set("right", "epsilon"))
    for target in (lambda out: out[0][:, 1], lambda out: out[1][:, 0], lambda out: out[0][:, 1] - out[1][:, 0]):
        close(by_last.attribute(x, target), by_name.attribute(x, target))


# ------------------------------------------------------------------------------------------ the functions


def test_select_is_differentiable_and_keeps_the_dtype() -> None:
    out = torch.arange(6.0, dtype=torch.float32).reshape(2, 3).requires_grad_()
    chosen = select(out, [2, 0], 2)
    assert chosen.tolist() == [2.0, 3.0]
    assert chosen.dtype == torch.float32
    chosen.sum().backward()
    assert out.grad is not None
    assert out.grad.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_output_tensor_prefers_logits() -> None:
    logits, other = torch.ones(1), torch.zeros(1)
    assert output_tensor({"loss": other, "logits": logits}) is logits
    assert output_tensor(Output(other, logits)) is logits
    assert output_tensor((other, logits)) is other


def test_targets_by_every_rule_agree_with_the_same_index() -> None:
    model, x = residual(), images()
    expected = LRP(model).attribute(x, 2)
    for target in (
        np.int64(2),
        torch.tensor(2),
        torch.tensor([2, 2]),
        [2, 2],
        (2,),
        [(2,), (2,)],
        lambda out: out[:, 2],
    ):
        assert torch.equal(LRP(model).attribute(x, target), expected)
