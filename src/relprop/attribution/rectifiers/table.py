"""Backward variants of the ReLU, for methods that differentiate all else as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.relus import comparisons, like_output, rectified, rectifiers
from relprop.propagation.facts.operation import Holds, Table

Variant = Callable[[Here, Tensor], Tensor]
"""From what is rectified to what its ReLU is explained as."""


def variants(variant: Variant, operations: Table) -> Table:
    """Return the table of a method that explains every ReLU otherwise; those of recurrent layers count too."""

    def run(here: Here, *args: Any, **kwargs: Any) -> Any:
        out = here.func(*args, **kwargs)
        h = rectified(here, args, kwargs)
        return out if h is None else here.call.switch(out, variant(here, like_output(h, out)))

    return {
        **{function: replace(row, handler=run) for function, row in rectifiers(operations)},
        **dict(comparisons(operations)),
        **{function: row for function, row in operations.items() if Holds.RELU in row.holds},
    }
