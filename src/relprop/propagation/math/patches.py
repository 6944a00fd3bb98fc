"""The inputs of single units: what a unit of a linear call saw in one sample, or at one position."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.propagation.math.linear_map import Convolution, Geometry


def patches(geometry: Geometry, a: Tensor, z: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
    """Return what the units saw in some samples, padding zeros included: ``[samples, groups, inputs of a unit]``.

    With ``P`` the result, ``P[s, group of u] @ geometry.rows(weight)[u]`` is entry ``[chosen[s], u]`` of
    ``geometry.by_unit(z)``, but for the bias.

    Args:
        geometry: the linear call.
        a: its input.
        z: its output.
        weight: its weight.
        chosen: the samples, as indices into those of ``geometry.by_unit(z)``.
    """
    if not isinstance(geometry, Convolution):
        return a.reshape(-1, a.shape[-1])[chosen][:, None]
    if not geometry.has_batch(a):
        a, z = a[None], z[None]
    sample, *position = torch.unravel_index(chosen, (len(z), *z.shape[2:]))
    index, inside = [_along(0, geometry, sample[:, None])], torch.ones_like(sample, dtype=torch.bool)
    inside = inside.reshape(-1, *(1,) * geometry.dimensions)
    for dimension, at in enumerate(position):
        taps = torch.arange(weight.shape[2 + dimension], device=a.device) * geometry.dilation[dimension]
        stride, padding = geometry.stride[dimension], geometry.padding[dimension]
        if geometry.transposed:  # z[at] = sum of w[tap] a[i] where i stride - padding + tap = at
            reached = at[:, None] + padding - taps
            i, valid = reached.div(stride, rounding_mode="floor"), reached % stride == 0
        else:
            i = at[:, None] * stride - padding + taps
            valid = torch.ones_like(i, dtype=torch.bool)
        size = a.shape[2 + dimension]
        valid = valid & (i >= 0) & (i < size)
        inside = inside & _along(dimension + 1, geometry, valid)
        index.append(_along(dimension + 1, geometry, i.clamp(0, size - 1)))
    seen = a.movedim(1, -1)[tuple(index)] * inside[..., None]
    return seen.movedim(-1, 1).reshape(len(chosen), geometry.groups, -1)


def _along(dimension: int, geometry: Convolution, values: Tensor) -> Tensor:
    """Return ``[samples, n]`` with its ``n`` at a dimension of the samples' patches; 0 for the samples alone."""
    sizes = [len(values), *(1,) * geometry.dimensions]
    if dimension:
        sizes[dimension] = values.shape[1]
    return values.reshape(sizes)
