"""Calls that write into an argument: what they write, the same call that writes nothing, and how it is explained.

:mod:`relprop.propagation.run.function_mode` sends every call that writes to :func:`write`: the same call without the
write is explained, and its result is written. What autograd saved before is cloned
(:mod:`relprop.propagation.facts.saved`), and what is the model's own is copied
(:mod:`relprop.propagation.facts.protection`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from relprop.errors import ModelError
from relprop.propagation.call.call import Call
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.relus import of_relu
from relprop.propagation.call.returned import Where
from relprop.propagation.facts.fills import memory
from relprop.propagation.facts.inheritance import Terms, moved
from relprop.propagation.facts.operation import Kind, Operation, Updates, Writes
from relprop.propagation.facts.origins import NOTHING, Origin, same_place
from relprop.propagation.facts.token_ids import note
from relprop.propagation.run.filters import finished_as_one
from relprop.propagation.run.overloads import name_of
from relprop.trees import map_tensors, tensors_in

if TYPE_CHECKING:
    from relprop.propagation.run.function_mode import RelevanceMode

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Function = Callable[..., Any]


def write(
    mode: RelevanceMode, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, written: list[Tensor]
) -> Any:
    """Run a call that writes into its arguments, and name what it writes where autograd does not look."""
    unrecorded = mode.behind.writing(written)
    out = _write(mode, row, func, args, kwargs, written)
    if unrecorded:
        mode.behind.wrote(name_of(func), unrecorded)
    return out


def _write(
    mode: RelevanceMode, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, written: list[Tensor]
) -> Any:
    """Run a call that writes into its arguments; what autograd saved from them is cloned first."""
    call = mode.call
    if any(call.known.protected.owns(tensor) for tensor in written):
        args, kwargs = _with_copies(call, written, args, kwargs)
        func(*args, **kwargs)
        # What the model may assign back to itself is its own tensor.
        return written[0] if len(written) == 1 else tuple(written)
    for tensor in written:
        call.known.saving.before_write(tensor)
        call.known.formulas.before_write(tensor)
    active = mode.active(args, kwargs)
    if row is not None and row.writes is Writes.RESHAPES:  # by another tensor's shape, as resize_as_
        active = [x for x in active if any(x is target for target in written)]
    if not active:
        mode.note_constants(row, func, (args, kwargs), written)
        return _write_ids(mode, row, func, args, kwargs, written)
    if len(written) == 1 and all(tensor is written[0] for tensor in active):
        return _write_constant(mode, row, func, args, kwargs, active, written)
    return _write_values(mode, row, func, args, kwargs, active, written)


def _write_constant(
    mode: RelevanceMode,
    row: Operation | None,
    func: Function,
    args: Args,
    kwargs: Kwargs,
    active: list[Tensor],
    written: list[Tensor],
) -> Any:
    """Run a call that may write a constant; where nothing else is left, relevance ends."""
    (target,), known = written, mode.call.known
    mask = known.fills.before_write(target, func, args, kwargs)
    out = _write_values(mode, row, func, args, kwargs, active, written)
    if mask is not None and known.fills.wrote(target, mask):
        whole = memory(target)
        known.graph.overwrite(whole, whole.detach())
        if not whole._is_view():
            whole.detach_()  # not even a zero: what is measured there would be counted twice
    return out


def _write_values(
    mode: RelevanceMode,
    row: Operation | None,
    func: Function,
    args: Args,
    kwargs: Kwargs,
    active: list[Tensor],
    written: list[Tensor],
) -> Any:
    """Run a call that writes what depends on the input, as the call that returns it."""
    call = mode.call
    twin = twin_of(row, func, args, kwargs)
    if twin is None:
        return _write_without_twin(mode, row, func, args, kwargs, active, written)
    operation = call.way.row(call.operations.get(twin.func), twin.func)
    if operation is not None and operation.rectifies is of_relu and _plain_relu(call, operation, active[0]):
        return mode.explain_as(operation, func, args, kwargs, active)  # the common case, without a copy
    new = mode.run(twin.func, twin.args, twin.kwargs)
    for target, value in zip(written, tensors_in(new), strict=False):
        _assign(call, target, value)
    return written[0] if len(written) == 1 else tuple(written)


def set_data(mode: RelevanceMode, target: Tensor, value: Tensor) -> None:
    """Run ``target.data = value``: what is the model's own stays, and holds the value for this call."""
    protected = mode.call.known.protected
    if mode.call.outside_model or not protected.owns(target):
        if not _same_memory(target, value):
            mode.behind.replaced(target)
        Tensor.data.__set__(target, value)  # type: ignore[attr-defined]  # a property
        return
    if (target.shape, target.dtype, target.device) != (value.shape, value.dtype, value.device):
        name, module = mode.call.place
        raise ModelError(
            f"Module {name!r} ({type(module).__name__}) assigns .data of shape {tuple(value.shape)} ({value.dtype}) to "
            f"a parameter or buffer of shape {tuple(target.shape)} ({target.dtype}), and relprop leaves the model as "
            "it is. Assign a tensor of the same shape and type, or set it before the model is explained."
        )
    protected.copy_for_writing(target).copy_(protected.current(value))


