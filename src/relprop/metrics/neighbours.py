"""Neighbours of an input and paths through input space, for the metrics of continuity.

Neighbours are points ``[S, N, ...]``, S for each of N samples. A path is points ``[T + 1, N, ...]`` in order, both ends
among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from relprop.arguments import positive_number, whole_number
from relprop.errors import InputError
from relprop.metrics._explain import checked_input, generator


def random_neighbours(
    x: Tensor,
    distance: float,
    samples: int = 10,
    *,
    shape: Literal["sphere", "ball", "cube"] = "sphere",
    seed: int = 0,
) -> Tensor:
    """Draw neighbours of every sample, uniformly, at a stated distance.

    Definition: ``x'`` with ``|x' - x|_2 = distance`` (``"sphere"``), ``|x' - x|_2 <= distance`` (``"ball"``, the set of
    Yeh et al. 2019, arXiv:1901.09392) or ``max |x' - x| <= distance`` (``"cube"``, what Captum draws from).

    Args:
        x: ``[N, ...]``, floating.
        distance: in units of the input, above 0.
        samples: how many for each sample.
        shape: ``"sphere"`` by default.
        seed: draws are made on the CPU, so they are the same on every device.

    Shapes: ``[N, ...] -> [samples, N, ...]``.

    Raises:
        InputError: no sample, ``distance`` is not positive, ``samples`` below 1, another ``shape``, or integers.
        InputTypeError: no tensor, or a seed that is no integer.

    >>> x = torch.zeros(2, 3)
    >>> random_neighbours(x, 0.5, samples=4).norm(dim=2)[0]
    tensor([0.5000, 0.5000])
    """
    x = checked_input(x)
    if not x.is_floating_point():
        raise InputError(
            f"x has dtype {x.dtype}: indices have no neighbours at a distance; expected floating numbers: explain the "
            "model behind its embedding"
        )
    distance = positive_number("distance, in units of the input,", distance)
    source = generator(seed)
    size = (whole_number("samples", samples), *x.shape)
    if shape == "cube":
        step = torch.rand(size, generator=source, dtype=torch.float64) * 2 - 1
    elif shape in ("sphere", "ball"):
        step = torch.randn(size, generator=source, dtype=torch.float64)
        flat = step.view(samples, len(x), -1)
        flat /= flat.norm(dim=2, keepdim=True)
        if shape == "ball":  # the volume within r grows as r^d
            flat *= torch.rand(flat.shape[:2], generator=source, dtype=torch.float64)[..., None] ** (1 / flat.shape[2])
    else:
        raise InputError(f"shape is {shape!r}; expected 'sphere', 'ball' or 'cube'")
    return x + (distance * step).to(x.device, x.dtype)


def translated(x: Tensor, shifts: Sequence[tuple[float, float]], *, fill: float | Tensor = 0.0) -> Tensor:
    """Move images by parts of a pixel; what comes in at the border is ``fill``.

    Definition: bilinear, ``x'[y, x] = sum_{p, q} w_p(y) w_q(x) x[p, q]``, continuous in the shift, and exact where it
    is a whole number.

    Args:
        x: ``[N, C, H, W]``, floating.
        shifts: ``(down, right)`` for each neighbour, in pixels.
        fill: a number, or a tensor ``[C, 1, 1]``.

    Shapes: ``[N, C, H, W] -> [len(shifts), N, C, H, W]``.

    Raises:
        InputError: not a batch of at least one floating image, no shift, one that is not finite, or a ``fill`` that
            does not fit.
        InputTypeError: no tensor.

    >>> translated(torch.tensor([[[[1.0, 2.0, 4.0]]]]), [(0, 1), (0, 0.5)]).squeeze()
    tensor([[0.0000, 1.0000, 2.0000],
            [0.5000, 1.5000, 3.0000]])
    """
    x = checked_input(x)
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}; translation is defined for images, [N, C, H, W], "
            f"of a floating dtype"
        )
    if not shifts:
        raise InputError("shifts is empty; expected at least one (down, right)")
    given = torch.as_tensor(fill, dtype=x.dtype, device=x.device).detach()
    try:
        background = given.expand(x.shape[1:])
    except RuntimeError as error:
        raise InputError(
            f"fill has shape {tuple(given.shape)}, which does not broadcast to {tuple(x.shape[1:])}; expected a "
            "number, or one for each channel, [C, 1, 1]"
        ) from error
    away = x - background  # what moves; outside of it there is nothing
    moved = [_moved(_moved(away, down, 2), right, 3) for down, right in shifts]
    return torch.stack(moved) + background


def translation(x: Tensor, shift: tuple[float, float], steps: int = 64, *, fill: float | Tensor = 0.0) -> Tensor:
    """Return the path on which images move from where they are by ``shift``, in equal steps.

    Args:
        x: ``[N, C, H, W]``, floating.
        shift: ``(down, right)``, in pixels.
        steps: a power of two lets ``path_continuity`` read the path at many widths of step.
        fill: as in ``translated``.

    Shapes: ``[N, C, H, W] -> [steps + 1, N, C, H, W]``.

    Raises:
        InputError: as ``translated``; ``steps`` below 1.
        InputTypeError: as ``translated``.
    Source: Montavon et al. 2018 (arXiv:1706.07979), section 7.1, where a digit is moved.

    >>> translation(torch.tensor([[[[1.0, 0.0]]]]), (0, 1), steps=2).squeeze()
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    parts = _parts(steps)
    return translated(x, [(shift[0] * part, shift[1] * part) for part in parts], fill=fill)


