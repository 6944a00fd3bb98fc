"""The film: its frames, its scale, its curves, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from relprop import InputError
from relprop.visual import animation

FRAMES = 6


@pytest.fixture
def x() -> torch.Tensor:
    """A dot that moves along the diagonal, [FRAMES, 1, FRAMES, FRAMES]."""
    return torch.diag_embed(torch.eye(FRAMES))[:, None]


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as film:
        found = []
        for n in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(n)
            found.append(np.asarray(film.convert("RGB")).astype(int))
        return found


def reddest(frame: np.ndarray) -> np.ndarray:
    """Where red stands most alone, in pixels of the frame: the middle of the dot in its heat map."""
    red = frame[..., 0] - frame[..., 1:].max(axis=2)
    return np.argwhere(red > 200).mean(axis=0)


def test_a_film_follows_the_relevance(x: torch.Tensor, tmp_path: Path) -> None:
    open_before = plt.get_fignums()
    path = animation(x, {"itself": x}, tmp_path / "new" / "dot.gif", fps=20, title="A dot")
    assert path == tmp_path / "new" / "dot.gif"
    found = frames(path)
    assert len(found) == FRAMES
    places = np.array([reddest(frame) for frame in found])
    steps = np.diff(places, axis=0)  # down and right, by one panel pixel each
    assert (steps > 5).all()
    np.testing.assert_allclose(steps, np.broadcast_to(steps.mean(), steps.shape), atol=2)
    assert plt.get_fignums() == open_before
    with Image.open(path) as film:
        assert film.info["duration"] == 50


def test_one_scale_for_all_frames(x: torch.Tensor, tmp_path: Path) -> None:
    fading = x * torch.linspace(1, 0.2, FRAMES).view(-1, 1, 1, 1)
    found = frames(animation(x, {"fading": fading}, tmp_path / "dot.gif"))
    strongest = [int((frame[..., 0] - frame[..., 1:].max(axis=2)).max()) for frame in found]
    assert strongest[0] > 240
    assert 30 < strongest[-1] < 80  # a fifth of the colour: not stretched to its own frame


@pytest.mark.slow
@pytest.mark.parametrize("length", [FRAMES, FRAMES - 1])
def test_curves_have_a_line_where_the_film_is(x: torch.Tensor, tmp_path: Path, length: int) -> None:
    curves = {"flat": torch.zeros(length), "rising": np.arange(length) * 1.0}
    found = frames(animation(x, {"itself": x}, tmp_path / "dot.gif", curves=curves, curves_label="number"))
    plain = frames(animation(x, {"itself": x}, tmp_path / "plain.gif"))
    below = slice(plain[0].shape[0] + 10, found[0].shape[0] - 45)
    assert found[0].shape[0] > plain[0].shape[0] + 100
    moved = [np.abs(one[below] - other[below]).sum(axis=(0, 2)) for one, other in pairwise(found)]
    columns = [int(np.argmax(change[: int(change.shape[0] * 0.7)])) for change in moved]
    assert all(change.any() for change in moved)
    assert columns == sorted(columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.zeros(1, 1, 4, 4)}, "inputs hold 1 frame"),
        ({"inputs": torch.zeros(4, 4)}, r"inputs has shape \(4, 4\)"),
        ({"relevances": {"short": torch.zeros(2, 1, 4, 4)}}, "has 2 samples; expected 6"),
        ({"curves": {"long": torch.zeros(9)}}, r"curves\['long'\] has shape \(9,\); expected one number a frame"),
        ({"curves": {"broken": torch.full((6,), torch.nan)}}, "NaN or infinity"),
        ({"fps": 0}, "fps is 0"),
    ],
)
def test_bad_input_is_named(x: torch.Tensor, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"inputs": x, "relevances": {"itself": x}, "path": tmp_path / "dot.gif", **change}
    with pytest.raises(InputError, match=message):
        animation(**arguments)
    assert not (tmp_path / "dot.gif").exists()
