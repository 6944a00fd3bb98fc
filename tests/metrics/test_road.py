"""Noisy linear imputation against a linear system solved densely; ROAD against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop.errors import InputError, ModelError, NumericalError, RelpropError, TargetIndexError, TargetTypeError
from relprop.metrics import noisy_linear_imputation, perturbation_curve, road
from tests.metrics.small import TARGET, gradient_x_input, images, network


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


class Outputs(nn.Module):
    """What a function makes of the outputs of the network."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made, self.inner = made, network()

    def forward(self, x: Tensor) -> Any:
        return self.made(self.inner(x))


@pytest.mark.parametrize(
    ("made", "target", "error", "message"),
    [
        (lambda outputs: outputs, 3, TargetIndexError, "target 3 is out of range for 3 outputs"),
        (lambda outputs: outputs, [0, -4, 1], TargetIndexError, "target -4 is out of range for 3 outputs"),
        (lambda outputs: outputs, [0.5, 1.0, 2.0], TargetTypeError, "expected integers"),
        (lambda outputs: outputs * torch.nan, TARGET, NumericalError, "NaN or infinite in"),
        (lambda outputs: (outputs,), TARGET, ModelError, "the model returns a tuple.*output="),
        (lambda outputs: {"logits": outputs}, TARGET, ModelError, "the model returns a dict.*output="),
        (lambda outputs: outputs[:, :, None], TARGET, ModelError, r"returns \(\d+, 3, 1\)"),
    ],
    ids=["too large", "too small", "no integers", "NaN", "a tuple", "a mapping", "a dimension too many"],
)
def test_road_treats_targets_and_outputs_as_the_other_metrics_do(
    made: Any, target: Any, error: type[RelpropError], message: str
) -> None:
    for metric in (road, perturbation_curve):
        with pytest.raises(error, match=message):
            metric(torch.rand_like(images()), Outputs(made), images(), target)


def test_road_sees_nan_beside_the_target_and_outputs_without_a_rival() -> None:
    def broken(outputs: Tensor) -> Tensor:
        return torch.cat([outputs[:, :2], outputs[:, 2:] * torch.nan], dim=1)

    with pytest.raises(NumericalError, match="NaN or infinite in 3 of 3"):
        road(images(), Outputs(broken), images(), 0)
    with pytest.raises(ModelError, match=r"\(3, 1\).*two or more"):
        road(images(), Outputs(lambda outputs: outputs[:, :1]), images(), 0)
    with pytest.raises(InputError, match="expected a target"):
        road(images(), network(), images(), None)  # type: ignore[arg-type]
    masked = Outputs(lambda outputs: outputs.index_fill(1, torch.tensor([2]), -torch.inf))
    assert set(road(images(), masked, images(), 0).morf.unique().tolist()) <= {0.0, 1.0}


def test_targets_from_the_end() -> None:
    found, same = (road(images(), network(), images(), target) for target in (-1, 2))
    assert torch.equal(found.morf, same.morf)
    assert torch.equal(found.lerf, same.lerf)


def test_another_score_in_the_place_of_accuracy() -> None:
    x, relevance = images(), images().flip(0)

    def first(outputs: Any, target: Any) -> Tensor:
        return outputs[0].gather(1, torch.as_tensor(target)[:, None])[:, 0]

    options = {"fractions": (0.25, 0.75), "noise": 0.0}
    made = Outputs(lambda outputs: (outputs, None))
    found = road(relevance, made, x, TARGET, output=first, internal_batch_size=2, **options)
    again = road(relevance, network(), x, TARGET, output="logit", **options)
    share = road(relevance, network(), x, TARGET, output="probability", **options)
    totals = relevance.sum(dim=1).flatten(1).numpy()
    for p, count in enumerate((6, 18)):
        for name, sign in (("morf", -1), ("lerf", 1)):
            for n in range(3):
                gone = np.zeros(24, dtype=bool)
                gone[np.argsort(sign * totals[n])[:count]] = True
                image = np.stack([solved(channel.numpy(), gone.reshape(4, 6)) for channel in x[n]])
                outputs = network()(torch.from_numpy(image)[None])[0].detach().numpy()
                expected = outputs[TARGET[n]]
                np.testing.assert_allclose(getattr(found, name)[n, p], expected, rtol=1e-7)
                np.testing.assert_allclose(getattr(again, name)[n, p], expected, rtol=1e-7)
                probability = np.exp(expected) / np.exp(outputs).sum()
                np.testing.assert_allclose(getattr(share, name)[n, p], probability, rtol=1e-7)
    assert "accuracy" not in str(again)
    assert "accuracy" in str(road(relevance, network(), x, TARGET))
    with pytest.raises(InputError, match="'accuracy', 'logit', 'probability'"):
        road(relevance, network(), x, TARGET, output="top 5")  # type: ignore[arg-type]
