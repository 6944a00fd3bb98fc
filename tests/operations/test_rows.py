"""The rows: nothing is said twice or left out, and what is declared as the docs say is what its neighbours are."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import LRP, DeepLift, ExcitationBackprop, GuidedBackprop, OperationError, Rules
from relprop.attribution.deep_lift import table as difference_table
from relprop.attribution.excitation import positive_sums
from relprop.operations import (
    Difference,
    Excitation,
    Holds,
    Ids,
    Kind,
    Operation,
    Truth,
    Writes,
    activations,
    operation,
    table,
)
from relprop.rules import AlphaBeta, Gamma
from tests.unrolled import assert_close, random

ROWS = [(function, row) for file in table._FILES for function, row in file.ROWS]


def test_a_row_has_no_default() -> None:
    for field in dataclasses.fields(Operation):
        assert field.default is dataclasses.MISSING
        assert field.default_factory is dataclasses.MISSING


def test_no_function_has_two_rows() -> None:
    found: dict[Any, Operation] = {}
    for function, row in ROWS:
        assert found.setdefault(function, row) == row, f"{row.name} is declared twice"
    assert len(found) > 800


def test_every_way_of_deep_lift_has_a_handler_and_a_row() -> None:
    apart = {Difference.AS_RULES, Difference.UNCOVERED, Difference.MOVES}
    assert set(difference_table.HANDLERS) | apart == set(Difference)
    assert {row.difference for _, row in ROWS} == set(Difference)


def test_every_way_of_excitation_has_a_handler_and_a_row() -> None:
    apart = {Excitation.AS_RULES, Excitation.SCATTERS, Excitation.INTERPOLATES}
    assert set(positive_sums.HANDLERS) | apart == set(Excitation)
    assert {row.excitation for _, row in ROWS} == set(Excitation)


def test_every_other_way_has_a_row() -> None:
    assert {row.ids for _, row in ROWS} == set(Ids)
    assert {row.image for _, row in ROWS} == set(relprop.operations.Image)
    assert {row.writes for _, row in ROWS} == set(Writes)
    assert {row.truth for _, row in ROWS} == set(Truth)
    for held in Holds:
        assert any(held in row.holds for _, row in ROWS)
    as_they_run = {Kind.GATE, Kind.SHIFT, Kind.UNKNOWN, Kind.UNSEEN}
    assert {row.kind for _, row in ROWS} | as_they_run == set(Kind)


def test_kinds_are_the_words_that_users_write() -> None:
    assert str(Kind.LINEAR) == f"{Kind.LINEAR}" == "linear"
    assert Kind.LINEAR in frozenset({"linear"})
    assert "linear" in frozenset({Kind.LINEAR})


def test_no_name_of_a_function_is_looked_for_beside_the_table() -> None:
    """What propagation asks of a function stands in its row: no set of names decides anything beside it."""
    inplace = {name for name in dir(Tensor) if name.endswith("_") and not name.endswith("__")}
    for path in Path(relprop.__file__).parent.joinpath("propagation").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Set, ast.Tuple, ast.List)):
                words = {part.value for part in node.elts if isinstance(part, ast.Constant)}
                assert not words & inplace, f"{path.name}, line {node.lineno}: {words & inplace}"


def test_a_row_may_be_declared_for_what_no_rule_covers() -> None:
    assert table.TORCH[torch.lgamma].kind is Kind.UNKNOWN
    with pytest.raises(OperationError, match="relprop has a row for relu"):
        operation(torch.relu, kind="affine")


class Own(nn.Module):
    """Activity that a function writes over, reshapes or asks about, with one of several spellings."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last, self.then = nn.Linear(4, 6).double(), nn.Linear(6, 2).double(), then

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.then(self.first(x))))


WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "fill_ with a tensor": (lambda h: h.clone().fill_(h[0, 0] * 2), lambda h: (h[0, 0] * 2).expand(h.shape)),
    "fill_ by keyword": (lambda h: h.clone().fill_(value=h[0, 0]), lambda h: h[0, 0].expand(h.shape)),
    "fill_ with a number": (lambda h: h + h.clone().fill_(2.0), lambda h: h + torch.full_like(h, 2.0)),
    "zero_": (lambda h: h + h.clone().zero_(), lambda h: h + 0.0),
    "copy_, not blocking": (lambda h: torch.empty_like(h).copy_(h, True), lambda h: h.clone()),
    "transpose_": (lambda h: h.clone().transpose_(0, 1).T.relu(), lambda h: h.relu()),
    "__iadd__": (lambda h: Tensor.__iadd__(h.clone(), h * h), lambda h: h + h * h),
    "__ipow__": (lambda h: Tensor.__ipow__(h.clone(), 3), lambda h: h**3),
    "short masks": (lambda h: h * (h > 0).short(), lambda h: h.relu()),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("rules", ["epsilon", "gamma"])
