"""Continuity and sensitivity against NumPy and Captum; neighbours and paths against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, GradientXInput, InputError
from relprop.metrics import (
    average_sensitivity,
    continuity,
    interpolation,
    max_sensitivity,
    path_continuity,
    random_neighbours,
    trajectory,
    translated,
    translation,
)
from relprop.rules import Gamma


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 3, 4, dtype=torch.float64)


def gradient_x_input(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    return GradientXInput(model).attribute(x, target)


def by_numpy(model: nn.Sequential, x: Tensor, target: list[int]) -> np.ndarray:
    """Gradient x Input of Linear - ReLU - Linear, written out."""
    (w, b, v), a = ([each.detach().numpy() for each in list(model.parameters())[:3]], x.flatten(1).numpy())
    open_units = a @ w.T + b > 0
    return np.stack([a[n] * ((v[target[n]] * open_units[n]) @ w) for n in range(len(a))])


TARGET = [0, 2, 1, 2]


@pytest.mark.parametrize("normalize", [False, True])
def test_ratios_are_those_of_numpy(model: nn.Sequential, x: Tensor, normalize: bool) -> None:
    near = random_neighbours(x, 0.3, samples=5)
    result = continuity(gradient_x_input, model, x, TARGET, near, normalize=normalize, internal_batch_size=3)
    expected = np.empty((5, 4))
    here = by_numpy(model, x, TARGET)
    for s in range(5):
        there = by_numpy(model, near[s], TARGET)
        for n in range(4):
            maps = [each[n] / np.abs(each[n]).sum() if normalize else each[n] for each in (here, there)]
            expected[s, n] = np.abs(maps[1] - maps[0]).sum() / np.sqrt(((near[s, n] - x[n]).numpy() ** 2).sum())
    np.testing.assert_allclose(result.ratios, expected, rtol=1e-10)
    np.testing.assert_allclose(result.values, expected.max(axis=0), rtol=1e-10)
    np.testing.assert_allclose(result.averages, expected.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(result.quantile(0.75), np.quantile(expected, 0.75, axis=0), rtol=1e-10)
    assert result.mean == pytest.approx(expected.max(axis=0).mean())
    np.testing.assert_allclose(result.distances, 0.3, rtol=1e-10)
    assert result.to_dict()["max"] == result.values.tolist()
    assert str(result).splitlines()[2].split()[1:3] == ["0.3", "0.3"]


@pytest.mark.parametrize("normalize", [False, True])
def test_sensitivities_are_those_of_numpy(model: nn.Sequential, x: Tensor, normalize: bool) -> None:
    near = random_neighbours(x, 0.5, samples=6, shape="ball")
    here = by_numpy(model, x, TARGET)
    change = np.stack([np.linalg.norm(by_numpy(model, each, TARGET) - here, axis=1) for each in near])
    if normalize:
        change /= np.linalg.norm(here, axis=1)
    largest = max_sensitivity(gradient_x_input, model, x, TARGET, near, normalize=normalize)
    average = average_sensitivity(gradient_x_input, model, x, TARGET, near, normalize=normalize)
    np.testing.assert_allclose(largest, change.max(axis=0), rtol=1e-10)
    np.testing.assert_allclose(average, change.mean(axis=0), rtol=1e-10)


def test_max_sensitivity_is_captums(model: nn.Sequential, x: Tensor) -> None:
    metrics = pytest.importorskip("captum.metrics")
    near = random_neighbours(x, 0.5, samples=10, shape="cube")

    def perturbed(inputs: Any, radius: float) -> Tensor:
        return near.transpose(0, 1).flatten(0, 1)  # Captum puts the neighbours of a sample one behind the other

    def explained(inputs: Any, target: Tensor) -> Any:  # a tuple is to be answered by one
        if isinstance(inputs, tuple):
            return (gradient_x_input(model, inputs[0], target),)
        return gradient_x_input(model, inputs, target)

    theirs = metrics.sensitivity_max(
        explained,
        x,
        perturb_func=perturbed,
        n_perturb_samples=10,
        target=torch.tensor(TARGET),
    )
    torch.testing.assert_close(max_sensitivity(gradient_x_input, model, x, TARGET, near), theirs)


def test_a_constant_explainer_is_as_continuous_as_can_be(model: nn.Sequential, x: Tensor) -> None:
    def constant(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return torch.ones_like(x)

    near = random_neighbours(x, 0.1, samples=3)
    assert continuity(constant, model, x, 0, near).values.tolist() == [0.0] * 4
    assert continuity(constant, model, x, 0, near, normalize=True).values.tolist() == [0.0] * 4
    assert max_sensitivity(constant, model, x, 0, near).tolist() == [0.0] * 4
    assert average_sensitivity(constant, model, x, 0, near).tolist() == [0.0] * 4
    along = trajectory(constant, model, interpolation(x, x + 1, steps=8), 0)
    assert path_continuity(along, halvings=2).values.tolist() == [0.0] * 4


def test_an_empty_map_has_no_sensitivity_until_it_fills(model: nn.Sequential, x: Tensor) -> None:
    def above(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return (x - 1).clamp(min=0)

    assert max_sensitivity(above, model, x, 0, x[None] / 2).tolist() == [0.0] * 4
    assert max_sensitivity(above, model, x, 0, x[None] + 2).tolist() == [math.inf] * 4


@pytest.mark.parametrize("shape", ["sphere", "ball", "cube"])
def test_random_neighbours_lie_where_they_should(shape: Any) -> None:
    x = torch.rand(3, 2, 2, dtype=torch.float64)
    near = random_neighbours(x, 0.7, samples=4000, shape=shape, seed=3)
    assert near.shape == (4000, 3, 2, 2)
    step = (near - x).flatten(2)
    length = step.norm(dim=2)
    torch.testing.assert_close(step.mean(dim=0), torch.zeros(3, 4, dtype=torch.float64), atol=0.03, rtol=0)
    if shape == "sphere":
        torch.testing.assert_close(length, torch.full_like(length, 0.7))
    elif shape == "ball":  # in four dimensions a share r^4 of the volume lies within r
        assert float((length / 0.7).pow(4).mean()) == pytest.approx(0.5, abs=0.01)
        assert float(length.max()) <= 0.7
    else:
        assert float(step.abs().mean()) == pytest.approx(0.35, abs=0.01)
        assert 0.69 < float(step.abs().max()) <= 0.7
    assert torch.equal(near, random_neighbours(x, 0.7, samples=4000, shape=shape, seed=3))
    assert not torch.equal(near, random_neighbours(x, 0.7, samples=4000, shape=shape, seed=4))


def test_translation_is_bilinear() -> None:
    x = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    fill = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1)
    down, right = 1.25, -0.5
    wide = fill.expand(3, 5 + 8, 6 + 8).repeat(2, 1, 1, 1)
    wide[:, :, 4:9, 4:10] = x
    rows = torch.arange(5) + 4 - 2  # 1.25 down: three quarters of the pixel one above, a quarter of that two above
    columns = torch.arange(6) + 4
    expected = torch.zeros_like(x)
    for row, row_weight in ((rows + 1, 0.75), (rows, 0.25)):
        for column, column_weight in ((columns, 0.5), (columns + 1, 0.5)):
            expected += row_weight * column_weight * wide[:, :, row][..., column]
    torch.testing.assert_close(translated(x, [(down, right)], fill=fill)[0], expected)
    assert torch.equal(translated(x, [(0, 0)])[0], x)
    assert torch.equal(translated(x, [(0, 9)])[0], torch.zeros_like(x))
    path = translation(x, (2, -1), steps=4)
    assert path.shape == (5, 2, 3, 5, 6)
    torch.testing.assert_close(path[1], translated(x, [(0.5, -0.25)])[0])
    assert torch.equal(path[4, :, :, 2:, :-1], x[:, :, :-2, 1:])


def test_trajectory_explains_every_point_for_its_sample(model: nn.Sequential, x: Tensor) -> None:
    path = interpolation(x, x.flip(0), steps=4)
    along = trajectory(gradient_x_input, model, path, TARGET, internal_batch_size=3)
    assert along.steps == 4
    for t in range(5):
        expected = by_numpy(model, path[t], TARGET)
        np.testing.assert_allclose(along.relevance[t].flatten(1), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(along.outputs[t], model(path[t]).detach()[range(4), TARGET], rtol=1e-9)
    jump = np.abs(by_numpy(model, path[1], TARGET) - by_numpy(model, path[0], TARGET)).sum(axis=1)
    np.testing.assert_allclose(along.jumps[0], jump, rtol=1e-9)
    torch.testing.assert_close(along.lengths[2], (path[3] - path[2]).flatten(1).norm(dim=1))
    normal = trajectory(gradient_x_input, model, path, TARGET, normalize=True)
    torch.testing.assert_close(normal.relevance.abs().flatten(2).sum(dim=2), torch.ones(5, 4, dtype=torch.float64))


def test_halving_tells_a_jump_from_a_slope(model: nn.Sequential, x: Tensor) -> None:
    """The ratio of Gradient x Input doubles where its unit opens; that of gamma converges."""
    unit = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).double()
    unit[0].weight.data[:] = torch.tensor([[1.0, -1.0]])
    unit[0].bias.data[:] = -0.3
    path = interpolation(torch.tensor([[0.2, 0.4]]).double(), torch.tensor([[1.2, 0.4]]).double(), steps=2**10)
    jumping = path_continuity(trajectory(gradient_x_input, unit, path), halvings=5)
    # The unit opens at x1 = 0.7: there the map goes from (0, 0) to (0.7, -0.4), and that is the jump.
    assert jumping.steps == (32, 64, 128, 256, 512, 1024)
    torch.testing.assert_close(jumping.jumps[:, 0], torch.full((6,), 1.1).double(), rtol=0.03, atol=0)
    torch.testing.assert_close(jumping.values, torch.ones(1).double(), atol=0.01, rtol=0)
    gliding = path_continuity(
        trajectory(lambda model, x, target: LRP(model, Gamma(0.25, stabilizer=0)).attribute(x), unit, path), halvings=5
    )
    torch.testing.assert_close(gliding.values, torch.zeros(1).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(gliding.jumps[-1] / gliding.jumps[-2], torch.full((1,), 0.5).double(), atol=0.01, rtol=0)
    assert gliding.to_dict()["growth"] == gliding.values.tolist()


def test_bad_input_is_named(model: nn.Sequential, x: Tensor) -> None:
    near = random_neighbours(x, 0.1, samples=2)
    with pytest.raises(InputError, match=r"neighbours have shape \(4, 1, 3, 4\)"):
        continuity(gradient_x_input, model, x, 0, x)
    with pytest.raises(InputError, match="neighbour 1 of sample 0 equals the sample"):
        continuity(gradient_x_input, model, x, 0, torch.stack([near[0], x]))
    for bad in (lambda model, x, target: x[:, :, 0], lambda model, x, target: x * math.nan):
        for metric in (continuity, max_sensitivity, average_sensitivity):
            with pytest.raises(InputError):
                metric(bad, model, x, 0, near)
        with pytest.raises(InputError):
            trajectory(bad, model, near, 0)
    with pytest.raises(InputError, match="q is 2"):
        continuity(gradient_x_input, model, x, 0, near).quantile(2)
    with pytest.raises(InputError, match="at least two points"):
        trajectory(gradient_x_input, model, x[None], 0)
    along = trajectory(gradient_x_input, model, interpolation(x, x + 1, steps=12), 0)
    for halvings in (0, 3):
        with pytest.raises(InputError, match="has 12 steps"):
            path_continuity(along, halvings=halvings)
    with pytest.raises(InputError, match="stands still"):
        path_continuity(trajectory(gradient_x_input, model, torch.stack([x, x, x + 1]), 0), halvings=1)
    with pytest.raises(InputError, match="divisor of the 12 steps"):
        along.thinned(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: random_neighbours(x, 0.0),
            "distance, in units of the input, must be a finite number above 0, got 0.0",
        ),
        (lambda x: random_neighbours(x, "a"), "distance, in units of the input, must be .*, got 'a'"),  # type: ignore[arg-type]
        (
            lambda x: random_neighbours(x, math.nan),
            "distance, in units of the input, must be a finite number above 0, got nan",
        ),
        (lambda x: random_neighbours(x, 1, samples=0), "samples must be a whole number of at least 1, got 0"),
        (lambda x: random_neighbours(x, 1, shape="disc"), "shape is 'disc'"),
        (lambda x: random_neighbours(x.long(), 1), "dtype torch.int64"),
        (lambda x: translated(x[0], [(0, 1)]), r"shape \(1, 3, 4\)"),
        (lambda x: translated(x, []), "shifts is empty"),
        (lambda x: translated(x, [(0, math.inf)]), "a shift is inf"),
        (lambda x: translation(x, (0, 1), steps=0), "steps must be a whole number of at least 1, got 0"),
        (lambda x: interpolation(x.long(), x), "dtype torch.int64"),
        (lambda x: interpolation(x, x[:, :, :2]), "does not broadcast"),
    ],
)
def test_bad_neighbours_are_named(x: Tensor, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(x)


def test_no_graph_is_kept(model: nn.Sequential, x: Tensor) -> None:
    """Inputs and neighbours that require a gradient give numbers without one."""
    weight = torch.rand_like(x[0]).requires_grad_()

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return x * weight  # with a graph to the parameters of the explainer

    x = x.clone().requires_grad_()
    near = (x + 0.1 * torch.rand(3, *x.shape, dtype=x.dtype)).requires_grad_(True)
    path = torch.stack([x, x + 0.5, x + 1])
    assert near.requires_grad and path.requires_grad
    found = continuity(explain, model, x, 0, near)
    along = trajectory(explain, model, path, 0)
    results = {
        "ratios": found.ratios,
        "distances": found.distances,
        "quantile": found.quantile(0.5),
        "max": max_sensitivity(explain, model, x, 0, near),
        "average": average_sensitivity(explain, model, x, 0, near),
        "inputs": along.inputs,
        "relevance": along.relevance,
        "outputs": along.outputs,
        "lengths": along.lengths,
        "path": path_continuity(along, halvings=1).ratios,
        "random neighbours": random_neighbours(x, 0.1),
        "translated": translated(x, [(0.5, 0.5)], fill=torch.zeros(1, 1, 1, dtype=x.dtype, requires_grad=True)),
        "interpolation": interpolation(x, x + 1),
    }
    kept = [name for name, each in results.items() if each.requires_grad or each.grad_fn is not None]
    assert not kept
    plain = continuity(lambda m, x, t: x * weight.detach(), model, x.detach(), 0, near.detach())
    torch.testing.assert_close(found.ratios, plain.ratios, rtol=0, atol=0)


def test_growth_has_the_range_that_is_stated() -> None:
    """On a straight path never below 0; 0 for a slope, 1/2 for a root, 1 for a jump, infinite for what was missed."""
    model = nn.Linear(1, 1).double()
    straight = interpolation(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), steps=2**10)

    def growth(explain: Any, path: Tensor = straight, halvings: int = 3) -> float:
        return path_continuity(trajectory(explain, model, path), halvings=halvings).mean

    assert growth(lambda model, x, target: 3 * x) == pytest.approx(0, abs=1e-9)
    assert growth(lambda model, x, target: x.sqrt()) == pytest.approx(0.5, abs=1e-9)  # steepest at 0
    assert growth(lambda model, x, target: (x > 0.3).double()) == pytest.approx(1, abs=1e-9)
    assert growth(lambda model, x, target: torch.zeros_like(x)) == 0
    assert growth(lambda model, x, target: (x * 2**10).round() % 2) == math.inf
    for seed in range(20):
        noise = torch.randn(2**10 + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert growth(lambda model, x, target, noise=noise: noise[(x * 2**10).round().long()]) >= 0
    angle = torch.linspace(0, math.pi, 2**4 + 1, dtype=torch.float64)
    bent = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]
    along = trajectory(lambda model, x, target: angle[:, None].expand_as(x), nn.Linear(2, 1).double(), bent)
    assert path_continuity(along, halvings=1).mean < 0  # a wide step cuts the corner
