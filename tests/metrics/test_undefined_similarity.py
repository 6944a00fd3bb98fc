"""A map that does not vary has no correlation: not 0, which would be the best score of a sanity check."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from relprop.metrics import hog_similarity, parameter_randomisation, random_logit, rank_correlation
from relprop.metrics.similarity import similarity_of
from tests.metrics.small import TARGET, images, network

NAN = math.nan


def maps() -> tuple[Tensor, Tensor]:
    """Pairs: both vary; one constant; the other; two constants; one constant twice; one map twice; zeros; one zero."""
    a, b = torch.randn(2, 8, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a[1], b[2] = 3.0, -2.0
    a[3], b[3] = 1.0, 2.0
    a[4] = b[4] = 0.7
    b[5] = a[5]
    a[6] = b[6] = 0.0
    a[7] = 0.0
    return a, b


@pytest.mark.parametrize("name", ["spearman", "pearson", "cosine", "hog"])
def test_undefined_is_nan_and_equal_is_one(name: Any) -> None:
    a, b = maps()
    found = similarity_of(name)(a, b)
    flat_a, flat_b = a.flatten(1).numpy(), b.flatten(1).numpy()
    if name == "cosine":  # undefined for zeros alone
        sizes = np.linalg.norm(flat_a, axis=1) * np.linalg.norm(flat_b, axis=1)
        expected = np.divide((flat_a * flat_b).sum(1), sizes, out=np.full(8, NAN), where=sizes > 0)
        expected[6] = 1
    else:
        expected = np.array([NAN, NAN, NAN, NAN, 1, 1, 1, NAN])
        measure = {"spearman": spearmanr, "pearson": pearsonr}
        expected[0] = measure[name](flat_a[0], flat_b[0]).statistic if name in measure else float(found[0])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert float(found.nan_to_num().abs().max()) <= 1


def test_ssim_is_defined_by_its_constants() -> None:
    a, b = maps()
    found = similarity_of("ssim")(a, b)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[4:7], torch.ones(3, dtype=torch.float64))


def constant(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    return torch.ones_like(x)


def uniform(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    f = model(x).detach().gather(1, torch.as_tensor(target).expand(len(x))[:, None])
    return (f / x[0].numel())[..., None, None].expand_as(x)


@pytest.mark.parametrize("name", ["spearman", "pearson", "cosine"])
def test_a_constant_explainer_does_not_pass_the_sanity_checks(name: Any) -> None:
    model, x = network(), images()
    still = parameter_randomisation(constant, model, x, TARGET, similarity=name)
    torch.testing.assert_close(still.similarity, torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(
        random_logit(constant, model, x, TARGET, 3, similarity=name), torch.ones(3, dtype=torch.float64)
    )
    if name == "cosine":
        return
    undefined = parameter_randomisation(uniform, model, x, TARGET, similarity=name)
    assert bool(undefined.similarity.isnan().all()) and math.isnan(undefined.mean)
    assert "nan" in str(undefined)
    assert bool(random_logit(uniform, model, x, TARGET, 3, similarity=name).isnan().all())


def test_the_public_ones_say_the_same() -> None:
    a, b = maps()
    for measure in (rank_correlation, hog_similarity):
        assert measure(a, b).isnan().tolist() == [False, True, True, True, False, False, False, True]


@pytest.mark.parametrize("name", ["spearman", "pearson", "cosine", "ssim", "hog"])
@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e160, 1e307])
def test_no_similarity_depends_on_the_scale(name: Any, size: float) -> None:
    a, b = torch.rand(2, 3, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.4
    measure = similarity_of(name)
    expected = measure(a, b)
    assert float(expected.abs().min()) > 1e-3
    for found in (measure(a * size, b), measure(a, b * size), measure(a * size, b * size)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)
