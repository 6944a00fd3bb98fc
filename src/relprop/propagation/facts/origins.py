"""What is known of a tensor: where it came from, and whether it depends on the explained input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.facts.moves import Moves
from relprop.propagation.math.linear_map import Convolution

if TYPE_CHECKING:
    from relprop.propagation.call.linear_call import LinearCall


Powers: TypeAlias = "tuple[tuple[tuple[object, int], int], ...]"
_ANCESTORS = 32
"""Of how many tensors before it a tensor is remembered to be a function."""


@dataclass(frozen=True)
class Windows:
    """The windows that a convolution would look at, one a column, or one a row where it is ``transposed``.

    Attributes:
        of: the tensor they were taken from, as it was in ``version``.
        kernel: the size of a window.
        geometry: the convolution.
    """

    of: Tensor
    version: int
    kernel: tuple[int, ...]
    geometry: Convolution
    transposed: bool = False


class Origin(NamedTuple):
    """What is known of one tensor; true as long as the tensor's version is ``version``.

    What an operation keeps of it says :mod:`relprop.propagation.facts.inheritance`.

    Attributes:
        linear_call: the linear call whose output it exactly is, but for moves.
        moves: how the entries of that output were moved.
        low, high: no entry lies outside.
        gate: it opens and shuts what it multiplies, and is constant as a factor of that.
        held: it is a gate times a constant of its shape, which is no scale but a signal that is let through.
        shifted: a number was added to it.
        factors: how many active factors its terms are products of.
        powers: the tensors of which it is a function, entry by entry, by their autograd nodes; each with the power
            of it that it is a constant multiple of, 0 for any other function.
        windows: of which tensor it holds the windows of a convolution, in columns.
        spread: the sum of the sizes of the differences it was added up from (for RevealCancel).
    """

    version: int = 0
    linear_call: LinearCall | None = None
    moves: Moves = ()
    low: float = -math.inf
    high: float = math.inf
    gate: bool = False
    held: bool = False
    shifted: bool = False
    factors: int = 1
    powers: Powers = ()
    windows: Windows | None = None
    spread: Tensor | None = None

    @property
    def nonnegative(self) -> bool:
        """Say whether it is known to hold nothing below zero."""
        return self.low >= 0

    @property
    def elsewhere(self) -> Origin:
        """Return what stays true of a part of it."""
        return self._replace(linear_call=None, moves=(), windows=None, held=False, shifted=False, powers=())


NOTHING = Origin()
"""What is known of a tensor of which nothing is known."""


@dataclass(frozen=True)
class Mask:
    """Where a tensor, as it was in a version, is above zero, or below (whatever it is where the tensor is zero)."""

    of: Tensor
    version: int
    above: bool


class Source(Enum):
    """Of what a constant was made."""

    MODEL = "what the model owns"
    MODEL_AND_MORE = "what the model owns, and tensors that it makes as it runs, which may be as long as a batch"
    DATA = "what the model is given"


class Origins:
    """The origins of the tensors of one call, held as long as the tensors live."""

    def __init__(self) -> None:
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._sources: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def note_weight(self, tensor: Tensor, alone: bool = True) -> None:
        """Remember a constant that was made from what the model owns, of that alone or with other tensors."""
        self._sources[tensor] = Source.MODEL if alone else Source.MODEL_AND_MORE

    def note_data(self, tensor: Tensor) -> None:
        """Remember a constant that was given to the model, or made from what was."""
        self._sources[tensor] = Source.DATA

    def source(self, tensor: Tensor) -> Source | None:
        """Return of what a constant was made, where that is known."""
        found: Source | None = self._sources.get(tensor)
        return found

    def is_weight(self, tensor: Tensor) -> bool:
        """Say whether a constant was made from what the model owns, and from nothing that was given to it."""
        return self.source(tensor) in (Source.MODEL, Source.MODEL_AND_MORE)

    def is_data(self, tensor: Tensor) -> bool:
        """Say whether a constant was given to the model, or made from what was."""
        return self.source(tensor) is Source.DATA

    def note_mask(self, tensor: Tensor, mask: Mask) -> None:
        """Remember a mask."""
        self._masks[tensor] = (mask, tensor._version)

    def mask(self, tensor: Tensor) -> Mask | None:
        """Return of what a tensor is the mask, as both are now."""
        if not self.has_masks:
            return None
        mask, version = self._masks.get(tensor, (None, 0))
        return mask if mask is not None and (version, mask.version) == (tensor._version, mask.of._version) else None

    @property
    def has_masks(self) -> bool:
        return len(self._masks) > 0

    def of(self, tensor: Tensor) -> Origin:
        """Return what is known of the tensor as it is now."""
        origin: Origin | None = self._known.get(tensor)
        if origin is None and type(tensor.grad_fn).__name__ == "BackwardHookFunctionBackward":
            origin = self._known.get(_before_hook(tensor))
        if origin is not None and origin.version != tensor._version:  # it may be the view of what was written to
            with torch._C.DisableTorchFunction():
                base = tensor._base
            origin = None if base is None or not same_place(tensor, base) else self._known.get(base)
        return origin if origin is not None and origin.version == tensor._version else NOTHING

    def forget_linear_call(self, tensor: Tensor) -> None:
        """Let nothing be folded into the linear call that made a tensor by way of this one."""
        origin = self.of(tensor)
        if origin.linear_call is not None:
            origin.linear_call.consumers.append(False)
            self.note(tensor, origin._replace(linear_call=None, moves=()))

    def with_itself(self, tensor: Tensor) -> Origin:
        """Return what is known of the tensor, among whose powers is its own first."""
        origin, node = self.of(tensor), tensor.grad_fn
        itself = (id(tensor), tensor._version) if node is None else (node, tensor.output_nr)
        return origin._replace(powers=(*origin.powers[-_ANCESTORS:], (itself, 1)))

    def note(self, tensor: Tensor, origin: Origin) -> None:
        """Remember the origin of the tensor as it is now."""
        if origin is NOTHING:
            self._known.pop(tensor, None)
        else:
            version = tensor._version
            self._known[tensor] = origin if origin.version == version else origin._replace(version=version)

    def clear(self) -> None:
        self._known, self._sources = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._masks = WeakTensorKeyDictionary()


def same_place(tensor: Tensor, other: Tensor) -> bool:
    """Say whether two tensors of one memory hold the same entries in the same order."""
    with torch._C.DisableTorchFunction():
        same = tensor.shape == other.shape and tensor.stride() == other.stride()
        return same and tensor.storage_offset() == other.storage_offset()


def _before_hook(tensor: Tensor) -> Tensor:
    """Return the tensor on which a module's backward hook put a node: its base, where that is the same tensor."""
    with torch._C.DisableTorchFunction():
        base = tensor._base
    return base if base is not None and same_place(tensor, base) else tensor
