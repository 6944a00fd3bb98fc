"""What a product of matrices takes for a weight: what the model owns, however it is stored, and no data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import AlphaBeta, Epsilon, Gamma
from tests.models import settle
from tests.unrolled import assert_close, check, dense, each_rule, random, weigh

RULE = AlphaBeta(2, 1)


class Stored(nn.Module):
    """[N, 4] to [N, 5] by a weight that the model keeps in some way."""

    def __init__(self, product: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        weight = random(5, 4, seed=2)
        self.weight, self.free = nn.Parameter(weight), nn.Parameter(weight.clone())
        self.register_buffer("buffer", weight.clone())
        self.plain, self.held = weight.clone(), {"of": [weight.clone()]}
        self.product = product
        self.free.requires_grad_(False)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        self.given = given
        return self.product(self, x)


OWNED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "parameter": lambda m, x: x @ m.weight.T,
    "frozen parameter": lambda m, x: x @ m.free.T,
    "buffer": lambda m, x: x @ m.buffer.T,
    "attribute": lambda m, x: x @ m.plain.T,
    "attribute, as it is": lambda m, x: (m.plain @ x.T).T,
    "a buffer that was written, as it is": lambda m, x: (m.buffer.mul_(1.0) @ x.T).T,
    "in a container": lambda m, x: x @ m.held["of"][0].T,
    "made of a buffer": lambda m, x: x @ (2 * m.buffer / 2).T,
    "made of a buffer without gradients": lambda m, x: x @ _without_gradient(m.buffer).T,
    "a buffer that was written": lambda m, x: x @ m.buffer.mul_(2).div_(2).T,
    "mm": lambda m, x: torch.mm(m.buffer, x.T).T,
    "bmm": lambda m, x: torch.bmm(x[None], m.plain.T[None])[0],
    "addmm": lambda m, x: torch.addmm(torch.zeros(5, dtype=x.dtype), x, m.buffer.T),
    "tensordot": lambda m, x: torch.tensordot(x, m.buffer, ([1], [1])),
    "einsum": lambda m, x: torch.einsum("ni,oi->no", x, m.buffer),
    "bilinear": lambda m, x: F.bilinear(x, x.new_ones(len(x), 1), m.buffer[:, :, None]),
    "linear, by data": lambda m, x: F.linear(x, m.given),
    "convolution, by data": lambda m, x: F.conv1d(x[:, :, None], m.given[:, :, None])[:, :, 0],
}


def _without_gradient(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return weight * 1.0


@pytest.mark.parametrize("name", OWNED)
def test_the_rule_stands_at_a_weight_however_it_is_kept(name: str) -> None:
    model, x, weight = Stored(OWNED[name]), random(3, 4), random(5, 4, seed=2)
    expected = LRP(Stored(lambda m, x: F.linear(x, m.weight)), RULE).attribute(x, weigh)
    assert_close(LRP(model, RULE).attribute(x, weigh, weight), expected)
    assert not torch.allclose(expected, LRP(model, "lrp0").attribute(x, weigh, weight))
    assert torch.equal(model.get_buffer("buffer"), weight)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("product", ["@", "einsum", "made of data and a parameter", "kept by the model"])
def test_what_is_given_is_data_whether_it_asks_for_a_gradient_or_not(product: str, gradient: bool) -> None:
    def multiply(model: Any, x: Tensor) -> Tensor:
        if product == "einsum":
            return torch.einsum("ni,oi->no", x, model.given)
        if product == "made of data and a parameter":
            return x @ (model.given * model.weight).T
        return x @ model.given.T

    model, x = Stored(multiply), random(3, 4)
    given = random(5, 4, seed=2).requires_grad_(gradient)
    if product == "kept by the model":
        model.given = given
    weight = given.detach() * (model.weight.detach() if "parameter" in product else 1.0)
    for rule in (RULE, Gamma(0.5)):
        found = LRP(model, rule).attribute(x, weigh, given)
        leaf = x.clone().requires_grad_()
        (c,) = torch.autograd.grad(weigh(leaf @ weight.T).sum(), leaf)
        assert_close(found, x * c)


def test_what_comes_of_the_input_as_a_constant_is_data_in_both_phases() -> None:
    """Made of the input and of a parameter: no weight, with create_graph or without."""
    model = Stored(lambda m, x: x @ (m.weight * x.detach()[:1]).T)
    x = random(4, 4)
    leaf = x.clone().requires_grad_()
    (c,) = torch.autograd.grad(weigh(leaf @ (model.weight * x[:1]).T.detach()).sum(), leaf)
    for again in (False, True):
        assert_close(LRP(model, RULE).attribute(x, weigh, create_graph=again).detach(), x * c)


class LowRank(nn.Module):
    """A linear map whose weight comes in several factors, in one call."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation
        self.up, self.down = nn.Parameter(torch.empty(5, 2)), nn.Parameter(torch.empty(2, 4))
        self.head = nn.Linear(5, 3)
        self.register_buffer("scale", torch.empty(2))
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        operands = (self.up, x, self.down) if self.equation.startswith("or") else (x, self.down, self.up)
        if self.equation.count(",") == 3:
            operands = (*operands, self.scale)
        return self.head(torch.einsum(self.equation, *operands).relu())  # type: ignore[no-any-return]


EQUATIONS = ["ni,ri,or->no", "ni,ri,or", "or,ni,ri->no", "...i,ri,or->...o", "ni,ri,or,r->no", "n i, r i, o r -> n o"]


@each_rule
@pytest.mark.parametrize("equation", EQUATIONS)
def test_several_weights_in_one_einsum_are_one(equation: str, rule: str) -> None:
    model: Any = LowRank(equation)
    torch.nn.init.uniform_(model.scale, 0.5, 2.0)
    scale = model.scale if equation.count(",") == 3 else torch.ones_like(model.scale)
    weight = (model.up * scale @ model.down).detach()
    check(model, lambda share, x: dense(share, model.head, share(F.linear, x, weight).relu()), random(3, 4), rule=rule)


def test_a_normalisation_by_buffers_is_no_first_layer() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("mean", torch.empty(4))
            self.register_buffer("deviation", torch.empty(4))
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((x - self.mean) / self.deviation * self.deviation)  # type: ignore[no-any-return]

    model: Any = Scaled()
    plan = Rules().first(Epsilon(0.5)).plan(model, random(2, 4), target=0)
    assert [entry.operation for entry in plan.rows if "Epsilon(epsilon=0.5" in entry.rule] == ["linear"]
