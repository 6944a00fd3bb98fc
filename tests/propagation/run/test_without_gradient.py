"""Parts of the path that run without gradients: their relevance is cut, and that is said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, GradientXInput, InputError, UncoveredOperationError, UncoveredOperationWarning
from tests.models import settle
from tests.unrolled import assert_close, dense, random, share_by, weigh

Path = Callable[[Any, Tensor], Tensor]


class Branches(nn.Module):
    """[N, 4] to [N, 3]: two layers, and something of the input beside them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.path = path
        settle(self)
        self.register_buffer("kept", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.path(self, x)


def _under(mode: Any, compute: Callable[[], Any]) -> Any:
    with mode():
        return compute()


CUT: dict[str, Path] = {
    "a layer": lambda m, x: m.last(F.relu(_under(torch.no_grad, lambda: m.first(x)))) + x[:, :3],
    "a layer, under inference_mode": lambda m, x: _under(torch.inference_mode, lambda: m.first(x))[:, :3] + x[:, :3],
    "a factor": lambda m, x: m.last(m.first(x) * _under(torch.no_grad, lambda: m.first(x).exp())),
    "written": lambda m, x: m.last(m.first(x).mul_(_under(torch.no_grad, lambda: m.first(x).exp()))),
    "assigned to a part": lambda m, x: m.last(
        torch.cat([_assigned(_under(torch.no_grad, lambda: m.first(x))), m.first(x)[:, 1:]], 1)
    ),
    "by way of constants": lambda m, x: m.first(x)[:, :3] + m.last(_under(torch.no_grad, lambda: m.first(x)).tanh()),
}


def _assigned(h: Tensor) -> Tensor:
    out = torch.zeros(len(h), 1, dtype=h.dtype)
    out[:, 0] = h[:, 0]
    return out


@pytest.mark.parametrize("name", CUT)
def test_a_part_without_gradients_is_named_once(name: str) -> None:
    model, x = Branches(CUT[name]), random(3, 4)
    with pytest.warns(UncoveredOperationWarning, match=r"^linear in module 'first' \(Linear\) ran under") as found:
        LRP(model).attribute(x, weigh)
    assert len(found) == 1
    with pytest.raises(UncoveredOperationError, match="module 'first'"):
        LRP(model, strict=True).attribute(x, weigh)
    with pytest.warns(UncoveredOperationWarning):
        plan, report = LRP(model).rules.plan(model, x, target=weigh), LRP(model).report(x, weigh)
    assert [(row.name, row.operation) for row in plan.uncovered] == [("first", "linear")]
    assert [(entry.name, entry.operation) for entry in report.entries if not entry.covered] == [("first", "linear")]
    assert "NO RULE" in str(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradientXInput(model).attribute(x, weigh)  # which differentiates the model as it is


def test_what_is_cut_is_a_constant() -> None:
    model, x = Branches(CUT["a layer"]), random(3, 4)
    leaf = x.clone().requires_grad_()
    out = dense(share_by("epsilon"), model.last, dense(share_by("epsilon"), model.first, x).relu()) + leaf[:, :3]
    (c,) = torch.autograd.grad(weigh(out).sum(), leaf)
    with pytest.warns(UncoveredOperationWarning):
        assert_close(LRP(model, "epsilon").attribute(x, weigh), x * c)


def _statistics(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.kept.mul_(0.9).add_(x.mean(0), alpha=0.1)
        m.seen = float(x.abs().max())
    return m.last(m.first(x * m.kept))  # type: ignore[no-any-return]


FAIR: dict[str, Path] = {
    "a mask": lambda m, x: m.last(m.first(x * _under(torch.no_grad, lambda: (x > 0).to(x)))),
    "an index": lambda m, x: m.last(m.first(x[_under(torch.no_grad, lambda: x.sum(1).argsort())])),
    "a shape": lambda m, x: m.last(m.first(x + _under(torch.no_grad, lambda: torch.zeros_like(x) + 1.0))),
    "a type": lambda m, x: m.last(m.first(x * _under(torch.no_grad, lambda: torch.arange(4).type_as(x)))),
    "the place of a shape": lambda m, x: m.last(m.first(x.view_as(_under(torch.no_grad, lambda: 2 * x)))),
    "detach": lambda m, x: m.last(m.first(x)) + m.last(m.first(x).detach()),
    "detach, without gradients": lambda m, x: m.last(m.first(x)) + _under(torch.no_grad, lambda: x.detach())[:, :3],
    "data": lambda m, x: m.last(m.first(x)) * x.data[:, :1],
    "statistics that the model keeps": _statistics,
    "what is not used": lambda m, x: (_under(torch.no_grad, lambda: m.first(x)).mean(), m.last(m.first(x)))[1],
    "what is only compared": lambda m, x: m.last(m.first(x).masked_fill(_above(m, x), 0.0)),
}


def _above(m: Any, x: Tensor) -> Tensor:
    h = _under(torch.no_grad, lambda: m.first(x))
    return m.first(x) > h + 1  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FAIR)
def test_what_has_no_slope_or_is_detached_is_no_cut(name: str) -> None:
    model, x = Branches(FAIR[name]), random(3, 4)
    LRP(model, strict=True).attribute(x, weigh)  # warnings are errors
    assert not LRP(model).rules.plan(model, x, target=weigh).uncovered


def test_where_all_is_cut_there_is_nothing_to_explain() -> None:
    model = Branches(lambda m, x: m.last(_under(torch.no_grad, lambda: m.first(x))))
    with pytest.raises(InputError, match=r"A part of the model runs under torch\.no_grad"):
        LRP(model).attribute(random(3, 4), weigh)


def test_token_ids_that_are_embedded_without_gradients() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.out = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 3)
            settle(self)

        def forward(self, ids: Tensor) -> Tensor:
            with torch.no_grad():
                places = self.places(ids)
            return self.out((self.words(ids) + places).mean(1))  # type: ignore[no-any-return]

    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.warns(UncoveredOperationWarning, match="embedding in module 'places'"):
        LRP(Reader()).attribute(ids, weigh)
