"""Backward variants of the ReLU, for methods that differentiate all else as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.operations.table import Operation, functions_named, operation_of
from relprop.propagation.handler import Here
from relprop.propagation.primitives import Rectify, apply
from relprop.propagation.rectifiers import comparisons, like_output, named_rectifiers, rectified

Variant = Callable[[Here, Tensor], Tensor]
"""From what is rectified to what its ReLU is explained as."""


def deconvolved(here: Here, h: Tensor) -> Tensor:
    """``c_in = (c_out)+``, whether or not the unit is on."""
    return apply(Rectify, here.call, h)


def guided(here: Here, h: Tensor) -> Tensor:
    """``c_in = (c_out)+ [z > 0]``."""
    return torch.relu(apply(Rectify, here.call, h))


def variants(variant: Variant) -> Mapping[Any, Operation]:
    """Return the table of a method that explains every ReLU otherwise; those of recurrent layers count too."""

    def run(here: Here, *args: Any, **kwargs: Any) -> Any:
        out = here.func(*args, **kwargs)
        h = rectified(here, args, kwargs)
        return out if h is None else here.call.switch(out, variant(here, like_output(h, out)))

    opened = {function: operation_of(function) for name in _HOLD_RELUS for function in functions_named(name)}
    return {
        **{function: Operation(name, "activation", run) for function, name in named_rectifiers()},
        **dict(comparisons()),
        **{function: operation for function, operation in opened.items() if operation is not None},
    }


_HOLD_RELUS = ("rnn_relu", "rnn_relu_cell")
"""Composites with ReLUs in them, which are run step by step."""
