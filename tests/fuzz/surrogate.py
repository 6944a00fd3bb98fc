"""The formulas of `docs/theory.md` as plain autograd. Nothing here comes from relprop.

Every step is written as a sum that is linear in what it is computed from, plus constants, with the quotients, gates,
probabilities and denominators of the step held fixed. So input times gradient is the relevance of the input, constant
times gradient is what that constant absorbs, and all of it adds up to the output.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Bilinear = Callable[[Tensor, Tensor], Tensor]
"""Of an input and a weight, whose dimension 0 is the output's channel."""


@dataclass(frozen=True)
class Map:
    """A linear map: what a constant that scales or shifts its output channels is folded into."""

    of: Value
    operation: Bilinear
    weight: Tensor
    bias: Tensor | None
    channel: int  # the dimension of the output, counted from the last
    convolution: bool

    def along(self, constant: Tensor | float, out: Tensor) -> Tensor | None:
        """A constant as one number a channel; None where it differs from place to place."""
        constant = torch.as_tensor(constant, dtype=out.dtype)
        shape = (1,) * (out.dim() - constant.dim()) + tuple(constant.shape)
        if any(size != 1 for at, size in enumerate(shape) if at != out.dim() + self.channel):
            return None
        return constant.reshape(-1).expand(len(self.weight))

    def spread(self, numbers: Tensor) -> Tensor:
        """One number a channel, in a shape that broadcasts to the output."""
        return numbers.reshape(-1, *(1,) * (-self.channel - 1))

    def scaled(self, by: Tensor) -> Map:
        weight = self.weight * by.reshape(-1, *(1,) * (self.weight.dim() - 1))
        return replace(self, weight=weight, bias=None if self.bias is None else self.bias * by)

    def shifted(self, by: Tensor) -> Map:
        return replace(self, bias=by if self.bias is None else self.bias + by)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the surrogate, and what the rules ask of it.

    Attributes:
        t: its numbers; times its gradient, its relevance.
        factors: of how many tensors it is a product.
        gate: it opens and shuts what it multiplies.
        low, high: its bounds.
        powers: the values of which it is a function, entry by entry; of which power it is a multiple, or 0.
        map: the linear map whose output it is.
    """

    t: Tensor
    factors: int = 1
    gate: bool = False
    low: float = -math.inf
    high: float = math.inf
    powers: Mapping[Value, int] = field(default_factory=dict)
    map: Map | None = None

    @property
    def active(self) -> bool:
        return self.t.requires_grad

    @property
    def roots(self) -> dict[Value, int]:
        return {**self.powers, self: 1}

    @property
    def by_itself(self) -> Value:
        """What nothing folds into any more."""
        return replace(self, powers=self.roots, map=None)

    @property
    def functions(self) -> dict[Value, int]:
        """The roots of what is a function of this."""
        return dict.fromkeys(self.roots, 0)


class Surrogate:
    """Computes a program by steps that are linear in the input and in constants, which it keeps.

    Args:
        dense, convolution: the rules for linear maps.
        equal: a product gives each of its factors the same (AttnLRP).
        constant_probabilities: CP-LRP.
    """

    def __init__(
        self, dense: Rule, convolution: Rule | None = None, equal: bool = False, constant_probabilities: bool = False
    ) -> None:
        self.dense, self.convolution = dense, convolution or dense
        self.equal, self.constant_probabilities = equal, constant_probabilities
        self.kept: dict[str, list[Tensor]] = defaultdict(list)

    def keep(self, constant: Tensor, column: str = "bias") -> Tensor:
        """A constant, which absorbs under a name."""
        leaf = constant.detach().clone().requires_grad_()
        self.kept[column].append(leaf)
        return leaf

    def explain(self, f: Tensor, x: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The relevance of the input, and what constants absorb, by column."""
        leaves = [(column, leaf) for column, each in self.kept.items() for leaf in each]
        gradients = torch.autograd.grad(f, [x, *(leaf for _, leaf in leaves)], allow_unused=True)
        columns: dict[str, float] = defaultdict(float)
        for (column, leaf), c in zip(leaves, gradients[1:], strict=True):
            columns[column] += 0.0 if c is None else float((leaf.detach() * c).double().sum())
        c = gradients[0]
        return torch.zeros_like(x) if c is None else x.detach() * c, dict(columns)

    # Linear maps -----------------------------------------------------------------------------------

    def linear(
        self, x: Value, operation: Bilinear, weight: Tensor, bias: Tensor | None = None, *,
        channel: int = -1, convolution: bool = False,
    ) -> Value:  # fmt: skip
        bias = None if bias is None else bias.detach()
        return self._by_rule(Map(x, operation, weight.detach(), bias, channel, convolution), x.factors)

    def _by_rule(self, linear: Map, factors: int, powers: Mapping[Value, int] = {}) -> Value:
        rule = self.convolution if linear.convolution else self.dense
        return Value(rule(self, linear), factors=factors, powers=powers, map=linear)

    def scale(self, x: Value, by: Tensor | float, own: bool = True) -> Value:
        """A constant multiple; the model's ``own`` constants fold into a linear map before it."""
        by = by.detach() if isinstance(by, Tensor) else by
        if x.map is not None and own and (numbers := x.map.along(by, x.t)) is not None:
            return self._by_rule(x.map.scaled(numbers), x.factors, x.roots)
        ends = (-math.inf, math.inf) if isinstance(by, Tensor) else sorted((x.low * by, x.high * by))
        return replace(x, t=x.t * by, low=ends[0], high=ends[1], powers=x.roots, map=None)

    def shift(self, x: Value, by: Tensor | float, own: bool = True) -> Value:
        """A constant added to it."""
        by = by.detach() if isinstance(by, Tensor) else by
        if x.map is not None and own and (numbers := x.map.along(by, x.t)) is not None:
            return self._by_rule(x.map.shifted(numbers), x.factors, x.functions)
        low, high = (-math.inf, math.inf) if isinstance(by, Tensor) else (x.low + by, x.high + by)
        lifted = -math.inf < x.low < 0 < x.high < math.inf and (low >= 0 or high <= 0)
        constant = self.keep(torch.as_tensor(by, dtype=x.t.dtype).expand(x.t.shape))
        return replace(
            x, t=x.t + constant, gate=x.gate or lifted, low=low, high=high, powers=x.functions, map=None
        )  # fmt: skip

    # Sums and views --------------------------------------------------------------------------------

    def moved(self, function: Callable[..., Tensor], *values: Value) -> Value:
        """What is linear in its arguments, or picks from them, and has no weight."""
        counts = {value.factors for value in values if value.active}
        return Value(
            function(*(value.t for value in values)),
            factors=counts.pop() if len(counts) == 1 else 1,
            gate=all(value.gate for value in values if value.active),
        )

    def add(self, a: Value, b: Value, alpha: float = 1.0) -> Value:
        found = self.moved(lambda x, y: x + alpha * y, a, b)
        common = {root: degree if b.roots[root] == degree else 0 for root, degree in a.roots.items() if root in b.roots}
        return replace(found, powers=common)

    # Elementwise functions -------------------------------------------------------------------------

    def function(
        self, f: Callable[[Tensor], Tensor], x: Value, *, gate: bool = False, homogeneous: bool = False,
        low: float = -math.inf, high: float = math.inf,
    ) -> Value:  # fmt: skip
        """``f(0) + z q`` with the quotient ``q = (f(z) - f(0)) / z``, by its expansion where that cancels."""
        z = x.t.detach()
        zero = torch.zeros((), dtype=z.dtype, requires_grad=True)
        origin, *slopes = derivatives(f, zero)
        near = z == 0 if origin == 0 else z.abs() < 1e-4
        expanded = slopes[0] if origin == 0 else slopes[0] + z * slopes[1] / 2 + z * z * slopes[2] / 6
        q = torch.where(near, expanded, (f(z) - origin) / torch.where(near, 1.0, z))
        t = x.t * q
        if origin != 0:
            t = t + self.keep(origin.expand(z.shape))
        factors = x.factors if homogeneous else 1
        return Value(t, factors=factors, gate=gate or x.gate, low=low, high=high, powers=x.functions)

    # Products --------------------------------------------------------------------------------------

    def product(self, *factors: Value, operation: Callable[..., Tensor] = torch.mul) -> Value:
        """Each factor receives its share of the relevance, with the others held fixed."""
        entrywise = operation is torch.mul
        common = self._common(factors) if entrywise else {}
        shares, count = self.shares(factors, common)
        fixed = [factor.t.detach() for factor in factors]
        terms = [
            share * operation(*fixed[:at], factor.t, *fixed[at + 1 :])
            for at, (factor, share) in enumerate(zip(factors, shares, strict=True))
            if share
        ]
        powers = {root: sum(each) if all(each) else 0 for root, each in common.items()}
        gate = entrywise and all(factor.gate for factor in factors)
        return Value(torch.stack(terms).sum(0), factors=count, gate=gate, powers=powers)

    @staticmethod
    def _common(factors: Sequence[Value]) -> dict[Value, list[int]]:
        """The values of which all factors are functions, with the power that each is a multiple of."""
        roots = [factor.roots for factor in factors]
        shared = [root for root in roots[0] if all(root in each for each in roots)]
        return {root: [each[root] for each in roots] for root in shared}

    def shares(self, factors: Sequence[Value], common: dict[Value, list[int]]) -> tuple[list[float], int]:
        """The share of each factor, and of how many factors the product is one."""
        counts = [factor.factors if factor.active else 0 for factor in factors]
        if all(counts):
            for degrees in common.values():  # z q(z): q(z) is a constant
                if any(degrees) and not all(degrees):
                    return [float(degree > 0) for degree in degrees], 1
        if self.equal:
            active = sum(map(bool, counts))
            return [bool(count) / active for count in counts], sum(counts)
        signals = [0 if factor.gate else count for factor, count in zip(factors, counts, strict=True)]
        taking = signals if any(signals) else counts
        return [count / sum(taking) for count in taking], sum(taking)

    # Norms, softmax, attention ---------------------------------------------------------------------

    def divided(self, x: Value, by: Tensor) -> Value:
        """What divides is a constant."""
        return replace(x, t=x.t / by.detach(), low=-math.inf, high=math.inf, powers={}, map=None)

    def standardized(self, x: Value, eps: float, *, centred: bool = True) -> Value:
        """Along the last dimension; the standard deviation is a constant."""
        t = x.t - x.t.mean(-1, keepdim=True) if centred else x.t
        return Value(t / torch.sqrt(t.detach().square().mean(-1, keepdim=True) + eps), factors=x.factors)

    def softmax(self, x: Value, dim: int = -1) -> Value:
        """``J z`` with ``J = diag(p) - p p^T``, and what is left of ``p``."""
        fixed = x.t.detach()
        p = fixed.softmax(dim)
        if self.constant_probabilities:
            return Value(p)

        def tangent(z: Tensor) -> Tensor:
            terms = torch.where(p == 0, 0.0, p * torch.where(p == 0, 0.0, z))
            return terms - p * terms.sum(dim, keepdim=True)

        return Value(tangent(x.t) + self.keep(p - tangent(fixed), "softmax"), low=0.0)

    def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None = None) -> Value:
        """``softmax(q k^T / sqrt(d)) v``: a half to the values, quarters to queries and keys."""
        scores = self.product(Value(q.t), Value(k.t), operation=lambda x, y: x @ y.mT)
        scores = self.scale(scores, q.t.shape[-1] ** -0.5)
        if mask is not None:
            scores = replace(scores, t=scores.t.masked_fill(~mask, -math.inf))
        p = self.softmax(scores)
        return Value(self.product(p, Value(v.t), operation=torch.matmul).t, factors=v.factors + p.active)


