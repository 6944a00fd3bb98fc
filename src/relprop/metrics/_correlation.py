"""Correlations, row by row."""

from __future__ import annotations

import torch
from torch import Tensor


def pearson(a: Tensor, b: Tensor, undefined: float = 0.0) -> Tensor:
    """Return Pearson's correlation of the rows of a and b ``[N, S]``, ``[N]``, ``undefined`` if one is constant.

    Constant is what varies by less than 1e-12 of its size: sums of equal numbers differ by rounding errors.
    """
    a, b = (of_unit_size(each.double()) for each in (a, b))
    centred = [each - each.mean(dim=1, keepdim=True) for each in (a, b)]
    sizes = [each.norm(dim=1) for each in centred]
    constant = (sizes[0] <= 1e-12 * a.norm(dim=1)) | (sizes[1] <= 1e-12 * b.norm(dim=1))
    found = (centred[0] * centred[1]).sum(dim=1) / (sizes[0] * sizes[1])
    return torch.where(constant, undefined, found.clamp(-1, 1))


def of_unit_size(values: Tensor) -> Tensor:
    """Divide each of ``[N, ...]`` by its largest absolute value, so that squares and sums neither vanish nor overflow.

    What is all zero stays.
    """
    largest = values.abs().flatten(1).amax(dim=1).view(-1, *(1,) * (values.dim() - 1))
    return torch.where(largest == 0, values, values / largest)


def spearman(a: Tensor, b: Tensor, undefined: float = 0.0) -> Tensor:
    """Return Spearman's rank correlation of the rows of a and b ``[N, S]``, ``[N]``; ties share their mean rank."""
    return pearson(ranks(a), ranks(b), undefined)


def ranks(values: Tensor) -> Tensor:
    """Return the ranks of values ``[N, S]`` in their rows, from 1; equal values share the mean of theirs."""
    ordered, order = values.sort(dim=1, stable=True)
    ordered = ordered.contiguous()
    # Equal values end where the next larger one begins: both ends by a search in the sorted row.
    first = torch.searchsorted(ordered, ordered, right=False)
    last = torch.searchsorted(ordered, ordered, right=True)
    mean = (first + last + 1).double() / 2
    return torch.empty_like(mean).scatter_(1, order, mean)
