"""Token ids: which tensors hold the ids of an explained input, and from which of its positions each entry was taken.

Relevance is read at the output of the embedding that consumes the ids, and given back to their positions. A model may
move its ids before: reverse, slice, gather, join, pad or repeat them. Whatever it does is done to the positions too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from relprop.propagation.facts.operation import Ids, Operation
from relprop.trees import tensors_in

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Function = Callable[..., Any]

WRITE = "a write into a view"


@dataclass(frozen=True)
class Root:
    """Where activity starts: the edge at which the coefficient arrives, and the value that it belongs to.

    Attributes:
        places: for every embedded id its position in the input, counted from 1, and 0 where it is none of the input's;
            None where it was embedded as it is.
    """

    edge: GradientEdge
    value: Tensor
    places: Tensor | None = None

    def placed(self, relevance: Tensor, shape: torch.Size) -> Tensor:
        """Return the relevance of embedded ids at their positions in an input of this shape."""
        if self.places is None:
            return relevance
        found = torch.zeros(shape.numel() + 1, dtype=relevance.dtype, device=relevance.device)
        places = self.places.to(relevance.device).flatten()
        return found.index_add(0, places, relevance.flatten())[1:].reshape(shape)


@dataclass(frozen=True)
class _Holder:
    """A tensor that holds ids while its version is this one, and their positions; None where they got lost."""

    tensor: Tensor
    version: int
    places: Tensor | None
    moved_by: str


class Tokens:
    """An integer input, explained at the outputs of the embeddings that consume it.

    Attributes:
        given: the tensor that the model is given.
        roots: the outputs of the embeddings, from which activity starts.
    """

    def __init__(self, given: Tensor) -> None:
        self.given = given
        self.roots: list[Root] = []
        order = torch.arange(1, given.numel() + 1, device=given.device).reshape(given.shape)
        self.every = torch.empty_like(given, dtype=torch.int64).copy_(order)  # with the strides of the ids
        self._holders: dict[int, _Holder] = {}
        self.note(given, self.every)

    def note(self, tensor: Tensor, places: Tensor | None, moved_by: str = WRITE) -> None:
        """Remember a tensor that holds ids, and at which positions these stood."""
        if places is not None and tensor.is_contiguous():
            places = places.contiguous()  # so that whatever is a view of the one is a view of the other
        self._holders[id(tensor)] = _Holder(tensor, tensor._version, places, moved_by)

    def forget(self, tensor: Tensor) -> None:
        """Note that a tensor holds other numbers now."""
        self._holders.pop(id(tensor), None)

    def holds(self, tensor: Tensor) -> bool:
        """Say whether a tensor holds ids."""
        return id(tensor) in self._holders

    def places(self, tensor: Tensor) -> Tensor | None:
        """Return the positions of the ids in a tensor; None where they got lost."""
        holder = self._holders[id(tensor)]
        return holder.places if holder.version == tensor._version else None

    def moved_by(self, tensor: Tensor) -> str:
        """Name what moved the ids in a tensor, where they got lost."""
        return self._holders[id(tensor)].moved_by

    def clear(self) -> None:
        """Let go of all tensors."""
        self._holders.clear()
        self.roots.clear()


# Through what moves ids --------------------------------------------------------------------------

_NAMED = {"input", "tensors", "other", "value", "src", "source", "x", "self"}


@dataclass(frozen=True)
class Moved:
    """The positions of ids in the tensors that a call makes, or what they got lost by."""

    tokens: Tokens
    places: tuple[Tensor | None, ...]
    lost_by: str = WRITE


def follow(
    every: Sequence[Tokens],
    func: Function,
    row: Operation,
    args: Args,
    kwargs: Kwargs,
) -> list[Moved]:
    """Return where the ids among the arguments of a call go; to be asked before it writes over its arguments.

    The call is made on the positions too, with zeros in the place of all values that are no ids.

    Args:
        every: the inputs whose ids may be among the arguments.
        func, args, kwargs: the call.
        row: of its operation.
    """
    does, entering = row.ids, row.entering
    if does in (Ids.NONE, Ids.LOOKS_UP):
        return []
    found: list[Moved] = []
    for tokens in every:
        values = [*(args[at] for at in entering if at < len(args)), *(kwargs.get(key) for key in _NAMED)]
        holders = [tensor for tensor in tensors_in(values) if tokens.holds(tensor)]
        if not holders:
            continue
        lost = next((holder for holder in holders if tokens.places(holder) is None), None)
        if does is Ids.LOSES or lost is not None:
            found.append(Moved(tokens, (), row.name if lost is None else tokens.moved_by(lost)))
        elif does is Ids.COPIES:
            found.append(Moved(tokens, (tokens.places(holders[0]),)))
        else:
            moved = func(
                *(_placed(tokens, value) if at in entering else value for at, value in enumerate(args)),
                **{key: _placed(tokens, value) if key in _NAMED else value for key, value in kwargs.items()},
            )
            found.append(Moved(tokens, tuple(tensors_in(moved))))
    return found


def note(every: Sequence[Tokens], found: Sequence[Moved], made: Any) -> None:
    """Note on what a call made, or wrote, where the ids in it stood; it holds no others."""
    for index, tensor in enumerate(tensors_in(made)):
        for tokens in every:
            tokens.forget(tensor)
        for moved in found:
            if not tensor.is_floating_point() and tensor.dtype != torch.bool:
                moved.tokens.note(tensor, moved.places[index] if moved.places else None, moved.lost_by)


def _placed(tokens: Tokens, value: Any) -> Any:
    """Return positions in the place of ids, and zeros in that of all other numbers."""
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(tokens, item) for item in value)
    if isinstance(value, Tensor):
        if value.dtype == torch.bool:
            return value  # a mask
        places = tokens.places(value) if tokens.holds(value) else None
        # A view of the positions: the call may change its shape in place.
        return torch.zeros_like(value, dtype=torch.int64) if places is None else places.view_as(places)
    return 0 if isinstance(value, (int, float)) else value
