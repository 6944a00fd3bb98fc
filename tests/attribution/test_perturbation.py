"""Occlusion and ablation, against replacing entries by hand, and against Captum."""

from __future__ import annotations

from itertools import product
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from relprop import FeatureAblation, InputError, InputTypeError, Occlusion
from tests.attribution.averages import BACKGROUND, QUADRANTS, pictures, spelt
from tests.checks import refuses
from tests.models import close, mlp, settle, vectors


def by_hand(score: Any, x: Tensor, end: Tensor, masks: list[Tensor]) -> Tensor:
    """The mean loss by the masks that cover each entry."""
    total, covered = torch.zeros_like(x), torch.zeros_like(x)
    for mask in masks:
        loss = (score(x) - score(torch.where(mask, end, x))).detach()
        total += mask * loss.reshape(-1, *(1,) * (x.dim() - 1))
        covered += mask
    return total / covered


def windows(shape: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]) -> list[Tensor]:
    """Masks that begin every stride, until one reaches the border."""
    starts = []
    for size, width, step in zip(shape, window, strides, strict=True):
        row = [0]
        while row[-1] + width < size:
            row.append(row[-1] + step)
        starts.append(row)
    masks = []
    for place in product(*starts):
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[tuple(slice(a, a + width) for a, width in zip(place, window, strict=True))] = True
        masks.append(mask)
    return masks


WINDOWS = [((2, 3, 3), (2, 3, 3)), ((1, 2, 2), (1, 1, 2)), ((2, 4, 3), (1, 3, 2)), ((2, 6, 6), (1, 1, 1))]


@pytest.mark.parametrize(("window", "strides"), WINDOWS)
@pytest.mark.parametrize("ends", [None, 0.4, "each"], ids=["zero", "number", "each"])
def test_occlusion(window: Any, strides: Any, ends: Any) -> None:
    model, x = spelt()[0], pictures()
    ends = BACKGROUND[:2] if ends == "each" else ends
    there = torch.zeros_like(x) if ends is None else torch.as_tensor(ends, dtype=x.dtype).expand(x.shape)
    expected = by_hand(lambda leaf: model(leaf)[:, 1], x, there, windows(tuple(x.shape[1:]), window, strides))
    found = Occlusion(model).attribute(x, window, strides, ends, 1)
    close(found, expected)
    close(found, captum.attr.Occlusion(model).attribute(x, window, strides, ends, 1).double(), 1e-5)


def test_strides_are_one_unless_said_and_one_for_all() -> None:
    model, x = spelt()[0], pictures()
    method = Occlusion(model)
    plain = method.attribute(x, (2, 4, 5), target=1)
    assert torch.equal(plain, method.attribute(x, (2, 4, 5), 1, target=1))
    assert torch.equal(plain, method.attribute(x, (2, 4, 5), (1, 1, 1), target=1))
    assert not torch.equal(plain, method.attribute(x, (2, 4, 5), 2, target=1))


@pytest.mark.parametrize("ends", [None, 0.4, "each"], ids=["zero", "number", "each"])
@pytest.mark.parametrize("mask", ["entries", "quadrants", "each"])
def test_ablation(ends: Any, mask: str) -> None:
    model, x = spelt()[0], pictures()
    ends = BACKGROUND[:2] if ends == "each" else ends
    there = torch.zeros_like(x) if ends is None else torch.as_tensor(ends, dtype=x.dtype).expand(x.shape)
    labels = {
        "entries": torch.arange(72).reshape(1, 2, 6, 6),
        "quadrants": 7 * QUADRANTS - 3,  # any integers do
        "each": torch.cat([QUADRANTS, (torch.arange(72) % 5).reshape(1, 2, 6, 6)]),
    }[mask]
    expected = by_hand(lambda leaf: model(leaf)[:, 2], x, there, [labels == k for k in labels.unique()])
    found = FeatureAblation(model).attribute(x, ends, 2, feature_mask=None if mask == "entries" else labels)
    close(found, expected)
    if mask != "each":
        theirs = captum.attr.FeatureAblation(model).attribute(
            x, ends, 2, feature_mask=None if mask == "entries" else QUADRANTS
        )
        close(found, theirs.double(), 1e-5)


