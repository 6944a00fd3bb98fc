"""One convention for seeds, and the range of samples that noise is measured in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import (
    Combined,
    Gradient,
    GradientShap,
    InputError,
    InputTypeError,
    KernelShap,
    Keywords,
    Method,
    Random,
    ShapleyValueSampling,
    SmoothGrad,
    Translated,
)
from tests.checks import refuses
from tests.models import close, gradient, images, mlp, residual, settle, vectors

Drawn = Callable[[nn.Module, Tensor, Any], Tensor]

DRAWING: dict[str, Drawn] = {
    "noise": lambda m, x, seed: SmoothGrad(Gradient(m)).attribute(x, 1, nt_samples=3, seed=seed),
    "gradient shap": lambda m, x, seed: GradientShap(m).attribute(x, x.flip(0), n_samples=3, target=1, seed=seed),
    "shapley": lambda m, x, seed: ShapleyValueSampling(m).attribute(x, target=1, n_samples=2, seed=seed),
    "kernel": lambda m, x, seed: KernelShap(m).attribute(x, target=1, n_samples=9, seed=seed),
    "shifts": lambda m, x, seed: Translated(SmoothGrad(Gradient(m)), [0, 1]).attribute(x, 1, nt_samples=2, seed=seed),
    "random": lambda m, x, seed: Random(m, seed).attribute(x, 1),
}

drawing = pytest.mark.parametrize("drawn", DRAWING.values(), ids=DRAWING)


def smooth() -> nn.Sequential:
    return settle(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


@drawing
def test_one_convention(drawn: Drawn) -> None:
    model, x = smooth(), vectors()
    found = drawn(model, x, 0)
    assert torch.equal(drawn(model, x, None), found)
    assert torch.equal(drawn(model, x, np.int64(0)), found)
    assert not torch.equal(drawn(model, x, np.uint8(7)), found)
    assert torch.equal(drawn(model, x, -3), drawn(model, x, np.int32(-3)))
    for seed in ("x", 1.5, True, np.bool_(True), torch.tensor(1)):
        with refuses(model, InputTypeError, TypeError, "seed must be an int"):
            drawn(model, x, seed)
    for seed in (2**64, -(2**63) - 1):
        with refuses(model, InputError, ValueError, "seed must lie between"):
            drawn(model, x, seed)


def test_a_generator_is_a_generator() -> None:
    model, x = mlp(), vectors()
    for found in (
        lambda: Random(model, generator=3),  # type: ignore[arg-type]
        lambda: GradientShap(model).attribute(x, x, target=1, generator=3),  # type: ignore[arg-type]
    ):
        with refuses(model, InputTypeError, TypeError, "generator must be a torch.Generator, got int"):
            found()


def test_random_maps_do_not_depend_on_the_dtype() -> None:
    model, x = residual(), images()
    expected = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float32)
    close(Random(model, 5).attribute(x, 1), expected.double())
    assert torch.equal(Random(model.float(), 5).attribute(x.float(), 1), expected)


# --------------------------------------------------------------------------------- methods that draw, averaged


def derived(seed: int, count: int) -> list[int]:
    """The seeds that the runs of the inner method get."""
    source = torch.Generator().manual_seed(seed)
    return [int(torch.randint(2**62, (), generator=source)) for _ in range(count)]


def test_noise_gives_every_run_another_seed() -> None:
    model, x = smooth(), vectors()
    pool, options = torch.cat([x, -x]), {"n_samples": 2, "target": 1}
    noise = torch.Generator().manual_seed(6)
    copies = [x + 0.3 * torch.randn(x.shape, generator=noise).double() for _ in range(4)]
    expected = torch.stack(
        [
            GradientShap(model).attribute(copy, pool, seed=seed, **options)
            for copy, seed in zip(copies, derived(6, 4), strict=True)
        ]
    ).mean(0)
    method = SmoothGrad(GradientShap(model))
    found = method.attribute(x, 1, nt_samples=4, stdevs=0.3, seed=6, baselines=pool, n_samples=2)
    close(found, expected)
    same = [GradientShap(model).attribute(copy, pool, seed=0, **options) for copy in copies]
    assert not torch.allclose(found, torch.stack(same).mean(0))
    generator = torch.Generator().manual_seed(6)
    again = [
        method.attribute(x, 1, nt_samples=4, stdevs=0.3, generator=generator, baselines=pool, n_samples=2)
        for _ in range(2)
    ]
    close(again[0], expected)
    assert not torch.allclose(*again)


def test_shifts_give_every_run_another_seed() -> None:
    model, x = mlp(), vectors()
    method = SmoothGrad(Gradient(model))
    maps = [
        method.attribute(torch.roll(x, step, 1), 1, nt_samples=2, stdevs=0.5, seed=seed).roll(-step, 1)
        for step, seed in zip((-1, 0, 1), derived(2, 3), strict=True)
    ]
    found = Translated(method, [-1, 0, 1], border="circular").attribute(x, 1, nt_samples=2, stdevs=0.5, seed=2)
    close(found, torch.stack(maps).mean(0))
    generator = torch.Generator().manual_seed(2)
    maps = [
        method.attribute(torch.roll(x, step, 1), 1, nt_samples=2, stdevs=0.5, generator=generator).roll(-step, 1)
        for step in (-1, 0, 1)
    ]
    generator.manual_seed(2)
    found = Translated(method, [-1, 0, 1], border="circular").attribute(
        x, 1, nt_samples=2, stdevs=0.5, generator=generator
    )
    close(found, torch.stack(maps).mean(0))


def test_methods_that_draw_nothing_get_no_seed() -> None:
    class Plain(Method):
        contract = Gradient.contract

        def attribute(self, inputs: Any, target: Any = None) -> Any:  # type: ignore[override]
            return Gradient(self.model).attribute(inputs, target)

    model, x = mlp(), vectors()
    close(SmoothGrad(Plain(model)).attribute(x, 1, seed=3), SmoothGrad(Gradient(model)).attribute(x, 1, seed=3))


# ----------------------------------------------------------------------------- options of what is wrapped


def test_options_that_a_method_does_not_take() -> None:
    model, x = mlp(), vectors()
    several = Combined([SmoothGrad(Gradient(model)), Gradient(model)])
    with refuses(model, InputTypeError, TypeError, "Combined hands 'nt_samples' over to Gradient", "does not take it"):
        several.attribute(x, 1, nt_samples=3)
    with refuses(model, InputTypeError, TypeError, "SmoothGrad hands 'n_steps' over to Gradient", "inputs, target"):
        SmoothGrad(Gradient(model)).attribute(x, 1, n_steps=3)
    with refuses(model, InputTypeError, TypeError, "Translated hands 'n_step' over", "Did you mean 'n_samples'"):
        Translated(GradientShap(model), [0]).attribute(x, 1, baselines=x, n_step=3)
    with refuses(model, InputTypeError, TypeError, "Translated hands 'seed' over to Gradient"):
        Translated(Gradient(model), [0]).attribute(x, 1, seed=3)


# --------------------------------------------------------------------------------------- the range of a sample


class Named(nn.Module):
    """Takes its inputs by keyword or in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, data: Any = None, x: Any = None, y: Any = None) -> Tensor:
        x, y = (x, y) if data is None else (data["x"], data["y"])
        out: Tensor = self.out(torch.tanh(x) * y.mean())
        return out


def test_the_range_is_that_of_each_sample_however_inputs_are_given() -> None:
    """With a common batch; without one, nodes and edges of a graph, it is that of the whole tensor."""
    model, x = settle(Named()), torch.cat([vectors(), 40 * vectors()])
    noise = torch.Generator().manual_seed(0)
    for y, whole in ((torch.ones(4, 2).double(), False), (torch.ones(7, 2).double(), True)):
        noise.manual_seed(0)
        scale = x.amax() - x.amin() if whole else (x.amax(1) - x.amin(1))[:, None]
        maps = []
        for _ in range(3):
            copy = x + 0.1 * scale * torch.randn(x.shape, generator=noise).double()
            torch.randn(y.shape, generator=noise)  # whose range is 0
            maps.append(gradient(lambda leaf, y=y: model(x=leaf, y=y)[:, 1], copy))
        expected = torch.stack(maps).mean(0)
        for given, read in (
            (Keywords(x=x, y=y), lambda found: found["x"]),
            ({"x": x, "y": y}, lambda found: found["x"]),
        ):
            found = SmoothGrad(Gradient(model)).attribute(given, lambda out: out[:, 1], nt_samples=3, noise_level=0.1)
            close(read(found), expected)
