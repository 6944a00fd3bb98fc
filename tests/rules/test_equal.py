"""`Equal` and the preset `attnlrp`: each of the N factors of a call receives R / N (Achtibat et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Equal, SignalTakesAll, Uniform
from tests.models import close
from tests.unrolled import random, snapshot

HALF, THIRD, QUARTER = 1 / 2, 1 / 3, 1 / 4
D = random(3, 3, seed=7)
W = random(4, 3, 3, seed=8)
ATTNLRP = Rules.preset("attnlrp", epsilon=0.0)


class Of(nn.Module):
    """A function of the inputs and of the module, `[N, 3]` to `[N]`."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bilinear = nn.Parameter(D), nn.Parameter(W)

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.function(self, *inputs)
        return (out * random(*out.shape[1:], seed=9)).reshape(len(out), -1).sum(1)


# What is multiplied, of factors [N, 3], and which share of its terms each of them receives.
HALVES, THIRDS, LAST_HALF = (HALF, HALF), (THIRD, THIRD, THIRD), (QUARTER, QUARTER, HALF)
CHAINS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "a product": (lambda m, p, q: p * q, HALVES),
    "from the left": (lambda m, p, q, r: (p * q) * r, LAST_HALF),
    "from the right": (lambda m, p, q, r: p * (q * r), (HALF, QUARTER, QUARTER)),
    "through a linear layer": (lambda m, p, q, r: (p * q) @ m.weight * r, LAST_HALF),
    "through views and masks": (lambda m, p, q, r: (p * q).flip(1).masked_fill(D[0] > 0, 0.0) * r, LAST_HALF),
    "einsum of three": (lambda m, p, q, r: torch.einsum("ni,ni,ni->ni", p, q, r), THIRDS),
    "einsum of a product": (lambda m, p, q, r: torch.einsum("ni,nj->nij", p * q, r), LAST_HALF),
    "prod": (lambda m, p, q, r: torch.stack([p, q, r]).prod(0), THIRDS),
    "cumprod": (lambda m, p, q, r: torch.stack([p, q, r]).cumprod(0)[2], THIRDS),
    "addcmul": (lambda m, p, q, r: torch.addcmul(0 * D[0], p * q, r), LAST_HALF),
    "bmm": (lambda m, p, q, r: torch.bmm((p * q)[:, :, None], r[:, None]), LAST_HALF),
    "bilinear": (lambda m, p, q, r: F.bilinear(p * q, r, m.bilinear), LAST_HALF),
    "multi_dot": (lambda m, p, q, r: torch.linalg.multi_dot([p, q.T, r]), THIRDS),
    "multi_dot of vectors": (lambda m, p, q, r: torch.linalg.multi_dot([p[0], q.T, r, p[0]]), (QUARTER,) * 3),
    "multi_dot with a constant": (lambda m, p, q, r: torch.linalg.multi_dot([p, m.weight, q.T, r]), THIRDS),
    "one matmul after the other": (lambda m, p, q, r: p @ q.T @ r, LAST_HALF),
    "a weight of the input": (lambda m, p, q, r: F.linear(p * q, r), LAST_HALF),
    "a constant among them": (lambda m, p, q: torch.einsum("ni,i,ni->ni", p, D[0], q), HALVES),
    "lerp": (lambda m, p, q, r: torch.lerp(0 * D[0], p * q, r), LAST_HALF),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_factor_of_a_call_receives_the_same(name: str) -> None:
    function, shares = CHAINS[name]
    model = Of(lambda m, *factors: function(m, *(x[0] for x in factors))[None])
    inputs = tuple(random(1, 2, 3, seed=seed) for seed in range(len(shares)))
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(model(*leaves), leaves)
    with snapshot(model):
        found = LRP(model, ATTNLRP, strict=True).attribute(inputs)
        LRP(model, ATTNLRP).report(inputs).check(1e-9)
    for part, x, c, share in zip(found, inputs, gradients, shares, strict=True):
        close(part, share * x * c)


GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a product": lambda z, g: z * torch.sigmoid(g),
    "glu": lambda z, g: F.glu(torch.cat([z, g], 1), 1),
    "1 + tanh": lambda z, g: z * (0.5 * (1 + torch.tanh(g / 2))),
    "einsum": lambda z, g: torch.einsum("ni,ni->ni", z, torch.sigmoid(g)),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_a_factor(name: str) -> None:
    """Half to each; the sigmoid passes its half about zero, and keeps that of sigmoid(0)."""
    model, z, g = Of(lambda m, z, g: GATES[name](z, g)), random(2, 3), random(2, 3, seed=1)
    whole = z * torch.sigmoid(g) * random(3, seed=9)
    found = LRP(model, ATTNLRP).attribute((z, g))
    close(found[0], whole / 2)
    close(found[1], whole / 2 * (torch.sigmoid(g) - 0.5) / torch.sigmoid(g))
    signal, gate = LRP(model, "lrp0").attribute((z, g))
    close(signal, whole)
    assert not gate.any()


