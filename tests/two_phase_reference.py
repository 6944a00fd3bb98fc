"""Relevance as an explicit, differentiable function of the input and of every parameter.

`reference.py` shares out relevances, `R_k / z_k`, which says nothing of the derivative where `z_k` is exactly zero.
Here relevance travels as its coefficient, `R_k = z_k c_k`, wherever a rule makes it a multiple of the activation:
that is smooth at zero too. Plain differentiable torch throughout, nothing detached, nothing from the package: the
derivative of a loss on the relevance sees the network as it is.

Index legend: n sample, j entry of the layer's input, k entry of its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import reference, reference_steps
from tests.cases import RuleCase
from tests.reference import BATCH_NORMS, CONVOLUTIONS, LINEAR, STABILIZER, affine, negative, positive, quotient
from tests.reference_steps import ADAPTIVE_POOLS, AVERAGE_POOLS, MAX_POOLS

Function = Callable[[Tensor], Tensor]

BY_RELEVANCE = ("zbox", "wsquare", "flat")
"""Rules whose relevance is no multiple of the activation: it has no coefficient where that is zero."""


@dataclass(frozen=True)
class Flow:
    """Relevance on its way back: the coefficient where there is one, otherwise the relevance itself."""

    c: Tensor | None = None
    r: Tensor | None = None

    def relevance(self, a: Tensor) -> Tensor:
        if self.c is not None:
            return a * self.c
        assert self.r is not None
        return self.r


def transposed(linear: Function, a: Tensor, c: Tensor) -> Tensor:
    """The transpose of a linear function (no constant) of something shaped as `a`."""
    origin = torch.zeros_like(a, requires_grad=True)
    (found,) = torch.autograd.grad(linear(origin), origin, c, create_graph=True)
    return found


def root(x: Tensor) -> Tensor:
    """The square root, which at zero is a constant."""
    return torch.where(x == 0, 0.0, torch.where(x == 0, 1.0, x).sqrt())


# ------------------------------------------------------------------------------------------- linear layers


@dataclass(frozen=True)
class Term:
    """One part of a rule: `up` weighs inputs above zero, `down` those below; `share` of the relevance goes there."""

    share: Tensor | float
    up: Tensor
    down: Tensor
    offset: Tensor


def terms(rule: str, layer: reference.Dense, a: Tensor, options: dict[str, Any]) -> list[Term]:
    """The parts in which a rule shares out relevance."""
    w = layer.weight
    b = layer.offset(options.get("bias", "absorb"))
    if rule in ("lrp0", "epsilon"):
        return [Term(1.0, w, w, b)]
    if rule == "gamma":
        g = options.get("gamma", 0.25)
        above = (a @ w.T + b >= 0).to(a.dtype)
        more, less = (w + g * positive(w), w + g * negative(w))
        return [
            Term(above, more, less, b + g * positive(b)),
            Term(1 - above, less, more, b + g * negative(b)),
        ]
    if rule in ("zplus", "alpha_beta"):
        alpha, beta = (1.0, 0.0) if rule == "zplus" else (options.get("alpha", 2.0), options.get("beta", 1.0))
        raising = Term(alpha, positive(w), negative(w), positive(b))
        return [raising, Term(-beta, negative(w), positive(w), negative(b))] if beta else [raising]
    if rule == "absolute_value":
        return [Term(1.0, w.abs(), -w.abs(), b.abs())]
    if rule == "contrast":
        nothing = torch.zeros_like(b)
        return [
            Term(1.0, positive(w), negative(w), nothing),
            Term(-1.0, negative(w), positive(w), nothing),
        ]
    if rule == "rescaled_excitation":
        g = options.get("gamma", 0.0)
        up, down = positive(w) + g * negative(w), negative(w) + g * positive(w)
        return [Term(1.0, up, down, torch.zeros_like(b))]
    assert rule == "rho"
    changed = layer.reach * options["rho"](w)
    return [Term(1.0, changed, changed, torch.zeros_like(b) if layer.bias is None else options["rho"](layer.bias))]


def coefficient(rule: str, layer: reference.Dense, a: Tensor, flow: Flow, options: dict[str, Any]) -> Tensor:
    """The coefficients of the inputs: `c_j = sum_k m_kj s_k`, with `s_k` the relevance over the denominator."""
    z = a @ layer.weight.T + layer.offset("absorb")
    if rule == "lrp0" and flow.c is not None:
        return flow.c @ layer.weight  # z / z = 1
    relevance = flow.relevance(z)
    stabilizer = options.get("epsilon", STABILIZER) if rule == "epsilon" else options.get("stabilizer", STABILIZER)
    relative = options.get("relative", False) if rule == "epsilon" else True  # in shares of the size of the sums
    if rule in ("lrp0", "rho"):
        stabilizer, relative = 0.0, False
    if relative == "layer":
        stabilizer = stabilizer * root(z.square().mean(1, keepdim=True))
    # Zero counts as positive: the derivatives there are those from above.
    below = (a < 0).to(a.dtype)
    total = torch.zeros_like(a)
    for term in terms(rule, layer, a, options):
        whole = (a * (1 - below)) @ term.up.T + (a * below) @ term.down.T + term.offset
        if rule == "rho":
            whole = options["incr"](whole)
        shared, size = relevance, stabilizer
        if relative is True:
            shared, size = torch.where(whole == 0, 0.0, relevance), stabilizer * layer.size(whole)
        s = term.share * quotient(shared, whole, size)
        total = total + (1 - below) * (s @ term.up) + below * (s @ term.down)
    return total


def linear(layer: nn.Module, a: Tensor, z: Tensor, flow: Flow, case: RuleCase, norm: nn.Module | None = None) -> Flow:
    """Through a linear layer, with the batch norm behind it if the two are one map; `z` is the output of both."""
    if case.rule in BY_RELEVANCE:
        return Flow(r=reference.linear(layer, a, flow.relevance(z), case.rule, norm, **case.options))
    assert not isinstance(layer, CONVOLUTIONS) or layer.padding_mode == "zeros"
    matrix = reference.dense(layer, a.shape[1:])
    if norm is not None:
        matrix = reference.fold(matrix, norm, z.shape[1:])
    flat = Flow(*(None if part is None else part.flatten(1) for part in (flow.c, flow.r)))
    return Flow(c=coefficient(case.rule, matrix, a.flatten(1), flat, case.options).reshape(a.shape))


# ----------------------------------------------------------------------------------- elementwise functions

_NODES, _WEIGHTS = (torch.from_numpy(part) / 2 for part in np.polynomial.legendre.leggauss(24))
_NODES = _NODES + 0.5


def secant(function: Function, z: Tensor) -> Tensor:
    """`(f(z) - f(0)) / z`; near zero as the mean of the slope on the way, `integral of f'(t z) dt over [0, 1]`.

    That is exact and has the right derivatives at zero, where the quotient has none.
    """
    near = z.abs() < 0.25
    way = torch.where(near, z, torch.zeros_like(z)).unsqueeze(-1) * _NODES.to(z)
    (slopes,) = torch.autograd.grad(function(way).sum(), way, create_graph=True)
    far = torch.where(near, torch.ones_like(z), z)
    return torch.where(near, slopes @ _WEIGHTS.to(z), (function(far) - function(torch.zeros_like(z))) / far)


def elementwise(function: Function, z: Tensor, flow: Flow) -> Flow:
    """Relevance passes, but for the part of `f(0)`."""
    if flow.c is not None:
        return Flow(c=flow.c * secant(function, z))
    return Flow(r=flow.r)  # below a rule that reaches zeros f(0) receives nothing


FORMULAS: dict[type[nn.Module], Callable[[Any], Function]] = {
    nn.ReLU: lambda module: torch.relu,
    nn.Hardsigmoid: lambda module: lambda z: (z / 6 + 0.5).clamp(0, 1),
    nn.Hardswish: lambda module: lambda z: z * (z / 6 + 0.5).clamp(0, 1),
    nn.GELU: lambda module: gelu_tanh if module.approximate == "tanh" else lambda z: z * torch.erfc(-z / 2**0.5) / 2,
    nn.SiLU: lambda module: lambda z: z / (1 + torch.exp(-z)),
    nn.Mish: lambda module: lambda z: z * torch.tanh(torch.log1p(torch.exp(z))),
    nn.LogSigmoid: lambda module: lambda z: -torch.log1p(torch.exp(-z)),
    nn.Softplus: lambda module: lambda z: torch.log1p(torch.exp(module.beta * z)) / module.beta,
    nn.Sigmoid: lambda module: lambda z: 1 / (1 + torch.exp(-z)),
    nn.Softsign: lambda module: lambda z: z / (1 + z.abs()),
    nn.Tanhshrink: lambda module: lambda z: z - torch.tanh(z),
    nn.PReLU: lambda module: lambda z: torch.where(z > 0, z, z * slope_of(module, z)),
}
"""Plain formulas of the activations whose own function has no second derivative, or hides how it is computed."""


def gelu_tanh(z: Tensor) -> Tensor:
    return z * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (z + 0.044715 * z**3))


def slope_of(module: nn.Module, z: Tensor) -> Tensor:
    """The weight of a PReLU; a node of the integral in `secant` is one more dimension behind."""
    weight = module.get_parameter("weight")
    if weight.numel() == 1:
        return weight
    return weight.reshape(-1, *[1] * (z.dim() - 2))


# ------------------------------------------------------------------------------------- norms and pooling


def centred(module: nn.Module, a: Tensor) -> tuple[Function, Tensor]:
    """What a normalisation subtracts, as a linear function of its input, and what it then multiplies by."""
    if isinstance(module, nn.GroupNorm):
        shape = (len(a), module.num_groups, -1)
        where: tuple[int, ...] = (2,)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        shape, where = a.shape, tuple(range(-len(module.normalized_shape), 0))
    else:
        shape, where = a.shape, tuple(range(2, a.dim()))

    def less_mean(x: Tensor) -> Tensor:
        x = x.reshape(shape)
        return (x if isinstance(module, nn.RMSNorm) else x - x.mean(where, keepdim=True)).reshape(a.shape)

    eps = torch.finfo(a.dtype).eps if module.eps is None else float(module.eps)  # type: ignore[arg-type]
    spread = less_mean(a).reshape(shape).square().mean(where, keepdim=True)
    scale = (1 / (spread + eps).sqrt()).expand(a.reshape(shape).shape).reshape(a.shape)
    weight = getattr(module, "weight", None)
    if weight is not None:
        scale = scale * (weight if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else _channels(weight, a))
    return less_mean, scale


def _channels(parameter: Tensor, a: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (a.dim() - 2))


def norm(module: nn.Module, a: Tensor, flow: Flow) -> Flow:
    """A normalisation: the standard deviation is a constant, the mean is linear."""
    less_mean, scale = centred(module, a)
    assert flow.c is not None
    return Flow(c=transposed(lambda x: less_mean(x) * scale, a, flow.c))


def pool(module: nn.Module, a: Tensor, flow: Flow, rule: str) -> Flow:
    """Pooling: the winner takes all, or each input its share of the mean; an average is linear."""
    if flow.c is None:
        return Flow(r=reference_steps.pool(module, a, flow.relevance(a), rule, equal=True))
    if isinstance(module, MAX_POOLS) and rule == "winner":
        dimensions = len(MAX_POOLS[: MAX_POOLS.index(type(module)) + 1])
        plain = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dimensions - 1]
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
        _, winners = plain(a, *sizes, return_indices=True)
        chosen = lambda x: x.flatten(2).gather(2, winners.flatten(2)).reshape(winners.shape)  # noqa: E731
        return Flow(c=transposed(chosen, a, flow.c))
    if isinstance(module, MAX_POOLS):
        assert isinstance(module, nn.MaxPool2d)
        mean = lambda x: F.avg_pool2d(x, module.kernel_size, module.stride, module.padding, False, False)  # noqa: E731
        ratio = quotient(module(a), mean(a), STABILIZER * module(a).abs())
        return Flow(c=transposed(lambda x: mean(x) * ratio, a, flow.c))
    if isinstance(module, nn.LPPool2d):
        # The share of an input is a^p over the sum of the window, which is the output to the power p.
        size = math.prod(module.kernel_size) if isinstance(module.kernel_size, tuple) else module.kernel_size**2
        window = lambda x: F.avg_pool2d(x, module.kernel_size, module.stride) * size  # noqa: E731
        power = float(module.norm_type) - 1
        whole = window(a ** (power + 1))
        empty = whole == 0
        root = torch.where(empty, 0.0, torch.where(empty, 1.0, whole) ** (-power / (power + 1)))
        return Flow(c=transposed(lambda x: window(x * a**power) * root, a, flow.c))
    return Flow(c=transposed(module, a, flow.c))


# ------------------------------------------------------------------------------------------ whole sequences


def explain(
    modules: Sequence[nn.Module],
    x: Tensor,
    seed: Tensor,
    cases: RuleCase | Sequence[RuleCase],
    pooling: str = "winner",
) -> Tensor:
    """The relevance of `x`, connected to `x` and to every parameter; `seed` is the derivative of the target.

    `cases` is one rule for all linear layers or one for each in order.
    """
    inputs = [x]
    for module in modules:
        a = inputs[-1].clone()  # some of the modules write into their input
        # PyTorch's own derivative of hardsigmoid holds 1/6 in single precision.
        inputs.append((a + 3).clamp(0, 6) / 6 if isinstance(module, nn.Hardsigmoid) else module(a))
    positions = [i for i, module in enumerate(modules) if isinstance(module, LINEAR)]
    chosen = [cases] * len(positions) if isinstance(cases, RuleCase) else list(cases)
    by_position = dict(zip(positions, chosen, strict=True))
    flow, folded = Flow(c=seed), None
    for i in reversed(range(len(modules))):
        module, a = modules[i], inputs[i]
        if i in by_position:
            z = inputs[i + 1] if folded is None else inputs[i + 2]
            flow, folded = linear(module, a, z, flow, by_position[i], folded), None
        elif isinstance(module, BATCH_NORMS):
            if i - 1 in by_position and not (isinstance(modules[i - 1], nn.Linear) and a.dim() > 2):
                folded = module
            elif flow.c is None:
                flow = Flow(r=flow.relevance(a))  # below a rule that reaches zeros each entry keeps its own
            else:
                flow = Flow(c=flow.c * _channels(affine(module)[0], a))
        elif isinstance(module, (*MAX_POOLS, *AVERAGE_POOLS, *ADAPTIVE_POOLS, nn.LPPool2d)):
            flow = pool(module, a, flow, pooling)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)):
            flow = norm(module, a, flow)
        elif isinstance(module, (nn.Flatten, nn.Unflatten)):
            flow = Flow(*(None if part is None else part.reshape(a.shape) for part in (flow.c, flow.r)))
        else:
            formula = FORMULAS.get(type(module))
            flow = elementwise(module if formula is None else formula(module), a, flow)
    return flow.relevance(x)
