"""The plan: every call in order, with module, shapes and rule; and what no rule covers, by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from relprop import LRP, Gradient, Plan, Rules, UncoveredOperationError, UncoveredOperationWarning
from relprop.rules import AveragePool, Epsilon, Gamma, Mask, ZBox, Zero
from relprop.rules.plan import Row
from tests.models import close, images, mlp, residual, settle, vectors
from tests.networks import zoo

RULES = (
    Rules()
    .set(nn.Linear, Epsilon(0.25))
    .set("branch.*", "gamma")
    .set(nn.MaxPool2d, AveragePool())
    .first(ZBox(-3.0, 3.0))
    .last(Zero())
)


def computing(plan: Plan) -> list[Row]:
    """The rows but for those that only move values."""
    return [row for row in plan.rows if row.kind != "view"]


def test_rows_in_order() -> None:
    plan = RULES.plan(residual(), images(), 1)
    assert isinstance(plan, Plan)
    rows = computing(plan)
    assert [(row.name, row.module, row.operation, row.kind) for row in rows] == [
        ("stem", "Conv2d", "conv2d", "linear"),
        ("norm", "BatchNorm2d", "batch_norm", "batch_norm"),
        ("act", "ReLU", "relu", "activation"),
        ("branch.0", "Conv2d", "conv2d", "linear"),
        ("branch.1", "BatchNorm2d", "batch_norm", "batch_norm"),
        ("branch.2", "ReLU", "relu", "activation"),
        ("", "Residual", "add", "sum"),
        ("pool", "MaxPool2d", "max_pool2d", "pooling"),
        ("mean", "AdaptiveAvgPool2d", "adaptive_avg_pool2d", "affine"),
        ("head", "Linear", "linear", "linear"),
    ]
    assert [row.rule for row in rows] == [
        repr(ZBox(-3.0, 3.0)), "", "", repr(Gamma()), "", "", "", repr(AveragePool()), "", repr(Zero()),
    ]  # fmt: skip
    assert all(row.covered for row in plan.rows)
    assert plan.uncovered == ()


def test_shapes() -> None:
    rows = {row.name: row for row in computing(RULES.plan(residual(), images(), 1))}
    assert rows["stem"].inputs == ((2, 3, 6, 6),)
    assert rows["stem"].output == (2, 4, 6, 6)
    assert rows[""].inputs == ((2, 4, 6, 6), (2, 4, 6, 6))
    assert rows["head"].inputs == ((2, 16),)
    assert rows["head"].output == (2, 4)


def test_what_is_default() -> None:
    rows = {row.name: row for row in Rules().set("stem", Gamma()).plan(residual(), images()).rows}
    assert not rows["stem"].default
    assert rows["head"].default
    assert rows["head"].shown_rule == "Zero() (default)"
    assert rows["pool"].default
    assert rows["stem"].shown_rule == repr(Gamma())
    assert rows["act"].shown_rule == "autograd"


def test_the_last_rule_is_no_default() -> None:
    rows = {row.name: row for row in Rules().last(Gamma()).plan(residual(), images(), 1).rows}
    assert rows["head"].rule == repr(Gamma())
    assert not rows["head"].default
    assert rows["stem"].default


def test_notes() -> None:
    rows = {row.name: row for row in RULES.plan(residual(), images()).rows}
    assert "batch norm folded" in rows["stem"].notes
    assert "a >= 0" not in rows["stem"].notes
    assert {"a >= 0", "batch norm folded"} <= set(rows["branch.0"].notes)
    assert rows["head"].notes == ("a >= 0",)
    assert any("folded" in note and "not" not in note for note in rows["norm"].notes)


def test_not_folded() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(5)
            self.alone = nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:  # [N, 5, 4]: dimension 1 is not the layer's
            return self.alone(self.norm(self.linear(x)).relu())

    x = torch.randn(2, 5, 4, dtype=torch.float64)
    rows = {row.name: row for row in Rules().plan(settle(Elsewhere()), x).rows}
    assert "not folded" in rows["norm"].notes
    assert "not folded" in rows["alone"].notes
    assert not any("folded" in note for note in rows["linear"].notes)
    training = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    rows = {row.name: row for row in Rules().plan(training, images()).rows}
    assert any(note.startswith("not folded") for note in rows["1"].notes)


def test_a_row_for_each_call() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.layer(torch.tanh(self.layer(x)))) * 2

    rows = computing(Rules.preset("epsilon").plan(settle(Again()), vectors()))
    assert [(row.name, row.operation) for row in rows] == [
        ("layer", "linear"), ("", "tanh"), ("layer", "linear"), ("", "gelu"), ("", "mul"),
    ]  # fmt: skip


def test_a_filter_is_shown_with_the_rule_below_it() -> None:
    rows = {
        row.name: row for row in Rules().set("head", Gamma()).set("head", Mask((1,))).plan(residual(), images()).rows
    }
    assert rows["head"].rule == f"{Gamma()!r} then {Mask((1,))!r}"


def test_only_what_depends_on_the_input() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.prompt = nn.Parameter(torch.randn(1, 4))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x) + torch.tanh(self.prompt) + torch.sigmoid(y)

    rows = computing(Rules().plan(settle(Constant()), vectors(), additional_forward_args=vectors()))
    assert [row.operation for row in rows] == ["linear", "add", "add"]


def test_the_table() -> None:
    plan = RULES.plan(residual(), images(), 1)
    lines = str(plan).splitlines()
    assert lines[0].split() == ["module", "call", "in", "out", "rule", "notes"]
    assert set(lines[1]) == {"-", " "}
    assert lines[2].split() == ["(model):", "Residual", "2x3x6x6", "2x4"]
    assert lines[-1].startswith(f"{len(plan.rows)} calls; folded into layers: 2; ")
    assert lines[-1].endswith("; without a rule: none")
    assert sum(row.nonnegative for row in plan.rows) == 2
    assert sum(row.folded for row in plan.rows) == 4
    calls = [line for line in lines if "=>" in line]
    assert len(calls) == len(plan.rows)
    assert calls[0].split() == [
        "stem:", "Conv2d", "conv2d", "2x3x6x6", "2x4x6x6", "=>",
        "ZBox(low=-3.0,", "high=3.0,", "stabilizer=1e-06)", "batch", "norm", "folded",
    ]  # fmt: skip
    assert calls[6].startswith("(model): Residual")
    assert "2x4x6x6 2x4x6x6" in calls[6]
    (head,) = [line for line in lines if line.startswith("head: Linear")]
    assert "2x16" in head and "=> Zero()" in head and head.endswith("a >= 0")
    starts = {line.index("=>") for line in calls}
    assert len(starts) == 1  # columns stand under each other
    assert all(line == line.rstrip() for line in lines)
    default = str(Rules().plan(mlp(), vectors()))
    assert "=> Zero() (default)" in default


class Nested(nn.Module):
    """Containers, a module that makes no call, one that runs twice, one that never runs, one off the path."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5), nn.ReLU()))
        self.prompt, self.head, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(self.trunk[1](x)) + self.prompt(torch.ones_like(x))
        return self.head(h)  # type: ignore[no-any-return]


