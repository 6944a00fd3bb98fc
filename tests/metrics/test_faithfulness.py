"""Faithfulness, monotonicity and infidelity against NumPy and SciPy, and against Captum where definitions agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import infidelity_perturb_func_decorator
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from relprop.metrics import (
    faithfulness_correlation,
    faithfulness_estimate,
    infidelity,
    monotonicity_arya,
    monotonicity_nguyen,
    sensitivity_n,
)
from tests.metrics.small import TARGET, additive, gradient_x_input, images, network, score


class Recorder(nn.Module):
    """Passes inputs to a model and keeps those it saw."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.model(x)


@pytest.mark.parametrize("size", [1, 5])
def test_faithfulness_correlation_is_pearson_over_the_sets_that_were_removed(size: int) -> None:
    model, x = Recorder(network()), images()
    relevance = gradient_x_input(model.model, x, TARGET)
    found = faithfulness_correlation(
        relevance, model, x, TARGET, subset_size=size, samples=20, baseline=-0.7, internal_batch_size=7
    )
    seen = torch.cat(model.seen)
    assert len(seen) == 3 + 60
    for n in range(3):
        removed = [each for each in seen[3:] if bool(((each == x[n]) | (each == -0.7)).all())]
        assert len(removed) == 20
        gone = [(each == -0.7)[0].numpy() for each in removed]
        assert {int(each.sum()) for each in gone} == {size}
        assert len({each.tobytes() for each in gone}) > 5
        claimed = [relevance[n].numpy()[:, each].sum() for each in gone]
        lost = [
            score(model.model, x[n].numpy(), TARGET[n]) - score(model.model, each.numpy(), TARGET[n])
            for each in removed
        ]
        assert float(found[n]) == pytest.approx(pearsonr(claimed, lost).statistic, rel=1e-9)


def test_exact_shapley_values_of_an_additive_model_are_faithful() -> None:
    model, shapley = additive()
    x = torch.rand(6, 9, dtype=torch.float64)
    torch.testing.assert_close(
        faithfulness_correlation(shapley, model, x, baseline=0.5), torch.ones(6, dtype=torch.float64)
    )
    other = faithfulness_correlation(shapley, model, x, baseline="zero")
    assert float(other.amax()) < 0.999  # another baseline asks another question
    found = sensitivity_n(shapley, model, x, baseline=0.5, samples=20)
    torch.testing.assert_close(found.correlations, torch.ones(6, len(found.sizes), dtype=torch.float64))
    estimate = faithfulness_estimate(shapley, model, x, baseline=0.5, output="logit")
    torch.testing.assert_close(estimate, torch.ones(6, dtype=torch.float64))
    noise = torch.randn(400, 9, dtype=torch.float64)
    chance = faithfulness_correlation(noise, model, torch.rand(400, 9, dtype=torch.float64), baseline=0.5)
    assert abs(float(chance.mean())) < 3 * float(chance.std()) / 20


def test_sensitivity_n_is_the_correlation_of_each_size() -> None:
    model, x = network(), images()
    found = sensitivity_n(gradient_x_input, model, x, TARGET, sizes=(2, 19), samples=30)
    assert found.correlations.shape == (3, 2)
    first = faithfulness_correlation(gradient_x_input, model, x, TARGET, subset_size=2, samples=30)
    torch.testing.assert_close(found.correlations[:, 0], first)
    torch.testing.assert_close(found.values, found.correlations.mean(dim=1))
    assert found.mean == pytest.approx(float(found.values.mean()))
    assert str(found).splitlines()[2].split()[0] == "2"
    assert found.to_dict()["sizes"] == [2, 19]
    assert sensitivity_n(gradient_x_input, model, x, TARGET, samples=2).sizes == (1, 2, 4, 5, 8, 12, 19)


