"""Sums over data, batch by batch in float64, and the patterns they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relprop.propagation.math.linear_map import Geometry

Estimator = Literal["linear", "relu+", "relu+-"]
REGIONS: dict[str, tuple[str, ...]] = {
    "linear": ("linear",),
    "relu+": ("linear", "relu+"),
    "relu+-": ("linear", "relu+", "relu-"),
}
"""By estimator, the regions of samples whose sums it needs: all, those with ``z > 0``, those with ``z <= 0``."""

NOISE = 1e-12
"""Below this part of the terms that cancel in it, ``w'q`` is what rounding in float64 left of zero."""


@dataclass
class Moments:
    """The sums over the samples of one region, for every unit.

    Attributes:
        n: how many samples lie in the region, ``[units]``.
        x: ``sum m x``, ``[units, inputs]``.
        zx: ``sum m z x``, ``[units, inputs]``.
    """

    n: Tensor
    x: Tensor
    zx: Tensor

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.n - other.n, self.x - other.x, self.zx - other.zx)


class Sums:
    """The sums of one parameter over all of its uses. Every position of a convolution is a sample.

    Attributes:
        samples: their number ``N``.
        z: ``sum z`` over all of them, ``[units]``.
        regions: the moments of all samples (``"linear"``), and of those with ``z > 0`` (``"relu+"``) if asked for.
    """

    def __init__(self, geometry: Geometry, weight: Tensor, estimator: Estimator) -> None:
        rows = geometry.rows(weight.detach())
        zeros = torch.zeros_like(rows, dtype=torch.float64, memory_format=torch.contiguous_format)
        self.estimator = estimator
        self.samples = 0
        self.z = zeros.new_zeros(len(rows))
        regions = ("linear",) if estimator == "linear" else ("linear", "relu+")
        self.regions = {name: Moments(self.z.clone(), zeros.clone(), zeros.clone()) for name in regions}

    def add(self, geometry: Geometry, a: Tensor, z: Tensor, weight: Tensor) -> None:
        """Add one use: the input ``a`` and the output ``z`` of a call with this weight.

        ``sum g x`` is the gradient of the weight for the output gradient ``g``; here ``g`` is ``m`` and ``m z``.
        """
        a, z, like = a.double(), z.double(), weight.detach().double()
        by_unit = geometry.by_unit(z)
        self.samples += len(by_unit)
        self.z += by_unit.sum(0)
        for name, moments in self.regions.items():
            mask = torch.ones_like(z) if name == "linear" else (z > 0).double()
            moments.n += geometry.by_unit(mask).sum(0)
            moments.x += geometry.rows(geometry.correlate(a, mask, like))
            moments.zx += geometry.rows(geometry.correlate(a, mask * z, like))

    def moments(self, region: str) -> Moments:
        """Return the sums of a region; those with ``z <= 0`` are what the others leave."""
        return self.regions["linear"] - self.regions["relu+"] if region == "relu-" else self.regions[region]

    def pattern(self, region: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patterns of a region, and which units have none.

        ``q = sum(m z x) / n - (sum(m x) / n) (sum z / N)`` and ``a = q / (w'q)``; 0 where ``n`` or ``w'q`` is.

        Args:
            region: ``"linear"``, ``"relu+"`` or ``"relu-"``.
            rows: the weight ``w`` by unit.

        Returns:
            the patterns, shaped as ``rows``, and ``[units]`` bools.
        """
        moments, w = self.moments(region), rows.double()
        n = moments.n.clamp(min=1)[:, None]
        zx, x_z = moments.zx / n, moments.x / n * (self.z / max(self.samples, 1))[:, None]
        q = zx - x_z
        variance = (w * q).sum(1)
        noise = NOISE * (w.abs() * (zx.abs() + x_z.abs())).sum(1)
        missing = (moments.n == 0) | (variance.abs() <= noise)
        a = q / torch.where(missing, 1.0, variance)[:, None]
        return torch.where(missing[:, None], 0.0, a), missing
