"""Modified weights, kept between calls where the user asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class WeightCache:
    """Keeps ``change(weight)`` beside a copy of the weight, and compares by value before it is used again.

    Version counters would miss a write through ``.data``, a fused optimiser and a parametrised weight.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most  # a rule that asks by a new function each time must not fill the memory
        self._kept: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, weight: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``change(weight)``."""
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and _same(kept[0], weight):
            return kept[1]
        changed = change(weight)
        with self._lock:
            self._kept[key] = (weight.detach().clone(), changed.detach())
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return changed


def _same(kept: Tensor, weight: Tensor) -> bool:
    return kept.dtype == weight.dtype and kept.device == weight.device and torch.equal(kept, weight)
