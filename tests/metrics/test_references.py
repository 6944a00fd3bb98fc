"""Similarities, noise, shifts and regions against a few lines of NumPy, on mosaics of digits where that matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage.feature import hog
from sklearn.datasets import load_digits
from torch import Tensor, nn

from relprop import Gradient
from relprop.metrics import (
    hog_similarity,
    input_invariance,
    inside_total_ratio,
    region_perturbation,
    selectivity,
    smoothed,
    structural_similarity,
)
from tests.metrics.small import TARGET, gradient_x_input, images, network


@pytest.fixture(scope="module")
def mosaics() -> Tensor:
    """Digits 2 x 2, [6, 1, 32, 32]."""
    pixels = torch.from_numpy(load_digits().images[:24]).view(6, 4, 8, 8) / 16
    large = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.cat([torch.cat([large[:, 0], large[:, 1]], 2), torch.cat([large[:, 2], large[:, 3]], 2)], 1)[:, None]


def scaled(maps: Tensor) -> Any:
    """Sum over channels and divide each map by its largest absolute value."""
    values = maps.sum(1).numpy()
    return values / np.abs(values).max((1, 2), keepdims=True)


def similar(a: Any, b: Any, window: int) -> float:
    """SSIM written out: means, variances and covariance (over n - 1) of every window, data range 2."""
    first, second = 0.02**2, 0.06**2
    found = []
    for row in range(a.shape[0] - window + 1):
        for column in range(a.shape[1] - window + 1):
            u, v = (m[row : row + window, column : column + window].ravel() for m in (a, b))
            (uu, uv), (_, vv) = np.cov(u, v)
            luminance = (2 * u.mean() * v.mean() + first) / (u.mean() ** 2 + v.mean() ** 2 + first)
            found.append(luminance * (2 * uv + second) / (uu + vv + second))
    return float(np.mean(found))


@pytest.mark.parametrize("window", [7, 11])
def test_structural_similarity(mosaics: Tensor, window: int) -> None:
    a = torch.cat([mosaics, -0.5 * mosaics.flip(2)], 1)
    b = torch.cat([mosaics.roll(2, 3), 0.3 * mosaics.roll(1, 0)], 1) * 7
    options = {} if window == 7 else {"window": window}
    expected = [similar(one, two, window) for one, two in zip(scaled(a), scaled(b), strict=True)]
    np.testing.assert_allclose(structural_similarity(a, b, **options), expected, rtol=1e-9)
    assert max(expected) < 0.9


@pytest.mark.parametrize("cell", [8, 4])
def test_histograms_of_gradients(mosaics: Tensor, cell: int) -> None:
    a = torch.cat([mosaics, -0.5 * mosaics.flip(2)], 1)
    b = torch.cat([mosaics.roll(2, 3), 0.3 * mosaics.roll(1, 0)], 1) * 7
    options = {} if cell == 8 else {"cell": cell}

    def described(values: Any) -> Any:
        return hog(values, orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(3, 3))

    expected = [
        np.corrcoef(described(one), described(two))[0, 1] for one, two in zip(scaled(a), scaled(b), strict=True)
    ]
    np.testing.assert_allclose(hog_similarity(a, b, **options), expected, rtol=1e-9)


def test_regions_of_a_mosaic(mosaics: Tensor) -> None:
    """Quadrants, each of which a linear model knows by the mean of its pixels times a weight."""
    weights = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64)

    class Quadrants(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            means = nn.functional.avg_pool2d(x, 16).flatten(1) * weights
            return torch.stack([means.sum(1), -means.sum(1)], 1)

    def of_pixels(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return x * weights.reshape(1, 1, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)

    parts = mosaics.numpy().reshape(6, 2, 16, 2, 16).mean((2, 4)).reshape(6, 4) * weights.numpy()
    for order, sign in (("morf", -1), ("lerf", 1)):
        taken = np.take_along_axis(parts, np.argsort(sign * parts, 1), 1).cumsum(1)
        expected = parts.sum(1)[:, None] - np.concatenate([np.zeros((6, 1)), taken], 1)
        found = region_perturbation(of_pixels, Quadrants(), mosaics, 0, region=16, baseline="zero", order=order)
        np.testing.assert_allclose(found.scores, expected, atol=1e-12)
        np.testing.assert_allclose(found.values, (expected[:, :1] - expected).mean(1), atol=1e-12)
    found = selectivity(of_pixels, Quadrants(), mosaics, 0, features=16, baseline="zero")
    descending, ascending = (np.take_along_axis(parts, np.argsort(s * parts, 1), 1).cumsum(1) for s in (-1, 1))
    np.testing.assert_allclose(found.values, (descending - ascending).sum(1) / 5, atol=1e-12)


def test_the_share_in_a_mask_weighted_by_its_size(mosaics: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    relevance = torch.randn(mosaics.shape, generator=generator, dtype=torch.float64)
    mask = torch.zeros(6, 32, 32, dtype=torch.bool)
    for n in range(6):
        mask[n, : 4 + n, 3 * n : 20] = True
    positive, inside = np.maximum(relevance[:, 0].numpy(), 0), mask.numpy()
    share = (positive * inside).sum((1, 2)) / positive.sum((1, 2))
    np.testing.assert_allclose(inside_total_ratio(relevance, mask), share)
    weighted = share * 32 * 32 / inside.sum((1, 2))
    np.testing.assert_allclose(inside_total_ratio(relevance, mask, weighted=True), weighted)


def test_smoothed_is_the_mean_over_the_same_noise() -> None:
    model, x = network(), images()
    found = smoothed(gradient_x_input, sigma=0.3, samples=5, seed=7)(model, x, TARGET)
    generator = torch.Generator().manual_seed(7)
    width = np.ptp(x.numpy().reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
    noise = [torch.randn(x.shape[1:], generator=generator, dtype=torch.float64).numpy() for _ in range(5)]
    maps = [gradient_x_input(model, torch.from_numpy(x.numpy() + 0.3 * width * each), TARGET).numpy() for each in noise]
    np.testing.assert_allclose(found, np.mean(maps, 0), rtol=1e-10)


def test_input_invariance_of_gradient_times_input() -> None:
    """The gradient does not move with a shift m, so that R is g x before and g (x + m) after."""
    model, x, shift = network(), images(), 0.7
    found = input_invariance(gradient_x_input, model, x, TARGET, shift=shift)
    slope, values = Gradient(model).attribute(x, TARGET).numpy(), x.numpy()
    before, after = slope * values, slope * (values + shift)
    np.testing.assert_allclose(found.maps, before, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.shifted_maps, after, rtol=1e-9, atol=1e-12)
    expected = np.abs(after - before).sum((1, 2, 3)) / np.abs(before).sum((1, 2, 3))
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
