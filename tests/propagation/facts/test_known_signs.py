"""What is known to hold nothing below zero, on which the rules that go by signs take a shorter way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import AlphaBeta, Gamma, ZPlus
from tests.unrolled import assert_close, random

Between = Callable[[Tensor], Tensor]


class Signed(nn.Module):
    """A linear map of what was made from non-negative numbers [N, 4]."""

    def __init__(self, between: Between, inputs: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.between, self.last = between, nn.Linear(inputs, 3, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(torch.relu(x)))  # type: ignore[no-any-return]


def by_definition(rule: str, model: Signed, x: Tensor) -> Tensor:
    """What ZPlus and AlphaBeta give to the inputs of the last map, whatever their signs."""
    a = model.between(torch.relu(x)).detach()
    weight = model.last.weight.detach()
    terms, z = a[:, None] * weight, model(x).detach()[:, :1]
    up, down = terms.clamp(min=0), terms.clamp(max=0)

    def parts(share: Tensor) -> Tensor:
        whole = share.sum(2)
        size = 1e-6 * whole.square().mean(1, keepdim=True).sqrt()
        return share[:, 0] / torch.where(whole == 0, 1.0, whole + size * whole.sign())[:, :1]

    return parts(up) * z if rule == "zplus" else (2 * parts(up) - parts(down)) * z


MASK = torch.tensor([True, False, False, False])
FIRST = torch.tensor([0])
FILLED: dict[str, Between] = {
    "masked_fill": lambda h: h.masked_fill(MASK, -1.0),
    "masked_fill of a tensor": lambda h: h.masked_fill(MASK, torch.tensor(-1, dtype=h.dtype)),
    "masked_fill_": lambda h: h.masked_fill_(MASK, -1.0),
    "where": lambda h: torch.where(MASK, -1.0, h),
    "where as a method": lambda h: h.where(~MASK, -1.0),
    "item": lambda h: set_item(h, -1.0),
    "pad": lambda h: F.pad(h[:, 1:], (1, 0), value=-1.0),
    "pad by name": lambda h: F.pad(input=h[:, 1:], pad=(1, 0), mode="constant", value=-1.0),
    "constant_pad_nd": lambda h: torch.constant_pad_nd(h[:, 1:], (1, 0), -1.0),
    "ConstantPad1d": lambda h: nn.ConstantPad1d((1, 0), -1.0)(h[:, 1:]),
    "scatter": lambda h: h.scatter(1, torch.zeros(len(h), 1, dtype=torch.int64), -1.0),
    "scatter by name": lambda h: h.scatter(1, torch.zeros(len(h), 1, dtype=torch.int64), value=-1.0),
    "index_fill": lambda h: h.index_fill(1, FIRST, -1.0),
    "index_add": lambda h: h.index_add(1, FIRST, h[:, 1:2], alpha=-3),
    "cat": lambda h: torch.cat([h[:, 1:], h.new_full((len(h), 1), -1.0)], 1),
    "cat of integers": lambda h: torch.cat([h[:, 1:], torch.full((len(h), 1), -1)], 1),
    "fill_diagonal": lambda h: h.clone().fill_diagonal_(-1.0),
    "copy": lambda h: copied(h, torch.full((len(h), 1), -1.0, dtype=h.dtype)),
    "divisor_override": lambda h: F.avg_pool2d(h[:, None, None], 1, divisor_override=-2)[:, 0, 0],
    "bicubic": lambda h: F.interpolate(h[:, None, :, None].expand(-1, 1, -1, 4), (9, 4), mode="bicubic")[:, 0, :, 0],
    "segment_reduce": lambda h: torch.segment_reduce(h.T, "sum", lengths=torch.ones(4).long(), initial=-1).T,
    "plus a number": lambda h: h - 0.5,
    "less": lambda h: h - h.flip(1),
    "subtracted": lambda h: torch.sub(h, h.flip(1), alpha=2),
    "from a number": lambda h: 0.5 - h,
    "negated": lambda h: -h,
    "times a number": lambda h: h * -2,
    "over a number": lambda h: h / -2,
    "times a tensor": lambda h: h * random(4, seed=5),
    "diff": lambda h: torch.diff(h, dim=1, prepend=h[:, :1] * 2),
    "hardtanh": lambda h: F.hardtanh(h - 1, -2.0, 2.0),
    "clamp": lambda h: torch.clamp(h - 1, -2.0, 2.0),
    "minimum": lambda h: torch.minimum(h, h.new_full((4,), -1.0)),
    "product": lambda h: h * (h - 1),
}  # fmt: skip
KEPT: dict[str, Between] = {
    "masked_fill": lambda h: h.masked_fill(MASK, 1.0),
    "where": lambda h: torch.where(MASK, 0.0, h),
    "item": lambda h: set_item(h, 2.0),
    "pad": lambda h: F.pad(h[:, 1:], (1, 0), value=1.0),
    "index_add": lambda h: h.index_add(1, FIRST, h[:, 1:2], alpha=3),
    "times a number": lambda h: h * 2,
    "twice negated": lambda h: (-h).neg(),
    "plus a number": lambda h: 1 + h / 2,
    "less a negative number": lambda h: h - -1,
    "product": lambda h: h * torch.sigmoid(h.flip(1)),
    "quotient": lambda h: h / (1 + h.sum(1, keepdim=True)),
    "square": lambda h: (h - 1).square(),
    "abs": lambda h: (h - 1).abs(),
    "clamp": lambda h: torch.clamp(h - 1, 0.0, 2.0),
    "hardtanh": lambda h: F.hardtanh(h, 0.1, 2.0),
    "softmax": lambda h: torch.softmax(h, 1),
    "pooling": lambda h: F.max_pool1d(F.avg_pool1d(h[:, None], 3, 1, 1), 1)[:, 0],
    "upsampling": lambda h: F.interpolate(h[:, None], 8, mode="linear")[:, 0],
    "cat": lambda h: torch.cat([h.flip(1), h.exp()], 1),
    "dropout": lambda h: F.dropout(h, 0.5, training=False),
    "part by part": lambda h: torch.stack([part * 2 for part in h.unbind(1)], 1),
    "in place": lambda h: h.clone().mul_(3).add_(1),
}  # fmt: skip


def set_item(h: Tensor, value: float) -> Tensor:
    h = h.clone()
    h[:, 0] = value
    return h


def copied(h: Tensor, value: Tensor) -> Tensor:
    h = h * 1
    h[:, :1].copy_(value)
    return h


def given() -> Tensor:
    return random(3, 4, seed=1) + 0.7


def inputs_of(between: Between) -> int:
    return int(between(torch.relu(given())).shape[1])


def is_known(between: Between) -> bool:
    model = Signed(between, inputs_of(between))
    plan = Rules().set(nn.Linear, ZPlus()).plan(model, given())
    (row,) = [row for row in plan.rows if row.operation == "linear"]
    return row.nonnegative


@pytest.mark.parametrize("case", FILLED)
@pytest.mark.filterwarnings("ignore:The default behavior:UserWarning")
def test_what_may_be_negative_is_explained_as_such(case: str) -> None:
    between, x = FILLED[case], given()
    model = Signed(between, inputs_of(between))
    assert bool((between(torch.relu(x)) < 0).any())
    assert not is_known(between)
    for name, rule in {"zplus": ZPlus(), "alpha_beta": AlphaBeta(2.0, 1.0)}.items():
        # What the linear map receives; below it both maps are alike.
        inner = nn.Sequential(_Given(between), nn.Identity(), model.last)
        found = LRP(inner, rule).attribute_layers(x, "1", target=0)["1"]
        assert_close(found, by_definition(name, model, x), name)


class _Given(nn.Module):
    def __init__(self, between: Between) -> None:
        super().__init__()
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(torch.relu(x))


@pytest.mark.parametrize("case", KEPT)
def test_what_cannot_be_negative_is_known(case: str) -> None:
    between, x = KEPT[case], given()
    assert bool((between(torch.relu(x)) >= 0).all())
    assert is_known(between)
    # The fast path is the slow one: a sum with a constant tensor loses the knowledge.
    lost = Signed(lambda h: between(h) + torch.zeros(1, dtype=h.dtype), inputs_of(between))
    assert not is_known(lost.between)
    for rule in (ZPlus(), AlphaBeta(2.0, 1.0), Gamma(0.5)):
        known = LRP(Signed(between, inputs_of(between)), rule).attribute(x, target=0)
        assert_close(known, LRP(lost, rule).attribute(x, target=0), repr(rule))