def derivatives(f: Callable[[Tensor], Tensor], at: Tensor) -> list[Tensor]:
    """A function of a number and its first three derivatives."""
    found = [f(at)]
    for _ in range(3):
        following = None
        if found[-1].requires_grad:
            (following,) = torch.autograd.grad(found[-1], at, create_graph=True, allow_unused=True)
        found.append(torch.zeros_like(at) if following is None else following)
    return [each.detach() for each in found]


# Rules for linear maps ---------------------------------------------------------------------------

Rule = Callable[[Surrogate, Map], Tensor]
Group = tuple[float, float, float, Tensor | None]
"""Positive contributions so many times, negative ones so many times, the share, and the outputs it serves."""


def grouped(groups: Callable[[Tensor], list[Group]], epsilon: float = 1e-6, *, relative: bool = True) -> Rule:
    """A rule as the table of the theory has it: groups of contributions."""

    def rule(s: Surrogate, linear: Map) -> Tensor:
        a, w = linear.of.t, linear.weight
        up, down = w.clamp(min=0), w.clamp(max=0)
        positive = linear.operation(a.clamp(min=0), up) + linear.operation(a.clamp(max=0), down)
        negative = linear.operation(a.clamp(min=0), down) + linear.operation(a.clamp(max=0), up)
        if linear.bias is not None:
            bias = linear.spread(linear.bias).expand(positive.shape)
            positive, negative = positive + s.keep(bias.clamp(min=0)), negative + s.keep(bias.clamp(max=0))
        z = (positive + negative).detach()
        t, rest = torch.zeros_like(z), z
        for p, n, share, serves in groups(z):
            whole = p * positive + n * negative
            fixed = whole.detach()
            size = fixed.square().mean(linear.channel, keepdim=True).sqrt() if relative else 1.0
            added = torch.where(fixed < 0, -1.0, 1.0).to(z.dtype) * epsilon * size
            q = torch.where(fixed == 0, 0.0, share * z / torch.where(fixed == 0, 1.0, fixed + added))
            q = q if serves is None else torch.where(serves, q, 0.0)
            t = t + q * (whole + s.keep(added, "stabilizer"))
            rest = rest - q * (fixed + added)
        return t + s.keep(rest, "rule")

    return rule


def zero(s: Surrogate, linear: Map) -> Tensor:
    out = linear.operation(linear.of.t, linear.weight)
    return out if linear.bias is None else out + s.keep(linear.spread(linear.bias).expand(out.shape))


GAMMA = 0.25
EPSILON = grouped(lambda z: [(1, 1, 1, None)])
gamma = grouped(lambda z: [(1 + GAMMA, 1, 1, z >= 0), (1, 1 + GAMMA, 1, z < 0)])
SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "lrp0": lambda: Surrogate(zero),
    "epsilon": lambda: Surrogate(EPSILON),
    "epsilon_absolute": lambda: Surrogate(grouped(lambda z: [(1, 1, 1, None)], 0.1, relative=False)),
    "gamma": lambda: Surrogate(gamma),
    "epsilon_gamma": lambda: Surrogate(EPSILON, gamma),
    "zplus": lambda: Surrogate(grouped(lambda z: [(1, 0, 1, None)])),
    "alpha2_beta1": lambda: Surrogate(grouped(lambda z: [(1, 0, 2, None), (0, 1, -1, None)])),
    "attnlrp": lambda: Surrogate(EPSILON, equal=True),
    "cp_lrp": lambda: Surrogate(EPSILON, constant_probabilities=True),
}
