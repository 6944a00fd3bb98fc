"""Noisy linear imputation: pixels that give nothing away of where they were."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from relprop.arguments import nonnegative_number
from relprop.errors import InputError, InputTypeError, NumericalError
from relprop.metrics._explain import checked_input, finite, generator


def noisy_linear_imputation(x: Tensor, gone: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Replace pixels by what their neighbours say, with a little noise.

    Definition: the pixels that are gone solve the linear system ``u_p = sum_q w_pq u_q / sum_q w_pq``, where q are the
    up to 8 neighbours of p within the image, with ``w = 1/6`` beside and ``1/12`` across, those that are not gone at
    their value; then ``noise * e``, ``e ~ N(0, 1)``, is added to them. Channel by channel.
    Source: Rong et al. 2022 (ROAD, arXiv:2202.00449), and their code, which solves the system directly.
    Here it is solved by conjugate gradients in float64, all images together, to a residual of 1e-10: nothing but the
    images is stored.

    Args:
        x: ``[N, C, H, W]``, floating.
        gone: what to replace, ``[N, H, W]``, bool; at least one pixel of every image stays.
        noise: its standard deviation, in units of the input.
        seed: for the noise; drawn on the CPU, the same on every device.

    Shapes: those of x.

    Raises:
        InputError: not images, no image, NaN or infinity in x, a mask of another shape or dtype, an image of which
            nothing stays, or noise that is negative or not finite.
        InputTypeError: x or gone is no tensor.
        NumericalError: the system was not solved.

    >>> x = torch.tensor([[[[1.0, 9.0, 3.0]]]])
    >>> noisy_linear_imputation(x, torch.tensor([[[False, True, False]]]), noise=0)
    tensor([[[[1., 2., 3.]]]])
    """
    x = checked_input(x)
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"imputation needs images [N, C, H, W] of floats, got {x.dtype} of shape {tuple(x.shape)}")
    finite(x, "x")  # one number that is none is in the equations of its whole channel
    noise = nonnegative_number("noise", noise)
    if not isinstance(gone, Tensor):
        raise InputTypeError(f"gone is a {type(gone).__name__}; expected a tensor, [N, H, W], bool")
    if gone.shape != (len(x), *x.shape[2:]) or gone.dtype != torch.bool:
        expected = (len(x), *x.shape[2:])
        raise InputError(f"gone is {gone.dtype} of shape {tuple(gone.shape)}; expected bool of shape {expected}")
    if bool(gone.flatten(1).all(dim=1).any()):
        n = int(gone.flatten(1).all(dim=1).nonzero()[0])
        raise InputError(f"all pixels of image {n} are gone; at least one must stay to say what the others are")
    mask = gone[:, None].to(x.device).expand_as(x).double()
    filled = x.double() * (1 - mask)
    filled = filled + _solve(mask, mask * _neighbours(filled))
    drawn = torch.randn(x.shape, generator=generator(seed), dtype=torch.float64).to(x.device)
    return torch.where(mask.bool(), (filled + noise * drawn).to(x.dtype), x)


def _neighbours(values: Tensor) -> Tensor:
    """Return the weighted sum of the neighbours of each pixel: of 3 x 3 by (1, 2, 1) twice, without the middle."""
    total = pad(values, (1, 1, 1, 1))
    total = total[:, :, :-2] + 2 * total[:, :, 1:-1] + total[:, :, 2:]
    total = total[..., :-2] + 2 * total[..., 1:-1] + total[..., 2:]
    return (total - 4 * values) / 12


def _solve(mask: Tensor, right: Tensor) -> Tensor:
    """Solve ``degree_p u_p - sum_q w_pq u_q = right_p`` for the pixels of the mask, by conjugate gradients."""
    largest = right.abs().amax((2, 3), keepdim=True)  # so that squares are neither 0 nor infinite
    right = torch.where(largest == 0, 0.0, right / largest)
    degree = _neighbours(torch.ones_like(mask))
    flat = (2, 3)
    u = torch.zeros_like(right)
    residual = direction = right
    size = residual.square().sum(flat, keepdim=True)
    limit = 1e-20 * size
    for _ in range(20 * (mask.shape[2] + mask.shape[3]) + 100):
        active = size > limit
        if not bool(active.any()):
            return u * largest
        image = mask * (degree * direction - _neighbours(direction))
        step = torch.where(active, size / (direction * image).sum(flat, keepdim=True), 0.0)
        u = u + step * direction
        residual = residual - step * image
        now = residual.square().sum(flat, keepdim=True)
        direction = residual + torch.where(active, now / size, 0.0) * direction
        size = torch.where(active, now, size)
    raise NumericalError("the linear system of the imputation was not solved; report it with the image and the mask")
