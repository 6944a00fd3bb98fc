"""One notion of a ReLU: every spelling of it, and what looks like one and is none, for all methods that ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import Attribution, DeepLift, Gradient
from tests.attribution.rectifiers.test_backward_variants import METHODS, Activation, Network
from tests.models import close, gradient, images, settle

INF = float("inf")


def zero(x: Tensor) -> Tensor:
    return torch.zeros((), dtype=x.dtype)


def filled(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0.0
    return y


def multiplied(x: Tensor) -> Tensor:
    y = x.clone()
    y *= y > 0
    return y


def masked(x: Tensor) -> Tensor:
    y = x.clone()
    y.masked_fill_(y <= 0, 0)
    return y


BY_VALUE: dict[str, Activation] = {
    "maximum": lambda x: torch.maximum(x, zero(x)),
    "maximum, first": lambda x: torch.maximum(torch.zeros_like(x), x),
    "maximum, method": lambda x: x.maximum(zero(x)),
    "max": lambda x: torch.max(x, zero(x)),
    "max by name": lambda x: torch.max(x, other=zero(x)),
    "fmax": lambda x: torch.fmax(x, zero(x)),
    "clamp by a tensor": lambda x: x.clamp(min=zero(x)),
    "clamp by tensors": lambda x: torch.clamp(x, zero(x), torch.full_like(x, INF)),
    "clamp to infinity": lambda x: x.clamp(0, INF),
    "clamp in place": lambda x: x.clone().clamp_(0.0, INF),
    "clamp_min by a tensor": lambda x: x.clamp_min(zero(x)),
    "clip to infinity": lambda x: torch.clip(x, 0, max=INF),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, INF),
    "hardtanh in place": lambda x: F.hardtanh(x.clone(), 0.0, INF, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.0),
    "leaky_relu_": lambda x: F.leaky_relu_(x.clone(), 0.0),
    "prelu": lambda x: F.prelu(x, torch.zeros(1, dtype=x.dtype)),
    "rrelu": lambda x: F.rrelu(x, 0.0, 0.0),
    "elu": lambda x: F.elu(x, 0.0),
    "overload": lambda x: torch.ops.aten.clamp_min.default(x, 0),
}
MASKS: dict[str, Activation] = {
    "times mask": lambda x: x * (x > 0),
    "mask times": lambda x: (x > 0) * x,
    "times mask with zero": lambda x: x * (x >= 0.0),
    "times mask in place": multiplied,
    "times float mask": lambda x: x * (x > 0).double(),
    "times mask to dtype": lambda x: x * (x > 0).to(x.dtype),
    "times mask to tensor": lambda x: x * torch.gt(x, 0).to(x),
    "times mask as type": lambda x: (x > 0).type_as(x).mul(x),
    "times integers": lambda x: x * (x > 0).int(),
    "times negated": lambda x: x * ~(x <= 0),
    "zero is less": lambda x: x * (x > 0),
    "zero tensor is less": lambda x: x * torch.lt(zero(x), x),
    "times mask of zeros": lambda x: x * (x > torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where with zeros": lambda x: torch.where(x >= 0, x, torch.zeros_like(x)),
    "where, else": lambda x: torch.where(x < 0, zero(x), x),
    "where, method": lambda x: x.where(x > 0, zero(x)),
    "where by names": lambda x: torch.where(condition=x.le(0), input=zero(x), other=x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "masked_fill by a tensor": lambda x: torch.masked_fill(x, torch.logical_not(x > 0), zero(x)),
    "masked_fill in place": masked,
    "set item": filled,
}
SPELLINGS = {**BY_VALUE, **MASKS}


def other_version(x: Tensor) -> Tensor:
    y = x.clone()
    mask = y > 0
    y += 0.5
    return y * mask


def other_mask(x: Tensor) -> Tensor:
    mask = x > 0
    mask[:, 0] = True
    return x * mask


NO_RELUS: dict[str, Activation] = {
    "maximum": lambda x: torch.maximum(x, 0.1 + zero(x)),
    "clamp by a tensor": lambda x: x.clamp(min=zero(x) - 0.2),
    "clamp by what depends on the input": lambda x: torch.clamp(x, min=(x - x.detach()).sum(1, keepdim=True)),
    "clamp to a tensor": lambda x: x.clamp(zero(x), 1 + zero(x)),
    "max over a dimension": lambda x: x - x.max(1, keepdim=True)[0],
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 1.0),
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.3, dtype=x.dtype)),
    "rrelu": lambda x: F.rrelu(x, 0.0, 0.5),
    "elu": F.elu,
    "another mask": lambda x: x * (x > 0.1),
    "mask of another": lambda x: x * (x.flip(1) > 0),
    "reversed mask": lambda x: x * (x < 0),
    "mask of another version": other_version,
    "mask that was changed": other_mask,
    "where, not zero": lambda x: torch.where(x > 0, x, 0.5),
    "where, both": lambda x: torch.where(x > 0, x, 0 * x),
    "filled above": lambda x: x.masked_fill(x > 0, 0),
    "filled by one": lambda x: x.masked_fill(x < 0, 1.0),
    "two masks": lambda x: (x > 0) * (x > 0.2) * x,
    "a sum": lambda x: (x + x.abs()) / 2,
    "a mask of a copy": lambda x: x * (x.detach() > 0),
}

both = pytest.mark.parametrize(("method", "relu"), METHODS.values(), ids=METHODS)


@both
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(method: type[Attribution], relu: Activation, spelling: str) -> None:
    model, x = settle(Network(SPELLINGS[spelling])), images()
    expected = gradient(lambda leaf: settle(Network(relu))(leaf)[:, 1], x)
    assert not torch.allclose(expected, gradient(lambda leaf: model(leaf)[:, 1], x))
    close(method(model).attribute(x, 1), expected)


@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")  # that it is the gradient is what is tested
@both
@pytest.mark.parametrize("other", NO_RELUS)
def test_what_is_no_relu(method: type[Attribution], relu: Activation, other: str) -> None:
    model, x = settle(Network(NO_RELUS[other])), images()
    close(method(model).attribute(x, 1), gradient(lambda leaf: model(leaf)[:, 1], x))


@both
def test_the_true_derivative_afterwards(method: type[Attribution], relu: Activation) -> None:
    """A loss on the map sees the ReLU as it is, whatever its spelling."""
    x, found = images(), []
    for spelling in (F.relu, MASKS["times mask"], BY_VALUE["clamp to infinity"]):
        model = settle(Network(lambda z, spelling=spelling: spelling(z) ** 2))
        relevance = method(model).attribute(x, 1, create_graph=True)
        found.append(torch.autograd.grad(relevance.square().sum(), [model.first.weight, model.second.weight]))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            close(two, one)


@both
def test_shapes_and_dtypes_that_other_arguments_bring(method: type[Attribution], relu: Activation) -> None:
    class Wide(nn.Module):
        """A ReLU, and weights of both signs, in double precision."""

        def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.activation = activation
            self.weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return (self.activation(x) * self.weight).sum(1, keepdim=True)

    x = torch.tensor([[1.0, -1.0, 2.0], [-0.5, 3.0, -4.0]])
    zeros = torch.zeros(3, 1, 3, dtype=torch.float64)
    for activation in (lambda h: torch.maximum(h, zeros).mean(0), lambda h: h * (h > 0).double()):
        twin = Wide(lambda h: relu(h.double()))
        close(method(Wide(activation)).attribute(x, 0), gradient(lambda leaf, twin=twin: twin(leaf)[:, 0], x))


# ---------------------------------------------------------------------------------------------------- DeepLIFT


class Plain(nn.Module):
    """Linear maps around one activation, called twice."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 7), nn.Linear(7, 6), nn.Linear(6, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.activation(self.second(self.activation(self.first(x)))))
        return out


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_deep_lift_has_the_same_notion(spelling: str, rule: Any) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = DeepLift(settle(Plain(F.relu)), rule).attribute(x, 0.3, 1)
    assert not torch.allclose(expected, Gradient(settle(Plain(F.relu))).attribute(x, 1) * (x - 0.3))
    close(DeepLift(settle(Plain(SPELLINGS[spelling])), rule, strict=True).attribute(x, 0.3, 1), expected)


def test_a_bound_that_is_zero_for_one_input_alone() -> None:
    """Zero for the baseline, and so no ReLU: the passes need not agree on what is one."""

    class Bounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, x.detach() * 2).sum(1, keepdim=True)

    x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    found, delta = DeepLift(Bounded()).attribute(x, 0.0, 0, return_convergence_delta=True)
    close(found, torch.tensor([[1.0, -4.0, 3.0]], dtype=torch.float64))
    assert float(delta.abs().max()) < 1e-12
