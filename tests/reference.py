"""The explicit reference: every layer as a dense matrix, every rule as its textbook formula on relevances.

Independent of the package and written from the papers: Bach et al. 2015 (epsilon, alpha-beta, flat),
Montavon et al. 2017 (z+, zB, w^2), Montavon et al. 2019 (gamma, the general rho rule). Nothing here is
efficient. Everything is plain differentiable torch, so a loss on the relevance can be derived through it.

Index legend: n sample, j entry of the layer's input, k entry of its output. Relevance comes in as [N, K] and
goes out as [N, J]; a share is [N, K, J].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STABILIZER = 1e-6

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Rule = Callable[..., Tensor]


@dataclass(frozen=True)
class Dense:
    """A linear layer written out as `z = W a + b`."""

    weight: Tensor  # [K, J]
    bias: Tensor | None  # [K]
    reach: Tensor  # [K, J], one where input j reaches output k whatever the value of the weight
    shape: tuple[int, ...]  # of the output, K = their product
    channel: int  # which of its dimensions holds the channels

    def size(self, whole: Tensor) -> Tensor:
        """The root mean square of [N, K] over the channels at each position, as [N, K]."""
        square = whole.reshape(-1, *self.shape).square().mean(self.channel, keepdim=True)
        # Where all are zero there is no slope: nothing is shared there.
        root = torch.where(square > 0, torch.where(square > 0, square, torch.ones_like(square)).sqrt(), square)
        return root.expand(-1, *self.shape).flatten(1)

    def products(self, a: Tensor) -> Tensor:
        """a_j w_kj as [N, K, J]."""
        return a[:, None, :] * self.weight[None]

    def offset(self, bias: str) -> Tensor:
        """The bias as it enters a denominator."""
        if bias == "absorb" and self.bias is not None:
            return self.bias
        if bias not in ("absorb", "ignore"):
            raise ValueError(bias)
        return self.weight.new_zeros(self.weight.shape[0])


# ----------------------------------------------------------------------------------------------- quotients


def sign(z: Tensor) -> Tensor:
    """The sign of z, where zero counts as positive."""
    return torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z))


def quotient(numerator: Tensor, denominator: Tensor, epsilon: float | Tensor = 0.0) -> Tensor:
    """numerator / (denominator + epsilon sign(denominator)), with x/0 = 0."""
    total = denominator + epsilon * sign(denominator)
    empty = total == 0
    exact = numerator / torch.where(empty, torch.ones_like(total), total)
    return torch.where(empty, torch.zeros_like(exact), exact)


def share(
    part: Tensor, whole: Tensor, relevance: Tensor, epsilon: float | Tensor, relative_to: Dense | None = None
) -> Tensor:
    """Sum over k of part_kj / stabilize(whole_k) * R_k; nothing is shared where there is nothing to share it among.

    A stabilizer without unit counts in shares of the size that the sums of a layer have.
    """
    if relative_to is not None:
        relevance = torch.where(whole == 0, torch.zeros_like(whole), relevance)
        epsilon = epsilon * relative_to.size(whole)
    return torch.einsum("nkj,nk->nj", part, quotient(relevance, whole, epsilon))


def positive(t: Tensor) -> Tensor:
    return torch.where(t > 0, t, torch.zeros_like(t))


def negative(t: Tensor) -> Tensor:
    return torch.where(t < 0, t, torch.zeros_like(t))


# --------------------------------------------------------------------------------------------------- rules


def lrp0(layer: Dense, a: Tensor, relevance: Tensor, bias: str = "absorb") -> Tensor:
    return epsilon(layer, a, relevance, epsilon=0.0, bias=bias)


def epsilon(
    layer: Dense,
    a: Tensor,
    relevance: Tensor,
    epsilon: float = STABILIZER,
    relative: bool | str = False,
    bias: str = "absorb",
) -> Tensor:
    parts = layer.products(a)
    z, whole = parts.sum(2) + layer.offset("absorb"), parts.sum(2) + layer.offset(bias)
    if relative == "layer":
        return share(parts, whole, relevance, epsilon * z.square().mean(1, keepdim=True).sqrt())
    return share(parts, whole, relevance, epsilon, layer if relative else None)


def gamma(
    layer: Dense,
    a: Tensor,
    relevance: Tensor,
    gamma: float = 0.25,
    bias: str = "absorb",
    stabilizer: float = STABILIZER,
) -> Tensor:
    w, b = layer.weight[None], layer.offset(bias)
    up, down = w + gamma * positive(w), w + gamma * negative(w)
    above, below = positive(a)[:, None, :], negative(a)[:, None, :]
    favoured = above * up + below * down  # where z > 0: what raises z counts for more
    mirrored = above * down + below * up  # where z < 0: what lowers z counts for more
    z = layer.products(a).sum(2) + b
    none = torch.zeros_like(relevance)
    raised = favoured.sum(2) + b + gamma * positive(b)
    lowered = mirrored.sum(2) + b + gamma * negative(b)
    return share(favoured, raised, torch.where(z >= 0, relevance, none), stabilizer, layer) + share(
        mirrored, lowered, torch.where(z < 0, relevance, none), stabilizer, layer
    )


def alpha_beta(
    layer: Dense,
    a: Tensor,
    relevance: Tensor,
    alpha: float = 2.0,
    beta: float = 1.0,
    bias: str = "absorb",
    stabilizer: float = STABILIZER,
) -> Tensor:
    parts, b = layer.products(a), layer.offset(bias)
    raising, lowering = positive(parts), negative(parts)
    up = share(raising, raising.sum(2) + positive(b), relevance, stabilizer, layer)
    down = share(lowering, lowering.sum(2) + negative(b), relevance, stabilizer, layer)
    return alpha * up - beta * down


def contrast(layer: Dense, a: Tensor, relevance: Tensor, stabilizer: float = STABILIZER) -> Tensor:
    parts = layer.products(a)
    unit, dual = positive(parts), positive(-parts)  # the dual unit has the weights of the other sign
    return share(unit, unit.sum(2), relevance, stabilizer, layer) - share(
        dual, dual.sum(2), relevance, stabilizer, layer
    )


def rescaled_excitation(
    layer: Dense, a: Tensor, relevance: Tensor, gamma: float = 0.0, stabilizer: float = STABILIZER
) -> Tensor:
    parts = layer.products(a)
    parts = positive(parts) - gamma * positive(-parts)
    return share(parts, parts.sum(2), relevance, stabilizer, layer)


def absolute_value(
    layer: Dense, a: Tensor, relevance: Tensor, bias: str = "absorb", stabilizer: float = STABILIZER
) -> Tensor:
    parts = layer.products(a).abs()
    return share(parts, parts.sum(2) + layer.offset(bias).abs(), relevance, stabilizer, layer)


def zplus(layer: Dense, a: Tensor, relevance: Tensor, bias: str = "absorb", stabilizer: float = STABILIZER) -> Tensor:
    parts = positive(layer.products(a))
    return share(parts, parts.sum(2) + positive(layer.offset(bias)), relevance, stabilizer, layer)


def zbox(
    layer: Dense,
    a: Tensor,
    relevance: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    stabilizer: float = STABILIZER,
) -> Tensor:
    low, high = low + torch.zeros_like(a), high + torch.zeros_like(a)
    w = layer.weight[None]
    parts = a[:, None] * w - low[:, None] * positive(w) - high[:, None] * negative(w)
    return share(parts, parts.sum(2), relevance, stabilizer, layer)


def wsquare(layer: Dense, a: Tensor, relevance: Tensor, stabilizer: float = 0.0) -> Tensor:
    parts = layer.weight.square().expand(len(a), -1, -1)
    return share(parts, parts.sum(2), relevance, stabilizer, layer)


def flat(layer: Dense, a: Tensor, relevance: Tensor, stabilizer: float = 0.0) -> Tensor:
    parts = layer.reach.expand(len(a), -1, -1)
    return share(parts, parts.sum(2), relevance, stabilizer, layer)


def rho(
    layer: Dense,
    a: Tensor,
    relevance: Tensor,
    rho: Callable[[Tensor], Tensor],
    incr: Callable[[Tensor], Tensor],
) -> Tensor:
    parts = a[:, None] * (layer.reach * rho(layer.weight))[None]
    z = parts.sum(2)
    if layer.bias is not None:
        z = z + rho(layer.bias)
    return share(parts, incr(z), relevance, 0.0)


def groups(
    layer: Dense,
    a: Tensor,
    relevance: Tensor,
    groups: Sequence[tuple[float, float, float, int]],
    bias: str = "absorb",
    stabilizer: float | Tensor = STABILIZER,
) -> Tensor:
    """Groups (p, n, share, sign): positive contributions count p times, negative ones n times."""
    parts, b = layer.products(a), layer.offset(bias)
    z = parts.sum(2) + b
    found = torch.zeros_like(a)
    for p, n, portion, where in groups:
        counted = p * positive(parts) + n * negative(parts)
        whole = counted.sum(2) + p * positive(b) + n * negative(b)
        serves = sign(z) == where if where else torch.ones_like(z, dtype=torch.bool)
        found = found + share(counted, whole, torch.where(serves, portion * relevance, 0.0), stabilizer, layer)
    return found


RULES: dict[str, Rule] = {
    "groups": groups,
    "lrp0": lrp0,
    "epsilon": epsilon,
    "gamma": gamma,
    "alpha_beta": alpha_beta,
    "absolute_value": absolute_value,
    "contrast": contrast,
    "rescaled_excitation": rescaled_excitation,
    "zplus": zplus,
    "zbox": zbox,
    "wsquare": wsquare,
    "flat": flat,
    "rho": rho,
}


# ------------------------------------------------------------------------------------------- dense matrices


def _apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer without bias and with another weight, on an input that its padding mode has padded."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    assert isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED))
    dimensions = len(layer.kernel_size)
    strides = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if isinstance(layer, TRANSPOSED):
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]
        moved = {"padding": layer.padding, "output_padding": layer.output_padding}
        return transposed(x, weight, None, **strides, **moved)
    if layer.padding_mode == "zeros":
        x = F.pad(x, paddings(layer))
    return (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1](x, weight, None, **strides)


def paddings(layer: nn.Module) -> list[int]:
    """What a convolution adds before and after each dimension, in F.pad's order (last dimension first)."""
    assert isinstance(layer, CONVOLUTIONS)
    pairs = []
    for i, kernel in enumerate(layer.kernel_size):
        if layer.padding == "same":
            total = layer.dilation[i] * (kernel - 1)
            pairs.append((total // 2, total - total // 2))
        elif layer.padding == "valid":
            pairs.append((0, 0))
        else:
            pairs.append((int(layer.padding[i]), int(layer.padding[i])))
    return [width for pair in reversed(pairs) for width in pair]


def _matrix(function: Callable[[Tensor], Tensor], shape: torch.Size, like: Tensor) -> Tensor:
    """A linear function (no constant) as [K, J], by its values on the unit vectors of the input."""
    units = torch.eye(math.prod(shape), dtype=like.dtype).reshape(-1, *shape)
    return function(units).flatten(1).T


def dense(layer: nn.Module, shape: torch.Size) -> Dense:
    """The layer as a matrix, on inputs of this shape (no batch dimension), already padded by its mode."""
    assert isinstance(layer, LINEAR)
    weight = layer.weight
    matrix = _matrix(lambda x: _apply(layer, x, weight), shape, weight)
    reach = _matrix(lambda x: _apply(layer, x, torch.ones_like(weight)), shape, weight).detach()
    assert bool(((reach == 0) | (reach == 1)).all()), "one weight between any input and output"
    bias = None
    with torch.no_grad():
        out = _apply(layer, torch.zeros(1, *shape, dtype=weight.dtype), weight)
    if layer.bias is not None:
        if isinstance(layer, nn.Linear):
            bias = layer.bias.expand(out.shape[1:]).flatten()
        else:
            bias = layer.bias.reshape(-1, *[1] * (out.dim() - 2)).expand(out.shape[1:]).flatten()
    channel = out.dim() - 1 if isinstance(layer, nn.Linear) else 1
    return Dense(matrix, bias, reach, tuple(out.shape[1:]), channel)


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Batch norm with running statistics as scale and shift of each channel."""
    assert isinstance(norm, BATCH_NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = 1 / (norm.running_var + norm.eps).sqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift + norm.bias if norm.affine else shift


def fold(layer: Dense, norm: nn.Module, out_shape: torch.Size) -> Dense:
    """Layer and batch norm as one map; `out_shape` is that of the layer's output, no batch dimension."""
    scale, shift = (t.reshape(-1, *[1] * (len(out_shape) - 1)).expand(out_shape).flatten() for t in affine(norm))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    return replace(layer, weight=layer.weight * scale[:, None], bias=bias)


def products(layer: nn.Module, a: Tensor) -> Tensor:
    """a_j w_kj as [N, K, J], j running over the padded input where a padding mode pads."""
    if isinstance(layer, CONVOLUTIONS) and layer.padding_mode != "zeros":
        a = F.pad(a, paddings(layer), mode=str(layer.padding_mode))
    return dense(layer, a.shape[1:]).products(a.flatten(1))


def linear(
    layer: nn.Module, a: Tensor, relevance: Tensor, rule: str, norm: nn.Module | None = None, **options: Any
) -> Tensor:
    """Relevance of a linear layer's input `a` under the named rule; with `norm`, the pair is one map."""
    padded = isinstance(layer, CONVOLUTIONS) and layer.padding_mode != "zeros"
    if padded:
        # A padding mode copies entries: their relevance goes back to the entries they are copies of.
        widths, mode = paddings(layer), str(layer.padding_mode)
        copies = _matrix(lambda x: F.pad(x, widths, mode=mode), a.shape[1:], a)
        original, a = a, F.pad(a, widths, mode=mode)
        options = {
            key: F.pad(value.expand_as(original), widths, mode=mode) if isinstance(value, Tensor) else value
            for key, value in options.items()
        }
    options = {k: v.expand_as(a).flatten(1) if isinstance(v, Tensor) else v for k, v in options.items()}
    matrix = dense(layer, a.shape[1:])
    if norm is not None:
        matrix = fold(matrix, norm, relevance.shape[1:])
    result = RULES[rule](matrix, a.flatten(1), relevance.flatten(1), **options)
    if padded:
        return (result @ copies).reshape(original.shape)
    return result.reshape(a.shape)
