"""Where activity starts for ids: at what a model looks up by them, or at their one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from relprop.errors import InputError
from relprop.propagation.call.call import Call
from relprop.propagation.call.trace import Record, total
from relprop.propagation.facts.operation import Kind
from relprop.propagation.facts.token_ids import Lost, Places, Root, Tokens


def start(call: Call, name: str, value: Tensor, given: Sequence[tuple[Tokens, Places]]) -> Tensor:
    """Return what was looked up by ids, from which activity starts where these are those of an explained input.

    Args:
        call: the state of the call.
        name: of what looks up.
        value: what it found, of the shape of the ids, and behind that whatever one of them finds.
        given: the inputs whose ids were looked up, each with their positions.

    Raises:
        InputError: where the positions of the ids got lost.
    """
    placed = [(tokens, found) for tokens, places in given if (found := _found(call, name, tokens, places)) is not None]
    if not placed:
        return value
    connected = call.options.create_graph and value.requires_grad
    kept = value.clone() if connected else value.detach().clone()  # the model may write into its own
    active = call.root(value, connected)
    for tokens, places in placed:
        tokens.roots.append(Root(get_gradient_edge(active), kept, None if places is tokens.every() else places))
    if call.options.measuring:
        strange = torch.stack([(places == 0).to(value.device) for _, places in placed]).all(0)
        if bool(strange.any()):
            _absorb(call, name, active, kept, strange)
    return active


def _found(call: Call, name: str, tokens: Tokens, places: Places) -> Tensor | None:
    """Return the positions of ids that are looked up; None where they got lost and the input has others."""
    try:
        return places()
    except Lost as lost:
        if tokens.alone:
            raise InputError(
                f"An embedding consumes token ids that {lost}, which relprop cannot follow to their positions. Move "
                "them by indexing (ids[:, order]), or explain the embedded tokens."
            ) from None
        call.coverage.uncovered(
            name, f"looks up numbers that {lost}, and no relevance passes to the entries of the input they come from."
        )
        return None


def _absorb(call: Call, name: str, active: Tensor, value: Tensor, strange: Tensor) -> None:
    """Count what ids keep that are none of an explained input, such as those that a model puts before it."""
    place, module = call.place
    record = Record(place, type(module).__name__, name, Kind.VIEW, output=tuple(value.shape))
    call.trace.records.append(record)
    strange = strange.reshape(*strange.shape, *[1] * (value.dim() - strange.dim()))

    def measure(c: Tensor) -> None:
        if call.explaining:
            share = total(torch.where(strange, call.relevance(value.double(), c.double()), 0.0))
            record.receive(share)
            record.absorb({"bias": share})

    active.register_hook(measure)
