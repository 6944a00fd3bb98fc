"""What a model is given: several inputs, further arguments, dtypes, and the caller's grad mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Gradient, GradientXInput, ModelError, Rules, TrainingModeWarning
from relprop.rules import Epsilon
from tests.models import close, gradient, images, mlp, residual, settle, vectors
from tests.networks import zoo

# ----------------------------------------------------------------------------------------- several inputs


class Two(nn.Module):
    """An image [N, 3, 6, 6] and features [N, 4], joined."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 2, 3)
        self.features = nn.Linear(4, 5)
        self.head = nn.Linear(37, 3)

    def forward(self, image: Tensor, features: Tensor, scale: float | Tensor = 1.0, *, shift: Any = None) -> Tensor:
        joined = torch.cat([torch.relu(self.image(image)).flatten(1), torch.relu(self.features(features))], 1)
        out: Tensor = self.head(joined) * scale
        return out if shift is None else out + shift


def both_gradients(score: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    return torch.autograd.grad(score(*leaves).sum(), leaves)


def test_a_tuple_gives_a_tuple() -> None:
    model, x, y = settle(Two()), images(), vectors()
    expected = both_gradients(lambda a, b: model(a, b)[:, 1], x, y)
    for inputs in ((x, y), [x, y]):
        found = LRP(model, "lrp0").attribute(inputs, 1)  # type: ignore[arg-type]
        assert isinstance(found, tuple)
        close(found[0], x * expected[0])
        close(found[1], y * expected[1])
    for found, value in zip(Gradient(model).attribute((x, y), 1), expected, strict=True):
        close(found, value)


def test_one_tensor_and_a_tuple_of_one() -> None:
    model, x = mlp(), vectors()
    (first,) = LRP(model).attribute((x,), 1)
    assert torch.equal(LRP(model).attribute(x, 1), first)


def test_the_delta_of_several_inputs() -> None:
    model, x, y = settle(Two()), images(), vectors()
    found, delta = LRP(model).attribute((x, y), 1, return_convergence_delta=True)
    assert delta.shape == (2,)
    total = found[0].flatten(1).sum(1) + found[1].sum(1)
    close(delta, model(x, y)[:, 1].detach() - total)


def test_targets_of_several_inputs() -> None:
    model, x, y = settle(Two()), images(), vectors()
    found = LRP(model).attribute_targets((x, y), [0, 2])
    assert [tuple(part.shape) for part in found] == [(2, 2, 3, 6, 6), (2, 2, 4)]
    for index, target in enumerate((0, 2)):
        for part, expected in zip(found, LRP(model).attribute((x, y), target), strict=True):
            assert torch.equal(part[index], expected)


def test_what_is_an_argument_is_not_explained() -> None:
    # With the features as an argument, their share stays where it is: it acts as a bias.
    model, x, y = settle(Two()), images(), vectors()
    alone = LRP(model, "lrp0").attribute(x, 1, y)
    close(alone, LRP(model, "lrp0").attribute((x, y), 1)[0])
    assert torch.equal(alone, LRP(model, "lrp0").attribute(x, 1, (y,)))
    assert torch.equal(alone, LRP(model, "lrp0").attribute(x, 1, forward_kwargs={"features": y}))


def test_further_arguments_and_keywords() -> None:
    model, x, y = settle(Two()), images(), vectors()
    scale, shift = torch.tensor(3.0, dtype=x.dtype), torch.full((3,), 2.0, dtype=x.dtype)
    expected = both_gradients(lambda a, b: model(a, b)[:, 1] * 3.0, x, y)
    ways: list[dict[str, Any]] = [
        {"additional_forward_args": 3.0},
        {"additional_forward_args": (3.0,), "forward_kwargs": {"shift": shift}},
        {"additional_forward_args": scale, "forward_kwargs": {"shift": 2.0}},
        {"forward_kwargs": {"scale": scale, "shift": shift}},
    ]
    for way in ways:
        found, delta = GradientXInput(model).attribute((x, y), 1, **way, return_convergence_delta=True)
        close(found[0], x * expected[0])
        close(found[1], y * expected[1])
        out = model(x, y)[:, 1] * 3.0 + (2.0 if "forward_kwargs" in way else 0.0)
        close(delta, out.detach() - found[0].flatten(1).sum(1) - found[1].sum(1))
        for part, again in zip(found, LRP(model, "lrp0").attribute((x, y), 1, **way), strict=True):
            close(again, part)


def test_every_way_to_ask_takes_the_same_arguments() -> None:
    model, x, y = settle(Two()), images(), vectors()
    method = LRP(model)
    # Tensors that are given are no part of the layer before them, as numbers would be.
    three, two = (torch.tensor(number, dtype=torch.float64) for number in (3.0, 2.0))
    given: dict[str, Any] = {"additional_forward_args": (y, three), "forward_kwargs": {"shift": two}}
    expected = method.attribute(x, 1, **given)
    assert torch.equal(method.attribute_targets(x, [1], **given)[0], expected)
    layers = method.attribute_layers(x, "image", 1, **given)
    close(layers["image"], 3 * method.attribute_layers(x, "image", 1, y)["image"])
    report = method.report(x, 1, **given)
    assert report.relevance == pytest.approx(float(expected.sum()), abs=1e-12)
    assert any(row.name == "image" for row in method.rules.plan(model, x, 1, **given).rows)


def test_the_same_tensor_twice() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(4, 3)
            self.right = nn.Linear(4, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(self.left(x) + self.right(y))

    model, x = settle(Add()), vectors()
    found = LRP(model, "lrp0").attribute((x, x), 1)
    left, right = both_gradients(lambda a, b: model(a, b)[:, 1], x, x)
    close(found[0], x * left)
    close(found[1], x * right)


# ------------------------------------------------------------------------------- dtypes, grad mode, training


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_preserved(dtype: torch.dtype) -> None:
    model, x = residual().to(dtype), images().to(dtype)
    expected = LRP(residual()).attribute(images(), 1)
    found, delta = LRP(model).attribute(x, 1, return_convergence_delta=True)
    assert found.dtype == delta.dtype == dtype
    assert float((found.double() - expected).norm() / expected.norm()) < 30 * torch.finfo(dtype).eps
    assert LRP(model).attribute_layers(x, "stem", 1)["stem"].dtype == dtype
    assert LRP(model).attribute_targets(x, [0, 1]).dtype == dtype
    for method in (Gradient(model), GradientXInput(model)):
        assert method.attribute(x, 1).dtype == dtype


def test_the_input_is_left_alone() -> None:
    model, x = residual(), images()
    before = x.clone()
    asked = images().requires_grad_()
    for value in (x, asked):
        LRP(model).attribute(value, 1)
        LRP(model).report(value, 1)
        Gradient(model).attribute(value, 1)
        assert torch.equal(value, before)
        assert value._version == 0
        assert value.grad is None
    assert not x.requires_grad
    assert asked.requires_grad


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda x: x.mul_(2),
    "+=": lambda x: x.__iadd__(x),
    "normalised": lambda x: x.sub_(0.5).div_(0.25),
    "relu_": torch.relu_,
    "item": lambda x: x.__setitem__((slice(None), 0), 0.0),
    "clamp_": lambda x: x.clamp_(min=-0.5),
}


@pytest.mark.parametrize("write", list(WRITES))
def test_an_input_that_the_model_writes_to(write: str) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            WRITES[write](x)
            out: Tensor = self.layer(x)
            return out

    model, x = settle(Writes()), vectors()
    before = x.clone()
    expected = gradient(lambda leaf: model(leaf.clone())[:, 1], x)
    close(Gradient(model).attribute(x, 1), expected)
    close(GradientXInput(model).attribute(x, 1), x * expected)
    if write != "clamp_":  # which the Pass rule explains otherwise
        close(LRP(model, "lrp0").attribute(x, 1), x * expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller(mode: Any) -> None:
    model, x = residual(), images()
    method = LRP(model)
    expected, delta = method.attribute(x, 1, return_convergence_delta=True)
    with mode():
        found, other = method.attribute(x, 1, return_convergence_delta=True)
        assert torch.equal(found, expected)
        assert torch.equal(other, delta)
        assert torch.equal(method.attribute_layers(x, "stem", 1)["stem"], method.attribute_layers(x, "stem", 1)["stem"])
        assert torch.equal(method.attribute_targets(x, [1])[0], expected)
        assert method.report(x, 1).output == pytest.approx(float(model(x)[:, 1].sum()))
        assert len(method.rules.plan(model, x, 1).rows) > 5
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert not found.requires_grad


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "lrp": LRP,
    "zplus": lambda model: LRP(model, "zplus"),
    "first and last": lambda model: LRP(model, Rules().set(nn.Module, Epsilon()).first("flat").last("lrp0")),
    "gradient": Gradient,
    "gradient x input": GradientXInput,
}


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_inputs_made_under_inference_mode(method: str, inside: bool) -> None:
    explainer = METHODS[method](residual())
    expected = explainer.attribute(images(), [1, 2])
    with torch.inference_mode():
        x, target = images(), torch.tensor([1, 2])
    with torch.inference_mode(inside):
        found = explainer.attribute(x, target)
        assert torch.equal(found, expected)
        if method != "gradient":
            assert explainer.report(x, target).relevance == pytest.approx(float(expected.sum()))


def test_further_arguments_made_under_inference_mode() -> None:
    two = settle(Two())
    three = torch.tensor(3.0, dtype=torch.float64)
    expected = LRP(two).attribute(images(), 1, (vectors(), three), forward_kwargs={"shift": torch.ones(3).double()})
    with torch.inference_mode():
        x, y, shift = images(), vectors(), torch.ones(3).double()
        scale = torch.tensor(3.0, dtype=torch.float64)
        assert torch.equal(LRP(two).attribute(x, 1, (y, scale), forward_kwargs={"shift": shift}), expected)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_a_model_made_under_inference_mode_says_what_to_do(method: str, inside: bool) -> None:
    make = METHODS[method]
    expected = make(residual()).attribute(images(), 1)
    with torch.inference_mode():
        model = residual()
    x = images()
    with torch.inference_mode(inside), pytest.raises(ModelError, match=r"built under torch\.inference_mode.*deepcopy"):
        make(model).attribute(x, 1)
    assert torch.equal(make(copy.deepcopy(model)).attribute(x, 1), expected)  # which helps


def test_training_mode_warns_once_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x = vectors(8)
    before = zoo.fingerprint(model)
    with pytest.warns(TrainingModeWarning, match=r"'1' \(BatchNorm1d\) is in training mode.*model\.eval\(\)") as seen:
        LRP(model).attribute(x, 1)
    assert len(seen) == 1
    assert zoo.fingerprint(model) == before
    model[1].eval()
    with pytest.warns(TrainingModeWarning, match=r"'3' \(Dropout\)"):
        LRP(model).report(x, 1)
    model[3].p = 0.0
    LRP(model).attribute(x, 1)  # nothing that could change the answer: no warning, which would be an error here