def interpolation(x: Tensor, other: Tensor, steps: int = 64) -> Tensor:
    """Return the straight path from ``x`` to ``other``, in equal steps.

    Definition: ``x_t = x + t / steps (other - x)``, t = 0 .. steps. Without its first point it is neighbours.

    Args:
        x: ``[N, ...]``, floating.
        other: broadcasts to ``x``.
        steps: a power of two lets ``path_continuity`` read the path at many widths of step.

    Shapes: ``[N, ...] -> [steps + 1, N, ...]``.

    Raises:
        InputError: no sample, ``steps`` below 1, integers, or shapes that do not fit.
        InputTypeError: an ``x`` that is no tensor.

    >>> interpolation(torch.zeros(1, 2), torch.tensor([[4.0, 8.0]]), steps=2).squeeze(1)
    tensor([[0., 0.],
            [2., 4.],
            [4., 8.]])
    """
    x = checked_input(x)
    if not x.is_floating_point():
        raise InputError(f"x has dtype {x.dtype}; interpolation needs a floating dtype")
    try:
        end = other.detach().to(x).expand_as(x)
    except RuntimeError as error:
        raise InputError(
            f"other has shape {tuple(other.shape)}, which does not broadcast to {tuple(x.shape)}, that of x"
        ) from error
    return torch.stack([torch.lerp(x, end, part) for part in _parts(steps)])


def _parts(steps: int) -> list[float]:
    steps = whole_number("steps", steps)
    return [step / steps for step in range(steps + 1)]


def _moved(x: Tensor, by: float, dim: int) -> Tensor:
    """Shift along one dimension, by the weighted mean of the two whole shifts next to ``by``."""
    if not math.isfinite(by):
        raise InputError(f"a shift is {by}; expected a finite number of pixels")
    whole = math.floor(by)
    part = by - whole
    near = _rolled(x, whole, dim)
    return near if part == 0 else near * (1 - part) + _rolled(x, whole + 1, dim) * part


def _rolled(x: Tensor, by: int, dim: int) -> Tensor:
    length = x.shape[dim]
    moved = torch.zeros_like(x)
    kept = length - abs(by)
    if kept > 0:
        moved.narrow(dim, max(by, 0), kept).copy_(x.narrow(dim, max(-by, 0), kept))
    return moved


def distances(points: Tensor, x: Tensor) -> Tensor:
    """Return ``|points - x|_2`` over all but the first two dimensions, in float64: ``[S, N]``."""
    away: Tensor = torch.linalg.vector_norm((points.double() - x.double()).flatten(2), dim=2)
    return away
