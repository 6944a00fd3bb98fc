"""Localisation and complexity against NumPy and scikit-learn; regions, masks and HOG on mosaics of digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from relprop.metrics import (
    entropy_complexity,
    gini_sparseness,
    hog_similarity,
    inside_total_ratio,
    localisation_auc,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    top_k_intersection,
)


@pytest.fixture(scope="module")
def mosaics() -> tuple[Tensor, Tensor, Tensor]:
    """Digits 2 x 2, [20, 1, 32, 32], the quadrant of one of them as a mask, and the digit's own pixels."""
    pixels = torch.from_numpy(load_digits().images[:80]).view(20, 4, 8, 8) / 16
    large = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = torch.cat([torch.cat([large[:, 0], large[:, 1]], 2), torch.cat([large[:, 2], large[:, 3]], 2)], 1)
    mask = torch.zeros(20, 32, 32, dtype=torch.bool)
    for n in range(20):
        row, column = 16 * (n % 4 // 2), 16 * (n % 2)
        mask[n, row : row + 16, column : column + 16] = True
    return x[:, None], mask, mask & (x > 0)


def test_a_map_of_the_digit_is_in_its_quadrant(mosaics: Any) -> None:
    x, mask, digit = mosaics
    inside = x * digit[:, None]
    for metric in (pointing_game, relevance_mass_accuracy, inside_total_ratio):
        assert metric(inside, mask).tolist() == [1] * 20
    assert relevance_rank_accuracy(inside, digit).tolist() == [1] * 20
    assert localisation_auc(inside, digit).tolist() == [1] * 20
    assert top_k_intersection(inside, mask, k=30).tolist() == [1] * 20
    assert inside_total_ratio(inside, mask, weighted=True).tolist() == [4] * 20
    outside = x * ~mask[:, None]
    for metric in (pointing_game, relevance_mass_accuracy):
        assert metric(outside, mask).tolist() == [0] * 20
    assert float(localisation_auc(outside, mask).amax()) < 0.5


def test_uniform_and_random_maps_score_chance(mosaics: Any) -> None:
    x, mask, _ = mosaics
    for metric in (pointing_game, relevance_mass_accuracy, relevance_rank_accuracy, inside_total_ratio):
        assert metric(torch.ones_like(x), mask).tolist() == [0.25] * 20
    assert localisation_auc(torch.ones_like(x), mask).tolist() == [0.5] * 20
    assert top_k_intersection(torch.ones_like(x), mask, k=7).tolist() == pytest.approx([0.25] * 20)
    noise = torch.randn_like(x)
    for metric, chance, margin in (
        (relevance_mass_accuracy, 0.25, 0.01),
        (relevance_rank_accuracy, 0.25, 0.02),
        (localisation_auc, 0.5, 0.02),
    ):
        assert abs(float(metric(noise, mask).mean()) - chance) < margin


def test_each_against_numpy_on_coloured_maps(mosaics: Any) -> None:
    _, mask, _ = mosaics
    relevance = torch.randn(20, 3, 32, 32, dtype=torch.float64)
    for n in range(20):
        flat, inside = relevance[n].sum(dim=0).numpy().ravel(), mask[n].numpy().ravel()
        positive = np.maximum(flat, 0)
        ranked = np.argsort(-flat)
        one = relevance[n : n + 1], mask[n : n + 1]
        expected = {
            pointing_game: float(inside[ranked[0]]),
            relevance_mass_accuracy: positive[inside].sum() / positive.sum(),
            relevance_rank_accuracy: inside[ranked[: inside.sum()]].mean(),
            localisation_auc: roc_auc_score(inside, flat),
            inside_total_ratio: positive[inside].sum() / positive.sum(),
        }
        for metric, value in expected.items():
            assert float(metric(*one)) == pytest.approx(value, rel=1e-10), metric.__name__
        assert float(top_k_intersection(*one, k=50)) == pytest.approx(inside[ranked[:50]].mean())


def test_ties_count_by_their_share() -> None:
    relevance = torch.tensor([[5.0, 3.0, 3.0, 3.0, 3.0, 0.0]])
    mask = torch.tensor([[True, True, False, False, False, True]])
    # The first is in; two of the four that tie fit, and one of the four is inside.
    assert float(relevance_rank_accuracy(relevance, mask)) == pytest.approx((1 + 2 * 0.25) / 3)
    assert float(top_k_intersection(relevance, mask, 2)) == pytest.approx((1 + 0.25) / 2)
    assert float(pointing_game(torch.tensor([[2.0, 2.0, 2.0, 0.0]]), torch.tensor([[1, 0, 0, 1]]))) == pytest.approx(
        1 / 3
    )
    assert float(localisation_auc(relevance, mask)) == pytest.approx(
        roc_auc_score(mask[0].numpy(), relevance[0].numpy())
    )


def test_a_hit_may_be_some_pixels_away() -> None:
    relevance = torch.zeros(1, 1, 9, 9)
    relevance[0, 0, 4, 4] = 1
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[1, 4] = True
    hits = [float(pointing_game(relevance, mask, radius=radius)) for radius in (0, 2, 3, 4)]
    assert hits == [0, 0, 1, 1]
    corner = torch.zeros(9, 9, dtype=torch.bool)
    corner[2, 2] = True  # sqrt(8) away
    assert [float(pointing_game(relevance, corner, radius=radius)) for radius in (2, 3)] == [0, 1]


def test_forms_of_masks(mosaics: Any) -> None:
    x, mask, _ = mosaics
    relevance = torch.randn(20, 3, 32, 32)
    values = relevance_mass_accuracy(relevance, mask)
    for form in (mask[:, None], mask[:, None].expand(20, 3, 32, 32), mask.int(), mask.float()):
        torch.testing.assert_close(relevance_mass_accuracy(relevance, form), values)
    one = relevance_mass_accuracy(relevance, mask[0])
    torch.testing.assert_close(one, relevance_mass_accuracy(relevance, mask[0].expand(20, 32, 32)))
    assert relevance_mass_accuracy(-torch.ones_like(x), mask).tolist() == [0] * 20


def test_hog_tells_maps_of_digits_apart(mosaics: Any) -> None:
    x, _, _ = mosaics
    assert float(hog_similarity(x, x.roll(1, 0)).amax()) < 0.95
    noisy = hog_similarity(x, x + 0.05 * torch.randn_like(x))
    assert float(noisy.amin()) > float(hog_similarity(x, x.roll(1, 0)).mean())


def test_gini_is_the_mean_difference() -> None:
    relevance = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    for features in ("elements", "pixels"):
        found = gini_sparseness(relevance, features=features)
        for n in range(5):
            size = np.abs(relevance[n].numpy())
            size = size.sum(axis=0).ravel() if features == "pixels" else size.ravel()
            # Half the mean absolute difference, relative to the mean.
            expected = np.abs(size[:, None] - size[None]).mean() / (2 * size.mean())
            assert float(found[n]) == pytest.approx(expected, rel=1e-10)
    assert gini_sparseness(torch.zeros(2, 4)).tolist() == [0, 0]
    segments = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0]])
    torch.testing.assert_close(
        gini_sparseness(torch.tensor([[1.0, 1, 2, 2], [1, 2, 3, 4]]), features=segments),
        torch.zeros(2, dtype=torch.float64),
    )


def test_entropy_is_scipys() -> None:
    relevance = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    relevance[0, 0] = 0
    expected = [entropy(np.abs(each.numpy()).ravel()) for each in relevance]
    np.testing.assert_allclose(entropy_complexity(relevance), expected, rtol=1e-10)
    assert entropy_complexity(torch.zeros(1, 4)).tolist() == [0]
