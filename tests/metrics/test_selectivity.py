"""Perturbation curves against loops over single images in NumPy; what random and uniform relevance score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop.metrics import (
    baseline_of,
    blurred,
    deletion,
    insertion,
    irof,
    neighbours_mean,
    perturbation_curve,
    pixel_flipping,
    region_perturbation,
    selectivity,
)
from tests.metrics.small import TARGET, additive, gradient_x_input, images, network, score


def relevance_of(model: nn.Module, x: Tensor) -> np.ndarray:
    return gradient_x_input(model, x, TARGET).numpy()


@pytest.mark.parametrize("probability", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_pixels_go_one_by_one_in_the_order_of_relevance(order: Any, absolute: bool, probability: bool) -> None:
    model, x = network(), images()
    found = perturbation_curve(
        gradient_x_input,
        model,
        x,
        TARGET,
        order=order,
        absolute=absolute,
        baseline=0.3,
        output="probability" if probability else "logit",
        internal_batch_size=7,
    )
    relevance = relevance_of(model, x)
    expected = np.empty((3, 25))
    for n in range(3):
        pixels = (np.abs(relevance[n]) if absolute else relevance[n]).sum(axis=0)
        ranked = sorted(np.ndindex(4, 6), key=lambda at: -pixels[at] if order == "morf" else pixels[at])
        image = x[n].numpy().copy()
        expected[n, 0] = score(model, image, TARGET[n], probability)
        for k, (row, column) in enumerate(ranked, start=1):
            image[:, row, column] = 0.3
            expected[n, k] = score(model, image, TARGET[n], probability)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.aopc, np.mean(expected[:, :1] - expected, axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.values, found.aopc)
    np.testing.assert_allclose(found.auc, np.trapezoid(expected, np.linspace(0, 1, 25), axis=1), rtol=1e-10)
    assert found.mean == pytest.approx(float(found.values.mean()))
    assert found.to_dict()["scores"] == found.scores.tolist()
    assert f"AOPC ({order})" in str(found)


def test_regions_are_those_of_a_grid_cut_off_at_the_border() -> None:
    model, x = network(), images()
    found = region_perturbation(gradient_x_input, model, x, TARGET, region=(3, 4), baseline="zero")
    relevance = relevance_of(model, x)
    for n in range(3):
        boxes = [(slice(r, r + 3), slice(c, c + 4)) for r in (0, 3) for c in (0, 4)]
        boxes.sort(key=lambda box: -relevance[n][:, box[0], box[1]].sum())
        image, expected = x[n].numpy().copy(), [score(model, x[n].numpy(), TARGET[n])]
        for box in boxes:
            image[:, box[0], box[1]] = 0
            expected.append(score(model, image, TARGET[n]))
        np.testing.assert_allclose(found.scores[n], expected, rtol=1e-10)


def test_elements_segments_and_steps() -> None:
    model, x = network(), images()
    elements = perturbation_curve(gradient_x_input, model, x, TARGET, features="elements", steps=5, fraction=0.5)
    np.testing.assert_allclose(elements.fractions[0] * 48, [0, 5, 10, 14, 19, 24])  # round(k * 24 / 5), 9.6 -> 10
    relevance = relevance_of(model, x)
    for n in range(3):
        order = np.argsort(-relevance[n].ravel())
        for k, count in enumerate([0, 5, 10, 14, 19, 24]):
            image = x[n].numpy().copy().ravel()
            image[order[:count]] = 0
            expected = score(model, image.reshape(2, 4, 6), TARGET[n])
            assert float(elements.scores[n, k]) == pytest.approx(expected, rel=1e-10)
    # Segments that are the regions of a grid, under other numbers.
    grid = torch.tensor([[30, 7], [-2, 11]]).repeat_interleave(2, 0).repeat_interleave(3, 1)
    by_number = perturbation_curve(gradient_x_input, model, x, TARGET, features=grid)
    by_size = perturbation_curve(gradient_x_input, model, x, TARGET, features=(2, 3))
    torch.testing.assert_close(by_number.scores, by_size.scores)


def test_tokens_of_a_sequence_go_with_all_their_features() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 2)).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    tokens = torch.arange(5)[:, None].expand(5, 4)
    found = perturbation_curve(gradient_x_input, model, x, 1, features=tokens)
    relevance = gradient_x_input(model, x, 1)
    for n in range(2):
        changed = x[n].clone()
        for k, token in enumerate(relevance[n].sum(dim=1).argsort(descending=True), start=1):
            changed[token] = 0
            assert float(found.scores[n, k]) == pytest.approx(score(model, changed.numpy(), 1), rel=1e-10, abs=1e-12)


def test_insertion_is_deletion_backwards() -> None:
    model, x = network(), images()
    inserted = insertion(gradient_x_input, model, x, TARGET, baseline="mean")
    taken = deletion(gradient_x_input, model, x, TARGET, baseline="mean", order="lerf")
    # Putting in the most relevant first passes the inputs that taking out the least relevant first passes.
    torch.testing.assert_close(inserted.scores, taken.scores.flip(1))
    torch.testing.assert_close(inserted.values, taken.values)
    assert inserted.measure == "AUC of insertion" and taken.measure == "AUC of deletion"


def test_a_recomputed_order_is_that_of_what_is_left() -> None:
    model, x = network(), images()
    found = perturbation_curve(gradient_x_input, model, x, TARGET, recompute=True, steps=6, features=(2, 2))
    for n in range(3):
        image, left = x[n].clone(), [(r, c) for r in (0, 2) for c in (0, 2, 4)]
        for k in range(6):
            assert float(found.scores[n, k]) == pytest.approx(score(model, image.numpy(), TARGET[n]), rel=1e-10)
            relevance = gradient_x_input(model, image[None], TARGET[n])[0].sum(dim=0)
            r, c = max(left, key=lambda at: float(relevance[at[0] : at[0] + 2, at[1] : at[1] + 2].sum()))
            left.remove((r, c))
            image[:, r : r + 2, c : c + 2] = 0
    once = perturbation_curve(gradient_x_input, model, x, TARGET, steps=6, features=(2, 2))
    assert not torch.allclose(found.scores, once.scores)


def test_a_recomputed_insertion_orders_what_is_missing_by_what_is_there() -> None:
    model, x = network(), images()
    options: dict[str, Any] = {"features": (2, 2), "baseline": 0.4, "output": "logit"}
    found = insertion(gradient_x_input, model, x, TARGET, recompute=True, **options)
    for n in range(3):
        image, left = torch.full_like(x[n], 0.4), [(r, c) for r in (0, 2) for c in (0, 2, 4)]
        for k in range(7):
            assert float(found.scores[n, k]) == pytest.approx(score(model, image.numpy(), TARGET[n]), rel=1e-10)
            if left:
                relevance = gradient_x_input(model, image[None], TARGET[n])[0].sum(dim=0)
                r, c = max(left, key=lambda at: float(relevance[at[0] : at[0] + 2, at[1] : at[1] + 2].sum()))
                left.remove((r, c))
                image[:, r : r + 2, c : c + 2] = x[n, :, r : r + 2, c : c + 2]
    once = insertion(gradient_x_input, model, x, TARGET, **options)
    assert not torch.allclose(found.scores, once.scores)


def test_recomputation_changes_nothing_for_a_linear_model() -> None:
    model, x = nn.Linear(7, 3).double(), torch.randn(4, 7, dtype=torch.float64)
    for order in ("morf", "lerf"):
        once, again = (
            perturbation_curve(gradient_x_input, model, x, 2, order=order, recompute=each, steps=4)
            for each in (False, True)
        )
        torch.testing.assert_close(once.scores, again.scores)


def test_a_callable_score_gets_the_targets_of_its_inputs() -> None:
    model, x = network(), images()

    def margin(outputs: Tensor, target: Any) -> Tensor:
        mine = outputs.gather(1, target[:, None])[:, 0]
        return mine - outputs.scatter(1, target[:, None], -torch.inf).amax(dim=1)

    found = perturbation_curve(gradient_x_input, model, x, TARGET, output=margin, internal_batch_size=4)
    outputs = model(x).detach().numpy()
    expected = [outputs[n, t] - max(np.delete(outputs[n], t)) for n, t in enumerate(TARGET)]
    np.testing.assert_allclose(found.scores[:, 0], expected, rtol=1e-10)


def test_batches_and_seeds() -> None:
    model, x = network(), images()
    uniform = torch.ones_like(x)
    whole = selectivity(uniform, model, x, TARGET, baseline="noise", internal_batch_size=None)
    parts = selectivity(uniform, model, x, TARGET, baseline="noise", internal_batch_size=5)
    for order in ("morf", "lerf", "random"):
        torch.testing.assert_close(getattr(whole, order).scores, getattr(parts, order).scores)
    other = selectivity(uniform, model, x, TARGET, baseline="noise", seed=1)
    assert not torch.allclose(whole.morf.scores, other.morf.scores)
    # Ties are broken otherwise than random orders are drawn, or uniform relevance would tie by construction.
    assert not torch.allclose(whole.morf.scores, whole.random.scores)


def test_the_area_between_the_orders() -> None:
    model, x = network(), images()
    found = selectivity(gradient_x_input, model, x, TARGET)
    np.testing.assert_allclose(found.values, (found.lerf.scores - found.morf.scores).mean(dim=1), rtol=1e-10)
    np.testing.assert_allclose(found.over_random, (found.random.scores - found.morf.scores).mean(dim=1), rtol=1e-10)
    assert found.mean > 0
    assert "area lerf - morf" in str(found)
    assert found.to_dict()["area"] == found.values.tolist()


def test_random_relevance_has_no_area_and_uniform_ties_with_random() -> None:
    model, x = network(), torch.randn(400, 2, 4, 6, dtype=torch.float64)
    noise = selectivity(torch.randn_like(x), model, x, 0)
    assert abs(noise.mean) < 3 * noise.error
    uniform = selectivity(torch.ones_like(x), model, x, 0)
    assert uniform.mean == 0  # its orders are one and the same
    gap = uniform.over_random
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / 20
    assert float(gap.std()) > 0
    true = selectivity(gradient_x_input, model, x, 0)
    assert true.mean > 20 * true.error


def test_ties_are_not_broken_by_the_raster_order() -> None:
    # Two pixels of the middle matter, relevance is 0: from the top, one would lose them after 40 %.
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 1, bias=False)).double()
    model[1].weight.data.zero_()[0, [44, 45]] = 1
    x = torch.ones(500, 1, 10, 10, dtype=torch.float64)
    found = perturbation_curve(torch.zeros_like(x), model, x)
    np.testing.assert_allclose(found.scores.mean(dim=0), np.linspace(2, 0, 101), atol=0.12)


def test_baselines() -> None:
    x = images()
    n, values = x.numpy(), lambda name, **options: baseline_of(x, name, **options).numpy()
    np.testing.assert_array_equal(values("zero"), np.zeros_like(n))
    np.testing.assert_allclose(values("mean"), np.broadcast_to(n.mean(axis=(2, 3), keepdims=True), n.shape))
    low, high = n.min(axis=(1, 2, 3), keepdims=True), n.max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(values("invert"), low + high - n)
    noise = values("noise")
    assert (noise >= low).all() and (noise <= high).all() and noise.std() > 0.5
    np.testing.assert_array_equal(noise, values("noise"))
    assert not np.array_equal(noise, values("noise", seed=1))
    np.testing.assert_array_equal(values(1.5), np.full_like(n, 1.5))
    channel = torch.tensor([1.0, 2.0])[:, None, None]
    np.testing.assert_array_equal(values(channel)[1, 1], np.full((4, 6), 2.0))
    np.testing.assert_array_equal(values(lambda x: -x), -n)
    np.testing.assert_allclose(baseline_of(torch.tensor([[1.0, 3.0]]), "mean"), [[2.0, 2.0]])


def test_neighbours_are_the_ring_around_a_region() -> None:
    x = images(1)
    for height, width in ((1, 1), (2, 3), (3, 4)):
        found = neighbours_mean(x, (height, width))[0].numpy()
        for r in range(4):
            for c in range(6):
                top, left = r // height * height, c // width * width
                ring = [
                    x[0, :, y, z].numpy()
                    for y in range(max(top - 1, 0), min(top + height + 1, 4))
                    for z in range(max(left - 1, 0), min(left + width + 1, 6))
                    if not (top <= y < top + height and left <= z < left + width)
                ]
                np.testing.assert_allclose(found[:, r, c], np.mean(ring, axis=0), rtol=1e-10)


def test_blur_is_a_gaussian_that_continues_at_the_border() -> None:
    x, sigma = images(1), 0.8
    found = blurred(x, sigma)[0].numpy()
    radius = 3
    for r in range(4):
        for c in range(6):
            total = weight = 0.0
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    each = np.exp(-(dy**2 + dx**2) / (2 * sigma**2))
                    at = x[0, :, min(max(r + dy, 0), 3), min(max(c + dx, 0), 5)].numpy()
                    total, weight = total + each * at, weight + each
            np.testing.assert_allclose(found[:, r, c], total / weight, rtol=1e-10)


def test_pixel_flipping_inverts() -> None:
    model, x = network(), images().sign()
    found = pixel_flipping(gradient_x_input, model, x, TARGET)
    for n in range(3):
        assert float(found.scores[n, -1]) == pytest.approx(score(model, -x[n].numpy(), TARGET[n]), rel=1e-10)


def test_irof_is_relative_and_divided_by_the_number_of_segments() -> None:
    model, x = network(), images()
    labels = torch.zeros(3, 4, 6, dtype=torch.long)
    labels[0, :, 3:], labels[1, 2:], labels[2, :2, :2], labels[2, 3:] = 1, 5, 1, 2
    found = irof(gradient_x_input, model, x, TARGET, labels)
    relevance = relevance_of(model, x)
    for n in range(3):
        names = np.unique(labels[n])
        mean = {name: relevance[n][:, labels[n].numpy() == name].mean() for name in names}
        image, p = x[n].numpy().copy(), [score(model, x[n].numpy(), TARGET[n], True)]
        for name in sorted(names, key=lambda name: -mean[name]):
            at = labels[n].numpy() == name
            image[:, at] = x[n].numpy().mean(axis=(1, 2))[:, None]
            p.append(score(model, image, TARGET[n], True))
        relative = np.array(p) / p[0]
        assert float(found.values[n]) == pytest.approx(1 - np.trapezoid(relative) / len(names), rel=1e-10)
    same = irof(gradient_x_input, model, x, TARGET, lambda x: labels)
    torch.testing.assert_close(found.values, same.values)


def test_the_additive_model_loses_what_shapley_says() -> None:
    model, shapley = additive()
    x = torch.rand(3, 5, dtype=torch.float64)
    found = perturbation_curve(shapley, model, x, baseline=0.5)
    ordered = shapley(model, x, None).sort(dim=1, descending=True).values
    np.testing.assert_allclose(found.scores[:, :1] - found.scores[:, 1:], ordered.cumsum(dim=1), rtol=1e-9)


def test_irof_orders_by_the_mean_and_not_by_the_sum() -> None:
    model, x = nn.Linear(4, 2).double(), torch.ones(1, 4, dtype=torch.float64)
    relevance = torch.tensor([[1.0, 1.0, 1.0, 2.0]]).double()  # of three together 1 each, of one alone 2
    found = irof(relevance, model, x, 1, torch.tensor([0, 0, 0, 1]), baseline="zero")
    first = perturbation_curve(relevance, model, x, 1, output="probability", steps=4)
    torch.testing.assert_close(found.scores[0, 1], first.scores[0, 1] / first.scores[0, 0])