def test_faithfulness_estimate_is_pearson_over_single_features() -> None:
    model, x = network(), images()
    found = faithfulness_estimate(gradient_x_input, model, x, TARGET, baseline="mean", internal_batch_size=11)
    relevance = gradient_x_input(model, x, TARGET).numpy()
    for n in range(3):
        lost = np.empty((4, 6))
        for r, c in np.ndindex(4, 6):
            image = x[n].numpy().copy()
            image[:, r, c] = x[n].numpy().mean(axis=(1, 2))
            lost[r, c] = score(model, x[n].numpy(), TARGET[n], True) - score(model, image, TARGET[n], True)
        expected = pearsonr(relevance[n].sum(axis=0).ravel(), lost.ravel()).statistic
        assert float(found[n]) == pytest.approx(expected, rel=1e-9)


def test_uniform_relevance_has_no_correlation() -> None:
    model, x = network(), images()
    uniform = torch.full_like(x, 0.1)
    assert faithfulness_correlation(uniform, model, x, TARGET).tolist() == [0, 0, 0]
    assert faithfulness_estimate(uniform, model, x, TARGET).tolist() == [0, 0, 0]
    assert monotonicity_nguyen(uniform, model, x, TARGET).tolist() == [0, 0, 0]


def test_monotonicity_by_arya() -> None:
    model, x = network(), images()
    for absolute in (False, True):
        found = monotonicity_arya(gradient_x_input, model, x, TARGET, baseline=0.1, absolute=absolute)
        relevance = gradient_x_input(model, x, TARGET).numpy()
        for n in range(3):
            pixels = (np.abs(relevance[n]) if absolute else relevance[n]).sum(axis=0)
            image = np.full((2, 4, 6), 0.1)
            curve = [score(model, image, TARGET[n], True)]
            for r, c in sorted(np.ndindex(4, 6), key=lambda at: pixels[at]):
                image[:, r, c] = x[n, :, r, c].numpy()
                curve.append(score(model, image, TARGET[n], True))
            np.testing.assert_allclose(found.scores[n], curve, rtol=1e-10)
            assert float(found.values[n]) == float(np.all(np.diff(curve) >= 0))
            assert float(found.shares[n]) == pytest.approx(np.mean(np.diff(curve) >= 0))
    positive = nn.Linear(5, 1).double()
    positive.weight.data.abs_()
    rises = monotonicity_arya(gradient_x_input, positive, torch.rand(2, 5, dtype=torch.float64), 0, output="logit")
    assert rises.values.tolist() == [1, 1] and rises.mean == 1
    assert "monotone" in str(rises) and rises.to_dict()["shares"] == [1, 1]


def test_monotonicity_by_nguyen() -> None:
    model, x = Recorder(network()), images()
    relevance = gradient_x_input(model.model, x, TARGET)
    found = monotonicity_nguyen(relevance, model, x, TARGET, samples=3, output="logit", internal_batch_size=None)
    whole, *draws = model.seen
    assert torch.equal(whole, x) and len(draws) == 3
    for n in range(3):
        effect = np.zeros(24)
        for draw in draws:
            for pixel, image in enumerate(draw.view(3, 24, 2, 4, 6)[n]):
                changed = (image != x[n]).any(dim=0).flatten()
                assert changed.nonzero().tolist() == [[pixel]]
                assert x[n].amin() <= image.amin() and image.amax() <= x[n].amax()
                after = score(model.model, image.numpy(), TARGET[n])
                effect[pixel] += (score(model.model, x[n].numpy(), TARGET[n]) - after) ** 2 / 3
        expected = spearmanr(np.abs(relevance[n].sum(dim=0).numpy().ravel()), effect).statistic
        assert float(found[n]) == pytest.approx(expected, rel=1e-9)


