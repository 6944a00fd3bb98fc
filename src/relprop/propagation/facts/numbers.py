"""Constants that are known by their value: the base of a power, what is added, what a tensor is filled with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def number(x: Any) -> float | None:
    """Return the number that ``x`` is, or that all entries of a tensor are; None for anything else.

    >>> number(2), number(torch.ones(2, 3)), number(torch.tensor([1.0, 2.0]))
    (2.0, 1.0, None)
    """
    if isinstance(x, (int, float)):
        return float(x)
    if not isinstance(x, Tensor) or not x.numel() or x.is_meta or x.is_complex() or x.layout != torch.strided:
        return None
    first = x.detach().flatten()[0]
    return float(first) if x.numel() == 1 or bool((x.detach() == first).all()) else None
