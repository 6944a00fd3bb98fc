"""Complexity: on how few features does the explanation rest?

A sparse explanation is easier to read, not truer: these say nothing of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.metrics._explain import checked_input, checked_relevance
from relprop.metrics._features import Features, units


def gini_sparseness(relevance: Tensor, *, features: Features = "elements") -> Tensor:
    """Measure how unequally relevance is shared.

    Definition: the Gini index of ``a = |R|`` in rising order, ``1 - 2 sum_{k=1..d} a_(k) / |a|_1 * (d - k + 1/2) / d``.
    An empty map has 0.
    Range: [0, 1 - 1/d]; 0 is uniform, ``1 - 1/d`` is one feature that has all; higher is sparser.
    Source: Chalasani et al. 2020 (arXiv:1810.06583), after Hurley and Rickard 2009 (arXiv:0811.4706).

    Args:
        relevance: ``[N, ...]``.
        features: what is one feature, as ``features`` of ``RemovalOptions``: ``"elements"`` by default, ``"pixels"``
            sums ``|R|`` over channels.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: NaN or infinity, no sample, or features that the shape does not have.
        InputTypeError: no tensor.

    >>> gini_sparseness(torch.tensor([[0.0, 0.0, 0.0, -4.0], [1.0, 1.0, 1.0, 1.0]]))
    tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    shares, counts = _shares(relevance, features)
    # Units that a sample does not have come first as zeros, and get no place.
    ordered = shares.sort(dim=1).values
    missing = shares.shape[1] - counts[:, None]
    k = torch.arange(1, shares.shape[1] + 1, device=shares.device) - missing
    found = 1 - 2 * (ordered * (counts[:, None] - k + 0.5) / counts[:, None]).sum(dim=1)
    return torch.where(shares.sum(dim=1) == 0, 0.0, found)


def entropy_complexity(relevance: Tensor, *, features: Features = "elements") -> Tensor:
    """Measure the entropy of the distribution of relevance over features.

    Definition: ``- sum_i p_i ln p_i`` with ``p_i = |R_i| / sum_j |R_j|``. An empty map has 0.
    Range: [0, ln d]; 0 is one feature that has all, ``ln d`` is uniform; lower is simpler.
    Source: Bhatt et al. 2020 (arXiv:2005.00631).

    Args:
        relevance, features: as in ``gini_sparseness``.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError, InputTypeError: as ``gini_sparseness``.

    >>> entropy_complexity(torch.tensor([[0.0, 0.0, 0.0, -4.0], [1.0, 1.0, 1.0, 1.0]])).exp().round(decimals=4)
    tensor([1., 4.], dtype=torch.float64)
    """
    shares, _ = _shares(relevance, features)
    entropy: Tensor = torch.special.xlogy(shares, shares).sum(dim=1).neg()
    return entropy + 0.0  # no -0


def _shares(relevance: Tensor, features: Features) -> tuple[Tensor, Tensor]:
    """Return each unit's share of ``sum |R|``, ``[N, K]``, 0 in an empty map, and the numbers of units, ``[N]``."""
    relevance = checked_input(relevance, "relevance")
    relevance = checked_relevance(relevance, relevance)
    parts = units(relevance, features)
    size = parts.total(relevance, absolute=True)
    total = size.sum(dim=1, keepdim=True)
    return torch.where(total == 0, 0.0, size / total), parts.counts
