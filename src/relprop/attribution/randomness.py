"""Random numbers that a seed gives again, on every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InputError, InputTypeError


@dataclass(frozen=True)
class Draws:
    """Numbers drawn where the generator is, the CPU for a seed, so that they are the same for every device and dtype.

    Attributes:
        generator: what they are drawn from; the global one is never touched.
    """

    generator: torch.Generator

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers in the shape, dtype and device of a tensor."""
        return self._drawn(torch.randn, tuple(like.shape), like)

    def uniform(self, like: Tensor, *shape: int) -> Tensor:
        """Return numbers from [0, 1), in the dtype and device of a tensor."""
        return self._drawn(torch.rand, shape, like)

    def indices(self, below: int, count: int) -> Tensor:
        """Return integers from 0 up to ``below - 1``."""
        return torch.randint(below, (count,), generator=self.generator, device=self.generator.device)

    def _drawn(self, draw: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        # In single precision for every dtype, which would each have numbers of its own.
        found: Tensor = draw(shape, generator=self.generator, dtype=torch.float32, device=self.generator.device)
        return found.to(device=like.device, dtype=like.dtype)


def draws(seed: int | None, generator: torch.Generator | None) -> Draws:
    """Return what is drawn from a seed, 0 where none is given, or from a generator.

    Raises:
        InputError: where both are given.
        InputTypeError: for a seed that is no integer, and a generator that is none.
    """
    if seed is not None and generator is not None:
        raise InputError("Give a seed or a generator, not both.")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise InputTypeError(f"generator must be a torch.Generator, got {type(generator).__name__}.")
        return Draws(generator)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InputTypeError(f"seed must be an int, got {seed!r}.")
    return Draws(torch.Generator().manual_seed(0 if seed is None else seed))