def perturbations(count: int, x: Tensor) -> Tensor:
    return torch.randn(count, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rescale", [False, True])
def test_infidelity_of_coefficients_is_that_of_captum(rescale: bool) -> None:
    model, x = network(), images()
    drawn = perturbations(8, x)
    gradient = gradient_x_input(model, x, TARGET) / x
    queue = iter(drawn)
    found = infidelity(
        gradient,
        model,
        x,
        TARGET,
        kind="coefficient",
        perturbation=lambda x, source: next(queue),
        samples=8,
        rescale=rescale,
    )
    # Captum repeats each sample: [sample 0, sample 0, ..., sample 1, ...].
    stacked = drawn.transpose(0, 1).reshape(-1, *x.shape[1:])
    theirs = captum_infidelity(
        model,
        lambda inputs: (stacked, inputs - stacked),
        x,
        gradient,
        target=torch.tensor(TARGET),
        n_perturb_samples=8,
        normalize=rescale,
    )
    torch.testing.assert_close(found, theirs.double())


def test_infidelity_of_relevance_is_that_of_captum_and_numpy() -> None:
    model, x = network(), images()
    drawn, relevance = perturbations(8, x), gradient_x_input(model, x, TARGET)
    queue = iter(drawn)
    found = infidelity(relevance, model, x, TARGET, perturbation=lambda x, source: next(queue), samples=8, baseline=0.2)
    stacked = drawn.transpose(0, 1).reshape(-1, *x.shape[1:])

    @infidelity_perturb_func_decorator(True)
    def moved(inputs: Tensor, baselines: Any = None) -> Tensor:
        return inputs - stacked

    theirs = captum_infidelity(
        model, moved, x, relevance, baselines=0.2, target=torch.tensor(TARGET), n_perturb_samples=8
    )
    torch.testing.assert_close(found, theirs.double())
    for n in range(3):
        errors = []
        for each in drawn[:, n].numpy():
            says = (relevance[n].numpy() * each / (x[n].numpy() - 0.2)).sum()
            does = score(model, x[n].numpy(), TARGET[n]) - score(model, x[n].numpy() - each, TARGET[n])
            errors.append((says - does) ** 2)
        assert float(found[n]) == pytest.approx(np.mean(errors), rel=1e-9)


def test_entries_at_the_baseline_count_nothing_which_captum_divides_by_one() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    x, relevance = torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[5.0, 0.0]]).double()
    found = infidelity(
        relevance, model, x, perturbation=lambda x, source: torch.tensor([[1.0, 0.0]]).double(), samples=1
    )
    assert float(found) == pytest.approx(float(model.weight.detach()[0, 0]) ** 2)


@pytest.mark.parametrize("kind", ["subset", "square", "noisy baseline"])
def test_infidelity_of_a_linear_model_is_zero(kind: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    x = images()
    found = infidelity(gradient_x_input, model, x, TARGET, perturbation=kind, square=2, internal_batch_size=5)
    assert float(found.amax()) < 1e-20
    wrong = infidelity(lambda model, x, target: x, model, x, TARGET, perturbation=kind, square=2)
    assert float(wrong.amin()) > 1e-3


def test_perturbations_are_what_they_are_called() -> None:
    x = images()
    for kind in ("subset", "square", "noisy baseline"):
        model = Recorder(network())
        infidelity(x, model, x, TARGET, perturbation=kind, square=2, samples=6, baseline=9.0, sigma=0.1)
        seen = torch.cat(model.seen[1:])
        assert len(seen) == 18
        at_baseline = seen == 9
        if kind == "square":
            assert at_baseline.flatten(1).sum(dim=1).tolist() == [8] * 18  # 2 x 2 pixels of 2 channels
            assert all(
                each[0].nonzero().amax(0).sub(each[0].nonzero().amin(0)).tolist() == [1, 1] for each in at_baseline
            )
        elif kind == "subset":
            assert 0.4 < float(at_baseline.double().mean()) < 0.6
        else:
            assert float((seen - 9).abs().amax()) < 0.5 and float(seen.std()) == pytest.approx(0.1, rel=0.1)


def test_the_size_of_batches_changes_nothing() -> None:
    model, x = network(), images()
    for metric in (faithfulness_correlation, faithfulness_estimate, infidelity, monotonicity_nguyen):
        whole, parts = (metric(gradient_x_input, model, x, TARGET, internal_batch_size=size) for size in (None, 7))
        torch.testing.assert_close(whole, parts)
