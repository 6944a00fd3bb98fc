"""A loss on the relevance through pooling, norms, products and attention: its gradient is that of the formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from relprop import LRP, Rules
from relprop.rules import CPLRP, AttnLRP, Detach, Epsilon, Gamma, ZPlus
from relprop.rules.rule import LinearRule
from tests import two_phase_reference as explicit
from tests.cases import RuleCase, seed_like, signed
from tests.compare import distance, weighted
from tests.two_phase_checks import agree, check, settle

LRP0, GAMMA, FLAT = RuleCase("lrp0"), RuleCase("gamma"), RuleCase("flat")

# ------------------------------------------------------------------------------------- pooling and norms

POOLS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "overlapping": lambda: nn.MaxPool2d(3, 2, padding=1),
    "dilated": lambda: nn.MaxPool2d(2, 1, dilation=2),
    "average": lambda: nn.AvgPool2d(3, 2, padding=1),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((3, 2)),
    "power": lambda: nn.LPPool2d(3, 2),
}


# A power of zero has no derivative, so LP pooling stands behind a softplus; what it does at zero is tested elsewhere.
# The rule that averages is for windows that an average pooling has.
POOLINGS = [
    *((pool, case, "winner") for pool in POOLS for case in (LRP0, GAMMA, FLAT) if (pool, case) != ("power", FLAT)),
    *((pool, case, "average") for pool in ("max", "overlapping") for case in (LRP0, GAMMA, FLAT)),
]


@pytest.mark.parametrize(
    ("pool", "case", "rule"), [pytest.param(*p, id=f"{p[0]}-{p[1].rule}-{p[2]}") for p in POOLINGS]
)
def test_pooling(pool: str, case: RuleCase, rule: str) -> None:
    between = nn.Softplus() if pool == "power" else nn.ReLU()
    modules = settle([nn.Conv2d(2, 3, 3, padding=1), between, POOLS[pool](), nn.Conv2d(3, 2, 2), nn.Flatten()])
    check(modules, signed((2, 2, 6, 6), seed=7), case, rule, kinks=case is GAMMA)


def test_power_pooling_of_zeros_gives_no_nan() -> None:
    modules = settle([nn.Conv2d(1, 2, 3), nn.ReLU(), nn.LPPool2d(1.5, 2), nn.Flatten(), nn.Linear(8, 2)])
    with torch.no_grad():
        modules[0].get_parameter("bias")[0] = -20.0
    model, x = nn.Sequential(*modules), signed((2, 1, 6, 6), seed=8)
    found = LRP(model, "lrp0").attribute(x, 1, create_graph=True)
    assert distance(found, LRP(model, "lrp0").attribute(x, 1)) < 1e-12


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(5),
    "layer-two-dimensions": lambda: nn.LayerNorm((4, 5)),
    "layer-plain": lambda: nn.LayerNorm(5, elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(5),
    "rms-eps": lambda: nn.RMSNorm((4, 5), eps=0.1),
    "group": lambda: nn.GroupNorm(2, 4),
    "group-plain": lambda: nn.GroupNorm(1, 4, affine=False),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True),
    "instance-plain": lambda: nn.InstanceNorm1d(4),
}


@pytest.mark.parametrize("case", [LRP0, GAMMA], ids=lambda case: case.rule)
@pytest.mark.parametrize("norm", list(NORMS))
def test_norms(norm: str, case: RuleCase) -> None:
    modules = [
        nn.Linear(6, 5),
        NORMS[norm](),
        nn.GELU(),
        nn.Linear(5, 5),
        NORMS[norm](),
        nn.Flatten(),
        nn.Linear(20, 2),
    ]
    check(settle(modules), signed((3, 4, 6), seed=9), case, kinks=case is GAMMA)


# ---------------------------------------------------------------------------------- products and branches


class Parts(nn.Module):
    """Layers for the networks below; each explains itself by hand with LRP-0."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.top = nn.Linear(4, 5), nn.Linear(4, 5, False), nn.Linear(5, 2)
        settle([self])

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        raise NotImplementedError


class Product(Parts):
    """tanh(left) * right, half of the relevance to each."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.tanh(self.left(x)) * self.right(x))

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        u, v, c = self.left(x), self.right(x), seed @ self.top.weight
        left = c * v / 2 * explicit.secant(torch.tanh, u)
        return x * (left @ self.left.weight + (c * torch.tanh(u) / 2) @ self.right.weight)


class Gate(Parts):
    """sigmoid(left) * right: the gate is a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.gate(self.left(x)) * self.right(x))

    @staticmethod
    def gate(u: Tensor) -> Tensor:
        return torch.sigmoid(u)

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        return x * ((seed @ self.top.weight * self.gate(self.left(x))) @ self.right.weight)


class HardGate(Gate):
    """The same with a gate that has no second derivative in PyTorch, and a first that holds 1/6 in single precision."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top(F.hardsigmoid(self.left(x)) * self.right(x))

    @staticmethod
    def gate(u: Tensor) -> Tensor:
        return (u + 3).clamp(0, 6) / 6


class Quotient(Parts):
    """right / (1 + left^2): what divides is a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.right(x) / (1 + self.left(x).square()))

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        return x * ((seed @ self.top.weight / (1 + self.left(x).square())) @ self.right.weight)


