"""Handlers of embeddings, where activity starts for token ids that are explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations.rows import Rows, rows
from relprop.propagation.call.call import Call
from relprop.propagation.call.ids import start
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import moved, of_all
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Ids, Image, Kind, Updates


def embedding(here: Here, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``F.embedding``."""
    return _embedded(here, input, here.func(input, weight, *args, **kwargs))


def torch_embedding(here: Here, weight: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``torch.embedding``, which takes the same tensors in another order."""
    return _embedded(here, indices, here.func(weight, indices, *args, **kwargs))


def _embedded(here: Here, ids: Tensor, value: Tensor) -> Tensor:
    """Return the embedding of ids; where these are explained, activity starts there."""
    here.by_autograd()
    return embedded(here.call, ids, value)


def embedded(call: Call, ids: Tensor, value: Tensor) -> Tensor:
    """Return the output of an embedding, from which activity starts where the ids that it consumed are explained.

    Raises:
        InputError: where the positions of the ids got lost.
    """
    every = call.known.tokens
    given = [(tokens, tokens.places(ids)) for tokens in every if tokens.holds(ids)]
    given += [(tokens, said) for tokens in every if (said := tokens.mask(ids)) is not None and said.follows]
    return start(call, "embedding", value, given) if given else value


# The rows ----------------------------------------------------------------------------------------


def _updates(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *rest: Any, **more: Any
) -> list[Tensor | None]:
    return [] if max_norm is None else [weight]


def _looks_up(spaces: Sequence[Any], *, handler: Handler, ids_at: int, updates: Updates | None) -> Rows:
    return rows(
        "embedding", spaces=spaces, kind=Kind.VIEW, handler=handler, keeps=of_all(moved),
        difference=Difference.AS_RULES, excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.LOOKS_UP,
        entering=(ids_at,), image=Image.MOVES, holds=Holds.NOTHING, updates=updates, composite=False,
        deterministic=True,
    )  # fmt: skip


ROWS: Rows = [
    *_looks_up((F,), handler=embedding, ids_at=0, updates=_updates),
    *_looks_up((torch,), handler=torch_embedding, ids_at=1, updates=None),
]
