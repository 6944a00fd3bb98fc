"""Noise and random points of paths: against plain loops over the same numbers, in the mean against closed forms."""

from __future__ import annotations

from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    Gradient,
    GradientShap,
    GradientXInput,
    InputError,
    InputTypeError,
    IntegratedGradients,
    Method,
    NoiseTunnel,
    SmoothGrad,
    SmoothGradSquared,
    VarGrad,
)
from tests.attribution.averages import BACKGROUND, pictures, spelt
from tests.checks import refuses
from tests.models import close, gradient, mlp, settle, vectors

KINDS = {
    "smoothgrad": (SmoothGrad, lambda maps: maps.mean(0)),
    "smoothgrad_sq": (SmoothGradSquared, lambda maps: maps.pow(2).mean(0)),
    "vargrad": (VarGrad, lambda maps: maps.var(0, unbiased=False)),
}


def copies(x: Tensor, sigma: Tensor | float, count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [x + sigma * torch.randn(x.shape, generator=generator).double() for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 5])
def test_against_a_plain_loop(kind: Any, seed: int) -> None:
    model, x = spelt()[1], pictures()
    x[1] *= 3  # the range is that of each sample
    method, statistic = KINDS[kind]
    sigma = 0.1 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None, None, None]
    maps = [gradient(lambda leaf: model(leaf)[:, 1], noisy) for noisy in copies(x, sigma, 8, seed)]
    expected = statistic(torch.stack(maps))
    close(method(Gradient(model)).attribute(x, 1, nt_samples=8, noise_level=0.1, seed=seed), expected)
    tunnel = NoiseTunnel(Gradient(model))
    close(tunnel.attribute(x, 1, nt_type=kind, nt_samples=8, noise_level=0.1, seed=seed), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inner", ["lrp", "integrated gradients", "gradient x input"])
def test_over_any_method(kind: Any, inner: str) -> None:
    model, x = spelt()[0], pictures()
    made: dict[str, tuple[Method, dict[str, Any]]] = {
        "lrp": (LRP(model, "epsilon_plus"), {}),
        "integrated gradients": (IntegratedGradients(model), {"n_steps": 4, "baselines": BACKGROUND[:2]}),
        "gradient x input": (GradientXInput(model), {"condition": {"first": [0, 2]}}),
    }
    method, options = made[inner]
    maps = [method.attribute(noisy, target=[2, 1], **options) for noisy in copies(x, 0.4, 5)]
    found = NoiseTunnel(method).attribute(x, [2, 1], nt_type=kind, nt_samples=5, stdevs=0.4, **options)
    close(found, KINDS[kind][1](torch.stack(maps)))


def test_fifty_samples_by_default_and_no_global_numbers() -> None:
    model, x = mlp(), vectors()
    state = torch.get_rng_state()
    found = SmoothGrad(Gradient(model)).attribute(x, 1)
    assert torch.equal(torch.get_rng_state(), state)
    sigma = 0.15 * (x.amax(1) - x.amin(1))[:, None]
    close(found, torch.stack([gradient(lambda leaf: model(leaf)[:, 1], n) for n in copies(x, sigma, 50)]).mean(0))
    assert torch.equal(found, SmoothGrad(Gradient(model)).attribute(x, 1, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(3)
    first, second = (VarGrad(Gradient(model)).attribute(x, 1, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_without_noise_it_is_the_map() -> None:
    model, x = spelt()[0], pictures()
    plain = LRP(model).attribute(x, 1)
    for options in ({"noise_level": 0.0}, {"stdevs": 0}, {"stdevs": (0.0,)}):
        close(SmoothGrad(LRP(model)).attribute(x, 1, nt_samples=3, **options), plain)
        close(SmoothGradSquared(LRP(model)).attribute(x, 1, nt_samples=3, **options), plain.square())
        assert float(VarGrad(LRP(model)).attribute(x, 1, nt_samples=3, **options).abs().max()) < 1e-28


def test_a_variance_does_not_cancel() -> None:
    """The difference of the mean square and the squared mean would lose all digits here."""

    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (1e8 * x + 0.5 * x**2).sum(1)

    x = vectors(2, 3)
    expected = torch.stack(copies(x, 0.5, 20)).var(0, unbiased=False)
    close(VarGrad(Gradient(Steep())).attribute(x, nt_samples=20, stdevs=0.5), expected, 1e-6)


@pytest.mark.slow
def test_in_the_mean_against_captum() -> None:
    """Other numbers, the same distribution: each mean lies within five standard errors of the other."""
    model, x, count = settle(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), vectors(), 3000
    torch.manual_seed(0)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    options: dict[str, Any] = {"stdevs": 0.5, "internal_batch_size": 4000}
    spread = VarGrad(Gradient(model)).attribute(x, 1, nt_samples=count, **options)
    for kind, ours in (("smoothgrad", SmoothGrad), ("vargrad", VarGrad)):
        theirs = tunnel.attribute(x, nt_type=kind, nt_samples=count, stdevs=0.5, target=1, abs=False)
        found = ours(Gradient(model)).attribute(x, 1, nt_samples=count, **options)
        bound = 5 * (2 * spread / count).sqrt() if kind == "smoothgrad" else 0.2 * spread
        assert bool(((found - theirs).abs() < bound).all())


def test_integers_are_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.tanh(self.embedding(ids).sum(1) * x))
            return out

    model, ids, x = settle(Both()), torch.tensor([[0, 1], [3, 4]]), vectors()
    tokens, found = SmoothGrad(GradientXInput(model)).attribute((ids, x), 1, nt_samples=4, stdevs=0.2)
    maps = [GradientXInput(model).attribute((ids, noisy), 1) for noisy in copies(x, 0.2, 4)]
    close(tokens, torch.stack([one for one, _ in maps]).mean(0))
    close(found, torch.stack([two for _, two in maps]).mean(0))
    with refuses(model, InputTypeError, TypeError, "Integers cannot be given noise"):
        SmoothGrad(Gradient(model)).attribute(ids, 1)
    with refuses(model, InputTypeError, TypeError, "GradientShap moves the inputs"):
        GradientShap(model).attribute((ids, x), 0, target=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nt_samples": 0}, ("nt_samples", "at least 1")),
        ({"noise_level": -0.1}, ("noise_level", "at least 0", "-0.1")),
        ({"stdevs": float("inf")}, ("stdevs", "inf")),
        ({"stdevs": "small"}, ("stdevs", "'small'")),
        ({"stdevs": (0.1, 0.2)}, ("stdevs has 2 entries for 1 inputs",)),
        ({"nt_type": "smooth"}, ("nt_type must be one of", "Did you mean 'smoothgrad'")),
        ({"seed": 1, "generator": torch.Generator()}, ("a seed or a generator, not both",)),
    ],
)
def test_bad_options(options: dict[str, Any], words: tuple[str, ...]) -> None:
    model = mlp()
    with refuses(model, InputError, ValueError, *words):
        NoiseTunnel(Gradient(model)).attribute(vectors(), 1, **options)


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"seed": True}, {"generator": 3}])
def test_what_is_no_seed(options: dict[str, Any]) -> None:
    model = mlp()
    with refuses(model, InputTypeError, TypeError, *options):
        SmoothGrad(Gradient(model)).attribute(vectors(), 1, **options)
    with refuses(model, InputTypeError, TypeError, *options):
        GradientShap(model).attribute(vectors(), 0, target=1, **options)