def test_every_module_in_order() -> None:
    plan = Rules().plan(settle(Nested()).eval(), vectors())
    assert [(row.name, row.module) for row in plan.modules] == [
        ("", "Nested"),
        ("trunk.1", "Linear"),
        ("trunk", "Sequential"),
        ("trunk.0", "Identity"),
        ("trunk.1", "Linear"),
        ("trunk.2", "Sequential"),
        ("trunk.2.0", "Dropout"),
        ("trunk.2.1", "ReLU"),
        ("prompt", "Linear"),
        ("head", "Linear"),
    ]
    assert all(
        row.output == ((len(vectors()), 4) if row.name not in ("", "head") else (len(vectors()), 3))
        for row in plan.modules
    )
    assert [line.split(":")[0] for line in str(plan).splitlines()[2:-1]] == [
        "(model)", "trunk.1", "trunk", "trunk.0", "trunk.1", "trunk.2", "trunk.2.0", "trunk.2.1",
        "prompt", "(model)", "head",
    ]  # fmt: skip


def test_the_plan_as_data_and_as_html() -> None:
    plan = RULES.plan(residual(), images(), 1)
    data = json.loads(json.dumps(plan.to_dict()))
    assert [row["operation"] for row in data["rows"]] == [row.operation for row in plan.rows]
    assert [row["name"] for row in data["modules"]] == [row.name for row in plan.modules]
    page = plan._repr_html_()
    assert page.count("<tr>") == len(str(plan).splitlines()) - 2
    assert "=&gt; ZBox(low=-3.0" in page


def test_a_plan_leaves_everything_alone() -> None:
    model, x = residual(), images()
    before = zoo.fingerprint(model)
    first = RULES.plan(model, x, 1)
    assert zoo.fingerprint(model) == before
    assert not _get_current_function_mode_stack()
    assert RULES.plan(model, x, 1) == first


def test_the_plan_is_what_happens() -> None:
    """The rules by name, as the plan lists them, give the same map."""
    model, x = residual(), images()
    by_row = Rules()
    for row in RULES.plan(model, x, 1).rows:
        if row.rule:
            rule = next(entry.rule for entry in RULES if repr(entry.rule) == row.rule)
            by_row = by_row.set(row.name, rule)
    close(LRP(model, by_row).attribute(x, 1), LRP(model, RULES).attribute(x, 1))


# -------------------------------------------------------------------------------------- what has no rule


def inverted(h: Tensor) -> Tensor:
    matrices = h[:, :, None] * h[:, None, :] + 3 * torch.eye(h.shape[1], dtype=h.dtype)
    return torch.linalg.inv(matrices)[:, 0]


