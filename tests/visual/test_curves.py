"""Curves: the lines, their bands, what is written, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from relprop.errors import InputError, InputTypeError
from relprop.visual import curves


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    with matplotlib.rc_context():
        plt.switch_backend("Agg")
        yield
        plt.close("all")


def band(ax: Any, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper edge of a band."""
    points = ax.collections[index].get_paths()[0].vertices
    places = np.unique(points[:, 0])
    low = np.array([points[points[:, 0] == place, 1].min() for place in places])
    return low, np.array([points[points[:, 0] == place, 1].max() for place in places])


def test_lines_are_means_and_bands_are_their_spread() -> None:
    values = torch.randn(7, 5)
    n = values.double().numpy()
    deviation = n.std(axis=0, ddof=1)
    expected = {
        "error": (n.mean(0), n.mean(0) - deviation / 7**0.5, n.mean(0) + deviation / 7**0.5),
        "deviation": (n.mean(0), n.mean(0) - deviation, n.mean(0) + deviation),
        "quartiles": tuple(np.quantile(n, q, axis=0) for q in (0.5, 0.25, 0.75)),
    }
    for spread, (middle, low, high) in expected.items():
        ax = curves({"a": values}, spread=spread, ylabel="score").axes[0]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), middle)
        np.testing.assert_allclose(band(ax), (low, high))
        assert ax.get_ylabel().startswith("score\n(") and ("median" in ax.get_ylabel()) == (spread == "quartiles")
    ax = curves({"a": values}, spread=None).axes[0]
    assert not ax.collections
    np.testing.assert_allclose(ax.lines[0].get_ydata(), n.mean(0))


def test_panels_share_the_axis_and_the_colours(tmp_path: Path) -> None:
    one, two = np.zeros((3, 4)), np.ones((1, 4))
    panels = {"left": {"a": one, "b": two}, "right": {"b": two + 8}}
    figure = curves(panels, ["w", "x", "y", "z"], xlabel="layer", title="T", path=tmp_path / "deep" / "c.png")
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("left", "right")
    assert left.lines[1].get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert left.get_ylim() == right.get_ylim()
    assert [label.get_text() for label in right.get_xticklabels()] == ["w", "x", "y", "z"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert (tmp_path / "deep" / "c.png").exists()
    assert not plt.get_fignums()


def test_points_stand_where_the_steps_say() -> None:
    for steps in (np.array([0.1, 0.4]), torch.tensor([0.1, 0.4]), (0.1, 0.4)):
        ax = curves({"a": np.zeros((2, 2))}, steps).axes[0]
        np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.1, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ({"a": np.zeros(3)}, {}, InputError, r"shape \(3,\)"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, {}, InputError, r"\[3, 4\] points"),
        ({"a": np.zeros((2, 3)), "b": {"c": np.zeros((2, 3))}}, {}, InputError, "both curves and panels"),
        ({"a": np.zeros((2, 3))}, {"steps": [1.0]}, InputError, "1 steps"),
        ({"a": np.zeros((2, 3))}, {"spread": "range"}, InputError, "'range'"),
        ({"a": np.full((2, 3), np.nan)}, {}, InputError, "NaN"),
        ({}, {}, InputError, "empty"),
        (np.zeros((2, 3)), {}, InputTypeError, "ndarray"),
    ],
)
def test_bad_curves(values: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        curves(values, **options)
