"""Names of methods, layers and classes in figures: shown as they are, whatever they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from relprop.visual import animation, boxes, curves, grid, heatmap, layers

HOSTILE = [
    "$", "$$", "$$$", "a$b", "$x_{$", "$x^{2$ and $", r"$\frac{1$", r"$\nosuch$", r"\$", r"\\$x$", "$^$", "$_$", "${}$",
    r"$\left($", "cost in $ and in $", "_", "_hidden", "__init__", "a_b^c", "{", "}", "{}", "{0}", "%s", "%", "#", "&",
    "~", "^", "\\", "\\n", "a\nb", "\n", "\t", "\r", "\0", "\x1b[31m", "\ud800", "\u200b", "", " ", "'", '"', "<b>",
    "layer.0.$weight$", "0.weight with 1", "with with ", "\\mathdefault{", "$\\mathdefault{$", "a" * 60,
]  # fmt: skip
MAPS = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
ONE = MAPS[:1]
ROWS = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))

FIGURES: dict[str, Callable[[list[str]], Figure]] = {
    "grid": lambda names: grid(ONE, dict.fromkeys(names, ONE), labels=names[:1], title=names[0]),
    "layers": lambda names: layers(dict.fromkeys(names, ONE), ONE, labels=names[:1], title=names[0]),
    "curves": lambda names: curves(
        {names[0]: dict.fromkeys(names, ROWS)}, [*names, "4", "5"][:5], xlabel=names[0], ylabel=names[1], title=names[2]
    ),
    "boxes": lambda names: boxes(
        {name: dict.fromkeys(names[:3], ROWS[:, 0]) for name in names}, ylabel=names[0], title=names[1]
    ),
    "heatmap": lambda names: heatmap(MAPS[0], title=names[0]).get_figure(root=True),  # type: ignore[return-value]
}


def drawn(figure: Figure) -> list[str]:
    """The texts of a figure, which is drawn."""
    figure.set_layout_engine("none")  # which takes most of the time
    figure.canvas.draw()
    found = [text.get_text() for text in figure.findobj(Text)]
    plt.close(figure)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES)
def test_hostile_names(figure: str) -> None:
    """No name is an error or a warning; those of methods, layers and curves stand there as they are."""
    for start in range(0, len(HOSTILE), 5):
        names = HOSTILE[start : start + 5]
        texts = drawn(FIGURES[figure](names))
        if figure == "heatmap":
            continue
        for name in names:
            if name.isprintable():
                shown = name.replace(" with ", "\nwith ") if figure == "boxes" else name
                assert any(shown in text for text in texts), name


@pytest.mark.slow
def test_a_film_of_hostile_names(tmp_path: Path) -> None:
    names = ["$x_{$", "_hidden", "\0", "a\nb", r"$\nosuch$"]
    lines: dict[str, Any] = dict.fromkeys(names, torch.rand(2))
    animation(
        MAPS, dict.fromkeys(names, MAPS), tmp_path / "film.gif", curves=lines, curves_label=names[0], title=names[4]
    )
    assert (tmp_path / "film.gif").stat().st_size > 0


def test_titles_and_axes_may_hold_formulas() -> None:
    figure = curves({"$a$": ROWS}, xlabel=r"$\Delta R$", title="$x_{$")
    parsed = {text.get_text(): text.get_parse_math() for text in figure.findobj(Text)}
    assert parsed[r"$\Delta R$"] and not parsed["$a$"] and not parsed["$x_{$"]
    plt.close(figure)
