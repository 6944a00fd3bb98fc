"""Handlers of embeddings, where activity starts for token ids that are explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from relprop.errors import InputError
from relprop.operations.rows import Rows, rows
from relprop.propagation.call.call import Call
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.trace import Record, total
from relprop.propagation.facts.inheritance import moved, of_all
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Ids, Image, Kind, Updates
from relprop.propagation.facts.token_ids import Lost, Root, Tokens


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
    holding = [tokens for tokens in call.known.tokens if tokens.holds(ids)]
    if not holding:
        return value
    placed: list[tuple[Tokens, Tensor]] = []
    for tokens in holding:
        try:
            placed.append((tokens, tokens.places(ids)()))
        except Lost as lost:
            if tokens.alone:
                raise InputError(
                    f"An embedding consumes token ids that {lost}, which relprop cannot follow to their positions. "
                    "Move them by indexing (ids[:, order]), or explain the embedded tokens."
                ) from None
            call.coverage.uncovered(
                "embedding", f"looks up numbers that {lost}; no relevance passes to the columns they come from."
            )
    if not placed:
        return value
    strange = torch.ones_like(ids, dtype=torch.bool)
    connected = call.options.create_graph and value.requires_grad
    kept = value.clone() if connected else value.detach().clone()  # the model may write into its own
    start = call.root(value, connected)
    for tokens, places in placed:
        tokens.roots.append(Root(get_gradient_edge(start), kept, None if places is tokens.every() else places))
        strange &= (places == 0).to(ids.device)
    if call.options.measuring and bool(strange.any()):
        _absorb(call, start, kept, strange)
    return start


def _absorb(call: Call, start: Tensor, value: Tensor, strange: Tensor) -> None:
    """Count what embedded ids keep that are none of an explained input, such as those that a model puts before it."""
    name, module = call.place
    record = Record(name, type(module).__name__, "embedding", Kind.VIEW, output=tuple(value.shape))
    call.trace.records.append(record)

    def measure(c: Tensor) -> None:
        if call.explaining:
            share = total(torch.where(strange.unsqueeze(-1), call.relevance(value.double(), c.double()), 0.0))
            record.receive(share)
            record.absorb({"bias": share})

    start.register_hook(measure)


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
