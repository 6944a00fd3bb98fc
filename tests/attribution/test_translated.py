"""Maps of shifted inputs, and of several methods: against plain loops, and on networks that shifts do not change."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import (
    LRP,
    Combined,
    Gradient,
    GradientXInput,
    GuidedBackprop,
    Input,
    InputError,
    IntegratedGradients,
    LayerGradCam,
    MethodError,
    SmoothGrad,
    Translated,
)
from relprop.rules import Gamma
from tests.attribution.averages import BACKGROUND, pictures, spelt
from tests.checks import refuses
from tests.models import close, gradient, mlp, settle, vectors


def shift_by_hand(x: Tensor, shift: tuple[int, int], border: str) -> Tensor:
    """x[..., i - down, j - right], entry by entry."""
    moved = torch.zeros_like(x)
    rows, columns = x.shape[-2:]

    def inner(i: int, size: int) -> int | None:
        if border == "circular":
            return i % size
        if border == "zero":
            return i if 0 <= i < size else None
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    for i, j in product(range(rows), range(columns)):
        a, b = inner(i - shift[0], rows), inner(j - shift[1], columns)
        if a is not None and b is not None:
            moved[..., i, j] = x[..., a, b]
    return moved


@pytest.mark.parametrize("border", ["circular", "zero", "reflect"])
@pytest.mark.parametrize("shifts", [[(0, 0), (1, -2), (-3, 0)], [(5, 5)], 1], ids=["three", "far", "all"])
def test_against_a_plain_loop(border: Any, shifts: Any) -> None:
    model, x = spelt()[1], pictures()
    listed = list(product((-1, 0, 1), repeat=2)) if shifts == 1 else shifts
    expected, lost, total = torch.zeros_like(x), torch.zeros(2).double(), torch.zeros(2).double()
    for down, right in listed:
        moved = shift_by_hand(x, (down, right), border)
        found = gradient(lambda leaf: model(leaf)[:, 1], moved)
        back = shift_by_hand(found, (-down, -right), "circular" if border == "circular" else "zero")
        expected += back / len(listed)
        lost += (found.flatten(1).sum(1) - back.flatten(1).sum(1)) / len(listed)
        total += found.flatten(1).sum(1) / len(listed)
    found, missing = Translated(Gradient(model), shifts, border).attribute(x, 1, return_lost=True)
    close(found, expected)
    assert torch.allclose(missing, lost, atol=1e-12)
    close(found.flatten(1).sum(1) + missing, total)
    assert bool((missing == 0).all()) == (border == "circular")
    assert torch.equal(Translated(Gradient(model), shifts, border).attribute(x, 1), found)


def test_reflection_is_that_of_torch() -> None:
    x = pictures()
    found = Translated(Input(Flat()), [(0, 2)], "reflect")
    moved = F.pad(x, (2, 2, 0, 0), mode="reflect")[..., :6]
    maps = found.attribute(x)
    close(maps[..., :4], moved[..., 2:])
    assert not maps[..., 4:].any(), "what was left of the image when it was shifted"


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1)


class Round(nn.Module):
    """Circular padding, stride 1, global pooling: shifts change nothing but where things are."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        self.two = nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")
        self.head, self.functional = nn.Linear(3, 3), functional
        self.relu, self.mean = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            h = F.relu(self.two(F.relu(self.one(x)))).mean((2, 3))
        else:
            h = self.mean(torch.relu(self.two(self.relu(self.one(x))))).flatten(1)
        out: Tensor = self.head(h)
        return out


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("shifts", [1, [(2, 3), (-1, 5), (0, 0)]], ids=["near", "far"])
def test_where_shifts_change_nothing_it_is_the_plain_map(functional: bool, shifts: Any) -> None:
    model, x = settle(Round(functional)), pictures()
    for method in (LRP(model), LRP(model, "epsilon"), Gradient(model), GuidedBackprop(model), GradientXInput(model)):
        close(Translated(method, shifts).attribute(x, 0), method.attribute(x, 0))
    far = Translated(Gradient(model), shifts, "zero").attribute(x, 0)
    assert not torch.allclose(far, Gradient(model).attribute(x, 0)), "another border is another image"


def test_shifts_along_one_dimension_and_several_inputs() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a.pow(2) * b.flip(1)).sum(1)

    a, b = vectors(2, 5), vectors(2, 5, seed=3)
    found, lost = Translated(Gradient(Pair()), [-1, 2], "zero").attribute((a, b), return_lost=True)
    expected = [torch.zeros_like(a), torch.zeros_like(b)]
    missing = torch.zeros(2).double()
    for step in (-1, 2):
        moved = [shift_by_hand(x[:, None], (0, step), "zero")[:, 0] for x in (a, b)]
        maps = (2 * moved[0] * moved[1].flip(1), moved[0].pow(2).flip(1))
        for total, found_there in zip(expected, maps, strict=True):
            back = shift_by_hand(found_there[:, None], (0, -step), "zero")[:, 0]
            total += back / 2
            missing += (found_there - 0).sum(1) / 2 - back.sum(1) / 2
    close(found[0], expected[0])
    close(found[1], expected[1])
    close(lost, missing)


@pytest.mark.parametrize(
    ("shifts", "words"),
    [
        ([(0, 6)], ("shift (0, 6) is too large", "(2, 2, 6, 6)", "at most 5")),
        ([(0, 0), (-7, 0)], ("shift (-7, 0) is too large",)),
        (6, ("is too large",)),
        ([(0, 0, 0, 0)], ("has not 4 dimensions",)),
    ],
)
@pytest.mark.parametrize("border", ["circular", "zero", "reflect"])
def test_shifts_larger_than_the_image(shifts: Any, words: tuple[str, ...], border: Any) -> None:
    model = spelt()[0]
    with refuses(model, InputError, ValueError, *words):
        Translated(Gradient(model), shifts, border).attribute(pictures(), 1)


