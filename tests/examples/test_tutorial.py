"""The tutorial's four demonstrations: the facts they show, and that they run and draw."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from relprop import LRP, Gradient
from relprop.metrics import absorbed_shares
from relprop.rules import Gamma, ZPlus

Examples = dict[str, ModuleType]


def picture(path: Path) -> bool:
    return bool(plt.imread(path).std() > 0)


@pytest.mark.parametrize("depth", [1, 2, 5, 9, 12])
def test_tent_map(examples: Examples, depth: int) -> None:
    """Depth: |gradient| = 2^depth, z+ keeps everything, gamma does where it ignores biases."""
    model = examples["tutorial_depth"].tent(depth)
    x = torch.rand(50, 1, dtype=torch.float64)
    f = x.clone()
    for _ in range(depth):
        f = torch.where(f < 0.5, 2 * f, 2 - 2 * f)
    torch.testing.assert_close(model(x).detach(), f, atol=1e-10, rtol=0)
    gradient = Gradient(model).attribute(x)
    assert torch.equal(gradient.abs(), torch.full_like(x, 2.0**depth))
    for rule in (ZPlus(stabilizer=0), Gamma(1.0, bias="ignore", stabilizer=0)):
        torch.testing.assert_close(LRP(model, rule).attribute(x), f, atol=1e-10, rtol=1e-8)


def test_biases_take_what_gamma_loses_and_the_report_names_them(examples: Examples) -> None:
    """One tent, gamma 1, x > 1/2: R = f (4 x - 8 x (x - 1/2) / (2 x - 1/2)) / (4 x - 4 (x - 1/2)), by hand."""
    tent = examples["tutorial_depth"].tent
    x = torch.tensor([[0.8]], dtype=torch.float64)
    method = LRP(tent(1), Gamma(1.0, stabilizer=0))
    left = (4 * 0.8 - 4 * 0.3 * 1.6 / (1.6 - 0.5)) / (4 * 0.8 - 4 * 0.3)
    assert float(method.attribute(x) / 0.4) == pytest.approx(left)
    shares = absorbed_shares(method.report(x).to_dict())
    assert shares.largest("bias") == ("0 linear", pytest.approx(1 - left))
    assert shares.shares["bias"] == pytest.approx(1 - left)


def test_depth_shrinks_gamma_and_only_biases_are_to_blame(examples: Examples) -> None:
    depth = examples["tutorial_depth"]
    facts = depth.tent_map((2, 4, 8, 12), points=100)
    kept = [each["gamma"] for each in facts.values()]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 0.7 and kept[-1] < 0.3
    x = torch.rand(1, 1, dtype=torch.float64)
    for number in (4, 12):
        shares = absorbed_shares(LRP(depth.tent(number), Gamma(1.0, stabilizer=0)).report(x).to_dict())
        assert shares.inputs + shares.shares["bias"] == pytest.approx(1.0, abs=1e-9)
        # Only the first layer of a tent has a bias: modules 0, 3, 6, ...
        assert all(int(name.split()[0]) % 3 == 0 for name, each in shares.modules.items() if abs(each["bias"]) > 1e-9)


@pytest.mark.slow
def test_gradient_x_input_grows_restless_with_depth_on_digits(examples: Examples, tmp_path: Path) -> None:
    depth = examples["tutorial_depth"]
    moved = depth.trained(tmp_path, (2, 8), epochs=6, samples=40)
    assert moved[8]["Gradient x Input"] > 2 * moved[2]["Gradient x Input"]
    assert moved[8]["gamma"] < moved[8]["Gradient x Input"] / 2
    assert picture(tmp_path / "tutorial_depth_maps.png")
    depth.draw(depth.tent_map((2, 4), points=20), moved, tmp_path / "tutorial_depth.png")
    assert picture(tmp_path / "tutorial_depth.png")


@pytest.mark.slow
def test_gradient_x_input_jumps_where_gamma_glides(examples: Examples, tmp_path: Path) -> None:
    continuity = examples["tutorial_continuity"]
    model, three = continuity.trained()
    results = continuity.measured(continuity.followed(model, three, pixels=1, steps=256), halvings=4)
    assert results["Gradient x Input"].mean > 0.5
    for name in ("gamma", "z+"):
        assert abs(results[name].mean) < 0.05
        # The jump is gone with the step: halved four times, it is a sixteenth.
        assert float(results[name].jumps[-1] / results[name].jumps[0]) == pytest.approx(1 / 16, rel=0.3)
    continuity.draw(results, tmp_path / "halving.png")
    assert picture(tmp_path / "halving.png")
    continuity.film(continuity.followed(model, three, pixels=6, steps=4), tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]


@pytest.mark.slow
def test_two_maxima_have_one_gradient_and_two_relevances(examples: Examples, tmp_path: Path) -> None:
    implementation = examples["tutorial_implementation"]
    a, b = implementation.maxima()
    x = torch.rand(50, 2, dtype=torch.float64)
    for model in (a, b):
        torch.testing.assert_close(model(x).detach()[:, 0], x.amax(dim=1))
    maps = implementation.of_maximum()
    assert maps["Gradient x Input"] == ([3.0, 0.0], [3.0, 0.0])
    # By hand: gamma gives x1 and x2 of relu(x1 - x2) the parts 3.75 and -1 of 2.75.
    torch.testing.assert_close(
        torch.tensor(maps["gamma"][0]), torch.tensor([7.5 / 2.75, 1 - 2 / 2.75]), atol=1e-5, rtol=0
    )
    expected = torch.tensor([3.75 / 2.75 + 1.5, 0.5 - 1 / 2.75])
    torch.testing.assert_close(torch.tensor(maps["gamma"][1]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(maps["z+"]), torch.tensor([[2.0, 1.0], [2.5, 0.5]]), atol=1e-5, rtol=0)
    # b treats its inputs alike: swapped inputs, swapped relevance. a does not.
    for model, symmetric in ((a, False), (b, True)):
        method = LRP(model, Gamma(0.25))
        swapped = method.attribute(x.flip(1)).flip(1)
        assert torch.allclose(method.attribute(x), swapped) is symmetric
    implementation.draw_maximum(tmp_path / "maximum.png", points=8)
    assert picture(tmp_path / "maximum.png")


@pytest.mark.slow
def test_structure_as_section_six_advises(examples: Examples, tmp_path: Path) -> None:
    """Sum-pooling makes gamma continuous; without positive biases nothing is taken from z+."""
    implementation, digits = examples["tutorial_implementation"], examples["digits"]
    facts = list(implementation.of_structure(tmp_path, digits.load(), epochs=3, samples=8).values())
    assert facts[0]["growth"] > 0.4
    assert max(each["growth"] for each in facts[1:]) < 0.2
    assert min(each["bias"] for each in facts[:3]) > 0.02
    assert abs(facts[3]["bias"]) < 1e-12
    assert picture(tmp_path / "tutorial_implementation.png")


def test_rewritten_digits_network(examples: Examples) -> None:
    implementation = examples["tutorial_implementation"]
    torch.manual_seed(0)
    model = implementation.network(width=4).double()
    apart = implementation.of_rewriting(model, torch.rand(5, 1, 8, 8).double(), torch.tensor([0, 1, 2, 3, 4]))
    assert max(apart["Gradient x Input"].values()) < 1e-12
    assert max(apart["gamma"].values()) < 1e-3
    assert apart["epsilon 0.1"]["split"] > 1e-2


@pytest.mark.slow
def test_only_selectivity_sees_the_blind_spot(examples: Examples, tmp_path: Path) -> None:
    facts = examples["tutorial_blind_spot"].run(tmp_path, epochs=3, samples=16, width=8)
    uniform = facts["uniform"]
    assert uniform["relative delta"] < 1e-12
    assert abs(uniform["growth"]) < 0.1
    assert uniform["distance"] < 1e-12
    assert abs(uniform["selectivity"]) < 3 * uniform["+/-"]
    for name in ("Gradient x Input", "gamma", "z+"):
        assert facts[name]["selectivity"] > max(1, 5 * abs(uniform["selectivity"]))
    assert picture(tmp_path / "tutorial_blind_spot.png")
    assert picture(tmp_path / "tutorial_blind_spot_maps.png")
