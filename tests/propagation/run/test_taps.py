"""Reports where something is infinite, or filled in: what arrives there is kept there, and no leak."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP
from tests.models import settle

Function = Callable[[Tensor], Tensor]
MASKED = torch.arange(6) % 2 == 0
LEFT = (slice(None), slice(0, 2))


class Between(nn.Module):
    """A function of the output of a linear layer, and a network behind it."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.below, self.above, self.out = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.above(self.function(self.below(x)))))  # type: ignore[no-any-return]


def holds(function: Function, presets: tuple[str, ...] = ("epsilon_gamma", "wsquare")) -> None:
    model, x = settle(Between(function)), torch.randn(3, 6, dtype=torch.float64)
    assert model(x).isfinite().all()
    for preset in presets:
        LRP(model, preset).report(x, 1).check(1e-6)


FILLS: dict[str, Function] = {
    "masked_fill": lambda z: z.masked_fill(MASKED, -math.inf),
    "add": lambda z: z + torch.zeros(6, dtype=z.dtype).masked_fill(MASKED, -math.inf),
    "where": lambda z: torch.where(MASKED, math.inf, z),
}
FUNCTIONS: dict[str, Function] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "sum of exp": lambda z: z.exp().sum(1, keepdim=True).repeat(1, 6),
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "atan": torch.atan,
    "relu": F.relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "clamp": lambda z: z.clamp(-2, 2),
    "softsign": F.softsign,
    "ndtr": torch.special.ndtr,
    "softmax": lambda z: z.softmax(1),
    "log_softmax": lambda z: z.log_softmax(1).clamp(min=-9),
    "nan_to_num": lambda z: z.nan_to_num(0.0, 0.0, 0.0),
    "amax": lambda z: z.amax(1, keepdim=True).repeat(1, 6),
    "logsumexp": lambda z: z.logsumexp(1, keepdim=True).repeat(1, 6),
    "gaussian": lambda z: torch.exp(-z.square()),
}


@pytest.mark.parametrize("fill", list(FILLS))
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functions_of_infinity(name: str, fill: str) -> None:
    """There a function of single entries is a constant, which keeps what arrives."""

    def function(z: Tensor) -> Tensor:
        return FUNCTIONS[name](FILLS[fill](z))

    if function(torch.randn(3, 6, dtype=torch.float64)).isfinite().all():
        holds(function)


def assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[LEFT] = 0.0
    return x


INDEX = torch.tensor([[0, 1]]).expand(3, 2)
CONSTANTS: dict[str, Function] = {
    "where": lambda x: torch.where(MASKED, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(MASKED, 0.0),
    "masked_fill of another number": lambda x: x.masked_fill(MASKED, 0.7),
    "set_item": assigned,
    "pad": lambda x: F.pad(x[:, :4], (1, 1)),
    "cat": lambda x: torch.cat([x[:, :3], x.new_zeros(3, 3)], 1),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([1, 2]), 0.0),
    "scatter": lambda x: x.new_zeros(3, 6).scatter(1, INDEX, x[LEFT]),
    "index_copy": lambda x: x.new_zeros(3, 6).index_copy(1, torch.tensor([0, 1]), x[LEFT]),
    "slice_scatter": lambda x: torch.slice_scatter(x.new_zeros(3, 6), x[LEFT], 1, 0, 2),
    "masked_scatter": lambda x: x.new_zeros(3, 6).masked_scatter(MASKED.expand(3, 6), x),
    "nan_to_num": lambda x: torch.where(MASKED, x, torch.nan).nan_to_num(0.0),
}


@pytest.mark.parametrize("name", list(CONSTANTS))
def test_constants_that_are_filled_in(name: str) -> None:
    """What rules that reach zeros give to them stays there, and the zeros of a ReLU beside them pass theirs on."""
    holds(CONSTANTS[name])
    holds(lambda x: CONSTANTS[name](torch.relu(x)))


def test_numbers_that_are_dropped_on_the_way() -> None:
    """A row without any score is NaN, and fills the report with NaN, though the map is finite."""
    mask = torch.ones(6, 6, dtype=torch.bool).tril(-1)

    def attends(x: Tensor) -> Tensor:
        scores = (x[:, :, None] * x[:, None]).masked_fill(~mask, -math.inf)
        return (scores.softmax(-1) @ x[..., None])[:, 1:, 0].repeat(1, 2)[:, :6]

    holds(attends)
