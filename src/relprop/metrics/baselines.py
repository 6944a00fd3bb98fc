"""What stands in the place of what is taken away."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from relprop.arguments import positive_number
from relprop.errors import InputError, InputTypeError
from relprop.metrics._explain import checked_input, finite, generator
from relprop.metrics._features import channel_dim

Baseline: TypeAlias = (
    Literal["zero", "mean", "blur", "noise", "invert", "neighbours"] | float | Tensor | Callable[[Tensor], Tensor]
)
NAMES = ("zero", "mean", "blur", "noise", "invert", "neighbours")


def baseline_of(x: Tensor, baseline: Baseline, *, region: tuple[int, int] = (1, 1), seed: int = 0) -> Tensor:
    """Return what replaces x where it is perturbed, of the shape of x.

    Definition, sample by sample:

    - ``"zero"``: 0.
    - ``"mean"``: the sample's mean; of each channel of ``[N, C, H, W]`` and ``[N, C, D, H, W]``, over all pixels, and
      of each entry of an embedding, ``[N, T, D]``, over all T tokens.
    - ``"blur"``: ``blurred(x)``; images only.
    - ``"noise"``: drawn uniformly between the sample's smallest and largest entry (Samek et al. 2017).
    - ``"invert"``: ``min + max - x`` with the sample's smallest and largest entry: +1 becomes -1 for pixels from
      -1 to 1, the flip of Bach et al. 2015.
    - ``"neighbours"``: the mean of the pixels around a region, the up to 8 around a pixel; images only.
    - a number, a tensor that broadcasts to x, or a callable from x to a tensor of its shape.

    Args:
        x: ``[N, ...]``.
        baseline: as above.
        region: height and width of the regions that are perturbed together, for ``"neighbours"``.
        seed: for ``"noise"``; drawn on the CPU, so that it is the same on every device.

    Raises:
        InputError: no sample, an unknown name, a shape that does not fit, NaN or infinity, images needed and none
            given.
        InputTypeError: an x of integers (token ids have no mean) with anything but a tensor, a number or a callable.

    >>> x = torch.tensor([[1.0, 2.0, 6.0]])
    >>> baseline_of(x, "mean"), baseline_of(x, "invert")
    (tensor([[3., 3., 3.]]), tensor([[6., 5., 1.]]))
    """
    x = checked_input(x)
    if not isinstance(baseline, Tensor) and callable(baseline):
        return _fitting(baseline(x.clone()), x, "the baseline callable returned")
    if isinstance(baseline, (float, int)):
        baseline = torch.tensor(baseline, dtype=x.dtype if x.is_floating_point() else None)
    if isinstance(baseline, Tensor):
        return _fitting(baseline, x, "the baseline is")
    if baseline not in NAMES:
        raise InputError(f"baseline is {baseline!r}; expected one of {NAMES}, a number, a tensor or a callable")
    if baseline == "zero":
        return torch.zeros_like(x)
    if not x.is_floating_point():
        raise InputTypeError(
            f"baseline {baseline!r} is not defined for {x.dtype}; give a number, a tensor or a callable"
        )
    if baseline == "blur":
        return blurred(x)
    if baseline == "neighbours":
        return neighbours_mean(x, region)
    if baseline == "mean":
        channel = channel_dim(x)
        return x.mean(dim=[dim for dim in range(1, x.dim()) if dim != channel], keepdim=True).expand_as(x)
    flat = x.flatten(1)
    ones = (1,) * (x.dim() - 1)
    low, high = flat.amin(dim=1).view(-1, *ones), flat.amax(dim=1).view(-1, *ones)
    if baseline == "invert":
        return low + high - x
    drawn = torch.rand(x.shape, generator=generator(seed), dtype=torch.float64).to(x.device, x.dtype)
    return low + (high - low) * drawn


def blurred(x: Tensor, sigma: float | None = None) -> Tensor:
    """Blur images by a Gaussian; the border continues outwards.

    Definition: convolution with ``exp(-(dy^2 + dx^2) / (2 sigma^2))``, cut off at 3 sigma and normalised.

    Args:
        x: ``[N, C, H, W]``, floating.
        sigma: in pixels; an eighth of the shorter side by default (1 on digits of 8 x 8, 28 on images of 224 x 224).

    Shapes: those of x.

    Raises:
        InputError: no images, none of them, or a sigma that is not positive.
        InputTypeError: no tensor.

    >>> float(blurred(torch.eye(8)[None, None]).amax()) < 1
    True
    """
    x = checked_input(x)
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"blur needs images [N, C, H, W] of floats, got {x.dtype} of shape {tuple(x.shape)}")
    sigma = min(x.shape[2:]) / 8 if sigma is None else sigma
    sigma = positive_number("sigma, in pixels,", sigma)
    radius = math.ceil(3 * sigma)
    steps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-((steps / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum()
    flat = x.reshape(-1, 1, *x.shape[2:])
    flat = conv2d(pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    flat = conv2d(pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return flat.view_as(x)


def neighbours_mean(x: Tensor, region: tuple[int, int] = (1, 1)) -> Tensor:
    """Replace each region by the mean of the pixels that touch it, channel by channel.

    Args:
        x: ``[N, C, H, W]``, floating.
        region: height and width of regions on a grid that begins at the top left.

    Shapes: those of x.

    Raises:
        InputError: no images, none of them, or a region that covers the image, so that nothing is around it.
        InputTypeError: no tensor.

    >>> neighbours_mean(torch.tensor([[[[1.0, 5.0, 3.0]]]]))
    tensor([[[[5., 2., 5.]]]])
    """
    x = checked_input(x)
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"neighbours need images [N, C, H, W] of floats, got {x.dtype} of shape {tuple(x.shape)}")
    if region[0] >= x.shape[2] and region[1] >= x.shape[3]:
        raise InputError(f"a region of {region[0]} x {region[1]} covers the image; there are no neighbours")
    # Sums over boxes are differences of sums from the top left.
    sums = pad(x.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    inner, outer = (
        [_bounds(size, side, margin, x.device) for size, side in zip(x.shape[2:], region, strict=True)]
        for margin in (0, 1)
    )
    (area, total), (wide_area, wide_total) = _box(sums, *inner), _box(sums, *outer)
    return ((wide_total - total) / (wide_area - area)).to(x.dtype)


def _bounds(size: int, side: int, margin: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where the region of each pixel begins and ends along one dimension."""
    start = torch.arange(size, device=device) // side * side
    return (start - margin).clamp(min=0), (start + side + margin).clamp(max=size)


def _box(sums: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the number of pixels in the box of each pixel, and their sum."""
    (top, bottom), (left, right) = rows, columns
    area = (bottom - top)[:, None] * (right - left)
    corner = [sums[:, :, row[:, None], column] for row in (top, bottom) for column in (left, right)]
    return area, corner[3] - corner[2] - corner[1] + corner[0]


def _fitting(found: Tensor, x: Tensor, what: str) -> Tensor:
    if not isinstance(found, Tensor):
        raise InputTypeError(f"{what} a {type(found).__name__}; expected a tensor of shape {tuple(x.shape)}")
    if found.is_floating_point() and not x.is_floating_point():
        raise InputTypeError(f"{what} of {found.dtype}, and x of {x.dtype}; expected integers")
    try:
        whole = found.to(x.device, x.dtype).expand_as(x)
    except RuntimeError as error:
        raise InputError(f"{what} of shape {tuple(found.shape)}; expected {tuple(x.shape)}, the shape of x") from error
    return finite(whole, what.rsplit(" ", 1)[0])
