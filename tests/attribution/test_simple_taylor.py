"""Simple Taylor decomposition at its three roots."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    Expansion,
    Gradient,
    GradientXInput,
    InputError,
    InputTypeError,
    NumericalError,
    Sensitivity,
    SimpleTaylor,
    TrainingModeWarning,
    explain,
)
from relprop.rules import WSquare
from tests.models import DTYPE, close, gradient, images, mlp, residual, settle, vectors

ROOTS = ["nearest", "gradient", "segment"]
# For networks of few kinks: the same roots in a fifth of the time, which each test that uses it was seen to find.
BRIEF: dict[str, Any] = {"starts": 2, "n_steps": 20}


class Of(nn.Module):
    """A model that is a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def affine() -> nn.Linear:
    return settle(nn.Linear(4, 3))


# Simple Taylor: where the root is known --------------------------------------------------------------------


@pytest.mark.parametrize("root", ["nearest", "gradient"])
def test_the_nearest_root_of_an_affine_neuron_is_w_squared(root: Any) -> None:
    model, x = affine(), vectors(5)
    w, output = model.weight[1].detach(), model(x)[:, 1].detach()
    found = SimpleTaylor(model, root, **BRIEF).expand(x, 1)
    close(found.relevance, output[:, None] * w.square() / w.square().sum())
    close(found.root, x - output[:, None] * w / w.square().sum())
    close(found.distance, output.abs() / w.norm())
    close(found.output, output)
    assert float(found.at_root.abs().max()) < 1e-12
    assert float(found.remainder.abs().max()) < 1e-9
    neuron = nn.Sequential(model, nn.ReLU())
    on = output > 0
    assert bool(on.any())
    close(SimpleTaylor(neuron, root, **BRIEF).attribute(x[on], 1), found.relevance[on])  # whose root lies on the kink
    by_rule = LRP(neuron, WSquare(stabilizer=0.0)).attribute(x[on], 1)
    close(found.relevance[on], by_rule)


def test_the_root_on_the_segment_of_an_affine_neuron() -> None:
    model, x = affine(), vectors(5)
    w, output = model.weight[1].detach(), model(x)[:, 1].detach()
    other = x - 1.7 * output[:, None] * (w + vectors(1, seed=3) / 10) / w.square().sum()
    found = SimpleTaylor(model, "segment").expand(x, 1, baselines=other)
    t = output / (output - model(other)[:, 1].detach())
    close(found.root, x + t[:, None] * (other - x))
    close(found.relevance, w * (x - found.root))


def test_towards_zero_it_is_gradient_times_input_without_biases() -> None:
    """The root is zero itself, where all ReLUs are on their kinks: the limit from x is the gradient at x."""
    model, x = mlp(bias=False), vectors(6)
    found = SimpleTaylor(model, "segment").expand(x, 2)
    close(found.relevance, GradientXInput(model).attribute(x, 2), 1e-9)
    assert float(found.root.abs().max()) < 1e-12 and float(found.remainder.abs().max()) < 1e-9
    assert not bool(gradient(lambda leaf: model(leaf)[:, 2], torch.zeros_like(x)).any())  # what PyTorch says at zero


def test_the_limit_is_taken_from_the_input_at_a_kink_inside() -> None:
    """|x| - 1 = 0 has kinks elsewhere; relu(x) - relu(-x) / 2 = 0 at 0 has its kink there, with two slopes."""
    model = Of(lambda x: torch.relu(x) - torch.relu(-x) / 2)
    x, base = torch.tensor([[2.0], [-2.0]], dtype=DTYPE), torch.tensor([[-1.0], [1.0]], dtype=DTYPE)
    found = SimpleTaylor(model, "segment").expand(x, 0, baselines=base)
    assert float(found.root.abs().max()) < 1e-12
    close(found.relevance, torch.tensor([[2.0], [-1.0]], dtype=DTYPE))


def test_the_remainder_of_a_network_with_biases() -> None:
    model, x = mlp(), vectors(6)
    middle = ((model(x) + model(-x)) / 2)[:, 2].detach()  # which it crosses on the way

    def score(out: Tensor) -> Tensor:
        return out[:, 2] - middle

    found = SimpleTaylor(model, "segment").expand(x, score, baselines=-x)
    assert float(found.at_root.abs().max()) < 1e-12
    slope = gradient(lambda leaf: model(leaf)[:, 2], found.root + 1e-8 * (x - found.root))
    close(found.relevance, slope * (x - found.root), 1e-9)
    close(found.remainder, score(model(x)).detach() - found.at_root - found.relevance.sum(1))
    assert float(found.remainder.abs().max()) > 0.01


