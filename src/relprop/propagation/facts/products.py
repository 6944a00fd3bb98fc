"""What tensors are products of, entry by entry: of what depends on the input, and of a constant."""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Products:
    """The factors of the products of one call, held as long as the products live."""

    def __init__(self) -> None:
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def note(self, out: Tensor, a: Tensor, factor: Tensor) -> None:
        """Remember that ``out = a factor``."""
        self._known[out] = out._version, a, a._version, factor, factor._version

    def of(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the factors of a tensor, if nothing was written since."""
        if not self._known or x not in self._known:
            return None
        version, a, of_a, factor, of_factor = self._known[x]
        unchanged = (version, of_a, of_factor) == (x._version, a._version, factor._version)
        return (a, factor) if unchanged else None

    def clear(self) -> None:
        self._known = WeakTensorKeyDictionary()
