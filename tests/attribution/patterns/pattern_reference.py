"""Patterns by NumPy, from the definition: every patch is written out, and every sum is a product of matrices."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relprop import PatternAttribution, PatternNet
from relprop.attribution.patterns.pattern_methods import PatternMethod

Array = np.ndarray


class Reference(NamedTuple):
    """The sums of one region and the patterns of its units."""

    n: Array  # [units]
    x: Array  # [units, inputs]
    zx: Array  # [units, inputs]
    pattern: Array  # [units, inputs]


def conv_patches(x: Array, kernel: tuple[int, ...], stride: int, padding: int, dilation: int, groups: int) -> Array:
    """What every group of a convolution sees at every position: ``[N * positions, groups, inputs]``."""
    dims = len(kernel)
    padded = np.pad(x, [(0, 0), (0, 0)] + [(padding, padding)] * dims)
    reach = [dilation * (k - 1) + 1 for k in kernel]
    ends = [range(0, size - r + 1, stride) for size, r in zip(padded.shape[2:], reach, strict=True)]
    rows = []
    for sample in padded:
        for start in itertools.product(*ends):
            window = sample[(slice(None), *(slice(s, s + r, dilation) for s, r in zip(start, reach, strict=True)))]
            rows.append(window.reshape(groups, -1))
    return np.stack(rows)


def transposed_patches(
    x: Array, kernel: tuple[int, ...], stride: int, padding: int, output_padding: int, dilation: int, groups: int
) -> Array:
    """The same of a transposed convolution: a convolution, its kernel mirrored, of the input with zeros between."""
    spread = np.zeros((*x.shape[:2], *((size - 1) * stride + 1 for size in x.shape[2:])))
    spread[(slice(None), slice(None), *(slice(None, None, stride),) * len(kernel))] = x
    edges = [(dilation * (k - 1) - padding, dilation * (k - 1) - padding + output_padding) for k in kernel]
    found = conv_patches(np.pad(spread, [(0, 0), (0, 0), *edges]), kernel, 1, 0, dilation, groups)
    shaped = found.reshape(*found.shape[:2], -1, *kernel)
    return np.flip(shaped, tuple(range(3, shaped.ndim))).reshape(found.shape)


def unit_rows(weight: Array, groups: int, transposed: bool) -> Array:
    """The weight of every unit: ``[units, inputs]``."""
    if not transposed:
        return weight.reshape(len(weight), -1)
    parts = np.split(weight, groups)
    return np.concatenate([part[:, unit].reshape(1, -1) for part in parts for unit in range(part.shape[1])])


def sums(patches: Array, w: Array, b: Array, region: str) -> Reference:
    """The sums over all samples and the patterns, unit by unit."""
    found: list[list[Array]] = [[], [], [], []]
    per_group = len(w) // patches.shape[1]
    for unit, weight in enumerate(w):
        x = patches[:, unit // per_group]
        z = x @ weight + b[unit]
        m = {"linear": np.ones_like(z), "relu+": z > 0, "relu-": z <= 0}[region].astype(float)
        n, mx, mzx = m.sum(), m @ x, (m * z) @ x
        q = mzx / n - mx / n * z.mean() if n else np.zeros_like(weight)
        spread = weight @ q
        for kept, value in zip(found, (n, mx, mzx, q / spread if n and abs(spread) > 1e-14 else 0 * q), strict=True):
            kept.append(value)
    return Reference(*map(np.array, found))


# Whole networks ---------------------------------------------------------------------------------

METHODS = [PatternNet, PatternAttribution]
ESTIMATORS = ["linear", "relu+", "relu+-"]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def backward_weight(method: type[PatternMethod], weight: Tensor, pattern: Tensor) -> Tensor:
    return pattern if method is PatternNet else weight * pattern


def numpy_pattern(x: np.ndarray, weight: Tensor, bias: Tensor, region: str, stride: int = 1, groups: int = 1) -> Tensor:
    """The pattern of a layer, from its patches."""
    if weight.dim() == 2:
        patches = x[:, None]
    else:
        patches = conv_patches(x, tuple(weight.shape[2:]), stride, 1, 1, groups)
    rows = unit_rows(weight.numpy(), groups, False)
    return torch.from_numpy(sums(patches, rows, bias.numpy(), region).pattern).reshape(weight.shape)
