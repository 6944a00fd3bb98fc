"""Random numbers that a seed gives again, on every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.errors import InputError, InputTypeError

LOWEST, HIGHEST = -(2**63), 2**64 - 1  # the seeds a generator of PyTorch takes


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

    def seed(self) -> int:
        """Return a seed for what draws by itself."""
        return int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))

    def branch(self) -> Draws:
        """Return a source that is drawn from without moving this one on."""
        found = torch.Generator(self.generator.device)
        found.set_state(self.generator.get_state())
        return Draws(found)

    def _drawn(self, draw: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
        # In single precision for every dtype, which would each have numbers of its own.
        found: Tensor = draw(shape, generator=self.generator, dtype=torch.float32, device=self.generator.device)
        return found.to(device=like.device, dtype=like.dtype)


def draws(seed: int | None, generator: torch.Generator | None) -> Draws:
    """Return what is drawn from a seed, 0 where none is given, or from a generator.

    Raises:
        InputError: where both are given, or the seed is out of range.
        InputTypeError: for a seed that is no integer, and a generator that is none.
    """
    if seed is not None and generator is not None:
        raise InputError("Give a seed or a generator, not both.")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise InputTypeError(f"generator must be a torch.Generator, got {type(generator).__name__}.")
        return Draws(generator)
    return Draws(torch.Generator().manual_seed(as_seed(seed)))


def as_seed(seed: Any) -> int:
    """Return a seed as every method takes it: an integer, of NumPy too; None is 0.

    Raises:
        InputTypeError: for anything else.
        InputError: where it is out of the range of a generator's seeds.
    """
    if seed is None:
        return 0
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise InputTypeError(f"seed must be an int (or None, which is 0), got {seed!r}.")
    if not LOWEST <= seed <= HIGHEST:
        raise InputError(f"seed must lie between -2^63 and 2^64 - 1, got {seed!r}.")
    return int(seed)
