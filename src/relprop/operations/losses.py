"""Loss functions, as they are made of operations that have handlers.

The functions of ``torch.nn.functional`` are written in Python and run their own bodies. What those call is written
here, in the order of its arguments. ``reduction`` is 0 (none), 1 (mean) or 2 (sum).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations.composites import opened, rewritten
from relprop.operations.rows import Rows, composite
from relprop.propagation.facts.operation import Difference, Handler, Holds

DEFAULT = 0 if torch.margin_ranking_loss(torch.ones(2), torch.ones(2), torch.ones(2)).dim() else 1
"""The reduction where none is given: the mean as documented, but in some versions of PyTorch none."""


# The functions of ``torch`` itself reduce nothing unless they are told to; those behind ``F`` take the mean.
def _reduced(loss: Tensor, reduction: int) -> Tensor:
    return loss if reduction == 0 else loss.mean() if reduction == 1 else loss.sum()


def mse_loss(input: Tensor, target: Tensor, reduction: int = DEFAULT) -> Tensor:
    """``(x - y)^2``."""
    return _reduced((input - target).square(), reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: int = DEFAULT) -> Tensor:
    """``|x - y|``."""
    return _reduced((input - target).abs(), reduction)


def huber_loss(input: Tensor, target: Tensor, reduction: int = DEFAULT, delta: float = 1.0) -> Tensor:
    """``m (|x - y| - m / 2)`` for ``m = min(|x - y|, delta)``, of which ``m`` and the rest are factors."""
    distance = (input - target).abs()
    least = distance.clamp(max=delta)
    return _reduced(least * (distance - least / 2), reduction)


def smooth_l1_loss(input: Tensor, target: Tensor, reduction: int = DEFAULT, beta: float = 1.0) -> Tensor:
    """The Huber loss over ``beta``."""
    return l1_loss(input, target, reduction) if beta == 0 else huber_loss(input, target, reduction, beta) / beta


def soft_margin_loss(input: Tensor, target: Tensor, reduction: int = DEFAULT) -> Tensor:
    """``softplus(-y x)``."""
    return _reduced(F.softplus(-target * input), reduction)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = DEFAULT,
) -> Tensor:
    """``-y log(p) - (1 - y) log(1 - p)``; logarithms end at -100."""
    loss = (target - 1) * torch.log(1 - input).clamp(min=-100) - target * torch.log(input).clamp(min=-100)
    return _reduced(loss if weight is None else loss * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = DEFAULT,
) -> Tensor:
    """``-y logsigmoid(x) - (1 - y) logsigmoid(-x)``."""
    positive = F.logsigmoid(input) if pos_weight is None else pos_weight * F.logsigmoid(input)
    loss = (target - 1) * F.logsigmoid(-input) - target * positive
    return _reduced(loss if weight is None else loss * weight, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = DEFAULT,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``-<y, log_softmax(x)>``."""
    dim = 0 if input.dim() == 1 else 1
    logarithms = F.log_softmax(input, dim)
    weights = torch.ones(input.shape[dim], dtype=input.dtype, device=input.device) if weight is None else weight
    weights = weights.reshape([-1 if d == dim else 1 for d in range(input.dim())])
    classes = input.shape[dim]
    if target.is_floating_point():
        wanted = (target * (1 - label_smoothing) + label_smoothing / classes) * weights
        loss = -(wanted * logarithms).sum(dim)
        return loss.sum() / (loss.numel() if dim else 1) if reduction == 1 else _reduced(loss, reduction)
    ignored = target == ignore_index
    chosen = F.one_hot(torch.where(ignored, 0, target), classes).movedim(-1, dim).to(input.dtype)
    kept = chosen * weights * (~ignored).unsqueeze(dim)
    smooth = weights * (~ignored).unsqueeze(dim) * (label_smoothing / classes)
    loss = -((kept * (1 - label_smoothing) + smooth) * logarithms).sum(dim)
    return loss.sum() / kept.sum() if reduction == 1 else _reduced(loss, reduction)


def kl_div(input: Tensor, target: Tensor, reduction: int = DEFAULT, *, log_target: bool = False) -> Tensor:
    """``y (log y - x)``, or ``exp(y) (y - x)`` for logarithms ``y``."""
    loss = torch.exp(target) * (target - input) if log_target else torch.xlogy(target, target) - target * input
    return _reduced(loss, reduction)


