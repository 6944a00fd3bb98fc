"""The arithmetic of a backward in which nothing arrives from nothing: a coefficient of zero times infinity is zero.

What a model computes and does not take (the other branch of a ``where``, a row that is masked) may be infinite or NaN.
No coefficient arrives there, and in the usual arithmetic ``0 * inf`` makes NaN of that, which then spreads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from relprop.trees import tensors_in

Bilinear = Callable[[Tensor, Tensor], Tensor]


class ZeroCoefficients(TorchDispatchMode):
    """While it is entered, a product with zero is zero and zero divided by anything is, whatever the other number is.

    Of all that runs below autograd, matrix products, convolutions and softmax among it; what adds up or moves numbers
    is as it is. Numbers that are finite meet the usual arithmetic, but for ``0 / 0 = 0``.

    >>> infinite = torch.tensor([torch.inf, torch.nan, 0.0, 2.0])
    >>> with ZeroCoefficients():
    ...     product, shared = torch.zeros(4) * infinite, torch.zeros(4) / infinite
    ...     mixed = torch.tensor([[0.0, 0.0, 3.0, 1.0]]) @ infinite[:, None]
    >>> product.tolist(), shared.tolist(), mixed.tolist()
    ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [[2.0]])
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name: str = func.overloadpacket.__name__
        compute = _FUNCTIONS.get(name.removesuffix("_"))
        if compute is None and name.endswith("_backward") and torch.Tag.pointwise in func.tags:
            compute = _entrywise(func)
        if compute is None or not _needs_it(name, args):
            return func(*args, **kwargs)
        target = kwargs.pop("out", args[0] if name.endswith("_") else None)
        found = compute(*args, **kwargs)
        return found if target is None else target.copy_(found)


usual_arithmetic = _disable_current_modes
"""A context inside which numbers are multiplied as ever: a rule that divides zero by zero is wrong, and found."""


def _needs_it(name: str, args: Any) -> bool:
    """Say whether a number is infinite or NaN, or may become so."""
    if name.startswith(("div", "addcdiv")):
        return True
    return not all(bool(x.isfinite().all()) for x in tensors_in(args) if x.is_floating_point() or x.is_complex())


def _mul(x: Any, y: Any) -> Tensor:
    return torch.where((x == 0) | (y == 0), 0, torch.mul(x, y))


def _div(x: Tensor, y: Any, **kwargs: Any) -> Tensor:
    return torch.where(x == 0, 0, torch.div(x, y, **kwargs))


def _addcmul(x: Tensor, y: Tensor, z: Tensor, *, value: Any = 1) -> Tensor:
    found: Tensor = x + value * _mul(y, z)
    return found


def _addcdiv(x: Tensor, y: Tensor, z: Tensor, *, value: Any = 1) -> Tensor:
    found: Tensor = x + value * _div(y, z)
    return found


def _bilinear(compute: Bilinear, x: Tensor, y: Tensor) -> Tensor:
    """Return what is a sum of products ``x_i y_j``, without those in which one is zero."""
    found = compute(finite(x), finite(y))
    # How many products there are of what is infinite or NaN with what is not zero.
    spoilt = compute(_is_infinite(x), _is_nonzero(y)) + compute(_is_nonzero(x), _is_infinite(y))
    return torch.where(spoilt > 0.5, math.nan, found)


def finite(x: Tensor) -> Tensor:
    """Return ``x`` with zeros in the place of what is infinite or NaN."""
    return torch.where(x.isfinite(), x, 0)


def _is_infinite(x: Tensor) -> Tensor:
    return (~x.isfinite()).to(x.real.dtype)


def _is_nonzero(x: Tensor) -> Tensor:
    return (x != 0).to(x.real.dtype)


def _product(compute: Bilinear) -> Callable[..., Tensor]:
    return lambda x, y: _bilinear(compute, x, y)


def _added(compute: Bilinear) -> Callable[..., Tensor]:
    """Return ``beta x + alpha compute(y, z)``."""

    def found(x: Tensor, y: Tensor, z: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        total: Tensor = alpha * _bilinear(compute, y, z)
        return total if beta == 0 else beta * x + total

    return found


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    found = _bilinear(lambda a, w: torch.ops.aten.convolution(a, w, None, *geometry), x, weight)
    return found if bias is None else found + bias.reshape(-1, *(1,) * (weight.dim() - 2))


def _convolution_backward(
    c: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    *geometry, wanted = rest

    def back(index: int, c: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        mask = [index == position for position in range(3)]
        found: Tensor = torch.ops.aten.convolution_backward(c, x, weight, bias_sizes, *geometry, mask)[index]
        return found

    return (
        _bilinear(lambda c, w: back(0, c, torch.zeros_like(x), w), c, weight) if wanted[0] else None,
        _bilinear(lambda c, x: back(1, c, x, torch.zeros_like(weight)), c, x) if wanted[1] else None,
        c.sum([d for d in range(c.dim()) if d != 1]) if wanted[2] else None,
    )


def _softmax_backward(c: Tensor, p: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    q = _mul(c, p)
    return (q - _mul(p, q.sum(dim, keepdim=True))).to(dtype)


def _log_softmax_backward(c: Tensor, logarithm: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return (c - _mul(logarithm.exp(), c.sum(dim, keepdim=True))).to(dtype)


def _entrywise(func: Any) -> Callable[..., Tensor]:
    """Return the backward of a function of single entries: ``c f'(z)``."""
    return lambda c, *args, **kwargs: torch.where(c == 0, 0, func(c, *args, **kwargs))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mul": _mul,
    "div": _div,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "mm": _product(torch.mm),
    "bmm": _product(torch.bmm),
    "mv": _product(torch.mv),
    "dot": _product(torch.dot),
    "addmm": _added(torch.mm),
    "addmv": _added(torch.mv),
    "baddbmm": _added(torch.bmm),
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "_softmax_backward_data": _softmax_backward,
    "_log_softmax_backward_data": _log_softmax_backward,
}
"""By the name of the function, as it is below autograd."""