def test_a_feature_across_inputs() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(1)

    a, b = vectors(2, 3), vectors(2, 3, seed=4)
    labels = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 2]])
    first, second = FeatureAblation(Pair()).attribute((a, b), feature_mask=labels)
    product_ = a * b
    shares = [product_[:, :2].sum(1), product_[:, 1:].sum(1), product_[:, 2]]
    close(first, torch.stack([shares[0], shares[1], shares[1]], 1))
    close(second, torch.stack([shares[0], shares[0], shares[2]], 1))
    # Windows cover one input at a time.
    found = Occlusion(Pair()).attribute((a, b), ((1,), (3,)))
    close(found[0], product_)
    close(found[1], product_.sum(1, keepdim=True).expand(-1, 3))


def test_what_has_no_derivative() -> None:
    """Token ids, and a model of steps."""
    embedding = settle(nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(12, 2)))
    ids = torch.tensor([[1, 2, 3], [3, 4, 5]])
    found = FeatureAblation(embedding).attribute(ids, 0, 1)
    assert found.dtype == torch.float64
    for position in range(3):
        without = ids.clone()
        without[:, position] = 0
        close(found[:, position], (embedding(ids) - embedding(without))[:, 1].detach())
    windowed = Occlusion(embedding).attribute(ids, (2,), target=1)
    close(windowed[:, 1:2], (windowed[:, :1] + windowed[:, 2:]) / 2)

    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).to(x.dtype).sum(1)

    x = vectors()
    close(FeatureAblation(Steps()).attribute(x, -1.0), (x > 0).to(x.dtype))


@pytest.mark.parametrize(
    ("window", "strides", "words"),
    [
        ((2, 7, 3), 1, ("window (2, 7, 3) is larger than the input",)),
        ((2, 3), 1, ("sliding_window_shapes", "each of the 3 dimensions", "(2, 3)")),
        ((2, 0, 3), 1, ("sliding_window_shapes", "at least 1")),
        (3, 1, ("sliding_window_shapes",)),
        ((2, 3, 3), 0, ("strides", "at least 1")),
        ((2, 3, 3), (1, 4, 1), ("Strides (1, 4, 1) are larger than the window", "left out")),
    ],
)
def test_windows_that_do_not_fit(window: Any, strides: Any, words: tuple[str, ...]) -> None:
    model = spelt()[0]
    with refuses(model, InputError, ValueError, *words):
        Occlusion(model).attribute(pictures(), window, strides, target=1)
    with refuses(model, InputError, ValueError, "sliding_window_shapes", "one entry for every input"):
        Occlusion(model).attribute((pictures(), pictures()), ((2, 3, 3),), target=1)


def test_masks_and_baselines_that_do_not_fit() -> None:
    model, x = mlp(), vectors(3)
    for wrong in (torch.zeros(1, 5).long(), torch.zeros(4).long(), torch.zeros(2, 4).long()):
        with refuses(model, InputError, ValueError, "feature_mask has shape", str(tuple(wrong.shape)), "(1, 4)"):
            FeatureAblation(model).attribute(x, None, 1, feature_mask=wrong)
    for kind in (torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool), [0, 1, 2, 3]):
        with refuses(model, InputTypeError, TypeError, "feature_mask must be a tensor of integers"):
            FeatureAblation(model).attribute(x, None, 1, feature_mask=kind)
    for method, options in ((FeatureAblation, {}), (Occlusion, {"sliding_window_shapes": (2,)})):
        with refuses(model, InputError, ValueError, "The baseline has shape (3, 5)"):
            method(model).attribute(x, baselines=torch.zeros(3, 5), target=1, **options)
    with refuses(model, InputTypeError, TypeError, "dtype torch.float32", "integers"):
        FeatureAblation(model).attribute(torch.ones(3, 4).long(), torch.zeros(1, 4), 1)
