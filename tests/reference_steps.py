"""The reference beyond linear layers: activations, batch norm, sums, pooling, whole sequences.

Like `reference.py`, on which it stands, it is independent of the package, explicit and differentiable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference import BATCH_NORMS, LINEAR, STABILIZER, affine, linear, negative, positive, quotient

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)

Window = list[int]


def activation(
    function: Callable[[Tensor], Tensor],
    z: Tensor,
    relevance: Tensor,
    equal: bool = False,
    above: tuple[str, dict[str, Any]] = ("lrp0", {}),
) -> Tensor:
    """An elementwise function keeps its relevance, but for what f(0), its bias, absorbs; as a constant, nothing.

    Below z+ and alpha-beta, `above`, what the function adds to f(0) and f(0) itself share by sign.
    """
    if equal:
        return relevance
    out, at_zero = function(z), function(torch.zeros_like(z))
    name, options = above
    if name in BY_SIGN and not options.get("gamma"):
        shared = by_sign(out - at_zero, at_zero, relevance, **{**BY_SIGN[name], **options})
    else:
        shared = relevance * quotient(out - at_zero, out)
    return torch.where(at_zero == 0, relevance, shared)


BY_SIGN: dict[str, dict[str, Any]] = {
    "zplus": {"alpha": 1.0, "beta": 0.0},
    "alpha_beta": {"alpha": 2.0, "beta": 1.0},
    "rescaled_excitation": {"alpha": 1.0, "beta": 0.0, "bias": "ignore"},  # with gamma 0, its default
}
"""Rules that share contributions of either sign apart, and what they do by default."""


def by_sign(
    signal: Tensor,
    constant: Tensor,
    relevance: Tensor,
    alpha: float,
    beta: float,
    bias: str = "absorb",
    stabilizer: float = STABILIZER,
) -> Tensor:
    """What a signal beside a constant receives: alpha s+ / (s+ + k+) - beta s- / (s- + k-), stabilized, of R."""
    beside = constant if bias == "absorb" else torch.zeros_like(constant)

    def part(of: Callable[[Tensor], Tensor]) -> Tensor:
        whole = of(signal) + of(beside)
        return quotient(of(signal), whole, stabilizer * whole.abs())

    return relevance * (alpha * part(positive) - beta * part(negative))


REACHES_ZEROS = ("flat", "wsquare", "zbox")
"""Rules whose relevance is no multiple of the activation. Where it arrives, steps without weights share equally."""


def batch_norm(norm: nn.Module, a: Tensor, relevance: Tensor, whole: bool = False) -> Tensor:
    """Batch norm that follows no linear layer: LRP-0 of the diagonal map it is, or ``whole`` to every entry.

    Where an entry and its shift are both zero there is nothing to share with: relevance passes.
    """
    scale, shift = (t.reshape(-1, *[1] * (a.dim() - 2)) for t in affine(norm))
    if whole:
        return torch.where(scale == 0, torch.zeros_like(relevance), relevance)
    alone = (a == 0) & (shift == 0)
    return torch.where(alone, relevance, relevance * quotient(a * scale, a * scale + shift))


def addition(terms: Sequence[Tensor], relevance: Tensor, equal: bool = False) -> list[Tensor]:
    """A sum shares by its terms, LRP-0; where it is exactly zero, or everywhere, equally."""
    if equal:
        return [relevance / len(terms)] * len(terms)
    total = torch.stack(list(terms)).sum(0)
    return [torch.where(total == 0, relevance / len(terms), relevance * quotient(t, total)) for t in terms]


def _windows(pool: nn.Module, size: torch.Size, out: torch.Size) -> list[Window]:
    """For every output position, the flat indices of the input positions under it, in scan order: padding is none."""

    def each(value: Any, i: int) -> int:
        return int(value if isinstance(value, int) else value[i])

    axes = []
    for i, (length, count) in enumerate(zip(size, out, strict=True)):
        if isinstance(pool, ADAPTIVE_POOLS):
            spans = [range(o * length // count, -(-(o + 1) * length // count)) for o in range(count)]
        else:
            kernel, stride, padding = (each(getattr(pool, n), i) for n in ("kernel_size", "stride", "padding"))
            step = each(getattr(pool, "dilation", 1), i)
            spans = [range(s, s + step * kernel, step) for s in range(-padding, count * stride - padding, stride)]
        axes.append([[p for p in span if 0 <= p < length] for span in spans])
    strides = [math.prod(size[i + 1 :]) for i in range(len(size))]
    return [
        [sum(p * s for p, s in zip(place, strides, strict=True)) for place in itertools.product(*spans)]
        for spans in itertools.product(*axes)
    ]


def pool(
    module: nn.Module,
    a: Tensor,
    relevance: Tensor,
    rule: str = "winner",
    stabilizer: float = STABILIZER,
    equal: bool = False,
) -> Tensor:
    """Relevance of a pooling layer's input.

    `rule` is for max pooling: "winner" gives all to the first maximum of a window; "average" is the
    tutorial's (a_j / n) / stabilize(mean of the window). Average pooling is LRP-0, that is a_j / sum(a), or equal.
    """
    flat_a, flat_r = a.flatten(2), relevance.flatten(2)
    columns = []
    for k, window in enumerate(_windows(module, a.shape[2:], relevance.shape[2:])):
        values, r = flat_a[:, :, window], flat_r[:, :, k : k + 1]
        if isinstance(module, MAX_POOLS) and rule == "winner":
            given = F.one_hot(values.argmax(2), len(window)).to(r.dtype) * r
        elif isinstance(module, MAX_POOLS):
            most = values.amax(2, keepdim=True).abs()  # the stabilizer counts in shares of it
            given = values / len(window) * quotient(r, values.mean(2, keepdim=True), stabilizer * most)
        else:
            given = torch.stack(addition(values.unbind(2), r[:, :, 0], equal), 2)
        place = F.one_hot(torch.tensor(window), flat_a.shape[2]).to(r.dtype)
        columns.append(given @ place)
    return torch.stack(columns).sum(0).reshape(a.shape)


# ------------------------------------------------------------------------------------------ whole sequences


def explain(
    modules: Sequence[nn.Module],
    x: Tensor,
    seed: Tensor | float,
    rules: tuple[str, dict[str, Any]] | Sequence[tuple[str, dict[str, Any]]],
    pooling: str = "winner",
) -> list[Tensor]:
    """Relevance at the input of every module of a sequence and, last, at its output.

    `seed` is the derivative of the target by the output, so the relevance of the output is output times seed.
    `rules` is one (name, options) for all linear layers or one for each in order. A batch norm right after a
    linear layer is one map with it; the relevance between the two is given as that of the pair's output.
    Below a rule that reaches zeros, what has no weights shares equally.
    """
    inputs = [x]
    for module in modules:
        inputs.append(module(inputs[-1]))
    positions = [i for i, module in enumerate(modules) if isinstance(module, LINEAR)]
    chosen = [rules] * len(positions) if isinstance(rules, tuple) else list(rules)
    by_position = dict(zip(positions, chosen, strict=True))
    equal_below = max((i for i in positions if by_position[i][0] in REACHES_ZEROS), default=0)
    relevance = inputs[-1] * seed
    found = [relevance]
    norm: nn.Module | None = None
    for i in reversed(range(len(modules))):
        module, a = modules[i], inputs[i]
        if i in by_position:
            name, options = by_position[i]
            relevance = linear(module, a, relevance, name, norm, **options)
            norm = None
        elif isinstance(module, BATCH_NORMS):
            # Of a linear layer only where dimension 1 holds its outputs.
            if i - 1 in by_position and not (isinstance(modules[i - 1], nn.Linear) and a.dim() > 2):
                norm = module
            else:
                relevance = batch_norm(module, a, relevance, i < equal_below)
        elif isinstance(module, (*MAX_POOLS, *AVERAGE_POOLS, *ADAPTIVE_POOLS)):
            relevance = pool(module, a, relevance, pooling, equal=i < equal_below)
        elif isinstance(module, (nn.Flatten, nn.Unflatten)):
            relevance = relevance.reshape(a.shape)
        else:
            nearest = next((by_position[above] for above in positions if above > i), ("lrp0", {}))
            relevance = activation(module, a, relevance, i < equal_below, nearest)
        found.append(relevance)
    return found[::-1]
