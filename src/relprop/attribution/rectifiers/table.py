"""Backward variants of the ReLU, for methods that differentiate all else as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.call.autograd_functions import Rectify, apply
from relprop.propagation.call.here import Here
from relprop.propagation.call.relus import comparisons, like_output, rectified, rectifiers
from relprop.propagation.facts.operation import Holds, Table

Variant = Callable[[Here, Tensor], Tensor]
"""From what is rectified to what its ReLU is explained as."""


def deconvolved(here: Here, h: Tensor) -> Tensor:
    """``c_in = (c_out)+``, whether or not the unit is on."""
    return apply(Rectify, here.call, h)


def guided(here: Here, h: Tensor) -> Tensor:
    """``c_in = (c_out)+ [z > 0]``."""
    return torch.relu(apply(Rectify, here.call, h))


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