def _same_memory(x: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are the same entries, so that one in the place of the other changes nothing."""
    if x.layout != torch.strided or other.layout != torch.strided:
        return False
    one, two = (
        (y.dtype, y.device, y.shape, y.stride(), y.storage_offset(), y.untyped_storage().data_ptr()) for y in (x, other)
    )
    return one == two


def _write_ids(
    mode: RelevanceMode, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, written: list[Tensor]
) -> Any:
    """Run a call that writes constants, among which may be token ids."""
    call = mode.call
    twin = twin_of(row, func, args, kwargs) if call.known.tokens else None
    if twin is None:
        found = mode.follow(row, func, args, kwargs)
    else:
        found = mode.follow(call.operations.get(twin.func), twin.func, twin.args, twin.kwargs)
    out = func(*args, **kwargs)
    note(found, call.known.tokens, written)
    return out


def _plain_relu(call: Call, operation: Operation, x: Tensor) -> bool:
    """Say whether a ReLU may run in place as it is."""
    if x._is_view():  # autograd would go past the node of the view, where relevance may be read
        return False
    if not call.way.explains:
        return call.way.plain and not call.options.measuring
    choice = call.way.choose(operation.kind, operation.name, *call.place)
    plain = choice.filter is None and choice.rule.exact_by_autograd
    return plain and not (call.options.measuring or call.options.looking or call.handles_zeros(x))


def _write_without_twin(
    mode: RelevanceMode,
    row: Operation | None,
    func: Function,
    args: Args,
    kwargs: Kwargs,
    active: list[Tensor],
    written: list[Tensor],
) -> Any:
    """Run what only exists in place: fillings, which end relevance, and the unknown, which is named."""
    call = mode.call
    filled = row is not None and row.writes is Writes.FILLS
    whole = _of_whole(call, written[0], None) if filled else []
    name = name_of(func)
    try:
        out = func(*args, **kwargs)
    except RuntimeError as error:
        if "resize" not in str(error):
            raise
        raise ModelError(
            f"{Where(name, *call.place)} a tensor that depends on the input is resized in place, which autograd does "
            "not follow: such a model runs where nothing is differentiated. Write a reshape, or a slice, of it."
        ) from error
    for tensor, known in whole:
        call.known.origins.note(tensor, known)
    here = Here(call, func, name, Kind.UNKNOWN)
    here.choose()
    rule = here.choice.filter
    covered = rule is not None and rule.blocks
    if not covered and any(not any(tensor is target for target in written) for tensor in active):
        call.coverage.uncovered(name, "has no rule in relprop; plain autograd carries its relevance.")
    if filled:
        call.known.graph.overwrite(written[0], written[0].detach())
    elif rule is not None:
        for target in written:
            _assign(call, target, finished_as_one(here, target, args, kwargs))
    mode.reached(out)
    return out


def _assign(call: Call, target: Tensor, value: Tensor) -> None:
    """Write a computed value into the tensor that the model meant to write."""
    origin = call.known.origins.of(value)
    if target.shape != value.shape:
        with torch.no_grad():  # an empty ``out=`` takes the shape of the result
            target.resize_(value.shape)
    formula = call.known.formulas.of(value)
    call.known.saving.before_write(target)
    call.known.formulas.before_write(target)
    whole = _of_whole(call, target, origin if call.known.graph.active(value) else None)
    target.copy_(value)
    for tensor, known in (*whole, (target, origin)):
        call.known.origins.note(tensor, known)
    call.known.formulas.note(target, formula)
    for tokens in call.known.tokens:
        tokens.passes(target, value)
    call.known.graph.overwrite(target, value)
    call.known.graph.reach(target)


def _of_whole(call: Call, part: Tensor, origin: Origin | None) -> list[tuple[Tensor, Origin]]:
    """Return the tensor that ``part`` is a view of, with what is known of it once that is written; None: a constant."""
    with torch._C.DisableTorchFunction():
        base = part._base
    if base is None:
        return []
    if origin is not None and same_place(base, part):
        return [(base, origin)]
    stays = base.numel() > part.numel() and call.known.graph.active(base)
    known = ([call.known.origins.of(base)] if stays else []) + ([] if origin is None else [origin])
    return [(base, moved(Terms(known, [1.0] * len(known), [None] * (2 - len(known)))) if known else NOTHING)]


def own_statistics(call: Call, updates_of: Updates, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Give a call that updates statistics or weights inside itself this call's copies of them."""
    return _with_copies(call, tensors_in(updates_of(*args, **kwargs)), args, kwargs)


def _with_copies(call: Call, written: list[Tensor], args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Return the arguments with copies in the place of what is written and belongs to the model."""
    protected = call.known.protected
    owned = {id(tensor) for tensor in written if protected.owns(tensor)}
    if not owned:
        return args, kwargs
    swapped: tuple[Args, Kwargs] = map_tensors(
        lambda tensor: protected.copy_for_writing(tensor) if id(tensor) in owned else tensor, (args, kwargs)
    )
    return swapped


# What a call writes, and the call that writes nothing ---------------------------------------------


@dataclass(frozen=True)
class Twin:
    """A call that computes what a writing call would write."""

    func: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def written_by(row: Operation | None, func: Function, args: Args, kwargs: Kwargs) -> list[Tensor]:
    """Return the tensors a call writes into."""
    out = kwargs.get("out")
    if out is not None:
        return tensors_in(out)
    writes = writes_first(func) if row is None else row.writes is not Writes.NOTHING
    if writes or (args and _inplace(func, args, kwargs)):
        first = args[0] if args else next(iter(kwargs.values()))
        return tensors_in(first)
    return []


def twin_of(row: Operation | None, func: Function, args: Args, kwargs: Kwargs) -> Twin | None:
    """Return the same call without the write, or None where there is none."""
    if "out" in kwargs:
        func = func.overloadpacket if isinstance(func, OpOverload) else func  # the overload knows no call without
        return Twin(func, args, {name: value for name, value in kwargs.items() if name != "out"})
    writes = Writes.NOTHING if row is None else row.writes
    if writes is Writes.RESHAPES or (writes is Writes.FILLS and not tensors_in((args[1:], kwargs))):
        return None
    if row is not None and row.pure is not None:
        return Twin(row.pure, args, kwargs)
    if writes_first(func):
        pure = _pure(func)
        return None if pure is None or writes is Writes.FILLS else Twin(pure, args, kwargs)
    position = _inplace_position(func)
    assert position is not None  # nothing else writes
    kept = tuple(False if index == position else value for index, value in enumerate(args))
    return Twin(func, kept, {name: value for name, value in kwargs.items() if name != "inplace"})


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return ``x`` with ``x[index] = value``."""
    out = x.clone()
    out[index] = value
    return out


def filled_diagonal(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return ``x`` with a constant diagonal."""
    return x.clone().fill_diagonal_(*args, **kwargs)


def copied(x: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    """Return ``value`` in the shape and the type of ``x``."""
    return value.expand_as(x).to(x.dtype, copy=True)


@cache
def writes_first(func: Function) -> bool:
    """Say whether a function without a row writes into its first argument: by its schema, any other by its name."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        first = _schema(func).arguments[:1]
        return bool(first) and first[0].alias_info is not None and first[0].alias_info.is_write
    if isinstance(func, FunctionType) and func.__module__.partition(".")[0] != "torch":
        return False  # PyTorch names what writes by an underscore; others name as they like
    name = getattr(func, "__name__", "")
    if name.startswith("__"):  # x += y writes what x + y gives; there is no x nvert y to x.__invert__()
        return name.startswith("__i") and hasattr(Tensor, f"__{name[3:]}")
    return name.endswith("_")


def _schema(func: OpOverload | OpOverloadPacket) -> torch.FunctionSchema:
    return (func if isinstance(func, OpOverload) else getattr(func, func.overloads()[0]))._schema


@cache
def _pure(func: Function) -> Callable[..., Any] | None:
    """Return the function that computes what an in-place one writes, by its name."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        library, _, name = str(_schema(func).name).partition("::")
        pure = name.removesuffix("_")
        return None if pure == name else getattr(getattr(torch.ops, library), pure, None)
    name = func.__name__
    pure = f"__{name[3:]}" if name.startswith("__i") else name[:-1]
    spaces = (torch.Tensor, torch, F) if getattr(torch.Tensor, name, None) is func else (torch, F, torch.Tensor)
    for space in spaces:
        found: Callable[..., Any] | None = getattr(space, pure, None)
        if found is not None:
            return found
    return None


@cache
def _inplace_position(func: Function) -> int | None:
    """Return where a Python function takes ``inplace``, if it does."""
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def _inplace(func: Function, args: Args, kwargs: Kwargs) -> bool:
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    position = _inplace_position(func)
    return position is not None and len(args) > position and bool(args[position])