def test_the_first_root_on_the_way_counts() -> None:
    """cos(x) on the way from 0 to 10 is zero at pi/2, 3 pi/2, 5 pi/2."""
    model = Of(torch.cos)
    x, base = torch.zeros(1, 1, dtype=DTYPE), torch.full((1, 1), 10.0, dtype=DTYPE)
    found = SimpleTaylor(model, "segment").expand(x, 0, baselines=base)
    close(found.root, torch.tensor([[math.pi / 2]], dtype=DTYPE))
    close(found.relevance, torch.tensor([[math.pi / 2]], dtype=DTYPE), 1e-8)
    close(found.remainder, torch.tensor([1 - math.pi / 2], dtype=DTYPE), 1e-8)


@pytest.mark.traced
@pytest.mark.slow
def test_the_nearest_root_of_an_ellipse() -> None:
    """Against the nearest of many points on it; the gradient leads to one further away."""
    axes = torch.tensor([3.0, 1.0], dtype=DTYPE)
    model = Of(lambda x: 1 - (x / axes).square().sum(1, keepdim=True))
    x = torch.tensor([[1.2, 0.4], [0.5, -0.3], [2.0, 1.5], [-4.0, 0.2]], dtype=DTYPE)
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=DTYPE)
    points = axes * torch.stack([angle.cos(), angle.sin()], 1)
    nearest = points[torch.cdist(x, points).argmin(1)]
    found = SimpleTaylor(model, **BRIEF).expand(x, 0)
    close(found.root, nearest, 1e-3)
    close(found.distance, (x - nearest).norm(dim=1), 1e-6)
    along = SimpleTaylor(model, "gradient").expand(x, 0)
    assert bool((found.distance <= along.distance).all()) and float((along.distance - found.distance).max()) > 0.01
    slope = gradient(lambda leaf: model(leaf)[:, 0], found.root)
    turned = torch.cosine_similarity(slope, x - found.root).abs()
    close(turned, torch.ones(4, dtype=DTYPE), 1e-8)  # the gradient lies on the line to the input
    close(found.relevance, slope * (x - found.root), 1e-6)


@pytest.mark.slow
def test_the_nearest_root_of_a_relu_network_in_the_plane() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = 2 * vectors(6, 2)
    with torch.no_grad():
        model[2].bias -= model(x).mean()
    radius = torch.linspace(0, 3, 601, dtype=DTYPE)
    angle = torch.linspace(0, 2 * math.pi, 361, dtype=DTYPE)[:-1]
    disc = (radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)).reshape(-1, 2)
    with torch.no_grad():
        start = model(x)[:, 0]
        least = []
        for point, value in zip(x, start, strict=True):
            crossed = model(point + disc)[:, 0] * value.sign() <= 0
            least.append(disc[crossed].norm(dim=1).min() if bool(crossed.any()) else torch.tensor(math.inf).double())
    brute = torch.stack(least)
    assert bool((brute < 3).all())
    found = SimpleTaylor(model, reach=100.0).expand(x, 0)
    assert float(found.at_root.abs().max()) < 1e-12
    assert float((found.distance / brute).max()) < 1.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [6, 12])
def test_the_nearest_root_is_not_on_the_side_of_the_gradient(seed: int) -> None:
    """Against a search in all directions, where the root along the gradient leads to one that is further away."""
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double(), torch.randn(3, 2).double()
    angle = torch.linspace(0, 2 * math.pi, 1441, dtype=DTYPE)[:-1]
    radius = torch.linspace(0, 6, 1201, dtype=DTYPE)
    disc = (radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)).reshape(-1, 2)
    with torch.no_grad():
        start = model(x)[:, 0]
        crossed = [model(point + disc)[:, 0] * value.sign() <= 0 for point, value in zip(x, start, strict=True)]
    brute = torch.stack([disc[each].norm(dim=1).min() for each in crossed])
    found = SimpleTaylor(model, n_steps=20).expand(x, 0)
    assert float(found.at_root.abs().max()) < 1e-12
    assert float((found.distance / brute).max()) < 1.01
    one = SimpleTaylor(model, starts=0).expand(x, 0).distance
    assert bool((found.distance <= one + 1e-9).all()) and float((one / brute).max()) > 1.3
    again = SimpleTaylor(model, n_steps=20, seed=0).expand(x[1:], 0)
    close(again.root, found.root[1:], 1e-6)


