"""Randomised parameters, other classes, shifted inputs: what changes, what stays, and that the model is not written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from relprop import LRP, Gradient, GradientXInput, InputError, ModelError, Rules
from relprop.errors import TrainingModeWarning
from relprop.metrics import (
    efficient_randomisation,
    hog_similarity,
    input_invariance,
    parameter_randomisation,
    random_logit,
    rank_correlation,
    shifted_model,
    smoothed,
    structural_similarity,
)
from tests.metrics.small import TARGET, gradient_x_input, images, network


def edges(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    """An edge detector: looks at the input only."""
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=x.dtype).expand(x.shape[1], 1, 3, 3)
    return torch.nn.functional.conv2d(x, kernel, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_top_layer_changes_gradient_x_input_and_not_the_edges(order: Any) -> None:
    model, x = network(), images(8)
    found = parameter_randomisation(gradient_x_input, model, x, 1, order=order)
    assert found.layers == ("3", "0")
    assert float(found.similarity[:, 0].abs().mean()) < 0.6
    still = parameter_randomisation(edges, model, x, 1, order=order)
    torch.testing.assert_close(still.similarity, torch.ones(8, 2, dtype=torch.float64))
    assert found.mean < 0.6 < still.mean
    assert str(found).splitlines()[2].split()[0] == "3"
    assert found.to_dict()["layers"] == ["3", "0"]


def test_the_model_is_never_written_and_the_global_seed_stays() -> None:
    model, x = network(), images()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    parameter_randomisation(gradient_x_input, model, x, TARGET)
    efficient_randomisation(gradient_x_input, model, x, TARGET)
    random_logit(gradient_x_input, model, x, TARGET, 3)
    input_invariance(gradient_x_input, model, x, TARGET)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_similarities_are_those_of_the_randomised_copies() -> None:
    model, x, seen = network(), images(), []

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        seen.append({name: each.clone() for name, each in model.state_dict().items()})
        return gradient_x_input(model, x, target)

    found = parameter_randomisation(explain, model, x, TARGET)
    first, second, third = seen
    changed = [
        {name.split(".")[0] for name in first if not torch.equal(first[name], each[name])} for each in (second, third)
    ]
    assert changed == [{"3"}, {"3", "0"}]  # cascading
    seen.clear()
    parameter_randomisation(explain, model, x, TARGET, order="independent")
    changed = [{name.split(".")[0] for name in first if not torch.equal(first[name], each[name])} for each in seen]
    assert changed == [set(), {"3"}, {"0"}]
    copy = network()
    copy.load_state_dict(third)
    a, b = gradient_x_input(model, x, TARGET).numpy(), gradient_x_input(copy, x, TARGET).numpy()
    for n in range(3):
        assert float(found.similarity[n, 1]) == pytest.approx(spearmanr(a[n].ravel(), b[n].ravel()).statistic, rel=1e-9)
    np.testing.assert_allclose(found.maps[2], b)
    absolute = parameter_randomisation(gradient_x_input, model, x, TARGET, absolute=True)
    expected = spearmanr(np.abs(a[0]).ravel(), np.abs(b[0]).ravel()).statistic
    assert float(absolute.similarity[0, 1]) == pytest.approx(expected, rel=1e-9)


class Own(nn.Module):
    """Parameters of its own and no way to reset them; called before what is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor([1.0, 1.2, 0.9, 1.1]))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x * self.scale))


def test_layers_are_in_the_order_of_the_forward_pass_and_all_are_randomised() -> None:
    model, x = Own().eval(), torch.randn(5, 4)
    found = parameter_randomisation(gradient_x_input, model, x, 1, order="independent")
    assert found.layers == ("head", "body.1", "body.0", "")  # the scale is the model's own
    assert "(the model)" in str(found)
    assert bool((found.similarity < 1).all())  # that of batch norm too, which was as it is born
    one = parameter_randomisation(gradient_x_input, model, x, 1, layers=["body.0"])
    assert one.layers == ("body.0",)
    model.train()  # a copy runs to find the layers: statistics stay as they are
    before = model.body[1].running_mean.clone()
    with pytest.warns(TrainingModeWarning):
        parameter_randomisation(lambda model, x, target: x, model, x, 1)
    assert torch.equal(before, model.body[1].running_mean)


def test_similarities_of_equal_opposite_and_unrelated_maps() -> None:
    a = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    b = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    for measure in (rank_correlation, structural_similarity, hog_similarity):
        torch.testing.assert_close(measure(a, a), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(measure(a, 3 * b), measure(a, b))  # the scale does not count
        assert float(measure(a, b).abs().amax()) < 0.35
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(4, dtype=torch.float64))
    assert bool(rank_correlation(a, torch.ones_like(a)).isnan().all())
    assert bool(hog_similarity(a, torch.ones_like(a)).isnan().all())
    ties = torch.randint(4, (6, 40)).double()
    other = torch.randint(5, (6, 40)).double()
    expected = [spearmanr(one, two).statistic for one, two in zip(ties, other, strict=True)]
    np.testing.assert_allclose(rank_correlation(ties, other), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["spearman", "pearson", "cosine", "ssim", "hog"])
def test_every_similarity_by_its_name(name: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(392, 2)).eval()
    x = torch.rand(2, 1, 16, 16)
    still = parameter_randomisation(edges, model, x, 0, similarity=name)
    torch.testing.assert_close(still.similarity, torch.ones(2, 2, dtype=torch.float64))
    found = parameter_randomisation(gradient_x_input, model, x, 0, similarity=name)
    assert found.mean < 0.6


