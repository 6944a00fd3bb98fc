"""Autograd nodes that no seen call made (custom autograd functions, scripted modules), where a filter stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.propagation.call.flow import Flow
from relprop.propagation.call.returned import Where, check_tensor
from relprop.propagation.call.trace import Record, total

if TYPE_CHECKING:
    from relprop.propagation.call.call import Call

_EVERY_ENTRY = "It is what out is explained as, entry by entry: flow.scale(out, mask), flow.constant(out)."


def filter_unseen(call: Call, rule: Any, where: Where, tensor: Tensor, record: Record | None) -> None:
    """Let relevance reach an autograd node that no seen call made only through a filter.

    The model holds its output already, so that the tensor stays as it is: the coefficient that arrives there goes back
    through the graph of the filter first.
    """
    with torch.enable_grad():
        start = tensor.detach().requires_grad_().clone()
        call.known.graph.overwrite(start, tensor)
        found = rule.output(Flow(where.operation, where.name, call), start, [])
    check_tensor(found, start, "the output out", rule.output, where, _EVERY_ENTRY)
    call.blocked = call.blocked or rule.blocks
    call.known.graph.hold(tensor)
    constant = not call.known.graph.active(found)
    value = call.known.saving.save(tensor.detach()) if call.options.measuring else None

    def passed(c: Tensor | None) -> Tensor | None:
        if c is None or not call.explaining:  # none arrives behind another filter
            return None
        back = None
        if not constant:
            options = {"create_graph": torch.is_grad_enabled(), "retain_graph": True, "allow_unused": True}
            (back,) = torch.autograd.grad(found, start, c, **options)
        back = torch.zeros_like(c) if back is None else back
        if record is not None and value is not None:
            arrived, left = (total(call.relevance(value.tensor.detach(), part)) for part in (c, back))
            record.receive(arrived)
            record.send(left)
            record.absorb({"rule": arrived - left})
        return back

    tensor.register_hook(passed)
    if constant:
        call.known.graph.overwrite(tensor, tensor.detach())
