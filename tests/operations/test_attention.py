"""AttnLRP and CP-LRP in an attention, against plain autograd through factors that are scaled by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import CPLRP, AttnLRP, SoftmaxRule, TaylorSoftmax
from tests.compare import distance

ROLES = ("queries", "keys", "values", "mask")
ACTIVE = [active for n in range(1, 5) for active in itertools.combinations(ROLES, n)]


def shared(x: Tensor, share: float) -> Tensor:
    """``x``, whose gradient is multiplied by a share."""
    return share * x + ((1 - share) * x).detach()


class Attends(nn.Module):
    """Attention whose queries, keys, values and mask depend on the input or do not; the queries are a product."""

    def __init__(self, active: tuple[str, ...]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.active = active
        self.maps = nn.ModuleDict({f"{role}_": nn.Linear(4, 5 if role == "mask" else 4, bias=False) for role in ROLES})
        self.gain = nn.Linear(4, 4, bias=False)
        self.constant = torch.randn(2, 5, 4)
        self.shares: dict[str, float] | None = None

    def part(self, role: str, x: Tensor) -> Tensor:
        x = x if role in self.active else self.constant.to(x)
        out = self.maps[f"{role}_"](x)
        if role == "queries":
            factors = out, self.gain(x)
            out = factors[0] * factors[1]
            if self.shares is not None and role in self.active:
                out = shared(factors[0], 0.5) * shared(factors[1], 0.5)
        return out if self.shares is None or role not in self.active else shared(out, self.shares[role])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, mask = (self.part(role, x) for role in ROLES)
        return F.scaled_dot_product_attention(q, k, v, mask).sum((1, 2))


def expected(model: Attends, x: Tensor, shares: dict[str, float]) -> Tensor:
    model.shares = shares
    x = x.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (c,) = torch.autograd.grad(model(x).sum(), x, allow_unused=True)
    model.shares = None
    return torch.zeros_like(x) if c is None else x.detach() * c


@pytest.mark.parametrize("active", ACTIVE, ids="-".join)
def test_the_shares_of_attnlrp(active: tuple[str, ...]) -> None:
    """Of the four, 1/4, 1/4, 1/2; where a factor is constant the other has its part; whatever each is made of."""
    model, x = Attends(active).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    half = 0.5 if "values" in active and len(active) > 1 else 1.0
    both = "queries" in active and "keys" in active
    shares = {"queries": half / (1 + both), "keys": half / (1 + both), "values": half, "mask": half}
    assert distance(LRP(model, "lrp0").attribute(x), expected(model, x, shares)) < 1e-12
    if "values" in active:
        report = LRP(model, "lrp0").report(x)
        report.check(1e-9)


@pytest.mark.parametrize("active", [each for each in ACTIVE if "values" in each], ids="-".join)
def test_cp_lrp_gives_all_to_the_values(active: tuple[str, ...]) -> None:
    model, x = Attends(active).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    rules = Rules.preset("lrp0").set(F.scaled_dot_product_attention, CPLRP())
    shares = {"queries": 0.0, "keys": 0.0, "values": 1.0, "mask": 0.0}
    assert distance(LRP(model, rules).attribute(x), expected(model, x, shares)) < 1e-12


@pytest.mark.parametrize("rule", [TaylorSoftmax(), AttnLRP()], ids=repr)
def test_a_rule_for_the_softmax_alone_leaves_the_products_to_theirs(rule: SoftmaxRule) -> None:
    """Uniform counts the factors of the queries, which are two; AttnLRP does not."""
    model, x = Attends(("queries", "keys", "values")).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    queries, keys = (1 / 4, 1 / 4) if rule == AttnLRP() else (1 / 3, 1 / 6)
    shares = {"queries": queries, "keys": keys, "values": 1 / 2, "mask": 0.0}
    rules = Rules.preset("lrp0").set(F.scaled_dot_product_attention, rule)
    assert distance(LRP(model, rules).attribute(x), expected(model, x, shares)) < 1e-12
