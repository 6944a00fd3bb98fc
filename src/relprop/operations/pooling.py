"""Handlers of pooling: which inputs share what a maximum gets says its rule, in :mod:`relprop.rules.pooling`.

An average is a sum (:mod:`relprop.operations.sums`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from relprop.operations.rows import Rows, affine, joins, rows, weighted
from relprop.operations.sums import averaged, total
from relprop.propagation.call.operation_call import Here, native
from relprop.propagation.facts.inheritance import Keeps, Values, averaged_terms, moved, of, of_all
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Ids, Image, Kind
from relprop.propagation.math.numerics import ADAPTIVE_AVERAGES, AVERAGES, TAU, quotient, safe


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
    if call.way.explains:
        surrogate = here.asked(here.rule.pooled, "out", a=input, out=value, average=average)
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
        if not call.way.explains:
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


# The rows ----------------------------------------------------------------------------------------


def _averaged(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: Any = False,
    count_include_pad: Any = True, divisor_override: float | None = None,
) -> Values:  # fmt: skip
    return ((input, 1 if divisor_override is None else divisor_override),)


def _maximum(name: str, *, handler: Handler, difference: Difference) -> Rows:
    return weighted(
        name, f"{name}_with_indices", kind=Kind.POOLING, handler=handler, keeps=of_all(moved, indices=False),
        difference=difference, image=Image.NOTHING, holds=Holds.NOTHING, updates=None,
    )  # fmt: skip


def _mean(name: str, *, handler: Handler, keeps: Keeps, difference: Difference, excitation: Excitation) -> Rows:
    return affine(name, handler=handler, keeps=keeps, difference=difference, excitation=excitation, image=Image.SUMS)


ROWS: Rows = [
    *_maximum("max_pool1d", handler=max_pool(1), difference=Difference.MAX_POOL_1D),
    *_maximum("max_pool2d", handler=max_pool(2), difference=Difference.MAX_POOL_2D),
    *_maximum("max_pool3d", handler=max_pool(3), difference=Difference.MAX_POOL_3D),
    *_maximum("adaptive_max_pool1d", handler=adaptive_max_pool(1), difference=Difference.ADAPTIVE_MAX_POOL_1D),
    *_maximum("adaptive_max_pool2d", handler=adaptive_max_pool(2), difference=Difference.ADAPTIVE_MAX_POOL_2D),
    *_maximum("adaptive_max_pool3d", handler=adaptive_max_pool(3), difference=Difference.ADAPTIVE_MAX_POOL_3D),
    *rows(
        "fractional_max_pool2d", "fractional_max_pool3d", "fractional_max_pool2d_with_indices",
        "fractional_max_pool3d_with_indices", kind=Kind.AFFINE, handler=native, keeps=of_all(moved, indices=False),
        difference=Difference.UNCOVERED, excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.COMPUTES, entering=(),
        image=Image.NOTHING, holds=Holds.NOTHING, updates=None, composite=False, deterministic=False,
    ),
    *(
        row
        for d in (1, 2, 3)
        for row in (
            *_mean(f"avg_pool{d}d", handler=average_pool, keeps=of(averaged_terms, _averaged),
                   difference=Difference.AVERAGES, excitation=Excitation.AVERAGES),
            *_mean(f"adaptive_avg_pool{d}d", handler=total, keeps=of_all(averaged_terms),
                   difference=Difference.AVERAGES, excitation=Excitation.AVERAGES),
        )
    ),
    *_mean("lp_pool1d", handler=lp_pool(1), keeps=of_all(averaged_terms), difference=Difference.POWER_POOL_1D,
           excitation=Excitation.AS_RULES),
    *_mean("lp_pool2d", handler=lp_pool(2), keeps=of_all(averaged_terms), difference=Difference.POWER_POOL_2D,
           excitation=Excitation.AS_RULES),
    *_mean("lp_pool3d", handler=lp_pool(3), keeps=of_all(averaged_terms), difference=Difference.POWER_POOL_3D,
           excitation=Excitation.AS_RULES),
    *joins("max_unpool1d", "max_unpool2d", "max_unpool3d", keeps=of_all(moved, indices=False),
           difference=Difference.LINEAR, rectifies=None, ids=Ids.COMPUTES, entering=(), image=Image.NOTHING),
]  # fmt: skip
