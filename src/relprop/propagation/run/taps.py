"""Relevance seen on its way into and out of every call: the accounts of a report, and the second look at a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.call.autograd_functions import Tap, apply
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.returned import check_arrived, check_sent
from relprop.propagation.call.trace import Record, total
from relprop.propagation.call.way import Zeros
from relprop.propagation.facts.operation import Kind
from relprop.trees import map_tensors, tensors_in

Tell = Callable[[Tensor], None]


def new_record(here: Here, active: list[Tensor]) -> Record:
    """Open the row of a call."""
    name, module = here.call.place
    record = Record(name, type(module).__name__, here.operation, here.kind)
    record.loop = here.call.trace.loop
    record.inputs = tuple(tuple(tensor.shape) for tensor in active)
    here.call.trace.records.append(record)
    return record


def tapped_inputs(
    here: Here, args: tuple[Any, ...], kwargs: dict[str, Any], active: list[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with a tap on every active one, which measures or looks at what is sent there."""
    taps: dict[int, Tensor] = {}
    for tensor in active:
        if tensor.requires_grad and id(tensor) not in taps:
            tap = taps[id(tensor)] = _input_tap(here, tensor)
            here.given[id(tap)] = tensor
            if here.record is not None:
                here.record.precision = max(here.record.precision, _epsilon(tensor))
    replaced: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
        lambda tensor: taps.get(id(tensor), tensor), (args, kwargs)
    )
    return replaced


def _input_tap(here: Here, tensor: Tensor) -> Tensor:
    record = here.record if here.call.options.measuring else None
    where = here.where if here.call.options.looking else None

    def measure(c: Tensor, value: Tensor) -> None:
        if where is not None:
            check_sent(c, where)
        if record is not None:
            record.send(total(_relevance(here, _double(value), _double(c))))

    return _tapped(here, tensor, measure)


def looked_output(here: Here, out: Any) -> Any:
    """Return what an operation returned, with a tap on every output that looks at what arrives there."""
    where = here.where

    def look(c: Tensor, value: Tensor) -> None:
        check_arrived(c, value, where)

    return map_tensors(lambda x: _tapped(here, x, look) if x.requires_grad and here.active(x) else x, out)


def measured_input(here: Here, tensor: Tensor) -> Tensor:
    """Return one tensor with a tap: the operation takes it in place of its arguments."""
    assert here.record is not None
    return _tap(here, tensor, here.record.send)


def measured_output(
    here: Here, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: bool, behind: bool = False
) -> Any:
    """Note the shape of the output; for a report, tap it, and tell what the operation adds by itself.

    With a filter ``behind`` it, what arrives here is what that let pass; see :func:`measured_behind`.

    An operation that is ``A x + b`` in its active inputs absorbs ``<c, b>``, and ``b`` is what it gives for
    zeros. That is computed apart from the taps, so that an operation scaled wrongly does not explain itself.
    """
    call, record, account = here.call, here.record, here.account
    assert record is not None
    assert account is not None
    outputs = tensors_in(out)
    if outputs:
        record.output = tuple(outputs[0].shape)
    if not call.options.measuring:
        return out
    offsets: list[tuple[Tensor, Tensor | None]] = []
    if here.declared is None and known:
        offsets = [(offset, None) for offset in here.biases(args, kwargs)]
        if call.way.zeros is not Zeros.NOWHERE:  # what was filled in is no zero of the input
            ones = here.biases(args, kwargs, 1.0)
            offsets = [(offset, offset == one) for (offset, _), one in zip(offsets, ones, strict=True)]
    taps: dict[int, Tensor] = {}
    for position, tensor in enumerate(outputs):
        if tensor.grad_fn is not None and call.known.graph.active(tensor):
            offset = offsets[position] if position < len(offsets) else None
            kept = _at_infinity(here, args, kwargs, tensor)
            taps[id(tensor)] = _output_tap(here, account, tensor, offset, kept, _let_pass(here, account, behind))
    return map_tensors(lambda tensor: taps.get(id(tensor), tensor), out)


