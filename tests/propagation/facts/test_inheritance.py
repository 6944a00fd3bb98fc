"""What a tensor keeps of what was known of those that it was made from: being a gate, the number of its factors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import CPLRP, Uniform
from tests.unrolled import assert_close, random

Between = Callable[[Tensor], Tensor]
Gated = Callable[[Tensor, Tensor, Tensor], Tensor]


# Gates -------------------------------------------------------------------------------------------

gate = torch.sigmoid
ONE = torch.ones((), dtype=torch.float64)
GATES: dict[str, Gated] = {
    "product, then signal": lambda a, b, z: (gate(a) * gate(b)) * z,
    "signal first": lambda a, b, z: gate(a) * (gate(b) * z),
    "1 + g": lambda a, b, z: (1 + gate(a)) * z,
    "z + g z": lambda a, b, z: z + gate(a) * z,
    "1 - g": lambda a, b, z: (1 - gate(a)) * z,
    "ones - g": lambda a, b, z: (torch.ones_like(a) - gate(a)) * z,
    "tensor - g": lambda a, b, z: (ONE - gate(a)) * z,
    "-g + 1": lambda a, b, z: (-gate(a) + 1) * z,
    "rsub": lambda a, b, z: torch.rsub(gate(a), 1) * z,
    "alpha": lambda a, b, z: torch.add(ONE, gate(a), alpha=-1) * z,
    "g - 1": lambda a, b, z: (gate(a) - 1) * z,
    "scaled": lambda a, b, z: (3 * gate(a) / 2) * z,
    "by a parameter": lambda a, b, z: (SCALE * gate(a)) * z,
    "sum of gates": lambda a, b, z: (gate(a) + gate(b)) * z,
    "difference of gates": lambda a, b, z: (gate(a) - gate(b)) * z,
    "quotient of gates": lambda a, b, z: (gate(a) / (gate(a) + gate(b))) * z,
    "function of a gate": lambda a, b, z: gate(a).sqrt() * z,
    "power of a gate": lambda a, b, z: gate(a) ** 2 * z,
    "where": lambda a, b, z: torch.where(HALF, gate(a), 0) * z,
    "where between gates": lambda a, b, z: torch.where(HALF, gate(a), gate(b)) * z,
    "masked": lambda a, b, z: gate(a).masked_fill(HALF, 1.0) * z,
    "item": lambda a, b, z: set_item(gate(a), 0.5) * z,
    "cat": lambda a, b, z: torch.cat([gate(a), gate(b)], 1)[:, ::2] * z,
    "stack": lambda a, b, z: torch.stack([gate(a), gate(b)]).mean(0) * z,
    "upsampled": lambda a, b, z: F.interpolate(gate(a)[:, None, :2], 4)[:, 0] * z,
    "pooled": lambda a, b, z: F.max_pool1d(gate(a)[:, None], 3, 1, 1)[:, 0] * z,
    "averaged": lambda a, b, z: gate(a).mean(1, keepdim=True) * z,
    "expanded": lambda a, b, z: gate(a)[:, :1].expand_as(z) * z,
    "chunked": lambda a, b, z: torch.cat(gate(a).chunk(2, 1)[::-1], 1) * z,
    "cumulated": lambda a, b, z: gate(a).cumprod(1) * z,
    "prod": lambda a, b, z: gate(a).prod(1, keepdim=True) * z,
    "dropped": lambda a, b, z: F.dropout(gate(a), 0.5, False) * z,
    "hardsigmoid": lambda a, b, z: F.hardsigmoid(a) * z,
    "tanh": lambda a, b, z: 0.5 * (1 + torch.tanh(a / 2)) * z,
    "tanh, not halved": lambda a, b, z: (1 + torch.tanh(a)) * z,
    "less tanh": lambda a, b, z: (1 - torch.tanh(a)) * z,
    "erf": lambda a, b, z: 0.5 * (1 + torch.erf(a)) * z,
    "relu6": lambda a, b, z: F.relu6(a + 3) / 6 * z,
    "hardtanh": lambda a, b, z: F.hardtanh(0.2 * a + 0.5, 0.0, 1.0) * z,
    "clamp": lambda a, b, z: (a / 6 + 0.5).clamp(0, 1) * z,
    "clamped from both sides": lambda a, b, z: (a + 3).clamp(min=0).clamp(max=6) * z,
    "einsum": lambda a, b, z: torch.einsum("nc,nc->nc", gate(a) * 2, z),
    "addcmul": lambda a, b, z: torch.addcmul(z, 1 - gate(a), z),
    "in place": lambda a, b, z: z.clone().mul_(gate(a).clone().neg_().add_(1)),
}  # fmt: skip
SIGNALS: dict[str, Gated] = {
    "tanh": lambda a, b, z: torch.tanh(a) * z,
    "scaled tanh": lambda a, b, z: (2 * torch.tanh(a)) * z,
    "tanh, hardly shifted": lambda a, b, z: (0.5 + torch.tanh(a)) * z,
    "a signal plus a gate": lambda a, b, z: (a + gate(b)) * z,
    "a gate times a signal": lambda a, b, z: (gate(b) * a) * z,
    "where": lambda a, b, z: torch.where(HALF, gate(a), b) * z,
    "clipped": lambda a, b, z: a.clamp(0, 1) * z,
    "relu6": lambda a, b, z: F.relu6(a) * z,
    "relu6 plus a number": lambda a, b, z: (F.relu6(a) + 1) * z,
    "clipped behind a bias": lambda a, b, z: (a + SCALE).clamp(0, 1) * z,
    "softmax": lambda a, b, z: torch.softmax(a, 1) * z,
    "softmax plus a number": lambda a, b, z: (1 + torch.softmax(a, 1)) * z,
    "a linear map of gates": lambda a, b, z: F.linear(gate(a), WEIGHT) * z,
}  # fmt: skip
SCALE = nn.Parameter(random(4, seed=6))
WEIGHT = nn.Parameter(random(4, 4, seed=7))
HALF = torch.tensor([True, False, True, False])


def set_item(h: Tensor, value: float) -> Tensor:
    h = h.clone()
    h[:, 0] = value
    return h


class Three(nn.Module):
    def __init__(self, function: Gated) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*x.unbind(1)).sum(1, keepdim=True)


def explained(function: Gated, rules: Rules | str = "epsilon_gamma") -> tuple[Tensor, ...]:
    """The relevance of a, b and z."""
    model, x = Three(function), torch.stack(three(), 1)
    LRP(model, rules).report(x, target=0).check(1e-12)
    return LRP(model, rules).attribute(x, target=0).unbind(1)


def three() -> tuple[Tensor, Tensor, Tensor]:
    return random(3, 4, seed=1), random(3, 4, seed=2), random(3, 4, seed=3)


@pytest.mark.parametrize("case", GATES)
def test_a_gate_stays_a_gate(case: str) -> None:
    a, b, z = three()
    found = explained(GATES[case])
    assert found[0].abs().max() == found[1].abs().max() == 0
    assert_close(found[2], GATES[case](a, b, z).detach())


@pytest.mark.parametrize("case", SIGNALS)
def test_what_is_no_gate_receives_its_share(case: str) -> None:
    a, b, z = three()
    found = explained(SIGNALS[case])
    value = SIGNALS[case](a, b, z).detach()
    assert_close(found[2], value / 2)
    assert float(found[0].abs().max()) > 1e-3


def test_another_rule_for_gates_sees_the_same_gates() -> None:
    rules = Rules().set(torch.mul, Uniform())
    a, b, z = three()
    for case in ("product, then signal", "signal first"):
        found = explained(GATES[case], rules)
        assert_close(found[2], GATES[case](a, b, z) / 3)


# A constant that a gate lets through ---------------------------------------------------------------


def test_a_gate_receives_nothing_from_a_constant_signal() -> None:
    constant = random(3, 4, seed=8)
    for function in (
        lambda a, b, z: z + gate(a) * constant,
        lambda a, b, z: gate(a) * constant + z,
        lambda a, b, z: z - constant * gate(a),
        lambda a, b, z: torch.addcmul(z, gate(a), constant),
        lambda a, b, z: z.clone().add_(gate(a) * constant),
    ):
        x = three()
        found = explained(function)
        assert found[0].abs().max() == 0
        assert_close(found[2], x[2])


def test_a_multiple_of_a_gate_passes_relevance_on() -> None:
    a, *_ = three()
    scaled = explained(lambda a, b, z: z + SCALE * gate(a))
    assert_close(scaled[0], (SCALE * (gate(a) - 0.5)).detach())
    alone = explained(lambda a, b, z: (b * 0 + z * 0) + 0 * z + 2 * gate(a))
    assert_close(alone[0], 2 * (gate(a) - 0.5))


# Factors -----------------------------------------------------------------------------------------

KEEP = torch.ones(5, 5, dtype=torch.bool).tril()


def item(scores: Tensor) -> Tensor:
    scores = scores.clone()
    scores[:, ~KEEP] = 0
    return scores


MASKED: dict[str, Between] = {
    "where": lambda s: torch.where(KEEP, s, 0.0),
    "where as a method": lambda s: s.where(KEEP, 0.0),
    "item": item,
    "times": lambda s: s * KEEP,
    "masked_fill": lambda s: s.masked_fill(~KEEP, 0.0),
    "masked_fill_": lambda s: s.masked_fill_(~KEEP, 0.0),
    "einsum": lambda s: torch.einsum("nij,ij->nij", s, KEEP.double()),
    "diff of the running sum": lambda s: torch.diff(s.cumsum(-1), dim=-1, prepend=torch.zeros_like(s[..., :1])).tril(),
    "less nothing": lambda s: (s - torch.zeros(1, dtype=s.dtype)).tril(),
    "over a norm": lambda s: (s / s.norm(dim=-1, keepdim=True) * s.norm(dim=-1, keepdim=True).detach()).tril(),
    "index_copy": lambda s: s.index_copy(1, torch.arange(5), s).tril(),
    "cat": lambda s: torch.cat([s[:, :2], s[:, 2:]], 1).tril(),
    "roundtrip": lambda s: torch.fft.ifft(torch.fft.fft(s)).real.tril(),
    "leaky": lambda s: (F.leaky_relu(s, 0.5) - F.leaky_relu(-s, 0.5)).tril() / 1.5,
}  # fmt: skip


class Scores(nn.Module):
    """``mask(q k^T) v`` for [N, 5, 6]."""

    def __init__(self, mask: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(6, 4, bias=False).double() for _ in range(3))
        self.mask = mask
        self.scores: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, q, k: q @ k

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x, self.q(x), self.k(x).mT)
        return (self.mask(scores) @ self.v(x)).mean(1)


def thirds(x: Tensor) -> Tensor:
    """A third of the relevance to each of q, k and v."""
    model = Scores(torch.tril)
    q, k, v = (layer(x).detach() for layer in (model.q, model.k, model.v))
    terms = torch.einsum("nid,njd,njc,ij->nijdc", q, k, v, KEEP.double())[..., 0] / 5  # of the first output
    whole = torch.zeros_like(x)
    for layer, part, at in ((model.q, q, terms.sum(2)), (model.k, k, terms.sum(1))):
        whole += x * ((at / part) @ layer.weight.detach()) / 3
    whole += x * ((terms.sum((1, 3)) / v[..., 0]).unsqueeze(-1) * model.v.weight.detach()[0]) / 3
    return whole


@pytest.mark.parametrize("case", MASKED)
def test_the_count_of_factors_does_not_depend_on_the_spelling_of_a_mask(case: str) -> None:
    x = random(3, 5, 6, seed=4)
    assert_close(LRP(Scores(MASKED[case]), "lrp0").attribute(x, target=0), thirds(x), tolerance=1e-9)


def test_a_batched_product_added_to_zeros_has_two_factors() -> None:
    x = random(3, 5, 6, seed=4)
    model = Scores(torch.tril)
    model.scores = lambda x, q, k: torch.baddbmm(q.new_zeros(len(x), 5, 5), q, k)
    assert_close(LRP(model, "lrp0").attribute(x, target=0), thirds(x), tolerance=1e-9)


def test_a_batched_product_added_to_something_else_counts_once() -> None:
    x, start = random(3, 5, 6, seed=4), nn.Linear(6, 5, bias=False).double()
    fused = Scores(torch.tril)
    fused.scores = lambda x, q, k: torch.baddbmm(start(x), q, k)
    spelled = Scores(torch.tril)
    spelled.scores = lambda x, q, k: start(x) + q @ k
    assert_close(LRP(fused, "lrp0").attribute(x, target=0), LRP(spelled, "lrp0").attribute(x, target=0))


def test_a_sum_of_terms_of_unlike_counts_counts_once() -> None:
    a, b, z = three()
    found = explained(lambda a, b, z: (a * b + a) * z)
    assert_close(found[2], (a * b + a) * z / 2)


PROBABILITIES = Rules().set(torch.softmax, CPLRP())


def test_fused_attention_has_as_many_factors_as_eager_attention() -> None:
    def fused(a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        q, k, v = (part[:, :, None] for part in (a, b, z))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., 0] * a

    def eager(a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        q, k, v = (part[:, :, None] for part in (a, b, z))
        return (torch.softmax(q @ k.mT, -1) @ v)[..., 0] * a

    for rules, of_the_parts in (("lrp0", "lrp0"), ("cp_lrp", PROBABILITIES)):
        found, expected = explained(fused, rules), explained(eager, of_the_parts)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
