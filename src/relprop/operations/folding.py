"""One linear map, however it is spelled: what scales or shifts its output channels by constants is part of it.

``(W a + b) s + t`` is the map with the weight ``s W`` and the bias ``s b + t``, and one rule explains it as a whole.
The output of a linear call is known as that, also behind views and copies. What is folded must be the model's own (a
parameter, a buffer, what is computed from these, or a number) and alike along all dimensions that the weight does not
have: what is given or drawn for a sample, or differs from place to place, is an addition or a product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from relprop.propagation.call.autograd_functions import Linear, apply
from relprop.propagation.call.linear_call import LinearCall
from relprop.propagation.call.operation_call import Here, declares_nothing
from relprop.propagation.facts.moves import Moves, numbers_along, undone
from relprop.propagation.facts.origins import Origin, Source

Constants: TypeAlias = "tuple[Tensor | float | None, Tensor | float | None]"
"""What scales a tensor, and what shifts it."""


def is_weight(here: Here, tensor: Tensor) -> bool:
    """Say whether a factor of a matrix product is a weight: what the model owns, trained or not, or was made of that.

    It owns its parameters, its buffers and the tensors that its modules hold as attributes. What is given to it is
    data, and so is what was made from that; whether a tensor asks for a gradient decides nothing.
    """
    call = here.call
    return (
        call.known.protected.holds(tensor)
        or call.known.origins.is_weight(tensor)
        or (isinstance(tensor, nn.Parameter) and not call.known.origins.is_data(tensor))
    )


def folded(
    here: Here,
    x: Tensor,
    compute: Callable[[Tensor], Tensor],
    constants: Callable[[], Constants],
    made_of: Sequence[Any],
) -> Tensor | None:
    """Return ``compute(x) = scale x + shift`` as part of the linear map whose output ``x`` is; None where it is not.

    Args:
        constants: gives scale and shift, each of which broadcasts to ``x``, or is None.
        made_of: of what they are computed; the first tensor names the map.
    """
    call = here.call
    origin = call.known.origins.of(x)
    linear_call = origin.linear_call
    if linear_call is None or not _may_fold(here, linear_call, origin.moves, x):
        return None
    given = [each for each in made_of if isinstance(each, Tensor)]
    if any(here.active(each) or not _is_own(here, each) for each in given):
        return None
    scale_and_shift = constants()
    numbers = [_along(linear_call, origin.moves, x, each) for each in scale_and_shift]
    if any(found is None and each is not None for found, each in zip(numbers, scale_and_shift, strict=True)):
        return None
    weight, bias, *before = linear_call.parameters
    together = _one_after_another(*(before or (None, None)), *numbers)
    new = linear_call.folded((weight, bias, *together), given[0] if given else None)
    linear_call.superseded = here.folds = True
    linear_call.node = None
    new.record = linear_call.record
    _show(here, linear_call)
    if origin.moves:
        out = _moved(here, new, origin.moves, compute, x)
    else:
        out = apply(Linear, new, lambda: compute(x.detach()), new.a, *new.parameters)
        new.ran(out)
        here.watchers = [watch for moves, watch in new.watchers if not moves]
        here.filters = [] if new.choice is here.choice else [new.choice.filter]
        new.node = out.grad_fn if call.trace.recording else None
    call.known.origins.note(out, Origin(linear_call=new, moves=origin.moves))
    return out


def _is_own(here: Here, tensor: Tensor) -> bool:
    """Say whether a constant is the model's own, and of the same shape whatever the model is given."""
    return is_weight(here, tensor) and here.call.known.origins.source(tensor) is not Source.MODEL_AND_MORE


def _may_fold(here: Here, linear_call: LinearCall, moves: Moves, x: Tensor) -> bool:
    """Say whether nothing stands between a linear call and what takes its output ``x``."""
    own, before = here.choice.filter, linear_call.choice.filter
    return (
        linear_call.unchanged
        and here.active(x)
        and (own is None or own.by_output_alone)
        and (before is None or not moves)  # which knows the layer's output alone
    )


def _along(linear_call: LinearCall, moves: Moves, x: Tensor, constant: Tensor | float | None) -> Tensor | None:
    """Return a constant in the shape of the layer's bias; None where there is none, or it has no such shape."""
    if constant is None:
        return None
    if not isinstance(constant, Tensor):
        constant = torch.full((1,), constant, dtype=x.dtype, device=x.device)
    elif not constant.is_floating_point():
        constant = constant.to(x.dtype)
    sizes = zip(reversed(constant.shape), reversed(x.shape), strict=False)
    if constant.dim() > x.dim() or any(size not in (1, whole) for size, whole in sizes):
        return None
    plain = undone(moves, torch.empty_like(x, device="meta")) if moves else x
    found = numbers_along(plain.shape, linear_call.geometry.weight_dims(plain), moves, constant)
    return None if found is None else linear_call.geometry.constants(found, plain)


def _one_after_another(
    scale: Tensor | None, shift: Tensor | None, by: Tensor | None, plus: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and shift of ``(scale z + shift) by + plus``."""
    if by is not None:
        scale, shift = by if scale is None else scale * by, None if shift is None else shift * by
    return scale, plus if shift is None else shift if plus is None else shift + plus


def _moved(here: Here, new: LinearCall, moves: Moves, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what is computed of a moved output, explained as what comes from the linear map and is moved then."""
    call = here.call
    with torch.set_grad_enabled(call.options.create_graph):
        native = compute(x)
    z = apply(Linear, new, lambda: undone(moves, native.detach()), new.a, *new.parameters)
    new.node = z.grad_fn if call.trace.recording else None
    for done in range(len(moves) + 1):
        for at, watch in new.watchers:
            if at == moves[:done]:
                watch(z)
        z = moves[done](z) if done < len(moves) else z
    return call.switch(native, z)


def _show(here: Here, linear_call: LinearCall) -> None:
    """Show in the rows of a plan or a report that an operation is part of the linear map before it."""
    here.account = linear_call.record
    here.declared = declares_nothing  # the linear call declares what its rule absorbs
    if here.record is not None and linear_call.record is not None and linear_call.record is not here.record:
        here.by_autograd()
        here.note("folded into the layer above")
        linear_call.record.notes.append(f"{here.operation.replace('_', ' ')} folded")