@pytest.mark.slow
def test_a_sample_is_expanded_alone_as_in_a_batch() -> None:
    """Roots that lie where several kinks meet: whose side the limit takes must not hang on the last digits."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    for parameter in model.parameters():
        parameter.data *= 2
    x = 2 * torch.randn(6, 2).double()
    method = SimpleTaylor(model, **BRIEF)
    together = method.expand(x)
    for n in range(6):
        alone = method.expand(x[n : n + 1])
        close(alone.relevance[0], together.relevance[n], 1e-9)
        close(alone.root[0], together.root[n], 1e-9)


@pytest.mark.traced
@pytest.mark.slow
def test_a_search_may_leave_the_domain_of_the_model() -> None:
    model = Of(lambda x: x.sqrt().sum(1, keepdim=True) - 1)
    x = torch.tensor([[0.1, 0.1], [0.3, 0.3]], dtype=DTYPE)
    found = SimpleTaylor(model, **BRIEF).expand(x, 0)
    close(found.root, torch.full((2, 2), 0.25, dtype=DTYPE), 1e-7)
    close(found.relevance, x - 0.25, 1e-7)
    for n in range(2):
        close(SimpleTaylor(model, **BRIEF).attribute(x[n : n + 1], 0)[0], found.relevance[n], 1e-7)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        SimpleTaylor(model).attribute(-x, 0)


@pytest.mark.parametrize("root", ["nearest", "gradient"])
def test_a_network_that_draws_is_one_network_in_all_passes(root: Any) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.ReLU(), nn.Linear(40, 1)).double().train()
    with pytest.warns(TrainingModeWarning):
        found = SimpleTaylor(model, root, **BRIEF).expand(torch.randn(1, 3).double(), 0)
    assert float(found.at_root.abs().max()) < 1e-12 < float(found.distance.min())
    assert float(found.output.abs().min()) > 1e-3


@pytest.mark.traced
@pytest.mark.slow
def test_the_nearest_root_where_the_gradient_turns() -> None:
    """A valley whose floor slopes down: the line along the gradient climbs again, the way down leads to a root."""
    model = Of(lambda x: 4 * x[:, :1].square() + x[:, 1:] + 1)
    x = torch.tensor([[1.0, 0.0]], dtype=DTYPE)
    with pytest.raises(InputError, match="no root"):
        SimpleTaylor(model, "gradient").attribute(x, 0)
    found = SimpleTaylor(model, **BRIEF).expand(x, 0)
    assert float(found.at_root.abs().max()) < 1e-12
    a = torch.linspace(-2, 2, 400001, dtype=DTYPE)
    nearest = torch.stack([a - 1, -1 - 4 * a.square()], 1).norm(dim=1).min()
    close(found.distance, nearest[None], 1e-8)


@pytest.mark.parametrize("root", [pytest.param("nearest", marks=pytest.mark.slow), "gradient", "segment"])
def test_several_inputs_and_images(root: Any) -> None:
    """A tuple of inputs is one vector; sample by sample it is the same."""
    model = Of(lambda a, b: (a.square().sum((1, 2)) + 2 * b.sum(1) - 6)[:, None])
    a, b = 1 + vectors(2, 6).reshape(2, 2, 3).abs(), vectors(2, seed=4).abs()
    options = {"baselines": (0.0, -2.0)} if root == "segment" else {}
    found = SimpleTaylor(model, root, reach=5.0, **BRIEF).expand((a, b), 0, **options)
    assert [part.shape for part in found.relevance] == [a.shape, b.shape]
    moved = torch.cat([(x - r).flatten(1) for x, r in zip((a, b), found.root, strict=True)], 1)
    close(found.distance, moved.norm(dim=1))
    close(found.relevance[0], 2 * found.root[0] * (a - found.root[0]), 1e-8)
    close(found.relevance[1], 2 * (b - found.root[1]), 1e-8)
    for n in range(2):
        one = SimpleTaylor(model, root, reach=5.0, **BRIEF).attribute((a[n : n + 1], b[n : n + 1]), 0, **options)
        close(torch.cat([part.flatten() for part in one]), torch.cat([p[n].flatten() for p in found.relevance]), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_module_form_is_functional_form(dtype: torch.dtype) -> None:
    model, x = residual(), images(3)
    functional = Of(
        lambda x: model.head(
            torch.nn.functional.adaptive_avg_pool2d(
                torch.max_pool2d(
                    model.branch(h := torch.relu(model.norm(model.stem(x)))) + h,
                    2,  # type: ignore[arg-type]
                ),
                2,
            ).flatten(1)
        )
    )
    model, x = model.to(dtype), x.to(dtype)
    middle = (model(x) + model(-x))[:, 1].detach() / 2

    def score(out: Tensor) -> Tensor:
        return out[:, 1] - middle

    one, two = (SimpleTaylor(m, "segment").expand(x, score, baselines=-x) for m in (model, functional))
    assert one.relevance.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    close(one.relevance, two.relevance, tolerance)
    assert float(one.at_root.abs().max()) < 1e3 * torch.finfo(dtype).eps * float(one.output.abs().max())


def test_an_input_that_is_a_root_itself() -> None:
    model, x = affine(), vectors()
    with torch.no_grad():
        model.bias.zero_()
    for root in ROOTS:
        found = SimpleTaylor(model, root).expand(torch.zeros_like(x), 1, baselines=1.0 if root == "segment" else None)
        assert not bool(found.relevance.any()) and not bool(found.distance.any())


@pytest.mark.slow
def test_the_expansion_prints_and_delta_is_what_is_missing() -> None:
    model = Of(lambda x: x.square().sum(1, keepdim=True) - 1)
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=DTYPE)
    method = SimpleTaylor(model, starts=0)
    found, delta = method.attribute(x, 0, return_convergence_delta=True)
    expansion = method.expand(x, 0)
    assert isinstance(expansion, Expansion)
    close(found, torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=DTYPE), 1e-8)
    close(delta, torch.tensor([1.0, 4.0], dtype=DTYPE), 1e-8)
    close(delta, expansion.output - found.sum(1))
    lines = str(expansion).splitlines()
    assert lines[0].split() == ["sample", "f(x)", "f(root)", "sum", "R", "remainder", "distance"]
    assert lines[3].split()[:2] == ["1", "8"] and lines[3].split()[3:] == ["4", "4", "2"]
    close(explain(model, x, 0, "simple_taylor"), found)


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_root_on_the_path_is_an_error() -> None:
    model = Of(lambda x: x.square().sum(1, keepdim=True) + torch.tensor([[0.5], [-0.5]]).double()[: len(x)])
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=DTYPE)
    with pytest.raises(InputError, match=r"sample 0 has no root along the gradient within 10 times .* `reach`"):
        SimpleTaylor(model, "gradient").attribute(x, 0)
    with pytest.raises(
        InputError, match=r"sample 0 has no root along the gradient, nor from any of 3 other starts on.*'segment'"
    ):
        SimpleTaylor(model, iterations=7, starts=3).attribute(x, 0)
    with pytest.raises(InputError, match=r"samples 0, 1 has|samples 0, 1 have no root on the segment to the reference"):
        SimpleTaylor(model, "segment").attribute(x, 0, baselines=2.0)
    flat = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        flat[0].bias.fill_(-100.0)
        flat[2].bias.fill_(1.0)
    with pytest.raises(InputError, match="which is zero"):
        SimpleTaylor(flat, "gradient").attribute(x, 0)
    with pytest.raises(
        InputError, match="samples 0, 1 has no root along the gradient, nor from any of 8 other starts on"
    ):
        SimpleTaylor(flat).attribute(x, 0)
    with torch.no_grad():
        flat[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        flat[0].bias.fill_(-12.0)
        flat[2].weight.fill_(-0.5)
    close(SimpleTaylor(flat).expand(x, 0).distance, torch.full((2,), 1.4, dtype=DTYPE))  # 3 a + 4 b = 14 from (1, 1)


BAD: dict[str, tuple[dict[str, Any], Any, dict[str, Any], type[Exception], str]] = {
    "root": ({"root": "far"}, None, {}, InputError, "root must be one of"),
    "steps": ({"n_steps": 0}, None, {}, InputError, "n_steps"),
    "iterations": ({"iterations": 0}, None, {}, InputError, "iterations"),
    "starts": ({"starts": -1}, None, {}, InputError, "starts"),
    "seed": ({"seed": 1.5}, None, {}, InputTypeError, "seed must be an int"),
    "reach": ({"reach": 0.0}, None, {}, InputError, "reach must be a finite number above 0, got 0.0"),
    "baselines": ({}, None, {"baselines": 0.0}, InputError, "Only root='segment'"),
    "shape": ({"root": "segment"}, None, {"baselines": torch.zeros(3, 4)}, InputError, r"shape \(3, 4\)"),
    "tokens": ({}, torch.ones(2, 4, dtype=torch.int64), {}, InputTypeError, "lie on no path"),
    "structure": ({}, {"x": torch.ones(2, 4)}, {}, InputError, "structure"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_calls(case: str) -> None:
    made, x, called, error, words = BAD[case]
    with pytest.raises(error, match=words):
        SimpleTaylor(mlp(), **made).attribute(vectors() if x is None else x, 0, **called)


def test_sensitivity_is_the_gradient_squared() -> None:
    model, x = residual(), images()
    expected = gradient(lambda leaf: model(leaf)[:, 1], x).square()
    close(Sensitivity(model).attribute(x, 1), expected)
    close(Sensitivity(model).attribute(x, 1), Gradient(model, "squared").attribute(x, 1))
    assert not Sensitivity.contract.complete and Sensitivity.contract.output == "coefficient"
