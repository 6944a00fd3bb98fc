"""Handlers of DeepLIFT: whatever takes the largest or the smallest entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.attribution.deep_lift import secants
from relprop.attribution.deep_lift.handlers import call_of, elementwise, pairs
from relprop.attribution.deep_lift.secants import KINKED
from relprop.propagation.call.operation_call import Here

_MAXIMA: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE: dict[int, Callable[..., Any]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


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
        def indexed(x: Tensor) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = _MAXIMA[dimensions](
                x, kernel_size, stride or kernel_size, padding, dilation, ceil_mode, True
            )
            return found

        return _pooled(here, input, dimensions, indexed, return_indices)

    return handler


def adaptive_max_pool(dimensions: int) -> Callable[..., Any]:
    """Return the handler of adaptive max pooling in so many dimensions."""

    def handler(here: Here, input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        return _pooled(here, input, dimensions, lambda x: _ADAPTIVE[dimensions](x, output_size, True), return_indices)

    return handler


def _pooled(
    here: Here, input: Tensor, dimensions: int, indexed: Callable[[Tensor], tuple[Tensor, Tensor]], return_indices: bool
) -> Any:
    """Return the maxima of windows, each explained by the entry that accounts for its difference."""
    call = call_of(here)
    return_indices = return_indices or here.operation.endswith("with_indices")
    found = pairs(here, input)
    if found is None:
        both = indexed(input)
        return both if return_indices else both[0]
    with torch.set_grad_enabled(call.options.create_graph):
        native, index = indexed(input)
    with torch.no_grad():
        _, before = indexed(found[0].other)
    flat = secants.linear(call, lambda x: x.flatten(-dimensions), found[0])
    surrogate = secants.picked(call, flat, index.flatten(-dimensions), before.flatten(-dimensions)).value
    out = call.switch(native, surrogate.reshape(native.shape))
    return (out, index) if return_indices else out


def extreme(largest: bool) -> Callable[..., Any]:
    """Return the handler of ``max``, ``amax`` and ``min``, ``amin`` over dimensions, or over everything."""

    def handler(here: Here, input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
        if isinstance(dim, Tensor) or "other" in kwargs:
            return either(largest)(here, input, kwargs.get("other", dim))
        given = () if dim is None else (dim, keepdim)
        native = here.func(input, *given)
        found = pairs(here, input)
        if found is None:
            return native
        call = call_of(here)
        value: Tensor = native if isinstance(native, Tensor) else native[0]
        dims = [dim] if isinstance(dim, int) else list(dim or range(input.dim()))
        last = list(range(-len(dims), 0))
        flat = secants.linear(call, lambda x: x.movedim(dims, last).flatten(-len(dims)) if dims else x[None], found[0])
        index, before = (torch.argmax(x if largest else -x, -1, keepdim=True) for x in (flat.value, flat.other))
        picked = secants.picked(call, flat, index, before, largest).value
        out = call.switch(value, picked.reshape(value.shape))
        return out if isinstance(native, Tensor) else type(native)((out, *native[1:]))

    return handler


def either(largest: bool) -> Callable[..., Any]:
    """Return the handler of ``maximum`` and ``minimum`` of two tensors."""

    def handler(here: Here, input: Tensor, other: Tensor) -> Tensor:
        here.func = torch.maximum if largest else torch.minimum  # from which fmax and fmin differ at NaN alone
        active = [x for x in (input, other) if here.active(x)]
        if len(active) == 1:
            constant, shape = other if active[0] is input else input, torch.broadcast_shapes(input.shape, other.shape)
            wide = active[0] if active[0].shape == shape else active[0].expand(shape)
            return elementwise(KINKED, here, wide, constant)
        found = pairs(here, *active)
        if found is None:
            return here.func(input, other)
        call = call_of(here)
        both = secants.linear(call, lambda *values: torch.stack(torch.broadcast_tensors(*values), -1), *found)
        index, before = (torch.argmax(x if largest else -x, -1, keepdim=True) for x in (both.value, both.other))
        return secants.picked(call, both, index, before, largest).value.squeeze(-1)

    return handler
