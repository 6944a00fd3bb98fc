"""Handlers of DeepLIFT: whatever takes the largest or the smallest entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.attribution.deep_lift import secants
from relprop.attribution.deep_lift.handlers import call_of, elementwise, pairs
from relprop.attribution.deep_lift.secants import KINKED
from relprop.propagation.call.operation_call import Here

Places = tuple[Tensor, Tensor]
"""Windows as indices ``[windows, entries]``, and which of them lie in the input."""

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
        def pooled(x: Tensor) -> Any:
            return _MAXIMA[dimensions](x, kernel_size, stride or kernel_size, padding, dilation, ceil_mode, True)

        def places(out: Sequence[int]) -> list[Places]:
            given = (_each(value, dimensions) for value in (kernel_size, stride or kernel_size, padding, dilation))
            return [
                _regular(*along, device=input.device)
                for along in zip(input.shape[-dimensions:], out, *given, strict=True)
            ]

        return _pooled(here, input, dimensions, pooled, places, return_indices)

    return handler


def adaptive_max_pool(dimensions: int) -> Callable[..., Any]:
    """Return the handler of adaptive max pooling in so many dimensions."""

    def handler(here: Here, input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        def places(out: Sequence[int]) -> list[Places]:
            sizes = zip(input.shape[-dimensions:], out, strict=True)
            return [_adaptive(size, windows, input.device) for size, windows in sizes]

        return _pooled(
            here, input, dimensions, lambda x: _ADAPTIVE[dimensions](x, output_size, True), places, return_indices
        )

    return handler


def _each(value: Any, dimensions: int) -> Sequence[int]:
    """Return an argument for every dimension."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dimensions if len(values) == 1 else values


def _regular(
    size: int, windows: int, kernel: int, stride: int, padding: int, dilation: int, *, device: torch.device
) -> Places:
    """Return the entries of each window along one dimension, and which of them there are."""
    starts = torch.arange(windows, device=device) * stride - padding
    at = starts[:, None] + torch.arange(kernel, device=device) * dilation
    return at, (at >= 0) & (at < size)


def _adaptive(size: int, windows: int, device: torch.device) -> Places:
    """Return the same of adaptive windows, from ``floor(i size / windows)`` to ``ceil((i + 1) size / windows)``."""
    number = torch.arange(windows, device=device)
    starts, ends = number * size // windows, -((number + 1) * -size // windows)
    at = starts[:, None] + torch.arange(int((ends - starts).max()), device=device)
    return at, at < ends[:, None]


def _windows(shape: Sequence[int], along: Sequence[Places]) -> Places:
    """Return the same of all windows: ``[windows, entries]``, into the flattened dimensions of a shape."""
    (at, inside), *more = along
    for size, (index, valid) in zip(shape[1:], more, strict=True):
        at = (at[:, None, :, None] * size + index[None, :, None, :]).flatten(2).flatten(0, 1)
        inside = (inside[:, None, :, None] & valid[None, :, None, :]).flatten(2).flatten(0, 1)
    return torch.where(inside, at, 0), inside


def _pooled(
    here: Here,
    input: Tensor,
    dimensions: int,
    pooled: Callable[[Tensor], Any],
    places: Callable[[Sequence[int]], list[Places]],
    return_indices: bool,
) -> Any:
    """Return the maxima of windows, each explained by the entries that account for its difference."""
    call = call_of(here)
    return_indices = return_indices or here.operation.endswith("with_indices")
    found = pairs(here, input)
    with torch.set_grad_enabled(found is None or call.options.create_graph):
        native, index = pooled(input)
    if found is not None:
        shape = native.shape[-dimensions:]
        at, inside = _windows(input.shape[-dimensions:], places(shape))

        def entries(x: Tensor) -> Tensor:
            found: Tensor = x.flatten(-dimensions).index_select(-1, at.flatten()).unflatten(-1, at.shape)
            return found

        picked = secants.picked(call, secants.linear(call, entries, found[0]), inside=inside).value
        native = call.switch(native, picked.unflatten(-1, shape))
    return (native, index) if return_indices else native


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
        picked = secants.picked(call, flat, largest).value
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
        return secants.picked(call, both, largest).value

    return handler
