"""What a model may do that ends in an error of relprop's own, or in none: resizing, mapping, float8, StopIteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    DeepLift,
    Gradient,
    InputTypeError,
    IntegratedGradients,
    ModelError,
    Occlusion,
    TrainingModeWarning,
)
from tests.models import Wrapped, close, mlp, vectors

METHODS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "lrp": lambda model, x: LRP(model).attribute(x, 1),
    "gradient": lambda model, x: Gradient(model).attribute(x, 1),
    "deep_lift": lambda model, x: DeepLift(model).attribute(x, target=1),
    "integrated_gradients": lambda model, x: IntegratedGradients(model).attribute(x, target=1),
    "occlusion": lambda model, x: Occlusion(model).attribute(x, (1,), target=1),
}


def resized(h: Tensor) -> Tensor:
    h = h.clone()
    return h.resize_as_(torch.zeros(len(h), 2, dtype=h.dtype))


def resized_by_size(h: Tensor) -> Tensor:
    return h.clone().resize_(len(h), 2)


def mapped(h: Tensor) -> Tensor:
    return torch.vmap(lambda w: (h * w).sum(1))(torch.eye(3, dtype=h.dtype)).T


def mapped_in_an_operator(h: Tensor) -> Tensor:
    return torch.vmap(lambda w: w @ h)(torch.eye(len(h), dtype=h.dtype))


def at_an_end(h: Tensor) -> Tensor:
    return next(iter([]))  # type: ignore[no-any-return]


def set_to_itself(h: Tensor) -> Tensor:
    return h.set_(h)


@pytest.mark.parametrize("wrap", [resized, resized_by_size, at_an_end], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("method", ["lrp", "gradient", "deep_lift", "integrated_gradients"])
def test_what_cannot_be_followed(method: str, wrap: Callable[[Tensor], Tensor]) -> None:
    """Resizing in place what depends on the input, and an iterator at its end."""
    with pytest.raises(ModelError, match=r"resized in place|raised StopIteration"):
        METHODS[method](Wrapped(mlp(), wrap), vectors())


@pytest.mark.parametrize("wrap", [mapped, mapped_in_an_operator], ids=lambda wrap: wrap.__name__)
def test_a_transform_over_a_closure(wrap: Callable[[Tensor], Tensor]) -> None:
    """Also where the function is an operator, of which Python makes a TypeError of its own."""
    with pytest.raises(ModelError, match=r"applies a torch\.func transform"):
        LRP(Wrapped(mlp(), wrap)).attribute(vectors(), 1)


def test_an_iterator_at_its_end_in_a_target() -> None:
    with pytest.raises(ModelError, match="raised StopIteration"):
        LRP(mlp()).attribute(vectors(), at_an_end)


@pytest.mark.filterwarnings("ignore::relprop.UncoveredOperationWarning")  # of which there is no derivative
def test_what_has_no_derivative_in_pytorch() -> None:
    with pytest.raises(ModelError, match="no derivative of something between"):
        LRP(Wrapped(mlp(), set_to_itself)).attribute(vectors(), 1)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_float8_inputs(method: str, dtype: torch.dtype) -> None:
    with pytest.raises(InputTypeError, match=r"float8.*bfloat16"):
        METHODS[method](mlp(), vectors().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("method", ["lrp", "gradient"])
def test_float8_outputs(method: str, dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=r"float8.*callable"):
        METHODS[method](Wrapped(mlp(), lambda h: h.to(dtype)), vectors())


def test_a_constant_in_the_shape_of_what_is_explained() -> None:
    def forward(x: Tensor) -> Tensor:
        return torch.zeros(0, dtype=x.dtype).resize_as_(x).copy_(x).sum(1)

    close(LRP(Wrapped(nn.Identity(), forward), strict=True).attribute(vectors()), vectors())


def test_a_write_that_changes_nothing_is_not_named() -> None:
    def forward(h: Tensor) -> Tensor:
        h.data = h.data
        with torch.no_grad():
            h.set_(h)
        return h

    close(LRP(Wrapped(mlp(), forward), strict=True).attribute(vectors(), 1), LRP(mlp()).attribute(vectors(), 1))


@pytest.mark.parametrize("track", [True, False], ids=["running statistics", "none"])
def test_instance_norm_in_training_mode(track: bool) -> None:
    """With running statistics it is another network than after ``eval()``; without, it is the same."""
    layers = (nn.InstanceNorm1d(2, track_running_stats=track), nn.Flatten(), nn.Linear(8, 3))
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 2, 4).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if track:
        with pytest.warns(TrainingModeWarning, match=r"InstanceNorm1d.*by itself.*model\.eval\(\)"):
            LRP(model).attribute(x, 1)
    else:
        LRP(model).attribute(x, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    LRP(model.eval()).attribute(x, 1)
