"""Backward variants of the ReLU, for methods that differentiate all else as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from relprop.propagation.handler import Here
from relprop.propagation.operations import Operation, functions_named, operation_of
from relprop.propagation.primitives import Rectify, apply

Handler = Callable[..., Tensor]


def deconvolved(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``c_in = (c_out)+``, whether or not the unit is on."""
    call = here.call
    return call.switch(here.func(input, *args, **kwargs), apply(Rectify, call, input))


def guided(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``c_in = (c_out)+ [z > 0]``."""
    return here.func(apply(Rectify, here.call, input), *args, **kwargs)  # type: ignore[no-any-return]


def rectifiers(relu: Handler) -> Mapping[Any, Operation]:
    """Return the table of a method that runs every ReLU by ``relu``, whatever the model calls it by.

    A ReLU is ``relu``, and ``clamp`` and ``threshold`` where they are one; those of recurrent layers count too.
    """

    def clamp(here: Here, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
        if max is not None or _differs_from_zero(min):
            return here.func(input, min, max)  # type: ignore[no-any-return]
        return relu(here, input, min)

    def clamp_min(here: Here, input: Tensor, min: Any) -> Tensor:
        return here.func(input, min) if _differs_from_zero(min) else relu(here, input, min)

    def threshold(here: Here, input: Tensor, threshold: Any, value: Any, inplace: bool = False) -> Tensor:
        plain = _differs_from_zero(threshold) or _differs_from_zero(value)
        return here.func(input, threshold, value) if plain else relu(here, input, threshold, value)

    handlers: dict[str, Handler] = {
        "relu": relu, "clamp": clamp, "clip": clamp, "clamp_min": clamp_min, "threshold": threshold,
    }  # fmt: skip
    table = {
        function: Operation(name, "activation", handler)
        for name, handler in handlers.items()
        for function in functions_named(name)
    }
    opened = {function: operation_of(function) for name in _HOLD_RELUS for function in functions_named(name)}
    return {**table, **{function: operation for function, operation in opened.items() if operation is not None}}


_HOLD_RELUS = ("rnn_relu", "rnn_relu_cell")
"""Composites with ReLUs in them, which are run step by step."""


def _differs_from_zero(bound: Any) -> bool:
    return bound is None or isinstance(bound, Tensor) or bound != 0
