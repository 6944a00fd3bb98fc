"""The signal quality: against NumPy's least squares, on the toy of the paper, and what it leaves out or refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import InputError, PatternNet, SignalQuality
from relprop.attribution.patterns.quality import least_squares
from tests.attribution.patterns.pattern_reference import conv_patches


def data(*shape: int, seed: int = 0) -> Tensor:
    """Inputs that depend on each other, and are not centred."""
    found = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mixing = torch.randn(shape[1], shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return (found.movedim(1, -1) @ mixing).movedim(-1, 1) + 0.5


# Against the definition ---------------------------------------------------------------------------


def reference(w: np.ndarray, b: float, on: np.ndarray, off: np.ndarray, second: np.ndarray, third: np.ndarray) -> float:
    def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = x @ w
        return y, x - y[:, None] * np.where((y + b > 0)[:, None], on, off)

    y, d = split(second)
    v = np.linalg.lstsq(d - d.mean(0), y - y.mean(), rcond=1e-5)[0]
    y, d = split(third)
    return float(1 - abs(np.corrcoef(y, d @ v)[0, 1]))


def check(quality: SignalQuality, method: PatternNet, unit: str, second: np.ndarray, third: np.ndarray) -> None:
    """Compare every unit of a layer without groups, of which the patches are given."""
    pattern = method.patterns[unit]
    count = len(pattern.weight)
    assert quality.units[unit].tolist() == list(range(count)) and quality.samples[unit] == (len(second), len(third))
    rows = pattern.weight.flatten(1).numpy()
    a = {region: direction.flatten(1).numpy() for region, direction in pattern.directions.items()}
    for u in range(count):
        w, b = rows[u], float(pattern.bias[u])
        sides = {
            "filter": (w / (w @ w),) * 2,
            "linear": (a["linear"][u],) * 2,
            "relu+-": (a["relu+"][u], a["relu-"][u]),
        }
        for estimator, (on, off) in sides.items():
            expected = reference(w, b, on, off, second, third)
            assert float(quality.values[unit][estimator][u]) == pytest.approx(expected, abs=1e-7)


def test_rho_is_that_of_the_definition_for_dense_layers_and_convolutions() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double()
    method = PatternNet(model).fit([data(300, 2, 6)])
    second, third = data(200, 2, 6, seed=1), data(150, 2, 6, seed=2)
    quality = method.signal_quality(second.split(64), third.split(64))
    check(quality, method, "0.weight", *(conv_patches(x.numpy(), (3,), 1, 1, 1, 1)[:, 0] for x in (second, third)))
    hidden = (model[:3](x).detach().numpy() for x in (second, third))
    check(quality, method, "3.weight", *hidden)
    means = quality.means()
    assert means["3.weight"]["linear"] > means["3.weight"]["filter"]
    assert means["3.weight"]["filter"] == pytest.approx(float(quality.values["3.weight"]["filter"].mean()))


def test_the_toy_of_the_paper() -> None:
    """The filter leaves (s/2 + d, s/2 + d), which correlates with s by 1 / sqrt(5); the pattern leaves (d, d)."""

    def toy(seed: int) -> list[Tensor]:
        random = torch.Generator().manual_seed(seed)
        signal, distractor = torch.randn(2, 40_000, generator=random, dtype=torch.float64)
        return [torch.stack([signal + distractor, distractor], 1)]

    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    quality = PatternNet(model).fit(toy(0)).signal_quality(toy(1), toy(2), patches=40_000)
    found = quality.means()["weight"]
    assert found["filter"] == pytest.approx(1 - 5**-0.5, abs=0.02)
    assert min(found["linear"], found["relu+-"]) > 0.97


def test_where_the_residual_does_not_vary_the_correlation_is_zero() -> None:
    model = nn.Linear(1, 2).double()
    batches = [data(50, 1)]
    quality = PatternNet(model).fit(batches, "linear").signal_quality(batches, [data(40, 1, seed=3)])
    assert {name: rho.tolist() for name, rho in quality.values["weight"].items()} == {
        "filter": [1.0, 1.0],
        "linear": [1.0, 1.0],
    }


def test_least_squares_leaves_out_directions_that_hardly_vary() -> None:
    d = torch.cat([data(100, 3), torch.zeros(100, 1, dtype=torch.float64)], 1)
    noise = 1e-9 * torch.randn(100, dtype=torch.float64)
    d[:, 3] = noise
    y = d[:, :3] @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) + 1e9 * noise
    v = least_squares(d, y, 1e-10)
    torch.testing.assert_close(v[3], torch.zeros_like(v[3]), rtol=0, atol=1e-6)
    assert float(least_squares(d, y, 1e-20)[3]) > 1e8
    assert not least_squares(torch.ones(10, 2, dtype=torch.float64), torch.arange(10.0).double(), 1e-10).any()


# What is measured ---------------------------------------------------------------------------------


def fitted() -> PatternNet:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5)).double()
    return PatternNet(model).fit([data(80, 4, 5, 5)])


def test_at_most_so_many_units_and_patches_and_always_the_same_for_a_seed() -> None:
    method = fitted()
    splits = data(40, 4, 5, 5, seed=1).split(7), data(40, 4, 5, 5, seed=2).split(9)

    def measure(seed: int, **options: int) -> SignalQuality:
        return method.signal_quality(*splits, layers=["0"], patches=100, seed=seed, **options)

    one, again, other = measure(0, units=3), measure(0, units=3), measure(5, units=3)
    assert one.samples == {"0.weight": (100, 100)} and len(one.units["0.weight"]) == 3
    assert torch.equal(one.values["0.weight"]["linear"], again.values["0.weight"]["linear"])
    assert not torch.equal(one.values["0.weight"]["filter"], other.values["0.weight"]["filter"])
    everything = method.signal_quality(*splits, layers=["0"], units=100)
    assert everything.samples == {"0.weight": (360, 360)} and len(everything.units["0.weight"]) == 6


def test_samples_are_drawn_evenly_from_all_batches() -> None:
    """The means of what is kept are those of all, whatever the batch."""
    from relprop.attribution.patterns.quality import _Samples

    model = nn.Linear(1, 1).double()
    method = PatternNet(model).fit([data(30, 1)])
    x = torch.arange(20_000, dtype=torch.float64)[:, None]
    kept = _Samples(method.patterns, {"weight": torch.tensor([0])}, 4000, 0)
    from relprop.attribution.patterns.fit import show_calls

    show_calls(model, x.split(700), kept.add, False, "")
    found = kept.kept["weight"][1].flatten()
    assert len(found.unique()) == 4000
    counts = torch.histc(found, 10, 0, 20_000)
    assert float((counts / 400 - 1).abs().max()) < 0.2


def test_units_that_do_not_vary_are_left_out() -> None:
    model = nn.Linear(3, 4).double()
    model.weight.data[1] = 0.0
    with pytest.warns(match="1 of 'weight'"):
        method = PatternNet(model).fit([data(50, 3)])
    quality = method.signal_quality([data(50, 3, seed=1)], [data(50, 3, seed=2)])
    assert quality.units["weight"].tolist() == [0, 2, 3]
    assert all(len(rho) == 3 for rho in quality.values["weight"].values())
    model.weight.data[:] = 0.0
    with pytest.warns(match="4 of 'weight'"):
        method.fit([data(50, 3)])
    with pytest.raises(InputError, match="No unit's output varies"):
        method.signal_quality([data(50, 3, seed=1)], [data(50, 3, seed=2)])


def test_too_few_samples_and_unknown_layers_are_refused() -> None:
    method = fitted()
    enough, few = [data(60, 4, 5, 5)], [data(54, 4, 5, 5)]
    for splits, which in (((few, enough), "first"), ((enough, few), "second")):
        with pytest.raises(InputError, match=f"'3.weight' has 54 inputs, and the {which} loader gave 54 samples"):
            method.signal_quality(*splits)
    method.signal_quality(few, few, layers=["0"])
    with pytest.raises(InputError, match=re.escape("(patches=18 at most)")):
        method.signal_quality(enough, enough, layers=["0"], patches=18)
    with pytest.raises(InputError, match="'1' has no patterns"):
        method.signal_quality(enough, enough, layers=["1"])
    with pytest.raises(InputError, match="no module"):
        method.signal_quality(enough, enough, layers=["conv"])
    with pytest.raises(InputError, match="units must be at least 1"):
        method.signal_quality(enough, enough, units=0)


def test_the_table() -> None:
    quality = SignalQuality(
        {"a": {"filter": torch.tensor([0.25, 0.75]), "linear": torch.tensor([1.0, 0.9])}},
        {"a": torch.tensor([0, 3])},
        {"a": (10, 10)},
    )
    assert str(quality).split("\n") == [
        "layer  units  filter  linear",
        "-----  -----  ------  ------",
        "a          2   0.500   0.950",
    ]
    assert "<td>0.950</td>" in quality._repr_html_()
