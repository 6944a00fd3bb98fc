"""What a model does where autograd does not look: each is named once with its module, and strict fails on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Gradient, ModelError, UncoveredOperationError, UncoveredOperationWarning
from tests.models import settle


class Inner(nn.Module):
    """The module in which it happens."""

    def __init__(self, does: Callable[..., Tensor]) -> None:
        super().__init__()
        self.does, self.layer = does, nn.Linear(4, 4)
        self.register_buffer("kept", torch.ones(4))

    def forward(self, h: Tensor) -> Tensor:
        return self.does(self, h)


class Net(nn.Module):
    def __init__(self, does: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 4), Inner(does), nn.Linear(4, 2)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))  # type: ignore[no-any-return]


class Reversed(torch.autograd.Function):
    """Gradient reversal, which returns a view of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Returned(Reversed):
    """The same, which returns its very input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x


class Transposed(Reversed):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].t()


def under_no_grad(write: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    def does(m: Inner, h: Tensor) -> Tensor:
        with torch.no_grad():
            write(h)
        return h

    return does


def through(write: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    def does(m: Inner, h: Tensor) -> Tensor:
        write(h)
        return h

    return does


def item_zero(h: Tensor) -> None:
    h[:, 0] = 0


def a_view_later(h: Tensor) -> None:
    part = h.detach()[0]
    part += 1


def by_numpy(h: Tensor) -> None:
    h.detach().numpy()[:, 0] = 0


def by_numpy_of_data(h: Tensor) -> None:
    np.asarray(h.data)[:] *= 2


def replaced(h: Tensor) -> None:
    h.data = torch.zeros_like(h)


def hooked(m: Inner, h: Tensor) -> Tensor:
    h.register_hook(lambda g: 2 * g)
    return h


def named_columns(h: Tensor) -> list[float]:
    found: list[float] = h[0].tolist()
    return found


NAMED: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "a function that returns a view": ("ReversedBackward", lambda m, h: Reversed.apply(h)),
    "a function that returns its input": ("ReturnedBackward", lambda m, h: Returned.apply(h)),
    "a function that transposes": ("TransposedBackward", lambda m, h: Transposed.apply(h).t()),
    "clamp_ under no_grad": ("clamp_", under_no_grad(lambda h: h.clamp_(min=0))),
    "an item under no_grad": ("__setitem__", under_no_grad(item_zero)),
    "out= under no_grad": ("mul", under_no_grad(lambda h: torch.mul(h.detach(), 2, out=h))),
    "zero_ under no_grad": ("zero_", under_no_grad(lambda h: h.zero_())),
    "a view under no_grad": ("add_", under_no_grad(lambda h: h[:, 1].add_(1))),
    "an item of data": ("__setitem__", through(lambda h: item_zero(h.data))),
    "mul_ of data": ("mul_", through(lambda h: h.data.mul_(2))),
    "detach": ("clamp_", through(lambda h: h.detach().clamp_(min=0))),
    "a view of detach": ("add_", through(a_view_later)),
    "data assigned": ("data", through(replaced)),
    "a NumPy view": ("numpy", through(by_numpy)),
    "a NumPy view of data": ("numpy", through(by_numpy_of_data)),
    "item": ("item", lambda m, h: h / h.max().item()),
    "item, computed on": ("item", lambda m, h: h * (1 / (abs(h.max().item()) + 1e-3))),
    "item in a tensor": ("item", lambda m, h: h * torch.tensor(h.max().item())),
    "item in a list": ("item", lambda m, h: h * torch.tensor([h.max().item(), 1.0, 1.0, 2.0])),
    "item by keyword": ("item", lambda m, h: torch.clamp(h, max=h.mean().item())),
    "float": ("__float__", lambda m, h: h - float(h.mean())),
    "tolist": ("tolist", lambda m, h: h * torch.tensor(named_columns(h))),
    "numpy": ("numpy", lambda m, h: h * torch.from_numpy(np.tanh(h.detach().numpy()))),
    "numpy, by tensor": ("numpy", lambda m, h: h * torch.tensor(h.detach().cpu().numpy() ** 2)),
    "numpy, by as_tensor": ("numpy", lambda m, h: h + torch.as_tensor(np.sqrt(np.abs(h.data.numpy())))),
    "a hook": ("register_hook", hooked),
}


@pytest.mark.parametrize("name", list(NAMED))
def test_it_is_named_once_with_its_module(name: str) -> None:
    what, does = NAMED[name]
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        LRP(Net(does)).attribute(x, 1)
    said = [str(each.message) for each in seen if issubclass(each.category, UncoveredOperationWarning)]
    assert len(said) == 1, said
    assert said[0].startswith(f"{what} in module 'inner' (Inner) "), said
    with pytest.raises(UncoveredOperationError, match=what):
        LRP(Net(does), strict=True).attribute(x, 1)


SILENT: dict[str, Callable[..., Tensor]] = {
    "a question": lambda m, h: h * 2 if h.max().item() > 0 else h,
    "a number that is logged": lambda m, h: (h.mean().item(), h)[1],
    "shapes": lambda m, h: h / len(h) * float(h.shape[1]),
    "detach": lambda m, h: h - h.detach().mean(),
    "a write to a constant": lambda m, h: h * h.detach().clone().clamp_(min=0),
    "a write to what is gone": lambda m, h: h.relu().detach().add_(1) * h,
    "a constant of the model": lambda m, h: h * float(m.kept.sum()),
    "an array that is read": lambda m, h: (h.detach().numpy().sum(), h)[1],
    "a write of the same values": under_no_grad(lambda h: h.clamp_(min=-100)),
    "a buffer under no_grad": lambda m, h: (counted(m), h * 1)[1],
}


def counted(m: Inner) -> None:
    with torch.no_grad():
        m.kept.add_(1)


@pytest.mark.parametrize("name", list(SILENT))
def test_what_is_no_fault_is_not_named(name: str) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    LRP(Net(SILENT[name]), strict=True).attribute(x, 1)


def test_a_gradient_obeys_hooks_and_names_none() -> None:
    x = torch.randn(2, 3).double()
    model, plain = Net(hooked), Net(lambda m, h: h)
    assert torch.allclose(Gradient(model).attribute(x, 1), 2 * Gradient(plain).attribute(x, 1))


class Assigns(nn.Linear):
    """Gives its weight another value by ``.data`` in its forward."""

    def forward(self, input: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        self.weight.data.mul_(2)
        return super().forward(input)


def test_weights_assigned_by_data_are_as_before() -> None:
    layer = Assigns(3, 2)
    layer.double()
    before, pointer = layer.weight.detach().clone(), layer.weight.data_ptr()
    x = torch.randn(4, 3).double()
    found = LRP(layer, "lrp0").attribute(x, 1)
    assert torch.equal(layer.weight, before)
    assert layer.weight.data_ptr() == pointer
    expected = x * 2 * torch.renorm(before, 2, 0, 0.1)[1]
    assert torch.allclose(found, expected)


def test_data_of_another_shape_is_refused() -> None:
    class Grows(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            self.weight.data = torch.zeros(5, 3)
            return super().forward(input)

    layer = Grows(3, 2, bias=False)
    before = layer.weight.detach().clone()
    with pytest.raises(ModelError, match=r"assigns .data of shape \(5, 3\)"):
        LRP(layer).attribute(torch.randn(1, 3), 0)
    assert torch.equal(layer.weight, before)
