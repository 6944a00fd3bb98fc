"""What is a place and what is a channel: sequences of embeddings, images, volumes; the rule never depends on sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from relprop.errors import InputError
from relprop.metrics import (
    baseline_of,
    entropy_complexity,
    inside_total_ratio,
    localisation_auc,
    perturbation_curve,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    top_k_intersection,
)

SHAPES = {
    "square sequences": (3, 4, 4),
    "as many as long": (4, 4, 5),
    "all the same": (4, 4, 4),
    "long sequences": (2, 7, 3),
    "images": (2, 5, 3, 4),
    "as many as channels": (3, 3, 3, 4),
    "volumes": (2, 3, 2, 3, 4),
    "cubes": (3, 3, 3, 3, 3),
}


def drawn(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Relevance, and a mask of its places without channels."""
    source = torch.Generator().manual_seed(3)
    relevance = torch.randn(shape, generator=source, dtype=torch.float64) + 0.7
    places = shape[:2] if len(shape) == 3 else (shape[0], *shape[2:])
    mask = torch.rand(places, generator=source) < 0.4
    mask.flatten(1)[:, 0], mask.flatten(1)[:, -1] = True, False
    return relevance, mask


@pytest.mark.parametrize("name", SHAPES)
def test_relevance_is_summed_over_the_embedding_of_each_token_and_the_channels_of_each_pixel(name: str) -> None:
    relevance, mask = drawn(SHAPES[name])
    axis = 2 if relevance.dim() == 3 else 1
    values = relevance.numpy().sum(axis=axis).reshape(len(relevance), -1)
    inside = mask.numpy().reshape(len(mask), -1)
    positive = np.maximum(values, 0)
    mass = (positive * inside).sum(axis=1) / positive.sum(axis=1)
    expected: dict[Any, Any] = {
        pointing_game: inside[np.arange(len(values)), values.argmax(axis=1)],
        relevance_mass_accuracy: mass,
        inside_total_ratio: mass,
        relevance_rank_accuracy: [i[np.argsort(-v)[: i.sum()]].mean() for v, i in zip(values, inside, strict=True)],
        localisation_auc: [roc_auc_score(i, v) for v, i in zip(values, inside, strict=True)],
    }
    forms = (mask, mask.unsqueeze(axis), mask.unsqueeze(axis).expand_as(relevance))
    for form in forms:
        for metric, value in expected.items():
            np.testing.assert_allclose(metric(relevance, form), value, rtol=1e-10, err_msg=metric.__name__)
        top = [i[np.argsort(-v)[:2]].mean() for v, i in zip(values, inside, strict=True)]
        np.testing.assert_allclose(top_k_intersection(relevance, form, 2), top)
    for one in (mask[0], mask[:1].unsqueeze(axis)[0]):
        every = mask[:1].expand_as(mask)
        np.testing.assert_allclose(localisation_auc(relevance, one), localisation_auc(relevance, every))


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((2, 4, 6), (2, 6), r"mask.*\(2, 6\).*\[N, T, D\].*\(2, 4, 6\), \(2, 4, 1\), \(2, 4\)"),
        ((2, 4, 6), (4, 6), r"mask.*\(4, 6\).*\[N, T, D\]"),
        ((2, 5, 3, 4), (5, 3, 4), r"mask.*\(5, 3, 4\).*\(2, 5, 3, 4\), \(2, 1, 3, 4\), \(2, 3, 4\)"),
        ((2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2), r"6 dimensions.*\[N, D\], \[N, T, D\], \[N, C, H, W\]"),
    ],
)
def test_masks_that_do_not_fit_are_told_what_does(shape: Any, mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pointing_game(torch.rand(shape), torch.ones(mask, dtype=torch.bool))


def test_a_mask_over_some_of_an_embedding() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 1, :2] = True
    with pytest.raises(InputError, match="differs between channels"):
        pointing_game(torch.rand(2, 4, 4), mask)


def losses(x: Tensor, labels: np.ndarray) -> np.ndarray:
    """The curve of the sum of a sample's entries squared, its own relevance, in NumPy."""
    curves = []
    for image, segment in zip(x.numpy(), labels, strict=True):
        names = np.unique(segment)
        totals = np.array([(image[segment == name] ** 2).sum() for name in names])
        curves.append(totals.sum() - np.concatenate([[0], np.cumsum(np.sort(totals)[::-1])]))
    return np.array(curves)


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(dim=1, keepdim=True)


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4, 5), (2, 4, 6), (4, 4, 4)])
def test_segments_without_embeddings_are_tokens(shape: Any) -> None:
    x, _ = drawn(shape)
    tokens = np.broadcast_to(np.arange(shape[1])[:, None], shape[1:])
    expected = losses(x, np.broadcast_to(tokens, shape))
    one = torch.arange(shape[1])
    for form in (one, one[:, None], one.expand(shape[:2]), one[:, None].expand(shape[1:]), one[:, None].expand(shape)):
        if shape == (4, 4, 4) and form.shape == (4, 4):
            continue
        found = perturbation_curve(x.square(), Squares(), x, features=form)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-10, atol=1e-12)


def test_segments_that_fit_in_two_ways() -> None:
    x, _ = drawn((4, 4, 4))
    with pytest.raises(InputError, match=r"\(4, 4\).*two ways.*\(4, 4, 1\).*\(1, 4, 4\)"):
        perturbation_curve(x.square(), Squares(), x, features=torch.arange(4).expand(4, 4))
    pixels = torch.arange(36).view(3, 3, 4)
    images = torch.randn(3, 3, 3, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="two ways"):
        perturbation_curve(images.square(), Squares(), images, features=pixels)
    for form in (pixels[:, None], pixels[None]):
        whole = form.expand(3, 3, 3, 4)
        for given in (form, whole):
            found = perturbation_curve(images.square(), Squares(), images, features=given)
            np.testing.assert_allclose(found.scores, losses(images, whole.numpy()), rtol=1e-10, atol=1e-12)
    deep = torch.randn(2, 1, 1, 2, 2, 2, dtype=torch.float64)
    numbers = torch.arange(8).view(1, 1, 2, 2, 2)
    found = perturbation_curve(deep.square(), Squares(), deep, features=numbers)
    np.testing.assert_allclose(found.scores, losses(deep, numbers.expand(deep.shape).numpy()), rtol=1e-10, atol=1e-12)
    # Where both say the same there is nothing to choose.
    same = perturbation_curve(images.square(), Squares(), images, features=pixels[:1].expand(3, 3, 4))
    assert same.scores.shape == (3, 13)


def test_pixels_are_those_of_images_and_volumes() -> None:
    with pytest.raises(InputError, match=r"pixels.*\[N, C, H, W\].*torch\.arange\(T\).*\(2, 4, 6\)"):
        entropy_complexity(torch.rand(2, 4, 6), features="pixels")
    volume, _ = drawn((2, 3, 2, 3, 4))
    places = np.abs(volume.numpy()).sum(axis=1).reshape(2, -1)
    share = places / places.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(entropy_complexity(volume, features="pixels"), -(share * np.log(share)).sum(axis=1))


@pytest.mark.parametrize("name", SHAPES)
def test_the_mean_of_a_baseline_is_over_places(name: str) -> None:
    x, _ = drawn(SHAPES[name])
    over = 1 if x.dim() == 3 else tuple(range(2, x.dim()))
    expected = np.broadcast_to(x.numpy().mean(axis=over, keepdims=True), x.shape)
    np.testing.assert_allclose(baseline_of(x, "mean"), expected, rtol=1e-10, atol=1e-14)
