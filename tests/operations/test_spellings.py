"""One operation has one map, however it is written: spellings are generated, and compared with the plain one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Detach
from tests.operations import spellings
from tests.two_phase_checks import gradients
from tests.unrolled import assert_close, random, weigh

Function = Callable[..., Any]
RULES = ("epsilon_gamma", "attnlrp", "cp_lrp", "epsilon_plus")


class Attends(nn.Module):
    """[N, 3, 4] to [N, 3]: attention over 3 positions, some function of scores and values."""

    def __init__(self, attention: Function) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.q, self.k, self.v = (nn.Linear(4, 3).double() for _ in range(3))
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.q(x) @ self.k(x).mT, self.v(x)).mean(1)  # type: ignore[no-any-return]


def by(softmax: Function) -> Function:
    return lambda z, v: softmax(z) @ v


@cache
def plain(rule: str) -> Tensor:
    return LRP(Attends(by(lambda z: torch.softmax(z, -1))), rule).attribute(random(2, 3, 4), weigh)


def compare(attention: Function, expected: Callable[[str], Tensor] = plain) -> None:
    for rule in RULES:
        found = LRP(Attends(attention), rule, strict=True).attribute(random(2, 3, 4), weigh)
        assert_close(found, expected(rule), rule, 1e-9)


class Gates(nn.Module):
    """[N, 4] to [N, 2]: a gated signal between linear maps."""

    def __init__(self, gate: Function) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.signal, self.opens, self.last = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 2)
        self.double()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self.signal(x), self.opens(x)))  # type: ignore[no-any-return]


@cache
def plain_gate(rule: str) -> Tensor:
    return LRP(Gates(lambda z, g: z * torch.sigmoid(g)), rule).attribute(random(3, 4), 1)


def compare_gates(gate: Function) -> None:
    for rule in RULES:
        found = LRP(Gates(gate), rule, strict=True).attribute(random(3, 4), 1)
        assert_close(found, plain_gate(rule), rule, 1e-9)


GATES = [*spellings.spellings(spellings.GATE, 50), *((name,) for name in spellings.DIVIDED)]


@pytest.mark.parametrize("spelling", GATES, ids=", ".join)
def test_gates(spelling: spellings.Spelling) -> None:
    compare_gates(spellings.gate(spelling))


@pytest.mark.parametrize("spelling", spellings.spellings(spellings.SOFTMAX, 100), ids=", ".join)
def test_softmax(spelling: spellings.Spelling) -> None:
    compare(by(spellings.softmax(spelling)))


@pytest.mark.parametrize("name", spellings.WHOLE)
def test_whole_softmaxes(name: str) -> None:
    compare(by(spellings.WHOLE[name]))


@cache
def plain_masked(rule: str) -> Tensor:
    return LRP(Attends(by(spellings.MASKED["minus infinity"])), rule).attribute(random(2, 3, 4), weigh)


@pytest.mark.parametrize("name", spellings.MASKED)
def test_masked_softmax(name: str) -> None:
    compare(by(spellings.MASKED[name]), plain_masked)


@pytest.mark.parametrize("name", spellings.MASKED_LAST)
def test_masked_attention_divided_last(name: str) -> None:
    compare(spellings.MASKED_LAST[name], plain_masked)


@pytest.mark.parametrize("spelling", spellings.spellings(spellings.SOFTMAX, 40, seed=1), ids=", ".join)
def test_softmax_computed_twice(spelling: spellings.Spelling) -> None:
    compare(by(spellings.softmax(spelling, twice=True)))


@pytest.mark.parametrize("spelling", spellings.spellings(spellings.ATTENTION, 60), ids=", ".join)
def test_attention_divided_last(spelling: spellings.Spelling) -> None:
    compare(spellings.attention(spelling))


@cache
def plain_constant(rule: str) -> Tensor:
    return LRP(Gates(lambda z, g: z * spellings.CONSTANTS["full_like"](g)), rule).attribute(random(3, 4), 1)


@pytest.mark.parametrize("name", spellings.CONSTANTS)
def test_constants(name: str) -> None:
    constant = spellings.CONSTANTS[name]
    assert bool((constant(random(3, 5)) == 2).all())
    for rule in RULES:
        found = LRP(Gates(lambda z, g: z * constant(g)), rule, strict=True).attribute(random(3, 4), 1)
        assert_close(found, plain_constant(rule), rule, 1e-9)


class Layers(nn.Module):
    """[N, 4] to [N, 2]: a linear map of a weight of the model's own between others."""

    def __init__(self, layer: Function) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(6, 2)
        self.weight, self.shift = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6))
        self.double()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(self.first(x), self.weight)))  # type: ignore[no-any-return]


LAYER_RULES: dict[str, Any] = {
    "epsilon_gamma": "epsilon_gamma",
    "attnlrp": "attnlrp",
    "zplus": "zplus",
    "gamma": "gamma",
}


@cache
def plain_layer(rule: str) -> Tensor:
    return LRP(Layers(F.linear), LAYER_RULES[rule]).attribute(random(3, 4), 1)


LAYERS = [*spellings.spellings(spellings.LAYER, 20), *((name,) for name in spellings.LAYERS)]


@pytest.mark.parametrize("spelling", LAYERS, ids=", ".join)
def test_layers(spelling: spellings.Spelling) -> None:
    for name, rule in LAYER_RULES.items():
        found = LRP(Layers(spellings.layer(spelling)), rule, strict=True).attribute(random(3, 4), 1)
        assert_close(found, plain_layer(name), name, 1e-9)


