"""Rules for linear maps at sums: every spelling of an addition, every rule, against shares written out term by term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, RuleError, Rules
from relprop.rules import (
    AbsoluteValue,
    AlphaBeta,
    Epsilon,
    Equal,
    Flat,
    Gamma,
    LinearMap,
    LinearRule,
    Rule,
    WSquare,
    Zero,
    ZPlus,
)
from tests.reference import linear, negative, positive, quotient

STABILIZER = 1e-6


def by_parts(of: Callable[[Tensor], Tensor], terms: list[Tensor], constant: Tensor) -> list[Tensor]:
    """The share of every term in the parts of all, beside a constant."""
    whole = sum(map(of, terms), of(constant))
    return [quotient(of(term), whole, STABILIZER * whole.abs()) for term in terms]


def zplus(terms: list[Tensor], constant: Tensor) -> list[Tensor]:
    return by_parts(positive, terms, constant)


def alpha_beta(terms: list[Tensor], constant: Tensor) -> list[Tensor]:
    pairs = zip(by_parts(positive, terms, constant), by_parts(negative, terms, constant), strict=True)
    return [2 * above - below for above, below in pairs]


def equal(terms: list[Tensor], constant: Tensor) -> list[Tensor]:
    return [torch.full_like(term, 1 / len(terms)) for term in terms]


def by_size(terms: list[Tensor], constant: Tensor) -> list[Tensor]:
    return by_parts(torch.abs, terms, constant)


def gamma(terms: list[Tensor], constant: Tensor) -> list[Tensor]:
    sign = torch.where(sum(terms, constant) < 0, -1.0, 1.0)
    return by_parts(lambda x: x + 0.25 * sign * positive(sign * x), terms, constant)


def value(terms: list[Tensor], constant: Tensor) -> list[Tensor]:
    return [quotient(term, sum(terms, constant)) for term in terms]


Shares = Callable[[list[Tensor], Tensor], list[Tensor]]
RULES: dict[str, tuple[Rule, Shares]] = {
    "zplus": (ZPlus(), zplus),
    "alpha1_beta0": (AlphaBeta(1, 0), zplus),
    "alpha2_beta1": (AlphaBeta(2, 1), alpha_beta),
    "flat": (Flat(), equal),
    "absolute_value": (AbsoluteValue(), by_size),
    "gamma": (Gamma(), gamma),
    "zero": (Zero(), value),
    "epsilon": (Epsilon(relative=True), lambda t, k: by_parts(lambda x: x, t, k)),
}


def in_place(x: Tensor, y: Tensor) -> Tensor:
    h = x.clone()
    h += y
    return h


def into(x: Tensor, y: Tensor) -> Tensor:
    h = torch.empty(0, dtype=x.dtype)
    torch.add(x, y, out=h)
    return h


CONSTANT = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
SPELLINGS: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor], tuple[float, float], float | Tensor]] = {
    "+": (torch.add, lambda x, y: x + y, (1, 1), 0.0),
    "+=": (torch.add, in_place, (1, 1), 0.0),
    "out": (torch.add, into, (1, 1), 0.0),
    "alpha": (torch.add, lambda x, y: torch.add(x, y, alpha=-2.0), (1, -2), 0.0),
    "method": (torch.add, lambda x, y: x.add(y, alpha=0.5), (1, 0.5), 0.0),
    "builtin": (torch.add, lambda x, y: sum([x, y]), (1, 1), 0.0),  # type: ignore[return-value]
    "-": (torch.sub, lambda x, y: x - y, (1, -1), 0.0),
    "subtract": (torch.sub, lambda x, y: torch.subtract(x, y, alpha=3), (1, -3), 0.0),
    "rsub": (torch.sub, lambda x, y: torch.rsub(x, y, alpha=2), (-2, 1), 0.0),
    "constant": (torch.add, lambda x, y: x + CONSTANT, (1, 0), CONSTANT),
    "number": (torch.add, lambda x, y: 0.5 + x, (1, 0), 0.5),
    "from a number": (torch.sub, lambda x, y: 1.5 - x, (-1, 0), 1.5),
    "stack": (torch.sum, lambda x, y: torch.stack(torch.broadcast_tensors(x, y)).sum(0), (1, 1), 0.0),
    "mean": (torch.mean, lambda x, y: torch.stack(torch.broadcast_tensors(x, y), -1).mean(-1), (0.5, 0.5), 0.0),
}


class Weighted(nn.Module):
    """A combination of two inputs, each entry of which counts by a weight of its own."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.combine = combine
        self.weight = nn.Parameter(torch.linspace(-1.5, 2.5, 6, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.combine(x, y) * self.weight).flatten(1).cumsum(1)[:, -1]


def given(wide: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 6 if wide else 1, generator=generator, dtype=torch.float64)
    x[0, 0] = y[0, 0] = 0.0
    x[1, 1] = 0.0
    return x, y


def expected(spelling: str, shares: Shares, weight: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    _, _, factors, constant = SPELLINGS[spelling]
    inputs = [each for each, factor in zip((x, y), factors, strict=True) if factor]
    terms = [factor * each.expand_as(x) for each, factor in zip((x, y), factors, strict=True) if factor]
    beside = torch.as_tensor(constant, dtype=x.dtype).expand_as(x)
    relevance = sum(terms, beside) * weight
    found = [share * relevance for share in shares(terms, beside)]
    return [part.sum_to_size(each.shape) for part, each in zip(found, inputs, strict=True)]


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rule", RULES)
def test_terms_share_as_the_rule_says(rule: str, spelling: str, wide: bool) -> None:
    operation, combine, factors, _ = SPELLINGS[spelling]
    model, (x, y) = Weighted(combine), given(wide)
    set_there, shares = RULES[rule]
    explainer = LRP(model, Rules().set(operation, set_there))
    if factors[1]:
        found: tuple[Tensor, ...] = explainer.attribute((x, y))
    else:
        found = (explainer.attribute(x, additional_forward_args=(y,)),)
    torch.testing.assert_close(
        list(found), expected(spelling, shares, model.weight.detach(), x, y), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rule", RULES)
def test_reports_hold(rule: str, spelling: str) -> None:
    operation, combine, factors, _ = SPELLINGS[spelling]
    x, y = given()
    explainer = LRP(Weighted(combine), Rules().set(operation, RULES[rule][0]))
    inputs: Any = (x, y) if factors[1] else x
    explainer.report(inputs, additional_forward_args=() if factors[1] else (y,)).check(1e-10)


@pytest.mark.parametrize("rule", ["flat", "absolute_value"])
def test_all_is_shared_out(rule: str) -> None:
    x, y = given()
    model = Weighted(lambda x, y: x + y)
    parts = LRP(model, Rules().set(torch.add, RULES[rule][0])).attribute((x, y))
    torch.testing.assert_close(sum(part.sum(1) for part in parts), model(x, y).detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_on_the_relevance_is_differentiated(rule: str) -> None:
    x, y = (each.abs() + 0.1 for each in given())  # where the shares are smooth
    y = -0.3 * y
    model, shares = Weighted(lambda x, y: x + y), RULES[rule][1]
    inputs = [each.clone().requires_grad_() for each in (x, y)]
    found = LRP(model, Rules().set(torch.add, RULES[rule][0])).attribute((inputs[0], inputs[1]), create_graph=True)
    gradients = torch.autograd.grad(found[0].pow(3).sum(), [*inputs, model.weight], materialize_grads=True)
    copies = [each.clone().requires_grad_() for each in (x, y, model.weight.detach())]
    relevance = expected("+", shares, copies[2], copies[0], copies[1])[0]
    torch.testing.assert_close(gradients, torch.autograd.grad(relevance.pow(3).sum(), copies), rtol=1e-8, atol=1e-10)


class Residual(nn.Module):
    """A skip connection over a layer, and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.head(torch.relu(h + self.second(h)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ["zplus", "flat", "absolute_value"])
def test_a_skip_connection(rule: str, dtype: torch.dtype) -> None:
    """Whole maps of a residual block, w^2 below and above, step by step."""
    torch.manual_seed(1)
    model = Residual().double()
    x = torch.randn(4, 4, dtype=torch.float64)
    at_sum, shares = RULES[rule]
    rules = Rules().set(nn.Linear, ZPlus()).set(torch.add, at_sum)
    h = torch.relu(model.first(x))
    branch = model.second(h)
    joined = torch.relu(h + branch)
    out = model.head(joined)
    relevance = torch.zeros_like(out)
    relevance[:, 1] = out[:, 1]
    relevance = linear(model.head, joined, relevance, "zplus")
    skip, over = (share * relevance for share in shares([h, branch], torch.zeros_like(h)))
    reference = linear(model.first, x, skip + linear(model.second, h, over, "zplus"), "zplus")
    reference = reference.detach()
    found = LRP(model.to(dtype), rules).attribute(x.to(dtype), 1).double()
    within = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    assert float((found - reference).abs().max() / reference.abs().max()) < within


@pytest.mark.parametrize("layers", [ZPlus(), WSquare(), Epsilon(relative=True)], ids=repr)
@pytest.mark.parametrize("rule", RULES)
def test_an_input_of_zero_that_is_skipped(rule: str, layers: Rule) -> None:
    """What equal parts give to an input of zero is read there, and the report holds."""
    torch.manual_seed(3)
    layer, head = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + torch.relu(self.layer(x)))  # type: ignore[no-any-return]

    x = torch.randn(3, 6, dtype=torch.float64)
    x[:, :3] = 0.0
    explainer = LRP(Skipping(), Rules().set(nn.Linear, layers).set(torch.add, RULES[rule][0]))
    explainer.report(x, 1).check(1e-9)
    if isinstance(layers, WSquare) and rule == "flat":
        found = explainer.attribute(x, 1)
        torch.testing.assert_close(found.sum(1), Skipping()(x)[:, 1].detach())
        assert bool((found[:, :3] != 0).all())


def test_rules_for_layers_reach_no_sums() -> None:
    """By name or by predicate: only where the operation is named does a rule for layers share a sum."""
    model, x = Residual().double(), torch.randn(2, 4, dtype=torch.float64)
    plain = LRP(model, Rules().set(nn.Linear, ZPlus())).attribute(x, 1)
    for rules in (
        Rules().set("*", ZPlus()),
        Rules().set(lambda name, module: True, ZPlus()),
        Rules.preset("zplus"),
    ):
        torch.testing.assert_close(LRP(model, rules).attribute(x, 1), plain)


def test_a_rule_of_ones_own() -> None:
    class Squares(LinearRule):
        def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
            whole = layer.forward(a * a, layer.modified(torch.square))
            return a * layer.transpose(z * c / whole, layer.modified(torch.square))

    x, y = (each.abs() + 0.1 for each in given())
    model = Weighted(lambda x, y: x + y)
    found = LRP(model, Rules().set(torch.add, Squares())).attribute((x, y))
    relevance = (x + y) * model.weight.detach()
    whole = x.square() + y.square()
    torch.testing.assert_close(found, (x.square() / whole * relevance, y.square() / whole * relevance))


def test_a_plan_shows_the_rule() -> None:
    model, x = Residual().double(), torch.randn(2, 4, dtype=torch.float64)
    rows = Rules().set(nn.Linear, ZPlus()).set(torch.add, AbsoluteValue()).plan(model, x).rows
    (row,) = (row for row in rows if row.operation == "add")
    assert (row.kind, row.rule, row.default) == ("sum", repr(AbsoluteValue()), False)


def test_what_serves_no_sum_says_what_does() -> None:
    with pytest.raises(RuleError, match=r"serves operations of kind gate, product.*Flat\(\)\) gives all terms equal"):
        LRP(Residual(), Rules().set(torch.add, Equal())).attribute(torch.randn(2, 4), 1)


def test_half_precision_refuses_equal_parts() -> None:
    with pytest.raises(RuleError, match="Use bfloat16"):
        LRP(Residual().half(), Rules().set(torch.add, Flat())).attribute(torch.randn(2, 4).half(), 1)


def test_complex_sums_are_named() -> None:
    model = Weighted(lambda x, y: torch.view_as_real(torch.complex(x, y) + torch.complex(y, x)).sum(-1))
    with pytest.warns(UserWarning, match="adds up complex numbers"):
        LRP(model, Rules().set(torch.add, ZPlus())).attribute(given())
