"""Box plots: which boxes are drawn, where, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from relprop.errors import InputError
from relprop.visual import boxes


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    with matplotlib.rc_context():
        plt.switch_backend("Agg")
        yield
        plt.close("all")


VALUES = {
    "first with norm": {"filter": torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]), "linear": np.array([0.9, 1.0, 0.8])},
    "second": {"filter": torch.tensor([0.5]), "linear": np.array([0.7, 0.7])},
}


def test_every_box_stands_at_its_layer_from_quartile_to_quartile() -> None:
    figure = boxes(VALUES, ylabel="rho", title="quality", limits=(0.0, 1.0))
    (ax,) = figure.axes
    assert len(ax.patches) == 4
    (first, *_), third = (patch.get_path().get_extents() for patch in ax.patches[:1]), ax.patches[2]
    assert (first.y0, first.y1) == pytest.approx((0.1, 0.3))
    assert third.get_path().get_extents().y1 == pytest.approx(0.95)
    middles = [patch.get_path().get_extents() for patch in ax.patches]
    assert [round((box.x0 + box.x1) / 2, 6) for box in middles] == [-0.2, 0.8, 0.2, 1.2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["first\nwith norm", "second"]
    assert ax.get_ylim() == (0.0, 1.0) and ax.get_ylabel() == "rho"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["filter", "linear"]


def test_a_saved_figure_is_closed(tmp_path: Path) -> None:
    boxes(VALUES, path=tmp_path / "new" / "boxes.png")
    assert plt.imread(tmp_path / "new" / "boxes.png").std() > 0
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    "values", [{}, {"a": {}}, {"a": {"x": [1.0]}, "b": {"y": [1.0]}}, {"a": {"x": torch.zeros(0)}}]
)
def test_what_cannot_be_drawn_is_refused(values: dict[str, dict[str, list[float]]]) -> None:
    arrays = {layer: {name: torch.as_tensor(each) for name, each in found.items()} for layer, found in values.items()}
    with pytest.raises(InputError):
        boxes(arrays)