# Reports, losses and what is none of these ---------------------------------------------------------------

PAIRS: dict[str, tuple[type[nn.Module], Function, Function]] = {
    "softmax of two tensors": (Attends, by(lambda z: torch.softmax(z, -1)), by(spellings.WHOLE["columns"])),
    "attention divided last": (
        Attends,
        by(lambda z: torch.softmax(z, -1)),
        spellings.attention(("minus the maximum", "exp", "@", "sum", "/")),
    ),
    "attention over edges": (
        Attends,
        by(lambda z: torch.softmax(z, -1)),
        spellings.attention(("no shift", "2 **", "edges", "sum", "times 1 /")),
    ),
    "sigmoid": (Gates, lambda z, g: z * torch.sigmoid(g), spellings.gate(("1 / (1 + exp(-g))", "signal times gate"))),
    "exp(logsigmoid)": (
        Gates,
        lambda z, g: z * torch.sigmoid(g),
        spellings.gate(("exp(logsigmoid)", "signal times gate")),
    ),
    "softmax over [g, 0]": (
        Gates,
        lambda z, g: z * torch.sigmoid(g),
        spellings.gate(("softmax by hand", "signal times gate")),
    ),
    "quotient": (Gates, lambda z, g: z * torch.sigmoid(g), spellings.gate(("z / (1 + exp(-g))",))),
    "layer": (Layers, F.linear, spellings.layer(("h[:, None], w", "h w", "sum"))),
    "constant": (Gates, lambda z, g: z * torch.full_like(g, 2.0), lambda z, g: z * spellings.CONSTANTS["halves"](g)),
}


def given(model: type[nn.Module]) -> tuple[Tensor, Any]:
    return (random(2, 3, 4), weigh) if model is Attends else (random(3, 4), 1)


REPORTED = [(name, rule) for name in PAIRS for rule in (*RULES, "flat", "alpha2_beta1")]
REPORTED.remove(("softmax of two tensors", "alpha2_beta1"))  # a shift of the tensors' own shape shares by size there


@pytest.mark.parametrize(("name", "rule"), REPORTED)
def test_the_report_of_a_spelling_adds_up(name: str, rule: str) -> None:
    model, plain, spelled = PAIRS[name]
    x, target = given(model)
    expected = LRP(model(plain), rule).attribute(x, target)
    assert_close(LRP(model(spelled), rule).attribute(x, target), expected, rule, 1e-9)
    report = LRP(model(spelled), rule).report(x, target)
    report.check(1e-9)
    assert report.relevance == pytest.approx(float(expected.sum()), rel=1e-9)


@pytest.mark.parametrize("rule", ["epsilon_gamma", "attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_loss_on_the_relevance_of_a_spelling(name: str, rule: str) -> None:
    model, *functions = PAIRS[name]
    found = []
    for function in functions:
        explained, (x, target) = model(function), given(model)
        x.requires_grad_()
        relevance = LRP(explained, rule).attribute(x, target, create_graph=True)
        found.append([relevance, *gradients(relevance, [x, *explained.parameters()])])
    for expected, value in zip(*found, strict=True):
        assert torch.allclose(value, expected, rtol=1e-8, atol=1e-10 * float(expected.detach().abs().max()) + 1e-14)


@pytest.mark.parametrize("name", ["softmax of two tensors", "attention divided last", "attention over edges"])
def test_the_rule_for_softmax_is_selected(name: str) -> None:
    model, plain, spelled = PAIRS[name]
    x, target = given(model)
    rules = Rules.preset("epsilon").set(torch.softmax, Detach())
    expected = LRP(model(plain), rules).attribute(x, target)
    assert_close(LRP(model(spelled), rules).attribute(x, target), expected, name, 1e-9)
    rows = [row for row in rules.plan(model(spelled), x, target=target).rows if row.operation == "softmax"]
    assert rows and all("written by hand" in row.notes and row.rule.endswith(repr(Detach())) for row in rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", PAIRS)
def test_a_spelling_in_lower_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, plain, spelled = PAIRS[name]
    x, target = given(model)
    for rule in ("epsilon_gamma", "attnlrp"):
        expected = LRP(model(plain), rule).attribute(x, target)
        found = LRP(model(spelled).to(dtype), rule).attribute(x.to(dtype), target)
        assert_close(found.double(), expected, rule, tolerance)


SCALES = random(3, 3, seed=7).abs()
OTHERS: dict[str, tuple[Function, Function]] = {
    "a sum that differs among the entries that it divides": (
        lambda z, v: (z.exp() @ v) / (z.exp() @ SCALES),
        lambda z, v: (z.exp() @ v) / (z.exp() @ SCALES).detach(),
    ),
    "the shape of an exponential": (
        lambda z, v: (z.exp() / z.detach().exp().sum(-1, keepdim=True).expand_as(z.exp())) @ v,
        lambda z, v: (z.exp() / z.detach().exp().sum(-1, keepdim=True)) @ v,
    ),
    "sums of others": (
        lambda z, v: (z.exp() / v.exp().sum(-1, keepdim=True)) @ v,
        lambda z, v: (z.exp() / v.exp().sum(-1, keepdim=True).detach()) @ v,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_divides_something_else_is_a_constant(name: str) -> None:
    found, expected = (LRP(Attends(function), "attnlrp").attribute(random(2, 3, 4), weigh) for function in OTHERS[name])
    assert_close(found, expected, name, 1e-12)