def test_the_weights_of_a_router_are_factors() -> None:
    router, experts = random(3, 4, seed=3), random(4, 3, 3, seed=4)

    class Routed(nn.Module):
        """`[N, 3]` to `[N, 3]`: the two best of four experts, by their shares of the probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.router, self.experts = nn.Parameter(router), nn.Parameter(experts)

        def forward(self, x: Tensor) -> Tensor:
            top, best = torch.softmax(x @ self.router, 1).topk(2, 1)
            top = top / top.sum(1, keepdim=True)
            out = torch.zeros_like(x)
            for expert in range(4):
                row, position = torch.where(best == expert)
                out = out.index_add(0, row, F.linear(x[row], self.experts[expert]) * top[row, position, None])
            return (out * random(3, seed=9)).sum(1)

    x = random(5, 3)
    leaf = x.clone().requires_grad_()
    top, best = torch.softmax(leaf @ router, 1).topk(2, 1)
    weights = top / top.sum(1, keepdim=True).detach()
    made = torch.einsum("ni,nkoi->nko", leaf, experts[best])

    def halved(t: Tensor) -> Tensor:
        return (t + t.detach()) / 2

    out = (halved(made) * halved(weights)[:, :, None]).sum(1) @ random(3, seed=9)
    (c,) = torch.autograd.grad(out.sum(), leaf)
    close(LRP(Routed(), ATTNLRP).attribute(x), x * c)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, lambda z: z * torch.sigmoid(z)),
    "gelu": (F.gelu, lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))),
    "mish": (F.mish, lambda z: torch.tanh(F.softplus(z)) * z),
    "hardswish": (F.hardswish, lambda z: z * F.relu6(z + 3) / 6),
    "silu by einsum": (F.silu, lambda z: torch.einsum("ni,ni->ni", z, torch.sigmoid(z))),
    "silu by addcmul": (F.silu, lambda z: torch.addcmul(0 * D[0], z, torch.sigmoid(z))),
}


@pytest.mark.parametrize("rules", ["attnlrp", "epsilon"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_by_hand_is_no_product(name: str, rules: Any) -> None:
    """Alone, and as the factor that it is of a product: one factor, whatever z is made of."""
    native, by_hand = ACTIVATIONS[name]
    z, w = random(2, 3), random(2, 3, seed=1)
    for around in (
        lambda f: lambda m, z, w: f(z) * w,
        lambda f: lambda m, z, w: f(z * w) * w,
        lambda f: lambda m, z, w: f(z @ m.weight) @ m.weight * w,
    ):
        expected, found = (LRP(Of(around(f)), rules).attribute((z, w)) for f in (native, by_hand))
        for part, reference in zip(found, expected, strict=True):
            close(part, reference)


def cell(kind: str) -> Callable[..., Tensor]:
    weights = [random(*shape, seed=seed) for seed, shape in enumerate(((12, 3), (12, 3), (12,), (12,)))]

    def run(m: Any, x: Tensor, h: Tensor) -> Tensor:
        if kind == "lstm":
            return torch.lstm_cell(x, (h, torch.tanh(x + h)), *weights)[1]
        return torch.gru_cell(x, h, *(w[:9] for w in weights))

    return run


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cells_keep_their_gates_constant(kind: str) -> None:
    """By a function, in a cell, in a layer, in one direction or two; what is around them follows the paper."""
    x, h = random(2, 3), random(2, 3, seed=1)
    recurrent = nn.LSTM(3, 3, bidirectional=True) if kind == "lstm" else nn.GRU(3, 3)
    recurrent.double()

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = recurrent

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            out = self.layer(torch.stack([x, h]))[0][-1]
            return (out * random(out.shape[1], seed=3)).sum(1)  # type: ignore[no-any-return]

    for model in (Of(cell(kind)), Layer()):
        found, expected = (LRP(model, rules).attribute((x, h)) for rules in ("attnlrp", "epsilon"))
        for part, reference in zip(found, expected, strict=True):
            close(part, reference)
    around = Of(lambda m, x, h: cell(kind)(m, x, h) * torch.sigmoid(h))
    rows = ATTNLRP.plan(around, (x, h)).rows
    gates = [row.rule for row in rows if row.operation == "mul" and row.rule]
    assert gates[-1] == repr(Equal()) and set(gates[:-1]) == {repr(SignalTakesAll())}


def test_other_presets_keep_the_count() -> None:
    model, inputs = Of(CHAINS["from the left"][0]), tuple(random(1, 3, seed=seed) for seed in range(3))
    whole = inputs[0] * inputs[1] * inputs[2] * random(3, seed=9)
    for rules in ("epsilon", "cp_lrp", "epsilon_gamma", "lrp0"):
        for part in LRP(model, rules).attribute(inputs):
            close(part, whole / 3)
    for rules, shares in ((Rules().set(torch.mul, "equal"), LAST_HALF), (ATTNLRP.set("", Uniform()), THIRDS)):
        for part, share in zip(LRP(model, rules).attribute(inputs), shares, strict=True):
            close(part, share * whole)


def test_signals_that_are_all_gates_share() -> None:
    """SignalTakesAll on every product: there must be somebody who takes."""
    model, inputs = Of(lambda m, p, q: torch.sigmoid(p) * torch.sigmoid(q)), (random(2, 3), random(2, 3, seed=1))
    found, expected = (LRP(model, rules).attribute(inputs) for rules in (Rules().set("", SignalTakesAll()), "lrp0"))
    for part, reference in zip(found, expected, strict=True):
        close(part, reference)
