"""How rows are declared: what an operation is, for all the functions that a model may call it by.

:func:`rows` says every column. The families below fill those that follow from what they are by definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from relprop.propagation.call.operation_call import native
from relprop.propagation.facts.inheritance import Keeps, keeps_nothing
from relprop.propagation.facts.operation import (
    Difference,
    Excitation,
    Function,
    Handler,
    Holds,
    Ids,
    Image,
    Kind,
    Operation,
    Rectifies,
    Truth,
    Updates,
    Writes,
)

Rows: TypeAlias = "list[tuple[Function, Operation]]"

SPACES: tuple[Any, ...] = (
    torch, torch.Tensor, F, torch.special, torch.linalg, torch.fft, torch._C._nn, torch._C._VariableFunctions,
)  # fmt: skip
"""Where models find functions."""


def functions_named(name: str, spaces: Sequence[Any] = SPACES) -> Iterator[Callable[..., Any]]:
    """Yield every function of this name that a model may call.

    Args:
        name: as it is spelled, such as ``"relu"``.
        spaces: where it is looked for: modules and classes; by default all of torch in which models find functions.

    >>> torch.relu in functions_named("relu"), F.relu in functions_named("relu", (torch, torch.Tensor))
    (True, False)
    """
    for space in spaces:
        found = getattr(space, name, None)
        if found is not None and callable(found):
            yield found


def declared(
    *names: str,
    kind: Kind,
    handler: Handler,
    keeps: Keeps,
    difference: Difference,
    excitation: Excitation,
    rectifies: Rectifies | None,
    ids: Ids,
    entering: tuple[int, ...],
    image: Image,
    holds: Holds,
    updates: Updates | None,
    writes: Writes,
    pure: Function | None,
    truth: Truth,
    composite: bool,
    deterministic: bool,
    label: str | None = None,
    spaces: Sequence[Any] = SPACES,
) -> Rows:
    """Return the rows of all functions of these names, each name an operation of its own; every column is said.

    Args:
        label: the name of the operation, where it is not that of the function (``add`` for ``__add__``).
        spaces: where the functions are looked for.
    """
    found: Rows = []
    for name in names:
        row = Operation(
            label or name, kind, handler, keeps, difference, excitation, rectifies, ids, entering, image, holds,
            updates, writes, pure, truth, composite, deterministic,
        )  # fmt: skip
        found.extend((function, row) for function in functions_named(name, spaces))
    return found


def rows(
    *names: str,
    kind: Kind,
    handler: Handler,
    keeps: Keeps,
    difference: Difference,
    excitation: Excitation,
    rectifies: Rectifies | None,
    ids: Ids,
    entering: tuple[int, ...],
    image: Image,
    holds: Holds,
    updates: Updates | None,
    composite: bool,
    deterministic: bool,
    label: str | None = None,
    spaces: Sequence[Any] = SPACES,
) -> Rows:
    """Return the rows of functions that return what they compute, and say nothing about signs."""
    return declared(
        *names,
        kind=kind,
        handler=handler,
        keeps=keeps,
        difference=difference,
        excitation=excitation,
        rectifies=rectifies,
        ids=ids,
        entering=entering,
        image=image,
        holds=holds,
        updates=updates,
        writes=Writes.NOTHING,
        pure=None,
        truth=Truth.NOTHING,
        composite=composite,
        deterministic=deterministic,
        label=label,
        spaces=spaces,
    )


def activation(
    *names: str,
    handler: Handler,
    keeps: Keeps,
    difference: Difference,
    rectifies: Rectifies | None,
    image: Image,
    label: str | None = None,
) -> Rows:
    """Functions of one tensor, entry by entry, in all namespaces: ids keep their places, what they add is no sum."""
    return rows(
        *names,
        kind=Kind.ACTIVATION,
        handler=handler,
        keeps=keeps,
        difference=difference,
        excitation=Excitation.AS_RULES,
        rectifies=rectifies,
        ids=Ids.CHANGES,
        entering=(),
        image=image,
        holds=Holds.NOTHING,
        updates=None,
        composite=False,
        deterministic=True,
        label=label,
    )


def view(
    *names: str, handler: Handler, keeps: Keeps, difference: Difference, ids: Ids, spaces: Sequence[Any] = SPACES
) -> Rows:
    """What moves values of its first argument, or drops some: no value becomes another."""
    return declared(
        *names,
        kind=Kind.VIEW,
        handler=handler,
        keeps=keeps,
        difference=difference,
        excitation=Excitation.AS_RULES,
        rectifies=None,
        ids=ids,
        entering=(0,),
        image=Image.MOVES,
        holds=Holds.NOTHING,
        updates=None,
        writes=Writes.NOTHING,
        pure=None,
        truth=Truth.KEEPS if ids is Ids.COPIES else Truth.NOTHING,
        composite=False,
        deterministic=True,
        spaces=spaces,
    )


def joins(
    *names: str,
    keeps: Keeps,
    difference: Difference,
    rectifies: Rectifies | None,
    ids: Ids,
    entering: tuple[int, ...],
    image: Image,
) -> Rows:
    """What puts values of several arguments into one tensor, or fills some in: autograd is right."""
    return rows(
        *names,
        kind=Kind.AFFINE,
        handler=native,
        keeps=keeps,
        difference=difference,
        excitation=Excitation.AS_RULES,
        rectifies=rectifies,
        ids=ids,
        entering=entering,
        image=image,
        holds=Holds.NOTHING,
        updates=None,
        composite=False,
        deterministic=True,
    )


def affine(
    *names: str,
    handler: Handler,
    keeps: Keeps,
    difference: Difference,
    excitation: Excitation,
    image: Image,
    kind: Kind = Kind.AFFINE,
    label: str | None = None,
    spaces: Sequence[Any] = SPACES,
) -> Rows:
    """What computes new values, for which autograd is right: of ids none keeps its place, and it rectifies nothing."""
    return rows(
        *names,
        kind=kind,
        handler=handler,
        keeps=keeps,
        difference=difference,
        excitation=excitation,
        rectifies=None,
        ids=Ids.COMPUTES,
        entering=(),
        image=image,
        holds=Holds.NOTHING,
        updates=None,
        composite=False,
        deterministic=True,
        label=label,
        spaces=spaces,
    )


def weighted(
    *names: str,
    kind: Kind,
    handler: Handler,
    keeps: Keeps,
    difference: Difference,
    image: Image,
    holds: Holds,
    updates: Updates | None,
    label: str | None = None,
    spaces: Sequence[Any] = SPACES,
) -> Rows:
    """Layers, products and what divides, of which a rule decides how relevance is shared."""
    return rows(
        *names,
        kind=kind,
        handler=handler,
        keeps=keeps,
        difference=difference,
        excitation=Excitation.AS_RULES,
        rectifies=None,
        ids=Ids.COMPUTES,
        entering=(),
        image=image,
        holds=holds,
        updates=updates,
        composite=False,
        deterministic=True,
        label=label,
        spaces=spaces,
    )


def composite(
    *names: str, handler: Handler, difference: Difference, holds: Holds, spaces: Sequence[Any] = SPACES
) -> Rows:
    """What is made of other operations: those say what is kept, shared and followed."""
    return rows(
        *names,
        kind=Kind.COMPOSITE,
        handler=handler,
        keeps=keeps_nothing,
        difference=difference,
        excitation=Excitation.AS_RULES,
        rectifies=None,
        ids=Ids.COMPUTES,
        entering=(),
        image=Image.NOTHING,
        holds=holds,
        updates=None,
        composite=True,
        deterministic=True,
        spaces=spaces,
    )


def by_entry_of_ids(found: Rows) -> Rows:
    """Return the rows of what changes ids entry by entry, so that they keep their places."""
    return [(function, replace(row, ids=Ids.CHANGES)) for function, row in found]


def constant(
    *names: str, ids: Ids, truth: Truth, writes: Writes = Writes.NOTHING, pure: Function | None = None
) -> Rows:
    """What has no slope: no relevance passes it, and it may still say where ids are, or of what a mask is."""
    return without_rule(
        *names, kind=Kind.CONSTANT, difference=Difference.UNCOVERED, ids=ids, truth=truth, writes=writes, pure=pure
    )


def without_rule(
    *names: str,
    kind: Kind,
    difference: Difference,
    ids: Ids,
    truth: Truth,
    writes: Writes,
    pure: Function | None,
) -> Rows:
    """What no rule covers, and of which something is known all the same."""
    return declared(
        *names,
        kind=kind,
        handler=native,
        keeps=keeps_nothing,
        difference=difference,
        excitation=Excitation.AS_RULES,
        rectifies=None,
        ids=ids,
        entering=() if ids is Ids.NONE else (0,),
        image=Image.NOTHING,
        holds=Holds.NOTHING,
        updates=None,
        writes=writes,
        pure=pure,
        truth=truth,
        composite=False,
        deterministic=True,
    )
