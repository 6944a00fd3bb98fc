"""The figures themselves: what is drawn, on which scale, what is written beside it, and what is refused."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from relprop.errors import InputError, InputTypeError, MissingExtraError
from relprop.visual import grid, heatmap, layers


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shown(ax: Any) -> np.ndarray[Any, Any]:
    return np.asarray(ax.images[0].get_array())


# heatmap


def test_heatmap_draws_the_sum_over_channels_centred_on_zero() -> None:
    relevance = random(3, 4, 5)
    image = heatmap(relevance)
    np.testing.assert_allclose(image.get_array(), relevance.double().sum(0))
    low, high = image.get_clim()
    assert low == -high == -float(relevance.double().sum(0).abs().max())
    red, green, blue, _ = image.cmap(image.norm(0.0))
    assert red == green == blue or min(red, green, blue) > 0.98  # zero is white
    assert image.cmap(1.0)[0] > image.cmap(1.0)[2]  # positive is red
    assert image.cmap(0.0)[2] > image.cmap(0.0)[0]  # negative is blue


def test_heatmap_states_its_scale() -> None:
    image = heatmap(random(1, 4, 4), scale=2.5, title="three")
    assert image.get_clim() == (-2.5, 2.5)
    ax, bar = image.figure.axes
    assert (ax.get_title(), bar.get_ylabel()) == ("three", "relevance, ±2.5")
    image = heatmap(random(1, 4, 4), plt.figure().add_subplot(), scale=2.5, colorbar=False)
    assert image.axes.get_xlabel() == "scale ±2.5"
    assert len(image.figure.axes) == 1


def test_heatmap_draws_into_the_given_axes() -> None:
    figure, axes = plt.subplots(1, 2)
    assert heatmap(random(1, 4, 4), axes[1]).axes is axes[1]
    assert not axes[0].images
    assert plt.get_fignums() == [figure.number]


def test_heatmap_of_nothing_but_zeros_is_the_colour_of_zero() -> None:
    image = heatmap(torch.zeros(1, 4, 4))
    assert image.norm(0.0) == 0.5


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_heatmap_refuses_a_scale_that_is_not_positive(scale: float) -> None:
    with pytest.raises(InputError, match="expected a positive, finite number"):
        heatmap(random(1, 4, 4), scale=scale)


@pytest.mark.parametrize("scale", ["big", True])
def test_heatmap_refuses_a_scale_that_is_no_number(scale: Any) -> None:
    with pytest.raises(InputTypeError, match=r"scale is a \w+; expected a number"):
        heatmap(random(1, 4, 4), scale=scale)


# grid


def test_grid_sets_inputs_beside_maps_and_names_everything() -> None:
    x = random(2, 1, 4, 4).sigmoid()
    maps = {"a": random(2, 1, 4, 4, seed=1), "b": random(2, 1, 4, 4, seed=2)}
    figure = grid(x, maps, labels=["first", "second"], title="all of it")
    panels, bar = figure.axes[:-1], figure.axes[-1]
    assert [ax.get_title() for ax in panels] == ["input", "a", "b", "", "", ""]
    assert [ax.get_ylabel() for ax in panels] == ["first", "", "", "second", "", ""]
    assert figure.get_suptitle() == "all of it"
    assert bar.get_ylabel() == "relevance / max |relevance| of its map (± under it)"
    np.testing.assert_allclose(shown(panels[3]), x[1, 0].double())
    for ax, each in zip([panels[1], panels[2], panels[4], panels[5]], (0, 0, 1, 1), strict=True):
        relevance = maps["a" if ax in (panels[1], panels[4]) else "b"][each, 0].double()
        scale = float(relevance.abs().max())
        np.testing.assert_allclose(shown(ax), relevance / scale)
        assert ax.images[0].get_clim() == (-1, 1)
        assert ax.get_xlabel() == f"±{scale:.2g}"


@pytest.mark.parametrize(
    ("normalize", "label"),
    [
        ("row", "relevance / max |relevance| of its sample"),
        ("all", "relevance / max |relevance| of the figure"),
        (4.0, "relevance / 4.0"),
    ],
)
def test_grid_shares_scales_as_asked(normalize: Any, label: str) -> None:
    maps = {
        "a": torch.tensor([[[1.0, -2.0]], [[0.5, 0.0]]]),
        "b": torch.tensor([[[0.5, 0.5]], [[8.0, -4.0]]]),
    }
    figure = grid(torch.rand(2, 1, 2), maps, normalize=normalize)
    expected = {"row": [2.0, 8.0], "all": [8.0, 8.0], "4.0": [4.0, 4.0]}[str(normalize)]
    for row, scale in enumerate(expected):
        for column, each in enumerate(maps.values(), start=1):
            np.testing.assert_allclose(shown(figure.axes[3 * row + column]), each[row] / scale)
    assert figure.axes[-1].get_ylabel() == label
    assert not any(ax.get_xlabel() for ax in figure.axes)


def test_grid_says_that_a_quantile_is_the_scale() -> None:
    maps = torch.cat([torch.ones(1, 1, 99), torch.full((1, 1, 1), 50.0)], dim=2)
    figure = grid(maps, {"a": maps}, quantile=0.9)
    assert "the 0.9 quantile of |relevance|" in figure.axes[-1].get_ylabel()
    np.testing.assert_allclose(shown(figure.axes[1])[0, :99], 1.0)


def test_grid_writes_a_picture_into_a_new_folder_and_closes_the_figure(tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.png"
    x = torch.rand(1, 3, 4, 4)
    grid(x, {"a": x}, path=path)
    height, width, _ = plt.imread(path).shape
    assert height > 100 and width > 300
    assert not plt.get_fignums()
    grid(x, {"a": x})
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": torch.rand(4, 4)}, r"inputs has shape \(4, 4\); expected a batch"),
        ({"relevances": {"a": torch.rand(3, 1, 4, 4)}}, r"relevances\['a'\] has 3 samples; expected 2"),
        (
            {"relevances": {"a": torch.rand(2, 64)}},
            r"relevances\['a'\] has shape \(2, 64\); expected a batch",
        ),
        ({"relevances": {}}, "relevances is empty"),
        ({"labels": ["one"]}, "1 labels were given for 2 samples"),
        ({"normalize": "column"}, "normalize is 'column'; expected 'map', 'row', 'all' or a positive number"),
        ({"normalize": -1.0}, "normalize is -1.0; expected a positive"),
        ({"quantile": 2.0}, "quantile is 2.0"),
    ],
)
def test_grid_refuses_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"inputs": torch.rand(2, 1, 4, 4), "relevances": {"a": torch.rand(2, 1, 4, 4)}}
    with pytest.raises(InputError, match=message):
        grid(**(good | arguments))
    assert not plt.get_fignums()


# layers


def test_layers_shows_every_layer_with_its_size_and_sum() -> None:
    maps = {"conv": random(1, 6, 5, 5), "dense": random(1, 12), "tokens": random(1, 3, 4)}
    figure = layers(maps, torch.rand(1, 1, 8, 8), labels=["target 3"])
    titles = ["input\n1 x 8 x 8", "conv\n6 x 5 x 5", "dense\n12 units", "tokens\n3 x 4", ""]
    assert [ax.get_title() for ax in figure.axes] == titles
    assert figure.axes[0].get_ylabel() == "target 3"
    for ax, (name, relevance) in zip(figure.axes[1:4], maps.items(), strict=True):
        scale = float((relevance.double().sum(1) if name == "conv" else relevance.double()).abs().max())
        assert ax.get_xlabel() == f"sum {float(relevance.double().sum()):.3g}, ±{scale:.2g}"
    assert shown(figure.axes[2]).shape == (3, 4)


def test_layers_wraps_and_keeps_samples_apart() -> None:
    maps = {name: random(2, 4) for name in "abcde"}
    figure = layers(maps, columns=3, labels=["one", "two"], normalize="all")
    panels = figure.axes[:-1]
    assert len(panels) == 10  # two samples of five layers; the empty sixth panels are gone
    assert [ax.get_ylabel() for ax in panels] == ["one", *[""] * 4, "two", *[""] * 4]
    assert all("±" not in ax.get_xlabel() for ax in panels)


def test_layers_takes_the_calls_of_a_module_used_twice() -> None:
    figure = layers({"shared": (random(1, 4), random(1, 4, seed=1))})
    assert [ax.get_title().split("\n")[0] for ax in figure.axes[:2]] == ["shared (call 1)", "shared (call 2)"]


def test_layers_writes_a_picture(tmp_path: Path) -> None:
    layers({"a": random(1, 4)}, path=tmp_path / "layers.png", title="one layer")
    assert (tmp_path / "layers.png").stat().st_size > 1000
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": 0}, "columns is 0; expected at least 1"),
        ({"inputs": torch.rand(3, 1, 4, 4)}, "inputs has 3 samples; expected 2"),
        ({"relevances": {"a": torch.rand(2, 4), "b": torch.rand(1, 4)}}, r"relevances\['b'\] has 1 samples"),
        ({"relevances": {"a": torch.tensor(1.0)}}, r"relevances\['a'\] has shape \(\); expected a batch"),
        ({"labels": list("abc")}, "3 labels were given for 2 samples"),
    ],
)
def test_layers_refuses_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layers(**({"relevances": {"a": torch.rand(2, 4)}} | arguments))
    assert not plt.get_fignums()


# matplotlib as an extra


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install relprop\[visual\]"):
        grid(torch.rand(1, 1, 4, 4), {"a": torch.rand(1, 1, 4, 4)})


@pytest.mark.slow
def test_importing_visual_does_not_import_matplotlib() -> None:
    check = "import sys, relprop.visual; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
