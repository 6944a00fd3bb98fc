"""What the imputation refuses, and images of very small and very large numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from relprop.errors import InputError, InputTypeError
from relprop.metrics import noisy_linear_imputation, road
from tests.metrics.small import TARGET, gradient_x_input, images, network

GONE = torch.tensor([[[False, True, False, False, True, False]]])
IMAGE = torch.tensor([[[[1.0, 9.0, 3.0, 5.0, 9.0, 7.0]]]], dtype=torch.float64)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [5, 4])
def test_images_that_are_not_finite(value: float, place: int) -> None:
    expected = torch.tensor([1.0, 2.0, 3.0, 5.0, 6.0, 7.0]).double()
    torch.testing.assert_close(noisy_linear_imputation(IMAGE, GONE, noise=0)[0, 0, 0], expected)
    x = torch.cat([IMAGE, IMAGE])
    x[1, 0, 0, place] = value
    with pytest.raises(InputError, match=r"x holds NaN or infinity in 1 of 2 samples, .* sample 1; expected finite"):
        noisy_linear_imputation(x, GONE.expand(2, -1, -1), noise=0)


@pytest.mark.parametrize("noise", [math.nan, math.inf, -0.1, "a", None, torch.ones(2)])
def test_noise_that_is_no_number(noise: Any) -> None:
    with pytest.raises(InputError, match=r"noise must be a finite number of at least 0"):
        noisy_linear_imputation(IMAGE, GONE, noise=noise)
    with pytest.raises(InputError, match=r"noise must be a finite number of at least 0"):
        road(gradient_x_input, network(), images(), TARGET, noise=noise)


def test_a_mask_that_is_no_tensor() -> None:
    with pytest.raises(InputTypeError, match="gone is a list; expected a tensor"):
        noisy_linear_imputation(IMAGE, [[1]], noise=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_scale_of_an_image_is_that_of_what_is_imputed(size: float) -> None:
    torch.manual_seed(0)
    x, gone = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, 8, 8) < 0.6
    found = noisy_linear_imputation(x * size, gone, noise=0)
    torch.testing.assert_close(found / size, noisy_linear_imputation(x, gone, noise=0), rtol=1e-8, atol=1e-8)
