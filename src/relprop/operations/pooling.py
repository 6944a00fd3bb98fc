"""Handlers of pooling."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from relprop.operations.sums import averaged
from relprop.propagation.handler import Here
from relprop.propagation.numerics import ADAPTIVE_AVERAGES, AVERAGES, TAU, quotient, safe


def max_pool(dimensions: int) -> Callable[..., Any]:
    """Return the handler of max pooling in so many dimensions."""

    def handler(
        here: Here,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        def average(x: Tensor) -> Tensor:
            return AVERAGES[dimensions](x, kernel_size, stride or kernel_size, padding, ceil_mode, False)

        more = (True,) if return_indices else ()  # torch.max_pool2d does not know the question
        out = here.func(input, kernel_size, stride or kernel_size, padding, dilation, ceil_mode, *more)
        plain = (
            dilation == 1
            or tuple(dilation if isinstance(dilation, (tuple, list)) else (dilation,)) == (1,) * dimensions
        )
        return _pooled(here, input, out, average if plain else None)

    return handler


def adaptive_max_pool(dimensions: int) -> Callable[..., Any]:
    """Return the handler of adaptive max pooling in so many dimensions."""

    def handler(here: Here, input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        out = here.func(input, output_size, *((True,) if return_indices else ()))
        return _pooled(here, input, out, lambda x: ADAPTIVE_AVERAGES[dimensions](x, output_size))

    return handler


def _pooled(here: Here, input: Tensor, out: Any, average: Callable[[Tensor], Tensor] | None) -> Any:
    call = here.call
    value = out[0] if isinstance(out, tuple) else out
    if call.selector is not None:
        surrogate: Tensor = here.rule.pooled(call, input, value, average)
        if surrogate is not value:
            lost = (value - surrogate).detach()
            here.declared = lambda c, out: {"stabilizer": c * lost}
            value = call.switch(value, surrogate)
    return (value, *out[1:]) if isinstance(out, tuple) else value


def average_pool(
    here: Here,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average pooling, by whatever divisor."""

    def mean(x: Tensor) -> Tensor:
        return here.func(x, kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad)  # type: ignore[no-any-return]

    if divisor_override is None:
        return averaged(here, mean(input), mean, input)
    size = stride or kernel_size, padding, ceil_mode, count_include_pad, divisor_override
    return averaged(here, here.func(input, kernel_size, *size), mean, input)


def lp_pool(dimensions: int) -> Callable[..., Tensor]:
    """Return the handler of power-average pooling: homogeneous, so the share of an input is ``a^p / sum a^p``.

    The derivative of the root is infinite at zero; written as a sum of ``a`` times constants it is not.
    """

    def handler(
        here: Here,
        input: Tensor,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
    ) -> Tensor:
        call = here.call
        out: Tensor = here.func(input, norm_type, kernel_size, stride, ceil_mode)
        if call.selector is None:
            return out
        here.by_autograd()

        def average(x: Tensor) -> Tensor:
            return AVERAGES[dimensions](x, kernel_size, stride or kernel_size, 0, ceil_mode)

        size = kernel_size**dimensions if isinstance(kernel_size, int) else prod(kernel_size)
        weight = call.constant(input ** (norm_type - 1))
        root = call.constant(quotient(torch.ones_like(out), out ** (norm_type - 1)))
        surrogate = size * average(input * weight) * root
        if call.handles_zeros(input):
            surrogate = torch.where(out == 0, average(input * call.constant(TAU / safe(input))), surrogate)
        return call.switch(out, surrogate)

    return handler