class InlineNorm(Parts):
    """right * rsqrt(mean(left^2) + eps): what divides is a constant, and so all relevance goes through the other."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.right(x) * self.scale(x))

    def scale(self, x: Tensor) -> Tensor:
        return torch.rsqrt(self.left(x).square().mean(-1, keepdim=True) + 0.1)

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        return x * ((seed @ self.top.weight * self.scale(x)) @ self.right.weight)


class Softmax(Parts):
    """The softmax by its Taylor expansion: its own derivative, times the scores."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.softmax(self.left(x), -1))

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        p, c = torch.softmax(self.left(x), -1), seed @ self.top.weight
        return x * ((p * (c - (p * c).sum(-1, keepdim=True))) @ self.left.weight)


class Residual(Parts):
    """relu(left) + tanh(right) + a third branch through the same layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.relu(self.left(x)) + torch.tanh(self.right(x)) + self.right(2 * x))

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        c, u, v = seed @ self.top.weight, self.left(x), self.right(x)
        right = c * explicit.secant(torch.tanh, v) + 2 * c
        return x * ((c * (u > 0)) @ self.left.weight + right @ self.right.weight)


class Einsum(Parts):
    """Parameters in a matrix product and in an einsum."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("ni,oi->no", x, self.left.weight) + x @ self.right.weight.T
        return F.linear(torch.relu(h), self.top.weight)

    def explain(self, x: Tensor, seed: Tensor) -> Tensor:
        weight = self.left.weight + self.right.weight
        return x * ((seed @ self.top.weight * (x @ weight.T > 0)) @ weight)


@pytest.mark.parametrize("kind", [Product, Gate, HardGate, Quotient, InlineNorm, Softmax, Residual, Einsum])
def test_products_and_branches(kind: type[Parts]) -> None:
    model, x = kind(), signed((3, 4), seed=10).requires_grad_()
    seed = seed_like(model(x))
    found = LRP(model, "lrp0").attribute(x, weighted(seed), create_graph=True)
    agree(found, model.explain(x, seed), {"input": x, **dict(model.named_parameters())})


class Attention(nn.Module):
    """One head over three tokens, fused or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v, self.top = (nn.Linear(4, 4) for _ in range(4))
        settle([self])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            heads = (part[:, None] for part in (q, k, v))
            return self.top(F.scaled_dot_product_attention(*heads)[:, 0].mean(1))
        return self.top((torch.softmax(q @ k.mT / 2, -1) @ v).mean(1))

    def explain(self, x: Tensor, seed: Tensor, constant: bool) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        p = torch.softmax(q @ k.mT / 2, -1)
        c = ((seed @ self.top.weight) / x.shape[1])[:, None].expand(-1, x.shape[1], -1)
        if constant:
            return x * ((p.mT @ c) @ self.v.weight)
        scores = c @ v.mT / 2
        scores = p * (scores - (p * scores).sum(-1, keepdim=True)) / 2
        parts = ((scores @ k / 2, self.q), (scores.mT @ q / 2, self.k), (p.mT @ c / 2, self.v))
        return x * sum(part @ layer.weight for part, layer in parts)


@pytest.mark.parametrize("constant", [False, True], ids=["attnlrp", "cplrp"])
@pytest.mark.parametrize("backend", [None, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention(backend: SDPBackend | None, constant: bool) -> None:
    # Flash attention on the CPU has no second derivative of its own.
    model, x = Attention(backend is not None), signed((2, 3, 4), seed=11).requires_grad_()
    seed, rule = seed_like(model(x)), CPLRP() if constant else AttnLRP()
    rules = Rules() if backend is None else Rules().set(F.scaled_dot_product_attention, rule)
    if backend is None and constant:
        rules = rules.set(torch.softmax, rule)
    with sdpa_kernel(backend or SDPBackend.MATH):
        found = LRP(model, rules).attribute(x, weighted(seed), create_graph=True)
        agree(found, model.explain(x, seed, constant), {"input": x, **dict(model.named_parameters())})


def test_a_factor_set_to_detach_is_a_constant() -> None:
    model, x = Product(), signed((3, 4), seed=10).requires_grad_()
    seed = seed_like(model(x))
    found = LRP(model, Rules().set(torch.tanh, Detach())).attribute(x, weighted(seed), create_graph=True)
    expected = x * ((seed @ model.top.weight * torch.tanh(model.left(x))) @ model.right.weight)
    agree(found, expected, {"input": x, **dict(model.named_parameters())})


def test_weights_made_from_parameters_and_a_layer_used_twice() -> None:
    tied = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
    plain = [nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)]
    model = nn.Sequential(tied, nn.Tanh(), tied)
    settle(list(model))
    x = signed((3, 5), seed=12).requires_grad_()
    weight, bias = tied.weight, tied.bias

    class Given(nn.Linear):
        """A linear layer whose weight is a function of parameters."""

    for layer in (plain[0], plain[2]):
        layer.__class__ = Given
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias
    seed = seed_like(model(x))
    found = LRP(model, Epsilon(0.1)).attribute(x, weighted(seed), create_graph=True)
    expected = explicit.explain(plain, x, seed, RuleCase("epsilon", {"epsilon": 0.1}))
    agree(found, expected, {"input": x, **dict(model.named_parameters())})


@pytest.mark.parametrize("rule", [Epsilon(0.5), Gamma(), ZPlus()], ids=repr)
def test_constant_probabilities_are_no_parameter(rule: LinearRule) -> None:
    # With a graph they ask for a gradient, as parameters do; no linear rule may take them for a weight.
    model, x = Attention(fused=False), signed((2, 3, 4), seed=11)
    method = LRP(model, Rules().set(lambda name, module: True, rule).set(torch.softmax, CPLRP()))
    assert distance(method.attribute(x, 1, create_graph=True), method.attribute(x, 1)) < 1e-12