def poisson_nll_loss(input: Tensor, target: Tensor, log_input: bool, full: bool, eps: float, reduction: int) -> Tensor:
    """``exp(x) - y x``, or ``x - y log(x + eps)``; ``full`` adds Stirling's approximation of ``log(y!)``."""
    loss = torch.exp(input) - target * input if log_input else input - target * torch.log(input + eps)
    if full:
        stirling = target * torch.log(target) - target + 0.5 * torch.log(2 * math.pi * target)
        loss = loss + torch.where(target > 1, stirling, torch.zeros_like(target))
    return _reduced(loss, reduction)


def hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = DEFAULT) -> Tensor:
    """``x`` where ``y = 1``, ``relu(margin - x)`` where ``y = -1``."""
    zero = torch.zeros_like(input)
    apart = torch.where(target != 1, F.relu(margin - input), zero)
    return _reduced(apart + torch.where(target != -1, input, zero), reduction)


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = DEFAULT
) -> Tensor:
    """``1 - cos`` where ``y = 1``, ``relu(cos - margin)`` where ``y = -1``."""
    dots = (input1 * input2).sum(-1)
    squares = [x.square().sum(-1) + 1e-12 for x in (input1, input2)]
    cosine = dots / (squares[0] * squares[1]).sqrt()
    zero = torch.zeros_like(cosine)
    apart = torch.where(target == -1, F.relu(cosine - margin), zero)
    return _reduced(torch.where(target == 1, 1 - cosine, zero) + apart, reduction)


def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = DEFAULT
) -> Tensor:
    """``relu(margin - y (x1 - x2))``."""
    return _reduced(F.relu(-target * (input1 - input2) + margin), reduction)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = DEFAULT,
) -> Tensor:
    """``relu(margin + d(a, p) - d(a, n))``."""
    apart = F.pairwise_distance(anchor, negative, p, eps)
    if swap:
        apart = torch.minimum(apart, F.pairwise_distance(positive, negative, p, eps))
    return _reduced(F.relu(margin + F.pairwise_distance(anchor, positive, p, eps) - apart), reduction)


def multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1, weight: Tensor | None = None, reduction: int = DEFAULT
) -> Tensor:
    """``sum over the other classes of relu(margin - x_y + x_i)^p / classes``."""
    rows, classes = input.reshape(-1, input.shape[-1]), target.reshape(-1)
    own = rows.gather(1, classes.unsqueeze(1))
    terms = F.relu(margin - own + rows) ** p
    if weight is not None:
        terms = terms * weight[classes].unsqueeze(1)
    others = 1 - F.one_hot(classes, rows.shape[1]).to(rows.dtype)
    loss = (terms * others).sum(1) / rows.shape[1]
    return _reduced(loss if input.dim() > 1 else loss[0], reduction)


# The rows ----------------------------------------------------------------------------------------


def _loss(name: str, space: Any, handler: Handler) -> Rows:
    return composite(name, spaces=(space,), handler=handler, difference=Difference.AS_RULES, holds=Holds.NOTHING)


ROWS: Rows = [
    *(
        row
        for body in (
            mse_loss, l1_loss, huber_loss, smooth_l1_loss, soft_margin_loss, binary_cross_entropy, multi_margin_loss,
        )
        for row in _loss(body.__name__, torch._C._nn, rewritten(body))
    ),
    *(
        row
        for body in (
            binary_cross_entropy_with_logits, kl_div, poisson_nll_loss, hinge_embedding_loss, cosine_embedding_loss,
            margin_ranking_loss, triplet_margin_loss,
        )
        for row in _loss(body.__name__, torch, rewritten(body))
    ),
    *_loss("cross_entropy_loss", torch._C._nn, rewritten(cross_entropy)),
    *(
        row
        for name in (
            "mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy",
            "binary_cross_entropy_with_logits", "cross_entropy", "kl_div", "poisson_nll_loss", "gaussian_nll_loss",
            "hinge_embedding_loss", "cosine_embedding_loss", "margin_ranking_loss", "triplet_margin_loss",
            "triplet_margin_with_distance_loss", "multi_margin_loss", "multilabel_soft_margin_loss",
        )
        for row in _loss(name, F, opened)
    ),
]  # fmt: skip