UNCOVERED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "lgamma": (lambda h: torch.lgamma(h.square() + 1), "lgamma"),
    "inverse": (inverted, "linalg_inv"),
    "matrix exponential": (lambda h: torch.matrix_exp(h[:, :, None] * h[:, None, :])[:, 0], "matrix_exp"),
    "an active exponent": (lambda h: h.square().add(1.0) ** h.tanh(), "pow"),
    "an angle": (lambda h: torch.atan2(h, h.square() + 1), "atan2"),
}


class Inner(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def with_inner(function: Callable[[Tensor], Tensor]) -> nn.Module:
    blocks = nn.Sequential(nn.Linear(4, 4), Inner(function), nn.Linear(4, 4), Inner(function), nn.Linear(4, 3))
    return settle(nn.Sequential(blocks))


@pytest.mark.parametrize("name", list(UNCOVERED))
def test_what_has_no_rule_is_named_once_a_place(name: str) -> None:
    function, operation = UNCOVERED[name]
    model, x = with_inner(function), vectors()
    asks: list[Callable[[], Any]] = [
        lambda: LRP(model).attribute(x, 1),
        lambda: LRP(model).attribute_targets(x, [0, 1, 2]),
        lambda: LRP(model).report(x, 1),
        lambda: Rules().plan(model, x, 1),
    ]
    for ask in asks:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ask()
        assert [warning.category for warning in seen] == [UncoveredOperationWarning] * 2
        for warning, place in zip(seen, ("0.1", "0.3"), strict=True):
            assert f"{operation} in module '{place}' (Inner)" in str(warning.message)
            assert "plain autograd carries its relevance" in str(warning.message)


@pytest.mark.parametrize("name", list(UNCOVERED))
def test_strict_makes_it_an_error(name: str) -> None:
    function, operation = UNCOVERED[name]
    model = with_inner(function)
    before = zoo.fingerprint(model)
    for ask in (LRP(model, strict=True).attribute, LRP(model, strict=True).report):
        with pytest.raises(UncoveredOperationError, match=rf"{operation} in module '0\.1' \(Inner\)") as caught:
            ask(vectors(), 1)
        assert isinstance(caught.value, NotImplementedError)
    assert zoo.fingerprint(model) == before
    assert not _get_current_function_mode_stack()
    LRP(mlp(), strict=True).attribute(vectors(), 1)  # nothing to say


@pytest.mark.parametrize("name", list(UNCOVERED))
def test_it_shows_in_the_plan_and_in_the_report(name: str) -> None:
    function, operation = UNCOVERED[name]
    model, x = with_inner(function), vectors()
    with pytest.warns(UncoveredOperationWarning):
        plan = Rules.preset("epsilon").plan(model, x, 1)
    assert [(row.name, row.operation) for row in plan.uncovered] == [("0.1", operation), ("0.3", operation)]
    assert str(plan).count("=> NO RULE") == 2
    with pytest.warns(UncoveredOperationWarning):
        report = LRP(model).report(x, 1)
    assert [entry.name for entry in report.entries if entry.operation == operation] == ["0.1", "0.3"]
    # In the report too it must not look like an operation that plain autograd serves.
    assert str(report).count("NO RULE") == 2


def test_the_gradient_has_no_need_of_rules() -> None:
    model, x = with_inner(UNCOVERED["lgamma"][0]), vectors()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    close(Gradient(model).attribute(x, 1), expected)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *c: Tensor) -> Tensor:
        return c[0] * 2


def test_what_nobody_saw_is_named_too() -> None:
    model, x = with_inner(Doubled.apply), vectors()
    with pytest.warns(UncoveredOperationWarning, match=r"DoubledBackward .* no call relprop can see"):
        found = LRP(model, "lrp0").attribute(x, 1)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    close(found, x * expected)
    with pytest.warns(UncoveredOperationWarning):
        plan = Rules().plan(model, x)
    assert [row.operation for row in plan.uncovered] == ["DoubledBackward"] * 2
    with pytest.raises(UncoveredOperationError, match="DoubledBackward"):
        LRP(model, strict=True).attribute(x, 1)


def test_what_nobody_saw_is_named_by_the_module_where_it_ran() -> None:
    model = nn.Sequential(mlp(), Inner(Doubled.apply), nn.Linear(3, 2).double())
    with pytest.warns(UncoveredOperationWarning, match=r"DoubledBackward in module '1' \(Inner\)"):
        LRP(model).attribute(vectors(), 1)


def test_what_nobody_saw_at_the_end_of_a_model() -> None:
    for wrap in (lambda out: Doubled.apply(out), lambda out: Doubled.apply(out[:, 0])):
        model = nn.Sequential(mlp(), Inner(wrap))
        target = 1 if model(vectors()).dim() == 2 else None
        with pytest.warns(UncoveredOperationWarning, match="DoubledBackward"):
            LRP(model).attribute(vectors(), target)


def test_complex_numbers_carry_relevance_without_noise() -> None:
    model, x = with_inner(lambda h: torch.fft.fft(h).real), vectors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = LRP(model, "lrp0").attribute(x, 1)
        LRP(model, "lrp0").report(x, 1).check(1e-9)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    close(found, x * expected)