# ------------------------------------------------------------------------------------------------- expected gradients


def test_random_points_against_a_plain_loop() -> None:
    model, x = spelt()[1], pictures(3)
    generator = torch.Generator().manual_seed(4)
    total, reference = torch.zeros_like(x), torch.zeros(3).double()
    for _ in range(7):
        ends = BACKGROUND[torch.randint(4, (3,), generator=generator)]
        noisy = x + 0.3 * torch.randn(x.shape, generator=generator).double()
        t = torch.rand(3, generator=generator).double()[:, None, None, None]
        total += (noisy - ends) * gradient(lambda leaf: model(leaf)[:, 2], ends + t * (noisy - ends)) / 7
        reference += model(ends)[:, 2].detach() / 7
    found, delta = GradientShap(model).attribute(
        x, BACKGROUND, 7, 0.3, 2, seed=4, return_convergence_delta=True, internal_batch_size=5
    )
    close(found, total)
    close(delta, model(x)[:, 2].detach() - reference - total.flatten(1).sum(1))


def test_a_linear_model_is_exact() -> None:
    """The points of the path do not matter: what is left is the input less the mean baseline."""
    model, x = settle(nn.Linear(4, 3)), vectors(3)
    end = vectors(1, seed=8)
    found, delta = GradientShap(model).attribute(x, end, 3, target=1, return_convergence_delta=True)
    close(found, (x - end) * model.weight[1].detach())
    assert float(delta.abs().max()) < 1e-14
    close(GradientShap(model).attribute(x, 0.5, 3, target=1), (x - 0.5) * model.weight[1].detach())


@pytest.mark.slow
def test_in_the_mean_they_are_integrated_gradients_over_all_baselines() -> None:
    model, x = settle(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), vectors()
    pool = vectors(3, seed=9)
    found, delta = GradientShap(model).attribute(
        x, pool, 20000, target=1, return_convergence_delta=True, internal_batch_size=20000
    )
    each = torch.stack([IntegratedGradients(model).attribute(x, pool[i : i + 1], 1) for i in range(3)])
    close(found, each.mean(0), 0.03)
    torch.manual_seed(0)
    theirs = captum.attr.GradientShap(model).attribute(x, pool, n_samples=20000, target=1)
    close(found, theirs, 0.05)
    claimed = (model(x) - model(pool).mean(0))[:, 1].detach()
    assert float(delta.abs().max()) < 0.03 * float(claimed.abs().max())


def test_distributions_that_do_not_fit() -> None:
    model, x = mlp(), vectors(3)
    for wrong in (torch.zeros(5, 3), torch.zeros(0, 4), torch.zeros(4)):
        with refuses(model, InputError, ValueError, "The baselines have shape", str(tuple(wrong.shape)), "[M, 4]"):
            GradientShap(model).attribute(x, wrong, target=1)
    with refuses(model, InputError, ValueError, "No baselines were given"):
        GradientShap(model).attribute(x, None, target=1)
    with refuses(model, InputError, ValueError, "as many baselines for every input, got [5, 4]"):
        GradientShap(model).attribute((x, x), (torch.zeros(5, 4), torch.zeros(4, 4)), target=1)
    with refuses(model, InputError, ValueError, "n_samples", "at least 1"):
        GradientShap(model).attribute(x, 0, 0, target=1)