@pytest.mark.parametrize(
    ("shifts", "border", "words"),
    [
        ([], "zero", ("shifts must be an int, or a list", "got []")),
        (0, "zero", ("shifts", "at least 1")),
        ([1.5], "zero", ("A shift must be an int or a tuple of ints, got 1.5",)),
        ([(1, 2), 3], "zero", ("as many steps",)),
        ([1], "mirror", ("border must be one of", "mirror")),
    ],
)
def test_what_is_no_shift(shifts: Any, border: Any, words: tuple[str, ...]) -> None:
    model = spelt()[0]
    with refuses(model, InputError, ValueError, *words):
        Translated(Gradient(model), shifts, border)


def test_only_a_map_of_the_shape_of_the_input_can_be_shifted_back() -> None:
    model = spelt()[0]
    with refuses(model, InputError, ValueError, "LayerGradCam returned a map of shape (2, 1, 4, 4)", "(2, 2, 6, 6)"):
        Translated(LayerGradCam(model, "second"), 1).attribute(pictures(), 1)


# --------------------------------------------------------------------------------------------------------- combined


def test_the_weighted_sum() -> None:
    model, x = spelt()[1], pictures()
    maps = [LRP(model, Gamma(g)).attribute(x, 1, return_convergence_delta=True) for g in (0.1, 0.25, 1.0)]
    methods = [LRP(model, Gamma(g)) for g in (0.1, 0.25, 1.0)]
    weights = (0.5, 0.2, 0.3)
    pairs = Combined(list(zip(methods, weights, strict=True)))
    found, delta = pairs.attribute(x, 1, return_convergence_delta=True)
    close(found, sum(w * m for w, (m, _) in zip(weights, maps, strict=True)))
    close(delta, sum(w * d for w, (_, d) in zip(weights, maps, strict=True)))
    close(delta, model(x)[:, 1].detach() - found.flatten(1).sum(1), 1e-9)
    assert torch.equal(Combined(methods, weights).attribute(x, 1), found)
    close(Combined(methods).attribute(x, 1), sum(m for m, _ in maps) / 3)


def test_what_it_claims_follows_from_what_is_combined() -> None:
    model, x = spelt()[0], pictures()
    lrp, gradient_x_input, gradients = LRP(model), GradientXInput(model), IntegratedGradients(model)
    both = Combined([lrp, LRP(model, "epsilon")]).contract
    assert (both.seed, both.output, both.sums_to, both.conditions) == ("f_t", "relevance", "f", lrp.contract.conditions)
    mixed = Combined([lrp, gradient_x_input], [0.4, 0.6]).contract
    assert (mixed.seed, mixed.sums_to) == ("", "f") and "; and " in mixed.conditions
    for unclaimed in (
        Combined([lrp, gradients]),
        Combined([lrp, lrp], [1.0, 1.0]),
        Combined([Gradient(model), Gradient(model)]),
        Combined([SmoothGrad(lrp), lrp]),
    ):
        assert not unclaimed.contract.complete
        with refuses(model, InputError, ValueError, "Combined", "no convergence delta"):
            unclaimed.attribute(x, 1, return_convergence_delta=True)
    two = Combined([gradients, IntegratedGradients(model)])
    assert two.contract == gradients.contract
    found, delta = two.attribute(x, 1, baselines=BACKGROUND[:2], n_steps=9, return_convergence_delta=True)
    expected = gradients.attribute(x, BACKGROUND[:2], 1, n_steps=9, return_convergence_delta=True)
    close(found, expected[0])
    close(delta, expected[1])
    parted = SmoothGrad(two).attribute(x, 1, baselines=BACKGROUND[:2], nt_samples=3, internal_batch_size=1, n_steps=3)
    close(parted, SmoothGrad(two).attribute(x, 1, baselines=BACKGROUND[:2], nt_samples=3, n_steps=3))


def test_what_cannot_be_combined() -> None:
    model, x = mlp(), vectors()
    lrp = LRP(model)
    for wrong in ([], lrp, "lrp", None):
        with refuses(model, MethodError, ValueError, "Combined takes a list of methods"):
            Combined(wrong)  # type: ignore[arg-type]
    with refuses(model, MethodError, ValueError, "Combined wraps a method, got the class LRP"):
        Combined([LRP])  # type: ignore[list-item]
    with refuses(model, MethodError, ValueError, "not both"):
        Combined([(lrp, 0.5), lrp])
    with refuses(model, MethodError, ValueError, "methods of one model"):
        Combined([lrp, LRP(mlp())])
    with refuses(model, MethodError, ValueError, "A coefficient and a relevance cannot be added", "Gradient returns"):
        Combined([lrp, Gradient(model)])
    with refuses(model, InputError, ValueError, "not both"):
        Combined([(lrp, 0.5)], [0.5])
    with refuses(model, InputError, ValueError, "1 weights for 2 methods"):
        Combined([lrp, lrp], [1.0])
    for weight in (float("nan"), float("inf"), "half", True):
        with refuses(model, InputError, ValueError, "A weight must be a finite number"):
            Combined([(lrp, weight)])  # type: ignore[list-item]
    close(Combined([(lrp, 2)]).attribute(x, 1), 2 * lrp.attribute(x, 1))