def test_what_writes_is_explained_as_what_it_writes(name: str, rules: str) -> None:
    """In place and written out are one function, and one map."""
    written, pure = WRITTEN[name]
    x = random(3, 4)
    chosen = Rules().set(nn.Linear, rules)
    assert_close(LRP(Own(written), chosen).attribute(x, 1), LRP(Own(pure), chosen).attribute(x, 1))


def test_propagation_imports_no_operation() -> None:
    for path in Path(relprop.__file__).parent.joinpath("propagation").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("relprop.operations", "relprop.rules")) for name in names), path.name


# A copy under a name of one's own ------------------------------------------------------------------------------


def _stated(row: Operation) -> dict[str, Any] | None:
    """What the public call says of a function that is explained by its quotient; None for any other."""
    handler, keeps = row.handler, inspect.getclosurevars(row.keeps).nonlocals
    if not isinstance(handler, partial) or keeps.keys() < {"low", "high", "gate"} or row.rectifies is not None:
        return None
    way = {activations.elementwise: ("quotient",), activations.about: ("root", "quotient")}.get(handler.func)
    if way is None or "between" in keeps:
        return None
    said = dict(zip(way, handler.args, strict=True))
    return {**said, "bounds": (keeps["low"], keeps["high"]), "gate": keeps["gate"], "difference": row.difference}


ELEMENTWISE = {
    f"{getattr(function, '__module__', None) or 'torch'}.{getattr(function, '__qualname__', row.name)}": (function, row)
    for function, row in table.TORCH.items()
    if _stated(row) is not None
}


BRING: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda z: z,
    lambda z: z.abs() + 1.5,
    lambda z: 0.15 + 0.7 * torch.sigmoid(z),
)
"""Into where a function may be defined: anywhere, above one, between zero and one."""


def _defined(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function of what brings any number to where this one is defined."""
    z = torch.linspace(-3, 3, 25, dtype=torch.float64)
    return next(bring for bring in BRING if bool(function(bring(z)).isfinite().all()))


class Around(nn.Module):
    """A function of a linear map: alone, as a factor of another, and of the argument that it multiplies."""

    def __init__(self, function: Callable[[Tensor], Tensor], bring: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.maps = nn.ModuleList(nn.Linear(5, 4).double() for _ in range(3))
        self.last = nn.Linear(12, 2).double()
        self.function, self.bring = function, bring

    def forward(self, x: Tensor) -> Tensor:
        z, signal, same = (layer(x) for layer in self.maps)

        def f(a: Tensor) -> Tensor:
            return self.function(self.bring(a))

        return self.last(torch.cat([f(z), signal * f(z), same * f(same)], 1))  # type: ignore[no-any-return]


EXPLAINED: dict[str, Callable[[nn.Module], Any]] = {
    "gamma": lambda model: LRP(model, Gamma(0.5), strict=True),
    "alpha2_beta1": lambda model: LRP(model, AlphaBeta()),
    "attnlrp": lambda model: LRP(model, "attnlrp"),
    "flat": lambda model: LRP(model, Rules.preset("epsilon_plus_flat")),
    "deep_lift": DeepLift,
    "reveal_cancel": lambda model: DeepLift(model, "reveal_cancel"),
    "excitation": ExcitationBackprop,
    "guided": GuidedBackprop,
}


@pytest.mark.filterwarnings("ignore::relprop.UncoveredOperationWarning")  # erfcx, of which DeepLIFT has no secant
@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")  # few of them are ReLUs
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_copy_is_explained_as_the_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, row = ELEMENTWISE[name]
    stated = _stated(row)
    assert stated is not None
    monkeypatch.setattr(table, "_known", table.operations())
    copy = operation(lambda z: function(z), kind="activation", name="copy", **stated)
    x, bring = random(3, 5, seed=8), _defined(function)
    for method, make in EXPLAINED.items():
        if method == "deep_lift" and row.difference is Difference.UNCOVERED:
            continue
        found = make(Around(copy, bring)).attribute(x, target=1)
        assert_close(found, make(Around(function, bring)).attribute(x, target=1), f"{name} {method}", 1e-12)


def test_the_copies_are_many() -> None:
    assert len({row.name for _, row in ELEMENTWISE.values()}) >= 45