def test_a_similarity_of_ones_own() -> None:
    model, x = network(), images()
    found = parameter_randomisation(
        gradient_x_input, model, x, TARGET, similarity=lambda a, b: (a - b).flatten(1).norm(dim=1)
    )
    first = gradient_x_input(model, x, TARGET)
    expected = (first - found.maps[1]).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.similarity[:, 0], expected)


def test_smoothed_is_the_mean_over_noise() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double(), images()
    smooth = smoothed(gradient_x_input, samples=400, sigma=0.1)
    found = smooth(model, x, TARGET)
    # The mean of (x + noise) w is x w.
    close = gradient_x_input(model, x, TARGET)
    width = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).amax()
    assert float((found - close).abs().amax()) < 4 * 0.1 * width * 0.15 / 400**0.5 + 1e-3
    torch.testing.assert_close(smooth(model, x[:1], TARGET[0]), found[:1])
    result = parameter_randomisation(smoothed(gradient_x_input, samples=3), model, x, TARGET)
    assert result.layers == ("1",)


def test_efficient_randomisation_compares_entropies_of_histograms() -> None:
    model, x, seen = network(), images(), []

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        seen.append(gradient_x_input(model, x, target))
        return seen[-1]

    found = efficient_randomisation(explain, model, x, TARGET, bins=10)
    for maps, values in zip(seen, (found.before, found.after), strict=True):
        for each, value in zip(maps, values, strict=True):
            shares = np.histogram(each.numpy(), bins=10)[0] / 48
            assert float(value) == pytest.approx(-sum(p * np.log(p) for p in shares if p > 0), rel=1e-9)
    torch.testing.assert_close(found.values, found.after / found.before - 1)
    assert efficient_randomisation(edges, model, x, TARGET).mean == 0
    assert efficient_randomisation(lambda model, x, target: torch.ones_like(x), model, x, TARGET).mean == 0
    assert "relative rise" in str(found) and len(found.to_dict()["values"]) == 3


def test_random_logit_takes_another_class() -> None:
    model, x, seen = network(), images(9), []
    target = torch.arange(9) % 3

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        seen.append(target)
        return gradient_x_input(model, x, target)

    found = random_logit(explain, model, x, target, 3)
    first, other = seen
    assert torch.equal(first, target) and bool((other != target).all())
    assert set(other.tolist()) == {0, 1, 2}
    expected = rank_correlation(gradient_x_input(model, x, first), gradient_x_input(model, x, other))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(random_logit(edges, model, x, 2, 3, absolute=True), torch.ones(9, dtype=torch.float64))


FIRST = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 3)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)),
    "zero padding": network,
    "same": lambda: nn.Sequential(nn.Conv2d(2, 4, (3, 5), padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=(2, 1), stride=2, dilation=(1, 2), groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    ),
    "circular": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    ),
}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("shift", [0.7, torch.tensor([1.0, -2.0], dtype=torch.float64)[:, None, None]])
def test_a_shifted_model_computes_the_same(name: str, shift: Any) -> None:
    model, x = FIRST[name]().double().eval(), images()
    other = shifted_model(model, x, shift)
    torch.testing.assert_close(other(x + shift), model(x))
    assert not torch.allclose(other(x), model(x))
    assert [type(each).__name__ for each in other] == [type(each).__name__ for each in model]
    assert all(isinstance(mine, type(theirs)) for mine, theirs in zip(other, model, strict=True))
    # The gradient does not move, and whatever is multiplied by the input does.
    still = input_invariance(lambda m, x, t: Gradient(m).attribute(x, t), model, x, TARGET, shift=shift)
    assert float(still.values.amax()) < 1e-10
    moved = input_invariance(lambda m, x, t: GradientXInput(m).attribute(x, t), model, x, TARGET, shift=shift)
    assert float(moved.values.amin()) > 0.05
    difference = (moved.maps - moved.shifted_maps).abs().flatten(1).sum(1) / moved.maps.abs().flatten(1).sum(1)
    torch.testing.assert_close(moved.values, difference)
    assert str(moved).splitlines()[2] and moved.to_dict()["values"] == moved.values.tolist()


def test_lrp_goes_through_a_shifted_convolution() -> None:
    model, x = network(), images()
    other = shifted_model(model, x, 0.7)
    found = LRP(other, Rules.preset("lrp0")).attribute(x + 0.7, TARGET)
    torch.testing.assert_close(found, gradient_x_input(other, x + 0.7, TARGET))
    report = LRP(other).report(x + 0.7, TARGET)
    assert abs(report.unexplained) < 1e-9


class Twice(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + x.flatten(1)[:, :3]


def test_what_cannot_be_shifted() -> None:
    x = images()
    with pytest.raises(InputError, match="away from the model"):
        input_invariance(gradient_x_input, Twice(network()), x, TARGET)
    with pytest.raises(ModelError, match="BatchNorm2d"):
        shifted_model(nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(48, 1)).double().eval(), x, 1.0)
    with pytest.raises(ModelError, match="expected the input"):
        shifted_model(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 1)).double(), x, 1.0)
    with pytest.raises(ModelError, match="no module that has parameters"):
        shifted_model(nn.Flatten(), x, 1.0)
    with pytest.raises(InputError, match="differs within a channel"):
        shifted_model(network(), x, torch.randn(2, 4, 6).double())
    with pytest.raises(InputError, match="broadcasts"):
        shifted_model(network(), x, torch.ones(5))
