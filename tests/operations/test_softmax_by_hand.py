"""Softmax written by hand, in every way of stabilising it: one map, which is that of torch.softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Detach
from tests.two_phase_checks import gradients
from tests.unrolled import assert_close, random, weigh

Softmax = Callable[[Tensor], Tensor]
RULES = ("epsilon_gamma", "attnlrp", "cp_lrp", "flat")


class Attends(nn.Module):
    """[N, 3, 4] to [N, 3]: attention over 3 positions, with some softmax of the scores."""

    def __init__(self, softmax: Softmax) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.q, self.k, self.v = (nn.Linear(4, 3).double() for _ in range(3))
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        return (self.softmax(self.q(x) @ self.k(x).mT) @ self.v(x)).mean(1)  # type: ignore[no-any-return]


def _normalised(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


def _in_place(s: Tensor) -> Tensor:
    e = (s - s.amax(-1, keepdim=True)).exp_()
    e /= e.sum(-1, keepdim=True)
    return e


def _all_in_place(s: Tensor) -> Tensor:
    s -= s.amax(-1, keepdim=True).detach()
    s.exp_()
    return s.div_(s.sum(-1, keepdim=True))


def _with_out(s: Tensor) -> Tensor:
    e, total = torch.empty_like(s), s.new_empty(0)
    torch.exp(s, out=e)
    torch.sum(e, -1, keepdim=True, out=total)
    return e / total


def _by_groups(s: Tensor) -> Tensor:
    """As libraries for graphs write it: sums into places, then look-up."""
    e = (s - s.max()).exp().flatten(0, 1)
    index = torch.zeros(3, dtype=torch.long)
    total = s.new_zeros(len(e), 1).index_add_(1, index, e)
    return (e / total[:, index]).view_as(s)


def _overwritten(s: Tensor) -> Tensor:
    """The scores go on to serve for something else."""
    e = s.exp()
    s[..., 0] = 7.0
    total = e.sum(-1, keepdim=True)
    s.zero_()
    return e / total


SPELLINGS: dict[str, Softmax] = {
    "unstabilised": lambda s: _normalised(torch.exp(s)),
    "less a number": lambda s: _normalised(torch.exp(s - 3.0)),
    "less the maximum": lambda s: _normalised(torch.exp(s - s.max(-1, keepdim=True).values)),
    "less the maximum, detached": lambda s: _normalised(torch.exp(s - s.amax(-1, keepdim=True).detach())),
    "less the largest of all": lambda s: _normalised((s - s.max()).exp()),
    "exp of log_softmax": lambda s: torch.exp(torch.log_softmax(s, -1)),
    "exp of the function": lambda s: F.log_softmax(s, -1).exp(),
    "less logsumexp": lambda s: torch.exp(s - torch.logsumexp(s, -1, keepdim=True)),
    "less logsumexp, unsqueezed": lambda s: torch.exp(s - s.logsumexp(-1)[..., None]),
    "less the logarithm of the sum": lambda s: torch.exp(s - s.exp().sum(-1, keepdim=True).log()),
    "sum unsqueezed": lambda s: s.exp() / s.exp().sum(-1).unsqueeze(-1),
    "sum indexed by None": lambda s: (lambda e: e / e.sum(-1)[..., None])(s.exp()),
    "sum reshaped": lambda s: (lambda e: e / e.sum(-1).view(-1, 3, 1))(s.exp()),
    "sum expanded": lambda s: (lambda e: e / e.sum(-1, keepdim=True).expand_as(e))(s.exp()),
    "mean": lambda s: (lambda e: e / e.mean(-1, keepdim=True) / 3)(s.exp()),
    "times the inverse": lambda s: (lambda e: e * e.sum(-1, keepdim=True).reciprocal())(s.exp()),
    "times one over the sum": lambda s: (lambda e: (1 / e.sum(-1, keepdim=True)) * e)(s.exp()),
    "transposed": lambda s: (lambda e: (e.mT / e.sum(-1)[:, None, :]).mT)(s.exp()),
    "in place": _in_place,
    "all in place": _all_in_place,
    "with out=": _with_out,
    "by groups": _by_groups,
    "of scores that are overwritten": _overwritten,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_softmax_by_hand_is_a_softmax(name: str, rule: str) -> None:
    native, by_hand, x = Attends(lambda s: torch.softmax(s, -1)), Attends(SPELLINGS[name]), random(2, 3, 4)
    with torch.no_grad():
        assert torch.allclose(native(x), by_hand(x), atol=1e-12)
    expected = LRP(native, rule).attribute(x, weigh)
    assert_close(LRP(by_hand, rule).attribute(x, weigh), expected, tolerance=1e-12)
    reports = [LRP(model, rule).report(x, weigh) for model in (native, by_hand)]
    reports[1].check(1e-10)
    if rule != "flat" and name != "mean":  # of which the shares of single rows add up otherwise
        shares = [torch.tensor(report.absorbed.get("softmax", 0.0)) for report in reports]
        assert torch.allclose(shares[0], shares[1], rtol=1e-5, atol=1e-6)


def test_the_default_is_the_derivative_of_a_softmax() -> None:
    """On one linear map of the probabilities: R_i = z_i sum_k w_k dp_k / dz_i."""
    x = random(2, 3)
    weight = random(3, 1, seed=4)

    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, z: Tensor) -> Tensor:
            return _normalised(torch.exp(z - z.max(1, keepdim=True).values)) @ self.weight

    p = torch.softmax(x, 1)
    expected = x * p * (weight[:, 0] - (p * weight[:, 0]).sum(1, keepdim=True))
    assert_close(LRP(Weighed(), "lrp0").attribute(x, 0), expected, tolerance=1e-12)


@pytest.mark.parametrize("rule", ["epsilon_gamma", "attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", [name for name in SPELLINGS if name != "with out="])  # which autograd refuses itself
def test_the_loss_on_the_relevance_of_a_softmax_by_hand(name: str, rule: str) -> None:
    found = []
    for softmax in (lambda s: torch.softmax(s, -1), SPELLINGS[name]):
        model, x = Attends(softmax), random(2, 3, 4).requires_grad_()
        relevance = LRP(model, rule).attribute(x, weigh, create_graph=True)
        found.append([relevance, *gradients(relevance, [x, *model.parameters()])])
    for expected, value in zip(*found, strict=True):
        assert torch.allclose(value, expected, rtol=1e-9, atol=1e-10 * float(expected.detach().abs().max()) + 1e-14)


def test_a_mask_within_it() -> None:
    mask = torch.ones(3, 3, dtype=torch.float64).tril()
    x = random(2, 3, 4)
    native = Attends(lambda s: torch.softmax(s.masked_fill(mask == 0, -torch.inf), -1))
    spellings: list[Softmax] = [
        lambda s: _normalised(s.exp() * mask),
        lambda s: _normalised(s.exp().masked_fill(mask == 0, 0.0)),
        lambda s: _normalised(torch.exp(s.masked_fill(mask == 0, -torch.inf))),
    ]
    expected = LRP(native, "attnlrp").attribute(x, weigh)
    for softmax in spellings:
        assert_close(LRP(Attends(softmax), "attnlrp").attribute(x, weigh), expected, tolerance=1e-12)
        LRP(Attends(softmax), "attnlrp").report(x, weigh).check(1e-10)


def test_the_rule_for_softmax_is_selected() -> None:
    rules, x = Rules.preset("epsilon").set(torch.softmax, Detach()), random(2, 3, 4)
    native, by_hand = Attends(lambda s: torch.softmax(s, -1)), Attends(SPELLINGS["less the maximum"])
    assert_close(LRP(by_hand, rules).attribute(x, weigh), LRP(native, rules).attribute(x, weigh), tolerance=1e-12)
    rows = [row for row in rules.plan(by_hand, x, target=weigh).rows if row.operation == "softmax"]
    assert len(rows) == 1 and "written by hand" in rows[0].notes and rows[0].rule.endswith(repr(Detach()))


OTHERS: dict[str, tuple[Softmax, Softmax]] = {
    "a sigmoid": (lambda s: s.exp() / (1 + s.exp()), lambda s: (s.exp() + 0 * s) / (1 + s.exp())),
    "a sum that is detached": (
        lambda s: (lambda e: e / e.sum(-1, keepdim=True).detach())(s.exp()),
        lambda s: s.exp() / s.detach().exp().sum(-1, keepdim=True),
    ),
    "an exponential of something else": (
        lambda s: s.exp() / s.mT.exp().sum(-1, keepdim=True),
        lambda s: s.exp() / s.mT.exp().sum(-1, keepdim=True).detach(),
    ),
}


@pytest.mark.parametrize("name", list(OTHERS)[1:])
def test_what_is_no_softmax_keeps_its_rules(name: str) -> None:
    """What divides is a constant, by Norm."""
    x = random(2, 3, 4)
    found, expected = (LRP(Attends(softmax), "attnlrp").attribute(x, weigh) for softmax in OTHERS[name])
    assert_close(found, expected, tolerance=1e-12)


def test_a_sigmoid_by_hand_is_no_softmax() -> None:
    rows: Any = LRP(Attends(OTHERS["a sigmoid"][0])).rules.plan(
        Attends(OTHERS["a sigmoid"][0]), random(2, 3, 4), target=weigh
    )
    assert "softmax" not in {row.operation for row in rows.rows}
