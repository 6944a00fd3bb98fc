"""Samples of different numbers of segments: every curve is averaged over its own steps, as if it were alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relprop.metrics import deletion, insertion, irof, perturbation_curve, selectivity
from tests.metrics.small import TARGET, gradient_x_input, images, network, score

COUNTS = (2, 24, 5)


def uneven() -> Tensor:
    """Segments of 4 x 6 pixels: 2 of the first image, 24 of the second, 5 of the third."""
    return torch.stack([torch.arange(24) % count for count in COUNTS]).view(3, 4, 6)


def own_curve(n: int, order: str, *, share: float = 1.0, probability: bool = False) -> np.ndarray:
    """The scores of one image, one segment after the other, in NumPy."""
    model, image = network(), images()[n].numpy()
    labels = uneven()[n].numpy()
    relevance = gradient_x_input(network(), images(), TARGET)[n].numpy().sum(axis=0)
    totals = np.array([relevance[labels == k].sum() for k in range(COUNTS[n])])
    first = np.argsort(-totals if order == "morf" else totals)[: max(1, round(share * COUNTS[n]))]
    curve = [score(model, image, TARGET[n], probability)]
    for step in range(1, len(first) + 1):
        gone = np.isin(labels, first[:step])
        curve.append(score(model, np.where(gone, 0, image), TARGET[n], probability))
    return np.array(curve)


def own_aopc(curve: np.ndarray) -> float:
    return sum(curve[0] - each for each in curve) / len(curve)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_the_mean_is_over_the_steps_of_each_sample(order: Any, share: float) -> None:
    found = perturbation_curve(
        gradient_x_input, network(), images(), TARGET, features=uneven(), order=order, fraction=share
    )
    curves = [own_curve(n, order, share=share) for n in range(3)]
    np.testing.assert_allclose(found.values, [own_aopc(curve) for curve in curves], rtol=1e-10)
    np.testing.assert_allclose(found.aopc, found.values, rtol=0)
    for n, curve in enumerate(curves):
        np.testing.assert_allclose(found.scores[n, : len(curve)], curve, rtol=1e-10)
        np.testing.assert_allclose(found.scores[n, len(curve) :], curve[-1], rtol=1e-10)
    assert found.lengths.tolist() == [len(curve) - 1 for curve in curves]


def test_the_areas_between_orders_too() -> None:
    found = selectivity(gradient_x_input, network(), images(), TARGET, features=uneven())
    areas = [own_aopc(own_curve(n, "morf")) - own_aopc(own_curve(n, "lerf")) for n in range(3)]
    np.testing.assert_allclose(found.values, areas, rtol=1e-10)
    random = [own_aopc(found.random.scores[n, : count + 1].numpy()) for n, count in enumerate(COUNTS)]
    over = [own_aopc(own_curve(n, "morf")) - random[n] for n in range(3)]
    np.testing.assert_allclose(found.over_random, over, rtol=1e-9, atol=1e-15)
    assert found.to_dict()["area"] == found.values.tolist()


def test_the_aopc_of_curves_that_report_another_number() -> None:
    model, x = network(), images()
    taken = deletion(gradient_x_input, model, x, TARGET, features=uneven())
    curves = [own_curve(n, "morf", probability=True) for n in range(3)]
    np.testing.assert_allclose(taken.aopc, [own_aopc(curve) for curve in curves], rtol=1e-10)
    np.testing.assert_allclose(taken.values, [((c[1:] + c[:-1]) / 2).mean() for c in curves], rtol=1e-10)

    put = insertion(gradient_x_input, model, x, TARGET, features=uneven(), baseline="zero", output="logit")
    backwards = [own_curve(n, "lerf")[::-1] for n in range(3)]
    np.testing.assert_allclose(put.aopc, [own_aopc(curve) for curve in backwards], rtol=1e-10)

    relative = irof(gradient_x_input, model, x, TARGET, uneven(), baseline="zero")
    own = [own_aopc(relative.scores[n, : count + 1].numpy()) for n, count in enumerate(COUNTS)]
    np.testing.assert_allclose(relative.aopc, own, rtol=1e-10)


def test_a_sample_has_the_same_number_alone_and_in_a_batch() -> None:
    together = selectivity(gradient_x_input, network(), images(), TARGET, features=uneven())
    for n in range(3):
        one = selectivity(gradient_x_input, network(), images()[n : n + 1], TARGET[n], features=uneven()[n : n + 1])
        np.testing.assert_allclose(together.values[n], one.values[0], rtol=1e-10)
        np.testing.assert_allclose(together.morf.values[n], one.morf.values[0], rtol=1e-10)
