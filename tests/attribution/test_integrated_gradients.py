"""Integrated gradients: closed forms, plain autograd, Captum, what completeness and invariance promise, bad input."""

from __future__ import annotations

from typing import Any, ClassVar

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import (
    ConvergenceWarning,
    GradientXInput,
    InputError,
    InputTypeError,
    IntegratedGradients,
    Keywords,
    NumericalError,
    RelpropError,
)
from relprop.attribution.quadrature import quadrature
from tests.attribution.averages import BACKGROUND, pictures, spelt
from tests.checks import refuses
from tests.models import close, gradient, mlp, settle, vectors, without_bias

RULES = ("gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid")


class Of(nn.Module):
    """A function as a model."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def at_points(score: Any, x: Tensor, end: Tensor, points: list[float], weights: list[float]) -> Tensor:
    """The weighted sum of plain gradients on the path, times the way."""
    total = torch.zeros_like(x)
    for t, w in zip(points, weights, strict=True):
        total += w * gradient(score, end + t * (x - end))
    return (x - end) * total


def gauss(n: int) -> tuple[list[float], list[float]]:
    points, weights = np.polynomial.legendre.leggauss(n)
    return (0.5 + 0.5 * points).tolist(), (0.5 * weights).tolist()


EXPECTED = {
    "gausslegendre": gauss,
    "riemann_left": lambda n: ([k / n for k in range(n)], [1 / n] * n),
    "riemann_right": lambda n: ([(k + 1) / n for k in range(n)], [1 / n] * n),
    "riemann_middle": lambda n: ([(k + 0.5) / n for k in range(n)], [1 / n] * n),
    "riemann_trapezoid": lambda n: (
        [k / (n - 1) for k in range(n)],
        [1 / (n - 1) * (0.5 if k in (0, n - 1) else 1) for k in range(n)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_against_plain_autograd(rule: Any) -> None:
    model, x = spelt()[1], pictures()
    points, weights = EXPECTED[rule](9)
    expected = at_points(lambda leaf: model(leaf)[:, 2], x, BACKGROUND[:2], points, weights)
    close(IntegratedGradients(model).attribute(x, BACKGROUND[:2], 2, n_steps=9, method=rule), expected)
    mean = IntegratedGradients(model, multiply_by_inputs=False).attribute(x, BACKGROUND[:2], 2, n_steps=9, method=rule)
    close(mean * (x - BACKGROUND[:2]), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 3, 50])
def test_points_and_weights(rule: Any, steps: int) -> None:
    found = quadrature(rule, steps)
    assert np.allclose(found, EXPECTED[rule](steps), atol=1e-14)
    assert abs(sum(found[1]) - 1) < 1e-12


def test_monomials_have_a_closed_form() -> None:
    """Along the path from zero, x0^2 x1 gives 2/3 of itself to x0 and 1/3 to x1; Gauss-Legendre needs two points."""
    model, x = Of(lambda x: x[:, 0] ** 2 * x[:, 1]), vectors(5, 2)
    value = x[:, 0] ** 2 * x[:, 1]
    found, delta = IntegratedGradients(model).attribute(x, n_steps=2, return_convergence_delta=True)
    close(found, torch.stack([2 * value / 3, value / 3], 1))
    assert float(delta.abs().max()) < 1e-14
    # One point in the middle: x0 2 (x0/2)(x1/2) and x1 (x0/2)^2.
    one = IntegratedGradients(model).attribute(x, n_steps=1, method="riemann_middle")
    close(one, torch.stack([value / 2, value / 4], 1))


@pytest.mark.parametrize("rule", RULES[:4])
@pytest.mark.parametrize("ends", [None, 0.3, "each"], ids=["zero", "number", "each"])
@pytest.mark.parametrize("target", [1, [2, 0]], ids=["one", "each target"])
def test_against_captum(rule: Any, ends: Any, target: Any) -> None:
    model, x = spelt()[0], pictures()
    ends = BACKGROUND[:2] if ends == "each" else ends
    theirs, gap = captum.attr.IntegratedGradients(model).attribute(
        x, ends, target, n_steps=20, method=rule, return_convergence_delta=True
    )
    found, delta = IntegratedGradients(model).attribute(
        x, ends, target, n_steps=20, method=rule, return_convergence_delta=True
    )
    close(found, theirs, 1e-6)  # Captum's weights are in single precision
    close(delta, -gap, 1e-5)


def test_the_trapezoid_of_captum_has_weights_that_sum_to_less() -> None:
    model, x = spelt()[0], pictures()
    theirs = captum.attr.IntegratedGradients(model).attribute(x, 0.3, 1, n_steps=20, method="riemann_trapezoid")
    found = IntegratedGradients(model).attribute(x, 0.3, 1, n_steps=20, method="riemann_trapezoid")
    close(found * (19 / 20), theirs, 1e-6)


# ------------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("steps", [2, 5, 50])
@pytest.mark.parametrize("spelling", [0, 1])
def test_without_biases_it_is_gradient_times_input(steps: int, spelling: int) -> None:
    """The gradient is the same all along the path but at zero, where every ReLU passes nothing."""
    model, x = without_bias(spelt()[spelling]), pictures()
    expected = GradientXInput(model).attribute(x, 1)
    for rule in ("gausslegendre", "riemann_middle", "riemann_right"):
        found, delta = IntegratedGradients(model).attribute(
            x, target=1, n_steps=steps, method=rule, return_convergence_delta=True  # type: ignore[arg-type]
        )  # fmt: skip
        close(found, expected)
        assert float(delta.abs().max()) < 1e-10
    left = IntegratedGradients(model).attribute(x, target=1, n_steps=steps, method="riemann_left")
    close(left, expected * (1 - 1 / steps))
    trapezoid = IntegratedGradients(model).attribute(x, target=1, n_steps=steps, method="riemann_trapezoid")
    close(trapezoid, expected * (1 - 0.5 / (steps - 1)))


@pytest.mark.slow
def test_completeness_with_biases() -> None:
    model, x = spelt()[1], pictures(4)
    for ends in (None, BACKGROUND):
        found, delta = IntegratedGradients(model).attribute(
            x, ends, [0, 1, 2, 1], n_steps=300, return_convergence_delta=True
        )
        there = torch.zeros_like(x) if ends is None else ends
        claimed = (model(x) - model(there))[range(4), [0, 1, 2, 1]].detach()
        close(found.flatten(1).sum(1) + delta, claimed)
        assert float(delta.abs().max()) < 2e-2 * float(claimed.abs().max())
        few = IntegratedGradients(model).attribute(x, ends, [0, 1, 2, 1], n_steps=3, return_convergence_delta=True)
        assert float(few[1].abs().max()) > 3 * float(delta.abs().max())


@pytest.mark.slow
def test_networks_of_the_same_function_get_the_same_map() -> None:
    """The minimum in two ways, as in DeepLIFT's paper; the two networks of the appendix of integrated gradients'."""

    def relu(z: Tensor) -> Tensor:
        return z.clamp(min=0)

    pairs = [
        (lambda x: x[:, 0] - relu(x[:, 0] - x[:, 1]), lambda x: x[:, 1] - relu(x[:, 1] - x[:, 0])),
        (lambda x: relu(relu(x[:, 0]) - 1 - relu(x[:, 1])), lambda x: relu(relu(x[:, 0] - 1) - relu(x[:, 1]))),
    ]
    x = torch.tensor([[3.0, 1.0], [1.0, 2.5], [4.0, 0.5], [-1.0, 2.0]], dtype=torch.float64)
    ends = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    for first, second in pairs:
        assert torch.equal(first(x), second(x))
        for end in (None, ends):
            close(IntegratedGradients(Of(first)).attribute(x, end), IntegratedGradients(Of(second)).attribute(x, end))
    # From zero the smaller one gets all.
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.5], [-1.0, 0.0]], dtype=torch.float64)
    close(IntegratedGradients(Of(pairs[0][0])).attribute(x), expected)


# ------------------------------------------------------------------------------------------------ as many steps as


class Counting(nn.Module):
    """How many samples went through, kept by the class: what the instance holds is put back."""

    seen: ClassVar[list[int]] = []

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        out: Tensor = self.model(x)
        return out


def test_steps_until_delta_is_small() -> None:
    model, x = settle(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), vectors()
    method = IntegratedGradients(model)
    deltas = {
        steps: float(method.attribute(x, target=1, n_steps=steps, return_convergence_delta=True)[1].abs().max())
        for steps in (1, 2, 4, 8)
    }
    tolerance = 1.01 * deltas[8]
    assert all(deltas[steps] > tolerance for steps in (1, 2, 4)), deltas
    found, delta = method.attribute(x, target=1, n_steps=1, tolerance=tolerance, return_convergence_delta=True)
    assert float(delta.abs().max()) == deltas[8]
    assert torch.equal(found, method.attribute(x, target=1, n_steps=8))
    assert torch.equal(found, method.attribute(x, target=1, n_steps=1, tolerance=tolerance))
    with pytest.warns(ConvergenceWarning, match="after 4 steps, above the tolerance of .*max_steps=7"):
        last = method.attribute(x, target=1, n_steps=1, tolerance=tolerance, max_steps=7)
    assert torch.equal(last, method.attribute(x, target=1, n_steps=4))


def test_a_pass_for_every_point() -> None:
    counting, x = Counting(spelt()[0]), pictures(3)
    for size, expected in ((None, [3] * 5), (3, [3] * 5), (2, [2, 1] * 5), (6, [6, 6, 3]), (100, [15])):
        counting.seen.clear()
        IntegratedGradients(counting).attribute(x, target=1, n_steps=5, internal_batch_size=size)
        assert counting.seen == expected


# ------------------------------------------------------------------------------------------------------- bad input


def test_baselines_of_the_wrong_shape() -> None:
    model, x = mlp(), vectors(3)
    for wrong in (torch.zeros(3, 5), torch.zeros(2, 4), torch.zeros(4), torch.zeros(1, 1)):
        with refuses(model, InputError, ValueError, "The baseline has shape", str(tuple(wrong.shape)), "(1, 4)"):
            IntegratedGradients(model).attribute(x, wrong, 1)
    with refuses(model, InputError, ValueError, "baselines", "tuple of 2", "3 entries"):
        IntegratedGradients(model).attribute((x, x), (0, 0, 0), 1)
    with refuses(model, InputTypeError, TypeError, "The baseline must be", "str"):
        IntegratedGradients(model).attribute(x, "black", 1)
    with refuses(model, NumericalError, ValueError, "NaN or infinity"):
        IntegratedGradients(model).attribute(x, torch.full((1, 4), float("nan")), 1)


@pytest.mark.slow
def test_a_baseline_may_be_shared_or_have_another_dtype() -> None:
    model, x = mlp(), vectors(3)
    method = IntegratedGradients(model)
    expected = method.attribute(x, torch.ones(3, 4).double(), 1)
    for ends in (1, 1.0, np.float32(1), torch.ones(1, 4), torch.ones(3, 4, dtype=torch.int64), torch.tensor(1.0)):
        assert torch.equal(method.attribute(x, ends, 1), expected)
    assert torch.equal(method.attribute((x,), (torch.ones(3, 4),), 1)[0], expected)
    assert torch.equal(method.attribute(x, (torch.ones(3, 4),), 1), expected)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "many"])
def test_no_steps(steps: Any) -> None:
    model = mlp()
    with refuses(model, InputError, ValueError, "n_steps must be a whole number of at least 1", repr(steps)):
        IntegratedGradients(model).attribute(vectors(), target=1, n_steps=steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "simpson"}, ("method must be one of", "gausslegendre", "simpson")),
        ({"method": "riemann_mid"}, ("Did you mean 'riemann_middle'",)),
        ({"method": "riemann_trapezoid", "n_steps": 1}, ("riemann_trapezoid", "at least 2")),
        ({"tolerance": 0.0}, ("tolerance must be a finite number above 0",)),
        ({"tolerance": float("nan")}, ("tolerance must be a finite number above 0",)),
        ({"max_steps": 0}, ("max_steps", "at least 1")),
    ],
)
def test_other_options(options: dict[str, Any], words: tuple[str, ...]) -> None:
    model = mlp()
    with refuses(model, InputError, ValueError, *words):
        IntegratedGradients(model).attribute(vectors(), target=1, **options)


def test_a_coefficient_has_no_delta_and_no_tolerance() -> None:
    model = mlp()
    mean = IntegratedGradients(model, multiply_by_inputs=False)
    assert mean.contract.output == "coefficient" and not mean.contract.complete
    for options in ({"return_convergence_delta": True}, {"tolerance": 0.1}):
        with refuses(model, InputError, ValueError, "IntegratedGradients", "no convergence delta"):
            mean.attribute(vectors(), target=1, **options)  # type: ignore[arg-type]


def test_token_ids_lie_on_no_path() -> None:
    model, ids = settle(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))), torch.ones(2, 3).long()
    with refuses(model, InputTypeError, TypeError, "embedded tokens"):
        IntegratedGradients(model).attribute(ids, target=1)
    with refuses(model, InputTypeError, TypeError, "embedded tokens"):
        IntegratedGradients(model).attribute(Keywords(input=ids), target=1)


def test_an_output_that_is_infinite_at_the_baseline() -> None:
    model = Of(lambda x: x.log().sum(1))
    x = vectors().abs()
    with refuses(model, RelpropError, ValueError, "at the baseline is NaN or infinite"):
        IntegratedGradients(model).attribute(x, 0.0, return_convergence_delta=True)
