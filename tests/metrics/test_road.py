"""Noisy linear imputation against a linear system solved densely; ROAD against loops."""

from __future__ import annotations

import numpy as np
import torch
from tests.metrics.small import TARGET, gradient_x_input, images, network

from relprop.metrics import noisy_linear_imputation, road


def solved(image: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Each pixel that is gone is the weighted mean of its neighbours, from the dense system."""
    height, width = gone.shape
    unknown = [tuple(at) for at in np.argwhere(gone)]
    matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros(len(unknown))
    for row, (y, x) in enumerate(unknown):
        for dy, dx in np.ndindex(3, 3):
            at = (y + dy - 1, x + dx - 1)
            if at == (y, x) or not (0 <= at[0] < height and 0 <= at[1] < width):
                continue
            weight = 1 / 6 if 0 in (dy - 1, dx - 1) else 1 / 12
            matrix[row, row] += weight
            if gone[at]:
                matrix[row, unknown.index(at)] -= weight
            else:
                right[row] += weight * image[at]
    found = image.copy()
    found[gone] = np.linalg.solve(matrix, right)
    return found


def test_imputation_solves_the_linear_system() -> None:
    x = torch.randn(4, 3, 9, 7, dtype=torch.float64)
    gone = torch.rand(4, 9, 7) < torch.tensor([0.2, 0.5, 0.8, 0.0])[:, None, None]
    gone[1, :, :6] = True  # a block with one column left
    found = noisy_linear_imputation(x, gone, noise=0)
    for n in range(4):
        for c in range(3):
            np.testing.assert_allclose(found[n, c], solved(x[n, c].numpy(), gone[n].numpy()), rtol=1e-8, atol=1e-9)


def test_imputation_of_one_pixel_left_and_of_a_constant_image() -> None:
    gone = torch.ones(1, 16, 16, dtype=torch.bool)
    gone[0, 3, 5] = False
    found = noisy_linear_imputation(torch.full((1, 1, 16, 16), 2.5), gone, noise=0)
    torch.testing.assert_close(found, torch.full_like(found, 2.5))


def test_noise_is_where_pixels_are_gone_and_nowhere_else() -> None:
    x = torch.zeros(50, 1, 8, 8, dtype=torch.float64)
    gone = torch.rand(50, 8, 8) < 0.5
    found = noisy_linear_imputation(x, gone, noise=0.3)
    assert bool((found[:, 0][~gone] == 0).all())
    assert abs(float(found[:, 0][gone].std()) - 0.3) < 0.02
    torch.testing.assert_close(found, noisy_linear_imputation(x, gone, noise=0.3))


def test_road_is_the_accuracy_of_imputed_images() -> None:
    model, x = network(), images(20)
    target = model(x).argmax(dim=1)
    found = road(gradient_x_input, model, x, target, fractions=(0.25, 0.75), noise=0, internal_batch_size=6)
    relevance = gradient_x_input(model, x, target).sum(dim=1)
    for p, count in enumerate((6, 18)):
        for name, sign in (("morf", -1), ("lerf", 1)):
            for n in range(20):
                first = (sign * relevance[n]).flatten().argsort()[:count]
                gone = np.zeros(24, dtype=bool)
                gone[first.numpy()] = True
                image = np.stack([solved(channel.numpy(), gone.reshape(4, 6)) for channel in x[n]])
                right = model(torch.from_numpy(image)[None]).argmax() == target[n]
                assert float(getattr(found, name)[n, p]) == float(right), (name, n, p)
    assert found.mean > 0
    np.testing.assert_allclose(found.values, (found.lerf - found.morf).mean(dim=1))
    assert str(found).splitlines()[2].split()[0] == "0.25"
    assert found.to_dict()["fractions"] == [0.25, 0.75]


def test_road_of_random_relevance_has_no_area() -> None:
    model, x = network(), torch.randn(300, 2, 4, 6, dtype=torch.float64)
    found = road(torch.randn_like(x), model, x, model(x).argmax(dim=1), fractions=(0.3, 0.6))
    assert abs(found.mean) < 3 * float(found.values.std()) / 300**0.5
    same = road(torch.randn_like(x[:3]), model, x[:3], TARGET, internal_batch_size=2)
    assert same.morf.shape == (3, 7)
