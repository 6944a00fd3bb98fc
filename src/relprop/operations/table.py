"""The one table: the row of every function of torch that relprop knows, and of those that users declare."""

from __future__ import annotations

from threading import Lock
from types import MappingProxyType
from typing import Any

from relprop.operations import (
    activations,
    attention,
    composites,
    constants,
    contractions,
    embedding,
    linear,
    losses,
    normalization,
    pooling,
    products,
    recurrent,
    reductions,
    respelled,
    rounding,
    softmax,
    sums,
    views,
)
from relprop.propagation.facts.operation import Operation, Table

_FILES = (
    activations, attention, composites, constants, contractions, embedding, linear, losses, normalization, pooling,
    products, recurrent, reductions, respelled, rounding, softmax, sums, views,
)  # fmt: skip

TORCH: dict[Any, Operation] = {function: row for file in _FILES for function, row in file.ROWS}
"""The rows of the functions of torch."""

_declaring = Lock()
_known: Table = MappingProxyType(TORCH)


def operations() -> Table:
    """Return the rows of all that relprop knows now, by function: those of torch, and what users have declared.

    The result does not change. What is declared later is in the next one.

    >>> import torch
    >>> operations()[torch.relu].name, print in operations()
    ('relu', False)
    """
    return _known


def operation_of(function: Any) -> Operation | None:
    """Return the row of a function, or None where relprop knows none.

    Args:
        function: of torch, or one that was declared, as the model calls it.

    >>> import torch
    >>> row = operation_of(torch.cat)
    >>> row.name, str(row.kind), row.difference.name
    ('cat', 'affine', 'MOVES')
    """
    return _known.get(function)


def declare(declared: Table) -> None:
    """Make more rows known, in the place of earlier ones of the same functions."""
    global _known
    with _declaring:
        _known = MappingProxyType({**_known, **declared})
