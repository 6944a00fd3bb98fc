"""An elementwise function of one tensor is an activation, however it is written: relevance passes to it whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP
from tests.unrolled import assert_close, random, snapshot

Function = Callable[[Tensor], Tensor]

BETA = nn.Parameter(random(5, seed=11))
BY_HAND: dict[str, tuple[Function, Function]] = {
    "gelu": (F.gelu, lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))),
    "gelu, bracketed": (F.gelu, lambda z: z * (0.5 * (1 + torch.erf(z / math.sqrt(2))))),
    "gelu, divided": (F.gelu, lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2),
    "gelu by erfc": (F.gelu, lambda z: z * torch.erfc(-z / math.sqrt(2)) / 2),
    "gelu_new": (
        lambda z: F.gelu(z, approximate="tanh"),
        lambda z: 0.5 * z * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0)))),
    ),
    "gelu_fast": (
        lambda z: F.gelu(z, approximate="tanh"),
        lambda z: 0.5 * z * (1.0 + torch.tanh(z * math.sqrt(2.0 / math.pi) * (1.0 + 0.044715 * z * z))),
    ),
    "silu": (F.silu, lambda z: z * torch.sigmoid(z)),
    "silu as a quotient": (F.silu, lambda z: z / (1 + torch.exp(-z))),
    "hardswish": (F.hardswish, lambda z: z * F.relu6(z + 3) / 6),
    "hardswish by clamp": (F.hardswish, lambda z: z * (z / 6 + 0.5).clamp(0, 1)),
    "mish": (F.mish, lambda z: z * torch.tanh(F.softplus(z))),
    "mish by log": (F.mish, lambda z: z * torch.tanh(torch.log(1 + torch.exp(z)))),
    "softsign": (F.softsign, lambda z: z / (1 + z.abs())),
    "tanhshrink": (F.tanhshrink, lambda z: z - torch.tanh(z)),
    "relu": (F.relu, lambda z: z * (z > 0)),
    "relu by its sign": (F.relu, lambda z: z * torch.where(z > 0, 1.0, 0.0)),
    "of a copy": (F.silu, lambda z: z.clone() * torch.tanh(F.softplus(z.contiguous().view(z.shape))) * 0 + F.silu(z)),
    "in place": (F.mish, lambda z: F.softplus(z).tanh_().mul_(z)),
    "by addcmul": (F.gelu, lambda z: torch.addcmul(z / 2, z / 2, torch.erf(z / math.sqrt(2)))),
    "squared": (lambda z: F.relu(z).square(), lambda z: F.relu(z) * F.relu(z)),
    "the square": (torch.square, lambda z: z * z),
    "the cube": (lambda z: z**3, lambda z: z * z * z),
}  # fmt: skip
"""Each beside the function that PyTorch has for it."""

WHOLE: dict[str, Function] = {
    "a learned beta": lambda z: z * torch.sigmoid(BETA * z),
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "z exp(z)": lambda z: z * torch.exp(z),
    "exp(z) z": lambda z: torch.exp(z) * z,
    "2 z exp(z)": lambda z: (z + z) * torch.exp(z),
    "(-z) cos(z)": lambda z: -z * torch.cos(z),
    "masked": lambda z: z.masked_fill(z > 1, 0.0) * torch.exp(z),
    "z (z + 1)": lambda z: z * (z + 1),
    "z^2 exp(z)": lambda z: z * z * torch.exp(z),
    "z (z exp(z))": lambda z: z * (z * torch.exp(z)),
    "with a position": lambda z: z * torch.cos(z + BETA),
    "behind a bias": lambda z: behind_a_bias(z),
}  # fmt: skip
"""With all relevance at z (or at what is added to it)."""


def behind_a_bias(z: Tensor) -> Tensor:
    h = z + BETA
    return h * torch.exp(h)


class Activated(nn.Module):
    """A linear map [N, 4] to [N, 5], an activation, a linear map to [N, 2]."""

    def __init__(self, activation: Function) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last, self.activation = nn.Linear(4, 5), nn.Linear(5, 2), activation
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rules", ["lrp0", "epsilon_gamma", "zplus"])
@pytest.mark.parametrize("case", BY_HAND)
def test_it_is_explained_as_the_function_it_is(case: str, rules: str) -> None:
    native, by_hand = (Activated(function) for function in BY_HAND[case])
    x = random(6, 4, seed=2) * 2
    assert_close(by_hand(x).detach(), native(x).detach(), "another function", 1e-12)
    with snapshot(by_hand):
        found = LRP(by_hand, rules, strict=True).attribute(x, target=1)
        LRP(by_hand, rules).report(x, target=1).check(1e-9)
    assert_close(found, LRP(native, rules).attribute(x, target=1))


class Alone(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z).sum(1)


@pytest.mark.parametrize("case", WHOLE)
def test_all_relevance_passes_to_its_argument(case: str) -> None:
    z = random(3, 5, seed=3)
    value = WHOLE[case](z).detach()
    if case == "behind a bias":
        value = value * z / (z + BETA.detach())
    assert_close(LRP(Alone(WHOLE[case])).attribute(z), value)


def test_gelu_of_one_negative_number() -> None:
    z = torch.tensor([[-1.0]], dtype=torch.float64)
    expected = torch.tensor([[-0.5 * (1 - math.erf(1 / math.sqrt(2)))]], dtype=torch.float64)
    assert_close(LRP(Alone(BY_HAND["gelu"][1])).attribute(z), expected)


def test_another_tensor_is_another_root() -> None:
    def shares(function: Function) -> tuple[Tensor, Tensor]:
        z = random(3, 4, seed=4)
        return LRP(Alone(function)).attribute(z), function(z).detach()

    # tanh vanishes at zero, so that Uniform and Pass can be told apart by the positions that receive.
    for function in (
        lambda z: z * torch.tanh(z.flip(1)),
        lambda z: z * torch.tanh(z.roll(1, 1)),
        lambda z: z * torch.tanh(z[:, torch.tensor([1, 2, 3, 0])]),
    ):
        found, value = shares(function)
        assert float((found - value).abs().max()) > 1e-2
        assert float((found - value).sum().abs()) < 1e-10
    # What was written over is another tensor than before.
    found, value = shares(lambda z: _overwritten(z, F.softplus))
    assert float((found - value).abs().max()) > 1e-2


def _overwritten(z: Tensor, function: Function) -> Tensor:
    z = z * 1
    before = function(z)
    z.copy_(z.flip(1) * 2)
    return z * before


def test_copies_of_one_tensor_are_one_root() -> None:
    z = random(3, 4, seed=4)
    for copy in (
        torch.clone,
        lambda z: z.contiguous(),
        lambda z: z.view(3, 4),
        lambda z: z.to(torch.float64),
        nn.Identity(),
    ):
        found = LRP(Alone(lambda z, copy=copy: copy(z) * torch.exp(z))).attribute(z)
        assert_close(found, z * torch.exp(z))
        found = LRP(Alone(lambda z, copy=copy: z * torch.exp(copy(z)))).attribute(z)
        assert_close(found, z * torch.exp(z))


def test_a_loss_on_relevance_sees_the_activation_as_it_is() -> None:
    model, native = (Activated(function) for function in reversed(BY_HAND["gelu_new"]))
    leaf = random(3, 4, seed=5).requires_grad_()
    found = LRP(model, "lrp0").attribute(leaf, target=1, create_graph=True)
    z = native.first(leaf)
    coefficient = native.last.weight[1] * torch.sigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z**3))
    parameters = {"weight": native.first.weight, "bias": native.first.bias, "last": native.last.weight}
    own = {"weight": model.first.weight, "bias": model.first.bias, "last": model.last.weight}
    expected = leaf * (coefficient @ native.first.weight)
    assert_close(found.detach(), expected.detach())
    weights = random(3, 4, seed=6)
    ours = torch.autograd.grad((found * weights).sum(), [leaf, *own.values()], allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), [leaf, *parameters.values()], allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None
        assert_close(one, other)