def _let_pass(here: Here, account: Record, behind: bool) -> Tell:
    """Return what is to be told of the relevance that arrives at an output."""
    if not behind:
        return account.receive

    def tell(relevance: Tensor) -> None:
        account.absorb({"rule": -relevance})
        if here.sends:
            account.send(relevance)

    return tell


def measured_behind(here: Here, out: Any) -> Any:
    """For a report, tap an output behind its filters: what arrives here and not before them, the rule has taken."""
    account = here.account
    assert account is not None
    if not here.call.options.measuring:
        return out

    def tell(relevance: Tensor) -> None:
        account.receive(relevance)
        account.absorb({"rule": relevance})

    return map_tensors(lambda x: _tap(here, x, tell) if here.active(x) else x, out)


def measured_around(here: Here, inputs: list[Tensor]) -> list[Tensor]:
    """For a report, tap the inputs as a filter sees them: what it sends there itself, it has not taken."""
    account = here.account
    assert account is not None
    if not here.call.options.measuring:
        return inputs

    def tell(relevance: Tensor) -> None:
        account.absorb({"rule": -relevance})

    return [_tap(here, x, tell) for x in inputs]


def _at_infinity(here: Here, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
    """Return where an elementwise function is of an infinite number: there it is a constant, as of a masked score."""
    if here.kind is not Kind.ACTIVATION:
        return None
    active = [x for x in tensors_in((args, kwargs)) if here.active(x)]
    if len(active) != 1 or active[0].shape != out.shape:
        return None
    infinite = ~active[0].detach().isfinite()
    return infinite if bool(infinite.any()) else None


def _output_tap(
    here: Here,
    account: Record,
    tensor: Tensor,
    offset: tuple[Tensor, Tensor | None] | None,
    kept: Tensor | None,
    tell: Tell,
) -> Tensor:
    account.precision = max(account.precision, _epsilon(tensor))

    def measure(c: Tensor, value: Tensor) -> None:
        c, value = _double(c), _double(value)
        tell(total(_relevance(here, value, c)))
        c = c.conj()  # of complex numbers, the real part of conj(c) a is relevance
        shares = {}
        if offset is not None:
            constant, filled = offset
            shares["bias"] = c * _double(constant)
            if filled is not None:
                shares["mask"] = torch.where(filled & (value == 0), here.call.relevance(value, c), 0.0)
        if here.declared is not None:
            shares = here.declared(c, value)
        if kept is not None:
            shares = {name: torch.where(kept, 0.0, share) for name, share in shares.items()}
            whole = torch.where(kept, here.call.relevance(value, c), 0.0)
            shares["bias"] = whole + shares.get("bias", 0.0)
        # None is absorbed where none arrives, though it be a share of minus infinity.
        account.absorb({name: total(torch.where(c == 0, 0.0, share).real) for name, share in shares.items()})

    return _tapped(here, tensor, measure)


def _tap(here: Here, tensor: Tensor, tell: Any) -> Tensor:
    def measure(c: Tensor, value: Tensor) -> None:
        tell(total(_relevance(here, _double(value), _double(c))))

    return _tapped(here, tensor, measure)


def _epsilon(x: Tensor) -> float:
    """Return the relative rounding error of a tensor's entries."""
    return torch.finfo(x.dtype).eps


def _double(x: Tensor) -> Tensor:
    """Return numbers to measure with: in double precision, and with the zeros of a sparse matrix."""
    x = x if x.layout == torch.strided else x.to_dense()
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _relevance(here: Here, value: Tensor, c: Tensor) -> Tensor:
    """Return ``R = a c``; none where no coefficient arrives, even at scores of minus infinity."""
    return torch.where(c == 0, 0.0, here.call.relevance(value, c))


def _tapped(here: Here, tensor: Tensor, measure: Any) -> Tensor:
    """Return a copy with a tap, of which everything is known that was known of the tensor."""
    call = here.call
    with torch.enable_grad():
        out = apply(Tap, call, tensor, measure)
    call.known.copies(out, tensor)
    return out
